r"""Products of rows with a matrix: y_n = x_n W.

One row at a time: BLAS adds up the products of several rows in an order that depends on where they stand, so that equal
elements would get unequal bits. They must not: the order of the elements would matter with ``invariance="bitwise"``,
and elements that tie for a maximum would not. From width 64 on it takes up to three times as long as all rows at once.
"""

import numpy as np


def product(
    x,  # (T, K_in)
    W,  # (K_in, K_out)
    *,
    y,  # (T, K_out)
):
    np.matmul(x[:, None, :], W, out=y[:, None, :])
