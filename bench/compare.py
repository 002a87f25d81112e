"""Time training steps and predictions of everything in `contenders`, interleaved, and write the result as JSON.

    python bench/compare.py                                  # all networks: bench/results/networks.json
    python bench/compare.py --networks 32x3 64x4 --out FILE  # width x depth
    python bench/compare.py --quick                          # a trial of the benchmark, written nowhere

Every contender lives in a process of its own and uses all cores by itself. They take turns, so that
whatever slows the machine down slows all of them: a step or a prediction that is not timed and one that is, or several
of each if they are short. Figures are medians over the rounds, and ratios are taken within a round first.
"""

import argparse
import time
from contextlib import ExitStack

import costs
import memory
import results
import turns
from contenders import CONTENDERS, FRAMEWORKS, OURS, PRODUCTS, Case
from tqdm import tqdm
from worker import NotMeasuredError, Worker

HEADLINE = Case()
NETWORKS = ((16, 4), (32, 3), (64, 4), (128, 4), (256, 2), (512, 2), (1024, 2))
QUICK_NETWORKS = NETWORKS[::2]
# Below, the products are so thin that no BLAS comes near its best rate, and the yardstick means little.
LEAST_PRODUCTS_WIDTH = 64
# Above, frameworks take many seconds a step; we are still held against the bare products, on fewer sets.
LARGEST_FRAMEWORKS_WIDTH, LARGE_BATCH = 512, 64

LEAST_ROUNDS, MOST_ROUNDS = 7, 21
# Idle threads spin before they sleep, those of OpenBLAS for 0.1 s; the next contender should find the cores free.
PAUSE_SECONDS = 0.15


def plan(width, depth):
    """Return the case of a network and the contenders that are worth their time on it."""
    batch = HEADLINE.batch if width <= LARGEST_FRAMEWORKS_WIDTH else LARGE_BATCH
    case = HEADLINE._replace(width=width, depth=depth, batch=batch)
    if case == HEADLINE:
        return case, list(CONTENDERS)
    names = [OURS]
    if width <= LARGEST_FRAMEWORKS_WIDTH:
        names += FRAMEWORKS
    if width >= LEAST_PRODUCTS_WIDTH:
        names.append(PRODUCTS)
    return case, names


def measure(case, names, *, tasks=costs.TASKS, budget, rounds=(LEAST_ROUNDS, MOST_ROUNDS)):
    """Time the contenders on one case.

    Parameters
    ----------
    case : Case
        The network and the batch.
    names : sequence of str
        Keys of `CONTENDERS`.
    tasks : sequence of str
        Of `costs.TASKS`, one after another.
    budget : float
        Seconds for each task. There are as many rounds as fit, with one turn of each contender.
    rounds : tuple of int
        At least and at most so many rounds, however long they take.

    Returns
    -------
    dict of str to dict
        For each task what it costs on paper and ``contenders``: for each its label and either what was measured or, as
        ``not_measured``, why it was not.
    """
    failures = {}
    with ExitStack() as stack:
        workers = {}
        bar = tqdm(names, unit="contender", desc=f"setting up {case.width}x{case.depth}")
        for name in bar:
            bar.set_postfix_str(name)
            try:
                workers[name] = stack.enter_context(Worker(name, case, tasks))
            except NotMeasuredError as reason:
                failures[name] = str(reason)
        return {task: _measure_task(case, names, task, workers, failures, budget, rounds) for task in tasks}


def _measure_task(case, names, task, workers, failures, budget, rounds):
    taken = []
    end = time.monotonic() + budget
    for number in tqdm(range(rounds[1]), unit="round", desc=f"timing {case.width}x{case.depth}, {task}"):
        if number >= rounds[0] and time.monotonic() > end:
            break
        taken.append(one_round(workers, task, failures))
    found = summary({name: [seconds[name] for seconds in taken] for name in workers})
    contenders = {
        name: {"label": CONTENDERS[name].label}
        | (
            {"not_measured": failures[name]}
            if name in failures
            else workers[name].description[task] | found["contenders"][name]
        )
        for name in names
    }
    return {
        "least_bytes": costs.least_bytes(case, task),
        "layer_by_layer_bytes": costs.layer_by_layer_bytes(case, task),
        "rounds": len(taken),
        "fastest_framework": found["fastest_framework"],
        "contenders": contenders,
    }


