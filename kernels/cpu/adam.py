"""Adam; formula in ``kernels/reference/adam.py``. One pass over the four arrays instead of a dozen."""

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.reference.adam import adam_rate


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
):
    rate = adam_rate(learning_rate, beta1, beta2, t)
    constants = map(p.dtype.type, (rate, beta1, 1 - beta1, beta2, 1 - beta2, epsilon))
    _adam_step(g, *constants, p, m, v)


@jit
def _adam_step(g, rate, beta1, rest1, beta2, rest2, epsilon, p, m, v):
    for i in range(p.size):
        m[i] = beta1 * m[i] + rest1 * g[i]
        v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
        p[i] -= rate * m[i] / (np.sqrt(v[i]) + epsilon)
