"""Elements that are alike, side by side: the order within a set is free, and neighbours then share their zeros.

A product leaves out a step only where all rows of its tile are zero there (`product`). Elements near each other turn
the same units on, so a set is copied cell by cell of a grid over its first two columns: one counting sort, no more
than some microseconds for 512 elements.
"""

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.register_tile import VECTOR_BYTES

CELLS = 64
# Smaller sets are a few tiles.
LEAST_ELEMENTS = 64


@jit
def worth_sorting(widths, itemsize):
    """Return whether some product of this network can leave out zeros: a layer behind a ReLU, over one vector wide."""
    return widths.size > 3 and widths[2:].max() * itemsize > VECTOR_BYTES


@jit
def sorting_space(x, weights, widths, longest):
    """Return where `side_by_side` may copy a set of up to ``longest`` elements: no room where it would not pay."""
    rows = longest if worth_sorting(widths, x.itemsize) else 0
    return np.empty((rows, x.shape[1]), x.dtype), np.empty(rows if weights.size else 0, x.dtype)


@jit
def side_by_side(x, w, sorted_x, sorted_w):
    """Return x (n, K) and w with similar elements side by side, copied into the space; or as they are."""
    n = len(x)
    if len(sorted_x) == 0 or n < LEAST_ELEMENTS:
        return x, w
    copy_similar(x, w, sorted_x, sorted_w)
    return sorted_x[:n], sorted_w[: w.size]


@jit
def copy_similar(x, w, sorted_x, sorted_w):
    """Copy x (n, K) and w (n,), if there are weights, cell by cell."""
    n, K = x.shape
    cell = np.zeros(n, np.int64)
    side = CELLS if K == 1 else 8
    for k in range(min(K, 2)):
        low, high = x[0, k], x[0, k]
        for r in range(n):
            low, high = min(low, x[r, k]), max(high, x[r, k])
        scale = side / (np.float64(high) - np.float64(low)) if high > low else 0.0
        for r in range(n):
            place = (np.float64(x[r, k]) - np.float64(low)) * scale
            # Compared before it becomes an integer: it is not a number where the range overflows.
            cell[r] = cell[r] * side + (int(min(place, side - 1.0)) if place > 0 else 0)
    begin = np.zeros(CELLS + 1, np.int64)
    for r in range(n):
        begin[cell[r] + 1] += 1
    for c in range(CELLS):
        begin[c + 1] += begin[c]
    for r in range(n):
        place = begin[cell[r]]
        begin[cell[r]] += 1
        for k in range(K):
            sorted_x[place, k] = x[r, k]
        if w.size:
            sorted_w[place] = w[r]
