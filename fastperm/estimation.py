"""What a trained network is asked for: the spectrum of some samples, and how far off it is on fresh ones."""

import time
from functools import partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fastperm.baselines import ESTIMATORS, GAUSSIAN, target_moments
from fastperm.checks import check_array, check_choice, check_integer, check_real
from fastperm.optimum import spectrum_posterior
from fastperm.sets import Sets

# Training draws from the streams 0 and 1 of its seed: test sets are fresh even under the same seed.
_TEST = 2

# Elements that go through the network at once.
_ELEMENTS = 1 << 17

# Sets between two steps of the progress bar, for estimators that take them one by one anyway.
_PART = 16


class Evaluation(NamedTuple):
    """Targets and estimates on S fresh sets at K frequencies, both (S, K), and the errors they make."""

    truths: np.ndarray
    estimates: np.ndarray

    @property
    def squared_errors(self):
        """(estimate − truth)²: (S, K)."""
        return (self.estimates - self.truths) ** 2

    @property
    def mean(self):
        """Mean squared error at each frequency: (K,)."""
        return self.squared_errors.mean(axis=0)

    @property
    def standard_error(self):
        """Standard error of `mean`: (K,); NaN for a single set."""
        return _standard_error(self.squared_errors)

    @property
    def overall(self):
        """Mean squared error over all frequencies, and its standard error: the frequencies of a set go together."""
        per_set = self.squared_errors.mean(axis=1)
        return float(per_set.mean()), float(_standard_error(per_set))


def evaluate(net, task, *, sets=1024, seed=0):
    """Compare a network with the truth on fresh sets of a task.

    Set s is drawn from a generator that depends on ``seed`` and s only. It is the same function whatever the set size
    (see `PowerSpectrum.sample`), so that set sizes are compared on the same functions.

    Parameters
    ----------
    net : DeepSet
        A network with pooling.
    task : PowerSpectrum
        Where the sets come from.
    sets : int, default 1024
        How many.
    seed : int, default 0
        What they are drawn from.

    Returns
    -------
    Evaluation
        Truths and estimates in float64, in units of the task's targets. Memory grows with them, not with the sets.

    Raises
    ------
    ValueError
        If an argument is out of range, or the task and the network do not fit.
    """
    return compare(net, task, (), sets=sets, seed=seed).evaluations["network"]


class Comparison(NamedTuple):
    """Evaluations of several estimators on the same fresh sets.

    Attributes
    ----------
    evaluations : dict of str to Evaluation
        By the name of the estimator; the network's is "network".
    spectra_per_second : dict of str to float
        How many sets an estimator takes in a second, on this machine and in batches.
    expected_error : ndarray of float64, shape (K,), or None
        Mean squared error that the optimum expects of itself, from the posterior alone; None without the optimum.
    probabilities : ndarray of float64, shape (S, K), or None
        Probability, under the posterior, of a power below the true one: uniform on [0, 1] where the posterior is right.
        None unless it was asked for.
    """

    evaluations: dict[str, Evaluation]
    spectra_per_second: dict[str, float]
    expected_error: np.ndarray | None
    probabilities: np.ndarray | None


def compare(net, task, names, *, sets=1024, seed=0, probabilities=False, progress=False):
    """Compare a network, and estimators that learn nothing, with the truth on the same fresh sets of a task.

    Parameters
    ----------
    net : DeepSet or None
        A network with pooling; None leaves it out.
    task : PowerSpectrum
        Where the sets come from. It is what the other estimators assume, too.
    names : sequence of str
        Keys of `fastperm.baselines.ESTIMATORS`.
    sets, seed
        As in `evaluate`, which gives the network the same sets.
    probabilities : bool, default False
        Find the posterior probability below each true power, too, where the optimum is among the names.
    progress : bool, default False
        Show a progress bar on stderr.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If an argument is out of range or a name unknown, an estimator does not know the law of the task, or the task
        and the network do not fit.
    """
    for name in names:
        check_choice(name, "names", tuple(ESTIMATORS))
    if net is not None:
        _check_fits(net, task)
    found: dict[str, list] = {name: [] for name in (*(["network"] if net is not None else []), *names)}
    seconds = dict.fromkeys(found, 0.0)
    gaussian = [name for name in names if name in GAUSSIAN]
    truths: list[np.ndarray] = []
    variances: list[np.ndarray] = []
    below: list[np.ndarray] = []

    def timed(names, function, *arguments):
        """Return what the function returns, and charge the time to these estimators."""
        start = time.perf_counter()
        result = function(*arguments)
        for name in names:
            seconds[name] += time.perf_counter() - start
        return result

    with tqdm(total=sets * len(names), unit="estimate", disable=not progress, dynamic_ncols=True, leave=False) as bar:
        for batch, targets in fresh_sets(task, sets=sets, seed=seed):
            if names and not truths:
                for estimator in (net, *(partial(ESTIMATORS[name], task=task) for name in names)):
                    if estimator is not None:
                        estimator(batch[:1])  # compiles and imports, if it must
            truths.append(targets)
            if net is not None:
                found["network"].append(timed(["network"], net, batch))
            for first in range(0, len(batch) if names else 0, _PART):
                part = batch[first : first + _PART]
                posterior = timed(gaussian, spectrum_posterior, part, task) if gaussian else None
                for name in names:
                    if name in GAUSSIAN:
                        found[name].append(timed([name], GAUSSIAN[name], posterior, task))
                    else:
                        found[name].append(timed([name], ESTIMATORS[name], part, task))
                    bar.update(len(part))
                if posterior is not None and "optimum" in names:
                    truth = targets[first : first + _PART]
                    variances.append(target_moments(posterior, task).variance)
                    if probabilities:
                        below.append(posterior.cdf(truth if task.output == "log" else np.log(truth)))
    truth = np.concatenate(truths)
    return Comparison(
        {name: Evaluation(truth, np.concatenate(parts).astype(np.float64)) for name, parts in found.items()},
        {name: len(truth) / seconds[name] for name in found},
        np.concatenate(variances).mean(axis=0) if variances else None,
        np.concatenate(below) if below else None,
    )


