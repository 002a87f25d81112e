"""Pictures of what was trained and estimated. They draw what they are given, to a file, without a display.

matplotlib is imported when a picture is drawn: everything else works without it.
"""

import contextlib

import numpy as np

from fastperm.files import replacing

# Okabe & Ito: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_OTHERS = (BLUE, GREEN, "#56B4E9", "#CC79A7", GREY)

_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "font.size": 9.5,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
# An optimum below this part of the smallest error drawn is named at the foot of the axis, not drawn.
FAR_BELOW = 0.02
_PANELS = 6
_TICKS = [0, np.pi / 2, np.pi, 3 * np.pi / 2, 2 * np.pi], ["0", "π/2", "π", "3π/2", "2π"]


def available():
    """Return whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def learning_curve(path, history, *, prior_error=None, optimum_error=None, target="log $p_k$"):
    """Draw the loss against the step.

    Parameters
    ----------
    path : str or path-like
        PNG file to write.
    history : dict of str to list
        As `fastperm.train` returns it: ``step``, ``loss`` and ``validation_loss``.
    prior_error : float or None, default None
        Error of ignoring the data, drawn as a line.
    optimum_error : float or None, default None
        Error of the best estimate that is possible: a line, or a note where it is far below everything else.
    target : str, default "log $p_k$"
        What the network estimates, for the axis.
    """
    steps, losses, measured = (np.asarray(history[name], float) for name in ("step", "loss", "validation_loss"))
    validated = np.isfinite(measured)
    with picture(path, (7.2, 4.4)) as figure:
        axes = figure.subplots()
        axes.plot(steps, losses, color=BLUE, alpha=0.4, linewidth=0.8, label="training (each batch)")
        if (window := len(losses) // 40) > 1:
            means = np.convolve(losses, np.full(window, 1 / window), "valid")
            axes.plot(steps[window - 1 :], means, color=BLUE, linewidth=1.6, label=f"training (mean of {window})")
        axes.plot(
            *(steps[validated], measured[validated]),
            color=ORANGE,
            linewidth=1.6,
            marker="o" if validated.sum() <= 60 else "",
            markersize=4,
            markeredgecolor="white",
            label="validation (fixed sets)",
        )
        if prior_error is not None and prior_error > 0:
            label = f"ignoring the data ({prior_error:.3f})"
            axes.axhline(prior_error, color="black", linestyle="--", linewidth=1.2, label=label)
        if optimum_error is not None:
            smallest = np.nanmin([losses.min(), *measured[validated]])
            word = "< 1e-12" if optimum_error < 1e-12 else f"{optimum_error:.2g}"
            if optimum_error >= FAR_BELOW * smallest:
                axes.axhline(optimum_error, color="black", linewidth=1.3, label=f"optimum ({word})")
            else:
                axes.annotate(f"optimum: {word}, far below ↓", (0.02, 0.015), xycoords="axes fraction", fontsize=8)
        axes.set_yscale("log")
        # The first few losses tower over all that follows.
        axes.set_ylim(top=1.2 * max(losses[len(losses) // 50 :].max(), prior_error or 0))
        label_plainly(axes.yaxis)
        axes.set(xlabel="training step", ylabel=f"mean squared error of {target}")
        axes.grid(axis="y", which="both", color="0.92")
        figure.legend(loc="outside upper center", ncols=2)


def errors(path, frequencies, errors, *, target="log $p_k$"):
    """Draw the mean squared error of several estimators at each frequency.

    Parameters
    ----------
    path : str or path-like
        PNG file to write.
    frequencies : array_like of int, shape (K,)
        The k that are estimated.
    errors : dict of str to array_like, shape (K,)
        Errors by the name of the estimator. The "network" and the "optimum", a floor, stand out; the "prior-mean" is a
        dashed line.
    target : str, default "log $p_k$"
        What is estimated, for the axis.
    """
    looks = {
        "network": {"color": ORANGE, "marker": "o", "linewidth": 1.6, "zorder": 3},
        "optimum": {"color": "black", "marker": "o", "linewidth": 1.6, "zorder": 2},
        "prior-mean": {"color": "black", "linestyle": "--", "linewidth": 1.2},
    }
    others = [{"color": color, "marker": marker} for color, marker in zip(_OTHERS, "svD^x", strict=True)]
    unnamed = [name for name in errors if name not in looks]
    looks |= {name: {"linewidth": 1, **others[i % len(others)]} for i, name in enumerate(unnamed)}
    with picture(path, (7.2, 4.4)) as figure:
        axes = figure.subplots()
        for name, values in errors.items():
            size = {"markersize": 5 if len(frequencies) <= 16 else 2.5} if "marker" in looks[name] else {}
            axes.plot(frequencies, values, label=name.replace("-", " "), **size, **looks[name])
        axes.set(xscale="log", yscale="log")
        label_plainly(axes.xaxis)
        label_plainly(axes.yaxis)
        axes.set(xlabel="frequency $k$ in cycles per 2π", ylabel=f"mean squared error of {target}")
        axes.grid(axis="y", color="0.92")
        figure.legend(loc="outside upper center", ncols=4)


def spectra(path, frequencies, truths, estimates, errors, prior_errors, *, target="log $p_k$"):
    """Draw estimated against true spectra: every test set as a point, and the first three spectra in full.

    Parameters
    ----------
    path : str or path-like
        PNG file to write.
    frequencies : array_like of int, shape (K,)
        The k that are estimated. Where there are more than six, six of them get a panel.
    truths, estimates : array_like, shape (S, K)
        Of the same S test sets.
    errors, prior_errors : array_like, shape (K,)
        Mean squared error at each frequency, of the estimates and of ignoring the data; for the titles.
    target : str, default "log $p_k$"
        What the network estimates, for the axes.
    """
    frequencies, truths, estimates = map(np.asarray, (frequencies, truths, estimates))
    K = len(frequencies)
    shown = np.unique(np.geomspace(1, K, min(K, _PANELS)).round().astype(int)) - 1
    columns = 2 if len(shown) in (2, 4) else min(len(shown), 3)
    rows = -(-len(shown) // columns)
    examples = min(3, len(truths)) if K > 1 else 0
    opacity = 0.35 if len(truths) > 200 else 0.8
    size = 5 if K <= 12 else 2.5
    heights = [0.6 + 2.7 * rows, 2.6]
    with picture(path, (7.2, sum(heights[: 2 if examples else 1]))) as figure:
        top, bottom = figure.subfigures(2, 1, height_ratios=heights) if examples else (figure, None)
        panels = top.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        limits = _limits(truths[:, shown], estimates[:, shown])
        for axes, index in zip(panels, shown, strict=False):
            axes.plot(limits, limits, color="black", linewidth=1, zorder=1)
            axes.scatter(truths[:, index], estimates[:, index], s=7, color=BLUE, alpha=opacity, linewidths=0, zorder=2)
            axes.set(xlim=limits, ylim=limits)
            axes.set_title(f"$k$ = {frequencies[index]}: {errors[index]:.3g} ({prior_errors[index]:.4g})")
            axes.locator_params(nbins=6, integer=limits[1] - limits[0] > 4)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        top.supxlabel(f"true {target}", fontsize="medium")
        top.supylabel(f"estimated {target}", fontsize="medium")
        top.suptitle(
            f"{_counted(len(truths), 'test set')}: estimate against truth, and the line where they agree\n"
            "above each panel: mean squared error (and that of ignoring the data)",
            fontsize="medium",
        )
        if bottom is None:
            return
        for s, axes in enumerate(bottom.subplots(1, examples, sharey=True, squeeze=False).ravel()):
            axes.plot(frequencies, truths[s], color="black", marker="o", markersize=size, linewidth=1, label="truth")
            axes.plot(
                *(frequencies, estimates[s]),
                color=ORANGE,
                marker="x",
                markersize=size + 1,
                linestyle="--",
                linewidth=1,
                label="estimate",
            )
            axes.set(xlabel="frequency $k$", title=f"test set {s + 1}")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.label_outer()
        bottom.axes[0].set_ylabel(target)
        bottom.legend(*bottom.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        bottom.suptitle("The first test sets, not selected", fontsize="medium", x=0.02, ha="left")


def samples(path, functions):
    """Draw functions with the samples taken of them, one panel each.

    Parameters
    ----------
    path : str or path-like
        PNG file to write.
    functions : list of (int, array_like, array_like, array_like, array_like)
        For each its k_max, a grid of positions and the function on it, and positions and values of the samples.
    """
    with picture(path, (7.2, 1.0 + 2.0 * len(functions))) as figure:
        panels = figure.subplots(len(functions), 1, sharex=True, squeeze=False).ravel()
        for axes, (k_max, grid, f, x, y) in zip(panels, functions, strict=True):
            axes.plot(grid, f, color=BLUE, linewidth=1, label="function $f(x)$")
            axes.plot(x, y, ".", color=ORANGE, markersize=3, alpha=0.8, label="samples")
            title = f"$k_{{\\mathrm{{max}}}}$ = {k_max}, {_counted(len(x), 'sample')}"
            axes.set(title=title, ylabel="$f(x)$", xlim=(0, 2 * np.pi))
            axes.set_xticks(*_TICKS)
        panels[-1].set_xlabel("position $x$ in radians")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, markerscale=2)


def spectrum(path, x, y, frequencies, log_powers, mean_powers):
    """Draw samples and the spectrum estimated from them, side by side.

    Parameters
    ----------
    path : str or path-like
        PNG file to write.
    x, y : array_like, shape (n,)
        The samples; x in radians, within [0, 2π).
    frequencies : array_like of int, shape (K,)
        The k that are estimated.
    log_powers : array_like, shape (K,)
        Estimates of log p_k; NaN leaves a gap.
    mean_powers : array_like, shape (K,)
        Mean of p_k among the functions that the network was trained on.
    """
    with picture(path, (7.2, 3.8)) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(x, y, ".", color=BLUE, markersize=4, alpha=0.7)
        left.set(xlim=(0, 2 * np.pi), xlabel="position $x$ in radians", ylabel="$y$", title=_counted(len(x), "sample"))
        left.set_xticks(*_TICKS)
        right.plot(
            *(frequencies, np.exp(log_powers)), color=ORANGE, marker="o", markersize=5, linewidth=1, label="estimate"
        )
        right.plot(
            *(frequencies, mean_powers),
            color=GREY,
            linestyle="--",
            marker="_",
            linewidth=1.2,
            label="mean of the training functions",
        )
        right.set_yscale("log")
        label_plainly(right.yaxis)
        right.xaxis.get_major_locator().set_params(integer=True)
        right.set(xlabel="frequency $k$ in cycles per 2π", ylabel="power $p_k$", title="Estimated power spectrum")
        right.grid(axis="y", color="0.92")
        figure.legend(loc="outside lower right", ncols=2)


@contextlib.contextmanager
def picture(path, size):
    """Give an empty figure, and write it to ``path`` when it is drawn."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(size, layout="constrained")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def label_plainly(axis):
    """Label a logarithmic axis with plain numbers, and between powers of ten where it has few of them."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, value, position=None):
            return f"{value:g}" if super().__call__(value, position) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))


def _limits(*arrays):
    low, high = min(array.min() for array in arrays), max(array.max() for array in arrays)
    margin = 0.04 * (high - low) or 1
    return low - margin, high + margin


def _counted(n, what):
    return f"{n} {what}{'' if n == 1 else 's'}"
