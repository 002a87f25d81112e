"""The command line, from the outside: what is printed, what is written, and how it ends."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

import fastperm
from fastperm import backend, estimation
from fastperm.baselines import ESTIMATORS
from fastperm.cli import main, options
from fastperm.cli.tables import column, table
from fastperm.network import AGGREGATES, INVARIANCES, PRECISIONS
from fastperm.power_spectrum import _AMPLITUDES
from fastperm.symmetries import SCALES, SYMMETRIES
from fastperm.training import SCHEDULES

SMALL = (
    *("--width", "4", "--depth", "2", "--set-size", "20", "--batch", "8", "--every", "5", "--validate", "16"),
    *("--backend", "reference"),
)
PICTURES = ("learning_curve.png", "spectra.png", "samples.png")


def run(*arguments, code=0, stdin=None):
    """Run the command and return what it printed; no traceback, ever."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def errors_of(result):
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """Pictures of a run take most of its time; those of `trained` are drawn, and looked at."""
    for name in ("learning_curve", "spectra", "samples"):
        monkeypatch.setattr(f"fastperm.figures.{name}", lambda path, *arguments, **options: path.touch())


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "fastperm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, run("train", "--out", folder, *SMALL, "--steps", "20").stdout


@pytest.fixture
def samples(tmp_path):
    """A CSV file of 20 samples."""
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 2 * np.pi, 20)
    path = tmp_path / "samples.csv"
    path.write_text("".join(f"{a},{b}\n" for a, b in zip(x, np.cos(x + 1), strict=True)))
    return path


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def load(folder):
    settings = json.loads((folder / "run.json").read_text())
    return fastperm.PowerSpectrum.from_config(settings["task"]), fastperm.load(folder / "model.safetensors")


def rows_of(output):
    """Return the rows of numbers in a printed table."""
    rows = [line.split() for line in output.splitlines()]
    return [row for row in rows if row and row[0].isdigit()]


def test_the_options_list_what_the_library_knows():
    assert ("auto", *backend.BACKENDS) == options.BACKENDS
    assert options.AGGREGATES == AGGREGATES
    assert options.INVARIANCES == INVARIANCES
    assert (None, *options.SYMMETRIES) == SYMMETRIES
    assert (None, *options.SCALES) == SCALES
    assert options.SCHEDULES == SCHEDULES
    assert options.PRECISIONS == PRECISIONS
    assert tuple(_AMPLITUDES) == options.AMPLITUDES
    assert tuple(ESTIMATORS) == options.BASELINES


def test_help_and_version_start_fast():
    script = "import sys; from fastperm.cli import main; print({'numpy', 'numba', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert run("--version").stdout.strip() == f"fastperm, version {fastperm.__version__}"
    for command in ("train", "evaluate", "predict", "sweep", "figures", "info"):
        assert command in run("--help").stdout
        assert "Usage: " in run(command, "--help").stdout
    assert "\n  fastperm evaluate runs/first  " in run("--help").stdout
    assert "[default: 4; x>=1]" in run("train", "--help").stdout


def test_train_writes_a_run(trained):
    folder, output = trained
    assert "20 steps of 8 functions" in output
    assert [row[0] for row in rows_of(output) if len(row) == 4] == ["1", "2", "3", "4"]
    assert "1.6449" in output
    written = {"run.json", "checkpoint.safetensors", "history.csv", "model.safetensors", *PICTURES}
    assert {path.name for path in folder.iterdir()} == written
    settings = json.loads((folder / "run.json").read_text())
    assert settings["training"]["steps"] == 20
    assert settings["network"]["width"] == [4, 4]
    assert settings["versions"]["fastperm"] == fastperm.__version__
    assert fastperm.PowerSpectrum.from_config(settings["task"]).set_size == 20
    assert len((folder / "history.csv").read_text().splitlines()) == 21
    assert fastperm.load(folder / "model.safetensors").config() == settings["network"]
    for picture in PICTURES:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG\r\n")


def test_both_symmetries_from_training_to_prediction(tmp_path, samples):
    folder = tmp_path / "circle"
    chosen = ("--symmetry", "circle", "--orders", 2, "--scale", "rms", "--schedule", "cosine", "--dtype", "float64")
    run("train", "--out", folder, *SMALL, *chosen, "--steps", 6)
    settings = json.loads((folder / "run.json").read_text())
    assert {settings["network"][name] for name in ("symmetry", "orders", "scale")} == {"circle", 2, "rms"}
    assert settings["training"]["schedule"] == "cosine"
    # Going on with it needs none of them, and cannot change what the network is.
    assert "8 steps" in run("train", "--out", folder, "--resume", "--steps", 8).stdout
    assert "--orders 2" in errors_of(run("train", "--out", folder, "--resume", "--orders", 3, code=1))
    estimates = []
    for shift, factor in ((0.0, 1.0), (1.5, 10.0)):
        rows = [[float(number) for number in line.split(",")] for line in samples.read_text().splitlines()]
        moved = tmp_path / f"moved-{shift}.csv"
        moved.write_text("".join(f"{x + shift!r},{factor * y!r}\n" for x, y in rows))
        run("predict", folder, moved, "--out", tmp_path / f"out-{shift}")
        estimates.append([float(row["log_power"]) for row in read_csv(tmp_path / f"out-{shift}.csv")])
    np.testing.assert_allclose(estimates[1], np.array(estimates[0]) + 2 * np.log(10), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scale", "size", "warned"), [("rms", 0, True), ("rms", 1e-50, False), (None, 0, False)])
def test_predict_warns_of_samples_without_a_scale(tmp_path, samples, scale, size, warned):
    chosen = () if scale is None else ("--scale", scale)
    run("train", "--out", tmp_path / "net", *SMALL, *chosen, "--steps", 1, "--dtype", "float64")
    flat = tmp_path / "flat.csv"
    flat.write_text("".join(f"{line.split(',')[0]},{size}\n" for line in samples.read_text().splitlines()))
    result = run("predict", tmp_path / "net", flat, "--no-picture")
    wanted = f"Warning: the values in {flat} are all zero, or as good as zero in float64: without variation they have"
    assert (wanted in result.stderr) == warned
    assert ("Warning" in result.stderr) == warned
    piped = run("predict", tmp_path / "net", "-", "--no-picture", "--out", tmp_path / "piped", stdin=flat.read_text())
    assert ("the values in standard input are all zero" in piped.stderr) == warned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--orders", 3), "need symmetry='circle'"),
        (("--symmetry", "circle", "--aggregate", "max"), "a maximum has no harmonics"),
        (("--scale", "rms", "--output", "power"), "right for log p_k alone"),
    ],
)
def test_symmetries_that_make_no_sense_are_usage_errors(tmp_path, arguments, message):
    assert message in run("train", "--out", tmp_path / "no", *SMALL, *arguments, code=2).stderr
    assert not (tmp_path / "no").exists()


