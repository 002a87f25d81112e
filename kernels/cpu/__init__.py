"""The fast kernels for processors: Numba, with a register-tiled product of our own."""

import numpy as xp

from fastperm.kernels.cpu.adam import adam_step
from fastperm.kernels.cpu.angular import (
    angular_backward,
    angular_basis,
    angular_basis_backward,
    angular_filter,
    angular_forward,
)
from fastperm.kernels.cpu.canonical_order import canonical_order
from fastperm.kernels.cpu.deep_set import deep_set_forward, deep_set_step
from fastperm.kernels.cpu.deep_set_stream import deep_set_stream_pool, deep_set_stream_rows
from fastperm.kernels.cpu.dense import dense_backward, dense_forward
from fastperm.kernels.cpu.equivariant import equivariant_backward, equivariant_forward
from fastperm.kernels.cpu.fourier_series import fourier_series
from fastperm.kernels.cpu.mean_squared_error import mean_squared_error
from fastperm.kernels.cpu.paths import paths
from fastperm.kernels.cpu.pooling import pooling_backward, pooling_forward
from fastperm.kernels.cpu.random_functions import random_functions
from fastperm.kernels.cpu.random_samples import random_samples
from fastperm.kernels.cpu.root_mean_square import (
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
