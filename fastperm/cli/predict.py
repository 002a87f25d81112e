"""``fastperm predict``."""

import csv
import os
from pathlib import Path

import click

from fastperm.cli.options import (
    NO_PICTURE,
    backend_option,
    limited_threads,
    precision_option,
    run_argument,
    threads_option,
)
from fastperm.cli.tables import column, span, table


@click.command()
@run_argument
@click.argument("samples", metavar="SAMPLES", type=click.Path())
@click.option(
    "--out",
    type=click.Path(),
    help="CSV file to write, or a folder for it; the picture goes beside it.  [default: SAMPLES-spectrum.csv]",
)
@click.option("--picture/--no-picture", default=True, help="Draw samples and spectrum.")
@backend_option
@precision_option
@threads_option
def predict(run, samples, out, picture, backend, precision, threads):
    """Estimate the spectrum of your own samples.

    RUN is the folder of a trained network. SAMPLES is a text file of two columns, position x and value y, between
    which stands a comma, a semicolon or white space; - reads standard input. A line of names at the top and comments
    after # are skipped. The rows may stand in any order, and there may be any number of them, though the network
    knows best the number it was trained on.

    Positions are angles in radians. The functions have period 2 pi, so an x outside 0 ... 2 pi is brought into it:
    if yours has period P, give 2 pi x / P.

    Prints the estimate of log p_k (natural logarithm) and its exponential, p_k, where the function is the sum over k
    of sqrt(p_k) cos(kx + phi_k). Writes both to a CSV file and draws a picture.
    """
    import numpy as np

    from fastperm.cli.sample_files import read_samples
    from fastperm.estimation import estimate_log_powers, wrap
    from fastperm.runs import Run

    csv_path, picture_path = _outputs(samples, out)
    opened = Run.open(run)
    with limited_threads(threads):
        task, net = opened.load(backend, precision)
        x, y = map(np.array, read_samples(samples, largest=float(np.finfo(net.dtype).max)))
        log_powers = estimate_log_powers(net, task, x, y)
    with np.errstate(over="ignore"):
        powers = np.exp(log_powers)
    if np.isinf(powers).any():
        k = task.frequencies[np.isinf(powers)][0]
        raise FloatingPointError(f"the estimate at k = {k} is beyond all numbers: log p_k = {log_powers.max():.3g}")
    _hint(opened, task, len(x))
    _warn_without_scale(net, samples, y)
    rows = zip(map(str, task.frequencies), column(log_powers), _digits(powers), strict=True)
    click.echo(table(("k", "log p_k", "p_k"), rows))
    _write_csv(csv_path, task.frequencies, log_powers, powers)
    written = [str(csv_path)]
    if picture:
        written += _draw(picture_path, wrap(x), y, task, log_powers)
    click.echo(f"\nWrote {', '.join(written)}")


def _outputs(samples, out):
    """Return where to write the CSV file and the picture."""
    from fastperm.files import is_special

    if out in ("", "-"):
        named = "is empty" if out == "" else "cannot be -, as the estimates are printed anyway"
        raise click.UsageError(f"--out {named}; expected the name of a CSV file or a folder")
    # A pipe has no folder of its own.
    source = Path("samples" if samples == "-" or is_special(Path(samples)) else samples)
    if out is not None and is_special(Path(out)):
        raise click.UsageError(f"--out {out} is no file; expected the name of a CSV file or a folder")
    if out is None or Path(out).is_dir() or out.endswith(("/", os.sep)):
        base = (source.parent if out is None else Path(out)) / f"{source.stem}-spectrum"
    else:
        base = Path(out)
        if base.suffix in (".csv", ".png"):
            base = base.with_suffix("")
    csv_path, picture_path = (base.with_name(base.name + suffix) for suffix in (".csv", ".png"))
    if samples != "-" and csv_path.resolve() == Path(samples).resolve():
        raise click.UsageError(f"--out {out} would overwrite the samples")
    return csv_path, picture_path


def _hint(run, task, n):
    """Say so if the samples are far fewer or more than the network has seen."""
    least, most = task.set_size if isinstance(task.set_size, tuple) else (task.set_size, task.set_size)
    if not least / 2 <= n <= 2 * most:
        click.echo(
            f"Note: the network was trained on {span(task.set_size)} samples, here are {n}. How good it is then: "
            f"fastperm evaluate {run.folder} --set-size {n}",
            err=True,
        )


def _warn_without_scale(net, samples, y):
    """Say so if the network would divide the samples by a scale, and they have none."""
    import numpy as np

    from fastperm.kernels.reference.root_mean_square import LEAST_SQUARE

    if net.scale is not None and np.square(y.astype(net.dtype), dtype=np.float64).mean() <= LEAST_SQUARE:
        where = "standard input" if samples == "-" else samples
        click.echo(
            f"Warning: the values in {where} are all zero, or as good as zero in {net.dtype}: without variation they "
            f"have no scale, which this network (scale {net.scale}) adds to its estimates, and these mean nothing.",
            err=True,
        )


def _digits(powers):
    return [f"{power:#.3g}" if power == power else "-" for power in powers]


def _write_csv(path, frequencies, log_powers, powers):
    from fastperm.files import replacing

    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("k", "log_power", "power"))
        writer.writerows(zip(frequencies, log_powers, powers, strict=True))


def _draw(path, x, y, task, log_powers):
    from fastperm import figures

    if not figures.available():
        click.echo(NO_PICTURE, err=True)
        return []
    figures.spectrum(path, x, y, task.frequencies, log_powers, task.mean_power[task.frequencies - 1])
    return [str(path)]
