r"""The whole network: equivariant ReLU layers, pooling, a dense head; and one training step without the optimiser.

    h_0 = x,  h_{i+1} = equivariant_i(h_i),  p = pooling(h_D) (or h_D itself),  y = p W + b
    L = mean squared error of y, and its gradient with respect to every parameter

The parameters are one flat array: W_self, W_pool and b of every layer, then W and b of the head.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.reference.dense import dense_backward, dense_forward
from fastperm.kernels.reference.equivariant import equivariant_backward, equivariant_forward
from fastperm.kernels.reference.mean_squared_error import mean_squared_error
from fastperm.kernels.reference.pooling import pooling_backward, pooling_forward


def deep_set_forward(
    x,  # (T, K_0)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    *,
    y,  # (S, K_fin), or (T, K_fin) without pooling
):
    layers, head = split_parameters(parameters, widths)
    _forward(x, offsets, weights, layers, head, aggregate, pool, y)


def deep_set_step(
    x,  # (T, K_0)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    targets,  # (S, K_fin), or (T, K_fin) without pooling
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    *,
    gradients,  # (P,), accumulated
):
    """Return the loss as a float. If it is not finite, the gradients mean nothing."""
    layers, head = split_parameters(parameters, widths)
    layer_gradients, (dW, db) = split_parameters(gradients, widths)
    y = np.empty_like(targets)
    hidden, means, p = _forward(x, offsets, weights, layers, head, aggregate, pool, y)
    dy = np.empty_like(y)
    loss = mean_squared_error(y, targets, dy=dy)
    if not np.isfinite(loss):
        return loss
    dp = np.empty_like(p)
    dense_backward(dy, p, head[0], dx=dp, dW=dW, db=db)
    dh = dp
    if pool is not None:
        dh = np.empty_like(hidden[-1])
        pooling_backward(dp, hidden[-1], p, offsets, weights, pool, dx=dh)
    for i in reversed(range(len(layers))):
        W_self, W_pool, _ = layers[i]
        dW_self, dW_pool, db = layer_gradients[i]
        dx = np.empty_like(hidden[i]) if i else None
        equivariant_backward(
            *(dh, hidden[i], hidden[i + 1], means[i], offsets, weights, W_self, W_pool, aggregate, "relu"),
            dx=dx,
            dW_self=dW_self,
            dW_pool=dW_pool,
            db=db,
        )
        dh = dx
    return loss


def split_parameters(parameters, widths):
    """Return views of a flat array: (W_self, W_pool, b) of every layer, and (W, b) of the head."""
    layers, start = [], 0

    def take(*shape):
        nonlocal start
        size = int(np.prod(shape))
        start += size
        return parameters[start - size : start].reshape(shape)

    for K_in, K_out in pairwise(widths[:-1]):
        layers.append((take(K_in, K_out), take(K_in, K_out), take(K_out)))
    return layers, (take(*widths[-2:]), take(widths[-1]))


def _forward(x, offsets, weights, layers, head, aggregate, pool, y):
    """Write y and return h_0 … h_D, m_0 … m_{D-1} and what the head saw."""
    hidden, means = [x], []
    for W_self, W_pool, b in layers:
        h, m = np.empty((len(x), b.size), x.dtype), np.empty((len(offsets) - 1, len(W_self)), x.dtype)
        equivariant_forward(hidden[-1], offsets, weights, W_self, W_pool, b, aggregate, "relu", y=h, m=m)
        hidden.append(h)
        means.append(m)
    p = hidden[-1]
    if pool is not None:
        p = np.empty((len(offsets) - 1, p.shape[1]), x.dtype)
        pooling_forward(hidden[-1], offsets, weights, pool, p=p)
    dense_forward(p, *head, y=y)
    return hidden, means, p
