"""Arrays of several backends: NumPy's, on the host, and CuPy's, on a GPU."""

import numpy as np

_GPU_MEMORY = (2, 13)  # of CUDA, and what it manages, in the terms of DLPack


def on_gpu(x):
    """Return whether x is an array on an NVIDIA GPU, of whatever library."""
    if isinstance(x, (np.ndarray, type)):
        return False
    if hasattr(x, "__cuda_array_interface__"):
        return True
    return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] in _GPU_MEMORY


def module_of(array):
    """Return the module of an array: CuPy for one on a GPU, else NumPy."""
    if not on_gpu(array):
        return np
    import cupy

    return cupy


def device_of(x):
    """Return the number of the GPU that an array lies on, of whatever library."""
    if hasattr(x, "__dlpack_device__"):  # not x.device, whose number may be one of a cluster
        return int(x.__dlpack_device__()[1])
    import cupy

    address = x.__cuda_array_interface__["data"][0]
    if address == 0:  # of an empty array
        return cupy.cuda.Device().id
    return cupy.cuda.runtime.pointerGetAttributes(address).device


def as_cupy(x):
    """Return an array on a GPU, of whatever library, as one of CuPy: without a copy, if that is the current one."""
    import cupy

    if hasattr(x, "__cuda_array_interface__"):
        return cupy.asarray(x)
    return cupy.from_dlpack(x)


def on_host(array):
    """Return an array of any backend as a NumPy array: itself, or what it holds on its device."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else array


def on_backend(array, xp):
    """Return an array of any backend as one of the module ``xp``: itself, if it is one."""
    return xp.asarray(on_host(array) if xp is np else array)


def beside(array, other):
    """Return an array where ``other`` is: on its GPU, as it is, or on the host."""
    return array if on_gpu(other) else on_host(array)
