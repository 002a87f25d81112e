r"""The whole network: equivariant ReLU layers, pooling, a dense head; and one training step without the optimiser.

    h_0 = x,  h_{i+1} = equivariant_i(h_i),  p = pooling(h_D) (or h_D itself),  y = p W + b
    L = mean squared error of y, and its gradient with respect to every parameter

With ``orders`` M > 0 the layers are angular ones of that order; the first column of x is the angle then, and h_0 the
others. The parameters are one flat array: W_self, W_pool and b of every layer, for angular ones A and B too, then W and
b of the head.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastperm.kernels.reference.angular import (
    angular_backward,
    angular_basis,
    angular_forward,
)
from fastperm.kernels.reference.dense import dense_backward, dense_forward
from fastperm.kernels.reference.equivariant import equivariant_backward, equivariant_forward
from fastperm.kernels.reference.mean_squared_error import mean_squared_error
from fastperm.kernels.reference.pooling import pooling_backward, pooling_forward


def deep_set_forward(
    x,  # (T, K_0), or (T, 1 + K_0) if there are orders
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    y,  # (S, K_fin), or (T, K_fin) without pooling
):
    forward_by_layers(KERNELS, x, offsets, weights, parameters, widths, aggregate, pool, orders, y=y)


def deep_set_step(
    x,  # (T, K_0), or (T, 1 + K_0) if there are orders
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    targets,  # (S, K_fin), or (T, K_fin) without pooling
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    gradients,  # (P,), accumulated
):
    """Return the loss as a float. If it is not finite, the gradients mean nothing."""
    return step_by_layers(
        *(KERNELS, x, offsets, weights, targets, parameters, widths, aggregate, pool, orders, targets.size),
        gradients=gradients,
    )


class LayerKernels(NamedTuple):
    """What a network is put together from: the kernels of one backend."""

    equivariant_forward: Callable
    equivariant_backward: Callable
    angular_basis: Callable
    angular_forward: Callable
    angular_backward: Callable
    pooling_forward: Callable
    pooling_backward: Callable
    dense_forward: Callable
    dense_backward: Callable
    mean_squared_error: Callable
    empty: Callable = np.empty  # (shape, dtype)


KERNELS = LayerKernels(
    equivariant_forward,
    equivariant_backward,
    angular_basis,
    angular_forward,
    angular_backward,
    pooling_forward,
    pooling_backward,
    dense_forward,
    dense_backward,
    mean_squared_error,
)


class Hidden(NamedTuple):
    """What a way forward, layer by layer, keeps for the way back."""

    h: list[Any]  # h_0 … h_D
    m: list[Any]  # m_0 … m_{D-1}
    Z: list[Any]  # of angular layers
    E: Any  # (T, 2M), for angular layers
    p: Any  # what the head sees


def step_by_layers(
    kernels, x, offsets, weights, targets, parameters, widths, aggregate, pool, orders, batch_size, *, gradients
):  # fmt: skip
    """Do what `deep_set_step` does, layer by layer, with the kernels of any backend.

    These sets may be a part of a batch whose targets are ``batch_size`` numbers: the loss is their part of its mean.
    """
    layers, head = split_parameters(parameters, widths, orders)
    layer_gradients, (dW, db) = split_parameters(gradients, widths, orders)
    y = kernels.empty(targets.shape, x.dtype)
    kept = forward_by_layers(kernels, x, offsets, weights, parameters, widths, aggregate, pool, orders, y=y)
    hidden, p = kept.h, kept.p
    dy = kernels.empty(targets.shape, x.dtype)
    part = targets.size / batch_size
    loss = part * kernels.mean_squared_error(y, targets, dy=dy)
    if not np.isfinite(loss):
        return loss
    dy *= part
    # Two places take turns to hold the gradient of an activation.
    places = _arrays(kernels, [(len(x), max(widths[1:-1]))] * 2, x.dtype)

    def gradient_of(h, place):
        return places[place].reshape(-1)[: h.size].reshape(h.shape)

    dp = kernels.empty(p.shape, x.dtype)
    kernels.dense_backward(dy, p, head[0], dx=dp, dW=dW, db=db)
    dh = dp
    if pool is not None:
        dh = gradient_of(hidden[-1], len(layers) % 2)
        kernels.pooling_backward(dp, hidden[-1], p, offsets, weights, pool, dx=dh)
    for i in reversed(range(len(layers))):
        W_self, W_pool, _, *filters = layers[i]
        dx = gradient_of(hidden[i], i % 2) if i else None
        how = (aggregate, "relu")
        outputs = dict(zip(("dW_self", "dW_pool", "db", "dA", "dB"), layer_gradients[i], strict=False))
        matrices = (offsets, weights, W_self, W_pool)
        if orders:
            kernels.angular_backward(
                *(dh, hidden[i], kept.E, hidden[i + 1], kept.m[i], kept.Z[i], *matrices, *filters, *how),
                dx=dx,
                dE=None,
                **outputs,
            )
        else:
            kernels.equivariant_backward(*(dh, hidden[i], hidden[i + 1], kept.m[i], *matrices, *how), dx=dx, **outputs)
        dh = dx
    return loss


def forward_by_layers(kernels, x, offsets, weights, parameters, widths, aggregate, pool, orders, *, y):
    """Do what `deep_set_forward` does, layer by layer, with the kernels of any backend, and return `Hidden`."""
    layers, head = split_parameters(parameters, widths, orders)
    E, x = split_angles(x, orders, kernels.angular_basis, kernels.empty)
    hidden = [x, *_arrays(kernels, [(len(x), width) for width in widths[1:-1]], x.dtype)]
    n_sets = len(offsets) - 1
    means = [kernels.empty((n_sets, width), x.dtype) for width in widths[:-2]]
    harmonics = [kernels.empty((2 * orders, n_sets, width), x.dtype) for width in widths[:-2]]
    for layer, h, above, m, Z in zip(layers, hidden[:-1], hidden[1:], means, harmonics, strict=True):
        how = (offsets, weights, *layer, aggregate, "relu")
        if orders:
            kernels.angular_forward(h, E, *how, y=above, m=m, Z=Z)
        else:
            kernels.equivariant_forward(h, *how, y=above, m=m)
    p = hidden[-1]
    if pool is not None:
        p = kernels.empty((n_sets, p.shape[1]), x.dtype)
        kernels.pooling_forward(hidden[-1], offsets, weights, pool, p=p)
    kernels.dense_forward(p, *head, y=y)
    return Hidden(hidden, means, harmonics, E, p)


def split_angles(x, orders, angular_basis, empty):
    """Return E (T, 2M) and the features of x, whose first column is the angle; without orders, None and x itself."""
    if orders == 0:
        return None, x
    E, features, angles = (empty(shape, x.dtype) for shape in ((len(x), 2 * orders), x[:, 1:].shape, len(x)))
    features[:], angles[:] = x[:, 1:], x[:, 0]
    angular_basis(angles, E=E)
    return E, features


def layer_shapes(K_in, K_out, orders):
    """Return the shapes of the parameters of a layer, by name, in the order in which they lie."""
    shapes = {"self": (K_in, K_out), "pool": (K_in, K_out), "bias": (K_out,)}
    return shapes | ({"cos": (orders, K_in, K_out), "sin": (orders, K_in, K_out)} if orders else {})


def split_parameters(parameters, widths, orders=0):
    """Return views of a flat array: (W_self, W_pool, b), and A and B if any, of every layer; (W, b) of the head."""
    start = 0

    def take(*shape):
        nonlocal start
        size = math.prod(shape)
        start += size
        return parameters[start - size : start].reshape(shape)

    layers = [tuple(take(*shape) for shape in layer_shapes(*ends, orders).values()) for ends in pairwise(widths[:-1])]
    return layers, (take(*widths[-2:]), take(widths[-1]))


def _arrays(kernels, shapes, dtype):
    """Return arrays of these shapes that lie in one block: large ones come in large pages, which cost far less."""
    sizes = [math.prod(shape) for shape in shapes]
    block = kernels.empty(sum(sizes), dtype)
    ends = np.cumsum(sizes)
    return [block[end - size : end].reshape(shape) for end, size, shape in zip(ends, sizes, shapes, strict=True)]
