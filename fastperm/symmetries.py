"""Symmetries of the task that a network has built in: what it sees of the sets, and what is added to its answers."""

from typing import NamedTuple

import numpy as np

from fastperm.checks import check_choice, check_integer
from fastperm.kernels.reference.root_mean_square import divided, stream_root_mean_square
from fastperm.sets import Sets

SYMMETRIES = (None, "circle")
SCALES = (None, "rms")
# M of a network on the circle, where nothing is said.
ORDERS = 8


class Symmetries(NamedTuple):
    """The settings of `DeepSet` of the same names, and what they do to input, output and their gradients.

    Attributes
    ----------
    in_features : int
        Columns of the sets as they come.
    symmetry : {None, "circle"}
        "circle": the first column is an angle.
    orders : int
        M; without, angles are left out.
    scale : {None, "rms"}
        "rms": values are divided by their root mean square r, and 2 ln r is added to the predictions.
    """

    in_features: int
    symmetry: str | None
    orders: int
    scale: str | None

    @classmethod
    def checked(cls, in_features, symmetry, orders, scale, aggregate, pool):
        """Return them as they were asked for, or say what does not go together."""
        check_choice(symmetry, "symmetry", SYMMETRIES)
        orders = _check_orders(orders, symmetry, aggregate, in_features)
        check_choice(scale, "scale", SCALES)
        if scale is not None and in_features < 2:
            raise ValueError("scale='rms' needs positions and values: in_features must be at least 2, got 1")
        if scale is not None and pool is None:
            raise ValueError("scale='rms' adds 2 ln r to the prediction for a set: it needs pooling, got pool=None")
        return cls(in_features, symmetry, orders, scale)

    @property
    def features(self):
        """Number of features that the first layer sees."""
        return self.in_features - (self.symmetry == "circle")

    @property
    def ignores_angles(self):
        """Whether the first column of the input is left out."""
        return self.symmetry == "circle" and self.orders == 0

    def seen(self, sets, kernels):
        """Return the sets as the kernels should see them, and their scales (S,) or None."""
        if self.scale is None and not self.ignores_angles:
            return sets, None
        if self.scale is None:
            values = kernels.xp.ascontiguousarray(sets.values[:, 1:])
            return Sets._trusted(values, sets.offsets, sets.weights), None
        values = kernels.xp.empty((sets.n_elements, self.in_features - self.ignores_angles), sets.dtype)
        scales = kernels.xp.empty(len(sets), np.float64)
        kernels.root_mean_square_forward(sets.values, sets.offsets, sets.weights, u=values, r=scales)
        return Sets._trusted(values, sets.offsets, sets.weights), scales

    def stream_scales(self, blocks):
        """Return the scale (1,) of one set that comes in blocks (x (R, in_features), weights (R,) or None), or None."""
        if self.scale is None:
            return None
        return stream_root_mean_square((x[:, 1:], weights) for x, weights in blocks)

    def columns(self, x, scales, weights=None):
        """Return what the kernels see of rows x of a stream: no ignored angle, and values divided by scales, if any."""
        if scales is not None:
            x = np.concatenate([x[:, :1], divided(x[:, 1:], scales, weights)], axis=1)
        return np.ascontiguousarray(x[:, 1:]) if self.ignores_angles else x

    def shifted(self, y, scales, kernels, sign=1):
        """Return predictions or targets (S, K_fin) with 2 ln r added, r being the scales, if any."""
        if scales is None:
            return y
        shifted = kernels.xp.empty(y.shape, y.dtype)
        kernels.root_mean_square_shift(y, scales, sign, shifted=shifted)
        return shifted

    def input_gradient(self, dx, dangles, dy, sets, scales, kernels):
        """Return the gradient of the values of the sets, (T, in_features), from that of what the kernels saw.

        Parameters
        ----------
        dx : ndarray of shape (T, features)
            Gradient of the features that the first layer saw.
        dangles : ndarray of shape (T,) or None
            That of the angles; None where nothing depends on them.
        dy : ndarray of shape (S, K_fin)
            That of the predictions.
        sets : Sets
            As the kernels saw them.
        scales : ndarray of shape (S,) or None
        kernels : module
            The backend.
        """
        xp = kernels.xp
        if self.symmetry == "circle":
            dangles = xp.zeros(len(dx), dx.dtype) if dangles is None else dangles
            dx = xp.concatenate([dangles[:, None], dx], axis=1)
        if scales is None:
            return dx
        found, dscale = xp.empty_like(dx), dy.sum(axis=1, dtype=np.float64) * 2
        kernels.root_mean_square_backward(dx, sets.values, scales, dscale, sets.offsets, sets.weights, dx=found)
        return found


def _check_orders(orders, symmetry, aggregate, in_features):
    """Return M."""
    if symmetry is None:
        if orders is not None and check_integer(orders, "orders", minimum=0):
            raise ValueError(f"orders are those of angular filters: they need symmetry='circle', got orders={orders!r}")
        return 0
    if in_features < 2:
        raise ValueError(
            "symmetry='circle' needs an angle and at least one feature beside it: in_features must be at least 2, got "
            f"{in_features}; a column of ones will do as a feature"
        )
    orders = ORDERS if orders is None else check_integer(orders, "orders", minimum=0)
    if orders and aggregate == "max":
        raise ValueError(
            "a maximum has no harmonics: symmetry='circle' needs aggregate='mean' or 'sum', or orders=0; got 'max'"
        )
    return orders
