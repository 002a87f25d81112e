"""The figures of the paper: what is trained and tested for each, and its results as CSV files to draw them from.

Source: the paper "Permutation-equivariant neural networks for power spectrum estimation". To its axes are added the two
lines that frame every result: the error of the prior mean, and that of the optimum (`fastperm.optimum`).
"""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fastperm
from fastperm import estimation, sweeps
from fastperm.checks import check_choice
from fastperm.files import replacing
from fastperm.power_spectrum import evaluate_series
from fastperm.runs import Run, versions

FIGURES = (1, 2, 3, 4, 5)

#: The networks that are compared, by name: what is set for each.
NETWORKS: dict[str, dict] = {"plain": {}, "circle": {"symmetry": "circle", "scale": "rms"}}

# Orders of an angular layer for each frequency asked about: it has to tell those frequencies from the next ones.
_ORDERS = 2

# Figs. 2 and 3 show the same networks.
_CELLS_OF = {2: "figure-2", 3: "figure-2", 4: "figure-4", 5: "figure-5"}

_TEST_SEED = 0
_SAMPLES = 512

# Frequencies of the three functions in Fig. 1, and points per period of the fastest wave.
_EXAMPLES, _POINTS = (4, 32, 256), 8

# Fig. 3.
FREQUENCIES = (1, 2, 4)

# Fig. 4: highest frequencies, one panel each, and set sizes in testing.
_K_MAX_4, _SIZES = (4, 64), tuple(2**n for n in range(3, 14))

# Fig. 5: highest frequency in training, and in testing; functions whose estimates are drawn.
_K_MAX_5, _K_MAX_TESTED, _DRAWN = 64, (8, 64, 512), 128


class NothingFinishedError(ValueError):
    """No cell of a figure could be finished.

    Attributes
    ----------
    failures : dict of str to Exception
        What failed, by the name of the cell.
    """

    def __init__(self, message, failures):
        super().__init__(message)
        self.failures = failures


class Scale(NamedTuple):
    """How much is computed for the figures.

    Attributes
    ----------
    networks : int
        For each setting, of seeds 0, 1, ….
    widths, depths : tuple of int
        Of Figs. 2 and 3, each with each.
    width, depth : int
        Of Figs. 4 and 5.
    training, longer : dict
        Settings of training, for Figs. 2 and 3, and for Figs. 4 and 5.
    test_sets : int
        Functions to test on.
    optimum_sets : int
        The first so many of them, for the optimum where it takes long: 2 k_max near or above the number of samples.
    """

    networks: int
    widths: tuple
    depths: tuple
    width: int
    depth: int
    training: dict
    longer: dict
    test_sets: int
    optimum_sets: int


def _training(steps, batch, learning_rate):
    return {"steps": steps, "batch": batch, "learning_rate": learning_rate, "schedule": "cosine"}


#: About an hour on 2 cores; hours; a GPU.
SIZES = {
    "small": Scale(
        *(5, (8, 16, 32, 64), (1, 2, 3, 4), 64, 4), _training(2000, 32, 2e-3), _training(4000, 32, 2e-3), 1024, 128
    ),
    "laptop": Scale(
        *(5, (16, 32, 64, 128), (1, 2, 3, 4), 128, 4),
        *(_training(10_000, 64, 1e-3), _training(20_000, 64, 1e-3), 1024, 1024),
    ),
    "paper": Scale(
        *(5, (128, 256, 512, 1024, 2048), (1, 2, 3, 4), 2048, 4),
        *(_training(20_000, 256, 1e-3), _training(20_000, 256, 1e-3), 1024, 1024),
    ),
}


