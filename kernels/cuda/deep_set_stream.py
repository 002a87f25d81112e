"""One set block by block; formulas in ``kernels/reference/deep_set_stream.py``.

Blocks come from the host, one after another; what they pool to goes back there, to be added up in float64.
"""

import numpy as np

from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda.angular import add_harmonics, angular_filter, pool_harmonics, split_angles
from fastperm.kernels.cuda.compiling import xp
from fastperm.kernels.cuda.dense import dense_forward
from fastperm.kernels.cuda.pooling import CODES, finish, pool_partials
from fastperm.kernels.cuda.product import product
from fastperm.kernels.reference.deep_set import split_parameters
from fastperm.kernels.reference.deep_set_stream import STREAM_ROWS, StreamKernels, pool_stream


def deep_set_stream_pool(
    blocks,  # () -> iterator of (x (R, K_0), or (R, 1 + K_0), weights (R,) or None), once for each pass
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders=0,  # M of angular layers
    *,
    c,  # (D (1 + 2M), the largest width): for each layer, c_j and the 2M rows of Q_j
    y,  # (1, K_fin), the prediction; None without pooling
):
    pool_stream(KERNELS, blocks, parameters, widths, aggregate, pool, orders, c=c, y=y)


def deep_set_stream_rows(
    x,  # (R, K_0), or (R, 1 + K_0) if there are orders
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    c,  # (D (1 + 2M), the largest width), from `deep_set_stream_pool`
    orders=0,  # M of angular layers
    *,
    y,  # (R, K_fin), the predictions for these rows
):
    layers, head = split_parameters(parameters, widths, orders)
    dense_forward(_hidden(x, layers, c, orders)[0], *head, y=y)


def _pool_rows(x, weights, parameters, widths, c, how, orders, *, totals):
    """Pool h_i, c being that of the layers below, of these rows into totals (1, K_i), and return their total weight.

    With 1 + 2M rows, totals get the harmonics of h_i, too.
    """
    h, E = _hidden(x, split_parameters(parameters, widths, orders)[0], c, orders)
    w = None if weights is None else xp().asarray(weights)
    add = np.maximum if how == "max" else np.add
    # STREAM_ROWS at a time, whatever the size of the blocks, so that it changes no bit.
    for first in range(0, len(h), STREAM_ROWS):
        own = slice(first, first + STREAM_ROWS)
        rows, own_w = h[own], None if w is None else w[own]
        if len(totals) > 1:
            m, Z = pool_harmonics(rows, E[own], len(rows), None, 1, own_w, "sum")
            totals[:1] += on_host(m)
            totals[1:] += on_host(Z)[:, 0]
            continue
        part = xp().empty((1, h.shape[1]), np.float32)
        partials = pool_partials(rows, None, 1, own_w, CODES[how])
        finish(partials, len(rows), "max" if how == "max" else "sum", None, part)
        add(totals, on_host(part), out=totals)
    return float(len(h)) if weights is None else float(weights.sum(dtype=np.float64))


def _hidden(x, layers, c, orders):
    """Return h_i, c being that of i layers, and E, of rows x that may be on the host."""
    E, x = split_angles(xp().asarray(x), orders)
    for (W_self, _, b, *_), own in zip(layers, c.reshape(-1, 1 + 2 * orders, c.shape[1]), strict=False):
        h = xp().empty((len(x), b.size), np.float32)
        product(x, W_self, h, c=own[0, : b.size], relu=orders == 0)
        if orders:
            add_harmonics(E, xp().ascontiguousarray(own[1:, None, : b.size]), None, h, relu=True)
        x = h
    return x, E


def _dense_forward(x, W, b, *, y):
    """Do what `dense_forward` does to rows x that are on the host."""
    dense_forward(xp().asarray(x), W, b, y=y)


def _angular_filter(Z, A, B, *, Q):
    """Do what `angular_filter` does to Z on the host, for Q with anything between its rows."""
    own = xp().empty(Q.shape, np.float32)
    angular_filter(xp().asarray(Z), A, B, Q=own)
    Q[:] = own


KERNELS = StreamKernels(_pool_rows, _dense_forward, _angular_filter)
