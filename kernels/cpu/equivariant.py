"""The equivariant layer; formula and derivation in ``kernels/reference/equivariant.py``.

What this twin does differently: a set is pooled, multiplied, shifted and rectified while it is in the core's cache, the
pooled term and the bias being the start of the product and ReLU its finish; sets are spread over threads in fixed
chunks, each with parameter gradients of its own that are added up in the order of the chunks.
"""

from functools import partial
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
from fastperm.kernels.cpu.product import pointer, product, product_accumulate
from fastperm.kernels.cpu.workers import chunk_bounds, for_each_chunk, run

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
    for_each_chunk(_forward, offsets, x, offsets, weights, W_self, W_pool, b, CODES[aggregate], floor, y, m)


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
        inputs = (dy, x, y, m, offsets, weights, W_self_T, W_pool_T, code, relu)
        tasks.append(partial(_backward, first_set, last_set, *inputs, dx, *own))
    run(tasks)
    for total, *parts in zip((dW_self, dW_pool, db), *gradients, strict=True):
        for part in parts:
            total += part


@jit
def _forward(first_set, last_set, x, offsets, weights, W_self, W_pool, b, aggregate, floor, y, m):
    K_in, K_out = W_self.shape
    one = np.ones(1, x.dtype)
    c = np.empty(K_out, x.dtype)
    no_floor = x.dtype.type(-np.inf)
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        pool_set(x, weights, first, last, aggregate, m[s])
        product(pointer(m, s * K_in), K_in, 1, W_pool, b, pointer(one, 0), 0, pointer(c, 0), 1, no_floor)
        product(
            pointer(x, first * K_in), K_in, 1, W_self, c,
            pointer(one, 0), 0, pointer(y, first * K_out), last - first, floor,
        )  # fmt: skip


@jit
def _backward(
    first_set, last_set, dy, x, y, m, offsets, weights, W_self_T, W_pool_T, aggregate, relu, dx, dW_self, dW_pool, db
):
    K_out, K_in = W_self_T.shape
    longest = 0
    for s in range(first_set, last_set):
        longest = max(longest, offsets[s + 1] - offsets[s])
    g = np.empty((longest, K_out), dy.dtype)
    scales = np.empty(longest, dy.dtype)
    G = np.empty(K_out, dy.dtype)
    dm = np.empty(K_in, dy.dtype)
    one, nothing, no_weights = np.ones(1, dy.dtype), np.zeros(K_in, dy.dtype), np.empty(0, dy.dtype)
    no_floor = dy.dtype.type(-np.inf)
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        count = last - first
        for n in range(count):
            for k in range(K_out):
                g[n, k] = dy[first + n, k] if not relu or y[first + n, k] > 0 else 0
        pool_set(g, no_weights, 0, count, SUM, G)
        for k in range(K_out):
            db[k] += G[k]
        product_accumulate(pointer(m, s * K_in), 1, K_in, pointer(G, 0), dW_pool, 1)
        product_accumulate(pointer(x, first * K_in), 1, K_in, pointer(g, 0), dW_self, count)
        if dx.size == 0:
            continue
        product(pointer(G, 0), K_out, 1, W_pool_T, nothing, pointer(one, 0), 0, pointer(dm, 0), 1, no_floor)
        scale = 1 / total_weight(weights, first, last) if aggregate == MEAN else 1.0
        for n in range(count):
            scales[n] = 0 if aggregate == MAX else scale if weights.size == 0 else scale * weights[first + n]
        product(
            pointer(g, 0), K_out, 1, W_self_T, dm,
            pointer(scales, 0), 1, pointer(dx, first * K_in), count, no_floor,
        )  # fmt: skip
        if aggregate == MAX:
            add_ties_gradient(dm, x, m[s], weights, first, last, dx)
