"""The figures of the paper, drawn from the CSV files that `fastperm.paper` writes."""

import re
from pathlib import Path

import numpy as np

from fastperm import figures, paper
from fastperm.figures import BLUE, FAR_BELOW, GREY, ORANGE, label_plainly, picture

_LOOKS = {"plain": {"color": BLUE, "marker": "o"}, "circle": {"color": ORANGE, "marker": "s"}}
_TITLES = {"plain": "plain network", "circle": "angular network"}
_MARKERS = "osD^vPX*"

_ERROR = "mean squared error of log $p_k$"


def draw(number, folder):
    """Draw ``figure-N.png`` from ``figure-N.csv`` in a folder.

    Parameters
    ----------
    number : {1, 2, 3, 4, 5}
        The figure.
    folder : path-like
        Where the CSV files are.

    Returns
    -------
    pathlib.Path
        The picture.

    Raises
    ------
    FileNotFoundError, ValueError
        If a CSV file is missing or damaged.
    """
    folder = Path(folder)
    comments, rows = paper.read(folder / f"figure-{number}.csv")
    path = folder / f"figure-{number}.png"
    caption = "" if number == 1 else _caption(comments, rows)
    if number == 1:
        _samples(path, rows)
    elif number == 2:
        _sizes(path, rows, caption)
    elif number == 3:
        _frequencies(path, rows, caption)
    elif number == 4:
        _set_sizes(path, rows, caption)
    else:
        _estimates(path, rows, paper.read(folder / "figure-5-estimates.csv")[1], caption)
    return path


def _caption(comments, rows):
    """Return what was computed, in words."""
    row = rows[0]
    networks = len({row["seed"] for row in rows})
    found = re.search(r"--scale (\w+)", comments["command"])
    scale = found[1] if found else "unknown"
    several = f"mean and range of {networks} networks each, " if networks > 1 else "one network each, "
    return (
        f'scale "{scale}": {several}{row["steps"]:,} steps of {row["batch"]} functions, '
        f"{row['set_size']} samples each; {row['test_sets']:,} test functions"
    )


def _chosen(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _values(rows, name):
    """Return the different values of a column, in order."""
    return sorted({row[name] for row in rows})


def _networks(rows):
    return [name for name in paper.NETWORKS if any(row["network"] == name for row in rows)]


def _line(axes, rows, x, **looks):
    """Draw the mean error of the networks at each x, and the range of their errors."""
    places = _values(rows, x)
    errors = [[row["mean_squared_error"] for row in _chosen(rows, **{x: place})] for place in places]
    means = np.array([np.mean(one) for one in errors])
    ranges = [means - [min(one) for one in errors], [max(one) for one in errors] - means]
    axes.errorbar(
        *(places, means, ranges), linewidth=1.5, markersize=4.5, elinewidth=0.9, markeredgecolor="white", **looks
    )


def _frame(axes, rows, x):
    """Finish a panel of errors: its scales, and the lines of the prior mean and of the optimum."""
    prior, optimum = rows[0]["prior_mean_error"], max(row["optimum_error"] for row in rows)
    axes.set(xscale="log", yscale="log", xlabel=x)
    axes.axhline(prior, color="black", linestyle="--", linewidth=1.1, label=f"prior mean,\n{prior:.3f}", zorder=1)
    if optimum >= FAR_BELOW * min(row["mean_squared_error"] for row in rows):
        axes.axhline(optimum, color="black", linewidth=1.3, label="optimum", zorder=1)
    else:
        text = f"optimum: {'< 1e-12' if optimum < 1e-12 else f'{optimum:.1g}'}, far below ↓"
        axes.annotate(text, (0.02, 0.015), xycoords="axes fraction", fontsize=8)
    _ticks(axes, _values(rows, x))
    label_plainly(axes.yaxis)
    axes.grid(axis="y", which="both", color="0.92")


def _limit(panels, rows):
    """Give panels that share an axis of errors room for all of them, and for the notes."""
    errors = [row[name] for row in rows for name in ("mean_squared_error", "prior_mean_error")]
    smallest = min(errors)
    optimum = max(row["optimum_error"] for row in rows)
    if optimum >= FAR_BELOW * smallest:
        smallest = min(smallest, optimum)
    span = max(errors) / smallest
    panels[0].set_ylim(smallest / (1.1 * span**0.12), max(errors) * 1.1 * span**0.05)


def _ticks(axes, places):
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.set_xticks([], minor=True)


def _shades(n):
    """Return n colours from dark to light, which are told apart in grey as well."""
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](fraction) for fraction in np.linspace(0.05, 0.85, max(n, 2))[:n]]


