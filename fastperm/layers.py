"""Layers: each owns parameters, and calls the kernels of one backend on arrays that it makes itself.

``forward`` returns its output and what ``backward`` needs, as a named tuple that one can look at. ``backward`` returns
the gradient of the input and adds those of the parameters to ``gradients``. Rows that come in may be any array of real
numbers; they are taken in the dtype of the parameters, and refused where their shape does not fit.
"""

from typing import Any, NamedTuple

import numpy as np

from fastperm.checks import check_choice, check_kernels, check_real

AGGREGATES = ("mean", "sum", "max")
_ACTIVATIONS = ("relu", "identity")


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

    _aggregates: tuple[str, ...] = AGGREGATES

    def __init__(self, parameters, gradients, kernels, aggregate, activation="relu"):
        self.parameters = parameters
        self.gradients = gradients
        self.kernels = kernels
        self.aggregate = check_choice(aggregate, "aggregate", self._aggregates)
        self.activation = check_choice(activation, "activation", _ACTIVATIONS)

    def _input(self, x, sets):
        """Return x (T, K_in) as the kernels take it."""
        W = self.parameters["self"]
        return _rows(x, "x", (sets.n_elements, len(W)), W.dtype, self.kernels)


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
        own, xp, x = self.parameters, self.kernels.xp, self._input(x, sets)
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
        dy = _rows(dy, "dy", saved.y.shape, saved.y.dtype, self.kernels)
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

    _aggregates = ("mean", "sum")  # a maximum has no harmonics

    def forward(self, x, sets, *, E):
        """Return y (T, K_out) and what `backward` needs, for x (T, K_in) at angles whose harmonics are E (T, 2M)."""
        own, xp, x = self.parameters, self.kernels.xp, self._input(x, sets)
        E = _rows(E, "E", (len(x), 2 * len(own["cos"])), x.dtype, self.kernels)
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
        dy = _rows(dy, "dy", saved.y.shape, saved.y.dtype, self.kernels)
        E = _rows(E, "E", (len(saved.x), len(saved.Z)), saved.x.dtype, self.kernels)
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
        self.pool = check_choice(pool, "pool", AGGREGATES)

    def forward(self, x, sets):
        """Return p (S, K) and what `backward` needs, for x (T, K) in the dtype of the sets."""
        x = _rows(x, "x", (sets.n_elements, None), sets.dtype, self.kernels)
        p = self.kernels.xp.empty((len(sets), x.shape[1]), x.dtype)
        self.kernels.pooling_forward(x, sets.offsets, sets.weights, self.pool, p=p)
        return p, PoolingSaved(x, p)

    def backward(self, dp, saved, sets):
        """Return dx (T, K)."""
        dp = _rows(dp, "dp", saved.p.shape, saved.p.dtype, self.kernels)
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
        W = self.parameters["weight"]
        x = _rows(x, "x", (None, len(W)), W.dtype, self.kernels)
        y = self.kernels.xp.empty((len(x), self.parameters["bias"].size), x.dtype)
        self.kernels.dense_forward(x, W, self.parameters["bias"], y=y)
        return y, x

    def backward(self, dy, saved):
        """Return dx (R, K_in) and add to the gradients."""
        dy = _rows(dy, "dy", (len(saved), self.parameters["bias"].size), saved.dtype, self.kernels)
        dx = self.kernels.xp.empty_like(saved)
        self.kernels.dense_backward(
            *(dy, saved, self.parameters["weight"]), dx=dx, dW=self.gradients["weight"], db=self.gradients["bias"]
        )
        return dx


def _rows(rows, name, shape, dtype, kernels):
    """Return rows as the kernels take them, of this shape, where None is for any number."""
    as_it_is = type(rows) is np.ndarray and rows.dtype == dtype and kernels.xp is np
    if not (as_it_is and rows.flags.c_contiguous and rows.flags.aligned):
        rows = check_kernels(check_real(rows, name, dtype, gpu=True), name, kernels)
    if rows.ndim != 2 or any(wanted not in (None, found) for wanted, found in zip(shape, rows.shape, strict=True)):
        wanted = ", ".join("any" if number is None else str(number) for number in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {rows.shape}")
    return rows


def initialise(shape, generator, *, gain=1.0):
    """Return a matrix (K_in, K_out), or several, of normal numbers with variance gain² / K_in.

    References
    ----------
    He et al. 2015, "Delving deep into rectifiers": gain √2 keeps the variance through a ReLU.
    """
    return generator.standard_normal(shape) * (gain / np.sqrt(shape[-2]))
