"""The kernels for NVIDIA GPUs: Numba CUDA, launched through CuPy, in float32.

Importing this imports neither CuPy nor a driver. ``xp``, the module of arrays, is CuPy, imported when it is asked for.
"""

import fastperm.kernels.cuda.step_queue  # noqa: F401 (for its kernel, which a filled cache must have)
from fastperm.kernels.cuda.adam import adam_step
from fastperm.kernels.cuda.angular import (
    angular_backward,
    angular_basis,
    angular_basis_backward,
    angular_filter,
    angular_forward,
)
from fastperm.kernels.cuda.canonical_order import canonical_order
from fastperm.kernels.cuda.deep_set import deep_set_forward, deep_set_step
from fastperm.kernels.cuda.deep_set_stream import deep_set_stream_pool, deep_set_stream_rows
from fastperm.kernels.cuda.dense import dense_backward, dense_forward
from fastperm.kernels.cuda.equivariant import equivariant_backward, equivariant_forward
from fastperm.kernels.cuda.fourier_series import fourier_series
from fastperm.kernels.cuda.mean_squared_error import mean_squared_error
from fastperm.kernels.cuda.paths import paths
from fastperm.kernels.cuda.pooling import pooling_backward, pooling_forward
from fastperm.kernels.cuda.random_functions import random_functions
from fastperm.kernels.cuda.random_samples import random_samples
from fastperm.kernels.cuda.root_mean_square import (
    root_mean_square_backward,
    root_mean_square_forward,
    root_mean_square_shift,
)

__all__ = [
    "adam_step",
    "angular_backward",
    "angular_basis",
    "angular_basis_backward",
    "angular_filter",
    "angular_forward",
    "canonical_order",
    "deep_set_forward",
    "deep_set_step",
    "deep_set_stream_pool",
    "deep_set_stream_rows",
    "dense_backward",
    "dense_forward",
    "equivariant_backward",
    "equivariant_forward",
    "fourier_series",
    "mean_squared_error",
    "paths",
    "pooling_backward",
    "pooling_forward",
    "random_functions",
    "random_samples",
    "root_mean_square_backward",
    "root_mean_square_forward",
    "root_mean_square_shift",
    "xp",
]


def __getattr__(name):
    if name == "xp":
        from fastperm.kernels.cuda.compiling import xp

        return xp()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
