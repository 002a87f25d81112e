"""The angular layer; formula and derivation in ``kernels/reference/angular.py``.

What this twin does differently: the harmonics of the angles are 2M further columns of the features, and the filtered
ones of the set, Q, 2M further rows of W_self, so that a layer is one product; on the way back 2M further columns of the
gradient, and dZ further rows of W_selfᵀ. Rows are taken block by block, with both side by side, while they are in the
core's cache. For whole sets in lanes see ``deep_set.py``, which shares what one set's filters do.

Cosines and sines are our own: libm's took as long as a layer of the prediction, 25 ns an angle, these 2.
"""

import math
from itertools import pairwise

import numpy as np

from fastperm.kernels.cpu.compiling import jit, subroutine
from fastperm.kernels.cpu.dense import rows_forward
from fastperm.kernels.cpu.equivariant import BLOCK, FLOORS, mask, mean_scales
from fastperm.kernels.cpu.pooling import (
    CODES,
    MEAN,
    SUM,
    divisor,
    pool_large_set,
    pool_set,
    total_weight,
    weights_or_empty,
)
from fastperm.kernels.cpu.product import add_outer, product, product_accumulate, tiles, vector_product
from fastperm.kernels.cpu.workers import add_parts, large_sets, pieces, run, small_chunks, task

# Angles of rows that are taken together.
ANGLES = 64
# π/2 in three parts of 33 bits and the rest, and the polynomials for sine and cosine up to π/4: those of fdlibm (Sun
# Microsystems 1993). Up to LARGEST, multiples of the first two parts are exact.
HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
S1, S2, S3 = -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04
S4, S5, S6 = 2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10
C1, C2, C3 = 4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05
C4, C5, C6 = -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11
LARGEST = 1e6


def angular_basis(
    angles,  # (T,), in radians
    *,
    E,  # (T, 2M)
):
    run([task(basis_rows, *ends, angles, E) for ends in pairwise(pieces(len(angles)))])


def angular_basis_backward(
    dE,  # (T, 2M)
    E,  # (T, 2M)
    *,
    dangles,  # (T,), overwritten
):
    run([task(_basis_backward, *ends, dE, E, dangles) for ends in pairwise(pieces(len(E)))])


def angular_filter(
    Z,  # (2M, S, K_in)
    A,  # (M, K_in, K_out)
    B,  # (M, K_in, K_out)
    *,
    Q,  # (2M, S, K_out)
):
    for s in range(Z.shape[1]):
        own = np.empty((len(Q), Q.shape[2]), Q.dtype)
        task(filter_set, np.ascontiguousarray(Z[:, s]), A, B, own)()
        Q[:, s] = own


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
    weights = weights_or_empty(weights, x.dtype)
    code, floor = CODES[aggregate], x.dtype.type(FLOORS[activation])
    inputs = (tiles(x.dtype), x, E, offsets, weights, W_self, W_pool, b, A, B, code, floor)
    run([task(_forward, *sets, *inputs, y, m, Z) for sets in small_chunks(offsets, _widest(W_self, E))])
    for s in large_sets(offsets, _widest(W_self, E)):
        first, last = offsets[s], offsets[s + 1]
        bounds = first + pieces(last - first)
        pool_large_set(x, weights, first, last, code, m[s])
        sums = np.zeros((len(bounds) - 1, *Z[:, s].shape))
        own = zip(pairwise(bounds), sums, strict=True)
        run([task(add_harmonics, *ends, tiles(x.dtype), x, E, weights, part) for ends, part in own])
        Z[:, s] = sums.sum(axis=0) / divisor(weights, first, last, code)
        c, Q = np.empty((1, b.size), b.dtype), np.empty((len(Z), 1, b.size), b.dtype)
        rows_forward(m[s : s + 1], W_pool, b, -np.inf, c)
        angular_filter(Z[:, s : s + 1], A, B, Q=Q)
        stack = np.concatenate([W_self, Q[:, 0]])
        run([task(add_rows, *ends, tiles(x.dtype), x, E, stack, c[0], floor, y) for ends in pairwise(bounds)])


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
    weights = weights_or_empty(weights, x.dtype)
    code, relu = CODES[aggregate], activation == "relu"
    matrices = (np.ascontiguousarray(W_self.T), np.ascontiguousarray(W_pool.T), A, B, *_turned_filters(A, B))
    wanted = (x[:0] if dx is None else dx, E[:0] if dE is None else dE)
    totals = (dW_self, dW_pool, db, dA, dB)
    chunks = small_chunks(offsets, _widest(W_self, E))
    parts = [np.zeros((len(chunks), *total.shape), total.dtype) for total in totals]
    inputs = (tiles(x.dtype), dy, x, E, y, m, Z, offsets, weights, *matrices, code, relu)
    run([task(_backward, *sets, *inputs, *wanted, *own) for sets, *own in zip(chunks, *parts, strict=True)])
    for part, total in zip(parts, totals, strict=True):
        add_parts(part, total)
    for s in large_sets(offsets, _widest(W_self, E)):
        bounds = list(pairwise(offsets[s] + pieces(offsets[s + 1] - offsets[s])))
        set_inputs = (dy, x, E, y, m[s], np.ascontiguousarray(Z[:, s]), weights, *matrices, code, relu)
        _large_set_backward(*(bounds, *set_inputs, *wanted, *totals))


