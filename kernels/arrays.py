"""Arrays of several backends."""

import numpy as np


def on_host(array):
    """Return an array of any backend as a NumPy array: itself, or what it holds on its device."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else array


def on_backend(array, xp):
    """Return an array of any backend as one of the module ``xp``: itself, if it is one."""
    return xp.asarray(on_host(array) if xp is np else array)
