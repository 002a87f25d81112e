"""Write the results of `compare` into the README, between its markers, as a Markdown table.

    python bench/table.py [--results bench/results/train_step.json] [--readme README.md]

Every figure comes from the JSON file.
"""

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADER = """\
| a training step | time | against ours | parameters | memory |
|---|---:|---:|---:|---:|"""


def block(results):
    """Return the Markdown of all cases of a result of `compare`."""
    parts = []
    for case in results["cases"]:
        rows = [_row(name, contender) for name, contender in case["contenders"].items()]
        parts.append("\n".join([_caption(case), "", HEADER, *rows]))
    return "\n\n".join([*parts, _footnote(results)])


def rewritten(text, results):
    """Return ``text`` with the block between the markers of this benchmark replaced.

    Raises
    ------
    ValueError
        If the markers are not there exactly once.
    """
    begin, end = f"<!-- bench:{results['benchmark']} -->", "<!-- /bench -->"
    pattern = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    text, replaced = pattern.subn(lambda found: f"{found[1]}{block(results)}\n{found[2]}", text)
    if replaced != 1:
        raise ValueError(f"expected one block from {begin} to {end}, each at the start of a line, found {replaced}")
    return text


def _caption(case):
    return (
        f"Width {case['width']}, depth {case['depth']}; {case['batch']} sets of {case['set_size']} elements; "
        f"{case['dtype']}:"
    )


def _row(name, contender):
    label = f"**{contender['label']}**" if name.startswith("fastperm") else contender["label"]
    if "not_measured" in contender:
        reason = contender["not_measured"].replace("|", "\\|")
        return f"| {label} | not measured: {reason} | | | |"
    seconds = contender["seconds"]
    ratio = f"{_significant(contender['ratio']['median'])} \N{MULTIPLICATION SIGN}" if contender["ratio"] else ""
    quartiles = "\N{EN DASH}".join(_milliseconds(seconds[name]) for name in ("q1", "q3"))
    return (
        f"| {label} | {_milliseconds(seconds['median'])} ms ({quartiles}) "
        f"| {ratio} | {contender['parameters']:,} | {contender['peak_bytes'] / 1e6:,.0f} MB |"
    )


def _footnote(results):
    method, machine, versions = results["method"], results["machine"], results["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    settings = ", ".join(f"{name}={value}" for name, value in results["environment"].items())
    return (
        f"Forward, loss, backward and Adam; median (quartiles) of {method['rounds']} rounds in which all take "
        f"turns, on {machine['cores']} cores of {machine['cpu']} ({machine['microarchitecture']}), "
        f"{results['date'][:10]}. Against ours: time over that of fastperm, cpu, in the same round. "
        f"Memory: what a step holds at its peak above data, parameters and code. {packages}."
        + (f" Environment: {settings}." if settings else "")
        + (" **A quick trial of the benchmark, not a result.**" if method["quick"] else "")
    )


def _milliseconds(seconds):
    return _significant(1e3 * seconds)


def _significant(value):
    """Return a number with three significant digits, without exponent."""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "train_step.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    text = arguments.readme.read_text()
    try:
        arguments.readme.write_text(rewritten(text, results))
    except ValueError as error:
        parser.error(f"{arguments.readme}: {error}")


if __name__ == "__main__":
    main()
