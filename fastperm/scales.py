"""The root mean square of sets: what the values of a function are divided by where only its shape should count."""

from itertools import pairwise

import numpy as np

from fastperm.kernels.reference.deep_set_stream import STREAM_ROWS

# Squares are summed so many rows at a time: a set in memory then has the bits of a stream.
_PIECE = STREAM_ROWS
_LEAST_SQUARE = 1e-290


def root_mean_squares(values, offsets, weights):
    """Return the weighted root mean square of all the numbers of each set.

    Parameters
    ----------
    values : ndarray of shape (T, K)
        The numbers.
    offsets : ndarray of shape (S + 1,)
        Set s owns the rows ``offsets[s]`` to ``offsets[s + 1]``.
    weights : ndarray of shape (T,) or None
        Weights of the rows.

    Returns
    -------
    ndarray of float64, shape (S,)
        (Σ_n w_n Σ_k v_nk² / (K Σ_n w_n))^½; 1 for a set without a scale, for which that is zero or below 1e-145.

    Raises
    ------
    ValueError
        If squares of values leave the range of float64; the message names the set.
    """
    squares, totals = _piece_sums(values, weights, _piece_starts(offsets))
    firsts = np.concatenate([[0], np.cumsum(-(-np.diff(offsets) // _PIECE))[:-1]])
    return _roots(np.add.reduceat(squares, firsts), np.add.reduceat(totals, firsts), values.shape[1])


def stream_root_mean_square(blocks):
    """Return the root mean square of one set that comes in blocks (values (R, K), weights (R,) or None): (1,)."""
    parts = []
    for values, weights in blocks:
        parts.append(_piece_sums(values, weights, np.arange(0, len(values), _PIECE)))
        features = values.shape[1]
    squares, totals = (np.add.reduceat(np.concatenate(own), [0]) for own in zip(*parts, strict=True))
    return _roots(squares, totals, features)


def divided(values, scales, weights):
    """Return values (R, K) divided by scales (R, 1) or a number, computed in float64, in their own dtype.

    Where the weights (R,) are zero, so are the results: such values have no part in the scale, and could be beyond
    all numbers after the division.
    """
    if weights is not None:
        values = np.where(weights[:, None] > 0, values, values.dtype.type(0))
    return np.divide(values, scales, dtype=np.float64).astype(values.dtype)


def divided_backward(du, u, scales, dscale, offsets, weights):
    """Return the gradient of the values v, for u = v / r, r being the root mean squares.

    With U_s = Σ_{n∈s} u_n · du_n, and dr_s the gradient that reaches r by other ways (``dscale`` is r_s dr_s)

        dv_n = [du_n + w_n u_n / (K W_s) · (r_s dr_s − U_s)] / r_s

    Parameters
    ----------
    du, u : ndarray of shape (T, K)
        Gradient of the divided values, and these.
    scales : ndarray of float64, shape (S,)
        r.
    dscale : ndarray of float64, shape (S,)
        r dr.
    offsets, weights
        As in `root_mean_squares`.

    Returns
    -------
    ndarray of shape (T, K)
    """
    counts = np.diff(offsets)
    w = np.ones(len(u)) if weights is None else weights.astype(np.float64)
    totals = np.add.reduceat(w, offsets[:-1]) * u.shape[1]
    along = np.add.reduceat(np.einsum("nk,nk->n", u, du, dtype=np.float64), offsets[:-1])
    share = w * np.repeat((dscale - along) / totals, counts)
    return ((du + share[:, None] * u) / np.repeat(scales, counts)[:, None]).astype(u.dtype)


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
    # Smaller squares have lost digits.
    return np.sqrt(np.where(means > _LEAST_SQUARE, means, 1.0))
