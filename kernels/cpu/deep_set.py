"""The whole network, set by set; specification in ``kernels/reference/deep_set.py``.

A framework runs layer by layer over all rows, so every activation travels through main memory several times. The loss
is a sum over sets: here one set goes forward through all layers and back again while its activations, N·ΣK numbers,
lie in the core's cache, and only small gradients of the parameters leave. Memory does not grow with the batch. On the
way back the gradient of an activation takes the very place of that activation, whose sign is its mask.

Here, elements lie in the lanes of vectors and features are rows, so that a unit that is off is a row that is left out
(`lane_product`): a third of the arithmetic of a step is left where half of the units are on. Angular layers have
further rows (`lane_angular`).

A large set would keep one worker busy and the others waiting, and its activations lie in no cache: it goes layer by
layer, with the workers sharing its rows, or, where there is no way back, block by block (`deep_set_stream`).
"""

from typing import Any, NamedTuple

import numpy as np

from fastperm.kernels.cpu.addresses import borrowed, hold, matrix_at
from fastperm.kernels.cpu.angular import angular_backward, angular_basis, angular_forward
from fastperm.kernels.cpu.compiling import jit, subroutine
from fastperm.kernels.cpu.deep_set_stream import large_set_forward
from fastperm.kernels.cpu.dense import dense_backward, dense_forward
from fastperm.kernels.cpu.equivariant import (
    equivariant_backward,
    equivariant_forward,
    longest_set,
)
from fastperm.kernels.cpu.lane_angular import (
    circle_of,
    filter_lanes,
    filters_at,
    filters_backward,
    harmonics_backward,
    list_harmonics,
    turn_angles,
)
from fastperm.kernels.cpu.lane_pooling import pool_lanes, share_maximum
from fastperm.kernels.cpu.lane_product import (
    blocks_of,
    copy_numbers,
    lane_tiles,
    lanes_forward,
    lanes_masked,
    lanes_outer,
    lanes_sums,
    list_all,
    list_units_on,
    pack_panels,
    panels_size,
    row_stride,
    whole_vectors,
    workspace,
)
from fastperm.kernels.cpu.mean_squared_error import mean_squared_error, squared_error
from fastperm.kernels.cpu.pooling import (
    CODES,
    MAX,
    MEAN,
    SUM,
    pooling_backward,
    pooling_forward,
    total_weight,
    weights_or_empty,
)
from fastperm.kernels.cpu.product import add_outer, vector_product
from fastperm.kernels.cpu.similar_order import copy_to_lanes, worth_sorting
from fastperm.kernels.cpu.workers import add_parts, large_sets, next_chunk, share, small_chunks, widest_activation
from fastperm.kernels.reference.deep_set import LayerKernels, step_by_layers

NO_POOL = -1
KERNELS = LayerKernels(
    equivariant_forward,
    equivariant_backward,
    angular_basis,
    angular_forward,
    angular_backward,
    pooling_forward,
    pooling_backward,
    dense_forward,
    dense_backward,
    mean_squared_error,
)


def deep_set_forward(
    x,  # (T, K_0), or (T, 1 + K_0) if there are orders
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    y,  # (S, K_fin), or (T, K_fin) without pooling
):
    how = (CODES[aggregate], NO_POOL if pool is None else CODES[pool], orders)
    shape, present = np.array(widths), weights_or_empty(weights, x.dtype)
    packed = _packed(parameters, shape, orders)
    chunks = small_chunks(offsets, widest_activation(widths, orders))
    share(_forward, chunks, lane_tiles(x.dtype), x, offsets, present, parameters, packed, shape, *how, y)
    for s in large_sets(offsets, widest_activation(widths, orders)):
        own_x, _, own_weights, own_y = _alone(s, x, offsets, weights, y, pool)
        large_set_forward(own_x, own_weights, parameters, widths, aggregate, pool, orders, y=own_y)


