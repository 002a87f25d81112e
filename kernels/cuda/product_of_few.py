"""Products with a few features, as the elements of a first layer have; part of ``product.py``.

Memory is the limit, where a tile would multiply a hundred rows or steps of which all but a few are zeros.

For xᵀ g, g is read once, and each number of it multiplied by those of x in its row. A warp has the columns of a line of
memory, and the warps of a block share its rows.

For x W, with the finish of a layer, out is written once. A thread keeps four columns of W, or one where rows are not
aligned, goes through PARTIAL_ROWS rows with them, and so has at hand what it adds up for the next pooling. It does some
rows at once: first it fetches all that they need, as no load goes before a store.

The larger matrix, g or out, may be in pairs of bfloat16 (``pairs.py``).
"""

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, device, kernel
from fastperm.kernels.cuda.pairs import numbers_of_pair
from fastperm.kernels.cuda.pooling import MAX, PARTIAL_ROWS, SUM, pooled, pooled_nothing
from fastperm.kernels.cuda.product_finish import NO_POOL
from fastperm.kernels.cuda.vectors import (
    load1_or_zero,
    load4_or_zeros,
    relu,
    rest_of,
    round_bf16,
    store1,
    store2,
    store4,
)

COLUMNS, WARPS = (2, 2) if SIMULATED else (32, 8)
THREADS = COLUMNS * WARPS
AT_ONCE = 2 if SIMULATED else 8  # rows that are on their way to a thread
FINISH_THREADS = 4 if SIMULATED else 128


def launch(parts, x, g, inner_part, out, *, in_pairs=False):
    """Write out (parts, M, N), each of so many rows of x (R, M) and g (R, N)."""
    (rows, few), columns = x.shape, out.shape[2]
    multiply = next(kernels[in_pairs] for most, kernels in PRODUCTS.items() if few <= most)
    multiply(parts * tiles(columns, in_pairs=in_pairs), x, g, rows, few, columns, inner_part, out)