def test_train_takes_every_option_of_task_network_and_training(tmp_path):
    arguments = (
        *("--k-max", 12, "--k-fin", "3:9", "--set-size", "8:16", "--power-law", 1.5, "--amplitudes", "lognormal"),
        *("--noise", 0.1, "--output", "power", "--width", "5,3,4", "--aggregate", "max", "--pool", "sum"),
        *("--invariance", "bitwise"),
        *("--dtype", "float64", "--backend", "reference", "--steps", 3, "--batch", 4, "--learning-rate", 0.01),
        *(
            "--beta1",
            0.8,
            "--beta2",
            0.99,
            "--epsilon",
            1e-6,
            "--schedule",
            "cosine",
            "--seed",
            5,
            "--every",
            2,
            "--validate",
            0,
        ),
        *("--threads", 1, "--progress"),
    )
    result = run("train", "--out", tmp_path / "all", *arguments)
    assert "sets/s" in result.stderr
    settings = json.loads((tmp_path / "all" / "run.json").read_text())
    assert settings["task"] == {
        "k_max": 12,
        "k_fin": [3, 9],
        "set_size": [8, 16],
        "power_law": 1.5,
        "amplitudes": "lognormal",
        "positions": "uniform",
        "noise": 0.1,
        "output": "power",
        "dtype": "float64",
    }
    assert settings["network"] == {
        "in_features": 2,
        "width": [5, 3, 4],
        "depth": 3,
        "out_features": 7,
        "aggregate": "max",
        "pool": "sum",
        "invariance": "bitwise",
        "symmetry": None,
        "orders": None,
        "scale": None,
        "dtype": "float64",
    }
    assert settings["training"] == {
        "steps": 3,
        "batch": 4,
        "learning_rate": 0.01,
        "beta1": 0.8,
        "beta2": 0.99,
        "epsilon": 1e-6,
        "schedule": "cosine",
        "seed": 5,
        "every": 2,
        "validate": 0,
    }
    assert "of p_k," in run("evaluate", tmp_path / "all", "--sets", 8).stdout


def test_the_cpu_backend_end_to_end(tmp_path, samples):
    arguments = ("--width", 4, "--depth", 2, "--set-size", 20, "--batch", 8, "--steps", 4, "--backend", "cpu")
    run("train", "--out", tmp_path / "cpu", *arguments)
    mine = rows_of(run("predict", tmp_path / "cpu", samples, "--backend", "cpu").stdout)
    reference = rows_of(run("predict", tmp_path / "cpu", samples, "--backend", "reference").stdout)
    np.testing.assert_allclose(np.array(mine, float), np.array(reference, float), rtol=0.02)


def test_evaluate_prints_what_train_printed(trained):
    folder, output = trained
    alone = ("--baselines", "none")
    assert run("evaluate", folder, *alone).stdout.strip() in output
    assert run("evaluate", folder, *alone, "--seed", 1).stdout.strip() not in output
    assert run("evaluate", folder / "model.safetensors", *alone).stdout.strip() in output
    assert run("evaluate", folder).stdout.startswith(run("evaluate", folder, *alone).stdout)


def test_evaluate_over_set_sizes_and_frequencies(trained, tmp_path):
    path = tmp_path / "new folder" / "errors.csv"
    arguments = (*("--sets", 50, "--set-size", "8,20,5:40", "--k-max", "4,9"), "--csv", path, "--baselines", "none")
    output = run("evaluate", trained[0], *arguments).stdout
    rows = rows_of(output)
    assert [row[:2] for row in rows] == [[k, n] for k in "49" for n in ("8", "20", "5:40")]
    written = read_csv(path)
    assert [row["k"] for row in written] == ["1", "2", "3", "4", "all"] * 6
    at_20 = [row for row in written if (row["k_max"], row["set_size"]) == ("4", "20")]
    errors = [float(row["mean_squared_error"]) for row in at_20]
    assert rows[1][2:7] == [f"{error:.4f}" for error in errors]
    assert errors[-1] == pytest.approx(np.mean(errors[:-1]))

    truths, estimates = estimation.evaluate(*reversed(load(trained[0])), sets=50)
    squared = (estimates - truths) ** 2
    np.testing.assert_allclose(errors[:-1], squared.mean(axis=0))
    deviations = [float(row["standard_error"]) for row in at_20]
    np.testing.assert_allclose(deviations[:-1], squared.std(axis=0, ddof=1) / np.sqrt(50))
    np.testing.assert_allclose(deviations[-1], squared.mean(axis=1).std(ddof=1) / np.sqrt(50))