def _samples(path, rows):
    functions = []
    for k_max in _values(rows, "k_max"):
        columns = [
            [row[name] for row in _chosen(rows, k_max=k_max, what=what)]
            for what in ("function", "sample")
            for name in ("x", "f")
        ]
        functions.append((k_max, *columns))
    figures.samples(path, functions)


def _sizes(path, rows, caption):
    """Draw Fig. 2: errors against the width, a line for each depth, and the other way round."""
    rows = _chosen(rows, k="all")
    networks = _networks(rows)
    with picture(path, (9.6, 0.7 + 3.7 * len(networks))) as figure:
        panels = figure.subplots(len(networks), 2, squeeze=False, sharey="row")
        for pair, network in zip(panels, networks, strict=True):
            own = _chosen(rows, network=network)
            for axes, (x, other) in zip(pair, (("width", "depth"), ("depth", "width")), strict=True):
                values = _values(own, other)
                for value, color, marker in zip(values, _shades(len(values)), _MARKERS, strict=False):
                    looks = {"color": color, "marker": marker, "label": f"{other} {value}"}
                    _line(axes, _chosen(own, **{other: value}), x, **looks)
                _frame(axes, own, x)
                axes.set_title(f"{_TITLES[network]}: error against {x}")
                _legend(axes)
            pair[0].set_ylabel(f"{_ERROR}, all $k$")
            _limit(pair, own)
        figure.suptitle(_headline(rows, caption), fontsize="medium")


def _frequencies(path, rows, caption):
    """Draw Fig. 3: errors against the width at single frequencies, a line for each depth."""
    networks, ks = _networks(rows), _values(rows, "k")
    with picture(path, (10.4, 0.7 + 3.4 * len(networks))) as figure:
        panels = figure.subplots(len(networks), len(ks), squeeze=False, sharey="row")
        for line, network in zip(panels, networks, strict=True):
            own = _chosen(rows, network=network)
            depths = _values(own, "depth")
            for axes, k in zip(line, ks, strict=True):
                for depth, color, marker in zip(depths, _shades(len(depths)), _MARKERS, strict=False):
                    looks = {"color": color, "marker": marker, "label": f"depth {depth}"}
                    _line(axes, _chosen(own, depth=depth, k=k), "width", **looks)
                _frame(axes, _chosen(own, k=k), "width")
                axes.set_title(f"{_TITLES[network]}, $k$ = {k}")
            line[0].set_ylabel(_ERROR)
            _limit(line, own)
            _legend(line[-1])
        figure.suptitle(_headline(rows, caption), fontsize="medium")


