"""Which way a batch takes through a network, and why: `paths`, which reads what the kernels themselves go by.

| path | sets | when |
|---|---|---|
| layer by layer | all | always |
"""

import numpy as np


def paths(
    offsets,  # (S + 1,)
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
):
    """Return a list of (name of the path, the sets that take it, why)."""
    return [("layer by layer", np.arange(len(offsets) - 1), "NumPy, a formula a line; it has no other path")]