def _widest(W_self, E):
    """Return the width of the widest activation of a layer, harmonics included."""
    return max(W_self.shape) + E.shape[1]


def _large_set_backward(
    bounds, dy, x, E, y, m, Z, weights, W_self_T, W_pool_T, A, B, A_T, B_T, aggregate, relu,
    dx, dE, dW_self, dW_pool, db, dA, dB,
):  # fmt: skip
    K_out, K_in = W_self_T.shape
    sums, parts = np.zeros((len(bounds), 1 + len(Z), K_out)), np.zeros((len(bounds), *dW_self.shape), dW_self.dtype)
    own = zip(bounds, parts, sums, strict=True)
    run(
        [
            task(_piece_parameters, *ends, tiles(x.dtype), dy, x, E, y, relu, part, total[0], total[1:])
            for ends, part, total in own
        ]
    )
    add_parts(parts, dW_self)
    G, dQ = np.split(sums.sum(axis=0).astype(dy.dtype), [1])
    weight = divisor(weights, bounds[0][0], bounds[-1][1], aggregate)
    back, dm, forth = (np.empty(shape, dy.dtype) for shape in ((K_out + len(Z), K_in), K_in, (K_out + K_in, len(Z))))
    gradients = (dW_pool, db, dA, dB)
    task(_set_gradients, G[0], dQ, m, Z, weight, W_self_T, W_pool_T, A, B, A_T, B_T, *gradients, back, dm, forth)()
    if dx.size or dE.size:
        inputs = (tiles(x.dtype), dy, x, E, y, weights, relu, back, dm, forth)
        run([task(_piece_inputs, *ends, *inputs, dx, dE) for ends in bounds])


def _turned_filters(A, B):
    """Return the filters of the way back, Aᵀ and −Bᵀ, (M, K_out, K_in)."""
    return np.ascontiguousarray(A.swapaxes(1, 2)), np.ascontiguousarray(-B.swapaxes(1, 2))