def deep_set_step(
    x,  # (T, K_0), or (T, 1 + K_0) if there are orders
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    targets,  # (S, K_fin), or (T, K_fin) without pooling
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    gradients,  # (P,), accumulated
):
    """Return the loss as a float. If it is not finite, the gradients mean nothing."""
    how = (CODES[aggregate], NO_POOL if pool is None else CODES[pool], orders)
    shape, present = np.array(widths), weights_or_empty(weights, x.dtype)
    again = (_packed(parameters, shape, orders), _transposed(parameters, shape, orders))
    chunks, losses = small_chunks(offsets, widest_activation(widths, orders)), np.zeros(len(offsets) - 1)
    parts = np.empty((len(chunks), parameters.size), x.dtype)
    inputs = (lane_tiles(x.dtype), x, offsets, present, targets, parameters, *again, shape, *how)
    share(_step, chunks, *inputs, parts, losses)
    add_parts(parts, gradients)
    loss = float(losses.sum()) / targets.size
    for s in large_sets(offsets, widest_activation(widths, orders)):
        own = _alone(s, x, offsets, weights, targets, pool)
        network = (parameters, widths, aggregate, pool, orders)
        loss += step_by_layers(*(KERNELS, *own, *network, targets.size), gradients=gradients)
    return loss


def _alone(s, x, offsets, weights, results, pool):
    """Return x, offsets and weights of a batch of set s alone, and its rows of the predictions or targets."""
    rows = slice(offsets[s], offsets[s + 1])
    own = rows if pool is None else slice(s, s + 1)
    return x[rows], offsets[s : s + 2] - offsets[s], None if weights is None else weights[rows], results[own]


@subroutine
def _layer_starts(widths, orders):
    """Return where each layer's parameters, and then the head's, begin in the flat array."""
    depth = widths.size - 2
    starts = np.zeros(depth + 1, np.int64)
    for i in range(depth):
        starts[i + 1] = starts[i] + 2 * (1 + orders) * widths[i] * widths[i + 1] + widths[i + 1]
    return starts


@subroutine
def _layer(parameters, start, K_in, K_out):
    """Return W_self, W_pool and b of the layer that begins at ``start``, borrowed."""
    b = start + 2 * K_in * K_out
    return (
        matrix_at(parameters, start, K_in, K_out),
        matrix_at(parameters, start + K_in * K_out, K_in, K_out),
        parameters[b : b + K_out],
    )


@subroutine
def _head(parameters, start, K_in, K_out):
    """Return W and b of the head, borrowed."""
    b = start + K_in * K_out
    return matrix_at(parameters, start, K_in, K_out), parameters[b : b + K_out]


@jit
def _packed(parameters, widths, orders):
    """Return W_self of every layer, and W of the head, packed in panels for `lanes_forward`, and where each begins.

    In each panel of an angular layer there is room for the 2M rows of Q.
    """
    starts, depth, rows = _layer_starts(widths, orders), widths.size - 2, 2 * orders
    places = np.zeros(depth + 2, np.int64)
    for i in range(depth + 1):
        places[i + 1] = places[i] + panels_size(widths[i] + (rows if i < depth else 0), widths[i + 1])
    panels = np.empty(places[depth + 1], parameters.dtype)
    for i in range(depth):
        W_self, _, _ = _layer(parameters, starts[i], widths[i], widths[i + 1])
        pack_panels(W_self, panels[places[i] : places[i + 1]], 0, widths[i] + rows)
    W, _ = _head(parameters, starts[depth], widths[depth], widths[depth + 1])
    pack_panels(W, panels[places[depth] :], 0, widths[depth])
    return panels, places


