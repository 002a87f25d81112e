"""Choosing a backend is choosing a module: ``fastperm.kernels.reference`` or ``fastperm.kernels.cpu``."""

import functools
import warnings
from importlib import import_module

from fastperm.checks import check_choice

BACKENDS = ("reference", "cpu", "cuda")
_MODULES = {"reference": "fastperm.kernels.reference", "cpu": "fastperm.kernels.cpu"}


@functools.cache
def why_missing(name):
    """Return why the backend ``name`` cannot be used here, or None if it can."""
    check_choice(name, "backend", BACKENDS)
    if name not in _MODULES:
        return f"fastperm has no {name} kernels yet; use 'cpu'"
    try:
        import_module(_MODULES[name])
    except ImportError as error:
        return f"importing it failed: {error}"
    return None


def resolve(name):
    """Return the name of a usable backend: ``"auto"`` is the fastest one that is available here.

    Raises
    ------
    ValueError
        If there is no such backend.
    RuntimeError
        If the backend cannot be used here; the message says why.

    Warns
    -----
    UserWarning
        If "auto" has nothing faster than the reference to take.
    """
    check_choice(name, "backend", ("auto", *BACKENDS))
    if name == "auto":
        if (reason := why_missing("cpu")) is None:
            return "cpu"
        warnings.warn(f"backend 'auto' takes the slow 'reference': 'cpu' is not available: {reason}", stacklevel=3)
        return "reference"
    reason = why_missing(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} is not available: {reason}")
    return name


def get(name):
    """Return the module of kernels called ``name`` (see `resolve`)."""
    return import_module(_MODULES[resolve(name)])
