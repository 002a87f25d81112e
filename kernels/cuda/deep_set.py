"""The whole network; specification in ``kernels/reference/deep_set.py``.

Sets that fit are computed on chip (``resident.py``). The others go layer by layer, as in the specification, with the
fused products of ``equivariant.py``: the launch that writes h_{i+1} also adds it up for the next pooling, and on the
way back the launch that writes the gradient of h_i has masked it and added it up. Angular layers always do, pooled by
launches of their own (``angular.py``). In bfloat16, what wide layers write is kept as their products round it
(``pairs.py``).
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda import angular
from fastperm.kernels.cuda.compiling import xp
from fastperm.kernels.cuda.dense import dense_backward, dense_forward
from fastperm.kernels.cuda.equivariant import layer_forward, layer_inputs, layer_parameters, set_sums
from fastperm.kernels.cuda.layouts import Layout
from fastperm.kernels.cuda.mean_squared_error import squared_error
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.pairs import Pairs, empty_like
from fastperm.kernels.cuda.pooling import (
    CODES,
    SUM,
    divisors,
    finish,
    mask,
    pool_partials,
    row_scales,
    sets_of_rows,
    unpool,
)
from fastperm.kernels.cuda.product import NO_POOL, may_be_in_pairs
from fastperm.kernels.cuda.resident import layout_for, resident_forward, resident_step
from fastperm.kernels.reference.deep_set import split_parameters


def deep_set_forward(
    x,  # (T, K_0), or (T, 1 + K_0) if there are orders
    offsets,  # (S + 1,), on the host or the GPU
    weights,  # (T,) or None
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    y,  # (S, K_fin), or (T, K_fin) without pooling
    precision="float32",  # "tf32" or "bfloat16"
):
    host_offsets = on_host(offsets)
    layout = layout_for(host_offsets, widths, aggregate, pool, precision, orders)
    if isinstance(layout, Layout):
        resident_forward(layout, x, host_offsets, weights, parameters, widths, aggregate, pool, y=y)
        return
    offsets = on_device(offsets)
    # Two places take turns to hold the activations.
    in_pairs = may_be_in_pairs(widths, aggregate, pool, orders, precision)
    places = xp().empty((2, len(x) * max(widths[1:-1]) // (1 + in_pairs)), np.float32)
    hidden = [_activations((len(x), K), in_pairs, places[i % 2]) for i, K in enumerate(widths[1:-1])]
    sets = sets_of_rows(offsets, len(x))
    E, x = angular.split_angles(x, orders)
    layers, head = split_parameters(parameters, widths, orders)
    _forward(x, E, offsets, weights, layers, head, aggregate, pool, hidden, sets, y, precision)


def deep_set_step(
    x,  # (T, K_0), or (T, 1 + K_0) if there are orders
    offsets,  # (S + 1,), on the host or the GPU
    weights,  # (T,) or None
    targets,  # (S, K_fin), or (T, K_fin) without pooling
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    gradients,  # (P,), accumulated
    precision="float32",  # "tf32" or "bfloat16"
):
    """Return the loss as an array on the GPU, for which `float` waits. If it is not finite, gradients mean nothing."""
    host_offsets = on_host(offsets)
    layout = layout_for(host_offsets, widths, aggregate, pool, precision, orders)
    if isinstance(layout, Layout):
        batch = (x, host_offsets, weights, targets)
        return resident_step(layout, *batch, parameters, widths, aggregate, pool, gradients=gradients)
    offsets = on_device(offsets)
    layers, head = split_parameters(parameters, widths, orders)
    layer_gradients, (dW, db) = split_parameters(gradients, widths, orders)
    sets = sets_of_rows(offsets, len(x))
    in_pairs = may_be_in_pairs(widths, aggregate, pool, orders, precision)
    hidden = [_activations((len(x), K), in_pairs) for K in widths[1:-1]]
    y, dy = xp().empty(targets.shape, np.float32), xp().empty(targets.shape, np.float32)
    E, x = angular.split_angles(x, orders)
    pooled = _forward(x, E, offsets, weights, layers, head, aggregate, pool, hidden, sets, y, precision)
    loss = squared_error(y, targets, dy)
    last, n_sets = hidden[-1], len(offsets) - 1
    p = last if pool is None else pooled.pop()
    dp = xp().empty(p.shape, np.float32)
    dense_backward(dy, p, head[0], dx=dp, dW=dW, db=db)
    if pool is None:
        g = mask(dp, last)
        partials = pool_partials(g, sets, n_sets, None, SUM)
    else:
        g = empty_like(last)
        scales = row_scales(offsets, weights, sets, pool)
        partials = unpool(dp, last, p, offsets, weights, scales, sets, pool, None, g, masked=True)
    G = None if orders else set_sums(partials, offsets, n_sets)

    scales = row_scales(offsets, weights, sets, aggregate)
    below = [x, *hidden[:-1]]
    for i in reversed(range(len(layers))):
        W_self, W_pool, _, *filters = layers[i]
        dx = empty_like(below[i]) if i > 0 else None
        batch, matrices = (offsets, weights, scales, sets), (W_self, W_pool, *filters)
        if orders:
            angular.layer_backward(
                *(g, below[i], E, *pooled[i], *batch, *matrices, aggregate, dx, None, *layer_gradients[i]),
                masked=True,
                precision=precision,
            )
        else:
            layer_parameters(g, G, below[i], pooled[i], *layer_gradients[i], precision=precision)
            if i > 0:
                own = (g, G, below[i], pooled[i], *batch, *matrices, aggregate, dx)
                G = layer_inputs(*own, masked=True, precision=precision)
        g = dx
    return loss


def _activations(shape, in_pairs, memory=None):
    """Return a matrix for activations, in memory that is large enough, or in its own."""
    if in_pairs:
        return Pairs(shape, memory)
    size = shape[0] * shape[1]
    return (xp().empty(size, np.float32) if memory is None else memory[:size]).reshape(shape)


def _forward(x, E, offsets, weights, layers, head, aggregate, pool, hidden, sets, y, precision):
    """Write h_1 … h_D and y; return m_0 … m_{D−1}, or pairs of these and Z, with E, and, with pooling, p."""
    n_sets = len(offsets) - 1
    ways = [aggregate] * len(layers) + [pool]
    totals = divisors(offsets, weights, sets) if "mean" in ways else None
    partials = pool_partials(x, sets, n_sets, weights, CODES[aggregate]) if E is None else None
    pooled = []
    for i, (h, above) in enumerate(pairwise([x, *hidden])):
        if E is not None:
            pooled.append(angular.pool_harmonics(h, E, offsets, sets, n_sets, weights, aggregate, totals))
            angular.layer_forward(*(h, E, *pooled[i], sets, *layers[i], above), precision=precision)
            continue
        m = xp().empty((n_sets, h.shape[1]), np.float32)
        finish(partials, offsets, ways[i], totals, m)
        pooled.append(m)
        code = NO_POOL if ways[i + 1] is None else CODES[ways[i + 1]]
        partials = layer_forward(*(h, m, sets, weights, *layers[i], code, above), precision=precision)
    if pool is None:
        dense_forward(hidden[-1], *head, y=y)
        return pooled
    if E is not None:
        partials = pool_partials(hidden[-1], sets, n_sets, weights, CODES[pool])
    p = xp().empty((n_sets, hidden[-1].shape[1]), np.float32)
    finish(partials, offsets, pool, totals, p)
    dense_forward(p, *head, y=y)
    return [*pooled, p]
