"""Time against the number of elements T, from 10⁴ to 10⁷, written as JSON with the slope in double logarithms.

    python bench/scaling.py                    # bench/results/scaling.json
    python bench/scaling.py --most 1e6 --out FILE
    python bench/scaling.py --quick            # a trial, written nowhere

Training steps and predictions of more and more sets of 512 elements, and predictions of one set that grows. Sizes take
turns. On paper the work is proportional to T: the slope is 1.
"""

import statistics

import costs
import memory
import numpy as np
import results
from contenders import Case, Ours
from scipy.stats import linregress
from tqdm import tqdm
from turns import SECONDS, half_turn

SETS, ONE_SET = f"sets of {Case().set_size}", "one set"
GROWTHS = ((costs.STEP, SETS), (costs.PREDICT, SETS), (costs.PREDICT, ONE_SET))
LEAST, MOST, STEPS_PER_DECADE = 1e4, 1e7, 2


def sizes(most):
    """Return numbers of elements from LEAST to most, evenly spaced in their logarithm."""
    steps = round(STEPS_PER_DECADE * np.log10(most / LEAST))
    return [round(float(size)) for size in np.geomspace(LEAST, most, steps + 1)]


def case_of(elements, growth):
    """Return the case with about so many elements, in whole sets."""
    if growth == ONE_SET:
        return Case(set_size=elements, batch=1)
    return Case(batch=max(1, round(elements / Case().set_size)))


def measure(growth, task, cases, rounds):
    """Return the time and the peak memory of each case and the slope of time against elements."""
    work = [_work(case, task) for case in cases]
    for function in work:
        function()  # code for small and for large batches is there
    baseline = memory.resident()
    peaks = [memory.peak(function) - baseline for function in work]
    seconds = [[] for _ in cases]
    for _ in tqdm(range(rounds), unit="round", desc=f"{task}, {growth}"):
        for times, function in zip(seconds, work, strict=True):
            half_turn(function)
            times.append(half_turn(function))
    elements = [case.batch * case.set_size for case in cases]
    medians = [statistics.median(times) for times in seconds]
    line = linregress(np.log10(elements), np.log10(medians))
    return {
        "task": task,
        "growth": growth,
        "points": [
            {"elements": T, "sets": case.batch, "peak_bytes": max(0, peak), "seconds": _spread(times)}
            for T, case, peak, times in zip(elements, cases, peaks, seconds, strict=True)
        ],
        "slope": line.slope,
        "slope_error": line.stderr,
    }


def _work(case, task):
    """Return a function that does the task once."""
    ours = Ours(case.network("cpu"))
    sets, targets = ours.batch(*case.sample())

    def once():
        return ours.step(sets, targets) if task == costs.STEP else ours.predict(sets)

    return once


def _spread(times):
    return {**results.quartiles(times), "rounds": times}


def main():
    """Run the command line."""
    parser = results.arguments(__doc__)
    parser.add_argument("--most", type=float, default=MOST, help=f"elements at most (default {MOST:g})")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    options = parser.parse_args()
    if options.most <= LEAST:
        parser.error(f"--most must be above {LEAST:g}")
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    most, rounds = (10 * LEAST, 2) if options.quick else (options.most, options.rounds)
    result = results.start("scaling", quick=options.quick)
    case = Case()
    result["method"] = {
        "rounds": rounds,
        "order": "sizes in turn; the second half of a turn is timed",
        "half_turn": f"one step or prediction, or as many as fill {SECONDS} seconds",
        "slope": "of log10 of the median seconds against log10 of the elements, by least squares, with standard error",
        "memory": f"{memory.method()}, above resident memory with the data of all sizes",
    }
    result |= {"width": case.width, "depth": case.depth, "dtype": case.dtype}
    result["growths"] = [
        measure(growth, task, [case_of(T, growth) for T in sizes(most)], rounds) for task, growth in GROWTHS
    ]
    for found in result["growths"]:
        print(f"\n{found['task']}, {found['growth']}: slope {found['slope']:.3f} ± {found['slope_error']:.3f}")
        for point in found["points"]:
            seconds = point["seconds"]["median"]
            print(
                f"  {point['elements']:10,} elements {1e3 * seconds:10.2f} ms "
                f"{1e9 * seconds / point['elements']:6.1f} ns/element {point['peak_bytes'] / 1e6:8.1f} MB"
            )
    results.write(result, options)


if __name__ == "__main__":
    main()
