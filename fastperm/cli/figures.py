"""``fastperm figures``."""

import click

from fastperm.cli.options import NO_PICTURE, Folder, Names
from fastperm.cli.sweep import executor_options, report_failures, to_be_continued

FIGURES = ("1", "2", "3", "4", "5")
SIZES = ("small", "laptop", "paper")
NETWORKS = ("plain", "circle")


@click.command()
@click.argument("numbers", nargs=-1, metavar="[1|2|3|4|5]...", type=click.Choice(FIGURES))
@click.option(
    "--scale",
    type=click.Choice(SIZES),
    default="small",
    help="How much to compute: about an hour on 2 cores, hours, or what needs a GPU.",
)
@click.option("--out", type=Folder(), default="runs/figures", help="Folder of the results.")
@click.option("--networks", type=Names(NETWORKS), help=f"Some of {', '.join(NETWORKS)}.  [default: all]")
@click.option("--draw-only", is_flag=True, help="Draw from the CSV files in the folder, and compute nothing.")
@executor_options
@click.pass_context
def figures(ctx, numbers, scale, out, networks, draw_only, **where):
    """Compute and draw the figures of the paper, all or some of them.

    \b
    1  sample functions
    2  error against width and depth of the network
    3  the same at single frequencies, k = 1, 2, 4
    4  error on sets of other sizes than in training
    5  estimates at another k_max than in training

    Errors are shown beside that of the prior mean and that of the optimum, the best that any estimator can do. The
    results go into CSV files beside the pictures. A command that was stopped goes on where it was.
    """  # noqa: D301 (click's mark for lines that stay as they are)
    from fastperm import figures as pictures
    from fastperm import paper, paper_figures

    failures: dict = {}
    for number in map(int, dict.fromkeys(numbers or FIGURES)):
        if not draw_only:
            try:
                with to_be_continued():
                    failures |= paper.run(number, scale, out, networks=networks, **where)
            except paper.NothingFinishedError as error:
                failures |= error.failures
                click.echo(error, err=True)
                continue
        if pictures.available():
            click.echo(f"Drew {paper_figures.draw(number, out)}")
        elif draw_only:
            raise click.ClickException(NO_PICTURE)
    if not pictures.available():
        click.echo(NO_PICTURE, err=True)
    report_failures(ctx, failures)