@subroutine
def _cos_sin(angles, cosine, sine):
    """Write cosine and sine, float64, in a loop that takes several angles at a time."""
    largest = 0.0
    for i in range(angles.size):
        largest = max(largest, abs(np.float64(angles[i])))
    if largest > LARGEST:
        for i in range(angles.size):
            cosine[i], sine[i] = math.cos(np.float64(angles[i])), math.sin(np.float64(angles[i]))
        return
    for i in range(angles.size):
        angle = np.float64(angles[i])
        quarters = np.rint(angle * (2 / np.pi))
        r = ((angle - quarters * HALF_PI[0]) - quarters * HALF_PI[1]) - quarters * HALF_PI[2]
        z = r * r
        s = r + r * z * (S1 + z * (S2 + z * (S3 + z * (S4 + z * (S5 + z * S6)))))
        c = 1 - z * 0.5 + z * z * (C1 + z * (C2 + z * (C3 + z * (C4 + z * (C5 + z * C6)))))
        turn = quarters - 4 * np.floor(quarters * 0.25)
        odd = turn == 1 or turn == 3
        cosine[i] = (s if odd else c) * (-1 if turn == 1 or turn == 2 else 1)
        sine[i] = (c if odd else s) * (-1 if turn >= 2 else 1)


@subroutine
def harmonics(angles, orders, stride, out):
    """Write the columns of E as rows of ``out``, which is flat, ``stride`` apart."""
    n = angles.size
    cosine, sine, c, s = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    _cos_sin(angles, cosine, sine)
    root = np.sqrt(2.0)
    for i in range(n):
        c[i], s[i] = root * cosine[i], root * sine[i]
    for m in range(orders):
        first, second = out[m * stride : m * stride + n], out[(orders + m) * stride : (orders + m) * stride + n]
        for i in range(n):
            first[i] = c[i]
        for i in range(n):
            second[i] = s[i]
        for i in range(n):
            # By one angle further: in float64 the error stays below M roundings.
            real = c[i] * cosine[i] - s[i] * sine[i]
            s[i] = s[i] * cosine[i] + c[i] * sine[i]
            c[i] = real


