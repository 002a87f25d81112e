r"""The equivariant layer (Zaheer et al. 2017, Deep Sets; Guttenberg et al. 2016).

    m_s = pooling of the x_n of set s          (see pooling.py)
    z_n = x_n W_self + m_s(n) W_pool + b
    y_n = relu(z_n) or z_n

Gradient. With g_n = dy_n ⊙ 1[y_n > 0] (or dy_n), every z_n of a set sees the same m_s, so W_pool, b and m_s receive
G_s = Σ_{n∈s} g_n. This sum is unweighted: each output row is a variable of its own.

    dW_self = Σ_n x_nᵀ g_n      dW_pool = Σ_s m_sᵀ G_s      db = Σ_s G_s
    dx_n    = g_n W_selfᵀ + (gradient of the pooling for dm_s = G_s W_poolᵀ)

and for the mean the last term is (w_n / W_s) G_s W_poolᵀ.
"""

import numpy as np

from fastperm.kernels.reference.pooling import pooling_backward, pooling_forward
from fastperm.kernels.reference.product import product


def equivariant_forward(
    x,  # (T, K_in)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    b,  # (K_out,)
    aggregate,  # "mean", "sum" or "max"
    activation,  # "relu" or "identity"
    *,
    y,  # (T, K_out)
    m,  # (S, K_in)
):
    pooling_forward(x, offsets, weights, aggregate, p=m)
    product(x, W_self, y=y)
    y += np.repeat(m @ W_pool + b, np.diff(offsets), axis=0)
    if activation == "relu":
        np.maximum(y, 0, out=y)


def equivariant_backward(
    dy,  # (T, K_out)
    x,  # (T, K_in)
    y,  # (T, K_out)
    m,  # (S, K_in)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    aggregate,  # "mean", "sum" or "max"
    activation,  # "relu" or "identity"
    *,
    dx,  # (T, K_in), overwritten; None where nobody needs it
    dW_self,  # (K_in, K_out), accumulated
    dW_pool,  # (K_in, K_out), accumulated
    db,  # (K_out,), accumulated
):
    g = np.where(y > 0, dy, 0) if activation == "relu" else dy
    G = np.add.reduceat(g, offsets[:-1], axis=0, dtype=np.float64).astype(g.dtype)
    dW_self += x.T @ g
    dW_pool += m.T @ G
    db += G.sum(axis=0)
    if dx is not None:
        product(g, W_self.T, y=dx)
        pooled = np.empty_like(dx)
        pooling_backward(G @ W_pool.T, x, m, offsets, weights, aggregate, dx=pooled)
        dx += pooled
