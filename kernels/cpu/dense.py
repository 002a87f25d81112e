"""The dense layer; formula and derivation in ``kernels/reference/dense.py``.

Rows are spread over threads like sets: fixed chunks, parameter gradients added up in the order of the chunks.
"""

import numpy as np

from fastperm.kernels.cpu.compiling import jit
from fastperm.kernels.cpu.product import product, product_accumulate, tiles
from fastperm.kernels.cpu.workers import CHUNKS, run, task


def dense_forward(
    x,  # (R, K_in)
    W,  # (K_in, K_out)
    b,  # (K_out,)
    *,
    y,  # (R, K_out)
):
    run([task(_forward, first, last, tiles(x.dtype), x, W, b, y) for first, last in _row_chunks(len(x))])


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
    chunks = [(*ends, np.zeros_like(dW), np.zeros_like(db)) for ends in _row_chunks(len(x))]
    run([task(_backward, first, last, tiles(x.dtype), dy, x, W_T, dx, *parts) for first, last, *parts in chunks])
    for _, _, dW_part, db_part in chunks:
        dW += dW_part
        db += db_part


def _row_chunks(rows):
    """Return the (first, last) rows of each chunk; few rows are one chunk, since a thread costs more than they do."""
    chunks = min(CHUNKS, max(1, rows // 1024))
    return [(rows * i // chunks, rows * (i + 1) // chunks) for i in range(chunks)]


@jit
def _forward(first, last, tiles, x, W, b, y):
    one, nowhere = np.ones(1, x.dtype), np.empty(b.size)
    product(tiles, x[first:last], W, b, one, y[first:last], x.dtype.type(-np.inf), nowhere, one)


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