@jit
def _transposed(parameters, widths, orders):
    """Return a flat array that has W_pool, A and −B of every layer, and W of the head, transposed in their places."""
    starts, depth = _layer_starts(widths, orders), widths.size - 2
    out = np.empty_like(parameters)
    for i in range(depth):
        K_in, K_out = widths[i], widths[i + 1]
        _transpose(_layer(parameters, starts[i], K_in, K_out)[1], 1, _layer(out, starts[i], K_out, K_in)[1])
        if orders > 0:
            A, B = filters_at(parameters, starts[i + 1], K_in, K_out, orders)
            A_T, B_T = filters_at(out, starts[i + 1], K_out, K_in, orders)
            for m in range(orders):
                _transpose(A[m], 1, A_T[m])
                _transpose(B[m], -1, B_T[m])
    K, K_fin = widths[depth], widths[depth + 1]
    _transpose(_head(parameters, starts[depth], K, K_fin)[0], 1, matrix_at(out, starts[depth], K_fin, K))
    return out


@subroutine
def _transpose(W, sign, W_T):
    # As in `copy_numbers`.
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            W_T[j, i] = sign * W[i, j]


class Space(NamedTuple):
    """What one worker needs for one set at a time, whose elements lie in lanes: rows of features, ``stride`` apart.

    With angular layers, the 2M rows of E lie below the features of every h.
    """

    stride: int
    turn: int  # 0, or where the second of two places begins that h_1, h_2, … share in turn, in rows
    x: Any  # h_0; above it the angles, if there are any
    w: Any  # weights, or ones; zeros behind them
    hidden: Any  # h_1 … h_D, or the two places
    spare: Any  # a copy of one of them, where there is a maximum
    y: Any  # predictions and their gradient, without pooling
    pooled: Any  # (D + 1, widest): what layer i, or the head, sees of the set
    c: Any  # (widest,)
    G: Any  # (widest,)
    zeros: Any  # (widest,)
    totals: Any  # (widest,), float64
    work: Any  # of `lane_product`
    listed: Any  # (D + 2, blocks, widest + 2M): the features of h_i, and of y, that are not zero in a block
    counts: Any  # (D + 2, blocks)
    none: Any  # (blocks,): counts of nothing
    circle: Any  # `Circle`


@subroutine
def _space(widths, longest, backward, aggregate, pool, orders, weighted, like):
    depth, widest, below = widths.size - 2, widths.max(), 2 * orders
    stride, blocks = row_stride(longest, like), blocks_of(longest, like)
    rows, turn = 0, 0
    for i in range(1, depth + 1):
        rows += widths[i] + below
        turn = max(turn, widths[i] + below)
    if backward:
        turn = 0
    else:
        rows = 2 * turn
    return Space(
        stride,
        turn,
        np.empty((widths[0] + below + (1 if orders > 0 else 0)) * stride, like.dtype),
        np.empty(stride, like.dtype),
        np.empty(rows * stride, like.dtype),
        np.empty(widest * stride if backward and MAX in (aggregate, pool) else 0, like.dtype),
        np.empty(widths[depth + 1] * stride if pool == NO_POOL else 0, like.dtype),
        np.empty((depth + 1, widest), like.dtype),
        np.empty(widest, like.dtype),
        np.empty(widest, like.dtype),
        np.zeros(widest, like.dtype),
        np.empty(widest),
        workspace(widest + below, like),
        np.empty((depth + 2, blocks, widest + below), np.int64),
        np.empty((depth + 2, blocks), np.int64),
        np.zeros(blocks, np.int64),
        circle_of(widths, longest, backward, orders, weighted, like),
    )


@subroutine
def _lists(space, i, blocks):
    """Return, block by block, which features of h_i are not zero, and how many."""
    return space.listed[i], space.counts[i, :blocks]


@subroutine
def _features(space):
    """Return h_0."""
    return space.x[space.stride :] if space.circle.rows > 0 else space.x


