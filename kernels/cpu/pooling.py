"""Pooling; formula and derivation in ``kernels/reference/pooling.py``."""

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.workers import for_each_chunk

MEAN, SUM, MAX = 0, 1, 2
CODES = {"mean": MEAN, "sum": SUM, "max": MAX}

# Rows summed in the working precision before their sum goes to float64: the inner loop keeps its vector width,
# the error stays that of a sum of 32.
BLOCK = 32


def pooling_forward(
    x,  # (T, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    pool,  # "mean", "sum" or "max"
    *,
    p,  # (S, K)
):
    for_each_chunk(_forward, offsets, x, offsets, weights_or_empty(weights, x.dtype), CODES[pool], p)


def pooling_backward(
    dp,  # (S, K)
    x,  # (T, K)
    p,  # (S, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    pool,  # "mean", "sum" or "max"
    *,
    dx,  # (T, K), overwritten
):
    for_each_chunk(_backward, offsets, dp, x, p, offsets, weights_or_empty(weights, x.dtype), CODES[pool], dx)


def weights_or_empty(weights, dtype):
    """Return the weights, or an empty array for "every weight is 1": one compiled version serves both."""
    return np.empty(0, dtype) if weights is None else weights


@jit
def total_weight(weights, first, last):
    """Return W_s of the set that owns rows ``first`` to ``last``, in float64."""
    if weights.size == 0:
        return np.float64(last - first)
    total = 0.0
    for n in range(first, last):
        total += weights[n]
    return total


@jit
def pool_set(x, weights, first, last, pool, p):
    """Pool rows ``first`` to ``last`` of x (T, K) into p (K,)."""
    K = x.shape[1]
    if pool == MAX:
        p[:] = -np.inf
        for n in range(first, last):
            if weights.size == 0 or weights[n] > 0:
                for k in range(K):
                    # Not a comparison alone: a NaN must reach the output.
                    p[k] = x[n, k] if x[n, k] > p[k] or np.isnan(x[n, k]) else p[k]
        return
    sums = np.zeros(K)
    block = np.empty(K, x.dtype)
    for start in range(first, last, BLOCK):
        block[:] = 0
        for n in range(start, min(start + BLOCK, last)):
            if weights.size == 0:
                for k in range(K):
                    block[k] += x[n, k]
            else:
                for k in range(K):
                    block[k] += weights[n] * x[n, k]
        for k in range(K):
            sums[k] += block[k]
    scale = 1 / total_weight(weights, first, last) if pool == MEAN else 1.0
    for k in range(K):
        p[k] = sums[k] * scale


@jit
def add_ties_gradient(dp, x, p, weights, first, last, dx):
    """Add to dx what the maximum sends back: dp (K,), shared by the elements that attain p (K,), by their weights."""
    K = x.shape[1]
    ties = np.zeros(K)
    for n in range(first, last):
        w = 1.0 if weights.size == 0 else np.float64(weights[n])
        for k in range(K):
            if x[n, k] == p[k]:
                ties[k] += w
    for n in range(first, last):
        w = 1.0 if weights.size == 0 else np.float64(weights[n])
        for k in range(K):
            if x[n, k] == p[k] and w > 0:
                dx[n, k] += w / ties[k] * dp[k]


@jit
def _forward(first_set, last_set, x, offsets, weights, pool, p):
    for s in range(first_set, last_set):
        pool_set(x, weights, offsets[s], offsets[s + 1], pool, p[s])


@jit
def _backward(first_set, last_set, dp, x, p, offsets, weights, pool, dx):
    K = x.shape[1]
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        if pool == MAX:
            dx[first:last] = 0
            add_ties_gradient(dp[s], x, p[s], weights, first, last, dx)
            continue
        scale = 1 / total_weight(weights, first, last) if pool == MEAN else 1.0
        for n in range(first, last):
            w = scale if weights.size == 0 else scale * weights[n]
            for k in range(K):
                dx[n, k] = w * dp[s, k]
