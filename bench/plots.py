"""Draw the results of the benchmarks as PNG files.

    python bench/plots.py
    python bench/plots.py --results FOLDER --figures FOLDER

Every figure comes from the JSON files.
"""

import argparse
from io import BytesIO
from pathlib import Path

import costs
import results
from blocks import NETWORK, TIMES
from contenders import FRAMEWORKS, OURS, PRODUCTS
from matplotlib.figure import Figure
from PIL import Image

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
DPI, COLOURS = 110, 64
# One look for a contender in every picture.
STYLES = {
    OURS: {"color": "C3", "marker": "o", "linewidth": 2.2, "zorder": 3},
    "torch-eager": {"color": "C0", "marker": "s"},
    "torch-compile": {"color": "C9", "marker": "D"},
    "jax-jit": {"color": "C2", "marker": "^"},
    PRODUCTS: {"color": "0.35", "marker": "x", "linestyle": "--"},
}
ESTIMATOR_STYLES = {
    "optimum": {"color": "black", "marker": "o", "linewidth": 2.2, "zorder": 3},
    "gaussian-process": {"color": "C0", "marker": "s"},
    "least-squares": {"color": "C2", "marker": "^"},
    "lomb-scargle": {"color": "C9", "marker": "D"},
    "periodogram": {"color": "C4", "marker": "x"},
    "prior-mean": {"color": "0.35", "linestyle": "--"},
}
TITLES = {costs.STEP: "training step", costs.PREDICT: "prediction"}


def networks(found):
    """Return time and rate of training steps and predictions against the width."""
    cases, best = found["networks"]["cases"], found["machine_rates"]["sgemm"]["best"]
    batch = cases[0]["batch"]
    scaled = [f"{_name(case)} scaled from {case['batch']} sets" for case in cases if case["batch"] != batch]
    fewer = f" ({', '.join(scaled)})" if scaled else ""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for (above, below), task in zip(axes.T, costs.TASKS, strict=True):
        for name in (OURS, *FRAMEWORKS, PRODUCTS):
            measured = [
                (case, case[task]["contenders"][name])
                for case in cases
                if "seconds" in case[task]["contenders"].get(name, {})
            ]
            if not measured:
                continue
            widths = [case["width"] for case, _ in measured]
            times = [1e3 * one["seconds"]["median"] * batch / case["batch"] for case, one in measured]
            rates = [one["flops"] / one["seconds"]["median"] / 1e9 for _, one in measured]
            above.plot(widths, times, label=measured[0][1]["label"], **STYLES[name])
            below.plot(widths, rates, **STYLES[name])
        above.set(title=f"{TITLES[task]}, {batch} sets of {cases[0]['set_size']}", ylabel="time, ms", yscale="log")
        below.axhline(best / 1e9, color="0.35", linestyle=":", linewidth=1, label="bare SGEMM of square matrices")
        below.legend(fontsize=8)
        # fastperm leaves out zeros, which are counted: it may pass what the processor can do.
        below.set(ylabel="rate, GFLOP/s (zeros counted)", xlabel=NETWORK + fewer, xscale="log", ylim=(0, None))
        for panel in (above, below):
            _grid(panel)
    ticks = [case["width"] for case in cases]
    axes[1, 0].set_xticks(ticks, [_name(case) for case in cases])
    axes[1, 0].minorticks_off()
    axes[0, 0].legend(fontsize=8)
    return figure


def growth(found):
    """Return time against the number of elements."""
    scaling = found["scaling"]
    figure = Figure(figsize=(6.5, 4.8), layout="constrained")
    axes = figure.subplots()
    looks = zip(("C3", "C0", "C2"), "os^", strict=True)
    for one, (color, marker) in zip(scaling["growths"], looks, strict=True):
        axes.loglog(
            [point["elements"] for point in one["points"]],
            [point["seconds"]["median"] for point in one["points"]],
            color=color,
            marker=marker,
            label=f"{TITLES[one['task']]}, {one['growth']}: slope {one['slope']:.2f}",
        )
    axes.set(
        xlabel="elements in the batch",
        ylabel="time, s",
        title=f"fastperm, cpu; width {scaling['width']}, depth {scaling['depth']}",
    )
    _grid(axes)
    axes.legend(fontsize=9)
    return figure


def memory(found):
    """Return the peak memory of a training step against the number of sets."""
    case = found["memory"]["case"]
    figure = Figure(figsize=(6.5, 4.8), layout="constrained")
    axes = figure.subplots()
    ticks = set()
    for name, contender in found["memory"]["contenders"].items():
        points = [(at["batch"], at["peak_bytes"] / 1e6) for at in contender["batches"] if "peak_bytes" in at]
        ticks |= {batch for batch, _ in points}
        axes.loglog(*zip(*points, strict=True), label=contender["label"], **STYLES[name])
    axes.set_xticks(sorted(ticks), [f"{batch:,}" for batch in sorted(ticks)])
    axes.minorticks_off()
    axes.set(
        xlabel=f"sets of {case['set_size']} elements in the batch",
        ylabel="peak memory of a training step, MB",
        title=f"above data and parameters; width {case['width']}, depth {case['depth']}",
    )
    _grid(axes)
    axes.legend(fontsize=9)
    return figure


def optimum(found):
    """Return the error of the optimum and of estimators that learn nothing at each frequency, where it is not zero."""
    cases = [case for case in found["optimum"]["cases"].values() if case["k_max"] > case["set_size"]]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for panel, case in zip(axes, cases, strict=True):
        for name, one in case["estimators"].items():
            label = name.replace("-", " ")
            panel.plot(case["frequencies"], one["by_frequency"], label=label, **ESTIMATOR_STYLES[name])
        panel.set(xscale="log", yscale="log", xlabel="frequency k", ylabel="mean squared error of log $p_k$")
        panel.set_title(f"$k_{{max}}$ = {case['k_max']}, {case['set_size']} samples, {case['sets']} sets")
        ticks = [k for k in (1, 2, 4, 8, 16) if k <= case["frequencies"][-1]]
        panel.set_xticks(ticks, map(str, ticks))
        panel.minorticks_off()
        panel.label_outer()
        _grid(panel)
    axes[0].legend(fontsize=8)
    return figure


def _name(case):
    return f"{case['width']}{TIMES}{case['depth']}"


def _grid(axes):
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder (default bench/results)")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder (default docs/figures)")
    options = parser.parse_args()
    found = results.read(options.results)
    options.figures.mkdir(parents=True, exist_ok=True)
    for draw in (networks, growth, memory, optimum):
        path = options.figures / f"{draw.__name__}.png"
        drawn = BytesIO()
        draw(found).savefig(drawn, dpi=DPI)
        # Lines and letters need few colours, and the files stay small.
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(path, optimize=True)
        print(f"drawn {path}")


if __name__ == "__main__":
    main()
