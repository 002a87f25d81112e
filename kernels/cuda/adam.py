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
):
    rate = adam_rate(learning_rate, beta1, beta2, t)
    constants = (rate, beta1, 1 - beta1, beta2, 1 - beta2, epsilon)
    _adam_step(-(-p.size // THREADS), g, *constants, p.size, loss is not None, loss, p, m, v)


@kernel("f4* f4 f4 f4 f4 f4 f4 i8 i4 f8* f4* f4* f4*", threads=THREADS)
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
    p,  # (K,)
    m,  # (K,)
    v,  # (K,)
):
    i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if i < size and not (with_loss and not math.isfinite(loss[0])):
        mean = beta1 * m[i] + rest1 * g[i]
        square = beta2 * v[i] + rest2 * g[i] * g[i]
        m[i] = mean
        v[i] = square
        p[i] -= rate * mean / (math.sqrt(square) + epsilon)
