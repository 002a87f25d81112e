"""Pooling of one set whose elements lie in the lanes of vectors; formulas in ``kernels/reference/pooling.py``.

x (K, n) is flat, its rows ``stride`` apart; w has whole vectors, with zeros behind the weights of the n elements.
"""

import numpy as np

from fastperm.kernels.cpu.compiling import jit, subroutine
from fastperm.kernels.cpu.lane_product import lanes_of, whole_vectors
from fastperm.kernels.cpu.pooling import MAX, MEAN


@jit
def pool_lanes(x, K, stride, n, w, weight, totals, pool, p):
    """Pool x into p (K,); ``totals`` is Σ w x, and ``weight`` that of the whole set."""
    if pool == MAX:
        _lane_maximum(x, K, stride, n, w, p)
    else:
        for k in range(K):
            p[k] = totals[k] / weight if pool == MEAN else totals[k]


@subroutine
def _lane_maximum(x, K, stride, n, w, p):
    lanes, padded = lanes_of(x), whole_vectors(n, x)
    greatest = np.empty(lanes, x.dtype)
    for k in range(K):
        row = x[k * stride : k * stride + padded]
        greatest[:] = -np.inf
        for e in range(0, padded, lanes):
            for lane in range(lanes):
                value, best = row[e + lane], greatest[lane]
                # Not a comparison alone: a NaN must reach the output.
                better = (value > best or value != value) and w[e + lane] > 0
                greatest[lane] = value if better else best
        best = greatest[0]
        for lane in range(1, lanes):
            best = greatest[lane] if greatest[lane] > best or np.isnan(greatest[lane]) else best
        p[k] = best


@jit
def share_maximum(dp, x, p, K, stride, n, w, dx, totals):
    """Share dp (K,) among the elements that attain p (K,) > 0, by their weights: add to dx, and its sum to totals."""
    for k in range(K):
        if not p[k] > 0:
            continue
        row, out = x[k * stride : k * stride + n], dx[k * stride : k * stride + n]
        ties = 0.0
        for e in range(n):
            if row[e] == p[k]:
                ties += w[e]
        for e in range(n):
            if row[e] == p[k] and w[e] > 0:
                share = x.dtype.type(w[e] / ties * dp[k])
                out[e] += share
                totals[k] += share
