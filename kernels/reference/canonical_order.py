r"""The canonical order: one order of the elements of each set, the same however they were listed.

Elements are sorted by the bits of their numbers, column by column, and then by their weight. Two elements that tie are
the same to the bit, so what is computed from the sorted set has the same bits for every order of the original.
"""

import numpy as np


def canonical_order(
    x,  # (T, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    *,
    order,  # (T,), int64: row order[i] of x is row i of the sorted batch
    sorted_x,  # (T, K)
    sorted_weights,  # (T,) or None
):
    columns = [] if weights is None else [as_bits(weights)]
    columns += list(as_bits(x).T[::-1])
    sets = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order[:] = np.lexsort((*columns, sets))
    sorted_x[:] = x[order]
    if weights is not None:
        sorted_weights[:] = weights[order]


def as_bits(array):
    """Return the numbers as integers of the same bits: any order of them will do, as long as it is total."""
    return array.view(np.int32 if array.itemsize == 4 else np.int64)
