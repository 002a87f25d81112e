"""Mean squared error; formula in ``kernels/reference/mean_squared_error.py``.

Each block sums a fixed share of the numbers in double precision; `parts.mean_of_sums` adds up the shares.
"""

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel, xp
from fastperm.kernels.cuda.parts import mean_of_sums

THREADS = 4 if SIMULATED else 256
PER_THREAD = 2 if SIMULATED else 16


def mean_squared_error(
    y,  # (R, K)
    targets,  # (R, K)
    *,
    dy,  # (R, K), overwritten
):
    """Return the loss as a float, summed in float64."""
    return float(squared_error(y, targets, dy))


def squared_error(
    y,  # (R, K)
    targets,  # (R, K)
    dy,  # (R, K), overwritten
):
    """Return the loss, summed in float64, as an array on the GPU, for which nobody has waited."""
    blocks = -(-y.size // (THREADS * PER_THREAD))
    sums = xp().empty(blocks, np.float64)
    _squared_error(blocks, y, targets, 2 / y.size, y.size, sums, dy)
    return mean_of_sums(sums, y.size)


@kernel("f4* f4* f4 i8 f8* f4*", threads=THREADS)
def _squared_error(
    y,  # (size,)
    targets,  # (size,)
    factor,  # 2 / size
    size,
    sums,  # (blocks,)
    dy,  # (size,)
):
    shared = cuda.shared.array(THREADS, np.float64)
    thread = cuda.threadIdx.x
    total = np.float64(0)
    first = np.int64(cuda.blockIdx.x) * (THREADS * PER_THREAD) + thread
    for i in range(first, min(first + THREADS * PER_THREAD - thread, size), THREADS):
        difference = y[i] - targets[i]
        dy[i] = factor * difference
        total += np.float64(difference) * np.float64(difference)
    shared[thread] = total
    cuda.syncthreads()
    if thread == 0:
        for other in range(1, THREADS):
            total += shared[other]
        sums[cuda.blockIdx.x] = total
