"""Real Fourier series at the elements of sets; the formula and the recurrence are in the reference twin.

One thread per point, in float64 as everywhere, with the sum in two registers.
"""

import math

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, device, kernel
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.pooling import sets_of_rows

THREADS = 4 if SIMULATED else 128


def fourier_series(
    x,  # (T,) float64, radians
    offsets,  # (S + 1,) int64: set s owns the rows offsets[s]:offsets[s + 1]
    coefficients,  # (S, k_max) complex128: c_k for k = 1 ... k_max
    *,
    y,  # (T,) float64, overwritten
):
    """Write y_n = Re Σ_k c_k e^{ikx_n}, set by set."""
    sets = sets_of_rows(on_device(offsets), len(x))
    k_max = coefficients.shape[1]
    _fourier_series(-(-len(x) // THREADS), x, sets, coefficients.view(np.float64), k_max, len(x), y)


@device
def series_at(x, coefficients, s, k_max):
    """Return the series of set s at x; ``coefficients`` (S, k_max, 2) are real and imaginary parts."""
    cosine = math.cos(x)
    sine = math.sin(x)
    place = 2 * k_max * (s + 1)
    re = np.float64(0)
    im = np.float64(0)
    for _ in range(k_max):
        place -= 2
        turned = re * cosine - im * sine + coefficients[place]
        im = re * sine + im * cosine + coefficients[place + 1]
        re = turned
    return re * cosine - im * sine


@kernel("f8* i4* f8* i8 i8 f8*", threads=THREADS)
def _fourier_series(
    x,  # (T,)
    sets,  # (T,)
    coefficients,  # (S, k_max, 2): real and imaginary parts
    k_max,
    rows,  # T
    y,  # (T,)
):
    row = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if row < rows:
        y[row] = series_at(x[row], coefficients, np.int64(sets[row]), k_max)
