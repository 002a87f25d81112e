"""What the options of several commands have in common."""

import contextlib
import os
import sys
from pathlib import Path

import click

from fastperm.files import is_special

# Written out here, so that `fastperm --help` need not import the library; a test compares.
BACKENDS = ("auto", "reference", "cpu", "cuda")
AGGREGATES = ("mean", "sum", "max")
INVARIANCES = ("rounding", "bitwise")
AMPLITUDES = ("exponential", "fixed", "lognormal")
SYMMETRIES = ("circle",)
SCALES = ("rms",)
SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "float64")
PRECISIONS = ("float32", "tf32", "bfloat16")
BASELINES = ("optimum", "gaussian-process", "least-squares", "lomb-scargle", "periodogram", "prior-mean")

NO_PICTURE = 'No picture: matplotlib is not installed; pip install "fastperm[plot]"'


class Range(click.ParamType):
    """A positive integer, or two of them with a colon between: ``512`` or ``64:512``."""

    name = "range"

    def get_metavar(self, param, ctx=None):
        """Return what the help shows for the value."""
        return "N|FIRST:LAST"

    def convert(self, value, param, ctx):
        """Return an int or a pair of them, or fail with a message."""
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(int(number) for number in value.split(":"))
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 2):
            self.fail(f"expected a number such as 512 or a range such as 64:512, got {value!r}", param, ctx)
        if numbers[0] < 1 or numbers[-1] < numbers[0]:
            self.fail(f"expected 1 <= FIRST <= LAST, got {value!r}", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class Folder(click.Path):
    """A folder to write to; an empty name, such as that of a variable that is not set, would be the current one."""

    def __init__(self):
        super().__init__(file_okay=False)

    def convert(self, value, param, ctx):
        """Return the name, or fail with a message."""
        if value == "":
            self.fail("expected the name of a folder, got an empty one", param, ctx)
        return super().convert(value, param, ctx)


class OutputFile(click.Path):
    """A file to write at the end of long work: that it could not be written is found before."""

    def __init__(self, **settings):
        super().__init__(dir_okay=False, **settings)

    def convert(self, value, param, ctx):
        """Return the name, or fail with a message."""
        name = str(super().convert(value, param, ctx))
        if name == "":
            self.fail("expected the name of a file, got an empty one", param, ctx)
        target = Path(os.path.realpath(name))  # of a link the target is replaced
        if name == "-" or is_special(target):
            return name
        folder = next(folder for folder in target.parents if folder.exists())
        if not folder.is_dir():
            self.fail(f"{name} cannot be written: {folder} is not a folder", param, ctx)
        if not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"{name} cannot be written: {folder} may not be written to", param, ctx)
        return name


class Several(click.ParamType):
    """Values of one type with commas between: a list."""

    name = "list"

    def __init__(self, kind):
        self.kind = kind

    def get_metavar(self, param, ctx=None):
        """Return what the help shows for the value."""
        one = self.kind.get_metavar(param, ctx) or "N"
        return f"{one}[,...]"

    def convert(self, value, param, ctx):
        """Return a list of converted values, or fail with a message."""
        if not isinstance(value, str):
            return value
        return [self.kind.convert(part.strip(), param, ctx) for part in value.split(",")]


class Names(click.ParamType):
    """Some of a list of names with commas between, or ``all``, or ``none``: a list."""

    name = "names"

    def __init__(self, known):
        self.known = known

    def get_metavar(self, param, ctx=None):
        """Return what the help shows for the value."""
        return "all|none|NAME[,...]"

    def convert(self, value, param, ctx):
        """Return a list of names, each once, or fail with a message."""
        if not isinstance(value, str):
            return value
        if value in ("all", "none"):
            return list(self.known) if value == "all" else []
        names = list(dict.fromkeys(name.strip() for name in value.split(",")))
        for name in names:
            if name not in self.known:
                self.fail(f"expected all, none, or some of {', '.join(self.known)}; got {name!r}", param, ctx)
        return names


def backend_option(function):
    """Add ``--backend``."""
    return click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        help="Kernels that compute the network; auto takes the fastest that is available here.",
    )(function)


def precision_option(function):
    """Add ``--precision``."""
    return click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="float32",
        help="What matrices are multiplied in; for --backend cuda, whose tensor cores are faster and less precise.",
    )(function)


def threads_option(function):
    """Add ``--threads``."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads to compute with.  [default: all cores, or FASTPERM_NUM_THREADS]",
    )(function)


def progress_option(function):
    """Add ``--progress`` and ``--no-progress``."""
    return click.option(
        "--progress/--no-progress",
        default=None,
        callback=lambda ctx, param, value: sys.stderr.isatty() if value is None else value,
        help="Progress bar.  [default: on a terminal]",
    )(function)


def run_argument(function):
    """Add the argument RUN."""
    return click.argument("run", metavar="RUN", type=click.Path())(function)


def limited_threads(threads):
    """Compute with so many threads within the block (see `fastperm.threads.limited_threads`)."""
    from fastperm import threads as library

    return library.limited_threads(threads)


def debugging():
    """Return whether errors should show their traceback."""
    return bool(os.environ.get("FASTPERM_DEBUG"))


def message(error):
    """Return an error as one says it to a user."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def usage_errors():
    """Turn what the library says about an argument into an error about the options."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if debugging():
            raise
        raise click.UsageError(str(error)) from error
