r"""The products of a whole set whose elements lie in the lanes of vectors: features are rows of x (K, n).

    z[j, e] = c_j + Σ_k W[k, j] · x[k, e],               y = max(z, floor),           totals_j += Σ_e w_e · y[j, e]
    z[k, e] = c_k · w_e + Σ_j W[k, j] · g[j, e],         h = z where h > 0, else 0,   totals_k += Σ_e h[k, e]
    dW[k, j] += Σ_e x[k, e] · g[j, e]

(`lanes_forward`, `lanes_masked`, `lanes_outer`; `lanes_sums` gives totals alone.) Behind a ReLU about half of all
activations are zero, and a unit is mostly on or off for many elements together. Here a unit is a row: what is off in a
whole block of elements is left out by not being listed, as a step of the first product, as a row *and* as a step of the
second, and on both sides of the third. Where half of the units are on, that is a half and two quarters of the
multiplications. Only additions of 0 · W are left out: as long as W is finite no value changes, but for the sign of a
zero.

Every output is one chain of fused multiply-adds over the listed features, so an element has the same bits wherever it
stands in its set. Past the last element the rows are zero, up to a whole vector.
"""

import functools

import numpy as np
from numba import types
from numba.extending import overload

from fastperm.kernels.cpu.addresses import address_of, call_address
from fastperm.kernels.cpu.compiling import c_function, jit, subroutine
from fastperm.kernels.cpu.lane_tile import (
    FEATURES,
    FORWARD,
    MASKED,
    OUTER,
    OUTER_COLUMNS,
    OUTER_ROWS,
    VECTORS,
    lane_clear,
    lane_copy,
    lane_outer_tile,
    lane_sum,
    lane_tile,
)
from fastperm.kernels.cpu.register_tile import VECTOR_BYTES

# Elements, or some fewer or more, that share lists of the units that are on, and whose sums are taken in the working
# precision: few enough that many units are off in all of them, enough that lists and sums over lanes cost little.
BLOCK = 128
LINE_BYTES = 64
# From so many features below on, a strip of them is copied together: on their own they lie lines apart, and only this
# keeps them in the first-level cache while all features above are computed.
PACKED_STEPS = 40
# Features of g whose rows stay in the first-level cache while all of x passes by.
OUTER_BLOCK = 32


def _make_strips(kind):
    """Return the loop over the strips of a block of ``n`` elements, between two over its sums."""

    def strips(
        a, a_stride, c, B, stride, out, weight, listed_rows, n_rows, listed_steps, n_steps, floor, sums, n, lanes,
        totals, listed_out, count_out, strip, all_steps,
    ):  # fmt: skip
        operands = (
            a, a_stride, c, B, stride, out, weight, listed_rows, n_rows, listed_steps, n_steps, floor, sums,
        )  # fmt: skip
        for r in range(n_rows):
            lane_clear(sums, r if kind == FORWARD else listed_rows[r])
        e = 0
        while e + VECTORS * lanes <= n:
            below, first, step_stride, places = B, e, stride, listed_steps
            if n_steps >= PACKED_STEPS:
                for i in range(n_steps):
                    for v in range(VECTORS):
                        lane_copy(B, listed_steps[i] * stride + e + v * lanes, strip, (i * VECTORS + v) * lanes)
                below, first, step_stride, places = strip, 0, VECTORS * lanes, all_steps
            lane_tile(VECTORS, kind, e, (below, first, step_stride, places), operands)
            e += VECTORS * lanes
        if VECTORS == 3 and e + 2 * lanes <= n:
            lane_tile(2, kind, e, (B, e, stride, listed_steps), operands)
            e += 2 * lanes
        while e < n:
            lane_tile(1, kind, e, (B, e, stride, listed_steps), operands)
            e += lanes
        count = 0
        for r in range(n_rows):
            row = r if kind == FORWARD else listed_rows[r]
            total = lane_sum(sums, row)
            totals[row] += total
            if kind == FORWARD:
                listed_out[count] = r
                count += total != 0
        if kind == FORWARD:
            count_out[0] = count

    return strips


