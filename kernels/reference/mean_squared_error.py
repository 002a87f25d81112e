r"""Mean squared error over all R·K outputs, value and gradient in one pass.

L = Σ (y − t)² / (R K),  dy = 2 (y − t) / (R K).
"""

import numpy as np


def mean_squared_error(
    y,  # (R, K)
    targets,  # (R, K)
    *,
    dy,  # (R, K), overwritten
):
    """Return the loss as a float, summed in float64."""
    np.subtract(y, targets, out=dy)
    loss = float(np.sum(np.square(dy, dtype=np.float64))) / dy.size
    dy *= 2 / dy.size
    return loss
