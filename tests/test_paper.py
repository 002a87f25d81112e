"""The figures of the paper, computed on next to nothing and drawn from their CSV files."""

import csv

import numpy as np
import pytest
from click.testing import CliRunner
from test_figures import check_picture

from fastperm import PowerSpectrum, estimation, paper, paper_figures, sweeps
from fastperm.cli import main
from fastperm.cli.figures import FIGURES, NETWORKS, SIZES

TINY = paper.Scale(2, (3, 4), (1, 2), 3, 1, {"steps": 2, "batch": 2}, {"steps": 3, "batch": 2}, 6, 3)
WIDTHS = {1: 1080, 2: 1440, 3: 1560, 4: 1440, 5: 1560}
WHERE = {"executor": None, "backend": "reference", "progress": False}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A folder with the CSV files of all figures, and none of what they were computed from."""
    out = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paper.SIZES, "small", TINY)
        for number in paper.FIGURES:
            assert paper.run(number, "small", out, networks=["plain"], **WHERE) == {}
    (out / "runs").rename(out.with_name("runs"))
    return out, out.with_name("runs") / "small"


def test_the_options_list_what_the_library_knows():
    assert tuple(map(int, FIGURES)) == paper.FIGURES
    assert tuple(paper.SIZES) == SIZES
    assert tuple(paper.NETWORKS) == NETWORKS


def test_a_scale_is_what_the_help_says():
    assert paper.SIZES["paper"].width == max(paper.SIZES["paper"].widths) == 2048
    for name in ("laptop", "paper"):
        assert (paper.SIZES[name].networks, paper.SIZES[name].test_sets, paper.SIZES[name].depth) == (5, 1024, 4)
    for scale in paper.SIZES.values():
        for number in paper.FIGURES:
            cells, tests = paper.cells(number, scale, "circle")
            assert all(cell["orders"] == 2 * cell["k_fin"] for cell in cells)
            cells, tests = paper.cells(number, scale, "plain")
            for cell in cells[:1]:  # the last would make a wide network
                sweeps.complete({**cell, "width": 2}, tests)
            names = [sweeps.name_of(cell) for cell in cells]
            assert len(set(names)) == len(names)


def test_the_csv_files_hold_the_errors_of_the_cells_and_of_the_optimum(computed):
    out, runs = computed
    for number, folder in ((2, "figure-2"), (3, "figure-2"), (4, "figure-4"), (5, "figure-5")):
        comments, rows = paper.read(out / f"figure-{number}.csv")
        assert comments["command"] == f"fastperm figures {number} --scale small --networks plain"
        assert comments["seeds"] == "networks 0, 1; test functions 0"
        assert comments["versions"].startswith("fastperm ")
        assert comments["date"].startswith("20")
        found = {
            (
                row["width"],
                row["depth"],
                row["seed"],
                row["k_max"],
                row["test_k_max"],
                row["test_set_size"],
                row["k"],
            ): row
            for row in rows
        }
        assert len(found) == len(rows)
        for cell in sweeps.read(runs / folder):
            settings = cell["settings"]
            key = [settings[name] for name in ("width", "depth", "seed", "k_max")]
            for test in cell["tests"]:
                for k, error in zip(test["k"], test["mean_squared_error"], strict=True):
                    if number == 3 and k not in (1, 2, 4):
                        continue
                    row = found.pop((*key, test["k_max"], test["set_size"], k))
                    assert row["mean_squared_error"] == error
                    assert row["prior_mean_error"] == pytest.approx(np.pi**2 / 6)
        assert not found, "every row belongs to a cell"
    last = [row for row in rows if row["test_k_max"] == 512 and row["k"] == "all"]
    assert {row["optimum_sets"] for row in last} == {3}
    task = PowerSpectrum(512, 8, 512)
    optimum = estimation.compare(None, task, ("optimum",), sets=3, seed=0).evaluations["optimum"].overall
    assert (last[0]["optimum_error"], last[0]["optimum_standard_error"]) == pytest.approx(optimum)


def test_other_sizes_and_frequencies_are_tested(computed):
    rows = paper.read(computed[0] / "figure-4.csv")[1]
    assert sorted({row["test_set_size"] for row in rows}) == [2**n for n in range(3, 14)]
    assert {row["set_size"] for row in rows} == {512}
    points = paper.read(computed[0] / "figure-5-estimates.csv")[1]
    assert sorted({row["test_k_max"] for row in points}) == [8, 64, 512]
    errors = paper.read(computed[0] / "figure-5.csv")[1]
    for k_max in (8, 64, 512):
        square = [(row["truth"] - row["estimate"]) ** 2 for row in points if row["test_k_max"] == k_max]
        (row,) = [r for r in errors if (r["test_k_max"], r["k"], r["seed"]) == (k_max, "all", 0)]
        assert np.mean(square) == pytest.approx(row["mean_squared_error"], rel=1e-3)


@pytest.mark.parametrize("number", paper.FIGURES)
def test_figures_are_drawn_from_the_csv_files(computed, number):
    path = paper_figures.draw(number, computed[0])
    check_picture(path, width=WIDTHS[number])


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_two_networks_and_an_optimum_in_sight(computed, tmp_path, number):
    for name in (f"figure-{number}.csv", "figure-5-estimates.csv"):
        lines = (computed[0] / name).read_text().splitlines()
        comments = [line for line in lines if line.startswith("#")]
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
        rows += [{**row, "network": "circle"} for row in rows]
        for row in rows:
            if "optimum_error" in row:
                row["optimum_error"] = 0.3 * float(row["mean_squared_error"])
        comments = [line for line in comments if not line.startswith("# rows")] + [f"# rows: {len(rows)}"]
        with (tmp_path / name).open("w") as file:
            file.writelines(f"{line}\n" for line in comments)
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    check_picture(paper_figures.draw(number, tmp_path), width=WIDTHS[number])


def test_networks_with_settings_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setitem(paper.SIZES, "small", TINY)
    monkeypatch.setitem(paper.NETWORKS, "circle", {"aggregate": "max"})  # whatever makes it another one
    paper.run(5, "small", tmp_path, networks=["plain", "circle"], **WHERE)
    rows = paper.read(tmp_path / "figure-5.csv")[1]
    assert {(row["network"], row["aggregate"]) for row in rows} == {("plain", "mean"), ("circle", "max")}
    check_picture(paper_figures.draw(5, tmp_path), width=WIDTHS[5])


def test_what_is_finished_of_other_networks_is_kept_and_shown(tmp_path, monkeypatch):
    monkeypatch.setitem(paper.SIZES, "small", TINY._replace(networks=1, widths=(3,), depths=(1,)))
    for names in (["circle"], ["plain"]):
        paper.run(2, "small", tmp_path, networks=names, **WHERE)
    comments, rows = paper.read(tmp_path / "figure-2.csv")
    assert comments["command"] == "fastperm figures 2 --scale small --networks plain,circle"
    assert {(row["network"], row["symmetry"], row["orders"]) for row in rows} == {
        ("plain", "", ""),
        ("circle", "circle", 8),
    }


def test_damaged_files_are_named(computed, tmp_path):
    text = (computed[0] / "figure-3.csv").read_text()
    path = tmp_path / "figure-3.csv"
    for cut in (text[:-40], text[: text.rindex("\n", 0, -1) + 1]):  # within a line, and at the end of one
        path.write_text(cut)
        with pytest.raises(ValueError, match=r"figure-3.csv is damaged: it should have \d+ whole rows"):
            paper.read(path)


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["figures", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_computes_draws_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(paper.SIZES, "small", TINY._replace(networks=1, widths=(3,), depths=(1,)))
    arguments = ("1", "3", "--out", tmp_path, "--networks", "plain", "--backend", "reference", "--workers", 1)
    assert "figure-3.png" in run(*arguments).stdout
    check_picture(tmp_path / "figure-3.png", width=WIDTHS[3])
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cell.json")}
    assert len(cells) == 1
    run("2", *arguments[1:])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cell.json")} == cells, "2 and 3 share them"
    (tmp_path / "figure-1.png").unlink()
    run("1", "--draw-only", "--out", tmp_path)
    assert (tmp_path / "figure-1.png").exists()


def test_what_is_missing_is_said(tmp_path):
    assert (
        "figure-4.csv is not there; `fastperm figures` makes it"
        in run("4", "--draw-only", "--out", tmp_path, code=1).stderr
    )
    (tmp_path / "figure-4.csv").write_text("a,b\n1,2\n")
    assert "was not written by `fastperm figures`" in run("4", "--draw-only", "--out", tmp_path, code=1).stderr
    with pytest.raises(ValueError, match="number must be one of 1, 2, 3, 4, 5, got 6"):
        paper.run(6, "small", tmp_path)
    with pytest.raises(ValueError, match="scale must be one of 'small', 'laptop', 'paper', got 'huge'"):
        paper.run(2, "huge", tmp_path)


def test_a_figure_without_a_finished_cell_says_why(tmp_path, monkeypatch):
    training = {"steps": 2, "batch": 2, "learning_rate": 1e30}
    monkeypatch.setitem(paper.SIZES, "small", TINY._replace(training=training))
    with pytest.raises(ValueError, match=r"no cell of figure 2 could be finished: .* is not finite after step 2"):
        paper.run(2, "small", tmp_path, networks=["plain"], **WHERE)


def test_the_command_goes_on_with_the_other_figures(tmp_path, monkeypatch):
    longer = {"steps": 2, "batch": 2, "learning_rate": 1e30}
    tiny = TINY._replace(networks=1, widths=(3,), depths=(1,), longer=longer)
    monkeypatch.setitem(paper.SIZES, "small", tiny)
    arguments = ("--out", tmp_path, "--networks", "plain", "--backend", "reference", "--workers", 1)
    result = run("5", "2", *arguments, code=1)
    assert "no cell of figure 5 could be finished" in result.stderr
    assert "1 cell failed: k_max=64,k_fin=8" in result.stderr
    assert (tmp_path / "figure-2.png").exists()
    assert "figure 5 needs networks" in run("5", "--out", tmp_path, "--networks", "none", code=1).stderr