def _outer(x, g, stride, vectors, listed_rows, n_rows, listed_columns, n_columns, out, out_stride):
    """Go through all pairs of listed features, a block of those of g at a time."""
    operands = (x, g, stride, vectors, listed_rows, n_rows, listed_columns, n_columns, out, out_stride)
    for first in range(0, n_columns, OUTER_BLOCK):
        last = min(first + OUTER_BLOCK, n_columns)
        i = 0
        while i < n_rows:
            rows = min(n_rows - i, OUTER_ROWS)
            j = first
            while j < last:
                columns = last - j
                if columns >= OUTER_COLUMNS:
                    columns = OUTER_COLUMNS
                    if rows == 4:
                        lane_outer_tile(4, 4, i, j, operands)
                    elif rows == 3:
                        lane_outer_tile(3, 4, i, j, operands)
                    elif rows == 2:
                        lane_outer_tile(2, 4, i, j, operands)
                    else:
                        lane_outer_tile(1, 4, i, j, operands)
                elif columns >= 2:
                    columns = 2
                    if rows == 4:
                        lane_outer_tile(4, 2, i, j, operands)
                    elif rows == 3:
                        lane_outer_tile(3, 2, i, j, operands)
                    elif rows == 2:
                        lane_outer_tile(2, 2, i, j, operands)
                    else:
                        lane_outer_tile(1, 2, i, j, operands)
                else:
                    columns = 1
                    if rows == 4:
                        lane_outer_tile(4, 1, i, j, operands)
                    elif rows == 3:
                        lane_outer_tile(3, 1, i, j, operands)
                    elif rows == 2:
                        lane_outer_tile(2, 1, i, j, operands)
                    else:
                        lane_outer_tile(1, 1, i, j, operands)
                j += columns
            i += rows


_STRIPS = {kind: _make_strips(kind) for kind in (FORWARD, MASKED)}


@functools.cache
def lane_tiles(dtype):
    """Return the addresses of the compiled tiles for this dtype, as kernels take them."""
    scalar = types.float32 if dtype == np.float32 else types.float64
    array, number, listed = types.CPointer(scalar), types.int64, types.CPointer(types.int64)
    strips = (
        array, number, array, array, number, array, array, listed, number, listed, number, scalar, array, number,
        number, types.CPointer(types.float64), listed, listed, array, listed,
    )  # fmt: skip
    outer = (array, array, number, number, listed, number, listed, number, array, number)
    return (
        *(c_function(_STRIPS[kind], types.void(*strips)) for kind in (FORWARD, MASKED)),
        c_function(_outer, types.void(*outer)),
    )


def lanes_of(like):
    """Return how many numbers of an array's type a vector holds, as a constant of the compiled code."""
    return VECTOR_BYTES // like.itemsize


@overload(lanes_of, inline="always")
def _lanes_of(like):
    lanes = VECTOR_BYTES * 8 // like.dtype.bitwidth
    return lambda like: lanes


@jit
def whole_vectors(n, like):
    """Return the elements of whole vectors that hold n."""
    lanes = lanes_of(like)
    return (n + lanes - 1) // lanes * lanes


@jit
def row_stride(n, like):
    """Return how far apart the rows of n elements are: an odd number of cache lines, or rows would share few sets."""
    numbers = LINE_BYTES // like.itemsize
    lines = (whole_vectors(n, like) + numbers - 1) // numbers
    return (lines | 1) * numbers


@jit
def block_elements(like):
    """Return how many elements a block has: whole strips of tiles."""
    strip = VECTORS * lanes_of(like)
    return BLOCK // strip * strip


