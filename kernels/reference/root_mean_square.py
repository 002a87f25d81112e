r"""The root mean square of sets: what the values of a function are divided by where only its shape should count.

A row is a position and K values v_n. With W_s = Σ_{n∈s} w_n

    r_s = (Σ_{n∈s} w_n Σ_k v_nk² / (K W_s))^½           1 for a set without a scale, for which that is 0 or below 1e-145
    u_n = v_n / r_s                                     0 where w_n = 0

Elements without weight have no part in r: divided by it, they could be beyond all numbers.

Gradient. With U_s = Σ_{n∈s} u_n · du_n, and dr_s the gradient that reaches r by other ways

    dv_n = [du_n + w_n u_n / (K W_s) · (r_s dr_s − U_s)] / r_s

Everything is summed and divided in float64, and rounded once. Squares of float64 may leave the range of float64, which
is a ValueError here; those of float32 cannot, nor can they fall below 1e-290.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.reference.deep_set_stream import STREAM_ROWS

# Squares are summed so many rows at a time: a set in memory then has the bits of a stream.
_PIECE = STREAM_ROWS
LEAST_SQUARE = 1e-290  # smaller ones have lost digits


def root_mean_square_forward(
    x,  # (T, 1 + K): a position, and values
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    *,
    u,  # (T, 1 + K), the same with values divided, or (T, K), these alone
    r,  # (S,) float64
):
    values = x[:, 1:]
    squares, totals = _piece_sums(values, weights, _piece_starts(offsets))
    firsts = np.concatenate([[0], np.cumsum(-(-np.diff(offsets) // _PIECE))[:-1]])
    r[:] = _roots(np.add.reduceat(squares, firsts), np.add.reduceat(totals, firsts), values.shape[1])
    if u.shape == x.shape:
        u[:, 0] = x[:, 0]
    u[:, -values.shape[1] :] = divided(values, np.repeat(r, np.diff(offsets))[:, None], weights)


def root_mean_square_shift(
    y,  # (S, K)
    r,  # (S,) float64
    sign,  # 1 or −1
    *,
    shifted,  # (S, K), overwritten
):
    """Write y ± 2 ln r."""
    shifted[:] = y + np.log(r)[:, None] * (2 * sign)


def root_mean_square_backward(
    du,  # (T, 1 + K): gradient of the position, and of u
    u,  # (T, 1 + K) or (T, K)
    r,  # (S,) float64
    dscale,  # (S,) float64: r dr
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    *,
    dx,  # (T, 1 + K), overwritten
):
    counts, K = np.diff(offsets), du.shape[1] - 1
    dvalues, values = du[:, 1:], u[:, -K:]
    w = np.ones(len(u)) if weights is None else weights.astype(np.float64)
    totals = np.add.reduceat(w, offsets[:-1]) * K
    along = np.add.reduceat(np.einsum("nk,nk->n", values, dvalues, dtype=np.float64), offsets[:-1])
    share = w * np.repeat((dscale - along) / totals, counts)
    dx[:, 0] = du[:, 0]
    dx[:, 1:] = (dvalues + share[:, None] * values) / np.repeat(r, counts)[:, None]


def stream_root_mean_square(
    blocks,  # iterator of (values (R, K), weights (R,) or None): those of one set
):
    """Return r, (1,), for a set that comes block by block."""
    parts = []
    for values, weights in blocks:
        parts.append(_piece_sums(values, weights, np.arange(0, len(values), _PIECE)))
        features = values.shape[1]
    squares, totals = (np.add.reduceat(np.concatenate(own), [0]) for own in zip(*parts, strict=True))
    return _roots(squares, totals, features)


def divided(
    values,  # (R, K)
    r,  # (R, 1), or a number
    weights,  # (R,) or None
):
    """Return u, (R, K)."""
    if weights is not None:
        values = np.where(weights[:, None] > 0, values, values.dtype.type(0))
    return np.divide(values, r, dtype=np.float64).astype(values.dtype)


def _piece_starts(offsets):
    if np.diff(offsets).max() <= _PIECE:
        return offsets[:-1]
    return np.concatenate([np.arange(*ends, _PIECE) for ends in pairwise(offsets)])


def _piece_sums(values, weights, starts):
    """Return the sums of w v² and of w over the rows from each start to the next."""
    with np.errstate(over="ignore", under="ignore"):
        squares = np.square(values, dtype=np.float64).sum(axis=1)
        if weights is None:
            return np.add.reduceat(squares, starts), np.diff(starts, append=len(values)).astype(np.float64)
        w = weights.astype(np.float64)
        return np.add.reduceat(w * squares, starts), np.add.reduceat(w, starts)


def _roots(squares, totals, features):
    if not np.isfinite(squares).all():
        s = np.argmin(np.isfinite(squares))
        raise ValueError(f"set {s}: the squares of its values leave the range of float64, so it has no scale")
    means = squares / (features * totals)
    return np.sqrt(np.where(means > LEAST_SQUARE, means, 1.0))
