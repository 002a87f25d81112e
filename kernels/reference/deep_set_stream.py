r"""The prediction for one set that is given block by block, in memory that does not grow with it.

Once the pooled vectors m_0 … m_{i-1} are known, layers 0 … i-1 act on every element by itself: a plain multi-layer
perceptron, whose biases hold the pooled terms.

    c_j = m_j W_pool_j + b_j,      h_{j+1} = relu(h_j W_self_j + c_j)

So pass i over the blocks takes each through the layers below i and adds up the pooled vector of h_i; nothing else is
kept of it. A network of D layers needs D passes, and one more to pool h_D or, without pooling, to answer for every
element. The price is that layer j is computed D − j times.

The same holds for angular layers, once their harmonics Z_j are known too, which every pass pools beside m_j:

    h_{j+1} = relu(h_j W_self_j + c_j + E Q_j)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastperm.kernels.reference.angular import angular_basis, angular_filter
from fastperm.kernels.reference.deep_set import split_angles, split_parameters
from fastperm.kernels.reference.dense import dense_forward
from fastperm.kernels.reference.product import product

# A stream comes in blocks of a multiple of so many rows; only the last may have any number. How many rows a kernel sums
# at once then does not depend on how somebody cut the stream, and nor does any bit.
STREAM_ROWS = 1024


def deep_set_stream_pool(
    blocks,  # () -> iterator of (x (R, K_0), or (R, 1 + K_0), weights (R,) or None), once for each pass
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    c,  # (D (1 + 2M), the largest width): for each layer, c_j and the 2M rows of Q_j
    y,  # (1, K_fin), the prediction; None without pooling
):
    pool_stream(KERNELS, blocks, parameters, widths, aggregate, pool, orders, c=c, y=y)


def deep_set_stream_rows(
    x,  # (R, K_0), or (R, 1 + K_0) if there are orders
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    c,  # (D (1 + 2M), the largest width), from `deep_set_stream_pool`
    orders=0,  # M of angular layers
    *,
    y,  # (R, K_fin), the predictions for these rows
):
    layers, head = split_parameters(parameters, widths, orders)
    dense_forward(_hidden(x, layers, c, orders)[0], *head, y=y)


class StreamKernels(NamedTuple):
    """What the passes are put together from: the kernels of one backend."""

    pool_rows: Callable
    dense_forward: Callable
    angular_filter: Callable


def pool_stream(kernels, blocks, parameters, widths, aggregate, pool, orders=0, *, c, y):
    """Do what `deep_set_stream_pool` does, with the kernels of any backend."""
    layers, head = split_parameters(parameters, widths, orders)
    depth, rows = len(layers), 1 + 2 * orders
    for i in range(depth if pool is None else depth + 1):
        how = aggregate if i < depth else pool
        # Sums in float64, whatever the dtype: a stream may be long. The pooled vector, and the harmonics below it.
        totals, total_weight = np.full((rows if i < depth else 1, widths[i]), -np.inf if how == "max" else 0.0), 0.0
        for x, weights in blocks():
            total_weight += kernels.pool_rows(x, weights, parameters, widths, c[: i * rows], how, orders, totals=totals)
        m = (totals / total_weight if how == "mean" else totals).astype(parameters.dtype)
        if i == depth:
            kernels.dense_forward(m, *head, y=y)
            continue
        _, W, b, *filters = layers[i]
        own = c[i * rows : (i + 1) * rows, : b.size]
        kernels.dense_forward(m[:1], W, b, y=own[:1])
        if orders:
            kernels.angular_filter(m[1:, None], *filters, Q=own[1:, None])


def _pool_rows(x, weights, parameters, widths, c, how, orders, *, totals):
    """Pool h_i, c being that of the layers below, of these rows into totals (1, K_i), and return their total weight.

    With 1 + 2M rows, totals get the harmonics of h_i, too.
    """
    h, E = _hidden(x, split_parameters(parameters, widths, orders)[0], c, orders)
    w = np.ones(len(x)) if weights is None else weights.astype(np.float64)
    if how == "max":
        np.maximum(totals[0], np.max(h[w > 0], axis=0, initial=-np.inf), out=totals[0])
    else:
        totals[0] += w @ h
        if len(totals) > 1:
            totals[1:] += (w[:, None] * E).T @ h
    return w.sum()


def _hidden(x, layers, c, orders):
    """Return h_i, c being that of i layers, and E."""
    E, x = split_angles(x, orders, angular_basis, np.empty)
    for (W_self, _, b, *_), own in zip(layers, c.reshape(-1, 1 + 2 * orders, c.shape[1]), strict=False):
        z = np.empty((len(x), b.size), x.dtype)
        product(x, W_self, y=z)
        z += own[0, : b.size]
        if orders:
            turning = np.empty_like(z)
            product(E, own[1:, : b.size], y=turning)
            z += turning
        x = np.maximum(z, 0)
    return x, E


KERNELS = StreamKernels(_pool_rows, dense_forward, angular_filter)
