r"""The dense layer: y = x W + b, on rows.

Gradient: dx = dy Wᵀ, dW = xᵀ dy, db = Σ_r dy_r.
"""

from fastperm.kernels.reference.product import product


def dense_forward(
    x,  # (R, K_in)
    W,  # (K_in, K_out)
    b,  # (K_out,)
    *,
    y,  # (R, K_out)
):
    product(x, W, y=y)
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
    product(dy, W.T, y=dx)
    dW += x.T @ dy
    db += dy.sum(axis=0)
