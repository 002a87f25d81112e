"""``fastperm evaluate``."""

import csv
import math
import sys
from itertools import product

import click
from click.core import ParameterSource

from fastperm.cli.options import (
    BASELINES,
    NO_PICTURE,
    Names,
    OutputFile,
    Range,
    Several,
    backend_option,
    limited_threads,
    precision_option,
    progress_option,
    run_argument,
    threads_option,
    usage_errors,
)
from fastperm.cli.tables import column, span, table

_CSV_HEADER = (
    *("k_max", "set_size", "k", "mean_squared_error", "standard_error", "prior_mean_error"),
    *("estimator", "expected_error", "spectra_per_second"),
)

# Frequencies that a table with a row for each setting has room for.
_COLUMNS = 8

# The row of what the optimum expects, below what it got.
_EXPECTED = "(expected)"


@click.command()
@run_argument
@click.option("--sets", type=click.IntRange(min=1), metavar="N", default=1024, help="Fresh functions to evaluate on.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", default=0, help="What they are drawn from.")
@click.option("--set-size", type=Several(Range()), help="Samples of each function.  [default: as in training]")
@click.option(
    "--k-max", type=Several(click.IntRange(min=1)), help="Highest frequency in them.  [default: as in training]"
)
@click.option(
    "--csv",
    "csv_path",
    type=OutputFile(allow_dash=True),
    help="Write the errors to this file, too; - prints them instead of the table.",
)
@click.option(
    "--baselines",
    type=Names(BASELINES),
    default="all",
    help=f"Estimators to show beside the network: {', '.join(BASELINES)}.",
)
@click.option("--picture", type=OutputFile(), help="Draw the errors to this PNG file, too.")
@progress_option
@backend_option
@precision_option
@threads_option
@click.pass_context
def evaluate(
    ctx, run, sets, seed, set_size, k_max, csv_path, baselines, picture, progress, backend, precision, threads
):
    """Measure the errors of a trained network.

    RUN is the folder of a trained network, evaluated here on functions that it has not seen. Prints the mean squared
    error of the estimate at each frequency k, its standard error over the functions, and for comparison the error of
    always answering the prior mean, without looking at the samples: pi^2/6 = 1.645 for log p_k with exponential
    amplitudes.

    Below stand estimators that learn nothing, on the same functions, and how many spectra each makes in a second. The
    optimum is the best that any estimator can do, with the error it expects of itself. With k_max beyond a hundred it
    takes minutes: --baselines none leaves all of them out.

    With several set sizes or highest frequencies (--set-size 8,64,512 --k-max 4,64), one network is evaluated on all
    of them, on the same functions for all set sizes. No training takes place.
    """
    import fastperm
    from fastperm import estimation
    from fastperm.files import replacing
    from fastperm.runs import Run

    opened = Run.open(run)
    with limited_threads(threads):
        trained, net = opened.load(backend, precision)
        shown = _applicable(ctx, trained, baselines)
        settings = list(product(k_max or [trained.k_max], set_size or [trained.set_size]))
        if picture is not None and len(settings) > 1:
            raise click.UsageError(f"--picture draws one setting, got {len(settings)} of --k-max and --set-size")
        results = []
        for highest, size in settings:
            with usage_errors():
                task = fastperm.PowerSpectrum.from_config(
                    {**trained.config(), "k_max": highest, "set_size": size}, backend=backend
                )
            results.append((task, estimation.compare(net, task, shown, sets=sets, seed=seed, progress=progress)))
    if csv_path == "-":
        _write_csv(sys.stdout, results, "\n")
    else:
        _print(results, shown)
        left_out = [name for name in baselines if name not in shown]
        if left_out:
            click.echo(f"\nLeft out: {', '.join(left_out)}, for amplitudes that are not exponential.")
        if csv_path is not None:
            with replacing(csv_path) as temporary, temporary.open("w", newline="") as file:
                _write_csv(file, results, "\r\n")
            click.echo(f"\nWrote {csv_path}")
    if picture is not None:
        _draw(picture, *results[0])


def _applicable(ctx, task, names):
    """Return those of the baselines that know the task's law; one that was asked for by name must."""
    from fastperm.baselines import GAUSSIAN

    unfit = [name for name in names if name in GAUSSIAN and task.amplitudes != "exponential"]
    if unfit and ctx.get_parameter_source("baselines") is not ParameterSource.DEFAULT:
        raise click.UsageError(f"--baselines {','.join(unfit)}: only for exponential amplitudes, not {task.amplitudes}")
    return [name for name in names if name not in unfit]


def _print(results, shown):
    if len(results) == 1:
        task, comparison = results[0]
        print_by_frequency(task, comparison.evaluations["network"])
        if shown:
            _print_estimators(task, comparison)
        return
    _print_by_setting([(task, comparison.evaluations["network"]) for task, comparison in results])
    if shown:
        _print_estimators_by_setting(results)


