"""Sweeps: networks trained and tested over a grid of settings and seeds, each kept as it is finished.

A cell is one network: its settings, its training and its tests. Its folder is that of a run (`fastperm.runs`), so that
``fastperm evaluate`` and ``fastperm predict`` take it, with the results beside it in ``cell.json``. A sweep that was
stopped goes on with the cells that are not finished, and within a cell from its checkpoint: to the same bits.
"""

import contextlib
import csv
import functools
import hashlib
import inspect
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import fastperm
from fastperm import backend as backends
from fastperm import estimation, executors
from fastperm.checks import check_choice, check_integer
from fastperm.files import replacing
from fastperm.network import PRECISIONS
from fastperm.runs import Run, check_output, versions
from fastperm.threads import limited_threads
from fastperm.training import SCHEDULES

_FORMAT, _FORMAT_VERSION = "fastperm cell", 1
_CELL = "cell.json"
_LONGEST_NAME = 200


def _defaults(function, *others):
    """Return the arguments of a function with their defaults, without those that are no settings of a cell."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("self", *others)}


_TASK = _defaults(fastperm.PowerSpectrum, "positions", "dtype", "backend")
_NETWORK = {**_defaults(fastperm.DeepSet, "in_features", "out_features", "backend", "seed"), "width": 64, "depth": 4}
_ADAM = _defaults(fastperm.Adam)
_TRAINING = {
    **_defaults(
        fastperm.train,
        *("net", "task", "seed", "optimizer", "checkpoint", "every", "resume", "progress", "validate", "history"),
        "report",
    ),
    "steps": 2000,
}

#: What may be set for a cell, with the defaults: the names of `PowerSpectrum`, `DeepSet`, `Adam` and `train`.
SETTINGS = {**_TASK, **_NETWORK, **_TRAINING, **_ADAM, "seed": 0}

# In every table, whatever their values.
_ALWAYS = ("k_max", "k_fin", "set_size", "width", "depth", "steps", "batch", "learning_rate", "seed")


class Tests(NamedTuple):
    """What trained networks are tested on.

    Attributes
    ----------
    sets : int, default 1024
        Fresh functions, the same ones for all networks and set sizes.
    seed : int, default 0
        What they are drawn from.
    k_max, set_size : tuple, default ()
        Highest frequencies and set sizes, each with each; empty for those of training.
    """

    sets: int = 1024
    seed: int = 0
    k_max: tuple = ()
    set_size: tuple = ()


class Outcome(NamedTuple):
    """What came of a sweep.

    Attributes
    ----------
    cells : list of dict
        The finished ones, as `read` returns them, in the order they were asked for.
    failures : dict of str to Exception
        What went wrong, by the name of the cell.
    """

    cells: list
    failures: dict


def product(grid):
    """Return the cells of a grid: every value of every setting with every other's.

    Parameters
    ----------
    grid : mapping of str to value, or to a list or an array of values
        Names of `SETTINGS`. A tuple is one value, such as a range of set sizes. Where symmetries are compared, those
        networks that have none take no ``orders``.

    Returns
    -------
    list of dict

    Examples
    --------
    >>> product({"width": [16, 32], "set_size": (64, 512)})
    [{'width': 16, 'set_size': (64, 512)}, {'width': 32, 'set_size': (64, 512)}]
    """
    grid = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in grid.items()}
    axes = [value if isinstance(value, list) else [value] for value in grid.values()]
    cells = [dict(zip(grid, values, strict=True)) for values in itertools.product(*axes)]
    if isinstance(grid.get("symmetry"), list):  # the orders of a grid are those of its networks that have them
        cells = [_without_orders(cell) if cell["symmetry"] is None else cell for cell in cells]
        cells = list({name_of(cell): cell for cell in cells}.values())
    return cells


def _without_orders(cell):
    return {name: value for name, value in cell.items() if name != "orders"}


def run(
    cells,
    out,
    *,
    tests=None,
    executor="processes",
    workers=None,
    threads=None,
    backend="auto",
    every=100,
    progress=True,
):
    """Train and test a network for every cell that is not finished yet.

    Parameters
    ----------
    cells : list of dict, or mapping
        Settings of each cell, names of `SETTINGS`, or a grid (see `product`). What is left out takes its default.
    out : path-like
        Folder of the sweep, with a folder in it for each cell. Its name lists the settings that were given. All
        workers must see it under this path.
    tests : Tests or None, default None
        What the networks are tested on; None for the defaults of `Tests`.
    executor : str or concurrent.futures.Executor, default "processes"
        Where cells are computed: processes on this machine; "mpi", "dask" or "dask:ADDRESS" (see
        `fastperm.executors.opened`); or an executor of your own, whose workers can import fastperm.
    workers, threads : int or None, default None
        Processes, and threads of each; what is left out follows from the cores (see
        `fastperm.executors.share_cores`), but a GPU is left to one process. Threads are 1 with "mpi", "dask:ADDRESS"
        and an executor of your own, whose cores are not known here.
    backend : {"auto", "reference", "cpu", "cuda"}, default "auto"
        Kernels for the networks. A sweep may go on with others, but not to the same bits.
    every : int, default 100
        Steps between checkpoints.
    progress : bool, default True
        Show a progress bar on standard error.

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError, TypeError
        Before anything is computed: if a cell has an unknown name or an unusable value, or a finished one in the
        folder was made with other settings or tests.
    KeyboardInterrupt
        After Ctrl-C: steps are finished and checkpoints written first.

    Notes
    -----
    Processes are started afresh, and import the main module: a script calls this under
    ``if __name__ == "__main__":``.

    Examples
    --------
    >>> import tempfile
    >>> grid = {"width": [4, 8], "depth": 1, "steps": 2, "batch": 4, "set_size": 16}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     outcome = run(grid, folder, tests=Tests(sets=8), executor=None, progress=False)
    >>> [cell["name"] for cell in outcome.cells]
    ['set_size=16,width=4,depth=1,steps=2,batch=4,seed=0', 'set_size=16,width=8,depth=1,steps=2,batch=4,seed=0']
    """
    every = check_integer(every, "every", minimum=1)
    check_choice(backend, "backend", ("auto", *backends.BACKENDS))
    asked, out = _asked(cells, tests), Path(out).absolute()
    if not asked:
        raise ValueError("expected at least one cell; a setting without any value makes none")
    found = {name: _finished(out / name, *wanted) for name, wanted in asked.items()}
    missing = [name for name, cell in found.items() if cell is None]
    failures = {}

    with tqdm(total=len(asked), initial=len(asked) - len(missing), unit="cell", disable=not progress) as bar:

        def report(job, result):
            folder = Path(job[0])
            if not isinstance(result, Exception):
                found[folder.name] = _finished(folder, *asked[folder.name])
                if found[folder.name] is None:
                    result = FileNotFoundError(f"its worker wrote {folder / _CELL}, which is not to be seen from here")
            if isinstance(result, Exception):
                failures[folder.name] = result
                bar.write(f"{folder.name} failed: {result}", file=sys.stderr)
            bar.update()

        def jobs(threads):
            return [(str(out / name), *asked[name], backend, threads, every) for name in missing]

        if workers is None and executor in ("processes", "dask") and backends.resolve(backend) == "cuda":
            workers = 1  # processes would share one GPU and its memory
        _compute(jobs, len(missing), executor, workers, threads, report)
    return Outcome([cell for cell in found.values() if cell is not None], failures)


def finished(cells, out, *, tests=None):
    """Return those of the cells that are finished in a folder, and compute nothing; arguments are those of `run`."""
    found = [_finished(Path(out) / name, *wanted) for name, wanted in _asked(cells, tests).items()]
    return [cell for cell in found if cell is not None]


def _asked(cells, tests):
    """Return settings and tests of every cell, by its name."""
    tests = Tests() if tests is None else tests
    if not isinstance(tests, Tests):
        raise TypeError(f"tests must be a fastperm.sweeps.Tests, got {tests!r:.80}")
    cells = product(cells) if hasattr(cells, "keys") else cells
    cells = [{name: _plain(value) for name, value in given.items()} for given in cells]
    return {name_of(given): complete(given, tests) for given in cells}


def _plain(value):
    """Return a setting without numbers of NumPy's, which JSON does not take."""
    if isinstance(value, (list, tuple)):
        return [*map(_plain, value)] if isinstance(value, list) else tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _compute(jobs, n, executor, workers, threads, report):
    """Call `run_cell` where the executor says."""
    if executor is None:
        for job in jobs(threads):
            try:
                result = run_cell(*job)
            except Exception as error:
                result = error
            report(job, result)
    elif executor in ("processes", "dask"):  # on the cores of this machine
        workers, threads = executors.share_cores(n, workers, threads)
        with executors.opened(executor, workers) if executor == "dask" else contextlib.nullcontext(workers) as opened:
            executors.run_on(opened, run_cell, jobs(threads), report)
    elif isinstance(executor, str):
        with executors.opened(executor, workers) as opened:
            executors.run_on(opened, run_cell, jobs(threads or 1), report)
    elif isinstance(executor, ThreadPoolExecutor):  # cells of one process, which has one number of threads
        executors.run_on(executor, run_cell, jobs(None), report)
    else:
        executors.run_on(executor, run_cell, jobs(threads or 1), report)


