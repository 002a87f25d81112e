"""Losses: a value and the gradient of the prediction, in one pass."""

import numpy as np

from fastperm.checks import check_kernels, check_real
from fastperm.kernels.arrays import beside, on_host


def mean_squared_error(y, targets, kernels):
    """Return the mean squared error and its gradient.

    Parameters
    ----------
    y : ndarray of shape (R, K)
        Predictions.
    targets : array-like of shape (R, K)
        What they should be; converted to the dtype of ``y``.
    kernels : module
        The backend.

    Returns
    -------
    loss : float
        Mean of (y − targets)² over all R·K numbers, summed in float64.
    dy : ndarray of shape (R, K)
        2 (y − targets) / (R·K); a CuPy array if ``y`` is one.

    Raises
    ------
    TypeError
        If the targets are not real numbers.
    ValueError
        If the shapes differ.
    """
    targets = check_kernels(as_targets(targets, y.shape, y.dtype), "targets", kernels)
    own = check_kernels(y, "y", kernels)
    dy = kernels.xp.empty_like(own)
    return kernels.mean_squared_error(own, targets, dy=dy), beside(dy, y)


def as_targets(targets, shape, dtype, name="targets"):
    """Return ``targets`` as a contiguous array of this shape and dtype, or say what came instead."""
    # One too large for the dtype becomes infinite, and the loss says so.
    array = check_real(targets, name, dtype, gpu=True)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} (as the prediction), got {array.shape}")
    return array


def flaw_of(targets):
    """Return which of the targets is not finite, in words, or None if all are."""
    targets = on_host(targets)
    finite = np.isfinite(targets)
    if finite.all():
        return None
    place = tuple(np.argwhere(~finite)[0].tolist())
    return f"row {place[0]}, column {place[1]} is {targets[place]}"
