r"""Pooling: one vector per set.

    p_s = Σ_{n∈s} w_n x_n / W_s      "mean", W_s = Σ_{n∈s} w_n
    p_s = Σ_{n∈s} w_n x_n            "sum"
    p_s = max_{n∈s, w_n>0} x_n       "max", column by column

Gradient. dx_n = (w_n / W_s) dp_s and w_n dp_s. For the maximum, dp_s goes to the elements that attain it; several that
tie share it by their weights, u_n = w_n 1[x_n = p_s] / Σ_{i∈s} w_i 1[x_i = p_s], so that neither the order of the
elements nor writing an element of weight 2 as two of weight 1 changes anything.
"""

import numpy as np


def pooling_forward(
    x,  # (T, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    pool,  # "mean", "sum" or "max"
    *,
    p,  # (S, K)
):
    if pool == "max":
        present = x if weights is None else np.where(weights[:, None] > 0, x, -np.inf)
        np.maximum.reduceat(present, offsets[:-1], axis=0, out=p)
        return
    weighted = x if weights is None else x * weights[:, None]
    # Sums in float64: a row after a row, float32 would lose digits that a blocked sum keeps.
    sums = np.add.reduceat(weighted, offsets[:-1], axis=0, dtype=np.float64)
    p[:] = sums / total_weights(offsets, weights)[:, None] if pool == "mean" else sums


def pooling_backward(
    dp,  # (S, K)
    x,  # (T, K)
    p,  # (S, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    pool,  # "mean", "sum" or "max"
    *,
    dx,  # (T, K), overwritten
):
    counts = np.diff(offsets)
    if pool == "max":
        w = np.ones(len(x)) if weights is None else weights.astype(np.float64)
        attained = (x == np.repeat(p, counts, axis=0)) * w[:, None]
        ties = np.add.reduceat(attained, offsets[:-1], axis=0)
        shares = np.divide(dp, ties, out=np.zeros_like(ties), where=ties > 0)  # nobody attains a maximum that is NaN
        dx[:] = attained * np.repeat(shares, counts, axis=0)
        return
    if pool == "mean":
        dp = dp / total_weights(offsets, weights)[:, None]
    dx[:] = np.repeat(dp, counts, axis=0)
    if weights is not None:
        dx *= weights[:, None]


def total_weights(
    offsets,  # (S + 1,)
    weights,  # (T,) or None
):
    """Return W_s, (S,) float64."""
    if weights is None:
        return np.diff(offsets).astype(np.float64)
    return np.add.reduceat(weights, offsets[:-1], dtype=np.float64)