def _set_sizes(path, rows, caption):
    """Draw Fig. 4: errors of networks on sets of other sizes than in training, and those of the optimum."""
    rows = _chosen(rows, k="all")
    k_maxes = _values(rows, "k_max")
    with picture(path, (9.6, 4.6)) as figure:
        panels = figure.subplots(1, len(k_maxes), squeeze=False, sharey=True)[0]
        smallest, largest = (pick(row["mean_squared_error"] for row in rows) for pick in (min, max))
        floor = FAR_BELOW / 4 * smallest
        for axes, k_max in zip(panels, k_maxes, strict=True):
            own = _chosen(rows, k_max=k_max)
            sizes = _values(own, "test_set_size")
            for network in _networks(own):
                looks = {**_LOOKS[network], "label": _TITLES[network]}
                _line(axes, _chosen(own, network=network), "test_set_size", **looks)
            optimum = [_chosen(own, test_set_size=size)[0]["optimum_error"] for size in sizes]
            axes.plot(sizes, np.maximum(optimum, 1e-30), color="black", marker="o", markersize=3.5, label="optimum")
            axes.set(xscale="log", yscale="log", xlabel="samples of each test function")
            axes.set_ylim(floor, 1.6 * max(largest, own[0]["prior_mean_error"]))
            prior = own[0]["prior_mean_error"]
            axes.axhline(prior, color="black", linestyle="--", linewidth=1.1, label=f"prior mean, {prior:.3f}")
            axes.axvline(own[0]["set_size"], color=GREY, linestyle=":", linewidth=1.1, label="samples in training")
            below = [size for size, error in zip(sizes, optimum, strict=True) if error < floor]
            if below:
                much = "optimum < 1e-12" if max(optimum[-len(below) :]) < 1e-12 else "optimum below"
                text = f"{much}\nfrom {below[0]} samples on ↓"
                axes.annotate(text, (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize=8)
            axes.set_title(f"$k_{{\\mathrm{{max}}}}$ = {k_max}")
            _ticks(axes, sizes[::2])
            label_plainly(axes.yaxis)
            axes.grid(axis="y", color="0.92")
        panels[0].set_ylabel(f"{_ERROR}, $k$ = 1 … {rows[0]['k_fin']}")
        figure.legend(*_networks_first(panels[0]), loc="outside lower center", ncols=5)
        figure.suptitle(caption, fontsize="medium")


def _estimates(path, rows, points, caption):
    """Draw Fig. 5: estimated against true log p_k, at other k_max than in training."""
    networks, k_maxes = _networks(points), _values(points, "test_k_max")
    ks = _values(points, "k")
    with picture(path, (10.4, 0.9 + 3.3 * len(networks))) as figure:
        panels = figure.subplots(len(networks), len(k_maxes), squeeze=False, sharex=True, sharey=True)
        every = [row[name] for row in points for name in ("truth", "estimate")]
        limits = min(every) - 0.5, max(every) + 0.5
        for line, network in zip(panels, networks, strict=True):
            for axes, k_max in zip(line, k_maxes, strict=True):
                axes.plot(limits, limits, color="black", linewidth=1, zorder=1)
                shown = _chosen(points, network=network, test_k_max=k_max)
                dots = axes.scatter(
                    *([row[name] for row in shown] for name in ("truth", "estimate")),
                    c=[row["k"] for row in shown],
                    cmap="viridis",
                    s=5,
                    alpha=0.6,
                    linewidths=0,
                )
                errors = _chosen(rows, network=network, test_k_max=k_max, k="all")
                mean = np.mean([row["mean_squared_error"] for row in errors])
                optimum, prior = errors[0]["optimum_error"], errors[0]["prior_mean_error"]
                least = "< 1e-12" if optimum < 1e-12 else f"{optimum:.2g}"
                axes.set(xlim=limits, ylim=limits)
                axes.set_title(f"{_TITLES[network]}, tested at $k_{{\\mathrm{{max}}}}$ = {k_max}")
                text = f"mean squared error {mean:.3g}\noptimum {least}\nprior mean {prior:.3f}"
                axes.annotate(text, (0.97, 0.03), xycoords="axes fraction", ha="right", fontsize=8.5)
            line[0].set_ylabel("estimated log $p_k$")
        for axes in panels[-1]:
            axes.set_xlabel("true log $p_k$")
        bar = figure.colorbar(dots, ax=panels, label="frequency $k$", ticks=ks, shrink=0.7)
        bar.solids.set_alpha(1)
        trained = f"trained at $k_{{\\mathrm{{max}}}}$ = {rows[0]['k_max']}"
        trained += f"; dots: {len(_values(points, 'set'))} functions, one network"
        caption = caption.replace("mean and range", "errors are the mean").replace("networks each", "networks")
        figure.suptitle(f"{trained}\n{caption}", fontsize="medium")


def _headline(rows, caption):
    row = rows[0]
    return f"$k_{{\\mathrm{{max}}}}$ = {row['k_max']}; {caption}"


def _legend(axes):
    handles = _networks_first(axes)
    axes.legend(*handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)


def _networks_first(axes):
    """Return handles and labels of a legend, with the lines that frame the results after those of the networks."""
    pairs = zip(*axes.get_legend_handles_labels(), strict=True)
    frame = ("optimum", "prior mean", "samples in")
    return zip(*sorted(pairs, key=lambda pair: pair[1].startswith(frame)), strict=True)
