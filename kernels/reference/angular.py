r"""The angular layer: an equivariant layer that a common shift of all angles leaves as it is (SO(2) × S_N).

Every element has an angle θ_n beside its features x_n, and sees the set through a filter on the circle, of order M:

    m_s = pooling of the x_n of set s                         (see pooling.py)
    z_n = x_n W_self + m_s W_pool + b + Σ_j (w_j / W_s) x_j Σ_{m=1…M} 2 [cos m(θ_n − θ_j) A_m + sin m(θ_n − θ_j) B_m]
    y_n = relu(z_n) or z_n

for the mean, and the same without 1/W_s for the sum. A maximum has no harmonics: with it, there is no such layer. Only
differences of angles occur, so θ → θ + α changes nothing; without harmonics (M = 0) it is the equivariant layer.

The sum over j takes no N² steps, since it separates into the harmonics of the set (a tensor field network, Thomas et
al. 2018, on the circle):

    E_n = √2 [cos θ_n … cos Mθ_n, sin θ_n … sin Mθ_n]          (2M)
    Z   = Σ_j (w_j / W_s) E_jᵀ x_j = [C; D]                    (2M, K_in): C_m and D_m are its rows
    Q   = [C_m A_m − D_m B_m; D_m A_m + C_m B_m]               (2M, K_out)
    z_n = x_n W_self + m_s W_pool + b + E_n Q

Gradient. W_self, W_pool, b and m_s as in equivariant.py, with g_n = dy_n ⊙ 1[y_n > 0]. Every z_n of a set sees the
same Q, and its x_j enter through Z as they do through a mean:

    dQ   = Σ_n E_nᵀ g_n = [P; R]                               (2M, K_out), not weighted
    dA_m = Σ_s C_mᵀ P_m + D_mᵀ R_m         dB_m = Σ_s C_mᵀ R_m − D_mᵀ P_m
    dZ   = [P_m A_mᵀ + R_m B_mᵀ; R_m A_mᵀ − P_m B_mᵀ]
    dx_n = … + (w_n / W_s) E_n dZ          dE_n = g_n Qᵀ + (w_n / W_s) x_n dZᵀ

dZ has the form of Q, with Aᵀ and −Bᵀ for A and B. For the angles themselves dθ_n = Σ_m m (E^c dE^s − E^s dE^c), where c
and s are the cosine and the sine of order m.
"""

import numpy as np

from fastperm.kernels.reference.equivariant import equivariant_backward, equivariant_forward
from fastperm.kernels.reference.pooling import pooling_backward, pooling_forward


def angular_basis(
    angles,  # (T,), in radians
    *,
    E,  # (T, 2M)
):
    # In float64, and rounded once, whatever the dtype.
    orders = np.arange(1, E.shape[1] // 2 + 1)
    phases = angles[:, None].astype(np.float64) * orders
    E[:] = np.sqrt(2) * np.concatenate([np.cos(phases), np.sin(phases)], axis=1)


def angular_basis_backward(
    dE,  # (T, 2M)
    E,  # (T, 2M)
    *,
    dangles,  # (T,), overwritten
):
    M = E.shape[1] // 2
    orders = np.arange(1, M + 1, dtype=E.dtype)
    dangles[:] = np.sum(orders * (E[:, :M] * dE[:, M:] - E[:, M:] * dE[:, :M]), axis=1)


def angular_filter(
    Z,  # (2M, S, K_in)
    A,  # (M, K_in, K_out)
    B,  # (M, K_in, K_out)
    *,
    Q,  # (2M, S, K_out)
):
    M = len(A)
    C, D = Z[:M], Z[M:]
    Q[:M] = C @ A - D @ B
    Q[M:] = D @ A + C @ B


def angular_forward(
    x,  # (T, K_in)
    E,  # (T, 2M)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    b,  # (K_out,)
    A,  # (M, K_in, K_out)
    B,  # (M, K_in, K_out)
    aggregate,  # "mean" or "sum"
    activation,  # "relu" or "identity"
    *,
    y,  # (T, K_out)
    m,  # (S, K_in)
    Z,  # (2M, S, K_in)
):
    equivariant_forward(x, offsets, weights, W_self, W_pool, b, aggregate, "identity", y=y, m=m)
    Q = np.empty((len(Z), len(m), y.shape[1]), y.dtype)
    for e, harmonic in zip(E.T, Z, strict=True):
        pooling_forward(x * e[:, None], offsets, weights, aggregate, p=harmonic)
    angular_filter(Z, A, B, Q=Q)
    for e, q in zip(E.T, Q, strict=True):
        y += e[:, None] * np.repeat(q, np.diff(offsets), axis=0)
    if activation == "relu":
        np.maximum(y, 0, out=y)


def angular_backward(
    dy,  # (T, K_out)
    x,  # (T, K_in)
    E,  # (T, 2M)
    y,  # (T, K_out)
    m,  # (S, K_in)
    Z,  # (2M, S, K_in)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    A,  # (M, K_in, K_out)
    B,  # (M, K_in, K_out)
    aggregate,  # "mean" or "sum"
    activation,  # "relu" or "identity"
    *,
    dx,  # (T, K_in), overwritten; None where nobody needs it
    dE,  # (T, 2M), accumulated, since all layers share E; None where nobody needs it
    dW_self,  # (K_in, K_out), accumulated
    dW_pool,  # (K_in, K_out), accumulated
    db,  # (K_out,), accumulated
    dA,  # (M, K_in, K_out), accumulated
    dB,  # (M, K_in, K_out), accumulated
):
    counts, M = np.diff(offsets), len(A)
    g = np.where(y > 0, dy, 0) if activation == "relu" else dy
    equivariant_backward(
        *(g, x, y, m, offsets, weights, W_self, W_pool, aggregate, "identity"),
        dx=dx,
        dW_self=dW_self,
        dW_pool=dW_pool,
        db=db,
    )
    dQ = np.stack([np.add.reduceat(e[:, None] * g, offsets[:-1], axis=0, dtype=np.float64) for e in E.T]).astype(
        g.dtype
    )
    C, D, P, R = Z[:M], Z[M:], dQ[:M], dQ[M:]
    C_T, D_T = C.swapaxes(1, 2), D.swapaxes(1, 2)
    dA += C_T @ P + D_T @ R
    dB += C_T @ R - D_T @ P
    if dx is None and dE is None:
        return
    dZ, Q = np.empty_like(Z), np.empty_like(dQ)
    angular_filter(dQ, A.swapaxes(1, 2), -B.swapaxes(1, 2), Q=dZ)
    angular_filter(Z, A, B, Q=Q)
    own = np.empty_like(x)
    for h, e in enumerate(E.T):
        # What Z sends back is what a pooling of E_h x would.
        pooling_backward(dZ[h], x, Z[h], offsets, weights, aggregate, dx=own)
        if dx is not None:
            dx += e[:, None] * own
        if dE is not None:
            dE[:, h] += np.sum(own * x, axis=1) + np.sum(g * np.repeat(Q[h], counts, axis=0), axis=1)
