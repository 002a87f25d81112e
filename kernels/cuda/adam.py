"""Adam; formula in ``kernels/reference/adam.py``. One pass over the four arrays instead of a dozen."""

import math

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel
from fastperm.kernels.reference.adam import adam_rate

THREADS = 4 if SIMULATED else 256


def adam_step(
    g,  # (K,)
    learning_rate,
    beta1,
    beta2,
    epsilon,
    t,  # number of this step, from 1
    *,
    p,  # (K,), updated
    m,  # (K,), updated
    v,  # (K,), updated
    loss=None,  # an array on the GPU: nothing is updated if it is not finite
    rates=None,  # (1,), on the GPU: lr_t, in place of that of this learning rate and step; NaN to update nothing
):
    rate = adam_rate(learning_rate, beta1, beta2, t)
    constants = (rate, beta1, 1 - beta1, beta2, 1 - beta2, epsilon)
    elsewhere = (loss is not None, loss, rates is not None, rates)
    _adam_step(-(-p.size // THREADS), g, *constants, p.size, *elsewhere, p, m, v)


@kernel("f4* f4 f4 f4 f4 f4 f4 i8 i4 f8* i4 f4* f4* f4* f4*", threads=THREADS)
def _adam_step(
    g,  # (K,)
    rate,  # lr_t
    beta1,
    rest1,  # 1 − β1
    beta2,
    rest2,  # 1 − β2
    epsilon,
    size,  # K
    with_loss,
    loss,  # (1,), if with_loss
    with_rates,
    rates,  # (1,), if with_rates
    p,  # (K,)
    m,  # (K,)
    v,  # (K,)
):
    i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    own_rate = rates[0] if with_rates else rate
    if i < size and math.isfinite(own_rate) and not (with_loss and not math.isfinite(loss[0])):
        mean = beta1 * m[i] + rest1 * g[i]
        square = beta2 * v[i] + rest2 * g[i] * g[i]
        m[i] = mean
        v[i] = square
        p[i] -= own_rate * mean / (math.sqrt(square) + epsilon)
