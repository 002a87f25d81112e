"""Pooling; formula and derivation in ``kernels/reference/pooling.py``.

A large set is split in pieces, which are sets to the compiled kernels: what they pool to, in float64, is pooled again.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.cpu.compiling import jit, subroutine
from fastperm.kernels.cpu.workers import large_sets, pieces, run, small_chunks, task

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
    weights = weights_or_empty(weights, x.dtype)
    run([task(_forward, *sets, x, offsets, weights, CODES[pool], p) for sets in small_chunks(offsets, x.shape[1])])
    for s in large_sets(offsets, x.shape[1]):
        pool_large_set(x, weights, offsets[s], offsets[s + 1], CODES[pool], p[s])


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
    weights = weights_or_empty(weights, x.dtype)
    inputs = (dp, x, p, offsets, weights, CODES[pool])
    run([task(_backward, *sets, *inputs, dx) for sets in small_chunks(offsets, x.shape[1])])
    for s in large_sets(offsets, x.shape[1]):
        _unpool_large_set(dp[s], x, p[s], weights, offsets[s], offsets[s + 1], CODES[pool], dx)


def pool_large_set(x, weights, first, last, pool, p):
    """Pool rows ``first`` to ``last`` of x (T, K) into p (K,), as `pool_set` does, all workers sharing them."""
    bounds = first + pieces(last - first)
    parts = np.empty((len(bounds) - 1, x.shape[1]))
    how = MAX if pool == MAX else SUM
    run([task(_forward, i, i + 1, x, bounds, weights, how, parts) for i in range(len(parts))])
    p[:] = parts.max(axis=0) if pool == MAX else parts.sum(axis=0) / divisor(weights, first, last, pool)


def divisor(weights, first, last, pool):
    """Return what the sums of a large set are divided by: W_s for the mean, in float64."""
    if pool != MEAN:
        return 1.0
    if weights.size == 0:
        return float(last - first)
    total = np.empty(1)
    pool_large_set(weights.reshape(-1, 1), weights[:0], first, last, SUM, total)
    return float(total[0])


def large_set_ties(x, p, weights, first, last):
    """Return the weight of the rows that attain p (K,), for each column: (K,) float64."""
    bounds = first + pieces(last - first)
    parts = np.zeros((len(bounds) - 1, x.shape[1]))
    run([task(count_ties, x, p, weights, *ends, part) for ends, part in zip(pairwise(bounds), parts, strict=True)])
    return parts.sum(axis=0)


def _unpool_large_set(dp, x, p, weights, first, last, pool, dx):
    bounds = first + pieces(last - first)
    if pool == MAX:
        dx[first:last] = 0
        ties = large_set_ties(x, p, weights, first, last)
        run([task(share_among_ties, dp, ties, x, p, weights, *ends, dx) for ends in pairwise(bounds)])
        return
    count = len(bounds) - 1
    own = np.tile(dp / divisor(weights, first, last, pool), (count, 1)), x, np.tile(p, (count, 1))
    run([task(_backward, i, i + 1, *own, bounds, weights, SUM, dx) for i in range(count)])


def weights_or_empty(weights, dtype):
    """Return the weights, or an empty array for "every weight is 1": one compiled version serves both."""
    return np.empty(0, dtype) if weights is None else weights


@subroutine
def total_weight(weights, first, last):
    """Return W_s of the set that owns rows ``first`` to ``last``, in float64."""
    if weights.size == 0:
        return np.float64(last - first)
    total = 0.0
    for n in range(first, last):
        total += weights[n]
    return total


@subroutine
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


@subroutine
def add_ties_gradient(dp, x, p, weights, first, last, dx):
    """Add to dx what the maximum sends back: dp (K,), shared by the elements that attain p (K,), by their weights."""
    ties = np.zeros(p.size)
    count_ties(x, p, weights, first, last, ties)
    share_among_ties(dp, ties, x, p, weights, first, last, dx)


@jit
def count_ties(x, p, weights, first, last, ties):
    """Add to ties (K,) the weights of the rows that attain p (K,)."""
    K = x.shape[1]
    for n in range(first, last):
        w = 1.0 if weights.size == 0 else np.float64(weights[n])
        for k in range(K):
            if x[n, k] == p[k]:
                ties[k] += w


@jit
def share_among_ties(dp, ties, x, p, weights, first, last, dx):
    """Add to dx what each row that attains p (K,) gets of dp (K,), ties (K,) being the weight of all such rows."""
    K = x.shape[1]
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
