"""The canonical order; see ``kernels/reference/canonical_order.py``.

Each set is sorted by its first column, and only runs that tie there by the next one: one sort of n numbers as a rule.
"""

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.pooling import weights_or_empty
from fastperm.kernels.cpu.workers import for_each_chunk
from fastperm.kernels.reference.canonical_order import as_bits


def canonical_order(
    x,  # (T, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    *,
    order,  # (T,), int64: row order[i] of x is row i of the sorted batch
):
    for_each_chunk(_sort_sets, offsets, as_bits(x), offsets, as_bits(weights_or_empty(weights, x.dtype)), order)


@jit
def _sort_sets(first_set, last_set, x, offsets, weights, order):
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        _sort_set(x[first:last], weights[first:last] if weights.size else weights, order[first:last])
        order[first:last] += first


@jit
def _sort_set(x, w, order):
    n, K = x.shape
    keys = np.empty(n, x.dtype)
    # Whether an element equals the one before it in all columns so far.
    tied = np.ones(n, np.bool_)
    tied[0] = False
    for i in range(n):
        order[i] = i
    for column in range(K + (1 if w.size else 0)):
        finished = True
        start = 0
        while start < n:
            stop = start + 1
            while stop < n and tied[stop]:
                stop += 1
            if stop - start > 1:
                for i in range(start, stop):
                    keys[i] = x[order[i], column] if column < K else w[order[i]]
                rank = np.argsort(keys[start:stop])
                before = order[start:stop].copy()
                run = keys[start:stop].copy()
                for i in range(stop - start):
                    order[start + i] = before[rank[i]]
                    if i > 0:
                        tied[start + i] = run[rank[i]] == run[rank[i - 1]]
                        finished = finished and not tied[start + i]
            start = stop
        if finished:
            return
