r"""The products of rows of elements: what single layers, streams and large sets run on.

    z[r, j] = scale_r · c[j] + Σ_k a[r, k] · B[k, j]

    out[r, j] = max(z[r, j], floor),               totals[j] += Σ_r weight_r · out[r, j]    (`product`)
    out[i, j] += Σ_k x[k, i] · g[k, j]                                                      (`product_accumulate`)

One register tile serves both: its rows and its steps are read through strides, so that a row of xᵀ·g is a column of x.
Start (bias, pooled term) and finish happen while the tile is in registers: ReLU (floor 0, or −∞ for none) and the sums
that the next layer's mean needs. A whole set that fits the cache is turned round instead, which leaves out more zeros:
see `lane_product`. Products of one row, and with one row, are plain loops (`vector_product`, `add_outer`).

Behind a ReLU about half of a is zero, and not at random: a unit is mostly on or off for a whole run of elements. So a
tile takes only those steps k for which some of its rows have a[r, k] ≠ 0, and xᵀ·g only those columns of x that are not
zero in all rows of a block. What is left out is adding 0 · B[k, j]: as long as B is finite no value changes, but for
the sign of a zero. With nothing to leave out this costs 3 %; on the headline network it saves a third of the time.

Every output is one chain of fused multiply-adds over k, whatever the tile: a row has the same values wherever it
stands. A library's product does not promise that, brings thread pools that fight with ours, cannot leave out zeros, and
is no faster on what is left: see ``docs/performance.md``.

The tiles are compiled once for each dtype, as C functions; kernels get their addresses as ``tiles``. Compiled into
every kernel that multiplies, they would take a minute instead of seconds.
"""

import functools

import numpy as np
from numba import types

from fastperm.kernels.cpu.addresses import address_of, call_address
from fastperm.kernels.cpu.compiling import c_function, jit, subroutine
from fastperm.kernels.cpu.register_tile import ACCUMULATE, PLAIN, VECTOR_BYTES, WIDEST, tile_panel

# Rows whose sums are taken in the working precision before they go to float64: a multiple of every tile's rows, and
# few enough that float32 results are as exact as PyTorch's (`tests/test_rivals.py`); 1008 were not.
ROW_BLOCK = 168
# Elements whose outer products are summed by themselves before they are added to a gradient: few enough that a unit
# is often off for all of them (and is left out), enough that loading and storing the sums costs little.
STEP_BLOCK = 128


