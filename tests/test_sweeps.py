"""Sweeps: what is kept, what is computed again, and where."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import fastperm
from fastperm import estimation, executors, sweeps
from fastperm.cli import main

GRID = {"width": [3, 4], "depth": 1, "set_size": 16, "steps": 12, "batch": 4, "seed": [0, 1]}
ARGUMENTS = ("width=3,4", "depth=1", "set_size=16", "steps=12", "batch=4", "seed=0..1", "--test-sets", "8")
REFERENCE = ("--backend", "reference")
TESTS = sweeps.Tests(sets=8)


def run(out, grid=GRID, **arguments):
    return sweeps.run(
        grid, out, **{"tests": TESTS, "executor": None, "backend": "reference", "progress": False, **arguments}
    )


def command(*arguments, code=0):
    result = CliRunner().invoke(main, ["sweep", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def results_of(out):
    """Return what a sweep found, without what depends on when and where."""
    cells = {cell["name"]: (cell["settings"], cell["tests"], cell["last_loss"]) for cell in sweeps.read(out)}
    networks = {name: fastperm.load(Path(out) / name / "model.safetensors", "reference") for name in cells}
    return cells, {name: net.parameters.flat.tolist() for name, net in networks.items()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    outcome = run(out)
    assert not outcome.failures
    return out, outcome.cells


def test_a_cell_holds_settings_versions_and_errors(swept):
    out, cells = swept
    assert [cell["name"] for cell in cells] == [
        f"set_size=16,width={width},depth=1,steps=12,batch=4,seed={seed}" for width in (3, 4) for seed in (0, 1)
    ]
    for cell in cells:
        folder = out / cell["name"]
        written = {"cell.json", "run.json", "history.csv", "model.safetensors"}
        assert {path.name for path in folder.iterdir()} == written
        assert cell["settings"].keys() == sweeps.SETTINGS.keys()
        assert cell["versions"]["fastperm"] == fastperm.__version__
        assert cell["training_seconds"] > 0
        net = fastperm.load(folder / "model.safetensors", "reference")
        assert cell["parameters"] == net.n_parameters
        (test,) = cell["tests"]
        evaluation = estimation.evaluate(net, fastperm.PowerSpectrum(set_size=16, dtype="float32"), sets=8, seed=0)
        assert test["k"] == [1, 2, 3, 4, "all"]
        assert test["mean_squared_error"] == [*evaluation.mean, evaluation.overall[0]]
        assert test["standard_error"] == [*evaluation.standard_error, evaluation.overall[1]]
        assert test["prior_mean_error"] == pytest.approx([np.pi**2 / 6] * 5)


def test_a_cell_is_the_run_that_train_makes(swept, tmp_path):
    settings = ("--width", 4, "--depth", 1, "--set-size", 16, "--steps", 12, "--batch", 4, "--seed", 1, *REFERENCE)
    result = CliRunner().invoke(main, [str(a) for a in ("train", "--out", tmp_path / "run", *settings)])
    assert result.exit_code == 0, result.output
    folder = swept[0] / "set_size=16,width=4,depth=1,steps=12,batch=4,seed=1"
    alone, cell = (fastperm.load(path / "model.safetensors", "reference") for path in (tmp_path / "run", folder))
    np.testing.assert_array_equal(alone.parameters.flat, cell.parameters.flat)
    assert CliRunner().invoke(main, ["evaluate", str(folder), "--sets", "4", "--baselines", "none"]).exit_code == 0


def test_finished_cells_are_kept_and_a_larger_grid_adds_to_them(swept, tmp_path):
    out = shutil.copytree(swept[0], tmp_path / "sweep")
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    outcome = run(out, {**GRID, "seed": [0, 1, 2]})
    assert len(outcome.cells) == 6
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_another_setting_under_the_same_name_is_refused(swept, tmp_path):
    out = shutil.copytree(swept[0], tmp_path / "sweep")
    with pytest.raises(ValueError, match=r"cell\.json was tested on .*'sets': 8, .* here it would be on .*'sets': 9"):
        run(out, tests=sweeps.Tests(sets=9))
    path = out / "set_size=16,width=4,depth=1,steps=12,batch=4,seed=0" / "cell.json"
    cell = json.loads(path.read_text())
    cell["settings"]["batch"] = 5
    path.write_text(json.dumps(cell))
    with pytest.raises(ValueError, match=r"was made with batch = 5, here it is 4: choose another folder"):
        run(out, {**GRID, "seed": [0, 2]})
    assert not (out / "set_size=16,width=3,depth=1,steps=12,batch=4,seed=2").exists(), "refused before any computing"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"cell\.json is damaged"):
        sweeps.read(out)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"widht": 3}, "unknown setting 'widht'; expected some of k_max, k_fin"),
        ({"width": 0}, "cell width=0,seed=0: width must be at least 1, got 0"),
        ({"k_max": 2}, "cell k_max=2,seed=0: k_fin must lie within k = 1 ... k_max = 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
    ],
)
def test_unusable_settings_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "sweep", given)
    assert not (tmp_path / "sweep").exists()


def test_names_are_those_of_the_settings():
    assert sweeps.name_of({"seed": 3, "width": (8, 4), "k_max": 9}) == "k_max=9,width=8-4,seed=3"
    long = sweeps.name_of({"width": tuple(range(1, 100))})
    assert len(long.encode()) <= 255
    assert long != sweeps.name_of({"width": tuple(range(1, 101))})


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path):
    outcome = run(tmp_path, {**GRID, "learning_rate": [1e30, 1e-3], "seed": 0})
    assert len(outcome.cells) == len(outcome.failures) == 2
    assert all("learning_rate=1e+30" in name for name in outcome.failures)
    result = command("--out", tmp_path, *ARGUMENTS, "learning_rate=1e30,1e-3", *REFERENCE, code=1)
    assert "failed: the loss is inf at step 2" in result.stderr
    assert "4 cells failed" in result.stderr


def test_cells_are_tested_on_other_sets(tmp_path):
    tests = sweeps.Tests(sets=6, seed=5, k_max=(4, 9), set_size=(8, (3, 20)))
    (cell,) = run(tmp_path, {**GRID, "width": 3, "seed": 0}, tests=tests).cells
    tested = [(test["k_max"], test["set_size"], test["sets"], test["seed"]) for test in cell["tests"]]
    assert tested == [(4, 8, 6, 5), (4, [3, 20], 6, 5), (9, 8, 6, 5), (9, [3, 20], 6, 5)]
    assert len(run(tmp_path, {**GRID, "width": 3, "seed": 0}, tests=tests).cells) == 1


def test_processes_find_the_same(swept, tmp_path):
    outcome = run(tmp_path, executor="processes", workers=1, threads=1)
    assert not outcome.failures
    assert results_of(tmp_path) == results_of(swept[0])


def test_an_executor_of_ones_own(swept, tmp_path):
    with ThreadPoolExecutor(2) as executor:
        run(tmp_path, executor=executor)
    assert results_of(tmp_path) == results_of(swept[0])


def start_long(out, every=10):
    """Start a sweep of one long cell in a process group of its own, and wait for its first checkpoint."""
    arguments = ("width=4", "depth=1", "set_size=16", "steps=20000", "batch=4", "--test-sets", "4", "--every", every)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastperm", "sweep", "--out", str(out), *map(str, arguments), *REFERENCE],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    checkpoint = out / "set_size=16,width=4,depth=1,steps=20000,batch=4,seed=0" / "checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process, checkpoint


def test_a_sweep_that_was_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    process, checkpoint = start_long(tmp_path / "killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (checkpoint.parent / "cell.json").exists()
    _, _, history, _ = fastperm.checkpoints.load_checkpoint(checkpoint, "reference")
    taken = len(history["step"])
    assert 0 < taken < 20000
    steps = taken + 30  # the rest of 20000 would take long: what is asked for is cut to a little more, in both
    old = checkpoint.parent
    new = old.with_name(old.name.replace("20000", str(steps)))
    old.rename(new)
    grid = {"width": 4, "depth": 1, "set_size": 16, "steps": steps, "batch": 4}
    counted = []
    step = fastperm.steps.train_step
    monkeypatch.setattr(fastperm.steps, "train_step", lambda *a, **how: counted.append(1) or step(*a, **how))
    tests = sweeps.Tests(sets=4)
    run(tmp_path / "killed", grid, tests=tests)
    assert len(counted) == 30, "from the checkpoint"
    run(tmp_path / "whole", grid, tests=tests)
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")


def test_workers_end_with_their_parent(tmp_path):
    process, checkpoint = start_long(tmp_path)
    try:
        process.kill()
        deadline = time.monotonic() + 30
        before = None
        while before != (before := checkpoint.stat().st_mtime_ns):
            assert time.monotonic() < deadline
            time.sleep(1.0)
        assert not (checkpoint.parent / "cell.json").exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_ctrl_c_writes_a_checkpoint(tmp_path):
    process, checkpoint = start_long(tmp_path, every=5000)
    time.sleep(0.3)  # until some steps after it, which the next one would have at 10000
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "Stopped. The same command goes on from here."
    assert "Traceback" not in error
    assert len(fastperm.checkpoints.load_checkpoint(checkpoint, "reference")[2]["step"]) % 5000 != 0


def test_a_worker_that_ends_abruptly_takes_one_cell_with_it():
    found = {}
    jobs = [("1 + 1",), ("__import__('os')._exit(1)",), ("2 + 2",), ("1 / 0",)]
    executors.run_on(1, eval, jobs, lambda job, result: found.update({job[0]: result}))
    results = [found[job[0]] for job in jobs]
    assert results[0] == 2
    assert isinstance(results[1], BrokenExecutor)
    assert results[2] == 4
    assert isinstance(results[3], ZeroDivisionError)


# Not before the other one trains: it would be given that, too.
IDLES = """
import os, pathlib, time
while not pathlib.Path({1!r}).exists():
    time.sleep(0.01)