@jit
def basis_rows(first, last, angles, E):
    """Write these rows of E (T, 2M)."""
    rows = np.empty(E.shape[1] * ANGLES, E.dtype)
    for start in range(first, last, ANGLES):
        n = min(ANGLES, last - start)
        harmonics(angles[start : start + n], E.shape[1] // 2, ANGLES, rows)
        for i in range(n):
            for h in range(E.shape[1]):
                E[start + i, h] = rows[h * ANGLES + i]


@jit
def _basis_backward(first, last, dE, E, dangles):
    M = E.shape[1] // 2
    for n in range(first, last):
        total = 0.0
        for m in range(M):
            total += (m + 1) * (E[n, m] * dE[n, M + m] - E[n, M + m] * dE[n, m])
        dangles[n] = total


@jit
def filter_set(Z, A, B, Q):
    """Write Q (2M, K_out) for Z (2M, K_in) of one set; with the turned filters, dZ for dQ."""
    M, K_in, K_out = A.shape
    for m in range(M):
        cosine, sine = Q[m], Q[M + m]
        for j in range(K_out):
            cosine[j] = 0
            sine[j] = 0
        for k in range(K_in):
            c, d = Z[m, k], Z[M + m, k]
            if c == 0 and d == 0:
                continue
            a, b = A[m, k], B[m, k]
            for j in range(K_out):
                cosine[j] += c * a[j] - d * b[j]
                sine[j] += d * a[j] + c * b[j]


@subroutine
def add_filter_gradients(Z, dQ, dA, dB):
    """Add what dQ (2M, K_out) of one set sends to the filters."""
    M, K_in, K_out = dA.shape
    for m in range(M):
        P, R = dQ[m], dQ[M + m]
        for k in range(K_in):
            c, d = Z[m, k], Z[M + m, k]
            if c == 0 and d == 0:
                continue
            a, b = dA[m, k], dB[m, k]
            for j in range(K_out):
                a[j] += c * P[j] + d * R[j]
                b[j] += c * R[j] - d * P[j]


@jit
def add_harmonics(first, last, tiles, x, E, weights, sums):
    """Add Σ w_n E_nᵀ x_n over these rows to sums (2M, K_in), float64."""
    H, K = sums.shape
    weighted, part = np.empty((BLOCK if weights.size else 0, H), x.dtype), np.empty((H, K), x.dtype)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        own = E[start:stop]
        if weights.size:
            own = weighted[: stop - start]
            for n in range(stop - start):
                for h in range(H):
                    own[n, h] = weights[start + n] * E[start + n, h]
        part[:] = 0
        product_accumulate(tiles, own, x[start:stop], part)
        for h in range(H):
            for k in range(K):
                sums[h, k] += part[h, k]


@jit
def add_rows(first, last, tiles, x, E, stack, c, floor, y):
    """Write max(c + [x, E] stack, floor) of these rows to y."""
    K_in, H = x.shape[1], E.shape[1]
    beside = np.empty((BLOCK, K_in + H), x.dtype)
    one, nowhere = np.ones(1, x.dtype), np.empty(c.size)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        side_by_side(x, one, E, one, start, stop, beside)
        product(tiles, beside[: stop - start], stack, c, one, y[start:stop], floor, nowhere, one)


@subroutine
def side_by_side(a, a_weights, b, b_weights, first, last, out):
    """Write the rows of a and b, times their weights (or 1, for a single weight), side by side."""
    K = a.shape[1]
    for n in range(last - first):
        v = a_weights[first + n] if a_weights.size > 1 else a_weights[0]
        w = b_weights[first + n] if b_weights.size > 1 else b_weights[0]
        for k in range(K):
            out[n, k] = v * a[first + n, k]
        for k in range(b.shape[1]):
            out[n, K + k] = w * b[first + n, k]


@jit
def _forward(first_set, last_set, tiles, x, E, offsets, weights, W_self, W_pool, b, A, B, aggregate, floor, y, m, Z):
    K_in, K_out = W_self.shape
    H = E.shape[1]
    c, sums, own = np.empty(K_out, x.dtype), np.empty((H, K_in)), np.empty((H, K_in), x.dtype)
    stack = np.empty((K_in + H, K_out), x.dtype)
    for k in range(K_in):
        for j in range(K_out):
            stack[k, j] = W_self[k, j]
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        pool_set(x, weights, first, last, aggregate, m[s])
        sums[:] = 0
        add_harmonics(first, last, tiles, x, E, weights, sums)
        weight = total_weight(weights, first, last) if aggregate == MEAN else 1.0
        for h in range(H):
            for k in range(K_in):
                own[h, k] = sums[h, k] / weight
                Z[h, s, k] = own[h, k]
        filter_set(own, A, B, stack[K_in:])
        vector_product(m[s], W_pool, b, c)
        add_rows(first, last, tiles, x, E, stack, c, floor, y)


@jit
def _backward(
    first_set, last_set, tiles, dy, x, E, y, m, Z, offsets, weights, W_self_T, W_pool_T, A, B, A_T, B_T, aggregate,
    relu, dx, dE, dW_self, dW_pool, db, dA, dB,
):  # fmt: skip
    K_out, K_in = W_self_T.shape
    H = E.shape[1]
    G, dQ = np.empty(K_out), np.empty((H, K_out))
    rounded_G, rounded_dQ, own = np.empty(K_out, x.dtype), np.empty((H, K_out), x.dtype), np.empty((H, K_in), x.dtype)
    back, dm = np.empty((K_out + H, K_in), x.dtype), np.empty(K_in, x.dtype)
    forth = np.empty((K_out + K_in, H), x.dtype)
    for s in range(first_set, last_set):
        first, last = offsets[s], offsets[s + 1]
        G[:] = 0
        dQ[:] = 0
        _piece_parameters(first, last, tiles, dy, x, E, y, relu, dW_self, G, dQ)
        for j in range(K_out):
            rounded_G[j] = G[j]
            for h in range(H):
                rounded_dQ[h, j] = dQ[h, j]
        for h in range(H):
            for k in range(K_in):
                own[h, k] = Z[h, s, k]
        weight = total_weight(weights, first, last) if aggregate == MEAN else 1.0
        _set_gradients(
            rounded_G, rounded_dQ, m[s], own, weight, W_self_T, W_pool_T, A, B, A_T, B_T, dW_pool, db, dA, dB, back, dm,
            forth,
        )  # fmt: skip
        if dx.size or dE.size:
            _piece_inputs(first, last, tiles, dy, x, E, y, weights, relu, back, dm, forth, dx, dE)


@jit
def _set_gradients(
    G, dQ, m, Z, weight, W_self_T, W_pool_T, A, B, A_T, B_T, dW_pool, db, dA, dB, back, dm, forth,
):  # fmt: skip
    """Add what one set sends to its parameters, but W_self, and write what its rows send to theirs.

    Those are ``back`` [W_selfᵀ; dZ / W] (K_out + 2M, K_in), ``dm`` / W (K_in,), and ``forth`` [Qᵀ; dZᵀ / W] (K_out +
    K_in, 2M); ``weight`` is W, or 1 for the sum.
    """
    K_out, K_in = W_self_T.shape
    for j in range(K_out):
        db[j] += G[j]
        for k in range(K_in):
            back[j, k] = W_self_T[j, k]
    add_outer(m, G, dW_pool)
    add_filter_gradients(Z, dQ, dA, dB)
    dm[:] = 0
    vector_product(G, W_pool_T, dm, dm)
    filter_set(dQ, A_T, B_T, back[K_out:])
    Q = np.empty_like(dQ)
    filter_set(Z, A, B, Q)
    for k in range(K_in):
        dm[k] /= weight
    for h in range(len(dQ)):
        for k in range(K_in):
            back[K_out + h, k] /= weight
            forth[K_out + k, h] = back[K_out + h, k]
        for j in range(K_out):
            forth[j, h] = Q[h, j]


@jit
def _piece_parameters(first, last, tiles, dy, x, E, y, relu, dW_self, G, dQ):
    """Add what these rows send to W_self, to G (K_out,) and to dQ (2M, K_out); the last two are float64."""
    K_out = G.size
    g, block_sum = np.empty((min(BLOCK, last - first), K_out), dy.dtype), np.empty(K_out)
    no_weights = np.empty(0, dy.dtype)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        n = stop - start
        mask(dy, y, start, stop, relu, g)
        pool_set(g, no_weights, 0, n, SUM, block_sum)
        for k in range(K_out):
            G[k] += block_sum[k]
        product_accumulate(tiles, x[start:stop], g[:n], dW_self)
        add_harmonics(0, n, tiles, g[:n], E[start:stop], no_weights, dQ)


@jit
def _piece_inputs(first, last, tiles, dy, x, E, y, weights, relu, back, dm, forth, dx, dE):
    """Write dx, and add to dE, of these rows, where they are wanted."""
    H, K_in = E.shape[1], x.shape[1]
    K_out = dy.shape[1]
    size = min(BLOCK, last - first)
    g, scales = np.empty((size, K_out), dy.dtype), np.empty(size, dy.dtype)
    beside_E, beside_x = np.empty((size, K_out + H), dy.dtype), np.empty((size, K_out + K_in), dy.dtype)
    own = np.empty((size, H), dy.dtype)
    one, nowhere, nothing = np.ones(1, dy.dtype), np.empty(max(K_in, H)), np.zeros(H, dy.dtype)
    no_floor = dy.dtype.type(-np.inf)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        n = stop - start
        mask(dy, y, start, stop, relu, g)
        mean_scales(weights, start, stop, SUM, scales)
        w = one if weights.size == 0 else scales[:n]
        if dx.size:
            side_by_side(g[:n], one, E[start:stop], w, 0, n, beside_E)
            product(tiles, beside_E[:n], back, dm, w, dx[start:stop], no_floor, nowhere, one)
        if dE.size:
            side_by_side(g[:n], one, x[start:stop], w, 0, n, beside_x)
            product(tiles, beside_x[:n], forth, nothing, one, own[:n], no_floor, nowhere, one)
            for i in range(n):
                for h in range(H):
                    dE[start + i, h] += own[i, h]
