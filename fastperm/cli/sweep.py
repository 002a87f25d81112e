"""``fastperm sweep``."""

import contextlib
import sys
import tomllib
from pathlib import Path

import click

from fastperm.cli.options import Folder, OutputFile, Range, Several, backend_option, progress_option, usage_errors
from fastperm.cli.tables import column, table

# Settings that the help explains by those of `fastperm train`.
_EXAMPLE = "width=16,32 depth=1..4 seed=0..4 steps=2000"

_positive = click.IntRange(min=1)
_natural = click.IntRange(min=0)


def executor_options(function):
    """Add ``--executor``, ``--workers``, ``--threads``, ``--every``, ``--progress`` and ``--backend``."""
    options = (
        click.option(
            "--executor",
            metavar="processes|mpi|dask[:ADDRESS]",
            default="processes",
            help="Where to compute: processes on this machine, the processes of mpiexec, or a Dask cluster.",
        ),
        click.option(
            "--workers", type=_positive, metavar="N", help="Processes.  [default: as many as there are cores for]"
        ),
        click.option(
            "--threads",
            type=_positive,
            metavar="N",
            help="Threads of each process.  [default: the cores, shared out; 1 with mpi and dask:ADDRESS]",
        ),
        click.option("--every", type=_positive, metavar="N", default=100, help="Steps between checkpoints."),
        progress_option,
        backend_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(no_args_is_help=True)
@click.argument("settings", nargs=-1, metavar="[NAME=VALUE[,...]]...")
@click.option("--out", required=True, type=Folder(), help="Folder of the sweep.")
@click.option("--grid", type=click.Path(dir_okay=False), help="TOML file with settings, and tests in a table [tests].")
@click.option("--table", "table_path", type=OutputFile(allow_dash=True), help="Write all errors as CSV.")
@click.option("--test-sets", type=_positive, metavar="N", help="Functions to test networks on.  [default: 1024]")
@click.option("--test-seed", type=_natural, metavar="N", help="What these are drawn from.  [default: 0]")
@click.option("--test-set-size", type=Several(Range()), help="Samples of each.  [default: as in training]")
@click.option("--test-k-max", type=Several(_positive), help="Highest frequency in them.  [default: as in training]")
@executor_options
@click.pass_context
def sweep(ctx, settings, out, grid, table_path, test_sets, test_seed, test_set_size, test_k_max, **where):
    """Train and test networks over a grid of settings and seeds.

    Settings are those of `fastperm train`, with _ for -, each with one or several values: 16,32, or 0..4 for
    0,1,2,3,4. A range of set sizes or frequencies is 64:512, and widths of several layers are 64:32. In a TOML file:

    \b
        width = [16, 32]
        seed = [0, 1, 2]
        set_size = [[64, 512]]
        [tests]
        set_size = [64, 512, 4096]

    Every cell of the grid has a folder, named by its settings, for `fastperm evaluate` and `fastperm predict`, and is
    kept as it is finished. The same command goes on with a sweep that was stopped, to the same bits as in one go, and
    a larger grid in the same folder computes what is missing. A cell that fails is reported, and the others go on.

    Without settings, --table writes the errors of the finished cells in the folder: mean squared errors at each
    frequency, with standard errors over the test functions.

    On several machines, which must see one folder --out:

    \b
        mpiexec -n N python -m mpi4py.futures -m fastperm sweep --executor mpi ...
        fastperm sweep --executor dask:tcp://SCHEDULER:8786 ...
    """  # noqa: D301 (click's mark for lines that stay as they are)
    from fastperm import sweeps

    chosen, tested = _read_grid(grid) if grid else ({}, {})
    with usage_errors():
        chosen |= _parse(settings)
    tests = {"sets": test_sets, "seed": test_seed, "set_size": test_set_size, "k_max": test_k_max}
    tested |= {name: value for name, value in tests.items() if value is not None}
    if not chosen:
        if table_path is None:
            raise click.UsageError(f"expected settings such as {_EXAMPLE}, or --grid, or --table for what is there")
        cells, failures = sweeps.read(out), {}
    else:
        with to_be_continued():
            cells, failures = sweeps.run(chosen, out, tests=_tests(tested), **where)
    if table_path == "-":
        sweeps.write_table(sys.stdout, cells)
    else:
        _print(sweeps.table(cells))
        if table_path is not None:
            sweeps.write_table(table_path, cells)
            click.echo(f"\nWrote {table_path}")
    report_failures(ctx, failures)


@contextlib.contextmanager
def to_be_continued():
    """Say after Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped. The same command goes on from here.") from None


def report_failures(ctx, failures):
    """Say what failed on standard error, and exit with a status that says so."""
    if failures:
        count = "1 cell" if len(failures) == 1 else f"{len(failures)} cells"
        click.echo(f"\n{count} failed: {'; '.join(failures)}", err=True)
        ctx.exit(1)


def _read_grid(path):
    """Return settings and tests of a TOML file."""
    try:
        chosen = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"{path} is no TOML file: {error}") from error
    tested = chosen.pop("tests", {})
    if not isinstance(tested, dict) or any(isinstance(value, dict) for value in chosen.values()):
        raise click.UsageError(f"{path}: expected settings and one table, [tests], got {', '.join(chosen)}")
    return {name: _several(value) for name, value in chosen.items()}, tested


def _several(value):
    """Return a list of values as `sweeps.product` takes it: lists within it are single values."""
    return [tuple(one) if isinstance(one, list) else one for one in value] if isinstance(value, list) else value


def _tests(tested):
    from fastperm import sweeps

    if unknown := set(tested) - set(sweeps.Tests._fields):
        names = ", ".join(sweeps.Tests._fields)
        raise click.UsageError(f"[tests] has unknown names {', '.join(sorted(unknown))}; expected some of {names}")
    lists = {name: _several(tested[name]) for name in ("k_max", "set_size") if name in tested}
    lists = {name: tuple(value if isinstance(value, list) else [value]) for name, value in lists.items()}
    return sweeps.Tests(**{**tested, **lists})


def _parse(settings):
    """Return the values of each setting, a list for each name."""
    chosen = {}
    for setting in settings:
        name, equals, values = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values or not name:
            raise ValueError(f"expected NAME=VALUE[,...], such as {_EXAMPLE}; got {setting!r}")
        if name in chosen:
            raise ValueError(f"{name} is given twice: put its values into one, {name}=A,B")
        chosen[name] = [value for part in values.split(",") for value in _values(part.strip())]
    return chosen


def _values(part):
    """Return what a part between commas stands for."""
    first, dots, last = part.partition("..")
    if dots and first.isdigit() and last.isdigit():
        if int(last) < int(first):
            raise ValueError(f"expected FIRST..LAST with FIRST <= LAST, got {part!r}")
        return range(int(first), int(last) + 1)
    if ":" in part:
        return [tuple(_number(one) for one in part.split(":"))]
    return [_number(part)]


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None if text in ("none", "None") else text


def _print(rows):
    """Print the errors over all frequencies, and the settings that differ."""
    rows = [row for row in rows if row["k"] == "all"]
    if not rows:
        click.echo("No cell is finished.")
        return
    names = list(rows[0])[: list(rows[0]).index("k")]
    left_out = ("parameters", "backend", "training_seconds", "test_seed")
    varied = [n for n in names if n not in left_out and len({str(row[n]) for row in rows}) > 1]
    columns = [[str(row[name]) for row in rows] for name in varied]
    shown = ("mean_squared_error", "standard_error", "prior_mean_error")
    columns += [column(row[name] for row in rows) for name in shown]
    columns.append([f"{row['training_seconds']:.1f}" for row in rows])
    header = [*(name.replace("_", " ") for name in varied), "error", "std. error", "prior mean", "seconds"]
    tested = "so many" if "test_sets" in varied else f"{rows[0]['test_sets']:,}"
    click.echo(f"Mean squared error over all k, {tested} fresh functions for each row:\n")
    click.echo(table(header, list(zip(*columns, strict=True))))
