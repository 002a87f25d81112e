r"""The whole network: equivariant ReLU layers, pooling, a dense head; and one training step without the optimiser.

    h_0 = x,  h_{i+1} = equivariant_i(h_i),  p = pooling(h_D) (or h_D itself),  y = p W + b
    L = mean squared error of y, and its gradient with respect to every parameter

The parameters are one flat array: W_self, W_pool and b of every layer, then W and b of the head.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

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
    _forward_by_layers(KERNELS, x, offsets, weights, layers, head, aggregate, pool, y)


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
    return step_by_layers(
        *(KERNELS, x, offsets, weights, targets, parameters, widths, aggregate, pool, targets.size), gradients=gradients
    )


class LayerKernels(NamedTuple):
    """What a network is put together from: the kernels of one backend."""

    equivariant_forward: Callable
    equivariant_backward: Callable
    pooling_forward: Callable
    pooling_backward: Callable
    dense_forward: Callable
    dense_backward: Callable
    mean_squared_error: Callable


KERNELS = LayerKernels(
    equivariant_forward,
    equivariant_backward,
    pooling_forward,
    pooling_backward,
    dense_forward,
    dense_backward,
    mean_squared_error,
)


def step_by_layers(
    kernels, x, offsets, weights, targets, parameters, widths, aggregate, pool, batch_size, *, gradients
):  # fmt: skip
    """Do what `deep_set_step` does, layer by layer, with the kernels of any backend.

    These sets may be a part of a batch whose targets are ``batch_size`` numbers: the loss is their part of its mean.
    """
    layers, head = split_parameters(parameters, widths)
    layer_gradients, (dW, db) = split_parameters(gradients, widths)
    y = np.empty_like(targets)
    hidden, means, p = _forward_by_layers(kernels, x, offsets, weights, layers, head, aggregate, pool, y)
    dy = np.empty_like(y)
    part = targets.size / batch_size
    loss = part * kernels.mean_squared_error(y, targets, dy=dy)
    if not np.isfinite(loss):
        return loss
    dy *= part
    # Two places take turns to hold the gradient of an activation.
    places = _arrays([(len(x), max(widths[1:-1]))] * 2, x.dtype)

    def gradient_of(h, place):
        return places[place].reshape(-1)[: h.size].reshape(h.shape)

    dp = np.empty_like(p)
    kernels.dense_backward(dy, p, head[0], dx=dp, dW=dW, db=db)
    dh = dp
    if pool is not None:
        dh = gradient_of(hidden[-1], len(layers) % 2)
        kernels.pooling_backward(dp, hidden[-1], p, offsets, weights, pool, dx=dh)
    for i in reversed(range(len(layers))):
        W_self, W_pool, _ = layers[i]
        dW_self, dW_pool, db = layer_gradients[i]
        dx = gradient_of(hidden[i], i % 2) if i else None
        kernels.equivariant_backward(
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
        size = math.prod(shape)
        start += size
        return parameters[start - size : start].reshape(shape)

    for K_in, K_out in pairwise(widths[:-1]):
        layers.append((take(K_in, K_out), take(K_in, K_out), take(K_out)))
    return layers, (take(*widths[-2:]), take(widths[-1]))


def _forward_by_layers(kernels, x, offsets, weights, layers, head, aggregate, pool, y):
    """Write y and return h_0 … h_D, m_0 … m_{D-1} and what the head saw."""
    hidden = [x, *_arrays([(len(x), b.size) for _, _, b in layers], x.dtype)]
    means = [np.empty((len(offsets) - 1, len(W_self)), x.dtype) for W_self, _, _ in layers]
    for (W_self, W_pool, b), h, above, m in zip(layers, hidden[:-1], hidden[1:], means, strict=True):
        kernels.equivariant_forward(h, offsets, weights, W_self, W_pool, b, aggregate, "relu", y=above, m=m)
    p = hidden[-1]
    if pool is not None:
        p = np.empty((len(offsets) - 1, p.shape[1]), x.dtype)
        kernels.pooling_forward(hidden[-1], offsets, weights, pool, p=p)
    kernels.dense_forward(p, *head, y=y)
    return hidden, means, p


def _arrays(shapes, dtype):
    """Return arrays of these shapes that lie in one block: large ones come in large pages, which cost far less."""
    sizes = [math.prod(shape) for shape in shapes]
    block = np.empty(sum(sizes), dtype)
    ends = np.cumsum(sizes)
    return [block[end - size : end].reshape(shape) for end, size, shape in zip(ends, sizes, shapes, strict=True)]
