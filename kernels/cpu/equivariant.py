"""The equivariant layer; formula and derivation in ``kernels/reference/equivariant.py``.

What this twin does differently: a set is pooled, multiplied, shifted and rectified while it is in the core's cache, the
pooled term and the bias being the start of the product and ReLU its finish; sets are spread over threads in fixed
chunks, each with parameter gradients of its own that are added up in the order of the chunks.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.pooling import (
    CODES,
    MAX,
    MEAN,
    SUM,
    add_ties_gradient,
    pool_set,
    total_weight,
    weights_or_empty,
)
from fastperm.kernels.cpu.product import product, product_accumulate, tiles
from fastperm.kernels.cpu.workers import chunk_bounds, for_each_chunk, run, task

FLOORS = {"relu": 0.0, "identity": -np.inf}


def equivariant_forward(
    x,  # (T, K_in)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    b,  # (K_out,)
    aggregate,  # "mean", "sum" or "max"
    activation,  # "relu" or "identity"
    *,
    y,  # (T, K_out)
    m,  # (S, K_in)
):
    weights = weights_or_empty(weights, x.dtype)
    floor = x.dtype.type(FLOORS[activation])
    for_each_chunk(
        _forward, offsets, tiles(x.dtype), x, offsets, weights, W_self, W_pool, b, CODES[aggregate], floor, y, m
    )


def equivariant_backward(
    dy,  # (T, K_out)
    x,  # (T, K_in)
    y,  # (T, K_out)
    m,  # (S, K_in)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    aggregate,  # "mean", "sum" or "max"
    activation,  # "relu" or "identity"
    *,
    dx,  # (T, K_in), overwritten; None where nobody needs it
    dW_self,  # (K_in, K_out), accumulated
    dW_pool,  # (K_in, K_out), accumulated
    db,  # (K_out,), accumulated
):
    weights = weights_or_empty(weights, x.dtype)
    code, relu = CODES[aggregate], activation == "relu"
    W_self_T, W_pool_T = np.ascontiguousarray(W_self.T), np.ascontiguousarray(W_pool.T)
    if dx is None:
        dx = np.empty((0, x.shape[1]), x.dtype)
    gradients, tasks = [], []
    for first_set, last_set in pairwise(chunk_bounds(offsets)):
        own = (np.zeros_like(dW_self), np.zeros_like(dW_pool), np.zeros_like(db))
        gradients.append(own)
        inputs = (tiles(x.dtype), dy, x, y, m, offsets, weights, W_self_T, W_pool_T, code, relu)
        tasks.append(task(_backward, first_set, last_set, *inputs, dx, *own))
    run(tasks)
    for total, *parts in zip((dW_self, dW_pool, db), *gradients, strict=True):
        for part in parts:
            total += part


@jit
def set_forward(tiles, x, m, W_self, W_pool, b, floor, w, c, y, totals):
    """Compute y (n, K_out) of one set from x (n, K_in) and its pooled m (K_in,), and add Σ w_n y_n to totals (K_out,).

    ``w`` has one weight, or one per row; ``c`` (K_out,) is workspace.
    """
    one, nowhere = np.ones(1, x.dtype), np.empty(c.size)
    product(tiles, m, W_pool, b, one, c, x.dtype.type(-np.inf), nowhere, one)
    product(tiles, x, W_self, c, one, y, floor, totals, w)


@jit
def set_parameter_gradients(tiles, g, G, x, m, dW_self, dW_pool, db):
    """Add what one set sends to the parameters: g (n, K_out), its sum G (K_out,), x (n, K_in), m (K_in,)."""
    for k in range(G.size):
        db[k] += G[k]
    product_accumulate(tiles, m, G, dW_pool)
    product_accumulate(tiles, x, g, dW_self)


@jit
def set_pooled_gradient(tiles, G, W_pool_T, dm):
    """Write dm = G W_poolᵀ (K_in,)."""
    one, start, nowhere = np.ones(1, dm.dtype), np.zeros_like(dm), np.empty(dm.size)
    product(tiles, G, W_pool_T, start, one, dm, dm.dtype.type(-np.inf), nowhere, one)


@jit
def longest_set(offsets, first_set, last_set):
    """Return the number of elements of the longest of these sets."""
    longest = 0
    for s in range(first_set, last_set):
        longest = max(longest, offsets[s + 1] - offsets[s])
    return longest


@jit
def mean_scales(weights, first, last, pool, scales):
    """Write what the gradient of a mean (w_n / W_s) or sum (w_n) gives every row; 0 for the maximum."""
    scale = 1 / total_weight(weights, first, last) if pool == MEAN else 1.0
    for n in range(last - first):
        scales[n] = 0 if pool == MAX else scale if weights.size == 0 else scale * weights[first + n]


@jit
def _forward(first_set, last_set, tiles, x, offsets, weights, W_self, W_pool, b, aggregate, floor, y, m):
    c = np.empty(b.size, x.dtype)
    nowhere, one = np.empty(b.size), np.ones(1, x.dtype)
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        pool_set(x, weights, first, last, aggregate, m[s])
        set_forward(tiles, x[first:last], m[s], W_self, W_pool, b, floor, one, c, y[first:last], nowhere)


@jit
def _backward(
    first_set,
    last_set,
    tiles,
    dy,
    x,
    y,
    m,
    offsets,
    weights,
    W_self_T,
    W_pool_T,
    aggregate,
    relu,
    dx,
    dW_self,
    dW_pool,
    db,
):
    K_out, K_in = W_self_T.shape
    longest = longest_set(offsets, first_set, last_set)
    g = np.empty((longest, K_out), dy.dtype)
    scales = np.empty(longest, dy.dtype)
    G = np.empty(K_out, dy.dtype)
    dm, nowhere = np.empty(K_in, dy.dtype), np.empty(K_in)
    one, no_weights, no_floor = np.ones(1, dy.dtype), np.empty(0, dy.dtype), dy.dtype.type(-np.inf)
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        count = last - first
        for n in range(count):
            for k in range(K_out):
                g[n, k] = dy[first + n, k] if not relu or y[first + n, k] > 0 else 0
        pool_set(g, no_weights, 0, count, SUM, G)
        set_parameter_gradients(tiles, g[:count], G, x[first:last], m[s], dW_self, dW_pool, db)
        if dx.size == 0:
            continue
        set_pooled_gradient(tiles, G, W_pool_T, dm)
        mean_scales(weights, first, last, aggregate, scales)
        product(tiles, g[:count], W_self_T, dm, scales[:count], dx[first:last], no_floor, nowhere, one)
        if aggregate == MAX:
            add_ties_gradient(dm, x, m[s], weights, first, last, dx)
