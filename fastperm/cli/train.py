"""``fastperm train``."""

import shlex

import click
from click.core import ParameterSource

from fastperm.cli.options import (
    AGGREGATES,
    AMPLITUDES,
    DTYPES,
    INVARIANCES,
    NO_PICTURE,
    SCALES,
    SCHEDULES,
    SYMMETRIES,
    Folder,
    Range,
    Several,
    backend_option,
    limited_threads,
    message,
    precision_option,
    progress_option,
    threads_option,
    usage_errors,
)
from fastperm.cli.tables import span

_TASK = ("k_max", "k_fin", "set_size", "power_law", "amplitudes", "noise", "output")
_LAYERS = ("aggregate", "pool", "invariance", "symmetry", "orders", "scale", "dtype")
_NETWORK = ("width", "depth", *_LAYERS)
_ADAM = ("learning_rate", "beta1", "beta2", "epsilon")
_WHERE = ("backend", "precision")
_TRAINING = ("steps", "batch", *_ADAM, "schedule", "seed", "every", "validate")

_DEPTH = 4
_TEST_SETS = 1024
# For the optimum in the learning curve, and up to how many equations it is found at once.
_OPTIMUM_SETS, _OPTIMUM_UNKNOWNS = 128, 256

_PICTURES = _LEARNING_CURVE, _SPECTRA, _SAMPLES = "learning_curve.png", "spectra.png", "samples.png"

# Frequencies whose error is printed while training goes on.
_REPORTED = 6

_positive = click.IntRange(min=1)