@subroutine
def _copy_set(x, weights, first, last, widths, pool, space):
    """Copy the set of the rows from ``first`` to ``last`` to its space, and return its total weight."""
    n = last - first
    w = weights[first:last] if weights.size else weights
    # Without pooling the order shows.
    similar = pool != NO_POOL and worth_sorting(widths, n)
    copy_to_lanes(x[first:last], w, space.stride, similar, space.x, space.w)
    if space.circle.rows > 0:
        turn_angles(space.x[:n], space.w, space.stride, space.circle)
    return total_weight(w, 0, n)


@subroutine
def _set_forward(lane_tiles, n, weight, weighted, network, space):
    """Take the set in ``space`` forward and return h_D, which lies in ``space.hidden``."""
    parameters, starts, packed, widths, aggregate, pool = network
    depth, stride, rows = widths.size - 2, space.stride, space.circle.rows
    blocks = blocks_of(n, space.x)
    panels, places = packed
    below, place = _features(space), 0
    list_all(widths[0], space.listed[0], space.counts[0, :blocks])
    space.totals[: widths[0]] = 0
    lanes_sums(lane_tiles, below, widths[0], stride, n, space.w, space.work, space.totals)
    pool_lanes(below, widths[0], stride, n, space.w, weight, space.totals, aggregate, space.pooled[0])
    for i in range(depth):
        K_in, K_out = widths[i], widths[i + 1]
        _, W_pool, b = _layer(parameters, starts[i], K_in, K_out)
        c, totals = space.c[:K_out], space.totals[:K_out]
        vector_product(space.pooled[i, :K_in], W_pool, b, c)
        y = space.hidden[place * stride : (place + K_out + rows) * stride]
        own_panels, (listed, steps) = panels[places[i] : places[i + 1]], _lists(space, i, blocks)
        if rows > 0:
            divisor = weight if aggregate == MEAN else 1.0
            A, B = filters_at(parameters, starts[i + 1], K_in, K_out, rows // 2)
            filter_lanes(lane_tiles, below, K_in, stride, n, divisor, A, B, i, own_panels, listed, steps, space.circle)
            steps = list_harmonics(K_in, listed, steps, space.circle)
        totals[:] = 0
        lanes_forward(
            lane_tiles, below, K_in + rows, stride, n, own_panels, c, b.dtype.type(0), space.w, listed, steps, y,
            space.work, totals, *_lists(space, i + 1, blocks),
        )  # fmt: skip
        if weighted:
            list_units_on(y, K_out, stride, n, *_lists(space, i + 1, blocks))
        how = aggregate if i < depth - 1 else pool
        if how != NO_POOL:
            pool_lanes(y, K_out, stride, n, space.w, weight, totals, how, space.pooled[i + 1])
        below = y
        place = space.turn - place if space.turn else place + K_out + rows
    return below


@subroutine
def _set_head(lane_tiles, h, n, network, space, y):
    """Write the prediction y (1, K_fin) from what h pools to, or (n, K_fin) from h without pooling."""
    parameters, starts, packed, widths, _, pool = network
    depth, stride = widths.size - 2, space.stride
    W, b = _head(parameters, starts[depth], widths[depth], widths[depth + 1])
    if pool != NO_POOL:
        vector_product(space.pooled[depth, : len(W)], W, b, y[0])
        return
    panels, places = packed
    blocks = blocks_of(n, h)
    lanes_forward(
        lane_tiles, h, len(W), stride, n, panels[places[depth] :], b, h.dtype.type(-np.inf), space.w,
        *_lists(space, depth, blocks), space.y, space.work, space.totals, *_lists(space, depth + 1, blocks),
    )  # fmt: skip
    for r in range(n):
        for k in range(b.size):
            y[r, k] = space.y[k * stride + r]


@subroutine
def _answer(y, s, first, last, pool):
    """Return the rows of y that belong to set s."""
    return y[first:last] if pool == NO_POOL else y[s : s + 1]


@jit
def _forward(
    counter, chunks, lane_tiles, x, offsets, weights, parameters, packed, widths, aggregate, pool, orders, y,
):  # fmt: skip
    own = _space(widths, _longest(offsets, chunks), False, aggregate, pool, orders, weights.size > 0, x)
    starts, panels = _layer_starts(widths, orders), _own_panels(packed, orders)
    network = (parameters, starts, panels, widths, aggregate, pool)
    space, counter, chunks, x, offsets, weights, network, y = borrowed(
        (own, counter, chunks, x, offsets, weights, network, y)
    )
    chunk, first_set, last_set = next_chunk(counter, chunks)
    while chunk >= 0:
        for s in range(first_set, last_set):
            first, last = offsets[s], offsets[s + 1]
            weight = _copy_set(x, weights, first, last, widths, pool, space)
            h = _set_forward(lane_tiles, last - first, weight, weights.size > 0, network, space)
            _set_head(lane_tiles, h, last - first, network, space, _answer(y, s, first, last, pool))
        chunk, first_set, last_set = next_chunk(counter, chunks)
    hold((own, starts, panels))


@jit
def _step(
    counter, chunks, lane_tiles, x, offsets, weights, targets, parameters, packed, transposed, widths, aggregate, pool,
    orders, parts, losses,
):  # fmt: skip
    longest = _longest(offsets, chunks)
    answers = (longest if pool == NO_POOL else 1, widths[-1])
    space = _space(widths, longest, True, aggregate, pool, orders, weights.size > 0, x)
    own = (space, np.empty(answers, x.dtype), np.empty(answers, x.dtype))
    starts, panels = _layer_starts(widths, orders), _own_panels(packed, orders)
    network = (parameters, starts, panels, widths, aggregate, pool)
    (space, y, dy), counter, chunks, x, offsets, weights, targets, network, transposed, parts, losses = borrowed(
        (own, counter, chunks, x, offsets, weights, targets, network, transposed, parts, losses)
    )
    factor = x.dtype.type(2) / x.dtype.type(targets.size)
    chunk, first_set, last_set = next_chunk(counter, chunks)
    while chunk >= 0:
        gradients = parts[chunk]
        gradients[:] = 0
        for s in range(first_set, last_set):
            first, last = offsets[s], offsets[s + 1]
            n = last - first
            rows = n if pool == NO_POOL else 1
            weight = _copy_set(x, weights, first, last, widths, pool, space)
            h = _set_forward(lane_tiles, n, weight, weights.size > 0, network, space)
            _set_head(lane_tiles, h, n, network, space, y[:rows])
            losses[s] = squared_error(y[:rows], _answer(targets, s, first, last, pool), factor, dy[:rows])
            _head_backward(lane_tiles, h, n, weight, dy[:rows], network, transposed, space, gradients)
            _layers_backward(lane_tiles, n, weight, network, transposed, space, gradients)
        chunk, first_set, last_set = next_chunk(counter, chunks)
    hold((own, starts, panels))


@subroutine
def _own_panels(packed, orders):
    """Return the panels for one worker: those of angular layers get the Q of its set."""
    panels, places = packed
    return (panels.copy() if orders > 0 else panels), places


@subroutine
def _longest(offsets, chunks):
    longest = 0
    for chunk in range(len(chunks)):
        longest = max(longest, longest_set(offsets, chunks[chunk, 0], chunks[chunk, 1]))
    return longest


@subroutine
def _head_backward(lane_tiles, h, n, weight, dy, network, transposed, space, gradients):
    """Replace h_D by its gradient, masked, and write its sums to ``space.totals``; add that of the head."""
    parameters, starts, _, widths, _, pool = network
    depth, stride = widths.size - 2, space.stride
    start, K, K_fin = starts[depth], widths[depth], widths[depth + 1]
    W, _ = _head(parameters, start, K, K_fin)
    dW, db = _head(gradients, start, K, K_fin)
    for r in range(len(dy)):
        for k in range(K_fin):
            db[k] += dy[r, k]
    blocks = blocks_of(n, h)
    own = _lists(space, depth, blocks)
    p, dp = space.pooled[depth, :K], space.c[:K]
    dp[:] = 0
    if pool != NO_POOL:
        add_outer(p, dy[0], dW)
        vector_product(dy[0], matrix_at(transposed, start, K_fin, K), dp, dp)
        g, above, how = h, (own[0], space.none[:blocks]), pool  # no steps: the product is its start
    else:
        g, above, how = space.y, _lists(space, depth + 1, blocks), SUM
        for k in range(K_fin):
            for r in range(n):
                g[k * stride + r] = dy[r, k]
            g[k * stride + n : k * stride + whole_vectors(n, h)] = 0
        list_all(K_fin, *above)
        lanes_outer(lane_tiles, h, g, stride, n, *own, *above, dW)
    _units_backward(lane_tiles, g, n, W, above, own, h, p, dp, how, weight, space)


@subroutine
def _layers_backward(lane_tiles, n, weight, network, transposed, space, gradients):
    """Take the gradient of h_D in ``space.hidden``, with its sums in ``space.totals``, back through the layers.

    The gradient of an activation takes the very place of that activation.
    """
    parameters, starts, _, widths, aggregate, _ = network
    depth, stride, rows = widths.size - 2, space.stride, space.circle.rows
    blocks = blocks_of(n, space.x)
    place = space.hidden.size // stride
    for i in range(depth - 1, -1, -1):
        K_in, K_out = widths[i], widths[i + 1]
        place -= K_out + rows
        g = space.hidden[place * stride : (place + K_out + rows) * stride]
        below = _features(space) if i == 0 else space.hidden[(place - K_in - rows) * stride : place * stride]
        own, above = _lists(space, i, blocks), _lists(space, i + 1, blocks)
        dW_self, dW_pool, db = _layer(gradients, starts[i], K_in, K_out)
        G, dm, m = space.G[:K_out], space.c[:K_in], space.pooled[i, :K_in]
        for k in range(K_out):
            G[k] = space.totals[k]
            db[k] += G[k]
        add_outer(m, G, dW_pool)
        lanes_outer(lane_tiles, below, g, stride, n, *own, *above, dW_self)
        if rows > 0:
            dA, dB = filters_at(gradients, starts[i + 1], K_in, K_out, rows // 2)
            filters_backward(lane_tiles, g, K_in, stride, n, i, *above, dA, dB, space.circle)
        if i > 0:
            W_self, _, _ = _layer(parameters, starts[i], K_in, K_out)
            listed, steps = above
            if rows > 0:
                divisor = weight if aggregate == MEAN else 1.0
                A_T, B_T = filters_at(transposed, starts[i + 1], K_out, K_in, rows // 2)
                W_self = harmonics_backward(g, stride, divisor, W_self, A_T, B_T, space.circle)
                steps = list_harmonics(K_out, listed, steps, space.circle)
            dm[:] = 0
            vector_product(G, _layer(transposed, starts[i], K_out, K_in)[1], dm, dm)
            _units_backward(lane_tiles, g, n, W_self, (listed, steps), own, below, m, dm, aggregate, weight, space)


@subroutine
def _units_backward(lane_tiles, g, n, W, above, own, h, p, dp, pool, weight, space):
    """Replace h by its gradient, masked, and write its sums to ``space.totals``: W g, and its share of dp.

    p is what h pools to, dp its gradient, changed here; ``above`` and ``own`` list the features of g and h.
    """
    stride, K = space.stride, dp.size
    totals, start = space.totals[:K], dp
    totals[:] = 0
    if pool == MAX:
        copy_numbers(h[: K * stride], space.spare)
        start = space.zeros[:K]
    elif pool == MEAN:
        for k in range(K):
            dp[k] /= weight
    lanes_masked(lane_tiles, g, stride, n, W, start, space.w, *above, *own, h, space.work, totals)
    if pool == MAX:
        share_maximum(dp, space.spare, p, K, stride, n, space.w, h, totals)
