"""Time training steps and predictions on a GPU, ours beside PyTorch and JAX, interleaved; part of `gpu`.

Contenders live in processes of their own, as in `compare`, and take turns. All of them set a case up at the same time,
within a share of the time that is left; who is not ready by then is left out of it, and, unless it was the first, of
those after it.
"""

import time
from contextlib import ExitStack

import compare
import costs
import results
import turns
from contenders import CONTENDERS_ON_GPU, FRAMEWORKS_ON_GPU, OURS_ON_GPU, Case
from gpu_worker import TOO_SLOW, GpuWorker
from worker import NotMeasuredError

PRECISIONS = ("float32", "tf32", "bfloat16")
WIDTHS = (64, 16, 32, 128, 512, 2048)  # the headline network first
CASES = tuple(Case(width=width, precision=precision) for precision in PRECISIONS for width in WIDTHS)
# Sets up after the others: it tries out products on all processors.
SLOW = ("torch-compile",)
STAND_IN = "fastperm-reference"  # for a framework, where the program is tried out
ROUNDS = (5, 15)  # at least, however long they take, and at most
# Of the time that a case has: for imports and compilation, and for rounds.
SET_UP_SHARE, LEAST_SHARE = 0.7, 3


def measure(cases, names, seconds, out, *, frameworks=FRAMEWORKS_ON_GPU, rounds=ROUNDS):
    """Time the contenders on the cases and add what was found to the result in a file after each.

    Parameters
    ----------
    cases : sequence of Case
    names : sequence of str
        Keys of `CONTENDERS_ON_GPU`.
    seconds : float
        For all of it.
    out : path-like
        A JSON file, as `results.add` takes it.
    frameworks : sequence of str
        Which of them are held against ours.
    rounds : tuple of int
        At least and at most so many rounds.
    """
    end, found = time.monotonic() + seconds, []
    with ExitStack() as stack:
        workers, too_slow, tried = {}, {}, set()
        for number, case in enumerate(cases):
            # Those who have only begun have to import their framework first.
            begun = {name for name, worker in workers.items() if worker.precision == case.precision}
            shares = 1 if begun else 2
            share = shares * (end - time.monotonic()) / (len(cases) - number + shares - 1)
            if share < LEAST_SHARE:
                print(f"no time was left for width {case.width}, {case.precision}, and after it")
                break
            if not begun:
                for worker in workers.values():
                    worker.close()
                too_slow.clear()
                tried.clear()
            for name in names:
                # What went wrong on a GPU stays with the process.
                if name not in too_slow and (name not in begun or workers[name].failed):
                    workers[name] = stack.enter_context(GpuWorker(name, case.precision))
            running = {name: worker for name, worker in workers.items() if name not in too_slow}
            ready, failures, described = _set_up(case, running, share * SET_UP_SHARE)
            # At their first case they had to be imported, too: that says little of the next one.
            too_slow |= {
                name: why
                for name, why in failures.items()
                if why.startswith(TOO_SLOW) and name in tried and name != OURS_ON_GPU
            }
            tried |= running.keys()
            failures = {**too_slow, **failures}
            tasks = {
                task: _time(case, task, ready, failures, described, names, frameworks, share, rounds)
                for task in (costs.STEP, costs.PREDICT)
            }
            found.append({**case._asdict(), **tasks})
            results.add(out, cases=found)
            print(f"\nwidth {case.width}, depth {case.depth}, {case.precision}", flush=True)
            for task, of_task in tasks.items():
                for contender in of_task["contenders"].values():
                    print(f"  {task:8} {contender['label']:50}", _line(contender), flush=True)
    return found


def _set_up(case, workers, seconds):
    """Return the workers that have set the case up in time, why the others have not, and what those say."""
    end = time.monotonic() + seconds
    ready, failures, described = {}, {}, {}
    for together in ([name for name in workers if name not in SLOW], [name for name in workers if name in SLOW]):
        for name in together:
            workers[name].ask(case)
        for name in together:
            try:
                described[name] = workers[name].answer(end - time.monotonic())
                ready[name] = workers[name]
            except NotMeasuredError as reason:
                failures[name] = str(reason)
    return ready, failures, described


def _time(case, task, ready, failures, described, names, frameworks, share, rounds):
    """Return the measurement of one task."""
    end, taken = time.monotonic() + share * (1 - SET_UP_SHARE) / len(costs.TASKS), []
    running, failures = dict(ready), dict(failures)
    least, most = rounds
    while len(taken) < most and (len(taken) < least or time.monotonic() < end):
        taken.append(compare.one_round(running, task, failures, pause=0))
        if not running or (len(taken) >= 2 and time.monotonic() > end + share):  # a case far slower than it should be
            break
    found = compare.summary(
        {name: [of_round[name] for of_round in taken] for name in running}, OURS_ON_GPU, frameworks
    ) if running else {"contenders": {}, "fastest_framework": None}  # fmt: skip
    contenders = {}
    for name in names:
        contender = CONTENDERS_ON_GPU[name]
        contenders[name] = {"label": contender.label} | (
            {"not_measured": failures[name]}
            if name in failures
            else described[name] | {"flops": contender.flops(case, task)} | found["contenders"][name]
        )
    return {
        "rounds": len(taken),
        "half_turn_seconds": turns.SECONDS,
        "fastest_framework": found["fastest_framework"],
        "contenders": contenders,
    }


def _line(contender):
    if "not_measured" in contender:
        return f"not measured: {contender['not_measured']}"
    ratio = f"{contender['ratio']['median']:8.2f} x" if contender["ratio"] else ""
    median = contender["seconds"]["median"]
    return f"{1e3 * median:9.3f} ms {contender['flops'] / median / 1e12:7.2f} TFLOP/s {ratio}"