@click.command()
@click.option("--out", required=True, type=Folder(), help="Folder of the run, such as runs/first.")
@click.option(
    "--k-max", type=_positive, metavar="N", default=4, help="Highest frequency in the functions, in cycles per 2 pi."
)
@click.option("--k-fin", type=Range(), default="4", help="Estimate the power at k = 1 ... N, or FIRST ... LAST.")
@click.option("--set-size", type=Range(), default="512", help="Samples of each function; a range is drawn from.")
@click.option(
    "--power-law", type=float, metavar="A", default=2.0, help="The mean power at frequency k is k to the power -A."
)
@click.option(
    "--amplitudes", type=click.Choice(AMPLITUDES), default="exponential", help="Law of the power around its mean."
)
@click.option(
    "--noise",
    type=click.FloatRange(min=0),
    metavar="X",
    default=0.0,
    help="Standard deviation of noise added to the samples.",
)
@click.option("--output", type=click.Choice(("log", "power")), default="log", help="Estimate log p_k, or p_k itself.")
@click.option("--width", type=Several(_positive), default="64", help="Width of the layers; several: one for each.")
@click.option("--depth", type=_positive, metavar="N", help="Layers.  [default: 4, or as many as there are widths]")
@click.option(
    "--aggregate", type=click.Choice(AGGREGATES), default="mean", help="What an element sees of its set, in each layer."
)
@click.option(
    "--pool", type=click.Choice(AGGREGATES), default="mean", help="How elements become one vector per set at the end."
)
@click.option(
    "--invariance",
    type=click.Choice(INVARIANCES),
    default="rounding",
    help="Whether the order of the samples may change the last digits of an estimate, or not a bit.",
)
@click.option(
    "--symmetry",
    type=click.Choice(SYMMETRIES),
    help="circle: positions are angles, and a shift of all of them changes no estimate.",
)
@click.option(
    "--orders",
    type=click.IntRange(min=0),
    metavar="M",
    help="Highest order of the filters on the circle.  [default: 8 with --symmetry circle]",
)
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    help="rms: divide the values of each set by their root mean square, and add its logarithm to estimates of log p_k.",
)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", help="Numbers to compute with.")
@backend_option
@precision_option
@click.option(
    "--steps", type=_positive, metavar="N", default=2000, help="Last step, counted from the beginning of the run."
)
@click.option("--batch", type=_positive, metavar="N", default=256, help="Functions per step, fresh ones every time.")
@click.option("--learning-rate", type=float, metavar="X", default=1e-3, help="Step length of Adam.")
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="constant",
    help="Whether the step length stays, or falls along a cosine that is zero after the last step.",
)
@click.option("--beta1", type=float, metavar="X", default=0.9, help="Adam's decay of the mean gradient.")
@click.option("--beta2", type=float, metavar="X", default=0.999, help="Adam's decay of the mean squared gradient.")
@click.option(
    "--epsilon", type=float, metavar="X", default=1e-7, help="What Adam adds to the root of the mean squared gradient."
)
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, help="What weights and functions are drawn from."
)
@click.option(
    "--every", type=_positive, metavar="N", default=100, help="Steps between checkpoints, and between validations."
)
@click.option(
    "--validate", type=click.IntRange(min=0), metavar="N", default=256, help="Functions to validate on; 0 for none."
)
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, to the same bits as in one go.")
@progress_option
@threads_option
@click.pass_context
def train(ctx, out, resume, progress, threads, **options):
    """Train a network to estimate spectra.

    The network learns from random functions f(x), the sum over k of sqrt(p_k) cos(kx + phi_k), each known only by
    its values at random positions. Everything goes into the folder --out: the settings (run.json), the state of
    training (checkpoint.safetensors), the losses (history.csv), and at the end the network (model.safetensors)
    and pictures.

    Ctrl-C, or SIGTERM, finishes the step and saves it. With --resume, options that are not given are those that the
    run was started with; --steps, --learning-rate, --schedule, --every and --validate may be given new values.
    """
    from fastperm.runs import Run

    run = Run(out)
    given = {name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    _check_folder(run, resume)
    stored = run.read() if resume and run.settings.exists() else None
    if stored:
        options |= {name: value for name, value in _stored_options(stored).items() if name not in given}
    with limited_threads(threads):
        task, net, optimizer = _build(options)
        if stored:
            _check_same(run, stored, task, net, options)
        training = {name: options[name] for name in _TRAINING}
        started = stored.get("started") if stored else None
        run.write(task, net, training, started=started)
        history = _train(run, task, net, optimizer, training, progress)
        if (taken := len(history["step"])) > training["steps"]:
            click.echo(f"The run had {taken:,} steps behind it already; steps are counted from its beginning.")
            run.write(task, net, {**training, "steps": taken}, started=started)
        _finish(run, task, net, history, training["seed"])


def _check_folder(run, resume):
    there = [path for path in (run.checkpoint, run.model) if path.exists()]
    if there and not resume:
        raise FileExistsError(f"{there[0]} is there already: go on with --resume, or choose another --out")
    if there == [run.model]:
        raise FileNotFoundError(f"{run.folder} has a model but no {run.checkpoint.name} to go on from")
    if there and not run.settings.exists():
        raise FileNotFoundError(
            f"{run.folder} has a {run.checkpoint.name} but no {run.settings.name}, which says what run it is"
        )
    if there:
        return
    # A run that was killed early leaves its settings alone; whatever else is there is somebody's own.
    others = (run.history, *(run.folder / name for name in _PICTURES))
    if run.settings.exists():
        run.read()
    for path in others:
        if path.exists():
            raise FileExistsError(
                f"{path} is there already, and no run beside it: choose another --out, or move it away"
            )


def _stored_options(stored):
    """Return the settings of a run as the options that make them."""
    options = {**stored["task"], **stored["network"], **stored["training"], **{name: stored[name] for name in _WHERE}}
    if len(set(options.get("width", ()))) == 1:
        options["width"] = options["width"][:1]
    return {name: options[name] for name in (*_TASK, *_NETWORK, *_TRAINING, *_WHERE) if name in options}


def _build(options):
    import fastperm
    from fastperm.runs import check_output

    width, depth = options["width"], options["depth"]
    if len(width) == 1:
        width, depth = width[0], depth or _DEPTH
    with usage_errors():
        check_output(options["scale"], options["output"])
        task = fastperm.PowerSpectrum(
            **{name: options[name] for name in _TASK}, dtype=options["dtype"], backend=options["backend"]
        )
        net = fastperm.DeepSet(
            *(task.in_features, width, depth or len(width), task.out_features),
            **{name: options[name] for name in (*_LAYERS, *_WHERE, "seed")},
        )
        optimizer = fastperm.Adam(**{name: options[name] for name in _ADAM})
    return task, net, optimizer


def _check_same(run, stored, task, net, options):
    """Refuse options that would make another run of this one."""
    kept = ("batch", "seed", "beta1", "beta2", "epsilon")
    before = {**stored["network"], **stored["task"], **{name: stored["training"][name] for name in kept}}
    now = {"depth": net.depth, **net.config(), **task.config(), **{name: options[name] for name in kept}}
    for name, value in now.items():
        if before[name] != value:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{run.folder} was started with {option} {_shown(name, before[name])}, which cannot become "
                f"{_shown(name, value)}: leave {option} out, or choose another --out"
            )


