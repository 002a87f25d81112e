"""The dense layer; formula and derivation in ``kernels/reference/dense.py``.

Rows are spread over threads like sets: fixed pieces, parameter gradients added up in the order of the pieces.
"""

from itertools import pairwise

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.product import product, product_accumulate, tiles
from fastperm.kernels.cpu.workers import pieces, run, task


def dense_forward(
    x,  # (R, K_in)
    W,  # (K_in, K_out)
    b,  # (K_out,)
    *,
    y,  # (R, K_out)
):
    rows_forward(x, W, b, -np.inf, y)


def dense_backward(
    dy,  # (R, K_out)
    x,  # (R, K_in)
    W,  # (K_in, K_out)
    *,
    dx,  # (R, K_in), overwritten
    dW,  # (K_in, K_out), accumulated
    db,  # (K_out,), accumulated
):
    W_T = np.ascontiguousarray(W.T)
    parts = [(*ends, np.zeros_like(dW), np.zeros_like(db)) for ends in pairwise(pieces(len(x)))]
    run([task(_backward, first, last, tiles(x.dtype), dy, x, W_T, dx, *own) for first, last, *own in parts])
    for _, _, dW_part, db_part in parts:
        dW += dW_part
        db += db_part


def rows_forward(x, W, b, floor, y):
    """Write max(x W + b, floor) to y, pieces of the rows side by side."""
    own = (tiles(x.dtype), x, W, b, x.dtype.type(floor), y)
    run([task(_forward, first, last, *own) for first, last in pairwise(pieces(len(x)))])


@jit
def _forward(first, last, tiles, x, W, b, floor, y):
    one, nowhere = np.ones(1, x.dtype), np.empty(b.size)
    product(tiles, x[first:last], W, b, one, y[first:last], floor, nowhere, one)


@jit
def _backward(first, last, tiles, dy, x, W_T, dx, dW, db):
    K_out, K_in = W_T.shape
    one, nothing, nowhere = np.ones(1, x.dtype), np.zeros(K_in, x.dtype), np.empty(K_in)
    for k in range(K_out):
        total = 0.0
        for r in range(first, last):
            total += dy[r, k]
        db[k] += total
    product_accumulate(tiles, x[first:last], dy[first:last], dW)
    product(tiles, dy[first:last], W_T, nothing, one, dx[first:last], x.dtype.type(-np.inf), nowhere, one)