pathlib.Path({0!r}).write_text(str(os.getpid()))
"""
TRAINS = """
import fastperm
class Task:
    def sample(self, batch, generator):
        import fastperm, pathlib, time
        pathlib.Path({0!r}).touch()
        time.sleep(0.2)
        return fastperm.PowerSpectrum(set_size=16).sample(batch, generator)
net = fastperm.DeepSet(2, 4, 1, 4, seed=0, backend="reference")
fastperm.train(net, Task(), steps=10**9, batch=2, validate=None, progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.timeout(90)
def test_a_pool_that_breaks_ends_workers_that_train(tmp_path):
    idle, training, found = tmp_path / "idle", tmp_path / "training", {}

    def kill():
        while not (idle.exists() and idle.read_text()):
            time.sleep(0.01)
        time.sleep(0.2)  # until it waits for more, with the lock that the others then wait for
        os.kill(int(idle.read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    jobs = [(IDLES.format(str(idle), str(training)),), (TRAINS.format(str(training)),)]
    executors.run_on(2, exec, jobs, lambda job, result: found.update({job: result}))
    assert found[jobs[0]] is None
    assert isinstance(found[jobs[1]], BrokenExecutor)


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setenv("FASTPERM_NUM_THREADS", "8")
    share = executors.share_cores
    assert [share(20), share(3), share(1), share(20, 2), share(20, None, 3), share(20, 2, 4)] == [
        *((8, 1), (3, 2), (1, 8), (2, 4), (2, 3), (2, 4))
    ]
    with pytest.raises(
        ValueError, match="at most 8, the cores that this process may use, by FASTPERM_NUM_THREADS, got 3 times 4"
    ):
        share(20, 3, 4)
    with pytest.raises(ValueError, match="at most 8"):
        share(20, 9)


def test_the_table_has_a_row_for_each_cell_test_and_frequency(swept, tmp_path):
    out, cells = swept
    output = command("--out", out, "--table", tmp_path / "errors.csv").stdout
    assert "width  seed" in output
    rows = list(csv.DictReader((tmp_path / "errors.csv").read_text().splitlines()))
    assert len(rows) == 4 * 5
    for row, (cell, i) in zip(rows, ((cell, i) for cell in cells for i in range(5)), strict=True):
        assert (row["width"], row["seed"]) == tuple(str(cell["settings"][name]) for name in ("width", "seed"))
        assert row["k"] == str(cell["tests"][0]["k"][i])
        assert float(row["mean_squared_error"]) == cell["tests"][0]["mean_squared_error"][i]
    printed = command("--out", out, "--table", "-").stdout
    assert printed == (tmp_path / "errors.csv").read_text()
    with pytest.raises(FileNotFoundError, match="there is no sweep at"):
        sweeps.read(tmp_path / "none")


def test_the_command_line_and_a_toml_file_give_the_same_cells(swept, tmp_path):
    out = shutil.copytree(swept[0], tmp_path / "sweep")
    stamps = [path.stat().st_mtime_ns for path in sorted(out.glob("*/cell.json"))]
    command("--out", out, *ARGUMENTS, *REFERENCE)
    grid = tmp_path / "grid.toml"
    grid.write_text("width = [3, 4]\ndepth = 1\nset_size = 16\nsteps = 12\nbatch = 4\n[tests]\nsets = 8\n")
    command("--out", out, "--grid", grid, "seed=0,1", *REFERENCE)
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("*/cell.json"))] == stamps


def test_ranges_and_layers_in_a_grid(tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text(
        "width = [[3, 2], [4, 2]]\ndepth = 2\nset_size = [[8, 16]]\nsteps = 2\nbatch = 2\n"
        "[tests]\nsets = 2\nset_size = [8, [4, 9]]\nk_max = 6\n"
    )
    command("--out", tmp_path / "a", "--grid", grid, *REFERENCE)
    arguments = ("width=3:2,4:2", "depth=2", "set-size=8:16", "steps=2", "batch=2", "--test-sets", 2)
    command("--out", tmp_path / "b", *arguments, "--test-set-size", "8,4:9", "--test-k-max", 6, *REFERENCE)
    assert results_of(tmp_path / "a") == results_of(tmp_path / "b")
    assert len(results_of(tmp_path / "a")[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("width",), "expected NAME=VALUE[,...], such as", 2),
        (("width=1", "width=2"), "width is given twice", 2),
        (("seed=4..2",), "expected FIRST..LAST with FIRST <= LAST, got '4..2'", 2),
        ((), "expected settings such as", 2),
        (("width=wide",), "cell width=wide,seed=0: width must be an integer", 1),
        (("width=3", "pool=mean,none"), "cell width=3,pool=None,seed=0: a spectrum is that of a whole set: pool", 1),
        (("width=3", "--executor", "dask", "--workers", 2, "--threads", 999), "workers times threads of at most", 1),
        (("width=3", "--executor", "threads"), "executor must be 'processes', 'mpi', 'dask' or 'dask:ADDRESS'", 1),
    ],
)
def test_unusable_arguments(tmp_path, arguments, message, code):
    assert message in command("--out", tmp_path / "sweep", *arguments, code=code).stderr


def test_symmetries_are_compared_with_orders_where_there_are_some():
    grid = {"symmetry": [None, "circle"], "orders": [2, 3], "width": 4}
    assert [sweeps.name_of(cell) for cell in sweeps.product(grid)] == [
        "width=4,symmetry=None,seed=0",
        "width=4,symmetry=circle,orders=2,seed=0",
        "width=4,symmetry=circle,orders=3,seed=0",
    ]


def test_precision_is_a_setting():
    settings, _ = sweeps.complete({"precision": "tf32"}, sweeps.Tests())
    assert settings["precision"] == "tf32"
    with pytest.raises(ValueError, match="cell precision=half,seed=0: precision must be one of"):
        sweeps.complete({"precision": "half"}, sweeps.Tests())


def test_unusable_sweeps_are_refused_before_anything_is_computed(tmp_path):
    cell = {"width": 3, "depth": 1, "steps": 1, "batch": 2, "set_size": 8}
    with pytest.raises(ValueError, match="expected at least one cell"):
        sweeps.run({**cell, "width": []}, tmp_path)
    with pytest.raises(TypeError, match="k_max of the tests must be a list of values, got 4"):
        sweeps.run(cell, tmp_path, tests=sweeps.Tests(k_max=4))
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', .*, got 'nope'"):
        sweeps.run(cell, tmp_path, backend="nope")
    assert not list(tmp_path.rglob("*"))


def test_unusable_toml(tmp_path):
    grid = tmp_path / "grid.toml"
    for text, message in (
        ("width = [", "is no TOML file"),
        ("[more]\nwidth = 1", "expected settings and one table"),
        ("width = 3\n[tests]\nstes = 1", "[tests] has unknown names stes"),
    ):
        grid.write_text(text)
        assert message in command("--out", tmp_path / "sweep", "--grid", grid, code=2).stderr


def start_elsewhere(*arguments):
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.executors
def test_mpi(swept, tmp_path):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    python = (sys.executable, "-m", "mpi4py.futures", "-m", "fastperm")
    sweep = ("sweep", "--executor", "mpi", "--out", tmp_path / "mpi", *ARGUMENTS, *REFERENCE)
    result = start_elsewhere(mpiexec, "-n", 3, *python, *sweep)
    assert result.returncode == 0, result.stderr
    assert results_of(tmp_path / "mpi") == results_of(swept[0])
    failing = start_elsewhere(mpiexec, "-n", 2, *python, *sweep, "learning_rate=1e30")
    assert failing.returncode == 1
    assert "4 cells failed" in failing.stderr
    alone = start_elsewhere(sys.executable, "-m", "fastperm", *sweep, "beta1=0.8")
    assert alone.returncode == 1
    assert "start them with: mpiexec -n N python -m mpi4py.futures -m fastperm sweep" in alone.stderr


@pytest.mark.executors
def test_dask(swept, tmp_path):
    sweep = ("sweep", *ARGUMENTS, *REFERENCE)
    python = (sys.executable, "-m", "fastperm")
    result = start_elsewhere(*python, *sweep, "--executor", "dask", "--workers", 2, "--out", tmp_path / "own")
    assert result.returncode == 0, result.stderr
    assert results_of(tmp_path / "own") == results_of(swept[0])


@pytest.mark.executors
def test_a_dask_scheduler_and_a_worker_of_their_own(swept, tmp_path):
    scheduler_file = tmp_path / "scheduler.json"
    dask = (sys.executable, "-m", "dask")
    common = ("--scheduler-file", str(scheduler_file), "--no-dashboard")
    started = [
        subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *common], stderr=subprocess.PIPE),
    ]
    try:
        deadline = time.monotonic() + 30
        while not scheduler_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started.append(subprocess.Popen([*dask, "worker", "--nthreads", "2", *common], stderr=subprocess.PIPE))
        address = json.loads(scheduler_file.read_text())["address"]
        sweep = ("sweep", *ARGUMENTS, *REFERENCE, "--executor", f"dask:{address}", "--out", tmp_path / "sweep")
        result = start_elsewhere(sys.executable, "-m", "fastperm", *sweep)
        assert result.returncode == 0, result.stderr
        assert results_of(tmp_path / "sweep") == results_of(swept[0])
    finally:
        for process in started[::-1]:
            process.terminate()
            process.communicate(timeout=30)


def test_widths_of_each_layer_say_the_depth():
    settings, _ = sweeps.complete({"width": [64, 32, 8]}, sweeps.Tests())
    assert (settings["width"], settings["depth"]) == ([64, 32, 8], 3)
    with pytest.raises(ValueError, match="one entry for each of the 2 layers"):
        sweeps.complete({"width": [64, 32, 8], "depth": 2}, sweeps.Tests())


def test_values_of_a_grid_may_be_an_array():
    found = sweeps.product({"width": np.array([4, 8]), "learning_rate": np.array([0.5]), "seed": 1})
    assert found == [{"width": width, "learning_rate": 0.5, "seed": 1} for width in (4, 8)]
    assert all(type(cell["width"]) is int for cell in found)


def test_numbers_of_numpy_are_settings():
    (cell,) = sweeps._asked({"width": [(np.int64(4), np.int64(5))], "steps": [np.int32(3)]}, None).values()
    assert cell == sweeps._asked({"width": [(4, 5)], "steps": 3}, None).popitem()[1]
    with pytest.raises(TypeError, match=r"tests must be a fastperm.sweeps.Tests, got \{'sets': 8\}"):
        sweeps.run({"width": 4}, "nowhere", tests={"sets": 8})
