"""One set block by block; formulas in ``kernels/reference/deep_set_stream.py``.

Blocks come from the host, one after another; what they pool to goes back there, to be added up in float64.
"""

import numpy as np

from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda.compiling import xp
from fastperm.kernels.cuda.dense import dense_forward
from fastperm.kernels.cuda.pooling import CODES, finish, pool_partials
from fastperm.kernels.cuda.product import product
from fastperm.kernels.reference.deep_set import split_parameters
from fastperm.kernels.reference.deep_set_stream import STREAM_ROWS, StreamKernels, pool_stream


def deep_set_stream_pool(
    blocks,  # () -> iterator of (x (R, K_0), weights (R,) or None), once for each pass
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    *,
    c,  # (D, the largest width): row j gets c_j
    y,  # (1, K_fin), the prediction; None without pooling
):
    pool_stream(KERNELS, blocks, parameters, widths, aggregate, pool, c=c, y=y)


def deep_set_stream_rows(
    x,  # (R, K_0)
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    c,  # (D, the largest width), from `deep_set_stream_pool`
    *,
    y,  # (R, K_fin), the predictions for these rows
):
    layers, head = split_parameters(parameters, widths)
    dense_forward(_hidden(xp().asarray(x), layers, c), *head, y=y)


def _pool_rows(x, weights, parameters, widths, c, how, *, totals):
    """Pool h_i, with i the number of rows of c, of these rows into totals (K_i,), and return their total weight."""
    h = _hidden(xp().asarray(x), split_parameters(parameters, widths)[0], c)
    w = None if weights is None else xp().asarray(weights)
    add = np.maximum if how == "max" else np.add
    # STREAM_ROWS at a time, whatever the size of the blocks, so that it changes no bit.
    for first in range(0, len(h), STREAM_ROWS):
        own = slice(first, first + STREAM_ROWS)
        part = xp().empty((1, h.shape[1]), np.float32)
        partials = pool_partials(h[own], None, 1, None if w is None else w[own], CODES[how])
        finish(partials, len(h[own]), "max" if how == "max" else "sum", None, part)
        add(totals, on_host(part[0]), out=totals)
    return float(len(h)) if weights is None else float(weights.sum(dtype=np.float64))


def _hidden(x, layers, c):
    """Return h_i, i being the number of rows of c."""
    for (W_self, _, b), start in zip(layers, c, strict=False):
        h = xp().empty((len(x), b.size), np.float32)
        product(x, W_self, h, c=start[: b.size], relu=True)
        x = h
    return x


def _dense_forward(x, W, b, *, y):
    """Do what `dense_forward` does to rows x that are on the host."""
    dense_forward(xp().asarray(x), W, b, y=y)


KERNELS = StreamKernels(_pool_rows, _dense_forward)
