"""Training: a run that can be stopped at any moment and taken up again to the bit."""

import inspect
import json
import math
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastperm.adam import Adam
from fastperm.checkpoints import COLUMNS, load_checkpoint, save_checkpoint
from fastperm.checks import check_choice, check_integer, check_number, check_optimizer
from fastperm.history import HistoryFile
from fastperm.kernels.arrays import on_host
from fastperm.losses import as_targets, flaw_of
from fastperm.steps import Steps, sample

SCHEDULES = ("constant", "cosine")

# Seconds between two looks at steps that are queued on a GPU.
_LOOK = 0.1

# Streams of random numbers that a run draws from; SeedSequence keeps them apart.
_TRAINING, _VALIDATION = 0, 1


def train(
    net,
    task,
    *,
    steps,
    batch=256,
    seed=0,
    optimizer=None,
    schedule="constant",
    checkpoint=None,
    every=100,
    resume=False,
    progress=True,
    validate=256,
    history=None,
    report=None,
):
    """Train a network on a task.

    Batch t is drawn from a generator that depends on ``seed`` and t only, so a run that is stopped and resumed takes
    bitwise the same steps as one that is not.

    On the cuda backend, `PowerSpectrum` with ``backend="auto"`` or "cuda" draws on the GPU, and steps are queued there
    as CUDA graphs without waiting for each loss (not with bitwise invariance, sets of differing sizes, or more
    activations in a step than a sixteenth of the memory holds; `explain` says so).

    Parameters
    ----------
    net : DeepSet
        The network; trained in place.
    task : object with ``sample(batch, generator) -> (sets, targets)``
        Where fresh batches come from, such as `PowerSpectrum`. Its ``config()`` is what a checkpoint remembers of it.
    steps : int
        Number of the last step, counted from the beginning of the run, resumed or not; a checkpoint that is there
        already is returned as it is.
    batch : int, default=256
        Sets per step.
    seed : int, default=0
        What the batches are drawn from.
    optimizer : Adam or None, default=None
        The optimiser; None makes an `Adam` with its defaults. Resuming puts the saved moments into it. A run with a
        checkpoint needs an `Adam`, or what has its state, and begins with one that has taken no steps yet.
    schedule : {"constant", "cosine"} or callable, default="constant"
        Learning rate of step t: the optimiser's lr, or lr (1 + cos(π (t − 1) / steps)) / 2, which would be zero after
        the last step (Loshchilov & Hutter 2017, without restarts), or ``schedule(t)``, t counted from 1. A run that is
        resumed with another number of steps goes on at the rates of the new schedule.
    checkpoint : path-like or None, default=None
        File that the state is written to, every ``every`` steps and at the end. It replaces the earlier one when it
        is complete.
    every : int, default=100
        Steps between checkpoints, and between validations.
    resume : bool, default=False
        Go on from ``checkpoint`` if it is there. A checkpoint of another network, seed, batch size, task or optimiser
        is refused; only the learning rate, its schedule and ``steps`` may change. A task without ``config()``, or with
        functions in it, cannot be compared: that it is the same is then up to the caller.
    progress : bool, default=True
        Show a progress bar with loss and sets per second on standard error.
    validate : int, pair (sets, targets) or None, default=256
        What the validation loss is measured on: so many fresh sets of the task, the same ones every time; sets and
        targets of your own; or nothing.
    history : path-like or None, default=None
        CSV file for the history, which gets its rows with each checkpoint; None writes it beside the checkpoint, as
        ``run.csv`` beside ``run.safetensors``.
    report : callable or None, default=None
        Called as ``report(step, errors)`` after each validation, when the checkpoint of that step is written, with the
        mean squared error of every output, (out_features,). If it returns True, training ends there; resumed, it would
        go on. What it prints does not disturb the progress bar.

    Returns
    -------
    dict of str to list
        ``step``, ``loss`` (of the batch, before the step), ``validation_loss`` (after it; NaN where not measured) and
        ``seconds`` (time trained when the loss was known: a GPU that draws its own batches is asked about ten times a
        second).

    Raises
    ------
    FloatingPointError
        At the first loss, or the first checkpoint, that is not finite; the message names the step. The last
        checkpoint stays as it is.
    KeyboardInterrupt
        After Ctrl-C, or SIGTERM, which batch systems send: the step is finished and the checkpoint written first.
    FileExistsError
        If the checkpoint is there and ``resume`` is false, or the history, and it is not that of the run that goes on.
    ValueError
        If the checkpoint belongs to another run or is damaged, an argument is out of range, a target to validate with
        is not finite, or checkpoint and history are one file.
    TypeError
        If the task has no ``sample``, or one that returns no pair; the optimiser has no ``step``, or with a schedule
        one that takes no ``learning_rate``, or with "cosine" none of its own. With a checkpoint, also if it has not
        the state of an `Adam`, or JSON cannot hold what the task's ``config()`` returns.
    """
    steps = check_integer(steps, "steps", minimum=0)
    batch = check_integer(batch, "batch", minimum=1)
    every = check_integer(every, "every", minimum=1)
    seed = check_integer(seed, "seed", minimum=0)
    if not callable(schedule):
        check_choice(schedule, "schedule", SCHEDULES)
    if not callable(getattr(task, "sample", None)):
        raise TypeError(f"task must have a method sample(batch, generator), got {task!r:.80}")
    optimizer = Adam() if optimizer is None else check_optimizer(optimizer)
    if schedule != "constant":
        _check_scheduled(optimizer, schedule)
    settings = {"batch": batch, "seed": seed, "task": None}
    if checkpoint is not None:
        _check_kept(optimizer)
        settings["task"] = _described(task)
    records: dict[str, list] = {name: [] for name in COLUMNS}
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if history is None and checkpoint is not None:
        # Not always with_suffix: runs lr0.1 and lr0.01 would share lr0.csv.
        known = checkpoint.suffix == ".safetensors"
        history = checkpoint.with_suffix(".csv") if known else checkpoint.with_name(checkpoint.name + ".csv")
    if checkpoint is not None and os.path.realpath(checkpoint) == os.path.realpath(history):
        raise ValueError(f"checkpoint and history would both be {checkpoint}; give one of them another name")
    begins = checkpoint is None or not checkpoint.exists()
    if not (begins or resume):
        raise FileExistsError(f"{checkpoint} is there already; resume=True goes on from it, or move it away")
    history = None if history is None else HistoryFile(history)
    if history is not None and (steps > 0 or not begins):
        history.check(begins)
    if not begins:
        records = _resume(checkpoint, net, optimizer, settings)
    elif checkpoint is not None and optimizer.steps > 0:
        raise ValueError(f"a run with a checkpoint begins with a new optimizer, got one of {optimizer.steps} steps")
    first = len(records["step"])
    validation = _validation(net, task, validate, seed) if first < steps else None
    before = records["seconds"][-1] if first else 0.0

    def save():
        if not np.isfinite(net.parameters.flat).all():
            raise FloatingPointError(f"a parameter is not finite after step {len(records['step'])}{_kept(checkpoint)}")
        if checkpoint is not None:
            save_checkpoint(checkpoint, net, optimizer, records, settings)
        if history is not None:
            history.write(records)

    if hasattr(task, "beside"):
        task = task.beside(net.backend)
    work = Steps(net, task, optimizer, batch)
    bar = tqdm(total=steps, initial=first, unit="step", disable=not progress, dynamic_ncols=True)
    start = time.perf_counter()

    def announce():
        if progress:
            with suppress(RuntimeError):  # Ctrl-C came in the middle of writing to the same stream
                bar.write("finishing the step ...", file=sys.stderr)

    with bar, _held_signals(announce) as interrupted:
        taken, looked, most = first, start, 1
        for step in range(first + 1, steps + 1):
            rate = _rate(schedule, optimizer, step, steps)
            due = step % every == 0 or step == steps
            try:
                work.take(_generator(seed, _TRAINING, step), rate)
                if step - taken < most and not due and not interrupted.is_set():
                    continue
                losses = work.losses()
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} at step {step}{_kept(checkpoint)}") from None
            if not np.isfinite(losses[-1]):
                failed = taken + len(losses)
                raise FloatingPointError(f"the loss is {losses[-1]} at step {failed}{_kept(checkpoint)}")
            measured = np.nan
            if due and validation is not None:
                errors = _validation_errors(net, *validation)
                measured = float(errors.mean())
            before_them, looked = looked, time.perf_counter()
            # As many further ones as the GPU takes until the next look.
            most = max(1, min(work.capacity, int(_LOOK * (step - taken) / (looked - before_them))))
            elapsed = looked - start
            for number, loss in enumerate(losses, taken + 1):
                known = (number, loss, measured if number == step else np.nan, before + elapsed)
                for name, value in zip(COLUMNS, known, strict=True):
                    records[name].append(value)
            bar.set_postfix_str(f"loss {losses[-1]:.4f}, {(step - first) * batch / elapsed:,.0f} sets/s", refresh=False)
            bar.update(step - taken)
            taken = step
            if due or interrupted.is_set():
                save()
            enough = False
            if due and validation is not None and report is not None:
                with bar.external_write_mode(file=sys.stdout):
                    enough = report(step, errors)
            if interrupted.is_set():
                raise KeyboardInterrupt(f"stopped after step {step}{_kept(checkpoint)}")
            if isinstance(enough, (bool, np.bool_)) and enough:
                break
    return records