def one_round(workers, task, failures, pause=PAUSE_SECONDS):
    """Let every worker have its turn; return the seconds, and take out workers that fail."""
    seconds = {}
    for name in list(workers):
        time.sleep(pause)
        try:
            # Training takes step after step. Meanwhile the others had the caches, and a virtual machine may have handed
            # freed memory back to its host: first steps of a turn took up to three times as long.
            workers[name].run(task, turns.SECONDS)
            seconds[name] = workers[name].run(task, turns.SECONDS)
        except NotMeasuredError as reason:
            failures[name] = str(reason)
            del workers[name]
    return seconds


def summary(seconds, ours=OURS, frameworks=FRAMEWORKS):
    """Return medians and quartiles of times and of ratios to ours, taken round by round.

    Parameters
    ----------
    seconds : dict of str to list of float
        For each contender, one number for each round.
    ours : str
        Which contender is ours.
    frameworks : sequence of str
        Which are the frameworks.

    Returns
    -------
    dict
        ``contenders``, for each its ``seconds`` and their ``ratio`` to ours (None without ours), and
        ``fastest_framework``, which has the lowest median, with the ratio of the fastest of each round.
    """
    ours = seconds.get(ours)

    def ratio(values):
        return results.quartiles([a / b for a, b in zip(values, ours, strict=True)]) if ours else None

    contenders = {
        name: {"seconds": {**results.quartiles(values), "rounds": values}, "ratio": ratio(values)}
        for name, values in seconds.items()
    }
    frameworks = [name for name in frameworks if name in seconds]
    fastest = None
    if frameworks:
        name = min(frameworks, key=lambda name: contenders[name]["seconds"]["median"])
        least = [min(times) for times in zip(*(seconds[name] for name in frameworks), strict=True)]
        fastest = {"name": name, "ratio": ratio(least)}
    return {"contenders": contenders, "fastest_framework": fastest}


def _network(text):
    try:
        width, depth = (int(number) for number in text.split("x"))
        if width < 1 or depth < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected WIDTHxDEPTH, such as 64x4, got {text!r}") from None
    return width, depth


def main():
    """Run the command line."""
    parser = results.arguments(__doc__)
    parser.add_argument("--networks", nargs="+", type=_network, metavar="WxD", help=f"default: all {len(NETWORKS)}")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: those worth their time")
    parser.add_argument("--tasks", nargs="+", choices=costs.TASKS, default=costs.TASKS)
    parser.add_argument("--budget", type=float, default=30, help="seconds for a task of a network (default 30)")
    options = parser.parse_args()
    rounds = (LEAST_ROUNDS, MOST_ROUNDS)
    if options.quick:
        rounds = (2, 3)

    result = results.start("networks", quick=options.quick)
    result["method"] = {
        "budget_seconds": options.budget,
        "least_rounds": rounds[0],
        "most_rounds": rounds[1],
        "pause_seconds": PAUSE_SECONDS,
        "order": "in turn, each in its own process; the second half of a turn is timed",
        "half_turn": f"one step or prediction, or as many as fill {turns.SECONDS} seconds",
        "ratio": f"seconds over those of {OURS} in the same round",
        "memory": f"{memory.method()}, above resident memory after the same task on two sets",
    }
    result["cases"] = []
    for network in options.networks or (QUICK_NETWORKS if options.quick else NETWORKS):
        case, names = plan(*network)
        if options.quick:
            case = case._replace(batch=8)
        found = measure(case, options.contenders or names, tasks=options.tasks, budget=options.budget, rounds=rounds)
        result["cases"].append({**case._asdict(), **found})
        for task in options.tasks:
            print(f"\nwidth {case.width}, depth {case.depth}: {task}")
            for contender in found[task]["contenders"].values():
                print(f"  {contender['label']:42}", _line(contender))
    results.write(result, options)


def _line(contender):
    if "not_measured" in contender:
        return f"not measured: {contender['not_measured']}"
    ratio = f"{contender['ratio']['median']:8.2f} x" if contender["ratio"] else ""
    return f"{1e3 * contender['seconds']['median']:8.1f} ms {ratio} {contender['peak_bytes'] / 1e6:8.1f} MB"


if __name__ == "__main__":
    main()
