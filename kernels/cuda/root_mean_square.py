"""The root mean square of sets; formulas in ``kernels/reference/root_mean_square.py``.

Sums take two passes, in places as in ``pooling.py``, but in double precision: every PARTIAL_ROWS rows are summed, set
by set, and then one block per set adds up its own, in a fixed order. A third pass divides. Numbers of float32 have
squares within float64, whatever their weights, so nothing is refused here, and nobody waits to know. A number that is
not finite makes those of its set so, and with them the loss.
"""

import math

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel, xp
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.pooling import PARTIAL_ROWS, THREADS, partial_sums, sets_of_rows
from fastperm.kernels.reference.root_mean_square import LEAST_SQUARE

# A power of two.
FINISH_THREADS = 4 if SIMULATED else 128


def root_mean_square_forward(
    x,  # (T, 1 + K): a position, and values
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    *,
    u,  # (T, 1 + K), the same with values divided, or (T, K), these alone
    r,  # (S,) float64
):
    offsets, columns = on_device(offsets), x.shape[1]
    sets = sets_of_rows(offsets, len(x))
    partials = _partials(x, x, weights, sets, len(r), columns - 1, weigh=True)
    _finish_scale(len(r), partials, offsets, None, False, columns - 1, r)
    _divide(-(-u.size // THREADS), x, r, sets, weights, weights is not None, columns, u.shape[1], u.size, u)


def root_mean_square_shift(
    y,  # (S, K)
    r,  # (S,) float64
    sign,  # 1 or −1
    *,
    shifted,  # (S, K), overwritten
):
    _shift(-(-y.size // THREADS), y, r, 2.0 * sign, y.shape[1], y.size, shifted)


def root_mean_square_backward(
    du,  # (T, 1 + K): gradient of the position, and of u
    u,  # (T, 1 + K) or (T, K)
    r,  # (S,) float64
    dscale,  # (S,) float64: r dr
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    *,
    dx,  # (T, 1 + K), overwritten
):
    offsets, columns = on_device(offsets), du.shape[1]
    sets = sets_of_rows(offsets, len(u))
    partials = _partials(u, du, weights, sets, len(r), columns - 1, weigh=False)
    shares = xp().empty(len(r), np.float64)
    _finish_scale(len(r), partials, offsets, dscale, True, columns - 1, shares)
    sizes = (weights is not None, columns, u.shape[1], dx.size)
    _divide_backward(-(-dx.size // THREADS), du, u, r, shares, sets, weights, *sizes, dx)


def _partials(a, b, weights, sets, n_sets, values, *, weigh):
    """Do the first pass over the last columns of a and b, and return its sums."""
    rows = len(a)
    partials = partial_sums(rows, n_sets, 2, np.float64)
    sizes = (values, a.shape[1], b.shape[1], rows)
    _scale_partials(-(-rows // THREADS), a, b, weights, sets, weights is not None, weigh, *sizes, partials)
    return partials


@kernel("f4* f4* f4* i4* i4 i4 i8 i8 i8 i8 f8*", threads=THREADS)
def _scale_partials(
    a,  # (T, columns_a): the last K are values
    b,  # (T, columns_b)
    weights,  # (T,), if weighted
    sets,  # (T,)
    weighted,
    weigh,  # whether products are multiplied by weights
    values,  # K
    columns_a,
    columns_b,
    rows,  # T
    partials,  # (G + S − 1, 2): sums of Σ_k a b and of the weights
):
    products = cuda.shared.array(THREADS, np.float64)
    totals = cuda.shared.array(THREADS, np.float64)
    thread = cuda.threadIdx.x
    row = np.int64(cuda.blockIdx.x) * THREADS + thread
    if row < rows:
        w = np.float64(weights[row]) if weighted else np.float64(1)
        product = np.float64(0)
        for k in range(-values, 0):
            product += np.float64(a[(row + 1) * columns_a + k]) * np.float64(b[(row + 1) * columns_b + k])
        products[thread] = w * product if weigh else product
        totals[thread] = w
    cuda.syncthreads()
    # Of the rows of one set within a group, the first adds them up.
    if row < rows and (row % PARTIAL_ROWS == 0 or sets[row] != sets[row - 1]):
        s = np.int64(sets[row])
        group = row // PARTIAL_ROWS
        end = min((group + 1) * PARTIAL_ROWS, rows)
        product = products[thread]
        total = totals[thread]
        other = row + 1
        while other < end and sets[other] == s:
            product += products[thread + other - row]
            total += totals[thread + other - row]
            other += 1
        partials[2 * (group + s)] = product
        partials[2 * (group + s) + 1] = total


@kernel("f8* i8* f8* i4 i8 f8*", threads=FINISH_THREADS)
def _finish_scale(
    partials,  # (G + S − 1, 2)
    offsets,  # (S + 1,)
    dscale,  # (S,), if backward
    backward,
    values,  # K
    result,  # (S,): r or, backward, (r dr − U) / (K W)
):
    products = cuda.shared.array(FINISH_THREADS, np.float64)
    totals = cuda.shared.array(FINISH_THREADS, np.float64)
    thread = cuda.threadIdx.x
    s = np.int64(cuda.blockIdx.x)
    product = np.float64(0)
    total = np.float64(0)
    end = (offsets[s + 1] - 1) // PARTIAL_ROWS + 1 + s
    for i in range(offsets[s] // PARTIAL_ROWS + s + thread, end, FINISH_THREADS):
        product += partials[2 * i]
        total += partials[2 * i + 1]
    products[thread] = product
    totals[thread] = total
    cuda.syncthreads()
    half = FINISH_THREADS // 2
    while half > 0:
        if thread < half:
            products[thread] += products[thread + half]
            totals[thread] += totals[thread + half]
        cuda.syncthreads()
        half //= 2
    if thread == 0:
        count = np.float64(values) * totals[0]
        if backward:
            result[s] = (dscale[s] - products[0]) / count
        else:
            mean = products[0] / count
            result[s] = math.sqrt(mean) if mean > LEAST_SQUARE else 1.0


@kernel("f4* f8* i4* f4* i4 i8 i8 i8 f4*", threads=THREADS)
def _divide(
    x,  # (T, columns)
    r,  # (S,)
    sets,  # (T,)
    weights,  # (T,), if weighted
    weighted,
    columns,  # 1 + K
    u_columns,  # 1 + K or K
    size,  # of u
    u,  # (T, u_columns)
):
    i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if i < size:
        row = i // u_columns
        column = i % u_columns + columns - u_columns
        value = x[row * columns + column]
        if column > 0:
            present = not weighted or weights[row] > np.float32(0)
            value = np.float32(np.float64(value) / r[sets[row]]) if present else np.float32(0)
        u[i] = value


@kernel("f4* f8* f8 i8 i8 f4*", threads=THREADS)
def _shift(
    y,  # (S, columns)
    r,  # (S,)
    factor,
    columns,  # K
    size,  # of y
    shifted,  # (S, columns)
):
    i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if i < size:
        shifted[i] = np.float32(np.float64(y[i]) + factor * math.log(r[i // columns]))


@kernel("f4* f4* f8* f8* i4* f4* i4 i8 i8 i8 f4*", threads=THREADS)
def _divide_backward(
    du,  # (T, columns)
    u,  # (T, u_columns)
    r,  # (S,)
    shares,  # (S,): (r dr − U) / (K W)
    sets,  # (T,)
    weights,  # (T,), if weighted
    weighted,
    columns,  # 1 + K
    u_columns,  # 1 + K or K
    size,  # of dx
    dx,  # (T, columns)
):
    i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if i < size:
        row = i // columns
        column = i % columns
        value = du[i]
        if column > 0:
            s = sets[row]
            w = np.float64(weights[row]) if weighted else np.float64(1)
            along = w * shares[s] * np.float64(u[(row + 1) * u_columns + column - columns])
            value = np.float32((np.float64(value) + along) / r[s])
        dx[i] = value
