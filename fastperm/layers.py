"""Layers: each owns parameters, and calls the kernels of one backend on arrays that it makes itself.

``forward`` returns its output and what ``backward`` needs, as a named tuple that one can look at. ``backward`` returns
the gradient of the input and adds those of the parameters to ``gradients``.
"""

from typing import Any, NamedTuple

import numpy as np


class EquivariantSaved(NamedTuple):
    """What an equivariant layer keeps for its backward pass."""

    x: Any  # (T, K_in)
    y: Any  # (T, K_out)
    m: Any  # (S, K_in)


class AngularSaved(NamedTuple):
    """What an angular layer keeps for its backward pass."""

    x: Any  # (T, K_in)
    y: Any  # (T, K_out)
    m: Any  # (S, K_in)
    Z: Any  # (2M, S, K_in)


class PoolingSaved(NamedTuple):
    """What pooling keeps for its backward pass."""

    x: Any  # (T, K)
    p: Any  # (S, K)


class _Aggregating:
    """What layers own whose elements see their set."""

    def __init__(self, parameters, gradients, kernels, aggregate, activation="relu"):
        self.parameters = parameters
        self.gradients = gradients
        self.kernels = kernels
        self.aggregate = aggregate
        self.activation = activation


class Equivariant(_Aggregating):
    """Equivariant layer: y_n = relu(x_n W_self + m_s W_pool + b), m_s the mean, sum or maximum of the set.

    Parameters
    ----------
    parameters, gradients : dict
        Arrays ``"self"`` (K_in, K_out), ``"pool"`` (K_in, K_out) and ``"bias"`` (K_out,).
    kernels : module
        The backend.
    aggregate : {"mean", "sum", "max"}
        What every element sees of its set.
    activation : {"relu", "identity"}
        What follows the product.
    """

    def forward(self, x, sets):
        """Return y (T, K_out) and what `backward` needs, for x (T, K_in) on the offsets and weights of ``sets``."""
        own, xp = self.parameters, self.kernels.xp
        y = xp.empty((len(x), own["bias"].size), x.dtype)
        m = xp.empty((len(sets), x.shape[1]), x.dtype)
        self.kernels.equivariant_forward(
            *(x, sets.offsets, sets.weights, own["self"], own["pool"], own["bias"]),
            *(self.aggregate, self.activation),
            y=y,
            m=m,
        )
        return y, EquivariantSaved(x, y, m)

    def backward(self, dy, saved, sets, *, inputs=True):
        """Return dx (T, K_in), or None if ``inputs`` is false, and add to the gradients."""
        own, gradients = self.parameters, self.gradients
        dx = self.kernels.xp.empty_like(saved.x) if inputs else None
        self.kernels.equivariant_backward(
            *(dy, saved.x, saved.y, saved.m, sets.offsets, sets.weights, own["self"], own["pool"]),
            *(self.aggregate, self.activation),
            dx=dx,
            dW_self=gradients["self"],
            dW_pool=gradients["pool"],
            db=gradients["bias"],
        )
        return dx


class Angular(_Aggregating):
    """Angular layer: an equivariant layer whose elements see the harmonics of their set on the circle, too.

    Parameters
    ----------
    parameters, gradients : dict
        Those of `Equivariant`, and ``"cos"`` and ``"sin"`` (M, K_in, K_out): what cos m(θ_n − θ_j) and sin m(θ_n − θ_j)
        are multiplied by in what element n sees of element j, for m = 1 … M (``kernels/reference/angular.py``).
    kernels : module
        The backend.
    aggregate : {"mean", "sum"}
        What every element sees of its set.
    activation : {"relu", "identity"}
        What follows.
    """

    def forward(self, x, sets, *, E):
        """Return y (T, K_out) and what `backward` needs, for x (T, K_in) at angles whose harmonics are E (T, 2M)."""
        own, xp = self.parameters, self.kernels.xp
        y = xp.empty((len(x), own["bias"].size), x.dtype)
        m = xp.empty((len(sets), x.shape[1]), x.dtype)
        Z = xp.empty((E.shape[1], *m.shape), x.dtype)
        self.kernels.angular_forward(
            *(x, E, sets.offsets, sets.weights, own["self"], own["pool"], own["bias"], own["cos"], own["sin"]),
            *(self.aggregate, self.activation),
            y=y,
            m=m,
            Z=Z,
        )
        return y, AngularSaved(x, y, m, Z)

    def backward(self, dy, saved, sets, *, E, dE=None, inputs=True):
        """Return dx (T, K_in), or None if ``inputs`` is false, and add to the gradients, and to dE (T, 2M), if any."""
        own, gradients = self.parameters, self.gradients
        dx = self.kernels.xp.empty_like(saved.x) if inputs else None
        self.kernels.angular_backward(
            *(dy, saved.x, E, saved.y, saved.m, saved.Z, sets.offsets, sets.weights),
            *(own["self"], own["pool"], own["cos"], own["sin"], self.aggregate, self.activation),
            dx=dx,
            dE=dE,
            dW_self=gradients["self"],
            dW_pool=gradients["pool"],
            db=gradients["bias"],
            dA=gradients["cos"],
            dB=gradients["sin"],
        )
        return dx


class Pooling:
    """One vector per set: the mean, sum or maximum of its elements.

    Parameters
    ----------
    kernels : module
        The backend.
    pool : {"mean", "sum", "max"}
        How.
    """

    def __init__(self, kernels, pool):
        self.kernels = kernels
        self.pool = pool

    def forward(self, x, sets):
        """Return p (S, K) and what `backward` needs, for x (T, K)."""
        p = self.kernels.xp.empty((len(sets), x.shape[1]), x.dtype)
        self.kernels.pooling_forward(x, sets.offsets, sets.weights, self.pool, p=p)
        return p, PoolingSaved(x, p)

    def backward(self, dp, saved, sets):
        """Return dx (T, K)."""
        dx = self.kernels.xp.empty_like(saved.x)
        self.kernels.pooling_backward(dp, saved.x, saved.p, sets.offsets, sets.weights, self.pool, dx=dx)
        return dx


class Dense:
    """Dense layer on rows: y = x W + b.

    Parameters
    ----------
    parameters, gradients : dict
        Arrays ``"weight"`` (K_in, K_out) and ``"bias"`` (K_out,).
    kernels : module
        The backend.
    """

    def __init__(self, parameters, gradients, kernels):
        self.parameters = parameters
        self.gradients = gradients
        self.kernels = kernels

    @staticmethod
    def shapes(K_in, K_out):
        """Return the shapes of the parameters."""
        return {"weight": (K_in, K_out), "bias": (K_out,)}

    def forward(self, x):
        """Return y (R, K_out) and what `backward` needs, which is x (R, K_in)."""
        y = self.kernels.xp.empty((len(x), self.parameters["bias"].size), x.dtype)
        self.kernels.dense_forward(x, self.parameters["weight"], self.parameters["bias"], y=y)
        return y, x

    def backward(self, dy, saved):
        """Return dx (R, K_in) and add to the gradients."""
        dx = self.kernels.xp.empty_like(saved)
        self.kernels.dense_backward(
            *(dy, saved, self.parameters["weight"]), dx=dx, dW=self.gradients["weight"], db=self.gradients["bias"]
        )
        return dx


def initialise(shape, generator, *, gain=1.0):
    """Return a matrix (K_in, K_out), or several, of normal numbers with variance gain² / K_in.

    References
    ----------
    He et al. 2015, "Delving deep into rectifiers": gain √2 keeps the variance through a ReLU.
    """
    return generator.standard_normal(shape) * (gain / np.sqrt(shape[-2]))
