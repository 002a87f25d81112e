"""Samples of periodic functions at random positions; formulas and streams in ``kernels/reference/random_samples.py``.

One thread per element, which goes from random bits to the sample without leaving its registers.
"""

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel
from fastperm.kernels.cuda.fourier_series import series_at
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.philox import TURN, key_or_keys, normal, uniforms
from fastperm.kernels.cuda.pooling import sets_of_rows
from fastperm.kernels.reference.random_samples import NOISE, POSITIONS

THREADS = 4 if SIMULATED else 128


def random_samples(
    key,  # what they are drawn from, below 2⁶³; or an array (1,) int64 on the GPU that has it
    offsets,  # (S + 1,) int64: set s owns the rows offsets[s]:offsets[s + 1]
    coefficients,  # (S, k_max) complex128, of a function for each set
    noise,  # standard deviation of white noise
    *,
    values,  # (T, 2) float32 or float64, overwritten
):
    rows, k_max = len(values), coefficients.shape[1]
    sets = sets_of_rows(on_device(offsets), rows)
    launch = _KERNELS[values.dtype.name]
    launch(-(-rows // THREADS), *key_or_keys(key), sets, coefficients.view(np.float64), k_max, noise, rows, values)


def _make(dtype, code):
    @kernel(f"i8 i8* i4* f8* i8 f8 i8 {code}*", name=f"random_samples_{code}", threads=THREADS)
    def random_samples(
        key,
        keys,  # (1,), if the key is negative
        sets,  # (T,)
        coefficients,  # (S, k_max, 2): real and imaginary parts
        k_max,
        noise,
        rows,  # T
        values,  # (T, 2)
    ):
        row = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        if row < rows:
            if key < 0:
                key = keys[0]
            u, _ = uniforms(row, POSITIONS, key)
            x = dtype(TURN * u)
            y = series_at(np.float64(x), coefficients, np.int64(sets[row]), k_max)
            if noise > 0:
                y += noise * normal(row, NOISE, key)
            values[2 * row] = x
            values[2 * row + 1] = y

    return random_samples


_KERNELS = {"float32": _make(np.float32, "f4"), "float64": _make(np.float64, "f8")}