def launch_finished(
    A,  # (R, K)
    B,  # (K, N), or (N, K) if B_along_k
    rest,  # c, sets, scales, masked_by, weights, and `product_finish.flags_of` them
    B_along_k,
    is_aligned,  # out, and c and masked_by
    columns,  # N
    out,  # (R, N)
    partials,  # (G + S − 1, N), or None
    *,
    in_pairs=False,
):
    """Write out and partials as `product.product` says."""
    rows, few = A.shape
    own = 4 if is_aligned else 1
    multiply = next(kernels[own, in_pairs] for most, kernels in FINISHED.items() if few <= most)
    units = -(-rows // PARTIAL_ROWS) * (columns // own)
    apart = (1, few) if B_along_k else (columns, 1)
    multiply(-(-units // FINISH_THREADS), A, B, *rest, few, columns, rows, *apart, out, partials)


def tiles(columns, *, in_pairs=False):
    """Return how many blocks so many columns take."""
    return -(-columns // (COLUMNS * (1 + in_pairs)))


def _make(most, in_pairs=False):
    """Return the kernel for so many features at most."""
    each = 2 if in_pairs else 1  # columns of a thread
    held, across_warp = each * most, each * COLUMNS
    shared_size = THREADS * held
    name = f"product_{'pairs_' if in_pairs else ''}of_{most}"
    blocks = {2: 4}.get(most, 2) if in_pairs else 1  # twice the sums: without a limit, registers for a block less

    @kernel("f4* f4* i8 i8 i8 i8 f4*", threads=THREADS, name=name, blocks=blocks)
    def multiply(
        x,  # (R, M)
        g,  # (R, N), which may be in pairs
        rows,  # R
        few,  # M, at most ``most``
        columns,  # N
        inner_part,  # rows of a part
        out,  # (parts, M, N)
    ):
        shared = cuda.shared.array(shared_size, np.float32)
        sums = cuda.local.array(held, np.float32)
        fetched = cuda.local.array(AT_ONCE, np.float32)
        thread, block = np.int64(cuda.threadIdx.x), np.int64(cuda.blockIdx.x)
        across = (columns + across_warp - 1) // across_warp
        part, warp = block // across, thread // COLUMNS
        words, word = columns // each, block % across * COLUMNS + thread % COLUMNS
        for k in range(held):
            sums[k] = np.float32(0)
        end = min((part + 1) * inner_part, rows)
        for first in range(part * inner_part + warp, end, AT_ONCE * WARPS):
            for i in range(AT_ONCE):
                row = first + i * WARPS
                fetched[i] = load1_or_zero(g, row * words + word, row < end and word < words)
            for i in range(AT_ONCE):
                row = first + i * WARPS
                low, high = fetched[i], np.float32(0)
                if in_pairs:
                    low, high = numbers_of_pair(fetched[i])
                for k in range(most):
                    own_x = load1_or_zero(x, row * few + k, row < end and k < few)
                    sums[each * k] += own_x * low
                    if in_pairs:
                        sums[each * k + 1] += own_x * high
        for k in range(held):
            shared[k * THREADS + thread] = sums[k]
        cuda.syncthreads()
        for i in range(thread, each * few * COLUMNS, THREADS):
            k, own = i // COLUMNS, block % across * COLUMNS + i % COLUMNS
            if own < words:
                total = np.float32(0)
                for other in range(WARPS):
                    total += shared[k * THREADS + other * COLUMNS + i % COLUMNS]
                out[(part * few + k // each) * columns + each * own + k % each] = total

    return multiply


def _accesses(own):
    """Return functions that read and write so many numbers side by side, one or four, for rows of a local array."""

    @device
    def fetch(matrix, place, there, i, numbers):
        if own == 4:
            to = 4 * i
            numbers[to], numbers[to + 1], numbers[to + 2], numbers[to + 3] = load4_or_zeros(matrix, place, there)
        else:
            numbers[i] = load1_or_zero(matrix, place, there)

    @device
    def put(matrix, place, i, numbers):
        if own == 4:
            store4(matrix, place, numbers[4 * i], numbers[4 * i + 1], numbers[4 * i + 2], numbers[4 * i + 3])
        else:
            store1(matrix, place, numbers[i])

    return fetch, put


@device
def _put_pairs(matrix, place, i, numbers):
    """Write four numbers side by side as two pairs."""
    n = 4 * i
    store2(matrix, place >> 1, round_bf16(numbers[n], numbers[n + 1]), round_bf16(numbers[n + 2], numbers[n + 3]))


def _make_finished(least, most, own, at_once, blocks, in_pairs=False):
    """Return the kernel of x W for so many features.

    Its threads own so many columns, and do so many rows at once; so many of its blocks fit on a multiprocessor.
    """
    held, fetched, numbers = own * most, at_once * most, own * at_once
    fetch, put = _accesses(own)
    put_out = _put_pairs if in_pairs else put
    assert PARTIAL_ROWS % at_once == 0
    assert own == 4 or not in_pairs

    @kernel(
        "f4* f4* f4* i4* f4* f4* f4* " + "i4 " * 9 + "i8 i8 i8 f4* f4*",
        threads=FINISH_THREADS,
        name=f"product_{'pairs_' if in_pairs else ''}from_{most}_by_{own}",
        blocks=blocks,
    )
    def multiply(
        A,  # (R, K)
        B,  # (K, N) or (N, K)
        c,  # (S, N), if with_c
        sets,  # (R,), if with_sets
        scales,  # (R,), if scaled
        masked_by,  # (R, N), if masked
        weights,  # (R,), if weighted
        with_c,
        with_sets,
        scaled,
        with_relu,
        masked,
        weighted,
        code,  # NO_POOL, SUM or MAX
        few,  # K, from ``least`` to ``most``
        columns,  # N; of 32 bits, as places are computed often
        rows,  # R
        apart_k,  # from one step to the next in B
        apart,  # from one column to the next in B
        out,  # (R, N), which may be in pairs
        partials,  # (G + S − 1, N)
    ):
        W = cuda.local.array(held, np.float32)
        x = cuda.local.array(fetched, np.float32)
        z = cuda.local.array(numbers, np.float32)  # c, then out
        masks = cuda.local.array(numbers, np.float32)
        own_sets = cuda.local.array(at_once, np.int32)
        own_scales = cuda.local.array(at_once, np.float32)
        own_weights = cuda.local.array(at_once, np.float32)
        totals = cuda.local.array(own, np.float32)
        zero, one = np.float32(0), np.float32(1)
        unit, across = np.int64(cuda.blockIdx.x) * FINISH_THREADS + cuda.threadIdx.x, columns // own
        group, column = unit // across, unit % across * own
        row = group * PARTIAL_ROWS
        if row < rows:
            for k in range(most):
                for j in range(own):
                    W[own * k + j] = load1_or_zero(B, k * apart_k + (column + j) * apart, k < least or k < few)
            for j in range(own):
                totals[j] = pooled_nothing(code)
            s = sets[row] if with_sets else np.int32(0)
            own_c, own_partials = rest_of(c, column), rest_of(partials, group * columns + column)
            own_A, place = rest_of(A, row * few), row * columns + column
            left = np.int32(min(rows - row, PARTIAL_ROWS))
            while left > 0:
                for i in range(at_once):
                    for k in range(most):
                        x[i * most + k] = load1_or_zero(own_A, i * few + k, i < left and (k < least or k < few))
                for i in range(at_once):
                    own_sets[i] = np.int32(0)
                    if with_sets and i < left:
                        own_sets[i] = sets[row + i]
                for i in range(at_once):
                    own_scales[i] = load1_or_zero(scales, row + i, scaled and i < left)
                    own_weights[i] = load1_or_zero(weights, row + i, weighted and i < left)
                    fetch(masked_by, place + i * columns, masked and i < left, i, masks)
                    fetch(own_c, own_sets[i] * columns, with_c and i < left, i, z)
                for i in range(at_once):
                    scale = own_scales[i] if scaled else one
                    for j in range(own):
                        total = zero
                        for k in range(most):
                            total += x[i * most + k] * W[own * k + j]
                        z[own * i + j] = total + scale * z[own * i + j]
                if with_relu:
                    for i in range(numbers):
                        z[i] = relu(z[i])
                if masked:
                    for i in range(numbers):
                        z[i] = z[i] if masks[i] > zero else zero
                for i in range(at_once):
                    if i < left:
                        put_out(out, place + i * columns, i, z)
                if code != NO_POOL:
                    for i in range(at_once):
                        if i < left:
                            if own_sets[i] != s:
                                put(own_partials, s * columns, 0, totals)
                                s = own_sets[i]
                                for j in range(own):
                                    totals[j] = pooled_nothing(code)
                            w = own_weights[i] if weighted else one
                            if code == MAX:
                                for j in range(own):
                                    totals[j] = pooled(totals[j], z[own * i + j], w, MAX)
                            else:
                                for j in range(own):
                                    totals[j] = pooled(totals[j], z[own * i + j], w, SUM)
                left = np.int32(left - at_once)
                row += at_once
                place += at_once * columns
                own_A = rest_of(own_A, at_once * few)
            if code != NO_POOL:
                put(own_partials, s * columns, 0, totals)

    return multiply


# By the most features that they take, and by whether the larger matrix is in pairs.
PRODUCTS = {
    most: {in_pairs: _make(most, in_pairs) for in_pairs in (False, True)} for most in ((2, 3) if SIMULATED else (2, 8))
}
MOST = max(PRODUCTS)
# And by the columns that a thread owns: more of them, or of rows at once, would leave registers for too few threads.
FINISHED = {
    2: {
        (4, False): _make_finished(1, 2, 4, 2, 8),
        (4, True): _make_finished(1, 2, 4, 2, 8, in_pairs=True),
        (1, False): _make_finished(1, 2, 1, 4, 8),
    },
    MOST: {
        (4, False): _make_finished(3, MOST, 4, 2, 5),
        (4, True): _make_finished(3, MOST, 4, 2, 5, in_pairs=True),
        (1, False): _make_finished(3, MOST, 1, 2, 8),
    },
}
