"""One set block by block; formulas in ``kernels/reference/deep_set_stream.py``.

Blocks go through the layers below in pieces that stay in the core's second-level cache, side by side over the workers.
What each STREAM_ROWS rows pool to is kept apart and added up in their order, so that neither the number of threads nor
the size of the blocks changes a bit. A large set that is in memory takes the same way, as one block.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.dense import dense_forward
from fastperm.kernels.cpu.pooling import MAX, SUM, pool_set, total_weight, weights_or_empty
from fastperm.kernels.cpu.product import ROW_BLOCK, product, tiles
from fastperm.kernels.cpu.workers import CHUNKS, run, task
from fastperm.kernels.reference.deep_set import split_parameters
from fastperm.kernels.reference.deep_set_stream import STREAM_ROWS, StreamKernels, pool_stream

# So many times STREAM_ROWS are done before the workers wait for each other, and their results are added up.
ROUND = 16 * CHUNKS
# Of each of the two buffers that a worker takes its rows through.
CACHE_BYTES = 2**18
# Up to here, activations are kept from one pass to the next. To compute them anew takes 1.5 times as long (four layers
# of width 64 to 256, 50,000 to 1,000,000 elements, two cores), but no memory that grows with the set.
KEPT_BYTES = 2**25


def deep_set_stream_pool(
    blocks,  # () -> iterator of (x (R, K_0), weights (R,) or None), once for each pass
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    *,
    c,  # (D, the largest width): row j gets c_j
    y,  # (1, K_fin), the prediction; None without pooling
):
    pool_stream(KERNELS, blocks, parameters, widths, aggregate, pool, c=c, y=y)


def deep_set_stream_rows(
    x,  # (R, K_0)
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    c,  # (D, the largest width), from `deep_set_stream_pool`
    *,
    y,  # (R, K_fin), the predictions for these rows
):
    _answer_rows(x, 0, parameters, widths, c, y)


def large_set_forward(
    x,  # (n, K_0)
    weights,  # (n,) or None
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    *,
    y,  # (1, K_fin), or (n, K_fin) without pooling
):
    """Predict for one set that is in memory, with the bits of a stream whether or not activations are kept."""
    kept = _Kept(x, widths)
    fits = kept.size * x.itemsize <= KEPT_BYTES
    pool_rows = kept.pool_rows if fits else _pool_rows
    c = np.empty((len(widths) - 2, max(widths)), x.dtype)
    pool_stream(
        *(StreamKernels(pool_rows, dense_forward), lambda: [(x, weights)], parameters, widths, aggregate, pool),
        c=c,
        y=None if pool is None else y,
    )
    if pool is None:
        _answer_rows(*((kept.h, kept.layer) if fits else (x, 0)), parameters, widths, c, y)


class _Kept:
    """Two places that take turns to hold the activations of the whole set."""

    def __init__(self, x, widths):
        self.h, self.layer = x, 0  # h_layer
        self.size = 2 * len(x) * max(widths[1:-1])
        self.places = None

    def pool_rows(self, x, weights, parameters, widths, c, how, *, totals):
        """Do what `_pool_rows` does; x is known, and c has one row more in each pass."""
        if self.places is None:
            self.places = np.empty((2, self.size // 2), x.dtype)
        K, below, layer = widths[len(c)], self.h, self.layer
        if len(c) > layer:
            self.h, self.layer = self.places[len(c) % 2, : len(x) * K].reshape(len(x), K), len(c)
        return _pool(below, layer, weights, parameters, widths, c, how, self.h, totals)


def _pool_rows(x, weights, parameters, widths, c, how, *, totals):
    """Pool h_i, with i the number of rows of c, of these rows into totals (K_i,), and return their total weight."""
    return _pool(x, 0, weights, parameters, widths, c, how, x[:0], totals)


KERNELS = StreamKernels(_pool_rows, dense_forward)


def _pool(h, layer, weights, parameters, widths, c, how, keep, totals):
    """Do what `_pool_rows` does from h_layer on; ``keep`` gets h_i, unless it has no rows."""
    weights = weights_or_empty(weights, h.dtype)
    layers = _layers_as_arrays(layer, parameters, widths, c)
    inputs = (tiles(h.dtype), h, weights, *layers, MAX if how == "max" else SUM, keep)
    add = np.maximum if how == "max" else np.add
    count = -(-len(h) // STREAM_ROWS)
    total = 0.0
    parts, part_weights = np.empty((min(count, ROUND), totals.size)), np.empty(min(count, ROUND))
    for first in range(0, count, ROUND):
        last = min(first + ROUND, count)
        run([task(_pool_blocks, *ends, first, *inputs, parts, part_weights) for ends in _shares(first, last)])
        for part, part_weight in zip(parts[: last - first], part_weights[: last - first].tolist(), strict=True):
            add(totals, part, out=totals)
            total += part_weight
    return total


def _answer_rows(h, layer, parameters, widths, c, y):
    """Write the predictions y (R, K_fin) for rows h_layer."""
    inputs = (tiles(h.dtype), h, *_layers_as_arrays(layer, parameters, widths, c))
    head = split_parameters(parameters, widths)[1]
    count = -(-len(h) // STREAM_ROWS)
    run([task(_head_blocks, *ends, *inputs, *head, y) for ends in _shares(0, count)])


def _shares(first, last):
    """Return the bounds of what each task does of so many things: how they are shared out changes no result."""
    count = min(CHUNKS, last - first)
    return pairwise([first + (last - first) * i // count for i in range(count + 1)])


def _layers_as_arrays(first, parameters, widths, c):
    """Return layers ``first`` to len(c): every W_self in one array, their widths, c, and the rows to take at a time.

    The rows are those of the whole network, whichever of its layers are left to do: sums have the same bits then.
    """
    rows = max(ROW_BLOCK, min(STREAM_ROWS, CACHE_BYTES // (max(widths[:-1]) * parameters.itemsize)))
    matrices = [W_self.ravel() for W_self, _, _ in split_parameters(parameters, widths)[0][first : len(c)]]
    return np.concatenate(matrices or [parameters[:0]]), np.array(widths[first : len(c) + 1]), c[first:], rows


@jit
def _hidden(tiles, x, matrices, widths, c, buffers, keep, w, totals):
    """Return x (n, K) after these layers, and write its sums weighted by w to totals.

    It lies in ``keep`` (n, K) if that has rows, else in one of the two ``buffers``, and is x itself without layers.
    """
    n = len(x)
    one, nowhere = np.ones(1, x.dtype), np.empty(widths.max())
    h, place = x, 0
    for i in range(widths.size - 1):
        K_in, K_out = widths[i], widths[i + 1]
        W_self = matrices[place : place + K_in * K_out].reshape(K_in, K_out)
        last = i == widths.size - 2
        out = keep if last and len(keep) > 0 else buffers[i % 2, : n * K_out].reshape(n, K_out)
        product(
            tiles, h, W_self, c[i, :K_out], one, out, x.dtype.type(0), totals if last else nowhere, w if last else one
        )
        h = out
        place += K_in * K_out
    return h


@jit
def _pool_blocks(
    first_block, last_block, round_start, tiles, x, weights, matrices, widths, c, rows, how, keep, parts, part_weights,
):  # fmt: skip
    K = widths[-1]
    buffers = np.empty((2, rows * widths.max()), x.dtype)
    one = np.ones(1, x.dtype)
    part = np.empty(K)
    for block in range(first_block, last_block):
        first, last = block * STREAM_ROWS, min((block + 1) * STREAM_ROWS, len(x))
        place = block - round_start
        part_weights[place] = total_weight(weights, first, last)
        parts[place] = -np.inf if how == MAX else 0.0
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            w = weights if weights.size == 0 else weights[start:stop]
            part[:] = 0
            own = keep if len(keep) == 0 else keep[start:stop]
            h = _hidden(tiles, x[start:stop], matrices, widths, c, buffers, own, one if w.size == 0 else w, part)
            if how == MAX or widths.size == 1:
                pool_set(h, w, 0, stop - start, how, part)
            for k in range(K):
                # Not a comparison alone: a NaN must reach the output.
                greater = part[k] > parts[place, k] or np.isnan(part[k])
                parts[place, k] = parts[place, k] + part[k] if how == SUM else part[k] if greater else parts[place, k]


@jit
def _head_blocks(first_block, last_block, tiles, x, matrices, widths, c, rows, W, b, y):
    buffers = np.empty((2, rows * widths.max()), x.dtype)
    one, nowhere = np.ones(1, x.dtype), np.empty(max(widths.max(), b.size))
    end = min(last_block * STREAM_ROWS, len(x))
    for start in range(first_block * STREAM_ROWS, end, rows):
        stop = min(start + rows, end)
        h = _hidden(tiles, x[start:stop], matrices, widths, c, buffers, x[:0], one, nowhere)
        product(tiles, h, W, b, one, y[start:stop], x.dtype.type(-np.inf), nowhere, one)