def _rate(schedule, optimizer, step, steps):
    """Return the learning rate of a step, or None for the optimiser's own."""
    if callable(schedule):
        return check_number(schedule(step), f"schedule({step})", minimum=0)
    return None if schedule == "constant" else cosine_rate(optimizer.learning_rate, step, steps)


def cosine_rate(learning_rate, step, steps):
    """Return the learning rate of a step, counted from 1, of ``schedule="cosine"``."""
    return learning_rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2


def _check_scheduled(optimizer, schedule):
    """Refuse an optimiser that cannot be given a learning rate for each step."""
    if schedule == "cosine" and not hasattr(optimizer, "learning_rate"):
        raise TypeError(f"schedule={schedule!r} needs an optimizer with a learning_rate, got {optimizer!r:.80}")
    try:
        with suppress(ValueError):  # compiled code need not say what it takes
            inspect.signature(optimizer.step).bind(None, None, learning_rate=0.0)
    except TypeError as error:
        raise TypeError(
            f"schedule={schedule!r} needs an optimizer with step(parameters, gradients, learning_rate=...), "
            f"got {optimizer!r:.80} ({error})"
        ) from None


def _generator(seed, stream, number=0):
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, number)))


def _check_kept(optimizer):
    """Refuse an optimiser whose state a checkpoint does not hold, or could not be given back."""
    wanted = ("steps", "state", "load_state", "config")
    if all(hasattr(optimizer, name) for name in wanted) and optimizer.config().keys() == Adam().config().keys():
        return
    raise TypeError(
        "a checkpoint holds the state of an Adam, or of what has its config(), state(), load_state() and steps; got "
        f"{optimizer!r:.80}"
    )


