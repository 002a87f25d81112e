"""What goes with a layer once its product is there: pooled term, ReLU or mask, and sums for the next pooling.

A tile does it on its way through shared memory (`part_finisher`), and `_finish_product` in a pass over memory where
NVIDIA's library has written the product.
"""

import numpy as np

from fastperm.kernels.cuda.compiling import cuda, device, kernel
from fastperm.kernels.cuda.pairs import numbers_of_pair
from fastperm.kernels.cuda.pooling import AT_ONCE, MAX, PARTIAL_ROWS, SUM, THREADS, pool_rows, pooled, pooled_nothing
from fastperm.kernels.cuda.vectors import (
    load1,
    load1_int,
    load1_or_zero,
    load2,
    load4,
    relu,
    round_bf16,
    store1,
    store2,
    store4,
)

NO_POOL = -1  # beside the codes of pooling.py
FETCHED = 9  # numbers for four that are finished: their mask, their pooled term, and its scale


def finish_product(
    given,  # c (S, N) or (N,), sets (R,), scales (R,), masked_by (R, N) and weights (R,), or None for any
    flags,  # `flags_of` these
    out,  # (R, N)
    partials,  # (G + S − 1, N), or None
):
    """Finish a product that lies in ``out`` as `product.product` says."""
    rows, columns = out.shape
    *_, code = flags
    # Without pooling a thread has few rows: a small matrix, too, takes many blocks.
    units = -(-rows // (AT_ONCE if code == NO_POOL else PARTIAL_ROWS)) * columns
    _finish_product(-(-units // THREADS), *given, *flags, rows, columns, out, partials)


def flags_of(c, sets, scales, masked_by, weights, relu, code):
    """Return what kernels are told of the arrays that a finish takes, and of what else it does."""
    given = [array is not None for array in (c, sets, scales, masked_by, weights)]
    return (*given[:3], relu, *given[3:], code)


@device
def four(matrix, place, left, is_aligned):
    """Return four numbers of a row, of which there may be fewer left."""
    zero = np.float32(0)
    if is_aligned and left > 0:
        return load4(matrix, place)
    return (
        matrix[place] if left > 0 else zero,
        matrix[place + 1] if left > 1 else zero,
        matrix[place + 2] if left > 2 else zero,
        matrix[place + 3] if left > 3 else zero,
    )


def part_finisher(part_rows, part_columns, stride, threads, *, at_once=1, in_pairs=False):
    """Return functions for a part of a tile, whose rows lie in shared memory, so far apart.

    The first finishes and writes it, and the second adds up its columns for the next pooling, if that is wanted. All
    threads of a block call them, and wait for each other before, between and after. A thread finishes four numbers side
    by side, and waits for memory once for so many of these ``at_once``; it lends ``at_once`` registers for sets, and
    FETCHED times as many for numbers. The mask and what is written may be ``in_pairs`` (``pairs.py``).
    """
    fours, groups, zero = part_columns // 4, part_rows // PARTIAL_ROWS, np.float32(0)
    units = part_rows * fours // threads  # of a thread: four numbers side by side
    of_c, of_scales = 4 * at_once, 8 * at_once  # places in ``fetched``, behind the mask
    assert units % at_once == 0
    assert part_rows % PARTIAL_ROWS == 0
    assert part_rows * fours == units * threads
    assert stride % 4 == 0

    @device
    def finish_part(
        shared, first_row, first_column, thread, c, sets, scales, masked_by,
        with_c, with_sets, scaled, with_relu, masked, code, out_aligned, rows, columns, before, out, own_sets, fetched,
    ):  # fmt: skip
        for first in range(thread, part_rows * fours, at_once * threads):
            # First all that comes from memory: a store lets no load go before it.
            for i in range(at_once):
                unit = first + i * threads
                row, column = first_row + unit // fours, first_column + unit % fours * 4
                left = columns - column if row < rows else np.int64(0)
                own_sets[i], fetched[of_scales + i] = np.int32(0), np.float32(1)
                if left > 0 and with_sets:
                    own_sets[i] = sets[row]
                if left > 0 and scaled:
                    fetched[of_scales + i] = scales[row]
                to = 4 * i
                if in_pairs:
                    if left > 0 and masked:
                        fetched[to], fetched[to + 1] = load2(masked_by, ((before + row) * columns + column) >> 1)
                elif masked:
                    fetched[to], fetched[to + 1], fetched[to + 2], fetched[to + 3] = four(
                        masked_by, (before + row) * columns + column, left, out_aligned
                    )
            for i in range(at_once):
                unit = first + i * threads
                row, column = first_row + unit // fours, first_column + unit % fours * 4
                left = columns - column if row < rows else np.int64(0)
                if with_c:
                    to = of_c + 4 * i
                    fetched[to], fetched[to + 1], fetched[to + 2], fetched[to + 3] = four(
                        c, np.int64(own_sets[i]) * columns + column, left, out_aligned
                    )
            for i in range(at_once):
                unit = first + i * threads
                row, column = first_row + unit // fours, first_column + unit % fours * 4
                left = columns - column
                if row < rows and left > 0:
                    own = unit // fours * stride + unit % fours * 4
                    z0, z1, z2, z3 = load4(shared, own)
                    place = (before + row) * columns + column
                    if with_c:
                        scale = fetched[of_scales + i]
                        z0 += scale * fetched[of_c + 4 * i]
                        z1 += scale * fetched[of_c + 4 * i + 1]
                        z2 += scale * fetched[of_c + 4 * i + 2]
                        z3 += scale * fetched[of_c + 4 * i + 3]
                    if with_relu:
                        z0 = relu(z0)
                        z1 = relu(z1)
                        z2 = relu(z2)
                        z3 = relu(z3)
                    if masked:
                        to = 4 * i
                        if in_pairs:
                            fetched[to + 2], fetched[to + 3] = numbers_of_pair(fetched[to + 1])
                            fetched[to], fetched[to + 1] = numbers_of_pair(fetched[to])
                        z0 = z0 if fetched[to] > zero else zero
                        z1 = z1 if fetched[to + 1] > zero else zero
                        z2 = z2 if fetched[to + 2] > zero else zero
                        z3 = z3 if fetched[to + 3] > zero else zero
                    if in_pairs:
                        store2(out, place >> 1, round_bf16(z0, z1), round_bf16(z2, z3))
                    elif out_aligned:
                        store4(out, place, z0, z1, z2, z3)
                    else:
                        out[place] = z0
                        if left > 1:
                            out[place + 1] = z1
                        if left > 2:
                            out[place + 2] = z2
                        if left > 3:
                            out[place + 3] = z3
                    if code != NO_POOL:
                        store4(shared, own, z0, z1, z2, z3)

    @device
    def pool_part(
        shared, first_row, first_column, thread, sets, weights, with_sets, weighted, code, rows, columns, partials
    ):  # fmt: skip
        if code != NO_POOL:
            for unit in range(thread, groups * part_columns, threads):
                column = first_column + unit % part_columns
                place = unit // part_columns * PARTIAL_ROWS
                row = first_row + place
                if row < rows and column < columns:
                    count = min(np.int64(PARTIAL_ROWS), rows - row)
                    pool_rows(
                        shared, place * stride + unit % part_columns, stride, row, count, column, columns,
                        sets, weights, weights, with_sets, weighted, code, partials,
                    )  # fmt: skip

    return finish_part, pool_part


@device
def _finished(z, scale, term, other, with_c, with_relu):
    """Return a number of a product with its pooled term, after ReLU or the mask, where ``other`` is of the mask."""
    if with_c:
        z += scale * term
    if with_relu:
        z = relu(z)
    return z if other > np.float32(0) else np.float32(0)


@kernel("f4* i4* f4* f4* f4* " + "i4 " * 7 + "i8 i8 f4* f4*", threads=THREADS)
def _finish_product(
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
    rows,  # R
    columns,  # N
    out,  # (R, N)
    partials,  # (G + S − 1, N)
):
    """Do what `multiply` does with a tile, with a product that the library has written."""
    z = cuda.local.array(AT_ONCE, np.float32)
    other = cuda.local.array(AT_ONCE, np.float32)  # of the mask
    scale = cuda.local.array(AT_ONCE, np.float32)
    weight = cuda.local.array(AT_ONCE, np.float32)
    pools = code != NO_POOL
    per_thread = np.int64(PARTIAL_ROWS if pools else AT_ONCE)
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    group = unit // columns
    column = unit - group * columns
    first = group * per_thread
    s, term, total = np.int32(-1), np.float32(0), pooled_nothing(code)
    for row in range(first, min(first + per_thread, rows), AT_ONCE):
        # First all that comes from memory: a store lets no load go before it.
        whole = rows - row >= AT_ONCE
        place = row * columns + column
        for i in range(AT_ONCE):
            z[i] = load1_or_zero(out, place + i * columns, whole)
            other[i] = scale[i] = weight[i] = np.float32(1)
        if masked:
            for i in range(AT_ONCE):
                other[i] = load1_or_zero(masked_by, place + i * columns, whole)
        if scaled:
            for i in range(AT_ONCE):
                scale[i] = load1_or_zero(scales, row + i, whole)
        if weighted:
            for i in range(AT_ONCE):
                weight[i] = load1_or_zero(weights, row + i, whole)
        own = load1_int(sets, row) if with_sets else np.int32(0)
        if whole and (not with_sets or load1_int(sets, row + AT_ONCE - 1) == own):
            if own != s:
                if pools and s >= 0:
                    store1(partials, (group + s) * columns + column, total)
                s, total = own, pooled_nothing(code)
                if with_c:
                    term = load1(c, np.int64(s) * columns + column)
            for i in range(AT_ONCE):
                z[i] = _finished(z[i], scale[i], term, other[i], with_c, with_relu)
                store1(out, place + i * columns, z[i])
            if code == SUM:  # what is asked once need not be asked for each row
                for i in range(AT_ONCE):
                    total = pooled(total, z[i], weight[i], SUM)
            elif code == MAX:
                for i in range(AT_ONCE):
                    total = pooled(total, z[i], weight[i], MAX)
        else:
            # The end, or several sets; what was fetched is near. To change sets in one place for both takes ten more
            # registers, and with them a block less on a multiprocessor.
            for r in range(row, min(row + AT_ONCE, rows)):
                own = load1_int(sets, r) if with_sets else np.int32(0)
                if own != s:
                    if pools and s >= 0:
                        store1(partials, (group + s) * columns + column, total)
                    s, total = own, pooled_nothing(code)
                    if with_c:
                        term = load1(c, np.int64(s) * columns + column)
                place = r * columns + column
                value = _finished(
                    load1(out, place),
                    load1(scales, r) if scaled else np.float32(1),
                    term,
                    load1(masked_by, place) if masked else np.float32(1),
                    with_c,
                    with_relu,
                )
                store1(out, place, value)
                if pools:
                    total = pooled(total, value, load1(weights, r) if weighted else np.float32(1), code)
    if pools and s >= 0:
        store1(partials, (group + s) * columns + column, total)
