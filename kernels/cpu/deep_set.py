"""The whole network, set by set; specification in ``kernels/reference/deep_set.py``.

A framework runs layer by layer over all rows, so every activation travels through main memory several times. The loss
is a sum over sets: here one set goes forward through all layers and back again while its activations, N·ΣK numbers,
lie in the core's cache, and only small gradients of the parameters leave. Memory does not grow with the batch. On the
way back the gradient of an activation takes the very place of that activation, whose sign is its mask.

A large set would keep one worker busy and the others waiting, and its activations lie in no cache: it goes layer by
layer, with the workers sharing its rows, or, where there is no way back, block by block (`deep_set_stream`).
"""

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.deep_set_stream import large_set_forward
from fastperm.kernels.cpu.dense import dense_backward, dense_forward
from fastperm.kernels.cpu.equivariant import (
    equivariant_backward,
    equivariant_forward,
    longest_set,
    mean_scales,
    set_forward,
    set_parameter_gradients,
    set_pooled_gradient,
)
from fastperm.kernels.cpu.mean_squared_error import mean_squared_error, squared_error
from fastperm.kernels.cpu.pooling import (
    BLOCK,
    CODES,
    MAX,
    MEAN,
    add_ties_gradient,
    pool_set,
    pooling_backward,
    pooling_forward,
    total_weight,
    weights_or_empty,
)
from fastperm.kernels.cpu.product import product, product_accumulate, product_masked, tiles
from fastperm.kernels.cpu.similar_order import side_by_side, sorting_space
from fastperm.kernels.cpu.workers import add_parts, large_sets, run, small_chunks, task
from fastperm.kernels.reference.deep_set import LayerKernels, step_by_layers

NO_POOL = -1
KERNELS = LayerKernels(
    equivariant_forward,
    equivariant_backward,
    pooling_forward,
    pooling_backward,
    dense_forward,
    dense_backward,
    mean_squared_error,
)


def deep_set_forward(
    x,  # (T, K_0)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    *,
    y,  # (S, K_fin), or (T, K_fin) without pooling
):
    how = (CODES[aggregate], NO_POOL if pool is None else CODES[pool])
    inputs = (x, offsets, weights_or_empty(weights, x.dtype), parameters, np.array(widths))
    run([task(_forward, *sets, tiles(x.dtype), *inputs, *how, y) for sets in small_chunks(offsets, max(widths[:-1]))])
    for s in large_sets(offsets, max(widths[:-1])):
        own_x, _, own_weights, own_y = _alone(s, x, offsets, weights, y, pool)
        large_set_forward(own_x, own_weights, parameters, widths, aggregate, pool, y=own_y)


def deep_set_step(
    x,  # (T, K_0)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    targets,  # (S, K_fin), or (T, K_fin) without pooling
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    *,
    gradients,  # (P,), accumulated
):
    """Return the loss as a float. If it is not finite, the gradients mean nothing."""
    how = (CODES[aggregate], NO_POOL if pool is None else CODES[pool])
    shape, present = np.array(widths), weights_or_empty(weights, x.dtype)
    inputs = (x, offsets, present, targets, parameters, _transposed(parameters, shape), shape)
    losses = np.zeros(len(offsets) - 1)
    parts, tasks = [], []
    for sets in small_chunks(offsets, max(widths[:-1])):
        parts.append(np.empty_like(parameters))
        tasks.append(task(_step, *sets, tiles(x.dtype), *inputs, *how, parts[-1], losses))
    run(tasks)
    add_parts(parts, gradients)
    loss = float(losses.sum()) / targets.size
    for s in large_sets(offsets, max(widths[:-1])):
        own = _alone(s, x, offsets, weights, targets, pool)
        network = (parameters, widths, aggregate, pool)
        loss += step_by_layers(KERNELS, *own, *network, targets.size, gradients=gradients)
    return loss


