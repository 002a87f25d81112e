"""``fastperm evaluate``."""

import csv
import sys
from itertools import product

import click

from fastperm.cli.options import (
    Range,
    Several,
    backend_option,
    limited_threads,
    run_argument,
    threads_option,
    usage_errors,
)
from fastperm.cli.tables import column, span, table

_CSV_HEADER = ("k_max", "set_size", "k", "mean_squared_error", "standard_error", "prior_mean_error")

# Frequencies that a table with a row for each setting has room for.
_COLUMNS = 8


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
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the errors to this file, too; - prints them instead of the table.",
)
@backend_option
@threads_option
def evaluate(run, sets, seed, set_size, k_max, csv_path, backend, threads):
    """Measure the errors of a trained network.

    RUN is the folder of a trained network, evaluated here on functions that it has not seen. Prints the mean squared
    error of the estimate at each frequency k, its standard error over the functions, and for comparison the error of
    always answering the prior mean, without looking at the samples: pi^2/6 = 1.645 for log p_k with exponential
    amplitudes.

    With several set sizes or highest frequencies (--set-size 8,64,512 --k-max 4,64), one network is evaluated on all
    of them, on the same functions for all set sizes. No training takes place.
    """
    import fastperm
    from fastperm import estimation
    from fastperm.cli.runs import Run, task_backend
    from fastperm.files import replacing

    opened = Run.open(run)
    with limited_threads(threads):
        trained, net = opened.load(backend)
        results = []
        for highest, size in product(k_max or [trained.k_max], set_size or [trained.set_size]):
            with usage_errors():
                task = fastperm.PowerSpectrum.from_config(
                    {**trained.config(), "k_max": highest, "set_size": size}, backend=task_backend(backend)
                )
            results.append((task, estimation.evaluate(net, task, sets=sets, seed=seed)))
    if csv_path == "-":
        _write_csv(sys.stdout, results, "\n")
        return
    if len(results) == 1:
        print_by_frequency(*results[0])
    else:
        _print_by_setting(results)
    if csv_path is not None:
        with replacing(csv_path) as temporary, temporary.open("w", newline="") as file:
            _write_csv(file, results, "\r\n")
        click.echo(f"\nWrote {csv_path}")


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


def _print_by_setting(results):
    """Print a row for each task: the error at up to `_COLUMNS` frequencies, and overall."""
    import numpy as np

    task, first = results[0]
    K = task.out_features
    shown = np.unique(np.geomspace(1, K, min(K, _COLUMNS)).round().astype(int)) - 1
    overall, deviations = zip(*(evaluation.overall for _, evaluation in results), strict=True)
    columns = [[str(task.k_max) for task, _ in results], [span(task.set_size) for task, _ in results]]
    columns += [column(evaluation.mean[i] for _, evaluation in results) for i in shown]
    columns += [column(overall), column(deviations), column(task.prior_mean_error().mean() for task, _ in results)]
    header = ["k_max", "set size", *(f"k = {task.frequencies[i]}" for i in shown), "all", "std. error", "prior mean"]
    click.echo(f"Mean squared error of {_target(task)}, {len(first.truths):,} fresh functions for each row:\n")
    click.echo(table(header, list(zip(*columns, strict=True))))
    if len(shown) < K:
        click.echo(f"\nShown are {len(shown)} of {K} frequencies; --csv writes all of them.")


def _write_csv(file, results, line_end):
    writer = csv.writer(file, lineterminator=line_end)
    writer.writerow(_CSV_HEADER)
    for task, evaluation in results:
        prior = task.prior_mean_error()
        setting = task.k_max, span(task.set_size)
        at_each = zip(task.frequencies, evaluation.mean, evaluation.standard_error, prior, strict=True)
        writer.writerows([*setting, *row] for row in at_each)
        writer.writerow([*setting, "all", *evaluation.overall, prior.mean()])


def _target(task):
    return "log p_k (natural logarithm)" if task.output == "log" else "p_k"
