"""xᵀ g where x has a few features, as the elements of a first layer have; part of ``product.py``.

g is read once, and each number of it multiplied by those of x in its row: memory is the limit, where a tile would
multiply a hundred rows of which all but a few are zeros. A warp has the columns of a line of memory, and the warps of a
block share its rows.
"""

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel
from fastperm.kernels.cuda.vectors import load1_or_zero

COLUMNS, WARPS = (2, 2) if SIMULATED else (32, 8)
THREADS = COLUMNS * WARPS
AT_ONCE = 2 if SIMULATED else 8  # rows that are on their way to a thread


def launch(parts, x, g, inner_part, out):
    """Write out (parts, M, N), each of so many rows of x (R, M) and g (R, N)."""
    (rows, few), columns = x.shape, g.shape[1]
    multiply = next(kernel for most, kernel in PRODUCTS.items() if few <= most)
    multiply(parts * tiles(columns), x, g, rows, few, columns, inner_part, out)


def tiles(columns):
    """Return how many blocks so many columns take."""
    return -(-columns // COLUMNS)


def _make(most):
    """Return the kernel for so many features at most."""
    shared_size = THREADS * most

    @kernel("f4* f4* i8 i8 i8 i8 f4*", threads=THREADS, name=f"product_of_{most}")
    def multiply(
        x,  # (R, M)
        g,  # (R, N)
        rows,  # R
        few,  # M, at most ``most``
        columns,  # N
        inner_part,  # rows of a part
        out,  # (parts, M, N)
    ):
        shared = cuda.shared.array(shared_size, np.float32)
        sums = cuda.local.array(most, np.float32)
        fetched = cuda.local.array(AT_ONCE, np.float32)
        thread, block = np.int64(cuda.threadIdx.x), np.int64(cuda.blockIdx.x)
        across = (columns + COLUMNS - 1) // COLUMNS
        part, warp = block // across, thread // COLUMNS
        column = block % across * COLUMNS + thread % COLUMNS
        for k in range(most):
            sums[k] = np.float32(0)
        end = min((part + 1) * inner_part, rows)
        for first in range(part * inner_part + warp, end, AT_ONCE * WARPS):
            for i in range(AT_ONCE):
                row = first + i * WARPS
                fetched[i] = load1_or_zero(g, row * columns + column, row < end and column < columns)
            for i in range(AT_ONCE):
                row = first + i * WARPS
                for k in range(most):
                    sums[k] += load1_or_zero(x, row * few + k, row < end and k < few) * fetched[i]
        for k in range(most):
            shared[k * THREADS + thread] = sums[k]
        cuda.syncthreads()
        for i in range(thread, few * COLUMNS, THREADS):
            k, own = i // COLUMNS, block % across * COLUMNS + i % COLUMNS
            if own < columns:
                total = np.float32(0)
                for other in range(WARPS):
                    total += shared[k * THREADS + other * COLUMNS + i % COLUMNS]
                out[(part * few + k) * columns + own] = total

    return multiply


# By the most features that they take.
PRODUCTS = {most: _make(most) for most in ((2, 3) if SIMULATED else (2, 8))}
MOST = max(PRODUCTS)