def name_of(given):
    """Return the name of a cell: the settings that were given, in the order of `SETTINGS`, and the seed."""
    given = {"seed": SETTINGS["seed"], **given}
    name = ",".join(f"{key}={_word(given[key])}" for key in SETTINGS if key in given)
    if len(name) > _LONGEST_NAME:  # as long as a file system takes
        name = f"{name[: _LONGEST_NAME - 17]},{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def _word(value):
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def complete(given, tests):
    """Return all settings of a cell and all its tests, checked, in types that JSON can write.

    Raises
    ------
    ValueError, TypeError
        If a name is unknown or a value unusable; the message names the cell.
    """
    if unknown := [name for name in given if name not in SETTINGS]:
        raise ValueError(f"unknown setting {', '.join(map(repr, unknown))}; expected some of {', '.join(SETTINGS)}")
    try:
        settings = {**SETTINGS, **given}
        if "depth" not in given and isinstance(settings["width"], list | tuple):
            settings["depth"] = len(settings["width"])
        if settings["pool"] is None:
            raise ValueError("a spectrum is that of a whole set: pool must be 'mean', 'sum' or 'max', got None")
        network = _of(_NETWORK, settings)
        check_choice(network.pop("precision"), "precision", PRECISIONS)  # the backend that is used there has but one
        task = _task(settings)
        settings |= task.config() | _network_config(json.dumps([task.in_features, task.out_features, network]))
        settings |= fastperm.Adam(**_of(_ADAM, settings)).config()
        settings |= {name: check_integer(settings[name], name, minimum=1) for name in ("steps", "batch")}
        settings["seed"] = check_integer(settings["seed"], "seed", minimum=0)
        check_choice(settings["schedule"], "schedule", SCHEDULES)
        check_output(settings["scale"], settings["output"])
        if len(set(settings["width"])) == 1:
            settings["width"] = settings["width"][0]
        own = {
            "sets": check_integer(tests.sets, "sets of the tests", minimum=1),
            "seed": check_integer(tests.seed, "seed of the tests", minimum=0),
        }
        for name in ("k_max", "set_size"):
            if not isinstance(getattr(tests, name), list | tuple):
                raise TypeError(f"{name} of the tests must be a list of values, got {getattr(tests, name)!r}")
        tested = []
        for k_max, set_size in itertools.product(tests.k_max or [task.k_max], tests.set_size or [task.set_size]):
            config = _task({**settings, "k_max": k_max, "set_size": set_size}).config()
            tested.append({**_of(("k_max", "set_size"), config), **own})
    except (TypeError, ValueError) as error:
        raise type(error)(f"cell {name_of(given)}: {error}") from error
    return _of(SETTINGS, settings), tested