def cells(number, scale, network):
    """Return the cells of a figure, and what they are tested on.

    Parameters
    ----------
    number : {1, 2, 3, 4, 5}
        The figure.
    scale : Scale
        How much is computed.
    network : str
        A name of `NETWORKS`.

    Returns
    -------
    list of dict
        As `sweeps.run` takes them; Figs. 2 and 3 share theirs.
    sweeps.Tests
    """
    k_fin = 8 if number == 5 else 4
    common = {"k_fin": k_fin, "set_size": _SAMPLES, **NETWORKS[network], "seed": list(range(scale.networks))}
    if common.get("symmetry") == "circle":
        common["orders"] = _ORDERS * k_fin
    tests = sweeps.Tests(scale.test_sets, _TEST_SEED)
    one = {"width": scale.width, "depth": scale.depth}
    if number == 1:
        return [], tests
    if number in (2, 3):
        sizes = {"width": list(scale.widths), "depth": list(scale.depths)}
        return sweeps.product({"k_max": 4, **common, **sizes, **scale.training}), tests
    if number == 4:
        grid = {"k_max": list(_K_MAX_4), **common, **one, **scale.longer}
        return sweeps.product(grid), tests._replace(set_size=_SIZES)
    grid = {"k_max": _K_MAX_5, **common, **one, **scale.longer}
    return sweeps.product(grid), tests._replace(k_max=_K_MAX_TESTED)


def run(number, scale, out, *, networks=None, progress=True, **where):
    """Compute what a figure shows, as far as it is not there yet, and write its CSV files.

    Parameters
    ----------
    number : {1, 2, 3, 4, 5}
        The figure.
    scale : {"small", "laptop", "paper"}
        A name of `SIZES`.
    out : path-like
        Folder for ``figure-N.csv``. Finished cells are kept in ``runs/SCALE`` in it.
    networks : sequence of str or None, default None
        Names of `NETWORKS`; None for all. Of others, what is finished in the folder is shown, too.
    progress : bool, default True
        Show progress bars on standard error.
    **where
        ``executor``, ``workers``, ``threads``, ``backend`` and ``every`` of `sweeps.run`.

    Returns
    -------
    dict of str to Exception
        What failed, by the name of the cell. The CSV files are written from the other cells.

    Raises
    ------
    ValueError
        If there is no such figure, scale or network, or no network at all.
    NothingFinishedError
        If no cell at all could be finished, so that there is nothing to write.
    """
    if number not in FIGURES:
        raise ValueError(f"number must be one of {', '.join(map(str, FIGURES))}, got {number!r}")
    check_choice(scale, "scale", tuple(SIZES))
    out, size = Path(out), SIZES[scale]
    networks = list(NETWORKS) if networks is None else list(networks)
    for name in networks:
        check_choice(name, "networks", tuple(NETWORKS))
    if number == 1:
        _write(out / "figure-1.csv", ["command: fastperm figures 1"], _sample_rows(), versions())
        return {}
    if not networks:
        raise ValueError(f"figure {number} needs networks, some of {', '.join(NETWORKS)}; got none")
    points: list[dict] = []
    found: list[dict] = []
    labels: list[str] = []
    failures: dict = {}
    folder = out / "runs" / scale
    runs = folder / _CELLS_OF[number]
    for name in NETWORKS:
        wanted, tests = cells(number, size, name)
        if name in networks:
            own, failed = sweeps.run(wanted, runs, tests=tests, progress=progress, **where)
            failures |= failed
        else:  # what is there of the others is shown as well
            own = sweeps.finished(wanted, runs, tests=tests)
        found += own
        labels += [name for cell in own for test in cell["tests"] for _ in test["k"]]
        if number == 5 and own:
            points += _estimates(name, own[0], runs / own[0]["name"], where.get("backend", "auto"))
    if not found:
        why = next(iter(failures.values()))
        raise NothingFinishedError(f"no cell of figure {number} could be finished: {why}", failures)
    rows = [{"network": name, **row} for name, row in zip(labels, sweeps.table(found), strict=True)]
    for row in rows:
        row |= _optimum(row, size, folder, progress)
    shown = ",".join(dict.fromkeys(labels))
    header = [f"command: fastperm figures {number} --scale {scale} --networks {shown}"]
    seeds = sorted({row["seed"] for row in rows})
    header.append(f"seeds: networks {', '.join(map(str, seeds))}; test functions {_TEST_SEED}")
    last = max(found, key=lambda cell: cell["finished"])
    if number == 3:
        rows = [row for row in rows if row["k"] in FREQUENCIES]
    _write(out / f"figure-{number}.csv", header, rows, last)
    if number == 5:
        _write(out / "figure-5-estimates.csv", header, points, last)
    return failures


