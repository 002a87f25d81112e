"""The angular layer; formulas and derivation in ``kernels/reference/angular.py``.

What this twin does differently: m and Z, and on the way back G = Σ_n g_n and dQ, come from one pooling, in the two
passes of ``pooling.py`` (`pool_harmonics`). The product with W_self is that of the equivariant layer; E Q is added to
what it has written, before ReLU, and so is E dZ on the way back.
"""

import math

import numpy as np

from fastperm.kernels.cuda import equivariant
from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel, xp
from fastperm.kernels.cuda.copying import copied
from fastperm.kernels.cuda.equivariant import layer_inputs, layer_parameters
from fastperm.kernels.cuda.offsets import on_device
from fastperm.kernels.cuda.parts import add_parts, parts_of
from fastperm.kernels.cuda.pooling import (
    PARTIAL_ROWS,
    THREADS,
    divisors,
    finish,
    mask,
    partial_sums,
    row_scales,
    sets_of_rows,
)
from fastperm.kernels.cuda.product import BLOCKS, NO_POOL
from fastperm.kernels.cuda.vectors import relu

# Harmonics that a thread sums at a time: x is read once for all of them.
HELD = 4 if SIMULATED else 8
# Filter gradients are cut into parts like xᵀ g (``product.py``), but none of fewer sets.
LEAST_SETS = 2 if SIMULATED else 32
ROOT = math.sqrt(2.0)


def split_angles(
    x,  # (T, K_0), or (T, 1 + K_0) if there are orders
    orders,  # M
):
    """Do what ``split_angles`` of the reference does, by launches alone."""
    if orders == 0:
        return None, x
    rows, columns = x.shape
    E = xp().empty((rows, 2 * orders), np.float32)
    angular_basis(copied(x, (rows,), (columns,)), E=E)
    return E, copied(x, (rows, columns - 1), (columns, 1), start=1)


