"""The canonical order; what it is for is in ``kernels/reference/canonical_order.py``.

One sort of all rows by set, columns and weights, which is CuPy's; it takes its keys in one array.
"""

from fastperm.kernels.cuda.compiling import xp
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.pooling import sets_of_rows
from fastperm.kernels.reference.canonical_order import as_bits


def canonical_order(
    x,  # (T, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    *,
    order,  # (T,), int64: row order[i] of x is row i of the sorted batch
    sorted_x,  # (T, K)
    sorted_weights,  # (T,) or None
):
    keys = [] if weights is None else [as_bits(weights)]
    keys += [as_bits(x)[:, k] for k in reversed(range(x.shape[1]))]
    keys.append(sets_of_rows(on_device(offsets), len(x)).astype(keys[0].dtype))
    order[:] = xp().lexsort(xp().stack(keys))
    sorted_x[:] = x[order]
    if weights is not None:
        sorted_weights[:] = weights[order]
