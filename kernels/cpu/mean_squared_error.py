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
    return _mean_squared_error(y.ravel(), targets.ravel(), dy.ravel())


@jit
def _mean_squared_error(y, targets, dy):
    total = 0.0
    for i in range(y.size):
        difference = y[i] - targets[i]
        total += np.float64(difference) ** 2
        dy[i] = difference * (y.dtype.type(2) / y.dtype.type(y.size))
    return total / y.size
