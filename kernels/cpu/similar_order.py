"""Elements that are alike, side by side: the order within a set is free, and neighbours then share their zeros.

A product leaves out a feature only where it is zero in a whole block of elements (`lane_product`). Elements near each
other turn the same units on, so a set is copied cell by cell of a grid over its first two columns: one counting sort,
no more than some microseconds for 512 elements.
"""

import numpy as np

from fastperm.kernels.cpu.compiling import jit, subroutine
from fastperm.kernels.cpu.lane_product import whole_vectors

SIDE = 8
CELLS = SIDE * SIDE
# A grid needs no exact bounds: every so many elements are asked.
EVERY = 8
# Smaller sets are a block or two.
LEAST_ELEMENTS = 192


@subroutine
def worth_sorting(widths, n):
    """Return whether some product of this network can leave out zeros in a set of n: it has a layer behind a ReLU."""
    return widths.size > 3 and n >= LEAST_ELEMENTS


@jit
def copy_to_lanes(x, w, stride, similar, lanes_x, lanes_w):
    """Copy x (n, K) and w (n,), or ones if it is empty, to rows of features, zeros behind them.

    With ``similar``, cell by cell; else in the order they have.
    """
    n, K = x.shape
    padded = whole_vectors(n, x)
    places = np.empty(n, np.int32)
    if similar:
        _find_places(x, places)
    else:
        for r in range(n):
            places[r] = r
    for k in range(K):
        row = lanes_x[k * stride : k * stride + padded]
        for r in range(n):
            row[places[r]] = x[r, k]
        row[n:] = 0
    if w.size:
        for r in range(n):
            lanes_w[places[r]] = w[r]
    else:
        lanes_w[:n] = 1
    lanes_w[n:padded] = 0


@subroutine
def _find_places(x, places):
    """Write where each element of x (n, K) goes."""
    n, K = x.shape
    across, down = (SIDE, SIDE) if K > 1 else (CELLS, 1)
    second = min(K, 2) - 1
    low, scale = _grid(x, 0, across)
    low_2, scale_2 = _grid(x, second, down)
    last, last_2 = x.dtype.type(across - 1), x.dtype.type(down - 1)
    ends = np.zeros(CELLS, np.int32)
    for r in range(n):
        cell = _cell(x[r, 0], low, scale, last) * down + _cell(x[r, second], low_2, scale_2, last_2)
        places[r] = cell
        ends[cell] += 1
    end = 0
    for cell in range(CELLS):
        end += ends[cell]
        ends[cell] = end - ends[cell]
    for r in range(n):
        cell = places[r]
        places[r] = ends[cell]
        ends[cell] += 1


@subroutine
def _grid(x, k, cells):
    """Return where the cells of column k begin and how many there are to a unit, by what some elements span."""
    low, high = x[0, k], x[0, k]
    for r in range(0, len(x), EVERY):
        low, high = min(low, x[r, k]), max(high, x[r, k])
    return low, x.dtype.type(cells) / (high - low) if high > low else x.dtype.type(0)


@subroutine
def _cell(value, low, scale, last):
    """Return the cell of a value; those beyond the grid, or not a number where the range overflows, go to its edges."""
    place = (value - low) * scale
    # One instruction each, as comparisons in this direction.
    place = place if place > 0 else last - last
    return int(place if place < last else last)
