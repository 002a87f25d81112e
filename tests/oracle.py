"""The network written once more, naively and for `autograd`: loops over sets, no fused anything.

Independent of fastperm: it shares neither code nor formulas for gradients, which `autograd` derives.
"""

import autograd.numpy as np


def pool_set(x, w, how):
    """Pool one set: x (n, K), w (n,)."""
    if how == "max":
        return np.max(x[w > 0], axis=0)
    total = np.sum(x * w[:, None], axis=0)
    return total / np.sum(w) if how == "mean" else total


def equivariant(x, bounds, w, W_self, W_pool, b, aggregate, activation):
    """Return y (T, K_out) of one layer; ``bounds`` are (first, last) rows of every set."""
    parts = []
    for first, last in bounds:
        own = x[first:last]
        z = np.dot(own, W_self) + np.dot(pool_set(own, w[first:last], aggregate), W_pool) + b
        parts.append(np.maximum(z, 0) if activation == "relu" else z)
    return np.concatenate(parts)


def angular(x, angles, bounds, w, W_self, W_pool, b, A, B, aggregate, activation):
    """Return y (T, K_out) of one angular layer, from the double sum over pairs of elements."""
    parts = []
    for first, last in bounds:
        own, weights = x[first:last], w[first:last]
        z = np.dot(own, W_self) + np.dot(pool_set(own, weights, aggregate), W_pool) + b
        share = weights / np.sum(weights) if aggregate == "mean" else weights
        difference = angles[first:last, None] - angles[None, first:last]
        for m in range(len(A)):
            phase = (m + 1) * difference
            z = z + 2 * np.dot(np.cos(phase) * share, np.dot(own, A[m]))
            z = z + 2 * np.dot(np.sin(phase) * share, np.dot(own, B[m]))
        parts.append(np.maximum(z, 0) if activation == "relu" else z)
    return np.concatenate(parts)


def pooling(x, bounds, w, pool):
    """Return p (S, K)."""
    return np.stack([pool_set(x[first:last], w[first:last], pool) for first, last in bounds])


def deep_set(x, parameters, bounds, w, depth, aggregate, pool):
    """Return the prediction of a whole network, on the circle if it has filters."""
    angles = None
    if "layers.0.cos" in parameters:
        angles, x = x[:, 0], x[:, 1:]
    for i in range(depth):
        own = [parameters[f"layers.{i}.{name}"] for name in ("self", "pool", "bias")]
        if angles is None:
            x = equivariant(x, bounds, w, *own, aggregate, "relu")
        else:
            own += [parameters[f"layers.{i}.{name}"] for name in ("cos", "sin")]
            x = angular(x, angles, bounds, w, *own, aggregate, "relu")
    if pool is not None:
        x = pooling(x, bounds, w, pool)
    return np.dot(x, parameters["head.weight"]) + parameters["head.bias"]