def _alone(s, x, offsets, weights, results, pool):
    """Return x, offsets and weights of a batch of set s alone, and its rows of the predictions or targets."""
    rows = slice(offsets[s], offsets[s + 1])
    own = rows if pool is None else slice(s, s + 1)
    return x[rows], offsets[s : s + 2] - offsets[s], None if weights is None else weights[rows], results[own]


@jit
def _layer_starts(widths):
    """Return where each layer's parameters, and then the head's, begin in the flat array."""
    depth = widths.size - 2
    starts = np.zeros(depth + 1, np.int64)
    for i in range(depth):
        starts[i + 1] = starts[i] + 2 * widths[i] * widths[i + 1] + widths[i + 1]
    return starts


@jit
def _layer(parameters, start, K_in, K_out):
    """Return W_self, W_pool and b of the layer that begins at ``start``."""
    size = K_in * K_out
    return (
        parameters[start : start + size].reshape(K_in, K_out),
        parameters[start + size : start + 2 * size].reshape(K_in, K_out),
        parameters[start + 2 * size : start + 2 * size + K_out],
    )


@jit
def _head(parameters, start, K_in, K_out):
    """Return W and b of the head."""
    size = K_in * K_out
    return parameters[start : start + size].reshape(K_in, K_out), parameters[start + size : start + size + K_out]


@jit
def _transposed(parameters, widths):
    """Return a flat array with every matrix transposed."""
    starts, depth = _layer_starts(widths), widths.size - 2
    out = np.empty_like(parameters)
    for i in range(depth):
        W_self, W_pool, _ = _layer(parameters, starts[i], widths[i], widths[i + 1])
        W_self_T, W_pool_T, _ = _layer(out, starts[i], widths[i + 1], widths[i])
        _transpose(W_self, W_self_T)
        _transpose(W_pool, W_pool_T)
    W, _ = _head(parameters, starts[depth], widths[depth], widths[depth + 1])
    _transpose(W, out[starts[depth] : starts[depth] + W.size].reshape(widths[depth + 1], widths[depth]))
    return out


@jit
def _transpose(W, W_T):
    # Not as an assignment of W.T: Numba would compile its error message, for three seconds.
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            W_T[j, i] = W[i, j]


@jit
def _own_weights(weights, first, last):
    return weights if weights.size == 0 else weights[first:last]


@jit
def _pool_totals(y, w, pool, weight, totals, p):
    """Write what a set pools to: from the weighted sums that the product left, or from y (n, K) for the maximum."""
    if pool == MAX:
        pool_set(y, w, 0, len(y), MAX, p)
        return
    for k in range(p.size):
        p[k] = totals[k] / weight if pool == MEAN else totals[k]