def test_evaluate_shows_the_network_beside_estimators_that_learn_nothing(trained, tmp_path):
    path = tmp_path / "errors.csv"
    output = run("evaluate", trained[0], "--sets", 60, "--csv", path, "--picture", tmp_path / "errors.png").stdout
    names = ["network", *ESTIMATORS]
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if len(line.split()) > 5}
    assert [name for name in rows if name in names] == names
    written = {(row["estimator"], row["k"]): row for row in read_csv(path)}
    task, net = load(trained[0])
    comparison = estimation.compare(net, task, tuple(ESTIMATORS), sets=60)
    truths = comparison.evaluations["network"].truths
    np.testing.assert_array_equal(truths, estimation.evaluate(net, task, sets=60).truths)
    for name in names:
        evaluation = comparison.evaluations[name]
        assert evaluation.estimates.shape == truths.shape
        for k, error in zip(["1", "2", "3", "4", "all"], [*evaluation.mean, evaluation.overall[0]], strict=True):
            assert float(written[name, k]["mean_squared_error"]) == pytest.approx(error, rel=1e-5, abs=1e-20)
            assert float(written[name, k]["spectra_per_second"]) > 0
        assert rows[name][4] == f"{evaluation.overall[0]:.3g}" or name == "network"
    for k, error in enumerate(comparison.expected_error, start=1):
        assert float(written["optimum", str(k)]["expected_error"]) == pytest.approx(error)
        assert written["network", str(k)]["expected_error"] == ""
    assert comparison.evaluations["optimum"].overall[0] < 1e-6
    assert comparison.spectra_per_second.keys() == set(names)
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_evaluate_shows_estimators_over_set_sizes(trained, tmp_path):
    path = tmp_path / "errors.csv"
    arguments = ("--sets", 20, "--set-size", "8,20", "--baselines", "periodogram,optimum", "--csv", path, "--progress")
    result = run("evaluate", trained[0], *arguments)
    assert "estimate" in result.stderr
    assert re.search(r"set size +network +periodogram +optimum +\(expected\)\n", result.stdout)
    assert re.search(r"set size +network +periodogram +optimum\n", result.stdout)
    written = [row for row in read_csv(path) if row["k"] == "all"]
    assert [(row["set_size"], row["estimator"]) for row in written] == [
        (size, name) for size in ("8", "20") for name in ("network", "periodogram", "optimum")
    ]
    rows = [row for row in rows_of(result.stdout) if row[1] == "8"]
    assert len(rows) == 3
    assert rows[1][3] == f"{float(written[1]['mean_squared_error']):.3g}"


def test_evaluate_refuses_baselines_that_do_not_fit(trained, tmp_path):
    wrong = run("evaluate", trained[0], "--baselines", "optimum,guess", code=2)
    assert "expected all, none, or some of optimum, gaussian-process" in wrong.stderr
    several = ("--set-size", "8,20", "--picture", tmp_path / "errors.png")
    assert "--picture draws one setting, got 2" in errors_of(run("evaluate", trained[0], *several, code=2))
    run("train", "--out", tmp_path / "fixed", *SMALL, "--steps", 1, "--amplitudes", "lognormal")
    output = run("evaluate", tmp_path / "fixed", "--sets", 5).stdout
    assert output.endswith("\nLeft out: optimum, gaussian-process, for amplitudes that are not exponential.\n")
    assert "least-squares" in output
    asked = run("evaluate", tmp_path / "fixed", "--sets", 5, "--baselines", "optimum", code=2)
    assert "--baselines optimum: only for exponential amplitudes, not lognormal" in errors_of(asked)


def test_compare_refuses_unknown_names(trained):
    task, net = load(trained[0])
    with pytest.raises(ValueError, match=r"names must be one of 'optimum'.*got 'best'"):
        estimation.compare(net, task, ("best",), sets=2)


