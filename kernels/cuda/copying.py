"""Copies of arrays in another layout, as launches of our own: a step that CuPy helps with could not be recorded."""

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel, xp
from fastperm.kernels.cuda.vectors import round_tf32

THREADS = 4 if SIMULATED else 256


def copied(
    x,  # any shape, C-contiguous
    shape,  # of the copy: at most three axes
    strides,  # elements of x from one to the next along each axis
    *,
    start=0,  # the element of x that comes first
    negated=False,
    tf32=False,  # rounded
):
    """Return a copy that takes the elements of x in another order."""
    out = xp().empty(shape, np.float32)
    missing = 3 - len(shape)
    layout = ((1,) * missing + tuple(shape))[1:] + (0,) * missing + tuple(strides)
    _copied(-(-out.size // THREADS), x, start, *layout, -1.0 if negated else 1.0, tf32, out.size, out)
    return out


@kernel("f4* i8 i8 i8 i8 i8 i8 f4 i4 i8 f4*", threads=THREADS)
def _copied(
    x,
    start,
    rows,
    columns,
    stride,  # of the first axis
    row_stride,
    column_stride,
    factor,
    rounded,  # to TF32
    size,
    out,  # (size / (rows · columns), rows, columns)
):
    i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if i < size:
        row = i // columns
        place = row // rows * stride + row % rows * row_stride + i % columns * column_stride
        value = factor * x[start + place]
        out[i] = round_tf32(value) if rounded else value