def angular_basis(
    angles,  # (T,), in radians
    *,
    E,  # (T, 2M)
):
    rows, harmonics = E.shape
    _angular_basis(-(-rows // THREADS), angles, rows, harmonics // 2, E)


def angular_basis_backward(
    dE,  # (T, 2M)
    E,  # (T, 2M)
    *,
    dangles,  # (T,), overwritten
):
    rows, harmonics = E.shape
    _angular_basis_backward(-(-rows // THREADS), dE, E, rows, harmonics // 2, dangles)


def angular_filter(
    Z,  # (2M, S, K_in)
    A,  # (M, K_in, K_out)
    B,  # (M, K_in, K_out)
    *,
    Q,  # (2M, S, K_out)
):
    orders, K_in, K_out = A.shape
    units = orders * Z.shape[1] * K_out
    _angular_filter(-(-units // THREADS), Z, A, B, orders, Z.shape[1], K_in, K_out, Q)


def angular_forward(
    x,  # (T, K_in)
    E,  # (T, 2M)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    b,  # (K_out,)
    A,  # (M, K_in, K_out)
    B,  # (M, K_in, K_out)
    aggregate,  # "mean" or "sum"
    activation,  # "relu" or "identity"
    *,
    y,  # (T, K_out)
    m,  # (S, K_in)
    Z,  # (2M, S, K_in)
):
    offsets = on_device(offsets)
    sets = sets_of_rows(offsets, len(x))
    m[:], Z[:] = pool_harmonics(x, E, offsets, sets, len(m), weights, aggregate, divisors(offsets, weights, sets))
    layer_forward(x, E, m, Z, sets, W_self, W_pool, b, A, B, y, relu=activation == "relu")


def angular_backward(
    dy,  # (T, K_out)
    x,  # (T, K_in)
    E,  # (T, 2M)
    y,  # (T, K_out)
    m,  # (S, K_in)
    Z,  # (2M, S, K_in)
    offsets,  # (S + 1,)
    weights,  # (T,) or None
    W_self,  # (K_in, K_out)
    W_pool,  # (K_in, K_out)
    A,  # (M, K_in, K_out)
    B,  # (M, K_in, K_out)
    aggregate,  # "mean" or "sum"
    activation,  # "relu" or "identity"
    *,
    dx,  # (T, K_in), overwritten; None where nobody needs it
    dE,  # (T, 2M), accumulated, since all layers share E; None where nobody needs it
    dW_self,  # (K_in, K_out), accumulated
    dW_pool,  # (K_in, K_out), accumulated
    db,  # (K_out,), accumulated
    dA,  # (M, K_in, K_out), accumulated
    dB,  # (M, K_in, K_out), accumulated
):
    offsets = on_device(offsets)
    sets = sets_of_rows(offsets, len(x))
    scales = None if dx is None and dE is None else row_scales(offsets, weights, sets, aggregate)
    g = mask(dy, y) if activation == "relu" else dy
    layer_backward(
        *(g, x, E, m, Z, offsets, weights, scales, sets, W_self, W_pool, A, B, aggregate),
        *(dx, dE, dW_self, dW_pool, db, dA, dB),
    )


def pool_harmonics(
    x,  # (T, K)
    E,  # (T, 2M)
    offsets,  # (S + 1,), or T where all rows are one set
    sets,  # (T,), or None where all rows are one set
    n_sets,  # S
    weights,  # (T,) or None
    pool,  # "mean" or "sum"
    totals=None,  # (S,) or None: W_s, for a mean of weighted elements
):
    """Return the pooled vectors (S, K) of x, and its harmonics (2M, S, K)."""
    (rows, columns), harmonics = x.shape, E.shape[1]
    partials = partial_sums(rows, n_sets, (1 + harmonics) * columns)
    units = -(-rows // PARTIAL_ROWS) * -(-harmonics // HELD) * columns
    flags = (sets is not None, weights is not None)
    _harmonic_partials(-(-units // THREADS), x, E, sets, weights, *flags, rows, columns, harmonics, partials)
    sums = xp().empty((n_sets, (1 + harmonics) * columns), np.float32)
    finish(partials, offsets, pool, totals, sums)
    both = copied(sums, (1 + harmonics, n_sets, columns), (columns, (1 + harmonics) * columns, 1))
    return both[0], both[1:]


def layer_forward(x, E, m, Z, sets, W_self, W_pool, b, A, B, y, *, relu=True, precision="float32"):
    """Write y (T, K_out), given m (S, K_in) and Z (2M, S, K_in)."""
    equivariant.layer_forward(x, m, sets, None, W_self, W_pool, b, NO_POOL, y, relu=False, precision=precision)
    Q = xp().empty((len(Z), len(m), b.size), np.float32)
    angular_filter(Z, A, B, Q=Q)
    add_harmonics(E, Q, sets, y, relu=relu)


def layer_backward(
    g, x, E, m, Z, offsets, weights, scales, sets, W_self, W_pool, A, B, aggregate,
    dx, dE, dW_self, dW_pool, db, dA, dB, *, masked=False, precision="float32",
):  # fmt: skip
    """Do what `angular_backward` does, for g (T, K_out); ``masked`` makes dx zero where x, a ReLU, is not positive."""
    G, dQ = pool_harmonics(g, E, offsets, sets, len(m), None, "sum")
    layer_parameters(g, G, x, m, dW_self, dW_pool, db, precision=precision)
    _add_filter_gradients(Z, dQ, dA, dB)
    if dx is None and dE is None:
        return
    dZ = xp().empty(Z.shape, np.float32)
    angular_filter(dQ, *_turned_filters(A, B), Q=dZ)
    if dx is not None:
        layer_inputs(g, G, x, m, offsets, weights, scales, sets, W_self, W_pool, aggregate, dx, precision=precision)
        add_harmonics(E, dZ, sets, dx, scales=scales, masked_by=x if masked else None)
    if dE is not None:
        Q = xp().empty(dQ.shape, np.float32)
        angular_filter(Z, A, B, Q=Q)
        _add_harmonics_backward(g, Q, sets, None, dE)
        _add_harmonics_backward(x, dZ, sets, scales, dE)


def add_harmonics(
    E,  # (T, 2M)
    Q,  # (2M, S, K)
    sets,  # (T,), or None where all rows are one set
    out,  # (T, K): gets E Q added
    *,
    scales=None,  # (T,): what E Q is multiplied by
    relu=False,
    masked_by=None,  # (T, K): then out is zero where this is not positive
):
    harmonics, n_sets, columns = Q.shape
    flags = (sets is not None, scales is not None, relu, masked_by is not None)
    sizes = (len(out), columns, harmonics, n_sets)
    _add_harmonics(-(-out.size // THREADS), E, Q, sets, scales, masked_by, *flags, *sizes, out)


def _add_harmonics_backward(x, Q, sets, scales, dE):
    """Add scale_n x_n Qᵀ to dE (T, 2M), for x (T, K) and Q (2M, S, K)."""
    harmonics, n_sets, columns = Q.shape
    sizes = (len(x), columns, harmonics, n_sets)
    _harmonics_backward(-(-dE.size // THREADS), x, Q, sets, scales, scales is not None, *sizes, dE)


def _turned_filters(A, B):
    """Return the filters of the way back, Aᵀ and −Bᵀ, (M, K_out, K_in)."""
    orders, K_in, K_out = A.shape
    turned = (orders, K_out, K_in), (K_in * K_out, 1, K_out)
    return copied(A, *turned), copied(B, *turned, negated=True)


def _add_filter_gradients(Z, dQ, dA, dB):
    n_sets, size = Z.shape[1], dA.size
    parts, sets_part = parts_of(n_sets, BLOCKS // -(-size // THREADS), LEAST_SETS)
    own = xp().empty((2, parts, size), np.float32)
    _filter_gradients(-(-parts * size // THREADS), Z, dQ, *dA.shape, n_sets, sets_part, own[0], own[1])
    add_parts(own[0], dA)
    add_parts(own[1], dB)


@kernel("f4* i8 i8 f4*", threads=THREADS)
def _angular_basis(
    angles,  # (T,)
    rows,  # T
    orders,  # M
    E,  # (T, 2M)
):
    row = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if row < rows:
        angle = np.float64(angles[row])
        cosine = math.cos(angle)
        sine = math.sin(angle)
        c = ROOT * cosine
        s = ROOT * sine
        place = 2 * orders * row
        for m in range(orders):
            E[place + m] = np.float32(c)
            E[place + orders + m] = np.float32(s)
            # By one angle further: in float64 the error stays below M roundings.
            turned = c * cosine - s * sine
            s = s * cosine + c * sine
            c = turned


@kernel("f4* f4* i8 i8 f4*", threads=THREADS)
def _angular_basis_backward(
    dE,  # (T, 2M)
    E,  # (T, 2M)
    rows,  # T
    orders,  # M
    dangles,  # (T,)
):
    row = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if row < rows:
        total = np.float32(0)
        for m in range(orders):
            c = 2 * orders * row + m
            s = c + orders
            total += np.float32(m + 1) * (E[c] * dE[s] - E[s] * dE[c])
        dangles[row] = total


@kernel("f4* f4* i4* f4* i4 i4 i8 i8 i8 f4*", threads=THREADS)
def _harmonic_partials(
    x,  # (T, K)
    E,  # (T, 2M)
    sets,  # (T,), if with_sets
    weights,  # (T,), if weighted
    with_sets,
    weighted,
    rows,  # T
    columns,  # K
    harmonics,  # 2M
    partials,  # (G + S − 1, 1 + 2M, K): sums of x, and of E ⊗ x
):
    """Do the first pass of a pooling (``pooling.py``)."""
    sums = cuda.local.array(HELD, np.float32)
    # Neighbouring threads have neighbouring columns.
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    column = unit % columns
    shares = (harmonics + HELD - 1) // HELD
    first_harmonic = unit // columns % shares * HELD
    group = unit // columns // shares
    first = group * PARTIAL_ROWS
    if first < rows:
        last = min(first + PARTIAL_ROWS, rows)
        s = np.int64(sets[first]) if with_sets else np.int64(0)
        total = np.float32(0)
        for i in range(HELD):
            sums[i] = np.float32(0)
        for row in range(first, last):
            value = x[row * columns + column]
            if weighted:
                value *= weights[row]
            total += value
            for i in range(HELD):
                if first_harmonic + i < harmonics:
                    sums[i] += value * E[row * harmonics + first_harmonic + i]
            following = np.int64(sets[row + 1]) if with_sets and row + 1 < last else s
            if row + 1 == last or following != s:
                start = (group + s) * (1 + harmonics)
                if first_harmonic == 0:
                    partials[start * columns + column] = total
                for i in range(HELD):
                    if first_harmonic + i < harmonics:
                        partials[(start + 1 + first_harmonic + i) * columns + column] = sums[i]
                    sums[i] = np.float32(0)
                total = np.float32(0)
                s = following


@kernel("f4* f4* f4* i8 i8 i8 i8 f4*", threads=THREADS)
def _angular_filter(
    Z,  # (2M, S, K_in)
    A,  # (M, K_in, K_out)
    B,  # (M, K_in, K_out)
    orders,  # M
    n_sets,  # S
    K_in,
    K_out,
    Q,  # (2M, S, K_out)
):
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    column = unit % K_out
    row = unit // K_out  # of M S
    below = orders * n_sets
    if row < below:
        place = row // n_sets * K_in * K_out + column
        cosine = np.float32(0)
        sine = np.float32(0)
        for k in range(K_in):
            c = Z[row * K_in + k]
            d = Z[(below + row) * K_in + k]
            a = A[place + k * K_out]
            b = B[place + k * K_out]
            cosine += c * a - d * b
            sine += d * a + c * b
        Q[row * K_out + column] = cosine
        Q[(below + row) * K_out + column] = sine


@kernel("f4* f4* i4* f4* f4* i4 i4 i4 i4 i8 i8 i8 i8 f4*", threads=THREADS)
def _add_harmonics(
    E,  # (T, 2M)
    Q,  # (2M, S, K)
    sets,  # (T,), if with_sets
    scales,  # (T,), if scaled
    masked_by,  # (T, K), if masked
    with_sets,
    scaled,
    with_relu,
    masked,
    rows,  # T
    columns,  # K
    harmonics,  # 2M
    n_sets,  # S
    out,  # (T, K), added to
):
    zero = np.float32(0)
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    column = unit % columns
    row = unit // columns
    if row < rows:
        s = np.int64(sets[row]) if with_sets else np.int64(0)
        added = zero
        for h in range(harmonics):
            added += E[row * harmonics + h] * Q[(h * n_sets + s) * columns + column]
        z = out[unit] + (scales[row] * added if scaled else added)
        if with_relu:
            z = relu(z)
        if masked:
            z = z if masked_by[unit] > zero else zero
        out[unit] = z


@kernel("f4* f4* i4* f4* i4 i8 i8 i8 i8 f4*", threads=THREADS)
def _harmonics_backward(
    x,  # (T, K)
    Q,  # (2M, S, K)
    sets,  # (T,)
    scales,  # (T,), if scaled
    scaled,
    rows,  # T
    columns,  # K
    harmonics,  # 2M
    n_sets,  # S
    dE,  # (T, 2M), added to
):
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    h = unit % harmonics
    row = unit // harmonics
    if row < rows:
        place = (h * n_sets + np.int64(sets[row])) * columns
        added = np.float32(0)
        for k in range(columns):
            added += x[row * columns + k] * Q[place + k]
        dE[unit] += scales[row] * added if scaled else added


@kernel("f4* f4* i8 i8 i8 i8 i8 f4* f4*", threads=THREADS)
def _filter_gradients(
    Z,  # (2M, S, K_in)
    dQ,  # (2M, S, K_out)
    orders,  # M
    K_in,
    K_out,
    n_sets,  # S
    sets_part,  # of each part
    dA,  # (parts, M, K_in, K_out)
    dB,  # (parts, M, K_in, K_out)
):
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    j = unit % K_out
    k = unit // K_out % K_in
    order = unit // K_out // K_in % orders
    first = unit // K_out // K_in // orders * sets_part
    if first < n_sets:
        below = orders * n_sets
        of_A = np.float32(0)
        of_B = np.float32(0)
        for row in range(order * n_sets + first, order * n_sets + min(first + sets_part, n_sets)):
            c = Z[row * K_in + k]
            d = Z[(below + row) * K_in + k]
            p = dQ[row * K_out + j]
            r = dQ[(below + row) * K_out + j]
            of_A += c * p + d * r
            of_B += c * r - d * p
        dA[unit] = of_A
        dB[unit] = of_B