def _described(task):
    """Return what a checkpoint remembers of a task: its ``config()`` as it comes back from JSON, or None."""
    try:
        config = task.config()
    except (AttributeError, ValueError):  # a task of the user's own, or one with functions in it
        return None
    try:
        return json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"a checkpoint keeps what the task's config() returns as JSON, which cannot hold it: {error}"
        ) from error


def _resume(checkpoint, net, optimizer, settings):
    """Put the saved state into ``net`` and ``optimizer`` and return the history."""
    saved_net, saved_optimizer, records, saved_settings = load_checkpoint(checkpoint, net.backend)
    mine = {**optimizer.config(), **net.config(), **settings}
    theirs = {**saved_optimizer.config(), **saved_net.config(), **saved_settings}
    del mine["learning_rate"]  # which may change on the way
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{checkpoint} belongs to another run: its {name} is {theirs.get(name)!r}, here it is {value!r}"
            )
    net.parameters.update(saved_net.parameters)
    optimizer.load_state(saved_optimizer.state())
    return {name: [int(v) for v in records[name]] if name == "step" else records[name] for name in COLUMNS}


def _validation(net, task, validate, seed):
    if validate is None:
        return None
    if isinstance(validate, (tuple, list)):
        if len(validate) != 2:
            raise TypeError(f"validate must be an integer, a pair (sets, targets) or None, got {len(validate)} items")
        sets, targets = validate
    else:
        number = check_integer(validate, "validate", minimum=1)
        sets, targets = sample(task, number, _generator(seed, _VALIDATION))
    sets = net.as_sets(sets)
    targets = as_targets(targets, net.prediction_shape(sets), net.dtype)
    if (flaw := flaw_of(targets)) is not None:
        raise ValueError(f"of the targets to validate with, {flaw}")
    return sets, targets


def _validation_errors(net, sets, targets):
    """Return the mean squared error of every output, (out_features,) float64."""
    return np.square(on_host(net(sets)).astype(np.float64) - on_host(targets)).mean(axis=0)


def _kept(checkpoint):
    if checkpoint is None:
        return ""
    return f"; the last checkpoint is {checkpoint}" if checkpoint.exists() else "; no checkpoint was written yet"


@contextmanager
def _held_signals(announce):
    """Give an event that Ctrl-C or SIGTERM sets, instead of breaking off within a step; a second one does break off.

    ``announce()`` is called at the first. What a program does about SIGTERM itself stays so, and so does its being
    deaf to Ctrl-C, as what a script starts in the background is.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # only the main thread is asked about signals
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [signal.SIGTERM] if found[signal.SIGTERM] is signal.SIG_DFL else []
    if found[signal.SIGINT] not in (None, signal.SIG_IGN):  # None: not Python's, and could not be put back
        ours.append(signal.SIGINT)

    def remember(number, frame):
        interrupted.set()
        restore()
        announce()

    def restore():
        for number in ours:
            signal.signal(number, found[number])

    for number in ours:
        signal.signal(number, remember)
    try:
        yield interrupted
    finally:
        restore()