def _draw(path, task, comparison):
    from fastperm import figures

    if not figures.available():
        click.echo(NO_PICTURE, err=True)
        return
    errors = {name: evaluation.mean for name, evaluation in comparison.evaluations.items()}
    target = "log $p_k$" if task.output == "log" else "$p_k$"
    figures.errors(path, task.frequencies, errors, target=target)
    click.echo(f"Drew {path}", err=True)


def print_by_frequency(task, evaluation):
    """Print the error at each frequency and overall."""
    overall, deviation = evaluation.overall
    prior = task.prior_mean_error()
    rows = zip(
        [*map(str, task.frequencies), "all"],
        column([*evaluation.mean, overall]),
        column([*evaluation.standard_error, deviation]),
        column([*prior, prior.mean()]),
        strict=True,
    )
    click.echo(f"Mean squared error of {_target(task)}, {len(evaluation.truths):,} fresh functions with")
    click.echo(f"k_max = {task.k_max}, {span(task.set_size)} samples each:\n")
    click.echo(table(("k", "error", "std. error", "prior mean"), rows))


def _print_estimators(task, comparison):
    """Print a row for each estimator: the error at up to `_COLUMNS` frequencies, overall, and the speed."""
    shown = _shown(task)
    rows = []
    for name, evaluation in comparison.evaluations.items():
        errors = [*evaluation.mean[shown], *evaluation.overall]
        speed = f"{comparison.spectra_per_second[name]:,.0f}"
        rows.append([name, *map(_significant, errors), speed])
        if name == "optimum":
            expected = comparison.expected_error
            rows.append([_EXPECTED, *map(_significant, [*expected[shown], expected.mean()]), "", ""])
    click.echo("\nMean squared errors beside those of estimators that learn nothing, on the same functions:\n")
    click.echo(table(["", *_headings(task, shown), "all", "std. error", "spectra/s"], rows))


def _print_estimators_by_setting(results):
    """Print two tables with a row for each task and a column for each estimator: the overall error, and the speed."""
    names = list(results[0][1].evaluations)
    settings = [[str(task.k_max), span(task.set_size)] for task, _ in results]
    header = list(names)
    if "optimum" in names:
        header.insert(names.index("optimum") + 1, _EXPECTED)
    rows = []
    for setting, (_, comparison) in zip(settings, results, strict=True):
        errors = {name: evaluation.overall[0] for name, evaluation in comparison.evaluations.items()}
        if _EXPECTED in header:
            errors[_EXPECTED] = comparison.expected_error.mean()
        rows.append([*setting, *(_significant(errors[name]) for name in header)])
    click.echo("\nMean squared errors over all k, beside those of estimators that learn nothing:\n")
    click.echo(table(["k_max", "set size", *header], rows))
    rows = [
        [*setting, *(f"{comparison.spectra_per_second[name]:,.0f}" for name in names)]
        for setting, (_, comparison) in zip(settings, results, strict=True)
    ]
    click.echo("\nSpectra per second:\n")
    click.echo(table(["k_max", "set size", *names], rows))


def _print_by_setting(results):
    """Print a row for each task: the error at up to `_COLUMNS` frequencies, and overall."""
    task, first = results[0]
    K = task.out_features
    shown = _shown(task)
    overall, deviations = zip(*(evaluation.overall for _, evaluation in results), strict=True)
    columns = [[str(task.k_max) for task, _ in results], [span(task.set_size) for task, _ in results]]
    columns += [column(evaluation.mean[i] for _, evaluation in results) for i in shown]
    columns += [column(overall), column(deviations), column(task.prior_mean_error().mean() for task, _ in results)]
    header = ["k_max", "set size", *_headings(task, shown), "all", "std. error", "prior mean"]
    click.echo(f"Mean squared error of {_target(task)}, {len(first.truths):,} fresh functions for each row:\n")
    click.echo(table(header, list(zip(*columns, strict=True))))
    if len(shown) < K:
        click.echo(f"\nShown are {len(shown)} of {K} frequencies; --csv writes all of them.")


def _write_csv(file, results, line_end):
    writer = csv.writer(file, lineterminator=line_end)
    writer.writerow(_CSV_HEADER)
    for task, comparison in results:
        prior = task.prior_mean_error()
        setting = task.k_max, span(task.set_size)
        for name, evaluation in comparison.evaluations.items():
            expected = comparison.expected_error if name == "optimum" else None
            speed = comparison.spectra_per_second[name]
            for i, k in enumerate(task.frequencies):
                own = "" if expected is None else expected[i]
                errors = evaluation.mean[i], evaluation.standard_error[i]
                writer.writerow([*setting, k, *errors, prior[i], name, own, speed])
            own = "" if expected is None else expected.mean()
            writer.writerow([*setting, "all", *evaluation.overall, prior.mean(), name, own, speed])


def _shown(task):
    """Return the indices of the frequencies that a row has room for."""
    import numpy as np

    K = task.out_features
    return np.unique(np.geomspace(1, K, min(K, _COLUMNS)).round().astype(int)) - 1


def _headings(task, shown):
    return [f"k = {task.frequencies[i]}" for i in shown]


def _significant(value):
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _target(task):
    return "log p_k (natural logarithm)" if task.output == "log" else "p_k"
