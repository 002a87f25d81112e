"""Checks of arguments, shared by everything public: each returns the clean value or raises with what came."""

import math
import operator

import numpy as np

DTYPES = ("float32", "float64")


def check_integer(value, name, *, minimum):
    """Return ``value`` as an int of at least ``minimum``; bools and floats with a fraction are refused."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
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
        raise TypeError(f"{name} must be a number, got {value!r}") from None
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
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_dtype(dtype, name="dtype"):
    """Return the numpy dtype if it is float32 or float64."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise ValueError(f"{name} must be float32 or float64, got {dtype!r}")
    return found