def _shown(name, value):
    return ",".join(map(str, value)) if name == "width" and isinstance(value, list) else span(value)


def _train(run, task, net, optimizer, training, progress):
    import numpy as np

    import fastperm

    click.echo(f"{net!r}, {net.n_parameters:,} parameters")
    click.echo(f"{task!r}")
    click.echo(f"{training['steps']:,} steps of {training['batch']:,} functions, into {run.folder}")
    try:
        with np.errstate(all="ignore"):  # a loss that is not finite is reported with its step
            return fastperm.train(
                *(net, task),
                **{name: training[name] for name in ("steps", "batch", "schedule", "seed", "every")},
                optimizer=optimizer,
                checkpoint=run.checkpoint,
                history=run.history,
                resume=True,
                progress=progress,
                validate=training["validate"] or None,
                report=_reporter(task),
            )
    except KeyboardInterrupt as stop:
        what = str(stop) or "interrupted"
        command = f"fastperm train --out {shlex.quote(str(run.folder))} --resume"
        raise KeyboardInterrupt(f"{what[0].upper()}{what[1:]}.\nGo on with: {command}") from None


def _reporter(task):
    """Return what prints the validation error at every frequency (six of them, where there are more), a line a time."""
    import numpy as np

    shown = np.unique(np.linspace(0, task.out_features - 1, _REPORTED).round().astype(int))
    header = ["step", *(f"k = {task.frequencies[i]}" for i in shown), "all"]

    def report(step, errors):
        nonlocal header
        if header:
            click.echo("Validation error by frequency:")
            click.echo("".join(f"{name:>10}" for name in header))
            header = []
        click.echo(f"{step:>10,}" + "".join(f"{error:>10.4f}" for error in (*errors[shown], errors.mean())))

    return report


def _finish(run, task, net, history, seed):
    """Save the network, say how good it is, and draw pictures."""
    from fastperm.cli.evaluate import print_by_frequency
    from fastperm.estimation import evaluate

    taken = len(history["step"])
    click.echo(
        f"Trained for {taken:,} steps in {history['seconds'][-1]:.1f} s; the last loss is {history['loss'][-1]:.4f}"
    )
    net.save(run.model)
    evaluation = evaluate(net, task, sets=_TEST_SETS, seed=seed)
    click.echo()
    print_by_frequency(task, evaluation)
    click.echo()
    optimum = _optimum_error(task, seed)
    names = [run.settings.name, run.checkpoint.name, run.history.name, run.model.name]
    click.echo(f"Wrote {run.folder}: {', '.join(names + _draw(run, task, history, evaluation, optimum, seed))}")


def _optimum_error(task, seed):
    """Return the error of the best estimate that is possible, or None where it is unknown, or takes long."""
    import numpy as np

    from fastperm.estimation import compare

    largest = np.max(task.set_size)
    if task.amplitudes != "exponential" or min(2 * task.k_max, largest) > _OPTIMUM_UNKNOWNS:
        return None
    return compare(None, task, ("optimum",), sets=_OPTIMUM_SETS, seed=seed).evaluations["optimum"].overall[0]


def _draw(run, task, history, evaluation, optimum, seed):
    """Draw the pictures of a finished run and return the names of those that could be drawn."""
    from fastperm import figures
    from fastperm.paper import example_functions

    if not figures.available():
        click.echo(NO_PICTURE, err=True)
        return []
    target = "log $p_k$" if task.output == "log" else "$p_k$"
    prior = task.prior_mean_error()
    truths, estimates = evaluation
    pictures = {
        _LEARNING_CURVE: lambda path: figures.learning_curve(
            path, history, prior_error=prior.mean(), optimum_error=optimum, target=target
        ),
        _SPECTRA: lambda path: figures.spectra(
            path, task.frequencies, truths, estimates, evaluation.mean, prior, target=target
        ),
    }
    if examples := example_functions(task, seed):
        pictures[_SAMPLES] = lambda path: figures.samples(path, examples)
    drawn = []
    for name, draw in pictures.items():
        try:
            draw(run.folder / name)
        except (OSError, ValueError) as error:  # the run is finished all the same
            click.echo(f"Warning: {name} could not be drawn: {message(error)}", err=True)
        else:
            drawn.append(name)
    return drawn
