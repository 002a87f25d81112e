"""Samples of periodic functions at random positions: the elements (x_n, f(x_n)) of sets.

    x_n uniform on (0, 2π), rounded to the type of the elements
    f(x_n) = Re Σ_k c_k e^{ikx_n} + noise · z_n, in float64, z_n normal

A draw is a function of the key and of the row (`philox.py`).
"""

import numpy as np

from fastperm.kernels.reference.fourier_series import fourier_series
from fastperm.kernels.reference.philox import normals, uniforms

# Streams of random numbers; those of `random_functions` are others.
POSITIONS, NOISE = 2, 3


def random_samples(
    key,  # what they are drawn from, below 2⁶³
    offsets,  # (S + 1,) int64: set s owns the rows offsets[s]:offsets[s + 1]
    coefficients,  # (S, k_max) complex128, of a function for each set
    noise,  # standard deviation of white noise
    *,
    values,  # (T, 2) float32 or float64, overwritten
):
    rows = np.arange(len(values))
    values[:, 0] = 2 * np.pi * uniforms(rows, POSITIONS, key)[0]
    y = np.empty(len(values))
    fourier_series(values[:, 0].astype(np.float64), offsets, coefficients, y=y)
    if noise > 0:
        y += noise * normals(rows, NOISE, key)
    values[:, 1] = y
