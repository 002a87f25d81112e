"""Choosing a backend is choosing a module: ``fastperm.kernels.reference``, ``.cpu`` or ``.cuda``."""

import functools
import logging
import warnings
from importlib import import_module

import numpy as np

from fastperm import gpu
from fastperm.checks import check_choice

BACKENDS = ("reference", "cpu", "cuda")
_MODULES = {name: f"fastperm.kernels.{name}" for name in BACKENDS}
_logger = logging.getLogger("fastperm")


@functools.cache
def why_missing(name):
    """Return why the backend ``name`` cannot be used here, or None if it can."""
    check_choice(name, "backend", BACKENDS)
    try:
        import_module(_MODULES[name])
    except ImportError as error:
        return f"importing it failed: {error}"
    return gpu.why_unusable() if name == "cuda" else None


def resolve(name, dtype=None):
    """Return the name of a usable backend: ``"auto"`` is the fastest one that is available here.

    Parameters
    ----------
    name : {"auto", "reference", "cpu", "cuda"}
        The backend that is wanted.
    dtype : numpy.dtype, optional
        What it is to compute in; "auto" takes one that does, by default in float32.

    Raises
    ------
    ValueError
        If there is no such backend.
    RuntimeError
        If the backend cannot be used here; the message says why.
    TypeError
        If the backend does not compute in ``dtype``.

    Warns
    -----
    UserWarning
        If "auto" has nothing faster than the reference to take.
    """
    check_choice(name, "backend", ("auto", *BACKENDS))
    double = dtype is not None and np.dtype(dtype) == np.float64
    if name == "auto":
        return "cuda" if not double and _cuda_for_auto() else for_numpy("auto")
    reason = why_missing(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} is not available: {reason}")
    if name == "cuda" and double:
        raise TypeError("backend 'cuda' computes in float32 only, got dtype float64; use backend='cpu'")
    return name


def for_numpy(name):
    """Return the name of a usable backend whose arrays are NumPy's: ``"auto"`` is the fastest one of these."""
    if name != "auto":
        return resolve(name)
    if (reason := why_missing("cpu")) is None:
        return "cpu"
    warnings.warn(f"backend 'auto' takes the slow 'reference': 'cpu' is not available: {reason}", stacklevel=4)
    return "reference"


def get(name):
    """Return the module of kernels called ``name`` (see `resolve`)."""
    return import_module(_MODULES[resolve(name)])


@functools.cache
def _cuda_for_auto():
    """Return whether "auto" takes the GPU; if there seems to be one and it cannot be used, say why, once."""
    if not gpu.has_driver():
        return False
    if (reason := why_missing("cuda")) is not None:
        _logger.warning("backend 'auto' does not take 'cuda', which is not available: %s", reason)
        return False
    return not import_module("fastperm.kernels.cuda.compiling").SIMULATED
