"""The equivariant layer; formula and derivation in ``kernels/reference/equivariant.py``.

What this twin does differently: a set is pooled, multiplied, shifted and rectified while it is in the core's cache, the
pooled term and the bias being the start of the product and ReLU its finish; sets are spread over threads in fixed
chunks, each with parameter gradients of its own that are added up in the order of the chunks. The pieces of a large
set wait for each other twice: for its pooled vector, and for the sum of its gradients.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.cpu.compiling import jit, subroutine
from fastperm.kernels.cpu.dense import rows_forward
from fastperm.kernels.cpu.pooling import (
    CODES,
    MAX,
    MEAN,
    SUM,
    add_ties_gradient,
    divisor,
    large_set_ties,
    pool_large_set,
    pool_set,
    share_among_ties,
    total_weight,
    weights_or_empty,
)
from fastperm.kernels.cpu.product import add_outer, product, product_accumulate, tiles, vector_product
from fastperm.kernels.cpu.workers import add_parts, large_sets, pieces, run, small_chunks, task

# Rows of a large set that are taken at a time: their gradients stay in the cache between the mask and the product.
BLOCK = 1008

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
    code, floor = CODES[aggregate], x.dtype.type(FLOORS[activation])
    inputs = (tiles(x.dtype), x, offsets, weights, W_self, W_pool, b, code, floor)
    run([task(_forward, *sets, *inputs, y, m) for sets in small_chunks(offsets, max(W_self.shape))])
    for s in large_sets(offsets, max(W_self.shape)):
        first, last = offsets[s], offsets[s + 1]
        pool_large_set(x, weights, first, last, code, m[s])
        c = np.empty((1, b.size), b.dtype)
        rows_forward(m[s : s + 1], W_pool, b, -np.inf, c)
        rows_forward(x[first:last], W_self, c[0], floor, y[first:last])


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
    inputs = (tiles(x.dtype), dy, x, y, m, offsets, weights, W_self_T, W_pool_T, code, relu)
    chunks, totals = small_chunks(offsets, max(W_self.shape)), (dW_self, dW_pool, db)
    parts = [np.zeros((len(chunks), *total.shape), total.dtype) for total in totals]
    run([task(_backward, *sets, *inputs, dx, *own) for sets, *own in zip(chunks, *parts, strict=True)])
    for total, own in zip(totals, parts, strict=True):
        add_parts(own, total)
    for s in large_sets(offsets, max(W_self.shape)):
        set_inputs = (dy, x, y, m[s], weights, offsets[s], offsets[s + 1], W_self_T, W_pool_T, code, relu)
        _large_set_backward(*set_inputs, dx, dW_self, dW_pool, db)


def _large_set_backward(
    dy, x, y, m, weights, first, last, W_self_T, W_pool_T, aggregate, relu, dx, dW_self, dW_pool, db
):  # fmt: skip
    K_out, K_in = W_self_T.shape
    bounds = first + pieces(last - first)
    sums = np.zeros((len(bounds) - 1, K_out))
    parts = np.zeros((len(sums), *dW_self.shape), dW_self.dtype)
    own = zip(pairwise(bounds), parts, sums, strict=True)
    run([task(_piece_parameters, *ends, tiles(x.dtype), dy, x, y, relu, *out) for ends, *out in own])
    add_parts(parts, dW_self)
    G = sums.sum(axis=0).astype(dy.dtype)
    dW_pool += np.outer(m, G)
    db += G
    if dx.size == 0:
        return
    dm, no_bias = np.empty((1, K_in), dy.dtype), np.zeros(K_in, dy.dtype)
    rows_forward(G[None], W_pool_T, no_bias, -np.inf, dm)
    dm = (dm[0] / divisor(weights, first, last, aggregate)).astype(dy.dtype)
    ties = large_set_ties(x, m, weights, first, last) if aggregate == MAX else np.empty(K_in)
    inputs = (tiles(x.dtype), dy, x, y, m, weights, W_self_T, aggregate, relu, dm, ties)
    run([task(_piece_inputs, *ends, *inputs, dx) for ends in pairwise(bounds)])


@subroutine
def set_forward(tiles, x, m, W_self, W_pool, b, floor, w, c, y, totals):
    """Compute y (n, K_out) of one set from x (n, K_in) and its pooled m (K_in,), and add Σ w_n y_n to totals (K_out,).

    ``w`` has one weight, or one per row; ``c`` (K_out,) is workspace.
    """
    vector_product(m, W_pool, b, c)
    product(tiles, x, W_self, c, np.ones(1, x.dtype), y, floor, totals, w)


@subroutine
def set_parameter_gradients(tiles, g, G, x, m, dW_self, dW_pool, db):
    """Add what one set sends to the parameters: g (n, K_out), its sum G (K_out,), x (n, K_in), m (K_in,)."""
    for k in range(G.size):
        db[k] += G[k]
    add_outer(m, G, dW_pool)
    product_accumulate(tiles, x, g, dW_self)


@subroutine
def longest_set(offsets, first_set, last_set):
    """Return the number of elements of the longest of these sets."""
    longest = 0
    for s in range(first_set, last_set):
        longest = max(longest, offsets[s + 1] - offsets[s])
    return longest


@subroutine
def mean_scales(weights, first, last, pool, scales):
    """Write what the gradient of a mean (w_n / W_s) or sum (w_n) gives every row; 0 for the maximum."""
    scale = 1 / total_weight(weights, first, last) if pool == MEAN else 1.0
    for n in range(last - first):
        scales[n] = 0 if pool == MAX else scale if weights.size == 0 else scale * weights[first + n]


@subroutine
def mask(dy, y, first, last, relu, g):
    """Write the gradient of rows ``first`` to ``last`` before their activation to g (n, K_out)."""
    for n in range(last - first):
        for k in range(dy.shape[1]):
            g[n, k] = dy[first + n, k] if not relu or y[first + n, k] > 0 else 0


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
        mask(dy, y, first, last, relu, g)
        pool_set(g, no_weights, 0, count, SUM, G)
        set_parameter_gradients(tiles, g[:count], G, x[first:last], m[s], dW_self, dW_pool, db)
        if dx.size == 0:
            continue
        dm[:] = 0
        vector_product(G, W_pool_T, dm, dm)
        mean_scales(weights, first, last, aggregate, scales)
        product(tiles, g[:count], W_self_T, dm, scales[:count], dx[first:last], no_floor, nowhere, one)
        if aggregate == MAX:
            add_ties_gradient(dm, x, m[s], weights, first, last, dx)


@jit
def _piece_parameters(first, last, tiles, dy, x, y, relu, dW_self, G):
    """Add what these rows of a large set send to W_self, and their part of G (K_out,), float64."""
    K_out = G.size
    g, block_sum = np.empty((BLOCK, K_out), dy.dtype), np.empty(K_out)
    no_weights = np.empty(0, dy.dtype)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        mask(dy, y, start, stop, relu, g)
        pool_set(g, no_weights, 0, stop - start, SUM, block_sum)
        for k in range(K_out):
            G[k] += block_sum[k]
        product_accumulate(tiles, x[start:stop], g[: stop - start], dW_self)


@jit
def _piece_inputs(first, last, tiles, dy, x, y, m, weights, W_self_T, aggregate, relu, dm, ties, dx):
    """Write dx of these rows of a large set; for a mean, dm (K_in,) is that of the sum."""
    K_out, K_in = W_self_T.shape
    g, scales = np.empty((BLOCK, K_out), dy.dtype), np.empty(BLOCK, dy.dtype)
    one, nowhere, no_floor = np.ones(1, dy.dtype), np.empty(K_in), dy.dtype.type(-np.inf)
    how = MAX if aggregate == MAX else SUM
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        n = stop - start
        mask(dy, y, start, stop, relu, g)
        mean_scales(weights, start, stop, how, scales)
        product(tiles, g[:n], W_self_T, dm, scales[:n], dx[start:stop], no_floor, nowhere, one)
        if aggregate == MAX:
            share_among_ties(dm, ties, x, m, weights, start, stop, dx)
