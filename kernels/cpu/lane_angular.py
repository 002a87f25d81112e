"""Angular layers of one set whose elements lie in lanes; formulas in ``kernels/reference/angular.py``.

The harmonics of the angles are 2M rows that lie below the features of every h, and the filtered ones of the set, Q, as
many rows in every panel of W_self: a layer is one product, as it is without them. So it is on the way back, with w E
below the gradient, and dZᵀ beside W_self.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from fastperm.kernels.cpu.addresses import address_of, matrix_at
from fastperm.kernels.cpu.angular import add_filter_gradients, filter_set, harmonics
from fastperm.kernels.cpu.compiling import subroutine
from fastperm.kernels.cpu.lane_product import (
    blocks_of,
    copy_numbers,
    lanes_outer,
    list_all,
    pack_panels,
    row_stride,
    whole_vectors,
)

# So many blocks of elements may be one where they are projected on harmonics: float32 holds their sums well enough.
MOST_TOGETHER = 4


class Circle(NamedTuple):
    """What angular layers need of one set; empty where there are none."""

    rows: int  # 2M, of E
    E: Any  # as rows of lanes
    weighted: Any  # w E, where there are weights
    Z: Any  # (D, 2M · widest)
    Q: Any  # (2M · widest,): Q, dQ
    Z_gradient: Any  # (2M · widest,)
    back: Any  # (widest · (widest + 2M),): W_self and dZᵀ side by side
    listed: Any  # (blocks, 2M): all rows of E, in every block
    counts: Any  # (blocks,)
    steps: Any  # (blocks,): of a product with E
    together: Any  # (1, widest): features listed in some block, and
    count: Any  # (1,): how many


@subroutine
def circle_of(widths, longest, backward, orders, weighted, like):
    """Return the space for sets of up to so many elements."""
    depth, widest, rows = widths.size - 2, widths.max(), 2 * orders
    stride, blocks = row_stride(longest, like), blocks_of(longest, like)
    return Circle(
        rows,
        np.empty(rows * stride, like.dtype),
        np.empty(rows * stride if weighted else 0, like.dtype),
        np.empty((depth, rows * widest), like.dtype),
        np.empty(rows * widest, like.dtype),
        np.empty(rows * widest, like.dtype),
        np.empty(widest * (widest + rows) if orders > 0 and backward else 0, like.dtype),
        np.empty((blocks, rows), np.int64),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.int64),
        np.empty((1, widest), np.int64),
        np.empty(1, np.int64),
    )


@subroutine
def filters_at(parameters, end, K_in, K_out, orders):
    """Return A and B (M, K_in, K_out) of the layer whose parameters end at ``end``, borrowed."""
    size = orders * K_in * K_out
    return (
        carray(address_of(parameters, end - 2 * size), (orders, K_in, K_out)),
        carray(address_of(parameters, end - size), (orders, K_in, K_out)),
    )


@subroutine
def turn_angles(angles, w, stride, circle):
    """Write E of the angles (n,), and w E."""
    n = angles.size
    padded = whole_vectors(n, angles)
    E, weighted = circle.E, circle.weighted
    harmonics(angles, circle.rows // 2, stride, E)
    for first in range(0, circle.rows * stride, stride):
        for e in range(first + n, first + padded):
            E[e] = 0
        if weighted.size > 0:
            for e in range(padded):
                weighted[first + e] = w[e] * E[first + e]
    list_all(circle.rows, circle.listed, circle.counts[: blocks_of(n, angles)])


@subroutine
def _weighted_rows(circle):
    return circle.weighted if circle.weighted.size > 0 else circle.E


@subroutine
def list_harmonics(K, listed, counts, circle):
    """Add the rows of E, which lie below K features, to those that are listed; return how many there are then."""
    steps = circle.steps[: counts.size]
    for b in range(counts.size):
        for h in range(circle.rows):
            listed[b, counts[b] + h] = K + h
        steps[b] = counts[b] + circle.rows
    return steps


@subroutine
def _add_projection(tiles, E, h, K, stride, n, listed, counts, circle, out):
    """Add E hᵀ to ``out`` (2M, K): by blocks, or as one where it costs no more than the listed features do."""
    if counts.size <= MOST_TOGETHER:
        together, count = circle.together, _list_together(K, listed, counts, circle.together[0])
        # Every block costs about a quarter more than its multiplications.
        if 5 * counts.sum() >= 4 * counts.size * count:
            circle.count[0] = count
            lanes_outer(tiles, E, h, stride, n, circle.listed, circle.counts[:1], together, circle.count, out)
            return
    lanes_outer(tiles, E, h, stride, n, circle.listed, circle.counts[: counts.size], listed, counts, out)


@subroutine
def _list_together(K, listed, counts, together):
    """List the features that are listed in some block, and return how many there are."""
    if counts.max() == K:
        for k in range(K):
            together[k] = k
        return K
    together[:K] = -1
    for b in range(counts.size):
        for i in range(counts[b]):
            together[listed[b, i]] = listed[b, i]
    count = 0
    for k in range(K):
        feature = together[k]
        together[count] = feature
        count += feature >= 0
    return count


@subroutine
def filter_lanes(tiles, h, K_in, stride, n, divisor, A, B, layer, panels, listed, counts, circle):
    """Write Z of h, and Q of the set into the panels of its layer; put E below h."""
    rows, K_out = circle.rows, A.shape[2]
    Z, Q = matrix_at(circle.Z, layer * circle.Z.shape[1], rows, K_in), matrix_at(circle.Q, 0, rows, K_out)
    Z[:] = 0
    _add_projection(tiles, _weighted_rows(circle), h, K_in, stride, n, listed, counts, circle, Z)
    for j in range(rows):
        for k in range(K_in):
            Z[j, k] /= divisor
    filter_set(Z, A, B, Q)
    pack_panels(Q, panels, K_in, K_in + rows)
    copy_numbers(circle.E, h[K_in * stride :])


@subroutine
def filters_backward(tiles, g, K_in, stride, n, layer, listed, counts, dA, dB, circle):
    """Add what a layer sends to its filters; dQ is left in ``circle.Q``."""
    rows, K_out = circle.rows, dA.shape[2]
    Z, dQ = matrix_at(circle.Z, layer * circle.Z.shape[1], rows, K_in), matrix_at(circle.Q, 0, rows, K_out)
    dQ[:] = 0
    _add_projection(tiles, circle.E, g, K_out, stride, n, listed, counts, circle, dQ)
    add_filter_gradients(Z, dQ, dA, dB)


@subroutine
def harmonics_backward(g, stride, divisor, W_self, A_T, B_T, circle):
    """Put w E below g, and return W_self (K_in, K_out) and dZᵀ / W side by side; A_T and B_T are Aᵀ and −Bᵀ."""
    rows, (K_in, K_out) = circle.rows, W_self.shape
    dQ, dZ = matrix_at(circle.Q, 0, rows, K_out), matrix_at(circle.Z_gradient, 0, rows, K_in)
    filter_set(dQ, A_T, B_T, dZ)
    copy_numbers(_weighted_rows(circle), g[K_out * stride :])
    back = matrix_at(circle.back, 0, K_in, K_out + rows)
    for k in range(K_in):
        for j in range(K_out):
            back[k, j] = W_self[k, j]
        for h in range(rows):
            back[k, K_out + h] = dZ[h, k] / divisor
    return back
