"""What a step of `fastperm.train` takes on a GPU, drawing the batch included; part of `gpu`.

Three ways take turns: batches that the host draws, as they were before there were kernels for it; batches that the GPU
draws, the host waiting for each loss; and such steps queued as one CUDA graph. The last is what `train` does.
"""

import time
from itertools import count

import numpy as np
import results
from contenders import Case

from fastperm import Adam
from fastperm.steps import Steps, train_step

CASES = tuple(Case(width=width, depth=4, dtype="float32") for width in (16, 32, 64, 128))
HOST, WAITING, QUEUED = "the host", "the GPU, each waited for", "the GPU, queued"
WAYS = (HOST, WAITING, QUEUED)
ROUNDS, SECONDS = 5, 0.1


def measure(out, cases=CASES, *, rounds=ROUNDS, seconds=SECONDS):
    """Measure, for each case, the seconds of a step by each way: quartiles over the rounds.

    They are returned, and added to the result in a file after each case.

    Parameters
    ----------
    out : path-like
        A JSON file, as `results.add` takes it.
    cases : sequence of Case
    rounds : int
        Rounds in which all ways take turns.
    seconds : float
        Of a turn, at least.
    """
    found = []
    for case in cases:
        ways = _ways(case)
        for step in ways.values():
            _turn(step, 0, least=4)
        taken = [{name: _turn(step, seconds) for name, step in ways.items()} for _ in range(rounds)]
        found.append(
            {
                **case._asdict(),
                "rounds": rounds,
                "seconds": {name: results.quartiles([of_round[name] for of_round in taken]) for name in ways},
            }
        )
        results.add(out, training=found)
    return found


def _ways(case):
    """Return functions that take so many steps and wait for their losses, each with a network of its own."""
    generators = map(np.random.default_rng, count())

    def one_by_one(task):
        net, optimizer = case.network("cuda"), Adam()

        def take(steps):
            for _ in range(steps):
                train_step(net, *task.sample(case.batch, next(generators)), optimizer)

        return take

    def queued(task):
        work = Steps(case.network("cuda"), task, Adam(), case.batch)

        def take(steps):
            for _ in range(steps):
                work.take(next(generators))
            work.losses()

        return take

    on_gpu = case.task().to("cuda")
    return {HOST: one_by_one(case.task()), WAITING: one_by_one(on_gpu), QUEUED: queued(on_gpu)}


def _turn(take, seconds, least=1):
    """Take steps until so much time has passed, more at a time as it goes on; return the seconds of a step."""
    steps, taken, start = least, 0, time.perf_counter()
    while True:
        take(steps)
        taken += steps
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return elapsed / taken
        steps = min(2 * steps, 256)
