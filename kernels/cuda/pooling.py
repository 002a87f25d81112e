"""Pooling; formula and derivation in ``kernels/reference/pooling.py``.

Float atomics would add in any order, and one thread per set would leave most of the card idle. So pooling takes two
passes. First, every PARTIAL_ROWS rows are summed, set by set where they belong to several; with g the number of these
rows and s the set, that sum goes to row g + s of ``partials``. From one sum to the next in order of the rows, g or s
grows, or both: so no two of them share a place, whatever the sets. Then a block adds up those of a set, or of several
small ones, in an order that the sizes give.
Other kernels that have rows at hand do the first pass in passing (`pool_rows`).
"""

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, device, kernel, xp
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.pairs import Pairs, numbers_of_pair
from fastperm.kernels.cuda.vectors import load1, load1_int, load1_or_zero, load2, round_bf16, store1, store2

SUM, MAX, TIES = 0, 1, 2
# What the first pass does; a mean is a sum that the second pass divides.
CODES = {"mean": SUM, "sum": SUM, "max": MAX}

# In single precision, as one sum; the sums are added up in double precision. Small where the simulator runs, so that
# small cases have edges.
PARTIAL_ROWS = 4 if SIMULATED else 32
THREADS = 4 if SIMULATED else 256
# For so many rows a thread that goes over a matrix, and writes it, waits at once.
AT_ONCE = 2 if SIMULATED else 8
# A block of the second pass: so many columns, and so many threads that share the sums of each.
FINISH_COLUMNS, FINISH_HALVINGS = (2, 1) if SIMULATED else (32, 3)
FINISH_SHARES = 1 << FINISH_HALVINGS
FINISH_THREADS = FINISH_COLUMNS * FINISH_SHARES
# It takes several sets at once, each with a part of these threads, while so many blocks remain and as a rule a block
# has so many partial rows at most: most of the time of a short sum goes into finding its place. A block whose rows are
# more than the last, as one of its sets is long, takes its sets one after the other, each with all threads.
FINISH_BLOCKS, FINISH_ROWS, FINISH_LONG = (2, 6, 8) if SIMULATED else (256, 144, 208)


def pooling_forward(
    x,  # (T, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    pool,  # "mean", "sum" or "max"
    *,
    p,  # (S, K)
):
    offsets = on_device(offsets)
    sets = sets_of_rows(offsets, len(x))
    finish(pool_partials(x, sets, len(p), weights, CODES[pool]), offsets, pool, divisors(offsets, weights, sets), p)


def pooling_backward(
    dp,  # (S, K)
    x,  # (T, K)
    p,  # (S, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    pool,  # "mean", "sum" or "max"
    *,
    dx,  # (T, K), overwritten
):
    offsets = on_device(offsets)
    sets = sets_of_rows(offsets, len(x))
    scales = row_scales(offsets, weights, sets, pool)
    unpool(dp, x, p, offsets, weights, scales, sets, pool, None, dx)


