r"""The dense layer: y = x W + b, on rows.

Gradient: dx = dy Wᵀ, dW = xᵀ dy, db = Σ_r dy_r.
"""

import numpy as np


def dense_forward(
    x,  # (R, K_in)
    W,  # (K_in, K_out)
    b,  # (K_out,)
    *,
    y,  # (R, K_out)
):
    np.matmul(x, W, out=y)
    y += b


def dense_backward(
    dy,  # (R, K_out)
    x,  # (R, K_in)
    W,  # (K_in, K_out)
    *,
    dx,  # (R, K_in), overwritten
    dW,  # (K_in, K_out), accumulated
    db,  # (K_out,), accumulated
):
    np.matmul(dy, W.T, out=dx)
    dW += x.T @ dy
    db += dy.sum(axis=0)