def _make_driver(kind):
    """Return the loop over panels: as many of the widest as fit, one of what is left, one for the cut vector."""

    def driver(
        columns, a, row_stride, step_stride, B, B_stride, c, scale, scale_stride, out, out_stride, n, steps, floor,
        sums, weight, weight_stride, listed, lanes,
    ):  # fmt: skip
        operands = (
            columns, a, row_stride, step_stride, B, B_stride, c, scale, scale_stride, out, out_stride, n, steps, floor,
            sums, weight, weight_stride, listed,
        )  # fmt: skip
        j = 0
        while j < columns:
            vectors = min((columns - j) // lanes, WIDEST)
            if vectors == 4:
                tile_panel(4, 0, kind, j, operands)
            elif vectors == 3:
                tile_panel(3, 0, kind, j, operands)
            elif vectors == 2:
                tile_panel(2, 0, kind, j, operands)
            elif vectors == 1:
                tile_panel(1, 0, kind, j, operands)
            else:
                tile_panel(1, 1, kind, j, operands)
            j += max(vectors, 1) * lanes

    return driver


_DRIVERS = {kind: _make_driver(kind) for kind in (PLAIN, ACCUMULATE)}


@functools.cache
def tiles(dtype):
    """Return the addresses of the compiled tiles for this dtype, as kernels take them."""
    scalar = types.float32 if dtype == np.float32 else types.float64
    array, number = types.CPointer(scalar), types.int64
    operands = (
        number, array, number, number, array, number, array, array, number, array, number, number, number, scalar,
        array, array, number, types.CPointer(types.int64), number,
    )  # fmt: skip
    return tuple(c_function(_DRIVERS[kind], types.void(*operands)) for kind in (PLAIN, ACCUMULATE))


# These two take arrays, never pointers: Numba lets go of an array after the last mention of its name, and whoever
# calls with an array holds it until the call is over.


@jit
def product(
    tiles,
    a,  # (n, steps)
    B,  # (steps, columns)
    c,  # (columns,)
    scale,  # (n,) or (1,)
    out,  # (n, columns)
    floor,  # 0 for relu, -inf for identity
    totals,  # (columns,), float64, added to
    weight,  # (n,) or (1,)
):
    """Write max(scale_r · c + a_r · B, floor) to out, and add its weighted sums to totals. All arrays C-contiguous."""
    steps, columns = B.shape
    n = a.size // steps
    scale_stride, weight_stride = min(scale.size - 1, 1), min(weight.size - 1, 1)
    sums, unlisted = np.empty(columns, B.dtype), np.empty(1, np.int64)
    for first in range(0, n, ROW_BLOCK):
        sums[:] = 0
        operands = (
            columns, address_of(a, first * steps), steps, 1, address_of(B, 0), columns, address_of(c, 0),
            address_of(scale, first * scale_stride), scale_stride, address_of(out, first * columns), columns,
            min(ROW_BLOCK, n - first), steps, floor, address_of(sums, 0), address_of(weight, first * weight_stride),
            weight_stride, address_of(unlisted, 0), VECTOR_BYTES // B.itemsize,
        )  # fmt: skip
        call_address(tiles[PLAIN], operands)
        for j in range(columns):
            totals[j] += sums[j]


@subroutine
def _list_nonzero(words, bits, listed):
    """List the columns of a matrix, given as 32-bit words, that are not zero in all rows; return how many there are."""
    n, width = listed.size, bits.size
    bits[:] = 0
    for first in range(0, words.size, width):
        row = words[first : first + width]
        for i in range(width):
            bits[i] |= row[i]
    count = 0
    for i in range(n):
        listed[count] = i
        count += (bits[i] if width == n else bits[2 * i] | bits[2 * i + 1]) != 0
    return count


@jit
def product_accumulate(
    tiles,
    x,  # (steps, n)
    g,  # (steps, columns)
    out,  # (n, columns)
):
    """Add xᵀ g to out. All arrays C-contiguous."""
    n, columns = out.shape
    steps = x.size // n
    lanes = VECTOR_BYTES // out.itemsize
    listed = np.arange(n)
    words = x.reshape(x.size).view(np.uint32)
    bits = np.empty(n * (x.itemsize // 4), np.uint32)
    for first in range(0, steps, STEP_BLOCK):
        last = min(first + STEP_BLOCK, steps)
        rows = n
        if columns > lanes:  # else the tiles are done before the zeros are found
            rows = _list_nonzero(words[first * bits.size : last * bits.size], bits, listed)
        operands = (
            columns, address_of(x, first * n), 1, n, address_of(g, first * columns), columns, address_of(g, 0),
            address_of(g, 0), 0, address_of(out, 0), columns, rows, last - first, out[0, 0],
            address_of(g, 0), address_of(g, 0), 0, address_of(listed, 0), lanes,
        )  # fmt: skip
        call_address(tiles[ACCUMULATE], operands)
    bits[0] = listed[0]  # the list is held until the last call is over


@jit
def add_outer(x, g, out):
    """Add the products x_i g_j of two vectors to out (n, columns)."""
    for i in range(x.size):
        factor = x[i]
        if factor == 0:
            continue
        row = out[i]
        for j in range(g.size):
            row[j] += factor * g[j]


@jit
def vector_product(x, B, start, out):
    """Write start + x B (columns,) for one row x (steps,); products take many."""
    for j in range(out.size):
        out[j] = start[j]
    for k in range(x.size):
        factor = x[k]
        if factor == 0:
            continue
        row = B[k]
        for j in range(out.size):
            out[j] += factor * row[j]