def sets_of_rows(
    offsets,  # (S + 1,)
    rows,  # T
):
    """Return the set that each row belongs to: (T,) int32."""
    sets = xp().empty(rows, np.int32)
    _sets_of_rows(-(-rows // THREADS), offsets, len(offsets) - 1, rows, sets)
    return sets


def divisors(
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    sets,  # (T,)
):
    """Return W_s, (S,) float32; None where there are no weights, since the offsets tell then."""
    if weights is None:
        return None
    totals = xp().empty((len(offsets) - 1, 1), np.float32)
    finish(pool_partials(weights.reshape(-1, 1), sets, len(totals), None, SUM), offsets, "sum", None, totals)
    return totals.reshape(-1)


def row_scales(
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    sets,  # (T,)
    pool,  # "mean", "sum" or "max"
):
    """Return what the gradient of a pooled vector gives every row: (T,) float32, w_n / W_s or w_n; None if it is 1."""
    if pool != "mean":
        return weights
    scales = xp().empty(len(sets), np.float32)
    totals = divisors(offsets, weights, sets)
    _row_scales(-(-len(sets) // THREADS), sets, offsets, weights, totals, weights is not None, len(sets), scales)
    return scales


def partial_sums(
    rows,  # T
    n_sets,  # S
    columns,  # K
    dtype=np.float32,
):
    """Return where the first pass over so many rows writes: (G + S − 1, K), G = ⌈T / PARTIAL_ROWS⌉."""
    return xp().empty((-(-rows // PARTIAL_ROWS) + n_sets - 1, columns), dtype)


def pool_partials(
    x,  # (T, K)
    sets,  # (T,), or None where all rows are one set
    n_sets,  # S
    weights,  # (T,) or None
    code,  # SUM, MAX or TIES
    p=None,  # (S, K), for TIES
):
    """Do the first pass and return its sums."""
    rows, columns = x.shape
    partials = partial_sums(rows, n_sets, columns)
    units = -(-rows // PARTIAL_ROWS) * columns
    flags = (sets is not None, weights is not None, code)
    _pool_partials(-(-units // THREADS), x, sets, weights, p, *flags, rows, columns, partials)
    return partials


def finish(
    partials,  # (G + S − 1, K)
    offsets,  # (S + 1,), or the number of rows where all are one set
    pool,  # "mean", "sum" or "max"
    totals,  # (S,) or None: W_s, for a mean of weighted elements
    p,  # (S, K)
    *,
    accumulate=False,  # add to p
):
    """Do the second pass."""
    n_sets, columns = p.shape
    rows, bounds = (offsets, None) if isinstance(offsets, int) else (0, offsets)
    flags = (bounds is not None, totals is not None, pool == "max", pool == "mean", accumulate)
    column_blocks, doublings = -(-columns // FINISH_COLUMNS), 0
    while (
        doublings < FINISH_HALVINGS
        and n_sets * column_blocks >= FINISH_BLOCKS << doublings + 1
        and len(partials) << doublings + 1 <= FINISH_ROWS * n_sets
    ):
        doublings += 1
    blocks = (-(-n_sets >> doublings)) * column_blocks
    _finish(blocks, partials, bounds, totals, *flags, n_sets, doublings, column_blocks, rows, columns, p)


def unpool(
    dp,  # (S, K)
    x,  # (T, K)
    p,  # (S, K)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    scales,  # (T,) or None, from `row_scales`
    sets,  # (T,)
    pool,  # "mean", "sum" or "max"
    added,  # (T, K) or None: what is added
    dx,  # (T, K)
    *,
    masked=False,  # whether x is a ReLU whose gradient is wanted: zero where x is
):
    """Write the gradient of a pooling for each row, and return its partial sums.

    Of a sum or a mean that is masked, x and dx may be `Pairs`.
    """
    if isinstance(dx, Pairs):
        assert masked
        assert added is None
        rows, columns = x.shape
        partials, pairs = partial_sums(rows, len(p), columns), columns // 2
        units = -(-rows // PARTIAL_ROWS) * pairs
        shape = (scales is not None, rows, pairs)
        _unpool_pairs(-(-units // THREADS), dp, x.words, scales, sets, *shape, dx.words, partials)
        return partials
    if pool == "max":
        ties = xp().empty(p.shape, np.float32)
        finish(pool_partials(x, sets, len(p), weights, TIES, p), offsets, "sum", None, ties)
        scales = weights
    else:
        ties = None
    rows, columns = x.shape
    flags = (ties is not None, scales is not None, added is not None, masked)
    partials = partial_sums(rows, len(p), columns)
    units = -(-rows // PARTIAL_ROWS) * columns
    _unpool(-(-units // THREADS), dp, x, p, ties, scales, sets, added, *flags, rows, columns, dx, partials)
    return partials


def mask(
    dy,  # (T, K)
    y,  # (T, K)
):
    """Return the gradient of a ReLU, (T, K): dy where y > 0."""
    g = xp().empty(y.shape, np.float32)
    _mask(-(-y.size // THREADS), dy, y, y.size, g)
    return g


def add_column_sums(
    g,  # (R, K)
    total,  # (K,), added to
):
    finish(pool_partials(g, None, 1, None, SUM), len(g), "sum", None, total.reshape(1, -1), accumulate=True)


@device
def _with(total, value, maximum):
    """Return the sum, or the larger, of the two."""
    if not maximum:
        return total + value
    # Not a comparison alone: a NaN must reach the output.
    return value if value > total or value != value else total


@device
def pooled_nothing(code):
    """Return where a sum or a maximum begins."""
    return np.float32(-np.inf) if code == MAX else np.float32(0)


@device
def pooled(total, value, w, code):
    """Return a sum or a maximum with one more value of weight w."""
    if code != MAX:
        return total + w * value
    return _with(total, value, True) if w > np.float32(0) else total


@device
def pool_rows(
    source,  # the rows, wherever they are
    place,  # of the first number to take, in source
    stride,  # from one row to the next, in source
    first_row,  # a multiple of PARTIAL_ROWS
    count,  # at most PARTIAL_ROWS
    column,
    columns,  # K
    sets,  # (T,), if with_sets
    weights,  # (T,), if weighted
    p,  # (S, K), for TIES
    with_sets,
    weighted,
    code,
    partials,  # (G + S − 1, K)
):
    """Do the first pass over one column of PARTIAL_ROWS rows."""
    group = first_row // PARTIAL_ROWS
    total = pooled_nothing(code)
    s = np.int64(sets[first_row]) if with_sets else np.int64(0)
    last = np.int64(sets[first_row + count - 1]) if with_sets else np.int64(0)
    if count == PARTIAL_ROWS and s == last and code != TIES:  # as a rule: nothing to ask between one row and the next
        for r in range(PARTIAL_ROWS):
            w = weights[first_row + r] if weighted else np.float32(1)
            total = pooled(total, source[place + r * stride], w, code)
        count = np.int64(0)
    for r in range(count):
        own = np.int64(sets[first_row + r]) if with_sets else np.int64(0)
        if own != s:
            partials[(group + s) * columns + column] = total
            total = pooled_nothing(code)
            s = own
        value = source[place + r * stride]
        w = weights[first_row + r] if weighted else np.float32(1)
        if code == TIES:
            if value == p[s * columns + column]:
                total += w
        else:
            total = pooled(total, value, w, code)
    partials[(group + s) * columns + column] = total


@kernel("f4* i4* f4* f4* i4 i4 i4 i8 i8 f4*", threads=THREADS)
def _pool_partials(
    x,  # (T, K)
    sets,  # (T,), if with_sets
    weights,  # (T,), if weighted
    p,  # (S, K), for TIES
    with_sets,
    weighted,
    code,
    rows,  # T
    columns,  # K
    partials,  # (G + S − 1, K)
):
    # Neighbouring threads have neighbouring columns.
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    column = unit % columns
    first = unit // columns * PARTIAL_ROWS
    if first < rows:
        count = min(np.int64(PARTIAL_ROWS), rows - first)
        place = first * columns + column
        pool_rows(
            x, place, columns, first, count, column, columns, sets, weights, p, with_sets, weighted, code, partials
        )


@kernel("f4* i8* f4* i4 i4 i4 i4 i4 i8 i4 i4 i8 i8 f4*", threads=FINISH_THREADS)
def _finish(
    partials,  # (G + S − 1, K)
    offsets,  # (S + 1,), if with_sets
    totals,  # (S,), if weighted
    with_sets,
    weighted,
    maximum,
    mean,
    accumulate,
    n_sets,  # S
    doublings,  # a block has two to the power of these sets
    column_blocks,  # blocks of such sets
    rows,  # T, without sets
    columns,  # K
    p,  # (S, K)
):
    shared = cuda.shared.array(FINISH_THREADS, np.float64)
    fetched = cuda.local.array(AT_ONCE, np.float32)
    thread = np.int32(cuda.threadIdx.x)
    block = np.int64(np.uint32(cuda.blockIdx.x) // np.uint32(column_blocks))
    column = (cuda.blockIdx.x - block * column_blocks) * FINISH_COLUMNS + thread % FINISH_COLUMNS
    first_set = block << doublings
    halvings, passes = np.int32(FINISH_HALVINGS - doublings), np.int32(1)  # shares are two to the power of the first
    if doublings > 0 and with_sets:
        last_set = min(first_set + (1 << doublings), n_sets)
        length = (offsets[last_set] - 1) // PARTIAL_ROWS - offsets[first_set] // PARTIAL_ROWS
        if length > FINISH_LONG:
            halvings, passes = np.int32(FINISH_HALVINGS), np.int32(last_set - first_set)
    share = (thread // FINISH_COLUMNS) & ((1 << halvings) - 1)
    for own in range(passes):
        s = first_set + own + (thread // FINISH_COLUMNS >> halvings)
        there = s < n_sets and column < columns
        first, last = np.int64(0), rows
        if with_sets and there:
            first, last = offsets[s], offsets[s + 1]
        begin = first // PARTIAL_ROWS + share
        count = np.int32(((last - 1) // PARTIAL_ROWS - begin + (1 << halvings)) >> halvings) if there else np.int32(0)
        place, step = (begin + s) * columns + column, columns << halvings
        total, largest = 0.0, np.float32(-np.inf)
        for done in range(0, count, AT_ONCE):
            left = np.int32(count - done)
            for i in range(AT_ONCE):
                fetched[i] = load1_or_zero(partials, place, np.int32(i) < left)
                place += step
            if maximum:
                for i in range(AT_ONCE):
                    if np.int32(i) < left:
                        largest = _with(largest, fetched[i], True)
            else:
                for i in range(AT_ONCE):
                    total += np.float64(fetched[i])
        if maximum:
            total = np.float64(largest)
        shared[thread] = total
        cuda.syncthreads()
        if share == 0 and there:
            for i in range(1, 1 << halvings):
                total = _with(total, shared[thread + i * FINISH_COLUMNS], maximum)
            if mean:
                total /= np.float64(totals[s]) if weighted else np.float64(last - first)
            to = s * columns + column
            p[to] = p[to] + np.float32(total) if accumulate else np.float32(total)
        cuda.syncthreads()


@kernel("i8* i8 i8 i4*", threads=THREADS)
def _sets_of_rows(
    offsets,  # (S + 1,)
    n_sets,  # S
    rows,  # T
    sets,  # (T,)
):
    row = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if row < rows:
        low = np.int64(0)
        high = n_sets
        while high - low > 1:
            middle = (low + high) // 2
            if offsets[middle] <= row:
                low = middle
            else:
                high = middle
        sets[row] = low


@kernel("i4* i8* f4* f4* i4 i8 f4*", threads=THREADS)
def _row_scales(
    sets,  # (T,)
    offsets,  # (S + 1,)
    weights,  # (T,), if weighted
    totals,  # (S,), if weighted
    weighted,
    rows,  # T
    scales,  # (T,)
):
    row = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if row < rows:
        s = sets[row]
        if weighted:
            scales[row] = weights[row] / totals[s]
        else:
            scales[row] = np.float32(1) / np.float32(offsets[s + 1] - offsets[s])


@device
def _unpooled(of_set, largest, tied, x, scale, other, maximum, adding, masked):
    """Return the gradient of a row, of what its set has, and the row."""
    value = of_set * scale
    if maximum:
        value = value / tied if x == largest else np.float32(0)
    if adding:
        value += other
    return np.float32(0) if masked and not x > np.float32(0) else value


@kernel("f4* f4* f4* f4* f4* i4* f4* i4 i4 i4 i4 i8 i8 f4* f4*", threads=THREADS)
def _unpool(
    dp,  # (S, K)
    x,  # (T, K)
    p,  # (S, K), for the maximum
    ties,  # (S, K), for the maximum: the weight of the elements that attain it
    scales,  # (T,), if scaled
    sets,  # (T,)
    added,  # (T, K), if adding
    maximum,
    scaled,
    adding,
    masked,
    rows,  # T
    columns,  # K
    dx,  # (T, K)
    partials,  # (G + S − 1, K): sums of dx
):
    own_x = cuda.local.array(AT_ONCE, np.float32)
    other = cuda.local.array(AT_ONCE, np.float32)  # that is added
    scale = cuda.local.array(AT_ONCE, np.float32)
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    group = unit // columns
    column = unit - group * columns
    first = group * PARTIAL_ROWS
    zero, one = np.float32(0), np.float32(1)
    s, of_set, largest, tied, total = np.int32(-1), zero, zero, one, zero
    for row in range(first, min(first + PARTIAL_ROWS, rows), AT_ONCE):
        # First all that comes from memory: a store lets no load go before it.
        whole = rows - row >= AT_ONCE
        place = row * columns + column
        for i in range(AT_ONCE):
            own_x[i] = scale[i] = one
            other[i] = zero
        if maximum or masked:
            for i in range(AT_ONCE):
                own_x[i] = load1_or_zero(x, place + i * columns, whole)
        if adding:
            for i in range(AT_ONCE):
                other[i] = load1_or_zero(added, place + i * columns, whole)
        if scaled:
            for i in range(AT_ONCE):
                scale[i] = load1_or_zero(scales, row + i, whole)
        own = load1_int(sets, row)
        together = whole and load1_int(sets, row + AT_ONCE - 1) == own
        # At the end, and where there are several sets, one row after the other; what was fetched is near.
        for r in range(row, row + 1 if together else min(row + AT_ONCE, rows)):
            own = load1_int(sets, r)
            if own != s:
                if s >= 0:
                    store1(partials, (group + s) * columns + column, total)
                s, total = own, zero
                of_set = load1(dp, np.int64(s) * columns + column)
                if maximum:
                    largest = load1(p, np.int64(s) * columns + column)
                    tied = load1(ties, np.int64(s) * columns + column)
            if not together:
                place = r * columns + column
                value = _unpooled(
                    of_set, largest, tied,
                    load1(x, place) if maximum or masked else one,
                    load1(scales, r) if scaled else one,
                    load1(added, place) if adding else zero,
                    maximum, adding, masked,
                )  # fmt: skip
                store1(dx, place, value)
                total += value
        if together:
            for i in range(AT_ONCE):
                value = _unpooled(of_set, largest, tied, own_x[i], scale[i], other[i], maximum, adding, masked)
                store1(dx, place + i * columns, value)
                total += value
    if s >= 0:
        store1(partials, (group + s) * columns + column, total)


@kernel("f4* f4* f4* i4* i4 i8 i8 f4* f4*", threads=THREADS)
def _unpool_pairs(
    dp,  # (S, K)
    x,  # (T, K / 2) pairs
    scales,  # (T,), if scaled
    sets,  # (T,)
    scaled,
    rows,  # T
    across,  # K / 2
    dx,  # (T, K / 2) pairs
    partials,  # (G + S − 1, K): sums of dx, before it is rounded
):
    """Do what `_unpool` does with the mask alone."""
    own_x = cuda.local.array(AT_ONCE, np.float32)
    scale = cuda.local.array(AT_ONCE, np.float32)
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    group = unit // across
    pair = unit - group * across
    first = group * PARTIAL_ROWS
    zero, one = np.float32(0), np.float32(1)
    s, low, high, low_total, high_total = np.int32(-1), zero, zero, zero, zero
    for row in range(first, min(first + PARTIAL_ROWS, rows), AT_ONCE):
        # First all that comes from memory: a store lets no load go before it.
        whole = rows - row >= AT_ONCE
        place = row * across + pair
        for i in range(AT_ONCE):
            own_x[i] = load1_or_zero(x, place + i * across, whole)
            scale[i] = one
        if scaled:
            for i in range(AT_ONCE):
                scale[i] = load1_or_zero(scales, row + i, whole)
        own = load1_int(sets, row)
        together = whole and load1_int(sets, row + AT_ONCE - 1) == own
        # At the end, and where there are several sets, one row after the other; what was fetched is near.
        for r in range(row, row + 1 if together else min(row + AT_ONCE, rows)):
            own = load1_int(sets, r)
            if own != s:
                if s >= 0:
                    store2(partials, ((group + s) * across + pair) * 2, low_total, high_total)
                s, low_total, high_total = own, zero, zero
                of_set = (np.int64(s) * across + pair) * 2
                low, high = load2(dp, of_set)
            if not together:
                place = r * across + pair
                own_scale = load1(scales, r) if scaled else one
                low_value, high_value = _masked_by_pair(low * own_scale, high * own_scale, load1(x, place))
                store1(dx, place, round_bf16(low_value, high_value))
                low_total += low_value
                high_total += high_value
        if together:
            for i in range(AT_ONCE):
                low_value, high_value = _masked_by_pair(low * scale[i], high * scale[i], own_x[i])
                store1(dx, place + i * across, round_bf16(low_value, high_value))
                low_total += low_value
                high_total += high_value
    if s >= 0:
        store2(partials, ((group + s) * across + pair) * 2, low_total, high_total)


@device
def _masked_by_pair(low, high, pair):
    """Return two numbers, or zero where those of a pair are not positive."""
    low_x, high_x = numbers_of_pair(pair)
    zero = np.float32(0)
    return low if low_x > zero else zero, high if high_x > zero else zero


@kernel("f4* f4* i8 f4*", threads=THREADS)
def _mask(
    dy,  # (T, K)
    y,  # (T, K)
    size,  # T K
    g,  # (T, K)
):
    place = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if place < size:
        g[place] = dy[place] if y[place] > np.float32(0) else np.float32(0)