def fresh_sets(task, *, sets, seed):
    """Give fresh sets of a task and their targets, in batches of about `_ELEMENTS` elements.

    Set s is drawn from a generator that depends on ``seed`` and s only, see `evaluate`; on the host, wherever the task
    draws, so that networks of all backends are asked about the same sets.

    Yields
    ------
    (Sets, ndarray of float64, shape (S, K))
    """
    if getattr(task, "backend", None) == "cuda":
        task = task.to("auto")
    sets = check_integer(sets, "sets", minimum=1)
    seed = check_integer(seed, "seed", minimum=0)
    waiting: list[Sets] = []
    targets: list[np.ndarray] = []
    for s in range(sets):
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_TEST, s)))
        drawn, target = task.sample(1, generator)
        waiting.append(drawn)
        targets.append(target)
        if sum(batch.n_elements for batch in waiting) >= _ELEMENTS or s == sets - 1:
            yield Sets.concatenate(waiting), np.concatenate(targets)
            waiting, targets = [], []


def estimate_log_powers(net, task, x, y):
    """Estimate log p_k from samples of one function.

    Parameters
    ----------
    net : DeepSet
        A network trained on ``task``.
    task : PowerSpectrum
        What the network's outputs mean.
    x : array_like, shape (n,)
        Positions in radians; taken modulo 2π.
    y : array_like, shape (n,)
        Samples of the function there.

    Returns
    -------
    ndarray of float64, shape (task.out_features,)
        Estimate of log p_k (natural logarithm) in the order of ``task.frequencies``; the same bits in whatever order
        the samples are listed. NaN where a network that was trained on p_k itself estimates no positive power.

    Raises
    ------
    ValueError
        If x and y are not two rows of as many finite numbers, or the task and the network do not fit.
    TypeError
        If they are no real numbers.
    FloatingPointError
        If what the network returns is not finite.
    """
    _check_fits(net, task)
    x, y = (_as_numbers(numbers, name) for numbers, name in ((x, "x"), (y, "y")))
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"x and y must have one shape (n,), got {x.shape} and {y.shape}")
    for numbers, name in ((x, "x"), (y, "y")):
        finite = np.isfinite(numbers)
        if not finite.all():
            raise ValueError(f"sample {np.argmin(finite)}: {name} must be finite, got {numbers[np.argmin(finite)]}")
    x = wrap(x)
    # Sums in float32 depend on the order of their terms in the last digits. A network with invariance="bitwise" sees
    # to that itself; sorted here, the samples give the same bits with any network.
    order = np.lexsort((y, x))
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        estimates = net(np.stack([x[order], y[order]], axis=1)[None])[0].astype(np.float64)
    if not np.isfinite(estimates).all():
        raise FloatingPointError(
            f"the network's estimates are not finite; the samples reach {np.abs(y).max():.2g} in size"
        )
    if task.output == "power":
        return np.log(estimates, out=np.full_like(estimates, np.nan), where=estimates > 0)
    return estimates


def _as_numbers(numbers, name):
    """Return numbers of any kind that is real, long ones and Python's own included, as float64."""
    array = check_array(numbers, name)
    return array.astype(np.float64) if array.dtype.kind in "fO" else check_real(array, name, np.float64)


def _check_fits(net, task):
    """Refuse a network that does not answer what a task asks, before anything is drawn."""
    if net.pool is None:
        raise ValueError("the network has no pooling, and answers for each element; expected one with a pool")
    for name in ("in_features", "out_features"):
        found, wanted = getattr(net, name), getattr(task, name)
        if found != wanted:
            raise ValueError(f"the network has {name}={found}, the task {name}={wanted}")


def wrap(x):
    """Return positions in radians brought into [0, 2π)."""
    x = np.asarray(x, np.float64) % (2 * np.pi)
    return np.where(x < 2 * np.pi, x, 0.0)  # the remainder of a tiny negative number is rounded to 2π


def _standard_error(values):
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))
