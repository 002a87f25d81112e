"""Checks of arguments, shared by everything public: each returns the clean value or raises with what came."""

import math
import operator

import numpy as np

from fastperm.kernels.arrays import as_cupy, device_of, module_of, on_gpu

DTYPES = ("float32", "float64")


def check_integer(value, name, *, minimum):
    """Return ``value`` as an int of at least ``minimum``; bools and floats with a fraction are refused."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r:.80}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def check_number(value, name, *, above=None, minimum=None, below=None):
    """Return ``value`` as a finite float with ``above < value``, ``minimum <= value`` and ``value < below``."""
    try:
        if isinstance(value, (bool, np.bool_, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r:.80}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    if above is not None and not number > above:
        raise ValueError(f"{name} must be greater than {above:g}, got {number:g}")
    if minimum is not None and not number >= minimum:
        raise ValueError(f"{name} must be at least {minimum:g}, got {number:g}")
    if below is not None and not number < below:
        raise ValueError(f"{name} must be less than {below:g}, got {number:g}")
    return number


def check_choice(value, name, choices):
    """Return ``value`` if it is one of ``choices``, which are strings or None."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r:.80}")
    return value


def check_generator(seed):
    """Return the generator of random numbers that a seed makes; None makes one that is never the same."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed must be as numpy.random.default_rng takes it, got {seed!r}: {error}") from None


def check_optimizer(optimizer):
    """Return the optimiser if it takes steps; the class of one does not."""
    if isinstance(optimizer, type) or not callable(getattr(optimizer, "step", None)):
        raise TypeError(
            f"optimizer must be an Adam, or an object with a method step(parameters, gradients), got {optimizer!r:.80}"
        )
    return optimizer


def check_dtype(dtype, name="dtype"):
    """Return the numpy dtype, in native byte order, if it is float32 or float64."""
    try:
        found = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except (TypeError, ValueError):
        found = None
    if found is None or found.name not in DTYPES:
        raise ValueError(f"{name} must be float32 or float64, got {dtype!r}")
    return found.newbyteorder("=")


def check_array(x, name, *, gpu=False):
    """Return ``x`` as an array of whatever dtype; masked arrays, and rows of differing shape, are refused.

    So are arrays on a GPU, unless ``gpu`` is true: then they become CuPy's, without a copy.
    """
    if on_gpu(x):
        return _check_gpu_array(x, name, gpu)
    if _holds_masked(x):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost; to make sets of it, use Sets.masked, "
            f"with True for present"
            if isinstance(x, np.ma.MaskedArray)
            else f"{name} holds a masked array, whose mask would be lost"
        )
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of numbers, got rows of differing shape ({error})") from None


def _holds_masked(x):
    """Return whether x is a masked array, or lists of them; NumPy would take them, and leave out the masks."""
    # Of lists in lists the first will do: there may be a million.
    while isinstance(x, (list, tuple)) and x:
        if any(issubclass(kind, np.ma.MaskedArray) for kind in set(map(type, x))):
            return True
        x = x[0]
    return isinstance(x, np.ma.MaskedArray)


def check_real(x, name, dtype=None, *, gpu=False):
    """Return ``x`` as an aligned C-contiguous array of ``dtype``, or of the float dtype that stands for its own.

    Bools, integers and floats of at most 64 bits are real numbers; what is too large for ``dtype`` becomes infinite.
    For ``gpu``, see `check_array`.
    """
    array = check_array(x, name, gpu=gpu)
    if array.dtype.kind in "biu":
        own = np.dtype(np.float64)
    elif array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        own = np.promote_types(array.dtype, np.float32)
    else:
        raise TypeError(f"{name} must be real numbers, float32 or float64, got dtype {array.dtype}")
    if on_gpu(array):
        return module_of(array).ascontiguousarray(array, own if dtype is None else dtype)
    with np.errstate(over="ignore", under="ignore"):
        return np.require(array, own if dtype is None else dtype, ["C", "A"])


def check_kernels(array, name, kernels):
    """Return ``array`` as one of a backend; one on a GPU is refused by backends that compute on the host."""
    if on_gpu(array) and kernels.xp is np:
        raise TypeError(
            f"{name} lies on a GPU, and the backend {kernels.__name__.rpartition('.')[2]!r} computes on the host; use "
            f"net.to('cuda'), or cupy.asnumpy({name})"
        )
    check_device(array, name)  # CuPy would copy it from another GPU, without a word
    return kernels.xp.asarray(array)


def check_device(array, name):
    """Refuse an array on another GPU than the current one, where kernels are launched."""
    if not on_gpu(array):
        return
    own, current = device_of(array), module_of(array).cuda.Device().id
    if own != current:
        raise ValueError(
            f"{name} lies on GPU {own}, and the current one is GPU {current}; make the other the current one "
            f"(`with cupy.cuda.Device({own})`)"
        )


def _check_gpu_array(x, name, wanted):
    if not wanted:
        raise TypeError(f"{name} lies on a GPU, expected an array of the host; cupy.asnumpy makes one")
    try:
        check_device(x, name)
        return as_cupy(x)
    except ImportError as error:
        raise TypeError(f"{name} lies on a GPU, and CuPy, which would take it, cannot be imported ({error})") from None
