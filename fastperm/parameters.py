"""Named parameters that lie in one flat array."""

import math

import numpy as np

from fastperm.kernels.arrays import on_host


class Parameters(dict):
    """A dict of named arrays, all views into one flat array.

    Assigning to a name copies into its array, so that whoever holds the array sees the change; names can be neither
    added nor removed. `copy`, the functions of the module ``copy``, and ``pickle`` give a plain dict of copies: the
    values as they are now, which `update` puts back.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        The shape of every array, in order.
    kernels : module
        The backend whose arrays these are.
    dtype : numpy.dtype
        Their dtype. They start as zeros.

    Attributes
    ----------
    flat : ndarray of shape (number of values,)
        All of them, one after another. Assigning to it copies into it.
    kernels : module
        The backend.
    """

    def __init__(self, shapes, kernels, dtype):
        super().__init__()
        self.kernels = kernels
        self._flat = kernels.xp.zeros(sum(math.prod(shape) for shape in shapes.values()), dtype)
        self._shapes = shapes
        start = 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            super().__setitem__(name, self.flat[start:stop].reshape(shape))
            start = stop

    @property
    def flat(self):
        """All values, one after another."""
        return self._flat

    @flat.setter
    def flat(self, values):
        if values is not self._flat:  # which `flat += 1` assigns
            self._flat[...] = self._as_ours("flat", values, self._flat)

    def like(self):
        """Return zeros of the same names and shapes."""
        return Parameters(self._shapes, self.kernels, self.flat.dtype)

    def same_layout(self, other):
        """Return whether two of these have the same names and shapes in the same order, dtype, backend and GPU."""
        alike = self.kernels is other.kernels and self.flat.dtype == other.flat.dtype
        alike = alike and getattr(self.flat, "device", None) == getattr(other.flat, "device", None)
        same = self._shapes is other._shapes
        return alike and (same or list(self._shapes.items()) == list(other._shapes.items()))

    def copy(self):
        """Return the values as they are now: a dict of name to copied array."""
        return {name: array.copy() for name, array in self.items()}

    __copy__ = copy

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return dict, (self.copy(),)

    def __setitem__(self, name, value):
        if name not in self:
            raise KeyError(f"no parameter is called {name!r}; there are {', '.join(self)}")
        self[name][...] = self._as_ours(name, value, self[name])

    def _as_ours(self, name, value, place):
        """Return what is assigned to a place as an array of the backend: of its shape, or a number."""
        array = np.asarray(on_host(value), dtype=place.dtype)
        if array.shape not in ((), place.shape):
            raise ValueError(f"{name} has shape {place.shape}, got {array.shape}")
        return self.kernels.xp.asarray(array)

    def update(self, other):  # type: ignore[override]
        """Copy the values of every name in ``other``."""
        for name, value in dict(other).items():
            self[name] = value

    def _fixed(self, *args, **kwargs):
        raise TypeError("parameters can be neither added nor removed")

    __delitem__ = pop = popitem = clear = setdefault = __ior__ = _fixed
