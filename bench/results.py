"""Results on disk: JSON that holds the figures beside the machine, the versions and the method."""

import argparse
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path

import machine

from fastperm.files import replacing

FOLDER = Path(__file__).parent / "results"


def arguments(description):
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial of the benchmark; written only where --out says")
    parser.add_argument("--out", type=Path, help="JSON file (default: in bench/results)")
    return parser


def start(benchmark, *, quick):
    """Return the head of a result: what it is, when it was measured and on what."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"benchmark": benchmark, "date": now, "quick": quick, **machine.describe()}


def write(result, options):
    """Write a result where the options say; a quick trial goes nowhere by itself."""
    out = options.out or (None if options.quick else FOLDER / f"{result['benchmark']}.json")
    if out is not None:
        store(result, out)
        print(f"written to {out}")


def store(result, path):
    """Write a result, or what there is of it so far."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def add(path, **parts):
    """Add parts to the result in a file."""
    store(load(path) | parts, path)


def load(path):
    """Return the result in a file."""
    return json.loads(path.read_text())


def read(folder):
    """Return all results in a folder, by the name of their benchmark."""
    found = map(load, sorted(folder.glob("*.json")))
    return {result["benchmark"]: result for result in found if "benchmark" in result}


def quartiles(values):
    """Return median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}