def test_evaluate_writes_csv_to_standard_output(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("evaluate", trained[0], "--sets", 5, "--baselines", "none", "--csv")
    run(*arguments, "errors.csv")
    printed, written = (
        [line.rpartition(",")[0] for line in text.splitlines()]  # all but spectra per second
        for text in (run(*arguments, "-").stdout, (tmp_path / "errors.csv").read_text())
    )
    assert printed == written
    assert [path.name for path in tmp_path.iterdir()] == ["errors.csv"]


def test_evaluation_is_the_same_however_the_sets_are_batched(trained, monkeypatch):
    task, net = load(trained[0])
    net = net.to("reference")
    at_once = estimation.evaluate(net, task, sets=30, seed=3)
    monkeypatch.setattr(estimation, "_ELEMENTS", 70)
    in_parts = estimation.evaluate(net, task, sets=30, seed=3)
    np.testing.assert_array_equal(in_parts.truths, at_once.truths)
    np.testing.assert_allclose(in_parts.estimates, at_once.estimates, rtol=1e-5, atol=1e-5)


def test_estimation_wraps_positions_into_one_period():
    x = np.array([0.0, 1.0, -1.0, 7.0, -1e-30, 2 * np.pi])
    np.testing.assert_allclose(estimation.wrap(x), [0, 1, 2 * np.pi - 1, 7 - 2 * np.pi, 0, 0])
    assert (estimation.wrap(x) < 2 * np.pi).all()


def test_evaluate_shows_some_of_many_frequencies(tmp_path):
    run("train", "--out", tmp_path / "a", *SMALL, "--k-max", 30, "--k-fin", 30, "--steps", 2)
    output = run("evaluate", tmp_path / "a", "--sets", 4, "--set-size", "8,16").stdout
    assert "of 30 frequencies; --csv writes all" in output
    assert max(map(len, output.splitlines())) < 140
    result = run("evaluate", tmp_path / "a", "--k-max", 4, code=2)
    assert "k_fin must lie within k = 1 ... k_max = 4" in errors_of(result)


def test_predict_prints_and_writes_the_spectrum(trained, samples):
    result = run("predict", trained[0], samples)
    printed = rows_of(result.stdout)
    assert result.stderr == ""
    _, net = load(trained[0])
    x, y = np.loadtxt(samples, delimiter=",").T
    expected = net(np.stack([x, y], axis=1)[None])[0]
    np.testing.assert_allclose([float(row[1]) for row in printed], expected, atol=1e-4)
    np.testing.assert_allclose([float(row[2]) for row in printed], np.exp(expected), rtol=1e-2)
    written = read_csv(samples.with_name("samples-spectrum.csv"))
    assert [row["k"] for row in written] == ["1", "2", "3", "4"]
    np.testing.assert_allclose([float(row["log_power"]) for row in written], expected, rtol=1e-5)
    assert samples.with_name("samples-spectrum.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_predict_does_not_depend_on_the_order_of_the_rows(trained, samples):
    before = run("predict", trained[0], samples, "--no-picture").stdout
    table_before = samples.with_name("samples-spectrum.csv").read_bytes()
    lines = samples.read_text().splitlines(keepends=True)
    for seed in range(5):
        samples.write_text("".join(np.random.default_rng(seed).permutation(lines)))
        assert run("predict", trained[0], samples, "--no-picture").stdout == before
        assert samples.with_name("samples-spectrum.csv").read_bytes() == table_before


def test_predict_wraps_positions(trained, samples, tmp_path):
    before = np.array(rows_of(run("predict", trained[0], samples).stdout), float)
    x, y = np.loadtxt(samples, delimiter=",").T
    turned = tmp_path / "turned.csv"
    np.savetxt(turned, np.stack([x + 2 * np.pi * np.arange(-10, 10), y], axis=1), delimiter=",")
    after = np.array(rows_of(run("predict", trained[0], turned).stdout), float)
    np.testing.assert_allclose(after, before, rtol=0.01)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "x,y\n" + text,
        lambda text: "# made by hand\n\nposition (rad),value\n" + text.replace("\n", "  # a sample\n"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", "   ").replace("\n", " \n"),
        lambda text: text.replace(",", " , ").replace("\n", "\r\n"),
        lambda text: "\ufeff" + '"x","y"\n' + text.removesuffix("\n"),
    ],
    ids=["header", "comments", "semicolons", "tabs", "spaces", "crlf", "bom and quotes"],
)
def test_predict_reads_the_usual_forms(trained, samples, change):
    before = run("predict", trained[0], samples, "--no-picture").stdout
    samples.write_bytes(change(samples.read_text()).encode())
    assert run("predict", trained[0], samples, "--no-picture").stdout == before


def test_predict_from_standard_input(trained, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = samples.read_text()
    before = run("predict", trained[0], samples, "--no-picture").stdout
    samples.unlink()
    assert rows_of(run("predict", trained[0], "-", stdin=text).stdout) == rows_of(before)
    assert {path.name for path in tmp_path.iterdir()} == {"samples-spectrum.csv", "samples-spectrum.png"}


@pytest.mark.parametrize("out", ["here/star.v2", "here/star.v2.csv", "here/star.v2.png"])
def test_predict_out(trained, samples, tmp_path, out):
    run("predict", trained[0], samples, "--out", tmp_path / out)
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"star.v2.csv", "star.v2.png"}


def test_predict_out_is_a_folder_or_nothing(trained, samples, tmp_path):
    (tmp_path / "here.csv").mkdir()
    run("predict", trained[0], samples, "--out", tmp_path / "here.csv")
    written = {path.name for path in (tmp_path / "here.csv").iterdir()}
    assert written == {"samples-spectrum.csv", "samples-spectrum.png"}
    assert "--out is empty" in errors_of(run("predict", trained[0], samples, "--out", "", code=2))


@pytest.mark.parametrize(("estimate", "message"), [(np.inf, "are not finite"), (1e3, "is beyond all numbers")])
def test_predict_refuses_estimates_that_are_not_finite(trained, samples, estimate, message, monkeypatch):
    monkeypatch.setattr(fastperm.DeepSet, "__call__", lambda net, sets: np.full((1, 4), estimate, np.float32))
    result = run("predict", trained[0], samples, code=1)
    assert message in errors_of(result)
    assert result.stdout == ""
    assert [path.name for path in samples.parent.iterdir()] == ["samples.csv"]


def test_predict_does_not_overwrite_the_samples(trained, samples):
    before = samples.read_text()
    assert "would overwrite the samples" in errors_of(run("predict", trained[0], samples, "--out", samples, code=2))
    assert samples.read_text() == before


@pytest.mark.parametrize(("rows", "hint"), [(1, True), (9, True), (10, False), (20, False), (40, False), (41, True)])
def test_predict_hints_at_another_set_size(trained, samples, rows, hint):
    samples.write_text("".join(f"{n / 10} {n % 3}\n" for n in range(rows)))
    result = run("predict", trained[0], samples, "--no-picture")
    assert len(rows_of(result.stdout)) == 4
    assert (f"trained on 20 samples, here are {rows}" in result.stderr) == hint


def test_predict_with_a_network_that_estimates_powers(tmp_path, samples):
    run("train", "--out", tmp_path / "power", *SMALL, "--output", "power", "--steps", 1)
    rows = rows_of(run("predict", tmp_path / "power", samples).stdout)
    _, net = load(tmp_path / "power")
    estimates = net(np.loadtxt(samples, delimiter=",")[None])[0]
    assert (estimates < 0).any(), "the case below occurs"
    for row, estimate in zip(rows, estimates, strict=True):
        assert row[2] == ("-" if estimate < 0 else f"{estimate:#.3g}")


BAD_SAMPLES = {
    "empty": ("", "{path} has no samples: expected lines of two numbers, x and y"),
    "comments only": ("# nothing\n\n", "{path} has no samples"),
    "header only": ("x,y\n", "{path} has no samples"),
    "one column": ("1\n2\n", "{path}, line 1: expected two columns, x and y, got 1"),
    "three columns": ("x,y,z\n1,2,3\n", "{path}, line 2: expected two columns, x and y, got 3"),
    "trailing comma": ("1,2\n3,4,\n", "{path}, line 2: expected two columns, x and y, got 3"),
    "a word": ("1,2\n" * 16 + "3,four\n", "{path}, line 17: y must be a number, got 'four'"),
    "a word in the first line": ("1,two\n", "{path}, line 1: y must be a number, got 'two'"),
    "missing value": ("1,2\n,4\n", "{path}, line 2: x must be a number, got ''"),
    "two headers": ("x,y\nrad,V\n1,2\n", "{path}, line 2: x must be a number, got 'rad'"),
    "header later": ("1,2\nx,y\n", "{path}, line 2: x must be a number, got 'x'"),
    "decimal commas in one line": ("1,5;2,5\n", "{path}, line 1: x must be a number, got '1,5'"),
    "underscores": ("1_0,2\n", "{path}, line 1: x must be a number, got '1_0'"),
    "full-width digits": ("1,\uff12\n", "{path}, line 1: y must be a number, got '\uff12'"),
    "dashes": ("- -\n1 2\n", "{path}, line 1: x must be a number, got '-'"),
    "nan": ("# NaN below\n1,2\n1,nan\n", "{path}, line 3: y must be finite and at most 3.4e+38 in size, got 'nan'"),
    "infinity": ("-inf 2\n", "{path}, line 1: x must be finite and at most 3.4e+38 in size, got '-inf'"),
    "too large": ("1;1e39\n", "{path}, line 1: y must be finite and at most 3.4e+38 in size, got '1e39'"),
    "decimal commas": ("x;y\n1,5;2,5\n3,5;2,5\n", "{path}, line 2: x must be a number, got '1,5'"),
    "not text": (b"\x89PNG\r\n\x1a\n", "{path} is not a text file in UTF-8"),
    "utf-16": ("1,2\n".encode("utf-16"), "{path} is not a text file in UTF-8"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_samples(trained, tmp_path, case):
    content, message = BAD_SAMPLES[case]
    path = tmp_path / "bad.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("predict", trained[0], path, code=1)
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("Error: " + message.format(path=path))


def test_samples_that_are_not_there(trained, tmp_path):
    path = tmp_path / "none.csv"
    assert errors_of(run("predict", trained[0], path, code=1)) == f"Error: {path}: No such file or directory"
    assert errors_of(run("predict", trained[0], tmp_path, code=1)) == f"Error: {tmp_path}: Is a directory"
    assert "standard input, line 1: y must be" in errors_of(run("predict", trained[0], "-", stdin="1 a", code=1))


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_runs_that_are_not_there(tmp_path, samples, command):
    rest = [samples] if command == "predict" else []

    def error_of(path):
        return errors_of(run(command, path, *rest, code=1))

    assert f"there is no run at {tmp_path / 'none'}" in error_of(tmp_path / "none")
    assert f"{samples} is not a run" in error_of(samples)
    assert f"{tmp_path} is not a run: run.json is missing" in error_of(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert f"{tmp_path} has no model.safetensors" in error_of(tmp_path)
    (tmp_path / "checkpoint.safetensors").touch()
    assert f"finish its training with `fastperm train --out {tmp_path} --resume`" in error_of(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert "run.json is damaged: " in error_of(tmp_path)


def change_in(part, **changes):
    return lambda settings: {**settings, part: {**settings[part], **changes}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda settings: [], "run.json was not written by `fastperm train`"),
        (lambda settings: {**settings, "format": "other"}, "run.json was not written by `fastperm train`"),
        (lambda settings: {**settings, "format_version": 2}, "has format version 2, this fastperm reads 1"),
        (lambda settings: {**settings, "task": None}, "run.json is damaged: it has no task"),
        (change_in("task", k_max=-1), "run.json is damaged: its task is unusable: k_max must be at least 1"),
        (change_in("task", k_fin=2), "do not belong together"),
        (change_in("network", width=5), "run.json is damaged: its network is unusable: width must be a list, got 5"),
        (change_in("network", width=["a", 4]), "run.json is damaged: its network is unusable: width"),
        (change_in("network", pool="median"), "run.json is damaged: its network is unusable: pool must be one of"),
        (change_in("training", steps="20"), "run.json is damaged: its training is unusable: steps must be an integer"),
        (change_in("training", beta1=None), "run.json is damaged: its training is unusable: beta1 must be a number"),
        (lambda settings: {**settings, "task": {}}, "run.json is damaged: its task has no k_max, k_fin, set_size"),
        (lambda settings: {**settings, "network": {}}, "run.json is damaged: its network has no in_features, width"),
        (lambda settings: {**settings, "training": {}}, "run.json is damaged: its training has no steps, batch"),
        (lambda settings: {**settings, "backend": 5}, "run.json is damaged: backend must be one of"),
        (lambda settings: {**settings, "precision": "half"}, "run.json is damaged: precision must be one of"),
    ],
)
def test_settings_that_do_not_fit(trained, tmp_path, change, message):
    folder = trained[0]
    settings = json.loads((folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(change(settings)))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert message in errors_of(run("evaluate", tmp_path, code=1))


def test_resume_needs_settings_that_are_whole(trained, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes((trained[0] / "checkpoint.safetensors").read_bytes())
    message = f"{tmp_path} has a checkpoint.safetensors but no run.json"
    assert message in errors_of(run("train", "--out", tmp_path, "--resume", code=1))
    settings = json.loads((trained[0] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(change_in("network", width=5)(settings)))
    assert "its network is unusable: width" in errors_of(run("train", "--out", tmp_path, "--resume", code=1))


def test_resume_of_a_run_from_before_invariance_and_epsilon(trained, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes((trained[0] / "checkpoint.safetensors").read_bytes())
    settings = json.loads((trained[0] / "run.json").read_text())
    del settings["network"]["invariance"], settings["training"]["epsilon"]
    (tmp_path / "run.json").write_text(json.dumps(settings))
    run("train", "--out", tmp_path, "--resume")
    assert_same_weights(tmp_path, trained[0])
    result = run("train", "--out", tmp_path, "--resume", "--invariance", "bitwise", code=1)
    assert "--invariance rounding, which cannot become bitwise" in errors_of(result)


def test_a_damaged_model(trained, tmp_path):
    for name in ("run.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no network")
    assert "model.safetensors is not a fastperm network or fastperm checkpoint: it is damaged" in errors_of(
        run("evaluate", tmp_path, code=1)
    )


def weights(folder):
    return {name: array.copy() for name, array in fastperm.load(folder / "model.safetensors").parameters.items()}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], strict=True)


def test_resume_takes_up_the_settings_and_gives_the_same_bits(trained, tmp_path):
    folder = tmp_path / "in two"
    run("train", "--out", folder, *SMALL, "--steps", 10)
    started = json.loads((folder / "run.json").read_text())["started"]
    output = run("train", "--out", folder, "--resume", "--steps", 20, "--batch", 8).stdout
    assert "20 steps of 8 functions" in output
    assert json.loads((folder / "run.json").read_text())["started"] == started
    assert_same_weights(folder, trained[0])


def test_resume_without_a_run_begins_one(trained, tmp_path):
    run("train", "--out", tmp_path / "new", *SMALL, "--steps", 20, "--resume")
    assert_same_weights(tmp_path / "new", trained[0])


def test_resume_of_a_finished_run_changes_nothing(trained):
    folder, output = trained
    before = weights(folder)
    again = run("train", "--out", folder, "--resume").stdout
    # Nothing was trained, so nothing was validated: without those lines it says the same.
    assert again == re.sub(r"Validation error by frequency:\n.*?(?=Trained for)", "", output, flags=re.DOTALL)
    for name, array in weights(folder).items():
        np.testing.assert_array_equal(array, before[name])


def test_resume_with_fewer_steps_says_that_they_are_behind(trained):
    output = run("train", "--out", trained[0], "--resume", "--steps", 7).stdout
    assert "The run had 20 steps behind it already" in output
    assert json.loads((trained[0] / "run.json").read_text())["training"]["steps"] == 20


@pytest.mark.parametrize(
    ("conflict", "message"),
    [
        (("--width", 5), "--width 4,4, which cannot become 5,5: leave --width out, or choose another --out"),
        (("--depth", 3), "--depth 2, which cannot become 3"),
        (("--seed", 1), "--seed 0, which cannot become 1"),
        (("--batch", 9), "--batch 8, which cannot become 9"),
        (("--set-size", "20:40"), "--set-size 20, which cannot become 20:40"),
        (("--k-max", 5), "--k-max 4, which cannot become 5"),
        (("--epsilon", 1e-3), "--epsilon 1e-07, which cannot become 0.001"),
    ],
)
def test_resume_refuses_another_run(trained, conflict, message):
    before = (trained[0] / "run.json").read_text()
    result = run("train", "--out", trained[0], "--resume", *conflict, code=1)
    assert message in errors_of(result)
    assert (trained[0] / "run.json").read_text() == before


def test_a_run_is_not_overwritten(trained, tmp_path):
    result = run("train", "--out", trained[0], *SMALL, "--steps", 1, code=1)
    assert "checkpoint.safetensors is there already: go on with --resume, or choose another --out" in errors_of(result)
    (tmp_path / "model.safetensors").touch()
    assert "is there already" in errors_of(run("train", "--out", tmp_path, code=1))
    assert "has a model but no checkpoint.safetensors" in errors_of(run("train", "--out", tmp_path, "--resume", code=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--out'"),
        (("--out", "x", "--steps", "0"), "0 is not in the range x>=1"),
        (("--out", "x", "--steps", "many"), "'many' is not a valid integer range"),
        (("--out", "x", "--k-fin", "a"), "expected a number such as 512 or a range such as 64:512, got 'a'"),
        (("--out", "x", "--k-fin", "1:2:3"), "expected a number such as 512 or a range such as 64:512, got '1:2:3'"),
        (("--out", "x", "--set-size", "0"), "expected 1 <= FIRST <= LAST, got '0'"),
        (("--out", "x", "--set-size", "9:8"), "expected 1 <= FIRST <= LAST, got '9:8'"),
        (("--out", "x", "--k-fin", "8"), "k_fin must lie within k = 1 ... k_max = 4, got 1 ... 8"),
        (("--out", "x", "--width", "4,x"), "'x' is not a valid integer range"),
        (("--out", "x", "--width", "4,3", "--depth", "3"), "width must be an integer or have one entry for each"),
        (("--out", "x", "--learning-rate", "-1"), "learning_rate must be at least 0, got -1"),
        (("--out", "x", "--beta1", "1"), "beta1 must be less than 1"),
        (("--out", "x", "--noise", "nan"), "noise must be finite, got nan"),
        (("--out", "x", "--amplitudes", "equal"), "'equal' is not one of 'exponential', 'fixed', 'lognormal'"),
        (("--out", "x", "--backend", "tpu"), "'tpu' is not one of 'auto', 'reference', 'cpu', 'cuda'"),
        (("--out", "x", "--threads", "0"), "0 is not in the range x>=1"),
        (("--out", "x", "--layers", "3"), "No such option"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("train", *arguments, code=2)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_backend(tmp_path):
    result = run("train", "--out", tmp_path / "a", "--backend", "cuda", code=1)
    assert errors_of(result).startswith("Error: backend 'cuda' is not available: ")


def test_a_precision_of_another_backend(trained, tmp_path, samples):
    wanted = "precision='tf32' is for the cuda backend, and this network is on"
    result = run("train", "--out", tmp_path / "a", *SMALL, "--precision", "tf32", code=2)
    assert f"{wanted} 'reference'" in result.stderr
    assert not (tmp_path / "a").exists()
    for command in (("evaluate", trained[0]), ("predict", trained[0], samples)):
        result = run(*command, "--backend", "cpu", "--precision", "tf32", code=1)
        assert f"{wanted} 'cpu'" in errors_of(result)


def test_train_remembers_the_precision(tmp_path):
    folder = tmp_path / "run"
    run("train", "--out", folder, *SMALL, "--steps", 1)
    settings = json.loads((folder / "run.json").read_text())
    assert settings["precision"] == "float32"
    (folder / "run.json").write_text(json.dumps({**settings, "precision": "bfloat16"}))
    result = run("train", "--out", folder, "--resume", "--steps", 2, code=2)
    assert "precision='bfloat16' is for the cuda backend" in result.stderr
    del settings["precision"]  # before there were any others
    (folder / "run.json").write_text(json.dumps(settings))
    run("train", "--out", folder, "--resume", "--steps", 2)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert "file" in errors_of(run("train", "--out", tmp_path / "file" / "run", *SMALL, "--steps", 1, code=1))
    run("train", "--out", tmp_path / "file", code=2)


def test_a_loss_that_is_not_finite(tmp_path):
    folder = tmp_path / "run"
    run("train", "--out", folder, *SMALL, "--steps", 5)
    before = (folder / "checkpoint.safetensors").read_bytes()
    result = run("train", "--out", folder, "--resume", "--steps", 20, "--learning-rate", 1e30, code=1)
    assert errors_of(result).startswith("Error: ")
    assert "at step 7; the last checkpoint is" in errors_of(result)
    assert (folder / "checkpoint.safetensors").read_bytes() == before


def test_interrupt_saves_and_resumes(tmp_path):
    folder = tmp_path / "a run"
    process = start("train", "--out", folder, *SMALL, "--steps", 10**6)
    deadline = time.monotonic() + 120
    while not (folder / "history.csv").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    first, second = errors.strip().splitlines()
    step = int(first.split()[3].rstrip(";"))
    assert first == f"Stopped after step {step}; the last checkpoint is {folder / 'checkpoint.safetensors'}."
    assert second == f"Go on with: fastperm train --out '{folder}' --resume"
    assert not (folder / "model.safetensors").exists()

    run("train", "--out", folder, "--resume", "--steps", step + 3)
    run("train", "--out", tmp_path / "at once", *SMALL, "--steps", step + 3)
    assert_same_weights(folder, tmp_path / "at once")


def test_a_command_line_as_people_use_it(trained, samples):
    process = start("predict", trained[0], samples)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert len(rows_of(output)) == 4
    process = start("predict", trained[0], "nowhere.csv")
    assert process.communicate(timeout=120) == ("", "Error: nowhere.csv: No such file or directory\n")
    assert process.returncode == 1


@pytest.fixture
def no_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_everything_but_pictures_works_without_matplotlib(tmp_path, samples, no_matplotlib):
    result = run("train", "--out", tmp_path / "bare", *SMALL, "--steps", 2)
    assert 'pip install "fastperm[plot]"' in result.stderr
    assert not list((tmp_path / "bare").glob("*.png"))
    assert "png" not in result.stdout
    result = run("predict", tmp_path / "bare", samples)
    assert 'pip install "fastperm[plot]"' in result.stderr
    assert len(rows_of(result.stdout)) == 4
    assert samples.with_name("samples-spectrum.csv").exists()
    run("info")


def test_a_steep_law_has_fewer_examples(tmp_path):
    arguments = (*SMALL, "--steps", 1, "--k-max", 2, "--k-fin", 2, "--power-law")
    assert "samples.png" in run("train", "--out", tmp_path / "150", *arguments, 150).stdout
    assert "samples.png" not in run("train", "--out", tmp_path / "1000", *arguments, 1000).stdout


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device", "spectra.png")

    monkeypatch.setattr("fastperm.figures.spectra", fail)
    result = run("train", "--out", tmp_path / "run", *SMALL, "--steps", 1)
    assert result.stderr == "Warning: spectra.png could not be drawn: spectra.png: No space left on device\n"
    assert "learning_curve.png, samples.png" in result.stdout


def test_debugging_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTPERM_DEBUG", "1")
    assert "FASTPERM_DEBUG" in run("--help").stdout
    with pytest.raises(FileNotFoundError, match="there is no run"):
        run("evaluate", tmp_path / "none")
    with pytest.raises(ValueError, match="beta1 must be less than 1"):
        run("train", "--out", tmp_path / "x", "--beta1", 1)
    monkeypatch.setenv("FASTPERM_DEBUG", "")
    run("evaluate", tmp_path / "none", code=1)


def test_info():
    lines = run("info").stdout.splitlines()
    found = {line.partition("  ")[0].strip(): line.partition("  ")[2].strip() for line in lines}
    assert found["fastperm"] == fastperm.__version__
    assert found["numpy"] == np.__version__
    assert found["backend reference"] == "available"
    assert found["backend cpu"] == "available, the default"
    assert found["backend cuda"].startswith("not available: ") == (backend.why_missing("cuda") is not None)
    assert "vector registers of" in found["CPU"]
    assert found["GPU"]
    assert found["CuPy"]
    assert any(name.startswith("BLAS") for name in found)
    assert found["threads"].split()[0].isdigit()
    assert found["compiled code"]


def test_info_follows_the_environment(tmp_path):
    environment = {**os.environ, "FASTPERM_NUM_THREADS": "3", "FASTPERM_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "fastperm", "info"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "threads            3 (" in output
    assert str(tmp_path) in output
    environment["FASTPERM_NUM_THREADS"] = "three"
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stderr) == (
        1,
        "Error: FASTPERM_NUM_THREADS must be a positive integer, got 'three'\n",
    )


def test_threads_hold_for_one_command(trained):
    from fastperm.kernels.cpu import workers

    before = workers.get_num_threads()
    run("evaluate", trained[0], "--sets", 2, "--threads", before + 5)
    assert workers.get_num_threads() == before


def test_tables():
    assert table(("k", "error"), [("1", "0.5"), ("10", "10.25")]) == " k  error\n 1    0.5\n10  10.25"
    assert column([0.5, -12.25, float("nan")]) == ["0.5000", "-12.2500", "-"]
    assert column([5e-5, 2e-7]) == ["5.000e-05", "2.000e-07"]
    assert column([]) == []


@pytest.mark.parametrize("command", [["train"], ["sweep", "width=4"], ["figures", "1"]], ids=lambda command: command[0])
def test_a_folder_without_a_name_is_not_the_current_one(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "expected the name of a folder, got an empty one" in errors_of(run(*command, "--out", "", code=2))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["history.csv", "samples.png", "run.json"])
def test_a_new_run_replaces_nothing(tmp_path, name):
    own = tmp_path / name
    own.write_text("{}")
    found = errors_of(run("train", "--out", tmp_path, *SMALL, "--steps", 1, code=1))
    assert str(own) in found
    assert "is there already" in found or "was not written by" in found
    assert own.read_text() == "{}"
    assert os.listdir(tmp_path) == [name]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    run("train", "--out", tmp_path / "run", *SMALL, "--steps", 1)
    for path in (tmp_path / "run").iterdir():
        if path.name != "run.json":
            path.unlink()
    run("train", "--out", tmp_path / "run", *SMALL, "--steps", 2)
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_predict_from_and_to_what_is_no_file(trained, samples, tmp_path, monkeypatch):
    assert "cannot be -" in errors_of(run("predict", trained[0], samples, "--out", "-", code=2))
    assert "/dev/null is no file" in errors_of(run("predict", trained[0], samples, "--out", "/dev/null", code=2))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    reads, writes = os.pipe()
    os.write(writes, samples.read_bytes())
    os.close(writes)
    run("predict", trained[0], f"/dev/fd/{reads}", "--no-picture")
    os.close(reads)
    assert os.listdir() == ["samples-spectrum.csv"]


def test_predict_makes_a_folder_that_ends_with_a_slash(trained, samples, tmp_path):
    run("predict", trained[0], samples, "--no-picture", "--out", f"{tmp_path}/new/")
    assert os.listdir(tmp_path / "new") == ["samples-spectrum.csv"]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"out_features": 1}, "the network has out_features=1, the task out_features=4"),
        ({"in_features": 3}, "the network has in_features=3, the task in_features=2"),
        ({"pool": None}, "the network has no pooling"),
    ],
    ids=str,
)
def test_networks_that_do_not_fit_the_task_are_refused(net, message):
    task = fastperm.PowerSpectrum(set_size=16)
    net = fastperm.DeepSet(**{"in_features": 2, "width": 4, "depth": 1, "out_features": 4, "seed": 0} | net)
    with pytest.raises(ValueError, match=message):
        estimation.evaluate(net, task, sets=1)
    with pytest.raises(ValueError, match=message):
        estimation.estimate_log_powers(net, task, [1.0], [2.0])


@pytest.mark.parametrize(
    ("x", "y", "kind", "message"),
    [
        ([1.0, np.nan], [1.0, 2.0], ValueError, "sample 1: x must be finite, got nan"),
        ([np.inf, 1.0], [1.0, 2.0], ValueError, "sample 0: x must be finite, got inf"),
        ([1.0, 2.0], [1.0, -np.inf], ValueError, "sample 1: y must be finite, got -inf"),
        ([1.0, 2.0], np.ma.masked_less([1.0, 2.0], 2), TypeError, "y is a masked array"),
        (["a"], [1.0], TypeError, "x must be real numbers"),
    ],
)
def test_samples_that_are_no_finite_numbers_are_refused(x, y, kind, message):
    net = fastperm.DeepSet(2, 4, 1, 4, seed=0)
    with pytest.raises(kind, match=message):
        estimation.estimate_log_powers(net, fastperm.PowerSpectrum(set_size=16), x, y)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1]), ([[1, 2]], [[1, 2]]), (1, 1)])
def test_samples_are_two_rows_of_as_many_numbers(x, y):
    net = fastperm.DeepSet(2, 4, 1, 4, seed=0)
    with pytest.raises(ValueError, match=r"x and y must have one shape \(n,\), got"):
        estimation.estimate_log_powers(net, fastperm.PowerSpectrum(set_size=16), x, y)


def test_a_file_that_cannot_be_written_is_refused_before_the_work(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("fastperm.estimation.compare", None)  # the work
    file, link = tmp_path / "file", tmp_path / "link.csv"
    file.touch()
    link.symlink_to(file / "errors.csv")

    def refused(path, option="--csv"):
        return errors_of(run("evaluate", trained[0], option, path, code=2))

    assert "expected the name of a file, got an empty one" in refused("")
    assert "expected the name of a file, got an empty one" in refused("", "--picture")
    assert f"{file} is not a folder" in refused(file / "errors.csv")
    assert f"{file} is not a folder" in refused(file / "new" / "errors.png", "--picture")
    assert f"{file} is not a folder" in refused(link)
    assert "is a directory" in refused(tmp_path)
    monkeypatch.setattr("os.access", lambda _, how, **__: how == os.R_OK)  # root may write anywhere
    assert f"{tmp_path} may not be written to" in refused(tmp_path / "new" / "errors.csv")
    sweep = run("sweep", "--out", tmp_path, "--table", tmp_path / "new.csv", code=2)
    assert f"{tmp_path} may not be written to" in errors_of(sweep)
