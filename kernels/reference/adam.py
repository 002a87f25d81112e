r"""Adam (Kingma & Ba 2014), in TensorFlow's form: ε outside the bias correction.

m ← β1 m + (1 − β1) g        v ← β2 v + (1 − β2) g²
lr_t = lr √(1 − β2^t) / (1 − β1^t)
p ← p − lr_t m / (√v + ε)
"""

import math

import numpy as np


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
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * np.square(g)
    p -= adam_rate(learning_rate, beta1, beta2, t) * m / (np.sqrt(v) + epsilon)


def adam_rate(learning_rate, beta1, beta2, t):
    """Return lr_t, with the bias corrections of both moments in it."""
    return learning_rate * math.sqrt(1 - beta2**t) / (1 - beta1**t)
