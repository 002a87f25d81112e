"""Measure the peak memory of a training step against the number of sets, written as JSON.

    python bench/memory_growth.py          # bench/results/memory.json
    python bench/memory_growth.py --quick  # a trial, written nowhere

One process at a time, each for one contender and one batch.
"""

import costs
import memory
import results
from contenders import CONTENDERS, OURS, Case
from tqdm import tqdm
from worker import NotMeasuredError, Worker

CASE = Case(width=256, depth=4)
BATCHES = (256, 1024, 4096)
NAMES = (OURS, "torch-eager", "torch-compile")
MARGIN = 1.2  # a batch is tried where so many times what it should need is free


def measure(case, names, batches):
    """Return for each contender its label and, for each batch, the peak memory or why it was not measured."""
    found = {name: {"label": CONTENDERS[name].label, "batches": []} for name in names}
    for name, batch in tqdm([(name, batch) for name in names for batch in batches], unit="process"):
        before = found[name]["batches"]
        before.append({"batch": batch, **_peak(name, case._replace(batch=batch), before)})
    return found


def _peak(name, case, before):
    """Measure one batch, if it should fit judging by the one before: a step that swaps, or is killed, tells nothing."""
    if before:
        if "peak_bytes" not in before[-1]:
            return {"not_measured": "fewer sets were too many"}
        expected = before[-1]["peak_bytes"] * case.batch / before[-1]["batch"]
        free = memory.free()
        if MARGIN * expected > free:
            return {"not_measured": f"should need {expected / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"}
    try:
        with Worker(name, case, (costs.STEP,)) as worker:
            return {"peak_bytes": worker.description[costs.STEP]["peak_bytes"]}
    except NotMeasuredError as reason:
        return {"not_measured": str(reason)}


def main():
    """Run the command line."""
    options = results.arguments(__doc__).parse_args()
    result = results.start("memory", quick=options.quick)
    case, batches = (CASE._replace(width=16), (4, 8)) if options.quick else (CASE, BATCHES)
    result["method"] = {"memory": f"{memory.method()}, above resident memory after a step on two sets"}
    result["case"] = case._asdict()
    result["contenders"] = measure(case, NAMES, batches)
    for contender in result["contenders"].values():
        print(contender["label"])
        for row in contender["batches"]:
            peak = f"{row['peak_bytes'] / 1e6:8,.1f} MB" if "peak_bytes" in row else row["not_measured"]
            print(f"  {row['batch']:6} sets  {peak}")
    results.write(result, options)


if __name__ == "__main__":
    main()
