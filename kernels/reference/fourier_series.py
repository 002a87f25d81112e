"""Real Fourier series at the elements of sets: a function of its own for every set.

With the coefficients c_k, k = 1 ... k_max, of set s, at each of its positions x_n

    y_n = Re Σ_k c_k e^{ikx_n}

Backward (Horner) recurrence in z = e^{ixₙ}, so that no power of z and only one cosine and one sine per point is needed:

    r ← 0;   r ← r·z + c_k   for k = k_max ... 1;   y_n = Re(r·z)

|z| = 1 to rounding, so the error stays below a few ε · Σ_k k |c_k|.
"""

from itertools import pairwise

import numpy as np


def fourier_series(
    x,  # (T,) float64, radians
    offsets,  # (S + 1,) int64: set s owns the rows offsets[s]:offsets[s + 1]
    coefficients,  # (S, k_max) complex128: c_k for k = 1 ... k_max
    *,
    y,  # (T,) float64, overwritten
):
    """Write y_n = Re Σ_k c_k e^{ikx_n}, set by set."""
    for s, (first, last) in enumerate(pairwise(offsets)):
        z = np.exp(1j * x[first:last])
        r = np.zeros_like(z)
        for c in coefficients[s, ::-1]:
            r = r * z + c
        y[first:last] = (r * z).real