@jit
def blocks_of(n, like):
    """Return the number of blocks that n elements make: the last one takes what would be less than half a block."""
    block = block_elements(like)
    return max(1, (n + block // 2) // block)


@jit
def block_bounds(b, blocks, n, like):
    """Return the first element of block b and the one behind its last."""
    block = block_elements(like)
    return b * block, (b + 1) * block if b < blocks - 1 else n


@subroutine
def copy_numbers(source, target):
    """Copy a flat array to the beginning of another."""
    # Not as an assignment of arrays: Numba would compile its error message, for three seconds.
    for i in range(source.size):
        target[i] = source[i]


@jit
def pack_panels(W, panels, first_row, rows):
    """Write the columns of W (K_in, K_out), FEATURES at a time, panel by panel; what is left of the last is zero.

    They become the rows from ``first_row`` on of panels that have so many rows.
    """
    K_in, K_out = W.shape
    for first in range(0, K_out, FEATURES):
        place = first * rows + first_row * FEATURES
        for k in range(K_in):
            for j in range(first, first + FEATURES):
                panels[place] = W[k, j] if j < K_out else 0
                place += 1


@jit
def panels_size(K_in, K_out):
    """Return how many numbers `pack_panels` writes."""
    return (K_out + FEATURES - 1) // FEATURES * FEATURES * K_in


@jit
def workspace(K, like):
    """Return what these products need for up to K features: sums, room for a strip, and the numbers of its steps."""
    lanes = lanes_of(like)
    return np.empty(K * lanes, like.dtype), np.empty(K * VECTORS * lanes, like.dtype), np.arange(K)


@jit
def list_all(K, listed, counts):
    """List all K features in every block."""
    for b in range(counts.size):
        counts[b] = K
        for k in range(K):
            listed[b, k] = k


@jit
def lanes_forward(tiles, x, K_in, stride, n, panels, c, floor, w, listed, counts, y, work, totals, listed_y, counts_y):
    """Write y = max(c + Wᵀ x, floor), and zeros behind it, and add Σ w y to totals (K_out,).

    x and y are flat, rows ``stride`` apart; w has whole vectors, with zeros behind the n weights; ``listed`` (blocks,
    ≥ K_in) and ``counts`` (blocks,) say which features of x count; ``work`` is workspace. Those of y whose sum in a
    block is not zero are listed in ``listed_y`` and ``counts_y``.
    """
    sums, strip, all_steps = work
    K_out, lanes, padded = c.size, lanes_of(x), whole_vectors(n, x)
    for b in range(counts.size):
        first, last = block_bounds(b, counts.size, padded, x)
        operands = (
            address_of(panels, 0), K_in, address_of(c, 0), address_of(x, first), stride, address_of(y, first),
            address_of(w, first), address_of(listed, 0), K_out, address_of(listed, b * listed.shape[1]), counts[b],
            floor, address_of(sums, 0), last - first, lanes, address_of(totals, 0),
            address_of(listed_y, b * listed_y.shape[1]), address_of(counts_y, b), address_of(strip, 0),
            address_of(all_steps, 0),
        )  # fmt: skip
        call_address(tiles[FORWARD], operands)
    if padded > n:
        for j in range(K_out):
            y[j * stride + n : j * stride + padded] = 0


@jit
def list_units_on(y, K, stride, n, listed, counts):
    """List the features of y that are not zero in a whole block of elements: what weighted sums do not tell."""
    for b in range(counts.size):
        first, last = block_bounds(b, counts.size, n, y)
        count = 0
        for k in range(K):
            listed[b, count] = k
            row = y[k * stride + first : k * stride + last]
            # Floats compared as they are would count a NaN as off.
            bits = row.view(np.uint32)
            together = np.uint32(0)
            for i in range(bits.size):
                together |= bits[i]
            count += together != 0
        counts[b] = count


@jit
def lanes_masked(tiles, g, stride, n, W, c, w, listed, counts, listed_below, counts_below, h, work, totals):
    """Replace h by c w + W g where h > 0 and by 0 elsewhere, and add its sums to totals (K_in,).

    ``listed`` says which features of g count, ``listed_below`` those of h. Others of h are zero, and stay as they are.
    """
    sums, strip, all_steps = work
    lanes, padded = lanes_of(g), whole_vectors(n, g)
    for b in range(counts.size):
        first, last = block_bounds(b, counts.size, padded, g)
        operands = (
            address_of(W, 0), W.shape[1], address_of(c, 0), address_of(g, first), stride, address_of(h, first),
            address_of(w, first), address_of(listed_below, b * listed_below.shape[1]), counts_below[b],
            address_of(listed, b * listed.shape[1]), counts[b], w.dtype.type(0), address_of(sums, 0),
            last - first, lanes, address_of(totals, 0), address_of(listed, 0), address_of(counts, 0),
            address_of(strip, 0), address_of(all_steps, 0),
        )  # fmt: skip
        call_address(tiles[MASKED], operands)


@jit
def lanes_outer(tiles, x, g, stride, n, listed_x, counts_x, listed_g, counts_g, dW):
    """Add x gᵀ to dW (K_in, K_out), feature by feature of those that are listed."""
    lanes, padded = lanes_of(x), whole_vectors(n, x)
    for b in range(counts_x.size):
        first, last = block_bounds(b, counts_x.size, padded, x)
        operands = (
            address_of(x, first), address_of(g, first), stride, (last - first) // lanes,
            address_of(listed_x, b * listed_x.shape[1]), counts_x[b], address_of(listed_g, b * listed_g.shape[1]),
            counts_g[b], address_of(dW, 0), dW.shape[1],
        )  # fmt: skip
        call_address(tiles[OUTER], operands)


@jit
def lanes_sums(tiles, x, K, stride, n, w, work, totals):
    """Add Σ w x to totals (K,): one column of an outer product."""
    sums, _, numbers = work
    lanes, padded, blocks = lanes_of(x), whole_vectors(n, x), blocks_of(n, x)
    for b in range(blocks):
        first, last = block_bounds(b, blocks, padded, x)
        sums[:K] = 0
        operands = (
            address_of(x, first), address_of(w, first), stride, (last - first) // lanes, address_of(numbers, 0), K,
            address_of(numbers, 0), 1, address_of(sums, 0), 1,
        )  # fmt: skip
        call_address(tiles[OUTER], operands)
        for k in range(K):
            totals[k] += sums[k]
