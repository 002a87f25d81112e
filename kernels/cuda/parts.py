"""What blocks have summed by themselves, added up in a fixed order, in double precision.

A gradient comes in parts of all its numbers, of which a block here takes some columns. A loss comes as sums of squares,
for which one more block is enough.
"""

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel, xp
from fastperm.kernels.cuda.vectors import load1_or_zero

COLUMNS, SHARES = (2, 2) if SIMULATED else (32, 8)
THREADS = COLUMNS * SHARES
# Numbers that a thread fetches before it adds the first: of sets on chip, its share of the parts, or half of it.
AT_ONCE = 3 if SIMULATED else 17


def parts_of(
    size,
    most,  # parts
    least,  # size of a part, if there is more than one
):
    """Return into how many parts of about the same size something is cut, and the size of all but the last."""
    own = -(-size // max(1, min(most, size // least)))
    return -(-size // own), own


def add_parts(
    parts,  # (P, …)
    total,  # (…), C-contiguous: gets the sum added
    sums=None,  # (count,), float64
    size=1,  # of what was summed to these
):
    """Add up the parts, and return the mean that ``sums`` make, if there are any, as an array on the GPU."""
    blocks, mean = -(-total.size // COLUMNS), None if sums is None else xp().empty((), np.float64)
    of_sums = (sums, 0, size, mean) if sums is None else (sums, sums.size, size, mean)
    _add_parts(blocks + (sums is not None), parts, len(parts), total.size, total, *of_sums)
    return mean


def mean_of_sums(
    sums,  # (count,), float64
    size,  # of what was summed
):
    """Return the mean as an array on the GPU."""
    mean = xp().empty((), np.float64)
    _add_parts(1, None, 0, 0, None, sums, sums.size, size, mean)
    return mean


@kernel("f4* i8 i8 f4* f8* i8 i8 f8*", threads=THREADS)
def _add_parts(
    parts,  # (P, size)
    count,  # P
    size,
    total,  # (size,), added to
    sums,  # (n_sums,): of the last block, if there is one more than the columns need
    n_sums,
    summed,  # what the mean is one of
    mean,  # (1,)
):
    shared = cuda.shared.array(THREADS, np.float64)
    numbers = cuda.local.array(AT_ONCE, np.float32)
    thread = np.int64(cuda.threadIdx.x)
    first = np.int64(cuda.blockIdx.x) * COLUMNS
    of_parts, place = first < size, first + thread % COLUMNS
    added = np.float64(0)
    if of_parts:
        start = thread // COLUMNS
        while start < count:
            for i in range(AT_ONCE):
                part = start + i * SHARES
                numbers[i] = load1_or_zero(parts, part * size + place, part < count and place < size)
            for i in range(AT_ONCE):
                added += np.float64(numbers[i])
            start += AT_ONCE * SHARES
    else:
        for i in range(thread, n_sums, THREADS):
            added += sums[i]
    shared[thread] = added
    cuda.syncthreads()
    if thread < COLUMNS:
        for share in range(1, SHARES):
            added += shared[share * COLUMNS + thread]
        if of_parts and place < size:
            total[place] += np.float32(added)
        shared[thread] = added
    cuda.syncthreads()
    if thread == 0 and not of_parts:
        for column in range(1, COLUMNS):
            added += shared[column]
        mean[0] = added / np.float64(summed)