def example_functions(task, seed):
    """Return a function of the task's law for each of three k_max, on a grid and where it is sampled.

    A steep law has no power in floating point at the higher frequencies: those k_max are left out.

    Returns
    -------
    list of (int, ndarray, ndarray, ndarray, ndarray)
        For each k_max, a grid of positions and the function on it, and positions and values of its samples.
    """
    functions = []
    for k_max in _EXAMPLES:
        try:
            example = fastperm.PowerSpectrum.from_config({**task.config(), "k_max": k_max, "k_fin": 1})
        except ValueError:
            continue
        grid = np.linspace(0, 2 * np.pi, _POINTS * k_max + 257)
        sets, _ = example.sample(1, seed)
        functions.append((k_max, grid, evaluate_series(grid, example.draw(1, seed)[0]), *sets.values.T))
    return functions


def _sample_rows():
    """Return what Fig. 1 shows, with the five digits that can be seen."""
    return [
        {"k_max": k_max, "what": what, "x": f"{x:.5g}", "f": f"{f:.5g}"}
        for k_max, grid, function, x, y in example_functions(fastperm.PowerSpectrum(set_size=_SAMPLES), 0)
        for what, pairs in (("function", zip(grid, function, strict=True)), ("sample", zip(x, y, strict=True)))
        for x, f in pairs
    ]


def _estimates(network, cell, folder, backend):
    """Return true and estimated log p_k of the first test functions, for the network of one cell."""
    trained, net = Run.open(folder).load(backend)
    rows = []
    for test in cell["tests"]:
        config = {**trained.config(), "k_max": test["k_max"], "set_size": test["set_size"]}
        task = fastperm.PowerSpectrum.from_config(config, backend=backend)
        truths, estimates = estimation.evaluate(net, task, sets=min(test["sets"], _DRAWN), seed=test["seed"])
        common = {"network": network, "seed": cell["settings"]["seed"], "test_k_max": test["k_max"]}
        rows += [
            {**common, "set": s, "k": k, "truth": f"{truths[s, i]:.4f}", "estimate": f"{estimates[s, i]:.4f}"}
            for s in range(len(truths))
            for i, k in enumerate(task.frequencies)
        ]
    return rows


def _optimum(row, size, folder, progress):
    """Return the columns about the optimum for a row of `sweeps.table`: measured once for a task, and kept."""
    k_max, samples = row["test_k_max"], row["test_set_size"]
    sets = min(row["test_sets"], size.optimum_sets) if min(2 * k_max, samples) > 256 else row["test_sets"]
    path = folder / f"optimum,k_max={k_max},k_fin={row['k_fin']},set_size={samples},sets={sets}.json"
    if not path.exists():
        task = fastperm.PowerSpectrum(k_max, row["k_fin"], samples)
        evaluations = estimation.compare(
            None, task, ("optimum",), sets=sets, seed=_TEST_SEED, progress=progress
        ).evaluations
        overall, deviation = evaluations["optimum"].overall
        errors = [*evaluations["optimum"].mean, overall], [*evaluations["optimum"].standard_error, deviation]
        names = [*map(str, task.frequencies), "all"]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(dict(zip(names, zip(*errors, strict=True), strict=True))))
    try:
        error, deviation = json.loads(path.read_text())[str(row["k"])]
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is damaged, remove it to have it computed again: {problem!r}") from problem
    return {"optimum_error": error, "optimum_standard_error": deviation, "optimum_sets": sets}


def _write(path, header, rows, made):
    """Write rows as CSV below a header of comments."""
    versions_of = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    header = [*header, f"versions: {versions_of}; {made['platform']}"]
    header.append(f"rows: {len(rows)}")
    header.append(f"date: {made.get('finished', datetime.now(UTC).isoformat())[:10]}")
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in header)
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path):
    """Return the comments and the rows of a CSV file that `run` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict of str to str
        ``command``, ``seeds``, ``versions``, ``rows`` and ``date``.
    list of dict
        Numbers are floats, or ints where they are written so.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; `fastperm figures` makes it, unless it is asked to draw only")
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    rows = [
        {name: _number(value) for name, value in row.items()}
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    ]
    if not rows or not {"command", "rows"} <= comments.keys():
        raise ValueError(f"{path} was not written by `fastperm figures`, or is damaged")
    if comments["rows"] != str(len(rows)) or any(None in (*row, *row.values()) for row in rows):
        raise ValueError(f"{path} is damaged: it should have {comments['rows']} whole rows")
    return comments, rows


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            pass
    return text