@jit
def _set_forward(tiles, x, w, parameters, starts, widths, aggregate, pool, hidden, all_kept, pooled, c, totals):
    """Take one set forward and return h_D: ``pooled[i]`` gets what layer i, or the head, sees of the set.

    In ``hidden`` the h_i lie one behind the other if they are all kept; else two places take turns.
    """
    depth = widths.size - 2
    n = len(x)
    one = np.ones(1, x.dtype)
    weight = total_weight(w, 0, n)
    pool_set(x, w, 0, n, aggregate, pooled[0, : widths[0]])
    place = 0
    below = 0
    for i in range(depth):
        K_in, K_out = widths[i], widths[i + 1]
        W_self, W_pool, b = _layer(parameters, starts[i], K_in, K_out)
        h = x if i == 0 else hidden[below : below + n * K_in].reshape(n, K_in)
        y = hidden[place : place + n * K_out].reshape(n, K_out)
        totals[:K_out] = 0
        set_forward(
            tiles, h, pooled[i, :K_in], W_self, W_pool, b, x.dtype.type(0), one if w.size == 0 else w, c[:K_out], y,
            totals[:K_out],
        )  # fmt: skip
        how = aggregate if i < depth - 1 else pool
        if how != NO_POOL:
            _pool_totals(y, w, how, weight, totals[:K_out], pooled[i + 1, :K_out])
        below = place
        place = place + n * K_out if all_kept else (len(hidden) // 2 if place == 0 else 0)
    return hidden[below : below + n * widths[depth]].reshape(n, widths[depth])


@jit
def _set_head(tiles, h, p, W, b, pool, y):
    """Write the prediction y (1, K_fin) from p (K,), or (n, K_fin) from h (n, K) without pooling."""
    one, nowhere = np.ones(1, h.dtype), np.empty(b.size)
    no_floor = h.dtype.type(-np.inf)
    if pool == NO_POOL:
        product(tiles, h, W, b, one, y, no_floor, nowhere, one)
    else:
        product(tiles, p, W, b, one, y, no_floor, nowhere, one)


@jit
def _answer(y, s, first, last, pool):
    """Return the rows of y that belong to set s."""
    return y[first:last] if pool == NO_POOL else y[s : s + 1]


@jit
def _forward(first_set, last_set, tiles, x, offsets, weights, parameters, widths, aggregate, pool, y):
    starts, depth = _layer_starts(widths), widths.size - 2
    widest = widths.max()
    longest = longest_set(offsets, first_set, last_set)
    hidden = np.empty(2 * longest * widest, x.dtype)
    # Without pooling the order shows.
    sorted_x, sorted_w = sorting_space(x, weights, widths, longest if pool != NO_POOL else 0)
    pooled = np.empty((depth + 1, widest), x.dtype)
    c, totals = np.empty(widest, x.dtype), np.empty(widest)
    W, b = _head(parameters, starts[depth], widths[depth], widths[depth + 1])
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        w = _own_weights(weights, first, last)
        own, w = side_by_side(x[first:last], w, sorted_x, sorted_w)
        h = _set_forward(tiles, own, w, parameters, starts, widths, aggregate, pool, hidden, False, pooled, c, totals)
        _set_head(tiles, h, pooled[depth, : len(W)], W, b, pool, _answer(y, s, first, last, pool))


@jit
def _step(
    first_set,
    last_set,
    tiles,
    x,
    offsets,
    weights,
    targets,
    parameters,
    transposed,
    widths,
    aggregate,
    pool,
    gradients,
    losses,
):
    gradients[:] = 0
    starts, depth = _layer_starts(widths), widths.size - 2
    widest, K_fin, K_last = widths.max(), widths[depth + 1], widths[depth]
    longest = longest_set(offsets, first_set, last_set)
    hidden = np.empty(longest * widths[1:-1].sum(), x.dtype)
    # Without pooling the order shows.
    sorted_x, sorted_w = sorting_space(x, weights, widths, longest if pool != NO_POOL else 0)
    spare = np.empty(longest * widest if aggregate == MAX else 0, x.dtype)
    pooled = np.empty((depth + 1, widest), x.dtype)
    c, totals, scales = np.empty(widest, x.dtype), np.empty(widest), np.empty(longest, x.dtype)
    G, dm = np.empty(widest, x.dtype), np.empty(widest, x.dtype)
    answers = longest if pool == NO_POOL else 1
    y, dy = np.empty((answers, K_fin), x.dtype), np.empty((answers, K_fin), x.dtype)
    one = np.ones(1, x.dtype)
    W, b = _head(parameters, starts[depth], K_last, K_fin)
    dW, db = _head(gradients, starts[depth], K_last, K_fin)
    W_T = transposed[starts[depth] : starts[depth] + W.size].reshape(K_fin, K_last)
    factor = x.dtype.type(2) / x.dtype.type(targets.size)

    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        n = last - first
        w = _own_weights(weights, first, last)
        elements, w = side_by_side(x[first:last], w, sorted_x, sorted_w)
        h = _set_forward(
            tiles, elements, w, parameters, starts, widths, aggregate, pool, hidden, True, pooled, c, totals
        )
        own = 1 if pool != NO_POOL else n
        _set_head(tiles, h, pooled[depth, : len(W)], W, b, pool, y[:own])
        losses[s] = squared_error(y[:own], _answer(targets, s, first, last, pool), factor, dy[:own])

        for r in range(own):
            for k in range(K_fin):
                db[k] += dy[r, k]
        totals[:K_last] = 0
        dm[:K_last] = 0
        if pool == NO_POOL:
            product_accumulate(tiles, h, dy, dW)
            product_masked(tiles, dy[:own], W_T, dm[:K_last], one, h, totals[:K_last])
        else:
            product_accumulate(tiles, pooled[depth, :K_last], dy, dW)
            set_pooled_gradient(tiles, dy[0], W_T, dm[:K_last])
            mean_scales(w, 0, n, pool, scales)
            _unpool(h, w, pooled[depth, :K_last], dm[:K_last], pool, scales, totals[:K_last])

        # From here on, h holds its own gradient.
        place = n * widths[1:-1].sum()
        mean_scales(w, 0, n, aggregate, scales)
        for i in range(depth - 1, -1, -1):
            K_in, K_out = widths[i], widths[i + 1]
            place -= n * K_out
            g = hidden[place : place + n * K_out].reshape(n, K_out)
            below = elements if i == 0 else hidden[place - n * K_in : place].reshape(n, K_in)
            for k in range(K_out):
                G[k] = totals[k]
            dW_self, dW_pool, db_layer = _layer(gradients, starts[i], K_in, K_out)
            set_parameter_gradients(tiles, g, G[:K_out], below, pooled[i, :K_in], dW_self, dW_pool, db_layer)
            if i == 0:
                break
            W_self_T, W_pool_T, _ = _layer(transposed, starts[i], K_out, K_in)
            set_pooled_gradient(tiles, G[:K_out], W_pool_T, dm[:K_in])
            totals[:K_in] = 0
            if aggregate == MAX:
                _masked_maximum(tiles, g, below, w, W_self_T, pooled[i, :K_in], dm[:K_in], spare, totals[:K_in])
            else:
                product_masked(tiles, g, W_self_T, dm[:K_in], scales[:n], below, totals[:K_in])


@jit
def _unpool(h, w, p, dp, pool, scales, totals):
    """Replace h (n, K) by its masked gradient for the gradient dp (K,) of its pooling, and add its sums to totals."""
    n, K = h.shape
    if pool == MAX:
        dh = np.zeros_like(h)
        add_ties_gradient(dp, h, p, w, 0, n, dh)
        _take_masked(dh, h, totals)
        return
    scale = 1 / total_weight(w, 0, n) if pool == MEAN else 1.0
    # The sum of g is that of the weights of the elements that are on: whole numbers where there are no weights.
    zero, block = h.dtype.type(0), np.empty(K, h.dtype)
    for first in range(0, n, BLOCK):
        block[:] = 0
        for r in range(first, min(first + BLOCK, n)):
            row = h[r]  # indexed from 0, or the loop is not vectorised
            weight, factor = h.dtype.type(1) if w.size == 0 else w[r], scales[r]
            for k in range(K):
                block[k] += weight if row[k] > 0 else zero
                row[k] = factor * dp[k] if row[k] > 0 else zero
        for k in range(K):
            totals[k] += scale * dp[k] * block[k]


@jit
def _masked_maximum(tiles, g, below, w, W_self_T, m, dm, spare, totals):
    """Do what `product_masked` does where the set was pooled by its maximum: its ties are read before h goes."""
    n, K_in = below.shape
    one, start, nowhere = np.ones(1, g.dtype), np.zeros_like(dm), np.empty(dm.size)
    dh = spare[: n * K_in].reshape(n, K_in)
    product(tiles, g, W_self_T, start, one, dh, g.dtype.type(-np.inf), nowhere, one)
    add_ties_gradient(dm, below, m, w, 0, n, dh)
    _take_masked(dh, below, totals)


@jit
def _take_masked(dh, h, totals):
    """Replace h by dh where h > 0, by 0 elsewhere, and add the sums to totals (K,)."""
    n, K = h.shape
    for r in range(n):
        for k in range(K):
            g = dh[r, k] if h[r, k] > 0 else h.dtype.type(0)
            h[r, k] = g
            totals[k] += g
