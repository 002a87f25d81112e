"""Estimators of a power spectrum that learn nothing from examples: from the best possible to ignoring the data.

Each takes ``(sets, task)`` and returns estimates of the task's targets, (S, K) in float64: log p_k, or p_k where
``output="power"``. `ESTIMATORS` has all of them by name, the best first.
"""

import numpy as np

from fastperm.optimum import design, harmonics, spectrum_posterior
from fastperm.sets import as_sets


def optimum(sets, task):
    """Return the posterior mean of the target: no estimator has a smaller mean squared error.

    Parameters
    ----------
    sets : Sets, or array_like (S, N, 2), or list of array_like (n_i, 2)
        Positions in radians and samples.
    task : PowerSpectrum
        What is assumed of the functions, see `fastperm.spectrum_posterior`.

    Returns
    -------
    estimates : ndarray of float64, shape (S, K)
        E[log p_k | samples], or E[p_k | samples] where ``task.output`` is "power".

    Raises
    ------
    TypeError, ValueError
        As in `fastperm.spectrum_posterior`.

    Examples
    --------
    >>> import fastperm
    >>> from fastperm import baselines
    >>> task = fastperm.PowerSpectrum(k_max=4, k_fin=4, set_size=100)
    >>> sets, log_powers = task.sample(5, 0)
    >>> bool(abs(baselines.optimum(sets, task) - log_powers).max() < 1e-6)
    True
    """
    return GAUSSIAN["optimum"](spectrum_posterior(sets, task), task)


def gaussian_process(sets, task):
    """Return the logarithm of the posterior mean of p_k: the Gaussian process as one would plug it in.

    It has the posterior of `optimum`, and overrates what it does not know: by γ = 0.577 where the samples say nothing.
    Where the target is p_k itself it is the optimum.

    Parameters
    ----------
    sets, task
        As in `optimum`.

    Returns
    -------
    estimates : ndarray of float64, shape (S, K)

    Raises
    ------
    TypeError, ValueError
        As in `fastperm.spectrum_posterior`.
    """
    return GAUSSIAN["gaussian-process"](spectrum_posterior(sets, task), task)


def least_squares(sets, task):
    """Fit all frequencies of the predicted band jointly, as if f had no others.

    Where fewer samples than coefficients leave the fit open, the shortest one is taken.

    Parameters
    ----------
    sets, task
        As in `optimum`; of the task only the band and the kind of target are used.

    Returns
    -------
    estimates : ndarray of float64, shape (S, K)

    References
    ----------
    P. Vaníček, "Further development and properties of the spectral analysis by least-squares", Astrophysics and Space
    Science 12, 1971.
    """
    ones = np.ones(task.out_features)

    def powers(x, y):
        rows = design(harmonics(x, task.frequencies[-1])[task.frequencies - 1], ones)
        return (np.linalg.lstsq(rows.T, y, rcond=None)[0].reshape(-1, 2) ** 2).sum(axis=1)

    return _of_each(powers, sets, task)


def lomb_scargle(sets, task):
    """Fit every frequency of the predicted band by itself: the Lomb-Scargle periodogram, as SciPy computes it.

    Parameters
    ----------
    sets, task
        As in `least_squares`.

    Returns
    -------
    estimates : ndarray of float64, shape (S, K)

    References
    ----------
    J. D. Scargle, "Studies in astronomical time series analysis. II", Astrophysical Journal 263, 1982.
    """
    from scipy.signal import lombscargle

    frequencies = task.frequencies.astype(np.float64)

    def powers(x, y):
        return 4 / len(x) * np.atleast_1d(lombscargle(x, y, frequencies))  # SciPy gives a scalar for one frequency

    return _of_each(powers, sets, task)


def periodogram(sets, task):
    """Correlate the samples with every wave of the predicted band: p_k = |2/N Σ_n y_n e^{-ikx_n}|².

    Parameters
    ----------
    sets, task
        As in `least_squares`.

    Returns
    -------
    estimates : ndarray of float64, shape (S, K)
    """

    def powers(x, y):
        return np.abs(2 / len(x) * (harmonics(x, task.frequencies[-1])[task.frequencies - 1] @ y)) ** 2

    return _of_each(powers, sets, task)


def prior_mean(sets, task):
    """Answer the mean of the target, whatever the samples.

    Parameters
    ----------
    sets, task
        As in `optimum`.

    Returns
    -------
    estimates : ndarray of float64, shape (S, K)

    Raises
    ------
    ValueError
        If ``task.amplitudes`` is a callable, whose mean is unknown.
    """
    mean = task.prior_mean()
    if mean is None:
        raise ValueError(f"the mean of the target is unknown where amplitudes is a callable, got {task.amplitudes!r}")
    return np.tile(mean, (len(as_sets(sets, features=2)), 1))


ESTIMATORS = {
    "optimum": optimum,
    "gaussian-process": gaussian_process,
    "least-squares": least_squares,
    "lomb-scargle": lomb_scargle,
    "periodogram": periodogram,
    "prior-mean": prior_mean,
}


def _of_each(powers, sets, task):
    """Return the target's estimates from a function of one set's positions and samples, (n,) each, to powers (K,)."""
    sets = as_sets(sets, features=2, dtype=np.float64)
    if sets.weights is not None:
        raise ValueError("expected sets without weights, as PowerSpectrum.sample returns them")
    return _target(np.array([powers(*one.values.T) for one in sets]), task)


def _target(powers, task):
    """Return powers as the task's target; a power of zero counts as the smallest normal number."""
    return np.log(np.maximum(powers, np.finfo(np.float64).tiny)) if task.output == "log" else powers


def target_moments(posterior, task):
    """Return the posterior's mean and variance of the target: of log p_k, or of p_k where ``output="power"``."""
    return posterior.log_power() if task.output == "log" else posterior.power()


# Those that need a Gaussian law, as functions of its posterior, which they share.
GAUSSIAN = {
    "optimum": lambda posterior, task: target_moments(posterior, task).mean,
    "gaussian-process": lambda posterior, task: _target(posterior.power().mean, task),
}
