"""Mean squared error; formula in ``kernels/reference/mean_squared_error.py``."""

import numpy as np

from fastperm.kernels.cpu.compiling import jit


def mean_squared_error(
    y,  # (R, K)
    targets,  # (R, K)
    *,
    dy,  # (R, K), overwritten
):
    """Return the loss as a float, summed in float64."""
    return squared_error(y, targets, y.dtype.type(2 / y.size), dy) / y.size


@jit
def squared_error(y, targets, factor, dy):
    """Return Σ (y − t)² in float64 and write factor · (y − t) to dy; all (R, K)."""
    total = 0.0
    for r in range(y.shape[0]):
        for k in range(y.shape[1]):
            difference = y[r, k] - targets[r, k]
            total += np.float64(difference) ** 2
            dy[r, k] = factor * difference
    return total
