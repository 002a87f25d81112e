r"""The prediction for one set that is given block by block, in memory that does not grow with it.

Once the pooled vectors m_0 … m_{i-1} are known, layers 0 … i-1 act on every element by itself: a plain multi-layer
perceptron, whose biases hold the pooled terms.

    c_j = m_j W_pool_j + b_j,      h_{j+1} = relu(h_j W_self_j + c_j)

So pass i over the blocks takes each through the layers below i and adds up the pooled vector of h_i; nothing else is
kept of it. A network of D layers needs D passes, and one more to pool h_D or, without pooling, to answer for every
element. The price is that layer j is computed D − j times.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastperm.kernels.reference.deep_set import split_parameters
from fastperm.kernels.reference.dense import dense_forward

# A stream comes in blocks of a multiple of so many rows; only the last may have any number. How many rows a kernel sums
# at once then does not depend on how somebody cut the stream, and nor does any bit.
STREAM_ROWS = 1024


def deep_set_stream_pool(
    blocks,  # () -> iterator of (x (R, K_0), weights (R,) or None), once for each pass
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    *,
    c,  # (D, the largest width): row j gets c_j
    y,  # (1, K_fin), the prediction; None without pooling
):
    pool_stream(KERNELS, blocks, parameters, widths, aggregate, pool, c=c, y=y)


def deep_set_stream_rows(
    x,  # (R, K_0)
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    c,  # (D, the largest width), from `deep_set_stream_pool`
    *,
    y,  # (R, K_fin), the predictions for these rows
):
    layers, head = split_parameters(parameters, widths)
    dense_forward(_hidden(x, layers, c), *head, y=y)


class StreamKernels(NamedTuple):
    """What the passes are put together from: the kernels of one backend."""

    pool_rows: Callable
    dense_forward: Callable


def pool_stream(kernels, blocks, parameters, widths, aggregate, pool, *, c, y):
    """Do what `deep_set_stream_pool` does, with the kernels of any backend."""
    layers, head = split_parameters(parameters, widths)
    depth = len(layers)
    for i in range(depth if pool is None else depth + 1):
        how = aggregate if i < depth else pool
        # Sums in float64, whatever the dtype: a stream may be long.
        totals, total_weight = np.full(widths[i], -np.inf if how == "max" else 0.0), 0.0
        for x, weights in blocks():
            total_weight += kernels.pool_rows(x, weights, parameters, widths, c[:i], how, totals=totals)
        m = (totals / total_weight if how == "mean" else totals).astype(parameters.dtype)
        W, b = layers[i][1:] if i < depth else head
        kernels.dense_forward(m[None], W, b, y=c[i : i + 1, : b.size] if i < depth else y)


def _pool_rows(x, weights, parameters, widths, c, how, *, totals):
    """Pool h_i, with i the number of rows of c, of these rows into totals (K_i,), and return their total weight."""
    h = _hidden(x, split_parameters(parameters, widths)[0], c)
    w = np.ones(len(x)) if weights is None else weights.astype(np.float64)
    if how == "max":
        np.maximum(totals, np.max(h[w > 0], axis=0, initial=-np.inf), out=totals)
    else:
        totals += w @ h
    return w.sum()


def _hidden(x, layers, c):
    """Return h_i, i being the number of rows of c."""
    for (W_self, _, b), start in zip(layers, c, strict=False):
        x = np.maximum(x @ W_self + start[: b.size], 0)
    return x


KERNELS = StreamKernels(_pool_rows, dense_forward)
