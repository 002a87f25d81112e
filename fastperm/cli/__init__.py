"""The command ``fastperm``: train, evaluate, predict, sweep, figures, info.

The modules of the commands import NumPy, Numba and matplotlib when they run, so that ``--help`` is immediate.
"""

import click

import fastperm
from fastperm.cli.evaluate import evaluate
from fastperm.cli.figures import figures
from fastperm.cli.info import info
from fastperm.cli.options import debugging, message
from fastperm.cli.predict import predict
from fastperm.cli.sweep import sweep
from fastperm.cli.train import train

INTERRUPTED = 130  # what shells expect after Ctrl-C

_USERS_ERRORS = (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, MemoryError)


class _Program(click.Group):
    """A group of commands in which an error that the user can mend is a message, not a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):  # click's own affair
            raise
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except _USERS_ERRORS as error:
            if debugging():
                raise
            raise click.ClickException(message(error)) from error


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
)
@click.version_option(fastperm.__version__, prog_name="fastperm")
def main():
    """Neural networks on sets: estimate a power spectrum from an unordered handful of samples.

    \b
    fastperm train --out runs/first          train a network on random functions
    fastperm evaluate runs/first             how good is it?
    fastperm predict runs/first samples.csv  the spectrum of your own samples
    fastperm sweep --out runs/sweep width=16,32 seed=0..4  networks over a grid of settings
    fastperm figures 2                       a figure of the paper

    With the environment variable FASTPERM_DEBUG set, an error shows its traceback.
    """  # noqa: D301 (click's mark for lines that stay as they are, which a raw string would not be)


for command in (train, evaluate, predict, sweep, figures, info):
    main.add_command(command)
