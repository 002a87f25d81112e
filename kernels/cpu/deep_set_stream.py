"""One set block by block; formulas in ``kernels/reference/deep_set_stream.py``.

Blocks go through the layers below in pieces that stay in the core's second-level cache, side by side over the workers.
What each STREAM_ROWS rows pool to is kept apart and added up in their order, so that neither the number of threads nor
the size of the blocks changes a bit. A large set that is in memory takes the same way, as one block.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.cpu.angular import add_harmonics, angular_filter, basis_rows, side_by_side
from fastperm.kernels.cpu.compiling import jit, subroutine
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
    blocks,  # () -> iterator of (x (R, K_0), or (R, 1 + K_0), weights (R,) or None), once for each pass
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    c,  # (D (1 + 2M), the largest width): for each layer, c_j and the 2M rows of Q_j
    y,  # (1, K_fin), the prediction; None without pooling
):
    pool_stream(KERNELS, blocks, parameters, widths, aggregate, pool, orders, c=c, y=y)


def deep_set_stream_rows(
    x,  # (R, K_0), or (R, 1 + K_0) if there are orders
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    c,  # (D (1 + 2M), the largest width), from `deep_set_stream_pool`
    orders=0,  # M of angular layers
    *,
    y,  # (R, K_fin), the predictions for these rows
):
    _answer_rows(x, x, 0, parameters, widths, c, orders, y)


def large_set_forward(
    x,  # (n, K_0), or (n, 1 + K_0) if there are orders
    weights,  # (n,) or None
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    y,  # (1, K_fin), or (n, K_fin) without pooling
):
    """Predict for one set that is in memory, with the bits of a stream whether or not activations are kept."""
    kept = _Kept(x, widths)
    fits = kept.size * x.itemsize <= KEPT_BYTES
    pool_rows = kept.pool_rows if fits else _pool_rows
    c = np.empty(((len(widths) - 2) * (1 + 2 * orders), max(widths)), x.dtype)
    kernels = StreamKernels(pool_rows, dense_forward, angular_filter)
    network = (parameters, widths, aggregate, pool, orders)
    pool_stream(kernels, lambda: [(x, weights)], *network, c=c, y=None if pool is None else y)
    if pool is None:
        h, layer = (kept.h, kept.layer) if fits else (x, 0)
        _answer_rows(x, h, layer, parameters, widths, c, orders, y)


class _Kept:
    """Two places that take turns to hold the activations of the whole set."""

    def __init__(self, x, widths):
        self.h, self.layer = x, 0
        self.size = 2 * len(x) * max(widths[1:-1])
        self.places = None

    def pool_rows(self, x, weights, parameters, widths, c, how, orders, *, totals):
        """Do what `_pool_rows` does; x is known, and c is that of one layer more in each pass."""
        if self.places is None:
            self.places = np.empty((2, self.size // 2), x.dtype)
        i, below, layer = len(c) // (1 + 2 * orders), self.h, self.layer
        if i > layer:
            self.h, self.layer = self.places[i % 2, : len(x) * widths[i]].reshape(len(x), widths[i]), i
        return _pool(x, below, layer, weights, parameters, widths, c, how, orders, self.h, totals)


def _pool_rows(x, weights, parameters, widths, c, how, orders, *, totals):
    """Pool h_i, c being that of the layers below, of these rows into totals (1, K_i), and return their total weight.

    With 1 + 2M rows, totals get the harmonics of h_i, too.
    """
    return _pool(x, x, 0, weights, parameters, widths, c, how, orders, x[:0], totals)


KERNELS = StreamKernels(_pool_rows, dense_forward, angular_filter)


def _pool(x, h, layer, weights, parameters, widths, c, how, orders, keep, totals):
    """Do what `_pool_rows` does from h_layer on, which is x for layer 0; ``keep`` gets h_i, unless it has no rows."""
    weights = weights_or_empty(weights, h.dtype)
    layers = _layers_as_arrays(layer, parameters, widths, c, orders)
    inputs = (tiles(h.dtype), x, h, layer, weights, *layers, MAX if how == "max" else SUM, keep)
    add = np.maximum if how == "max" else np.add
    count = -(-len(h) // STREAM_ROWS)
    total = 0.0
    parts, part_weights = np.empty((min(count, ROUND), *totals.shape)), np.empty(min(count, ROUND))
    for first in range(0, count, ROUND):
        last = min(first + ROUND, count)
        run([task(_pool_blocks, *ends, first, *inputs, parts, part_weights) for ends in _shares(first, last)])
        for part, part_weight in zip(parts[: last - first], part_weights[: last - first].tolist(), strict=True):
            add(totals, part, out=totals)
            total += part_weight
    return total


def _answer_rows(x, h, layer, parameters, widths, c, orders, y):
    """Write the predictions y (R, K_fin) for rows h_layer, which are x for layer 0."""
    inputs = (tiles(h.dtype), x, h, layer, *_layers_as_arrays(layer, parameters, widths, c, orders))
    head = split_parameters(parameters, widths, orders)[1]
    count = -(-len(h) // STREAM_ROWS)
    run([task(_head_blocks, *ends, *inputs, *head, y) for ends in _shares(0, count)])


def _shares(first, last):
    """Return the bounds of what each task does of so many things: how they are shared out changes no result."""
    count = min(CHUNKS, last - first)
    return pairwise([first + (last - first) * i // count for i in range(count + 1)])


def _layers_as_arrays(first, parameters, widths, c, orders):
    """Return the layers from ``first`` on that c is of: matrices, widths, c, 2M, and the rows to take at a time.

    Every W_self, with Q below it, in one array. The rows are those of the whole network, whichever of its layers are
    left to do: sums have the same bits then.
    """
    rows = max(ROW_BLOCK, min(STREAM_ROWS, CACHE_BYTES // (max(widths[:-1]) * parameters.itemsize)))
    c = c.reshape(-1, 1 + 2 * orders, c.shape[1])
    layers = split_parameters(parameters, widths, orders)[0][first : len(c)]
    matrices = [
        np.concatenate([W_self.ravel(), own[1:, : W_self.shape[1]].ravel()])
        for (W_self, *_), own in zip(layers, c[first:], strict=True)
    ]
    stacks = np.concatenate(matrices or [parameters[:0]])
    starts = np.ascontiguousarray(c[first:, 0])
    return stacks, np.array(widths[first : len(c) + 1]), starts, 2 * orders, rows


@subroutine
def _inputs(x, h, layer, start, stop, E, angles, features):
    """Return these rows of h, which is x for layer 0, without its angles; E (n, 2M) gets their harmonics.

    The last two are buffers, because a copy of x would grow with the set.
    """
    if E.shape[1] == 0:
        return h[start:stop]
    for i in range(stop - start):
        angles[i] = x[start + i, 0]
    basis_rows(0, stop - start, angles[: stop - start], E)
    if layer > 0:
        return h[start:stop]
    for i in range(stop - start):
        for k in range(features.shape[1]):
            features[i, k] = x[start + i, 1 + k]
    return features[: stop - start]


@subroutine
def _hidden(tiles, x, E, matrices, widths, c, buffers, beside, keep, w, totals):
    """Return x (n, K) after these layers, and write its sums weighted by w to totals.

    It lies in ``keep`` (n, K) if that has rows, else in one of the two ``buffers``, and is x itself without layers.
    E (n, 2M) goes ``beside`` the input of every layer.
    """
    n, H = len(x), E.shape[1]
    one, nowhere = np.ones(1, x.dtype), np.empty(widths.max())
    h, place = x, 0
    for i in range(widths.size - 1):
        K_in, K_out = widths[i] + H, widths[i + 1]
        matrix = matrices[place : place + K_in * K_out].reshape(K_in, K_out)
        last = i == widths.size - 2
        out = keep if last and len(keep) > 0 else buffers[i % 2, : n * K_out].reshape(n, K_out)
        if H > 0:
            own = beside[: n * K_in].reshape(n, K_in)
            side_by_side(h, one, E, one, 0, n, own)
            h = own
        product(
            tiles, h, matrix, c[i, :K_out], one, out, x.dtype.type(0), totals if last else nowhere, w if last else one
        )
        h = out
        place += K_in * K_out
    return h


@jit
def _pool_blocks(
    first_block, last_block, round_start, tiles, x, h, layer, weights, matrices, widths, c, H, rows, how, keep, parts,
    part_weights,
):  # fmt: skip
    K = widths[-1]
    buffers, beside = np.empty((2, rows * widths.max()), x.dtype), np.empty(rows * (widths.max() + H), x.dtype)
    E, angles, features = np.empty((rows, H), x.dtype), np.empty(rows, x.dtype), np.empty((rows, widths[0]), x.dtype)
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
            own_E = E[: stop - start]
            below = _inputs(x, h, layer, start, stop, own_E, angles, features)
            top = _hidden(
                tiles, below, own_E, matrices, widths, c, buffers, beside, own, one if w.size == 0 else w, part
            )
            if how == MAX or widths.size == 1:
                pool_set(top, w, 0, stop - start, how, part)
            for k in range(K):
                # Not a comparison alone: a NaN must reach the output.
                greater = part[k] > parts[place, 0, k] or np.isnan(part[k])
                added = parts[place, 0, k] + part[k]
                parts[place, 0, k] = added if how == SUM else part[k] if greater else parts[place, 0, k]
            if parts.shape[1] > 1:
                add_harmonics(0, stop - start, tiles, top, own_E, w, parts[place, 1:])


@jit
def _head_blocks(first_block, last_block, tiles, x, h, layer, matrices, widths, c, H, rows, W, b, y):
    buffers, beside = np.empty((2, rows * widths.max()), x.dtype), np.empty(rows * (widths.max() + H), x.dtype)
    one, nowhere = np.ones(1, x.dtype), np.empty(max(widths.max(), b.size))
    E, angles, features = np.empty((rows, H), x.dtype), np.empty(rows, x.dtype), np.empty((rows, widths[0]), x.dtype)
    end = min(last_block * STREAM_ROWS, len(x))
    for start in range(first_block * STREAM_ROWS, end, rows):
        stop = min(start + rows, end)
        own_E = E[: stop - start]
        below = _inputs(x, h, layer, start, stop, own_E, angles, features)
        top = _hidden(tiles, below, own_E, matrices, widths, c, buffers, beside, x[:0], one, nowhere)
        product(tiles, top, W, b, one, y[start:stop], x.dtype.type(-np.inf), nowhere, one)
