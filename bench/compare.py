"""Time a training step of everything in `contenders`, interleaved, and write the result as JSON.

    python bench/compare.py                                  # the headline network
    python bench/compare.py --networks 32x3 64x4 --out FILE  # width x depth
    python bench/compare.py --quick                          # a trial of the benchmark, written nowhere

Every contender lives in a process of its own and uses all cores by itself. They take turns of two steps, of which the
second is timed, so that whatever slows the machine down slows all of them. Figures are medians over the rounds, and
ratios are taken within a round first.
"""

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import machine
import memory
from contenders import CONTENDERS, OURS, Case
from tqdm import tqdm
from worker import NotMeasuredError, Worker

RESULTS = Path(__file__).parent / "results" / "train_step.json"
# Idle OpenMP threads spin for some milliseconds before they sleep; the next contender should find the cores free.
PAUSE_SECONDS = 0.05


def measure(case, names, *, rounds, warmup):
    """Time the contenders on one case.

    Parameters
    ----------
    case : Case
        The network and the batch.
    names : sequence of str
        Keys of `CONTENDERS`.
    rounds, warmup : int
        Rounds that are timed, at one step of each contender, and rounds before those.

    Returns
    -------
    dict of str to dict
        For each contender its label and either what was measured or, as ``not_measured``, why it was not.
    """
    results = {name: {"label": CONTENDERS[name].label} for name in names}
    seconds = {name: [] for name in names}
    with ExitStack() as stack:
        workers = {}
        bar = tqdm(names, unit="contender", desc=f"setting up {case.width}x{case.depth}")
        for name in bar:
            bar.set_postfix_str(name)
            try:
                workers[name] = stack.enter_context(Worker(name, case))
            except NotMeasuredError as reason:
                results[name]["not_measured"] = str(reason)
        for number in tqdm(range(-warmup, rounds), unit="round", desc=f"timing {case.width}x{case.depth}"):
            for name in list(workers):
                time.sleep(PAUSE_SECONDS)
                try:
                    # Training takes step after step. Meanwhile the others had the caches, and a virtual machine may
                    # have handed freed memory back to its host: first steps of a turn took up to three times as long.
                    workers[name].step()
                    elapsed = workers[name].step()
                except NotMeasuredError as reason:
                    results[name]["not_measured"] = str(reason)
                    del workers[name]
                    continue
                if number >= 0:
                    seconds[name].append(elapsed)
        for name, worker in workers.items():
            results[name] |= worker.description | summary(seconds[name], seconds[OURS] if OURS in workers else None)
            results[name]["sets_per_second"] = case.batch / results[name]["seconds"]["median"]
    return results


def summary(seconds, ours):
    """Return median and quartiles of the seconds, and of their ratio to ours round by round (None without ours)."""
    found = {"seconds": {**_quartiles(seconds), "rounds": seconds}, "ratio": None}
    if ours is not None:
        found["ratio"] = _quartiles([a / b for a, b in zip(seconds, ours, strict=True)])
    return found


def _quartiles(values):
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


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
    headline = Case()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", type=_network, metavar="WxD", default=[(headline.width, headline.depth)]
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds (default 21)")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before those (default 3)")
    parser.add_argument("--quick", action="store_true", help="small batch, 3 rounds; written only where --out says")
    parser.add_argument("--out", type=Path, help="JSON file (default bench/results/train_step.json)")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.warmup < 0:
        parser.error("--rounds must be at least 2 and --warmup at least 0")
    rounds, warmup, batch = arguments.rounds, arguments.warmup, headline.batch
    if arguments.quick:
        rounds, warmup, batch = 3, 1, 16
    out = arguments.out or (None if arguments.quick else RESULTS)

    started = datetime.now(UTC)
    cases = []
    for width, depth in arguments.networks:
        case = headline._replace(width=width, depth=depth, batch=batch)
        measured = measure(case, arguments.contenders, rounds=rounds, warmup=warmup)
        cases.append({**case._asdict(), "contenders": measured})
    results = {
        "benchmark": "train_step",
        "date": started.isoformat(timespec="seconds"),
        **machine.describe(),
        "method": {
            "rounds": rounds,
            "warmup_rounds": warmup,
            "pause_seconds": PAUSE_SECONDS,
            "quick": arguments.quick,
            "order": "in turn, each in its own process; of the two steps of a turn the second is timed",
            "ratio": f"seconds over those of {OURS} in the same round",
            "memory": f"{memory.method()}, above resident memory after a step on two sets",
        },
        "cases": cases,
    }
    for case in cases:
        print(f"\nwidth {case['width']}, depth {case['depth']}")
        for contender in case["contenders"].values():
            print(f"  {contender['label']:42}", _line(contender))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"\nwritten to {out}")


def _line(contender):
    if "not_measured" in contender:
        return f"not measured: {contender['not_measured']}"
    ratio = f"{contender['ratio']['median']:8.2f} x" if contender["ratio"] else ""
    return (
        f"{1e3 * contender['seconds']['median']:8.1f} ms {ratio} {contender['parameters']:9,} parameters "
        f"{contender['peak_bytes'] / 1e6:8.1f} MB"
    )


if __name__ == "__main__":
    main()