def _of(names, settings):
    return {name: settings[name] for name in names}


def _task(settings, backend="auto"):
    return fastperm.PowerSpectrum(**_of(_TASK, settings), dtype=settings["dtype"], backend=backend)


@functools.lru_cache
def _network_config(arguments):
    """Return the complete configuration of a network; large ones take a while to make, and many cells share one."""
    in_features, out_features, network = json.loads(arguments)
    return fastperm.DeepSet(in_features, out_features=out_features, **network, backend="reference", seed=0).config()


def run_cell(folder, settings, tests, backend, threads, every):
    """Train and test one network, or go on with it, and write what was found to ``cell.json`` in its folder.

    Parameters
    ----------
    folder : str
        Where to.
    settings : dict
        All of `SETTINGS`, as `complete` returns them.
    tests : list of dict
        ``k_max``, ``set_size``, ``sets`` and ``seed`` of each test.
    backend : str
        Kernels.
    threads : int or None
        Threads to compute with; None for all cores.
    every : int
        Steps between checkpoints.
    """
    run = Run(folder)
    with limited_threads(threads), np.errstate(all="ignore"):  # a loss that is not finite is reported with its step
        task, seed = _task(settings, backend), settings["seed"]
        net = fastperm.DeepSet(
            task.in_features,
            out_features=task.out_features,
            **_of(_NETWORK, settings),
            backend=backend,
            seed=seed,
        )
        training = {**_of([*_TRAINING, *_ADAM, "seed"], settings), "every": every, "validate": 0}
        run.write(task, net, training, started=run.read().get("started") if run.settings.exists() else None)
        history = fastperm.train(
            *(net, task),
            **_of(_TRAINING, settings),
            seed=seed,
            optimizer=fastperm.Adam(**_of(_ADAM, settings)),
            checkpoint=run.checkpoint,
            history=run.history,
            every=every,
            resume=True,
            progress=False,
            validate=None,
        )
        net.save(run.model)
        cell = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "name": run.folder.name,
            "settings": settings,
            "tests": [_test(net, settings, test) for test in tests],
            "parameters": net.n_parameters,
            "training_seconds": history["seconds"][-1],
            "last_loss": history["loss"][-1],
            "backend": net.backend,
            "threads": threads,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **versions(),
        }
    with replacing(run.folder / _CELL) as temporary:
        temporary.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
    run.checkpoint.unlink(missing_ok=True)  # three times as large as the model, and of no use any more


