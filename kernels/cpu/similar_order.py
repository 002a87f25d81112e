"""Elements that are alike, side by side: the order within a set is free, and neighbours then share their zeros.

A product leaves out a feature only where it is zero in a whole block of elements (`lane_product`). Elements near each
other turn the same units on, so a set is copied cell by cell of a grid over its first two columns: one counting sort,
no more than some microseconds for 512 elements.
"""

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.lane_product import whole_vectors

CELLS = 64
# Smaller sets are a block or two.
LEAST_ELEMENTS = 192


@jit
def worth_sorting(widths, n):
    """Return whether some product of this network can leave out zeros in a set of n: it has a layer behind a ReLU."""
    return widths.size > 3 and n >= LEAST_ELEMENTS


@jit
def copy_to_lanes(x, w, stride, similar, lanes_x, lanes_w):
    """Copy x (n, K) and w (n,), or ones if it is empty, to rows of features, zeros behind them.

    With ``similar``, cell by cell; else in the order they have.
    """
    n, K = x.shape
    places = np.empty(n, np.int64)
    if similar:
        _find_places(x, places)
    else:
        for r in range(n):
            places[r] = r
    for k in range(K):
        row = lanes_x[k * stride : (k + 1) * stride]
        for r in range(n):
            row[places[r]] = x[r, k]
    for r in range(n):
        lanes_w[places[r]] = w[r] if w.size else 1
    for r in range(n, whole_vectors(n, x)):
        lanes_w[r] = 0
        for k in range(K):
            lanes_x[k * stride + r] = 0


@jit
def _find_places(x, places):
    """Write where each element of x (n, K) goes."""
    n, K = x.shape
    side = CELLS if K == 1 else 8
    places[:] = 0
    for k in range(min(K, 2)):
        low, high = x[0, k], x[0, k]
        for r in range(n):
            low, high = min(low, x[r, k]), max(high, x[r, k])
        scale = side / (np.float64(high) - np.float64(low)) if high > low else 0.0
        for r in range(n):
            place = (np.float64(x[r, k]) - np.float64(low)) * scale
            # Compared before it becomes an integer: it is not a number where the range overflows.
            places[r] = places[r] * side + (int(min(place, side - 1.0)) if place > 0 else 0)
    begin = np.zeros(CELLS + 1, np.int64)
    for r in range(n):
        begin[places[r] + 1] += 1
    for cell in range(CELLS):
        begin[cell + 1] += begin[cell]
    for r in range(n):
        cell = places[r]
        places[r] = begin[cell]
        begin[cell] += 1