def _test(net, settings, test):
    task = _task({**settings, **_of(("k_max", "set_size"), test)}, net.backend)
    evaluation = estimation.evaluate(net, task, sets=test["sets"], seed=test["seed"])
    overall, deviation = evaluation.overall
    prior = task.prior_mean_error()
    return {
        **test,
        "k": [*task.frequencies.tolist(), "all"],
        "mean_squared_error": [*evaluation.mean.tolist(), overall],
        "standard_error": [*evaluation.standard_error.tolist(), deviation],
        "prior_mean_error": [*prior.tolist(), float(prior.mean())],
    }


def read(out):
    """Return the finished cells of a sweep, in the order of their settings.

    Parameters
    ----------
    out : path-like
        Folder of the sweep.

    Returns
    -------
    list of dict
        ``name``, ``settings``, ``tests`` (with the errors), ``parameters``, ``training_seconds``, ``last_loss``,
        ``backend``, ``threads``, ``finished``, ``versions`` and ``platform``.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a cell is damaged.
    """
    out = Path(out)
    if not out.is_dir():
        raise FileNotFoundError(f"there is no sweep at {out}")
    cells = [_read(path) for path in out.glob(f"*/{_CELL}")]
    return sorted(cells, key=lambda cell: [(str(type(value)), value) for value in cell["settings"].values()])


def _read(path):
    try:
        cell = json.loads(path.read_text(encoding="utf-8"))
        if cell["format"] != _FORMAT or cell["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"its format is {cell['format']!r}, version {cell['format_version']}")
        # Settings that came later have their defaults where they are absent.
        cell["settings"] = {**json.loads(json.dumps(SETTINGS)), **cell["settings"]}
        return {**cell, "tests": list(cell["tests"])}
    except (UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or not a cell of a sweep: {error!r}") from error


def _finished(folder, settings, tests):
    """Return the finished cell in a folder, which must have these settings and tests, or None."""
    if not (folder / _CELL).exists():
        return None
    cell = _read(folder / _CELL)
    for name, value in settings.items():
        if cell["settings"][name] != value:
            raise ValueError(
                f"{folder / _CELL} was made with {name} = {cell['settings'][name]!r}, here it is {value!r}: "
                f"choose another folder, or move the cell away"
            )
    names = ("k_max", "set_size", "sets", "seed")
    if (before := [_of(names, test) for test in cell["tests"]]) != tests:
        raise ValueError(
            f"{folder / _CELL} was tested on {before}, here it would be on {tests}: "
            f"choose another folder, or move the cell away"
        )
    return cell


def table(cells):
    """Return the errors of cells as rows: one for each cell, test and frequency, and one for "all" frequencies.

    Parameters
    ----------
    cells : list of dict
        As from `read`.

    Returns
    -------
    list of dict
        Settings that a cell differs from the defaults in and the most important ones, ``parameters``, ``backend``,
        ``training_seconds``; of the test ``test_k_max``, ``test_set_size``, ``test_sets``, ``test_seed``; and ``k``,
        ``mean_squared_error``, ``standard_error``, ``prior_mean_error``.
    """
    defaults = complete({}, Tests())[0]
    shown = [n for n in SETTINGS if n in _ALWAYS or any(cell["settings"][n] != defaults[n] for cell in cells)]
    names = ("k", "mean_squared_error", "standard_error", "prior_mean_error")
    return [
        {
            **{name: span(cell["settings"][name]) for name in shown},
            **_of(("parameters", "backend", "training_seconds"), cell),
            **{f"test_{name}": span(test[name]) for name in ("k_max", "set_size", "sets", "seed")},
            **dict(zip(names, numbers, strict=True)),
        }
        for cell in cells
        for test in cell["tests"]
        for numbers in zip(*(test[name] for name in names), strict=True)
    ]


def span(value):
    """Return a list of numbers as the command line takes it, ``64:512``, and anything else as it is."""
    return ":".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def write_table(path, cells):
    """Write the rows of `table` as CSV, to a path or an open file."""
    rows = table(cells)
    with contextlib.ExitStack() as stack:
        file = path
        if not hasattr(path, "write"):
            temporary = stack.enter_context(replacing(path))
            file = stack.enter_context(temporary.open("w", newline="", encoding="utf-8"))
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["k"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
