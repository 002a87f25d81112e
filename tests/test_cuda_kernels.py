"""The cuda kernels against the reference in float64: in Numba's simulator (`make test`) or on a GPU (`make gpu`).

In the simulator tiles and blocks are small, so that small cases have edges everywhere. It has to be chosen before Numba
is imported, so these tests have a process of their own.
"""

import os
import pickle
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from cases import ON_NUMPY_GPU, Case, as_dtype, brief, error, many, poisoned, to_bf16, to_tf32

import fastperm
from fastperm.kernels import reference
from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda import compiling
from fastperm.kernels.reference.deep_set import split_parameters
from fastperm.runs import Run

pytestmark = pytest.mark.cuda

HOW = ("mean", "sum", "max")
WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
# On a GPU every run has numbers of its own.
SEED = int(os.environ.get("FASTPERM_TEST_SEED", "0"))
Case = partial(Case, seed=SEED)
# Sums of at most some hundred terms in float32, at 6e-8 each.
TOLERANCE = 5e-6

# (elements per set, K_in, K_out): one element, one set, many small sets in a tile, widths of every tile and alignment.
SHAPES = (
    ((1,), 1, 1),
    ((7,), 3, 17),
    ((1, 5, 2, 9), 17, 3),
    ((3,) * 7, 4, 8),
    ((13, 1, 8), 33, 12),
    ((21,), 8, 33),
)
if not compiling.SIMULATED:
    SHAPES += (
        ((512,) * 4 + (37,), 64, 64),
        ((1000, 3, 77), 130, 33),
        ((5,) * many(300, 20), 2, 200),
        ((5000,), 32, 16),
    )
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s[0])}sets-{s[1]}to{s[2]}")


def float32(*arrays):
    return as_dtype("float32", *arrays)


def layer(kernels, case, dtype, aggregate, activation, start=0.0, inputs=True, on=None):
    """Return y, m, dx, dW_self, dW_pool, db; results were NaN before, and the gradients of parameters ``start``.

    ``on`` says which units are on in the backward pass: one at zero, up to rounding, may be on for another kernel.
    """
    x, weights, W_self, W_pool, b, dy = as_dtype(dtype, case.x, case.weights, case.W_self, case.W_pool, case.b, case.dy)
    y, m = poisoned((case.T, b.size), dtype), poisoned((case.S, x.shape[1]), dtype)
    kernels.equivariant_forward(x, case.offsets, weights, W_self, W_pool, b, aggregate, activation, y=y, m=m)
    after = y if on is None else on.astype(dtype)
    dx = poisoned(x.shape, dtype) if inputs else None
    gradients = {name: np.full(array.shape, start, dtype) for name, array in
                 (("dW_self", W_self), ("dW_pool", W_pool), ("db", b))}  # fmt: skip
    kernels.equivariant_backward(
        dy, x, after, m, case.offsets, weights, W_self, W_pool, aggregate, activation, dx=dx, **gradients
    )
    return [y, m, dx, *gradients.values()]


@WEIGHTED
@pytest.mark.parametrize("aggregate", HOW)
@ALL_SHAPES
def test_equivariant(cuda, shape, aggregate, weighted):
    case = Case(*shape, weighted)
    results = layer(cuda, case, "float32", aggregate, "relu", 0.5)
    expected = layer(reference, case, "float64", aggregate, "relu", 0.5, on=results[0] > 0)
    for found, wanted in zip(results, expected, strict=True):
        assert found.dtype == "float32"
        assert error(found, wanted) <= TOLERANCE


def test_equivariant_without_relu_and_without_gradient_of_the_input(cuda):
    case = Case((5, 3), 3, 17, weighted=True)
    found = layer(cuda, case, "float32", "mean", "identity", inputs=False)
    wanted = layer(reference, case, "float64", "mean", "identity", inputs=False)
    assert found.pop(2) is wanted.pop(2) is None
    for array, other in zip(found, wanted, strict=True):
        assert error(array, other) <= TOLERANCE


@pytest.mark.skipif(not compiling.SIMULATED, reason="the other tests use these tiles on a GPU")
def test_a_tile_of_the_size_that_a_gpu_gets(cuda, monkeypatch):
    from fastperm.kernels.cuda import pooling, product, product_finish

    monkeypatch.setattr(product, "LIBRARY", 99)
    for module in (pooling, product_finish):
        monkeypatch.setattr(module, "PARTIAL_ROWS", 32)
    monkeypatch.setattr(compiling, "KERNELS", {})
    tile = product.Tile(16, 8, 2, 2, 16)
    assert (tile.threads, tile.rows, tile.columns) == (128, 128, 64)
    kernels = {
        "plain": product._make("plain", tile, True, False),
        "turned": product._make("turned", tile, True, True),
        "transposed": product._make("transposed", tile, False, False),
    }
    monkeypatch.setattr(product, "PRODUCTS", {1 << 62: (tile, kernels)})
    monkeypatch.setattr(product, "LEAST_ROWS", 40)
    monkeypatch.setattr(product, "LIBRARY_TRANSPOSED", 99)
    case = Case((50, 1, 29), 18, 36, weighted=True)
    sets = np.repeat(np.arange(3, dtype=np.int32), case.counts)
    x, W, c, weights = float32(case.x, case.W_self, case.dy[:3], case.weights)
    y, p = poisoned(case.dy.shape, "float32"), poisoned((3, 36), "float32")
    partials = product.product(x, W, y, c=c, sets=sets, relu=True, weights=weights, code=pooling.SUM, n_sets=3)
    pooling.finish(partials, case.offsets, "sum", None, p)
    wanted = np.maximum(case.x @ case.W_self + case.dy[sets], 0)
    assert error(y, wanted) <= TOLERANCE
    assert error(p, np.add.reduceat(wanted * case.weights[:, None], case.offsets[:-1])) <= TOLERANCE

    dx, dW = poisoned(x.shape, "float32"), np.ones_like(W)
    product.product(y, W, dx, B_along_k=True, masked_by=x)
    product.add_transposed_product(x, y, dW)
    assert error(dx, np.where(case.x > 0, wanted @ case.W_self.T, 0)) <= TOLERANCE
    assert error(dW, 1 + case.x.T @ wanted) <= TOLERANCE


def angular(kernels, case, filters, dtype, aggregate, activation, start=0.5, inputs=True, on=None):
    """Return y, m, Z and all gradients as `layer` does: dE is one of those that are added to."""
    x, weights, E, dy, *matrices = as_dtype(
        dtype, case.x, case.weights, case.E, case.dy, case.W_self, case.W_pool, case.b, *filters
    )
    W_self, W_pool, b, A, B = matrices
    y, m = poisoned((case.T, b.size), dtype), poisoned((case.S, x.shape[1]), dtype)
    Z = poisoned((E.shape[1], *m.shape), dtype)
    kernels.angular_forward(x, E, case.offsets, weights, *matrices, aggregate, activation, y=y, m=m, Z=Z)
    after = y if on is None else on.astype(dtype)
    dx, dE = (poisoned(x.shape, dtype), np.full(E.shape, start, dtype)) if inputs else (None, None)
    names = ("dW_self", "dW_pool", "db", "dA", "dB")
    gradients = {name: np.full(array.shape, start, dtype) for name, array in zip(names, matrices, strict=True)}
    kernels.angular_backward(
        *(dy, x, E, after, m, Z, case.offsets, weights, W_self, W_pool, A, B, aggregate, activation),
        dx=dx,
        dE=dE,
        **gradients,
    )
    return [y, m, Z, dx, dE, *gradients.values()]


def angular_case(counts, K_in, K_out, weighted, orders):
    """Return a case with E, and its filters A and B."""
    case, generator = Case(counts, K_in, K_out, weighted), np.random.default_rng(SEED + 5)
    case.E = np.empty((case.T, 2 * orders))
    reference.angular_basis(generator.uniform(-4, 9, case.T), E=case.E)
    return case, generator.standard_normal((2, orders, K_in, K_out)) / np.sqrt(4 * orders * K_in)


ANGULAR = (
    ((1,), 1, 1, 3, "mean", "relu"),
    ((6,), 3, 17, 1, "mean", "relu"),
    ((1, 5, 2), 3, 17, 1, "sum", "identity"),
    ((2, 1), 33, 5, 1, "mean", "relu"),
    ((2, 1), 13, 12, 1, "sum", "relu"),
    ((1, 5, 2, 6), 5, 2, 3, "sum", "relu"),
    ((3,) * 5, 2, 3, 3, "mean", "identity"),
)
if not compiling.SIMULATED:
    ANGULAR += (
        ((512,) * 4 + (37,), 64, 64, 8, "mean", "relu"),
        ((1000, 3, 77), 130, 33, 5, "mean", "identity"),
        ((5,) * many(300, 20), 2, 200, 3, "sum", "relu"),
    )


@WEIGHTED
@pytest.mark.parametrize(("counts", "K_in", "K_out", "orders", "aggregate", "activation"), ANGULAR, ids=brief)
def test_angular(cuda, counts, K_in, K_out, orders, aggregate, activation, weighted):
    case, filters = angular_case(counts, K_in, K_out, weighted, orders)
    how = (aggregate, activation)
    if aggregate == "sum":  # keep numbers of size 1
        case.weights = case.w / case.counts.max() if weighted else None
    results = angular(cuda, case, filters, "float32", *how)
    expected = angular(reference, case, filters, "float64", *how, on=results[0] if activation == "relu" else None)
    largest = max(np.abs(wanted).max() for wanted in expected)
    for found, wanted in zip(results, expected, strict=True):
        assert found.dtype == "float32"
        # A set of one element sees itself at no distance: what its filters have of sines is zero, to rounding.
        own = largest if case.T == 1 else np.abs(wanted).max()
        assert np.isfinite(found).all()
        assert np.abs(found - wanted).max() <= TOLERANCE * own


def test_angular_without_gradients_of_the_input(cuda):
    case, filters = angular_case((4, 1), 3, 2, weighted=True, orders=2)
    everything = angular(cuda, case, filters, "float32", "mean", "relu")
    parameters = angular(cuda, case, filters, "float32", "mean", "relu", inputs=False)
    assert parameters[3] is parameters[4] is None
    for i in (0, 1, 2, 5, 6, 7, 8, 9):
        np.testing.assert_array_equal(parameters[i], everything[i])


@pytest.mark.parametrize("left_out", ["dx", "dE"])
def test_angular_with_one_gradient_of_the_input(cuda, left_out):
    case, filters = angular_case((4, 1), 3, 4, weighted=True, orders=2)
    y, m, Z, *wanted = angular(cuda, case, filters, "float32", "sum", "identity", start=0.0)
    found = {"dx": poisoned(case.x.shape, "float32"), "dE": np.zeros(case.E.shape, "float32"), left_out: None}
    matrices = float32(case.W_self, case.W_pool, *filters)
    names = ("dW_self", "dW_pool", "dA", "dB")
    totals = {name: np.zeros_like(array) for name, array in zip(names, matrices, strict=True)}
    dy, x, E, weights = float32(case.dy, case.x, case.E, case.weights)
    cuda.angular_backward(
        *(dy, x, E, y, m, Z, case.offsets, weights, *matrices, "sum", "identity"),
        **found,
        **totals,
        db=np.zeros(4, "float32"),
    )
    for name, array in zip(("dx", "dE"), wanted, strict=False):
        if name != left_out:
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e7, *([] if ON_NUMPY_GPU else [1e30])])  # which is a call
def test_angular_basis(cuda, size):
    angles = np.random.default_rng(SEED).uniform(-size, size, 13).astype(np.float32)
    angles[:2] = 0, np.pi / 2
    found, wanted = poisoned((13, 10), "float32"), np.empty((13, 10))
    cuda.angular_basis(angles, E=found)
    # A rounding to float32 of numbers up to √2; m θ is exact in float64, with 24 bits of θ and 3 of m.
    reference.angular_basis(angles.astype(np.float64), E=wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1.01 * 2**-24)
    dE, dangles, of_reference = (
        np.random.default_rng(SEED + 1).standard_normal((13, 10)),
        poisoned(13, "float32"),
        np.empty(13),
    )
    cuda.angular_basis_backward(*float32(dE), found, dangles=dangles)
    reference.angular_basis_backward(dE, wanted, dangles=of_reference)
    assert error(dangles, of_reference) <= TOLERANCE


@pytest.mark.parametrize(("n_sets", "orders"), [(1, 2), (5, 3)], ids=brief)
def test_angular_filter(cuda, n_sets, orders):
    generator = np.random.default_rng(SEED)
    Z, filters = generator.standard_normal((2 * orders, n_sets, 5)), generator.standard_normal((2, orders, 5, 7))
    found, wanted = poisoned((2 * orders, n_sets, 7), "float32"), np.empty((2 * orders, n_sets, 7))
    cuda.angular_filter(*float32(Z, *filters), Q=found)
    reference.angular_filter(Z, *filters, Q=wanted)
    assert error(found, wanted) <= TOLERANCE


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_nan_passes_through(cuda, activation):
    case = Case((5, 4), 3, 5, weighted=False)
    case.x[1, 2] = np.nan
    y, m = poisoned((9, 5), "float32"), poisoned((2, 3), "float32")
    arrays = float32(case.W_self, case.W_pool, case.b)
    cuda.equivariant_forward(*float32(case.x), case.offsets, None, *arrays, "max", activation, y=y, m=m)
    assert np.isnan(y[:5]).all()
    assert np.isfinite(y[5:]).all()


@pytest.mark.parametrize("aggregate", HOW)
@pytest.mark.parametrize("shape", [SHAPES[4], SHAPES[-1]], ids=brief)
def test_two_runs_have_the_same_bits(cuda, shape, aggregate):
    case = Case(*shape, weighted=True)
    for once, again in zip(*(layer(cuda, case, "float32", aggregate, "relu") for _ in range(2)), strict=True):
        np.testing.assert_array_equal(once, again)


def test_two_trainings_have_the_same_bits(cuda):
    width, set_size, n_steps = (4, 9, 2) if compiling.SIMULATED else (64, 512, many(20))
    x = np.random.default_rng(SEED).standard_normal((8, set_size, 2))
    targets = x[:, 0] + x.mean(axis=1)
    runs = []
    for _ in range(2):
        net = fastperm.DeepSet(2, width, 2, 2, seed=SEED, backend="cuda")
        optimizer = fastperm.Adam()
        losses = [fastperm.train_step(net, x, targets, optimizer) for _ in range(n_steps)]
        runs.append((losses, on_host(net.parameters.flat), net(x)))
    for once, again in zip(*runs, strict=True):
        np.testing.assert_array_equal(once, again)
    assert losses[-1] < losses[0]


@WEIGHTED
@pytest.mark.parametrize("pool", HOW)
@pytest.mark.parametrize("counts", [(1,), (9,), (1, 5, 2, 17)], ids=brief)
def test_pooling(cuda, counts, pool, weighted):
    case = Case(counts, 5, 1, weighted)
    case.x = case.x.round()  # ties for the maximum
    results = []
    for kernels, dtype in ((cuda, "float32"), (reference, "float64")):
        x, weights, dp = as_dtype(dtype, case.x, case.weights, case.dp)
        p, dx = poisoned((case.S, 5), dtype), poisoned(x.shape, dtype)
        kernels.pooling_forward(x, case.offsets, weights, pool, p=p)
        kernels.pooling_backward(dp, x, p, case.offsets, weights, pool, dx=dx)
        results.append((p, dx))
    for found, wanted in zip(*results, strict=True):
        assert error(found, wanted) <= TOLERANCE


# (elements per set, K): one element, sets that end within a group of rows, of a few blocks, and of many parts.
SCALED = (((1,), 1), ((7,), 3), ((1, 5, 2, 9), 1), ((3,) * 7, 2), ((4, 8, 1), 1), ((41, 1), 2))
if not compiling.SIMULATED:
    SCALED += (((512,) * 4 + (37,), 1), ((5,) * many(300, 20), 3), ((100_000, 1, 5000), 2))


@pytest.mark.parametrize("pool", HOW)
def test_blocks_that_finish_several_sets(cuda, pool, monkeypatch):
    from fastperm.kernels.cuda import pooling

    launches = []

    def launch(*arguments):
        launches.append(arguments)
        finish(*arguments)

    finish = pooling._finish
    monkeypatch.setattr(pooling, "_finish", launch)
    xp, rows, columns = compiling.xp(), pooling.PARTIAL_ROWS, pooling.FINISH_COLUMNS + 1
    n_sets = max(64, pooling.FINISH_BLOCKS << pooling.FINISH_HALVINGS - 1) + 1  # the last block has one
    counts = 1 + np.arange(n_sets) % 3 * rows
    counts[n_sets // 2] = 2 * rows * pooling.FINISH_LONG + 1  # a block that takes one after the other
    offsets = np.concatenate([[0], np.cumsum(counts)])
    first, last = offsets[:-1] // rows + np.arange(n_sets), (offsets[1:] - 1) // rows + np.arange(n_sets)
    partials = poisoned((-(-offsets[-1] // rows) + n_sets - 1, columns), "float32")
    generator, wanted = np.random.default_rng(SEED), []
    for own, to in zip(first, last, strict=True):
        partials[own : to + 1] = generator.integers(-9, 10, (to + 1 - own, columns))
        wanted.append((np.max if pool == "max" else np.sum)(partials[own : to + 1], 0))
    wanted = np.array(wanted)
    p = xp.asarray(poisoned(wanted.shape, "float32"))
    pooling.finish(xp.asarray(partials), xp.asarray(offsets), pool, None, p)
    (_, *_, doublings, column_blocks, _, own_columns, _) = launches[0]
    assert (doublings, column_blocks, own_columns) == (pooling.FINISH_HALVINGS, 2, columns)
    wanted = wanted / counts[:, None] if pool == "mean" else wanted
    np.testing.assert_array_equal(on_host(p), wanted.astype(np.float32))


@pytest.mark.parametrize("columns", [3, 8, 37])
@pytest.mark.parametrize("counts", [(70, 1, 29), (3, 1, 1, 8, 9, 40, 2), (64, 64)], ids=brief)
def test_products_in_memory_are_finished(cuda, counts, columns):
    from fastperm.kernels.cuda import pooling, product_finish

    xp, generator = compiling.xp(), np.random.default_rng(SEED)
    offsets, own_sets = np.concatenate([[0], np.cumsum(counts)]), np.repeat(np.arange(len(counts)), counts)

    def integers(*shape):
        return generator.integers(-3, 4, shape).astype(np.float32)

    z, other = integers(len(own_sets), columns), integers(len(own_sets), columns)
    scales, weights, c = integers(len(own_sets)), np.abs(integers(len(own_sets))), integers(len(counts), columns)
    weights[offsets[:-1]] = 1  # a maximum needs one
    sets = own_sets.astype(np.int32)
    forward, backward = (c, sets, None, None, weights), (c, sets, scales, other, None)
    for given, relu, code in (
        ((c[0], None, None, None, None), True, product_finish.NO_POOL),
        (forward, True, pooling.SUM),
        (forward, False, pooling.MAX),
        (backward, False, pooling.SUM),
        (backward, False, product_finish.NO_POOL),
    ):
        wanted = z + c[0] if given[1] is None else z + c[own_sets] * (1 if given[2] is None else scales[:, None])
        wanted = np.maximum(wanted, 0) if relu else wanted
        wanted = wanted if given[3] is None else np.where(other > 0, wanted, 0)
        out = xp.asarray(z.copy())
        pools = code != product_finish.NO_POOL
        partials = pooling.partial_sums(len(z), len(counts), columns) if pools else None
        on_device = [None if array is None else xp.asarray(array) for array in given]
        product_finish.finish_product(on_device, product_finish.flags_of(*on_device, relu, code), out, partials)
        np.testing.assert_array_equal(on_host(out), wanted)
        if pools:
            p = xp.asarray(poisoned(c.shape, "float32"))
            pooling.finish(partials, xp.asarray(offsets), "max" if code == pooling.MAX else "sum", None, p)
            w = np.ones(len(z)) if given[4] is None else weights
            if code == pooling.MAX:
                pooled = np.maximum.reduceat(np.where(w[:, None] > 0, wanted, -np.inf), offsets[:-1])
            else:
                pooled = np.add.reduceat(wanted * w[:, None], offsets[:-1])
            np.testing.assert_array_equal(on_host(p), pooled)


@pytest.mark.parametrize("positions", [True, False], ids=["positions", "values-alone"])
@WEIGHTED
@pytest.mark.parametrize(("counts", "K"), SCALED, ids=brief)
def test_root_mean_square(cuda, counts, K, weighted, positions):
    case, generator = Case(counts, 1 + K, 1, weighted), np.random.default_rng(SEED + 1)
    x, weights, du = float32(case.x, case.weights, generator.standard_normal(case.x.shape))
    x[case.w == 0, 1:] = x[case.w == 0, 1:].clip(-3, 3) * np.float32(1e38)  # beyond all numbers if it were divided
    x[-counts[-1] :, 1:] *= np.float32(1e-6)
    dscale, results = generator.standard_normal(case.S), []
    for kernels in (cuda, reference):
        u, r = poisoned((case.T, K + positions), "float32"), poisoned(case.S, "float64")
        kernels.root_mean_square_forward(x, case.offsets, weights, u=u, r=r)
        dx = poisoned(x.shape, "float32")
        kernels.root_mean_square_backward(du, u, r, dscale, case.offsets, weights, dx=dx)
        results.append((u, r, dx))
    (u, r, dx), wanted = results
    # All in float64: what differs is the order of sums, and then and when how a number is rounded to float32.
    np.testing.assert_allclose(r, wanted[1], rtol=1e-13)
    np.testing.assert_allclose(u, wanted[0], rtol=2**-22)
    assert (u[case.w == 0, positions:] == 0).all()
    bound = np.abs(du) + np.repeat(np.abs(dscale), counts)[:, None] + np.abs(du).sum() / case.S
    bound[:, 1:] /= np.repeat(r, counts)[:, None]
    assert (np.abs(dx - wanted[2]) <= 2**-22 * np.abs(wanted[2]) + 1e-12 * bound).all()
    np.testing.assert_array_equal(dx[:, 0], du[:, 0])


@pytest.mark.parametrize("sign", [1, -1])
def test_root_mean_square_shift(cuda, sign):
    generator = np.random.default_rng(SEED)
    (y,), r = float32(generator.standard_normal((3, 5))), generator.uniform(0.1, 10, 3)
    results = [poisoned(y.shape, "float32"), poisoned(y.shape, "float32")]
    for kernels, shifted in zip((cuda, reference), results, strict=True):
        kernels.root_mean_square_shift(y, r, sign, shifted=shifted)
    np.testing.assert_allclose(*results, rtol=1.2e-7, atol=1e-7)  # another way to round the last digit
    np.testing.assert_allclose(results[0], y + sign * np.log(r**2)[:, None], rtol=1e-6, atol=1e-6)


def test_copied(cuda):
    from fastperm.kernels.cuda.copying import copied

    xp = fastperm.kernels.cuda.xp
    (x,) = float32(np.random.default_rng(SEED).standard_normal((3, 4, 5)))
    there = xp.asarray(x)
    for found, wanted in (
        (copied(there, (5, 3), (1, 20), start=5), x[:, 1].T),
        (copied(there, (3, 5, 4), (20, 1, 5), negated=True), -x.swapaxes(1, 2)),
        (copied(there, (12,), (5,)), x.reshape(12, 5)[:, 0]),
        (copied(there, (4, 3, 2), (5, 20, 1), start=3), x.swapaxes(0, 1)[..., 3:]),
    ):
        np.testing.assert_array_equal(on_host(found), wanted)


def test_every_number_of_float32_has_a_scale(cuda):
    largest, least = np.finfo(np.float32).max, np.float32(1e-45)
    counts = (3, 2, 2, 1, 5)
    values = [[largest] * 3, [0, 0], [least, least], [-largest], [least, 0, 0, 0, 0]]
    weights = [[1e38] * 3, [1, 2], [1e-38, 1e-38], [1e-38], [1e-38, 6e37, 6e37, 6e37, 6e37]]
    values, weights = float32(np.concatenate(values), np.concatenate(weights))
    x, offsets = np.stack([values, values], axis=1), np.concatenate([[0], np.cumsum(counts)])
    results = []
    for kernels in (cuda, reference):
        u, r = poisoned(x.shape, "float32"), poisoned(len(counts), "float64")
        kernels.root_mean_square_forward(x, offsets, weights, u=u, r=r)
        results.append((u, r))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(results[0][1][:4], [largest, 1, least, largest], rtol=1e-6)


def test_what_is_not_finite_has_no_finite_loss(cuda):
    net = fastperm.DeepSet(2, 4, 1, 1, scale="rms", seed=0, backend="cuda")
    values = np.ones((5, 2), np.float32)
    values[1, 1] = np.nan  # nobody checks again what is changed afterwards
    sets = fastperm.Sets._trusted(values, np.array([0, 3, 5]), None)
    assert np.isnan(net.loss_and_gradients(sets, np.ones((2, 1))))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 4), (30, 5, 33), (70, 8, 4)], ids=brief)
def test_dense(cuda, shape):
    R, K_in, K_out = shape
    generator = np.random.default_rng(SEED)
    arrays = [generator.standard_normal(s) for s in ((R, K_in), (K_in, K_out), (K_out,), (R, K_out))]
    results = []
    for kernels, dtype in ((cuda, "float32"), (reference, "float64")):
        x, W, b, dy = as_dtype(dtype, *arrays)
        y, dx = poisoned((R, K_out), dtype), poisoned((R, K_in), dtype)
        dW, db = np.full((K_in, K_out), 0.5, dtype), np.full(K_out, 0.5, dtype)
        kernels.dense_forward(x, W, b, y=y)
        kernels.dense_backward(dy, x, W, dx=dx, dW=dW, db=db)
        results.append((y, dx, dW, db))
    for found, wanted in zip(*results, strict=True):
        assert error(found, wanted) <= TOLERANCE


def test_rows_that_are_not_aligned(cuda):
    # A matrix of the flat parameters may begin anywhere: then no access of 128 bits will do.
    generator = np.random.default_rng(SEED)
    flat = generator.standard_normal(1 + 8 * 8).astype(np.float32)
    x, W, b = generator.standard_normal((9, 8)).astype(np.float32), flat[1:].reshape(8, 8), flat[:8]
    y, dx = poisoned((9, 8), "float32"), poisoned((9, 8), "float32")
    cuda.dense_forward(x, W, b, y=y)
    cuda.dense_backward(x, x, W, dx=dx, dW=np.zeros_like(W), db=np.zeros_like(b))
    assert error(y, x.astype(float) @ W + b) <= TOLERANCE
    assert error(dx, x.astype(float) @ W.T) <= TOLERANCE


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (9, 2)], ids=brief)
def test_mean_squared_error(cuda, shape):
    y, targets = np.random.default_rng(SEED).standard_normal((2, *shape))
    found, wanted = poisoned(shape, "float32"), poisoned(shape, "float64")
    loss = cuda.mean_squared_error(*float32(y, targets), dy=found)
    assert isinstance(loss, float)
    assert loss == pytest.approx(reference.mean_squared_error(y, targets, dy=wanted), rel=TOLERANCE)
    assert error(found, wanted) <= TOLERANCE


def test_adam(cuda):
    g, p, m = np.random.default_rng(SEED).standard_normal((3, 11))
    results = []
    for kernels, dtype in ((cuda, "float32"), (reference, "float64")):
        arrays = as_dtype(dtype, p.copy(), m.copy(), m**2)
        for t in (1, 2):
            kernels.adam_step(*as_dtype(dtype, g), 1e-2, 0.9, 0.999, 1e-7, t, **dict(zip("pmv", arrays, strict=True)))
        results.append(arrays)
    for found, wanted in zip(*results, strict=True):
        assert error(found, wanted) <= TOLERANCE


def test_fourier_series(cuda):
    generator = np.random.default_rng(SEED)
    offsets = np.array([0, 3, 4, 9])
    x = generator.uniform(0, 2 * np.pi, 9)
    coefficients = generator.standard_normal((3, 10)).view(np.complex128)
    found, wanted = poisoned(9, "float64"), poisoned(9, "float64")
    cuda.fourier_series(x, offsets, coefficients, y=found)
    reference.fourier_series(x, offsets, coefficients, y=wanted)
    assert error(found, wanted) <= 1e-13


@pytest.mark.parametrize("logarithm", [True, False])
@pytest.mark.parametrize("amplitudes", ["exponential", "fixed", "lognormal"])
def test_random_functions(cuda, amplitudes, logarithm):
    results = []
    for kernels in (cuda, reference):
        coefficients, targets = poisoned((3, 5), "complex128"), poisoned((3, 2), "float64")
        mean = 1 / np.arange(1.0, 6) ** 2
        mean.flags.writeable = False  # as that of a task
        kernels.random_functions(
            3**39 + SEED, mean, amplitudes, 3, logarithm, coefficients=coefficients, targets=targets
        )
        results.append((coefficients.view(np.float64), targets))
    for found, wanted in zip(*results, strict=True):
        assert error(found, wanted) <= 1e-14


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_random_samples(cuda, dtype, noise):
    offsets = np.array([0, 1, 4, 9])
    coefficients = np.random.default_rng(SEED).standard_normal((3, 10)).view(np.complex128)
    found, wanted = poisoned((9, 2), dtype), poisoned((9, 2), dtype)
    cuda.random_samples(3**39 + SEED, offsets, coefficients, noise, values=found)
    reference.random_samples(3**39 + SEED, offsets, coefficients, noise, values=wanted)
    np.testing.assert_array_equal(found[:, 0], wanted[:, 0])
    assert error(found, wanted) <= (1e-14 if dtype == "float64" else 6e-8)  # another way to round the last digit


@WEIGHTED
def test_canonical_order(cuda, weighted):
    case = Case((1, 6, 9), 3, 1, weighted)
    x, weights = float32(case.x.round(), case.weights)
    orders = np.full((2, case.T), -1, np.int64)
    for kernels, order in zip((cuda, reference), orders, strict=True):
        found = poisoned(x.shape, x.dtype), None if weights is None else poisoned(weights.shape, x.dtype)
        kernels.canonical_order(x, case.offsets, weights, order=order, sorted_x=found[0], sorted_weights=found[1])
        np.testing.assert_array_equal(found[0], x[order])
        assert weights is None or np.array_equal(found[1], weights[order])
    keys = np.column_stack([x, np.ones(case.T) if weights is None else weights])
    np.testing.assert_array_equal(*(keys[order] for order in orders))


def network(widths, seed=SEED + 3, orders=0):
    """Return flat parameters; no bias is zero, so that no unit sits on the kink of its ReLU."""
    generator = np.random.default_rng(seed)
    parts = []
    for K_in, K_out in pairwise(widths[:-1]):
        parts += [generator.standard_normal((2, K_in, K_out)) / np.sqrt(K_in), generator.standard_normal(K_out)]
        parts += [generator.standard_normal((2, orders, K_in, K_out)) / np.sqrt(4 * max(orders, 1) * K_in)]
    parts += [generator.standard_normal(widths[-2:]) / np.sqrt(widths[-2]), generator.standard_normal(widths[-1])]
    return np.concatenate([part.ravel() for part in parts])


def targets_for(case, flat, widths, aggregate, pool, shape, orders=0):
    """Return targets that no prediction is near: the difference would be all rounding, and all gradients with it."""
    y, generator = np.empty(shape), np.random.default_rng(SEED + 4)
    reference.deep_set_forward(case.x, case.offsets, case.weights, flat, widths, aggregate, pool, orders, y=y)
    return y + generator.choice((-1, 1), shape) * generator.uniform(0.5, 2, shape) * (1 + np.abs(y))


@WEIGHTED
@pytest.mark.parametrize(
    ("aggregate", "pool"),
    [("mean", "mean"), ("sum", "max"), ("max", "sum"), ("mean", None), ("max", "max")],
    ids=lambda how: str(how),
)
@pytest.mark.parametrize(
    ("widths", "counts"), [((3, 8, 12, 4), (7, 1, 10)), ((1, 5, 17, 1), (6,))], ids=["8-12", "5-17"]
)
def test_deep_set(cuda, widths, counts, aggregate, pool, weighted):
    case, flat = Case(counts, widths[0], 1, weighted), network(widths)
    if aggregate == "sum":  # keep numbers of size 1 through the layers
        case.weights = case.w / max(counts)
    shape = (case.T if pool is None else case.S, widths[-1])
    targets = targets_for(case, flat, widths, aggregate, pool, shape)
    results = []
    for kernels, dtype in ((cuda, "float32"), (reference, "float64")):
        x, weights, parameters, targets_ = as_dtype(dtype, case.x, case.weights, flat, targets)
        y, gradients = poisoned(shape, dtype), np.full(flat.shape, 0.5, dtype)
        batch, how = (x, case.offsets, weights), (parameters, widths, aggregate, pool)
        kernels.deep_set_forward(*batch, *how, y=y)
        loss = float(kernels.deep_set_step(*batch, targets_, *how, gradients=gradients))
        results.append((y, gradients, [loss]))
    for found, wanted in zip(*results, strict=True):
        assert error(found, wanted) <= 2 * TOLERANCE


@WEIGHTED
@pytest.mark.parametrize(
    ("aggregate", "pool", "precision"),
    [("mean", "mean", "float32"), ("sum", "max", "float32"), ("mean", None, "tf32"), ("mean", "sum", "bfloat16")],
    ids=brief,
)
def test_deep_set_on_the_circle(cuda, aggregate, pool, precision, weighted):
    orders, widths = 2, (1, 5, 4, 3)  # narrower than what tensor cores get, so that no precision changes anything
    case, flat = Case((5, 1, 3), 1 + widths[0], 1, weighted), network(widths, orders=orders)
    if aggregate == "sum":  # keep numbers of size 1 through the layers
        case.weights = case.w / 5
    shape = (case.T if pool is None else case.S, widths[-1])
    targets = targets_for(case, flat, widths, aggregate, pool, shape, orders)
    results = []
    for kernels, dtype in ((cuda, "float32"), (reference, "float64")):
        x, weights, parameters, targets_ = as_dtype(dtype, case.x, case.weights, flat, targets)
        y, gradients = poisoned(shape, dtype), np.full(flat.shape, 0.5, dtype)
        batch, how = (x, case.offsets, weights), (parameters, widths, aggregate, pool, orders)
        settings = {"precision": precision} if kernels is cuda else {}
        kernels.deep_set_forward(*batch, *how, y=y, **settings)
        loss = float(kernels.deep_set_step(*batch, targets_, *how, gradients=gradients, **settings))
        results.append((y, gradients, [loss]))
    for found, wanted in zip(*results, strict=True):
        assert error(found, wanted) <= 2 * TOLERANCE


def smallest_input(x, offsets, weights, flat, widths, aggregate):
    """Return the smallest |z| of all units, in float64."""
    layers, _ = split_parameters(flat, widths)
    smallest = np.inf
    for W_self, W_pool, b in layers:
        m = np.empty((len(offsets) - 1, x.shape[1]))
        reference.pooling_forward(x, offsets, weights, aggregate, p=m)
        z = x @ W_self + np.repeat(m @ W_pool + b, np.diff(offsets), axis=0)
        smallest, x = min(smallest, np.abs(z).min()), np.maximum(z, 0)
    return smallest


# For every layout of `resident`: more sets than blocks, one element, ends within strips and stages, odd widths; first
# layers of more features than `resident_gradient.NARROW`, of fewer, and of sets that are too large to be taken as such.
RESIDENT = (
    (
        ((3, 4, 4, 2), (7, 1, 70, 16, 9)),
        ((4, 4, 3, 2), (140, 3)),
        ((5, 16, 11, 3), (3, 37)),
        ((1, 3, 1), (5,)),
        ((3, 5, 8, 7, 2), (1, 33, 6, 16, 2)),
        ((9, 8, 3, 8), (17, 40)),
        ((2, 13, 16, 11, 3), (1, 70)),
    )
    if compiling.SIMULATED
    else (
        ((3, 16, 16, 2), (7, 1, 350, 64, 129)),
        ((4, 16, 16, 2), (2500, 3)),
        ((5, 16, 16, 2), (70, 3)),
        ((4, 31, 17, 5), (33, 200)),
        ((1, 3, 1), (5,) * many(300)),
        ((2, 64, 64, 3), (1, 530)),
        ((3, 31, 17, 5), (1, 33, 600, 128)),
        ((9, 32, 32, 32, 8), (512, 400)),
        ((2, 64, 33, 64, 3), (512, 1, 37)),
        ((2, 64, 64, 64, 64, 4), (512, 333)),
        ((50, 40, 64), (9,) * many(280)),
    )
)


def hold_resident_to_reference(cuda, widths, counts, aggregate, pool, weighted):
    """Compare predictions, loss and gradients of a network that is computed on chip with float64."""
    # A unit that is on for one computation and off for the other says nothing about sums.
    for seed in range(SEED, SEED + 100):
        case, flat = Case(counts, widths[0], 1, weighted, seed=seed), network(widths, seed)
        if "sum" in (aggregate, pool):
            case.weights = case.w / max(counts) if weighted else None
            flat = flat if weighted else flat / max(counts) ** 0.25
        if smallest_input(case.x, case.offsets, case.weights, flat, widths, aggregate) > 4e-6:
            break
    targets = targets_for(case, flat, widths, aggregate, pool, (case.S, widths[-1]))
    results = []
    for kernels, dtype in ((cuda, "float32"), (cuda, "float32"), (reference, "float64")):
        x, weights, parameters, targets_ = as_dtype(dtype, case.x, case.weights, flat, targets)
        y, gradients = poisoned(targets.shape, dtype), np.full(flat.shape, 0.5, dtype)
        batch, how = (x, case.offsets, weights), (parameters, widths, aggregate, pool)
        kernels.deep_set_forward(*batch, *how, y=y)
        loss = float(kernels.deep_set_step(*batch, targets_, *how, gradients=gradients))
        results.append((y, gradients - 0.5, [loss]))
    for found, again, wanted in zip(*results, strict=True):
        assert error(found, wanted) <= 2 * TOLERANCE
        np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize(("aggregate", "pool", "weighted"), [("mean", "sum", True), ("sum", "mean", False)], ids=brief)
@pytest.mark.parametrize(("widths", "counts"), RESIDENT, ids=brief)
def test_resident(cuda, widths, counts, aggregate, pool, weighted, monkeypatch):
    from fastperm.kernels.cuda import layouts, resident

    monkeypatch.setattr(resident, "LEAST_ELEMENTS", 1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    assert isinstance(resident.layout_for(offsets, widths, aggregate, pool), layouts.Layout)
    hold_resident_to_reference(cuda, widths, counts, aggregate, pool, weighted)


# Blocks of a cluster, strips that each of them may have, networks and sets: one without a strip for some blocks, ends
# within strips, one strip more than blocks, more sets than clusters.
CLUSTERS = (
    (
        (2, 1, (3, 4, 4, 2), (32, 1, 17, 31)),
        (4, 1, (2, 5, 3), (100, 128, 33)),
        (4, 2, (9, 8, 3, 8), (64, 1, 40)),
        (2, 1, (2, 13, 16, 3), (16, 9)),
        (1, 2, (3, 32, 20, 2), (16, 9)),
        (2, 1, (3, 20, 32, 2), (16, 3, 9, 8)),
        (4, 1, (2, 17, 18), (25, 32)),
    )
    if compiling.SIMULATED
    else (
        (2, 25, (3, 16, 16, 2), (3150, 1, 64, 129)),
        (4, 1, (9, 32, 30, 8), (128, 1) * many(40)),
        (2, 16, (2, 64, 33, 64, 3), (1024, 1, 37, 512)),
        (8, 16, (2, 64, 64, 4), (4096, 333, 1)),
        (1, 8, (2, 128, 128, 3), (256, 1, 37)),
        (2, 1, (2, 128, 100, 3), (64, 1, 33) * many(50)),
        (2, 8, (2, 128, 128, 128, 128, 4), (512, 333, 1, 33)),
        (4, 8, (3, 100, 128, 70), (1000, 257)),
        (8, 8, (100, 128, 128, 5), (2048, 1, 31)),
    )
)


@pytest.fixture
def blocks_hold(monkeypatch):
    """Have a block hold so many strips of a set, so that small sets need a cluster; return its layout."""
    from fastperm.kernels.cuda import resident

    monkeypatch.setattr(resident, "LEAST_ELEMENTS", 0)

    def hold(strips, counts, widths, aggregate="mean", pool="mean", precision="float32"):
        offsets = np.concatenate([[0], np.cumsum(counts)])
        layouts = resident.TENSOR_LAYOUTS.get(precision, resident.LAYOUTS)
        layout = next(layout for layout in layouts if layout.width >= max(widths))
        # The kernels of clusters need a little more.
        most = layout._replace(cluster=2).shared_bytes(2 * strips * layout.strip)
        monkeypatch.setattr(resident, "most_shared_memory", lambda: most)
        return resident.layout_for(offsets, widths, aggregate, pool, precision)

    return hold


@pytest.mark.parametrize(("aggregate", "pool", "weighted"), [("mean", "sum", True), ("sum", "mean", False)], ids=brief)
@pytest.mark.parametrize(("cluster", "strips", "widths", "counts"), CLUSTERS, ids=brief)
def test_clusters_share_a_set(cuda, cluster, strips, widths, counts, aggregate, pool, weighted, blocks_hold):
    assert blocks_hold(strips, counts, widths, aggregate, pool).cluster == cluster
    hold_resident_to_reference(cuda, widths, counts, aggregate, pool, weighted)


# Precision, strips that a block may have, networks and sets.
ALL = 32  # strips: no set here has more


@pytest.mark.parametrize("cluster", [2, 4])
def test_clusters_are_tried_out_once(cuda, monkeypatch, caplog, cluster):
    from fastperm.kernels.cuda import cluster_probe

    if not compiling.SIMULATED and cluster not in compiling.clusters():
        pytest.skip("this GPU has no clusters")
    cluster_probe._found.clear()
    with compiling.recorded() as work:
        assert cluster_probe.clusters_run(cluster, 1 << 12)
    assert not work
    monkeypatch.setattr(cluster_probe, "_cluster_probe", lambda *_, **__: pytest.fail("tried again"))
    assert cluster_probe.clusters_run(cluster, 1 << 12)
    cluster_probe._found.clear()

    def refuse(*_, **__):
        raise RuntimeError("CUDA_ERROR_INVALID_CLUSTER_SIZE")

    for broken, said in ((refuse, "INVALID_CLUSTER_SIZE"), (lambda *_, **__: None, "[0.0, 0.0")):
        monkeypatch.setattr(cluster_probe, "_cluster_probe", broken)
        assert not cluster_probe.clusters_run(cluster, 1 << 12)
        assert not cluster_probe.clusters_run(cluster, 1 << 12)
        assert caplog.text.count(said) == 1
        cluster_probe._found.clear()


ON_CLUSTERS = (
    (
        ("tf32", 1, (3, 20, 32, 2), (33, 3)),
        ("bfloat16", 1, (2, 19, 5), (100,)),
        ("bfloat16", 1, (3, 32, 17, 2), (64, 9)),
    )
    if compiling.SIMULATED
    else (
        ("tf32", 8, (2, 64, 33, 65, 3), (500, 1, 37, 512)),
        ("bfloat16", 8, (2, 64, 97, 5), (2048,)),
        ("tf32", 8, (3, 100, 128, 128, 2), (512, 3, 33) * many(70)),
        ("bfloat16", 8, (3, 128, 128, 97, 2), (512, 1, 260)),
    )
)

ON_TENSOR_CORES = pytest.mark.parametrize("precision", ["tf32", "bfloat16"])


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_units_at_zero_pass_no_gradient_on_chip(cuda, precision, monkeypatch):
    from fastperm.kernels.cuda import layouts, resident

    monkeypatch.setattr(resident, "LEAST_ELEMENTS", 1)
    for layout in layouts.TENSOR_LAYOUTS.get(precision, layouts.LAYOUTS):
        K, counts = layout.width, (5, 9)
        widths, at_zero = (3, K, K, 2), np.arange(K) % 3 == 1
        case, flat = Case(counts, 3, 1, False), network(widths)
        for of_layer in split_parameters(flat, widths)[0]:
            of_layer[2][:] = 2  # some of the others are on
            for parameter in of_layer:
                parameter[..., at_zero] = 0
        assert resident.layout_for(case.offsets, widths, "mean", "mean", precision)._replace(cluster=1) == layout
        x, flat_, targets = float32(case.x, flat, np.ones((2, 2)))
        gradients = np.zeros(flat.shape, np.float32)
        batch = (x, case.offsets, None, targets, flat_, widths, "mean", "mean")
        cuda.deep_set_step(*batch, gradients=gradients, precision=precision)
        for of_layer in split_parameters(gradients, widths)[0]:
            for gradient in of_layer:
                assert not gradient[..., at_zero].any()
                assert gradient[..., ~at_zero].any()


@ON_TENSOR_CORES
def test_tensor_cores_multiply_what_they_hold_exactly(cuda, precision, monkeypatch):
    """Small integers and powers of 2: every number is in its place of the fragments, or the result is wrong."""
    from fastperm.kernels.cuda import layouts, resident

    generator = np.random.default_rng(SEED)
    for layout in layouts.TENSOR_LAYOUTS[precision]:
        K, counts = layout.width, (32, 8) if compiling.SIMULATED else (512, 64, 256, 128)[: 2 if ON_NUMPY_GPU else 4]
        widths = (K - 5, K, K - 3, K, 4)
        x = generator.integers(-2, 3, (sum(counts), K - 5)).astype(float)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        flat = np.zeros(sum(2 * a * b + b for a, b in pairwise(widths[:-1])) + 4 * K + 4)
        layers, (W, b) = split_parameters(flat, widths)
        for W_self, _, bias in layers:
            W_self[:] = generator.integers(-1, 2, W_self.shape) * (generator.random(W_self.shape) < 4 / len(W_self))
            bias[:] = generator.integers(0, 2, bias.shape) + 0.5  # no unit is at zero
        W[:], b[:] = generator.integers(-1, 2, W.shape), 1
        y, wanted = poisoned((len(counts), 4), "float32"), np.empty((len(counts), 4))
        how = (widths, "mean", "mean")
        reference.deep_set_forward(x, offsets, None, flat, *how, y=wanted)
        targets = wanted - generator.integers(-2, 3, wanted.shape)
        gradients, of_reference = np.zeros(flat.shape, np.float32), np.zeros(flat.shape)
        monkeypatch.setattr(resident, "LEAST_ELEMENTS", 1)
        assert resident.layout_for(offsets, *how, precision)._replace(cluster=1) == layout
        x_, flat_, targets_ = float32(x, flat, targets)
        cuda.deep_set_forward(x_, offsets, None, flat_, *how, y=y, precision=precision)
        found = cuda.deep_set_step(x_, offsets, None, targets_, flat_, *how, gradients=gradients, precision=precision)
        loss = reference.deep_set_step(x, offsets, None, targets, flat, *how, gradients=of_reference)
        assert error(y, wanted) <= TOLERANCE
        assert error(gradients, of_reference) <= TOLERANCE
        assert float(found) == pytest.approx(loss, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("precision", "strips", "widths", "counts"),
    [
        ("tf32", ALL, *RESIDENT[-2]),
        ("tf32", ALL, *RESIDENT[-1]),
        ("bfloat16", ALL, *RESIDENT[-2]),  # the last one: see below
        ("tf32", ALL, (4, 16, 16, 2), (33, 8, 70)),
        ("bfloat16", ALL, (3, 16, 16, 2), (33, 8, 70) if compiling.SIMULATED else (1000, 8)),
        ("tf32", ALL, (4, 32, 31, 2), (33, 200)),
        ("bfloat16", ALL, (4, 32, 31, 2), (33, 200)),
        *ON_CLUSTERS,
    ],
    ids=brief,
)
def test_tensor_cores_multiply_ragged_sets(cuda, precision, strips, widths, counts, blocks_hold):
    """Small integers, weights 0, 1 and 2, and sums: nothing is rounded, so ends of strips and widths are right."""
    generator = np.random.default_rng(SEED)
    x, weights = generator.integers(-2, 3, (sum(counts), widths[0])), generator.integers(0, 3, sum(counts))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    weights[offsets[:-1]] = 1  # no set is without weight
    flat = np.zeros(network(widths).shape)
    layers, (W, b) = split_parameters(flat, widths)
    for W_self, _, bias in layers:
        W_self[:] = generator.integers(-1, 2, W_self.shape) * (generator.random(W_self.shape) < 4 / len(W_self))
        bias[:] = generator.integers(0, 2, bias.shape) + 0.5  # no unit is at zero
    W[:], b[:] = generator.integers(-1, 2, W.shape), 1
    shape, how = (len(counts), widths[-1]), (widths, "sum", "sum")
    wanted, of_reference = np.empty(shape), np.zeros(flat.shape)
    reference.deep_set_forward(x.astype(float), offsets, weights.astype(float), flat, *how, y=wanted)
    # Gradients of y, and not their mean, whose factors need more bits: a difference of N for each of N numbers is 1.
    targets = wanted - wanted.size / 2 * generator.integers(-1, 2, shape)
    batch = (x.astype(float), offsets, weights.astype(float), targets)
    loss = reference.deep_set_step(*batch, flat, *how, gradients=of_reference)
    assert (blocks_hold(strips, counts, *how, precision).cluster > 1) == (strips != ALL)
    y, gradients = poisoned(shape, "float32"), np.zeros(flat.shape, np.float32)
    x_, weights_, targets_, flat_ = float32(x, weights, targets, flat)
    cuda.deep_set_forward(x_, offsets, weights_, flat_, *how, y=y, precision=precision)
    found = cuda.deep_set_step(
        *(x_, offsets, weights_, targets_, flat_, *how), gradients=gradients, precision=precision
    )
    assert error(y, wanted) <= TOLERANCE
    assert error(gradients, of_reference) <= TOLERANCE
    assert float(found) == pytest.approx(loss, rel=TOLERANCE)


def way_on_cores(inner, columns):
    """Return what computes products on tensor cores here: on some cards, warpgroups do the wide ones."""
    from fastperm.kernels.cuda import product, product_on_warpgroups

    wide = min(inner, columns) >= product_on_warpgroups.LEAST and product_on_warpgroups.are_there()
    return product.ON_WARPGROUPS if wide else product.ON_CORES


def products_of_integers(counts, inner, columns, precision):
    """Hold all that a layer does with its product, on tensor cores, to what is exact: nothing here is rounded."""
    from fastperm.kernels.cuda import pooling, product

    generator, rows, n_sets = np.random.default_rng(SEED), sum(counts), len(counts)
    xp, sets = compiling.xp(), np.repeat(np.arange(n_sets, dtype=np.int32), counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])

    def integers(*shape):
        return generator.integers(-2, 3, shape).astype(np.float32)

    A, B, c, G = integers(rows, inner), integers(inner, columns), integers(n_sets, columns), integers(rows, columns)
    weights, scales, start = np.abs(integers(rows)), integers(rows), integers(inner, columns)
    dm = integers(n_sets, inner)
    on = {name: xp.asarray(array) for name, array in locals().items() if isinstance(array, np.ndarray)}

    def held_to(wanted, *, code=pooling.SUM, **settings):
        out = xp.asarray(poisoned(wanted.shape, "float32"))
        own = {**settings, "sets": on["sets"], "code": code, "n_sets": n_sets, "precision": precision}
        partials = product.product(out=out, **own)
        np.testing.assert_array_equal(on_host(out), wanted)
        if code != product.NO_POOL:
            weighted = wanted * (weights if settings.get("weights") is not None else np.ones(rows))[:, None]
            sums = xp.asarray(poisoned((n_sets, wanted.shape[1]), "float32"))
            pooling.finish(partials, on["offsets"], "sum", None, sums)
            np.testing.assert_array_equal(on_host(sums), np.add.reduceat(weighted, offsets[:-1]))

    assert product.way_of(inner, columns, precision) == way_on_cores(inner, columns)
    layer = {"A": on["A"], "B": on["B"], "c": on["c"], "weights": on["weights"], "relu": True}
    held_to(np.maximum(A @ B + c[sets], 0), **layer)
    held_to(A @ B, A=on["A"], B=on["B"], code=product.NO_POOL)
    back = {"A": on["G"], "B": on["B"], "B_along_k": True, "c": on["dm"], "scales": on["scales"]}
    held_to(np.where(A > 0, G @ B.T + scales[:, None] * dm[sets], 0), **back, masked_by=on["A"])
    total = xp.array(start)
    product.add_transposed_product(on["A"], on["G"], total, precision=precision)
    np.testing.assert_array_equal(on_host(total), start + A.T @ G)


# Where the simulator's tile has 16 × 16 numbers, a GPU's has 128 × 128, or 128 × 256.
@pytest.mark.parametrize(
    ("counts", "inner", "columns"),
    [((3,), 16, 16), ((30, 1, 18), 20, 36), ((1, 39), 36, 20)]
    if compiling.SIMULATED
    else [
        *(((3,), 16, 16), ((300, 1, 212), 20, 132), ((1, 4095), 132, 260)),
        *(((512,) * many(40), 512, 64), ((512,) * many(40), 16, 128), ((7,), 1020, 128)),
        # These are left to warpgroups: a tile that nearly nothing fills, edges on all sides, many stages, whole tiles.
        *(((3,), 192, 192), ((170, 1, 120), 196, 260), ((1, 126), 1020, 256), ((512,) * many(40, 2), 512, 512)),
    ],
    ids=brief,
)
@ON_TENSOR_CORES
def test_a_product_on_tensor_cores_finishes_as_a_layer_needs(cuda, counts, inner, columns, precision):
    products_of_integers(counts, inner, columns, precision)


def test_without_clusters_each_block_brings_all_weights(cuda, monkeypatch):
    from fastperm.kernels.cuda import product_on_warpgroups

    if not product_on_warpgroups.are_there():
        pytest.skip("needs a GPU with warpgroups")
    monkeypatch.setattr(product_on_warpgroups, "clusters_run", lambda *_: False)
    products_of_integers((170, 1, 120), 196, 260, "tf32")


@pytest.mark.parametrize("columns", [1, 5, 8] if compiling.SIMULATED else [1, 33, 512])
@pytest.mark.parametrize("rows", [1, 7, 90] if compiling.SIMULATED else [1, 777, 70_001])
def test_a_transposed_product_of_few_features(cuda, rows, columns):
    """Of integers, whose sums are exact; and of one feature more than that kernel takes."""
    from fastperm.kernels.cuda import product, product_of_few

    generator, xp = np.random.default_rng(SEED), compiling.xp()
    for few in range(1, product_of_few.MOST + 2):
        x, g, start = (
            generator.integers(-2, 3, shape).astype(np.float32)
            for shape in ((rows, few), (rows, columns), (few, columns))
        )
        total = xp.array(start)
        product.add_transposed_product(xp.asarray(x), xp.asarray(g), total)
        np.testing.assert_array_equal(on_host(total), start + x.T @ g)


# (elements per set, N): one set, many in a group of rows, and sets that begin and end anywhere in groups.
@pytest.mark.parametrize(
    ("counts", "columns"),
    [((1,), 1), ((7,), 5), ((1, 2, 1, 9, 4), 8), ((1,) * 9, 3)]
    if compiling.SIMULATED
    else [((1,), 1), ((37,), 33), ((100, 1, 5, 2, 39), 132), ((1,) * 77, 7), ((512,) * many(40, 0) + (3,), 512)],
    ids=brief,
)
def test_a_product_with_few_features_finishes_as_a_layer_needs(cuda, counts, columns):
    """Of integers, whose sums are exact; and of one feature more than that kernel takes."""
    from fastperm.kernels.cuda import product_of_few

    for few in range(1, product_of_few.MOST + 2):
        layers_of_integers(counts, few, columns)


def layers_of_integers(counts, few, columns):
    """Hold products, with all that goes with them, to NumPy."""
    from fastperm.kernels.cuda import pooling
    from fastperm.kernels.cuda.product import NO_POOL, product

    generator, rows, n_sets = np.random.default_rng(SEED), sum(counts), len(counts)
    xp, sets = compiling.xp(), np.repeat(np.arange(n_sets, dtype=np.int32), counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])

    def integers(*shape):
        return generator.integers(-2, 3, shape).astype(np.float32)

    x, W, c, b = integers(rows, few), integers(few, columns), integers(n_sets, columns), integers(columns)
    weights, scales, masked_by = np.abs(integers(rows)), integers(rows), integers(rows, columns)
    weights[offsets[:-1]] = 1  # the maximum of nothing is no number
    W_turned = np.ascontiguousarray(W.T)
    on = {name: xp.asarray(array) for name, array in locals().items() if isinstance(array, np.ndarray)}
    for names, code in (
        ((), NO_POOL),
        (("b",), NO_POOL),
        (("b", "relu"), NO_POOL),
        (("relu",), pooling.MAX),
        (("c", "sets", "relu"), NO_POOL),
        (("c", "sets", "relu"), pooling.SUM),
        (("c", "sets", "relu", "weights"), pooling.SUM),
        (("c", "sets", "weights"), pooling.MAX),
        (("c", "sets", "scales", "masked_by", "W_turned"), pooling.SUM),
        (("c", "sets", "scales", "W_turned"), NO_POOL),
    ):
        # Without sets all rows are of one.
        settings = {name: on[name] for name in names if name not in ("b", "relu", "W_turned")}
        settings |= {"relu": "relu" in names, "B_along_k": "W_turned" in names, "code": code}
        bounds = offsets if "sets" in names else np.array([0, rows])
        wanted = x @ W
        if "b" in names:
            settings["c"], wanted = on["b"], wanted + b
        if "c" in names:
            wanted = wanted + (scales[:, None] if "scales" in names else 1) * c[sets]
        if "relu" in names:
            wanted = np.maximum(wanted, 0)
        if "masked_by" in names:
            wanted = np.where(masked_by > 0, wanted, 0)
        out = xp.asarray(poisoned(wanted.shape, "float32"))
        B = on["W_turned" if "W_turned" in names else "W"]
        partials = product(on["x"], B, out, **settings, n_sets=len(bounds) - 1)
        np.testing.assert_array_equal(on_host(out), wanted)
        if code == NO_POOL:
            assert partials is None
            continue
        w = (weights if "weights" in names else np.ones_like(weights))[:, None]
        of_sets = xp.asarray(poisoned((len(bounds) - 1, columns), "float32"))
        pool = "max" if code == pooling.MAX else "sum"
        pooling.finish(partials, xp.asarray(bounds), pool, None, of_sets)
        if code == pooling.MAX:
            pooled = np.maximum.reduceat(np.where(w > 0, wanted, -np.inf), bounds[:-1])
        else:
            pooled = np.add.reduceat(w * wanted, bounds[:-1])
        np.testing.assert_array_equal(on_host(of_sets), pooled)


def leave_no_transposed_product_to_the_library(monkeypatch):
    from fastperm.kernels.cuda import product

    monkeypatch.setattr(product, "LIBRARY_ROUNDED_TRANSPOSED", dict.fromkeys(product.LIBRARY_ROUNDED_TRANSPOSED, 1024))


def products_of(A, B, precision):
    """Return A B as the kernels for A B, A (Bᵀ)ᵀ and (Aᵀ)ᵀ B compute it."""
    from fastperm.kernels.cuda import product

    xp, shape = compiling.xp(), (len(A), B.shape[1])
    for B_along_k in (False, True):
        out = xp.asarray(poisoned(shape, "float32"))
        weights = xp.asarray(np.ascontiguousarray(B.T if B_along_k else B))
        product.product(xp.asarray(A), weights, out, B_along_k=B_along_k, precision=precision)
        yield on_host(out)
    total = xp.zeros(shape, np.float32)
    product.add_transposed_product(xp.asarray(np.ascontiguousarray(A.T)), xp.asarray(B), total, precision=precision)
    yield on_host(total)


@pytest.mark.parametrize("size", [20] if compiling.SIMULATED else [132, 260])
@ON_TENSOR_CORES
def test_factors_are_rounded_to_the_nearest_number_of_a_precision(cuda, precision, size, monkeypatch):
    """And not cut off, as tensor cores would: one factor is the identity, so that the product is the other."""
    from fastperm.kernels.cuda import product

    leave_no_transposed_product_to_the_library(monkeypatch)

    generator = np.random.default_rng(SEED)
    some, one = generator.standard_normal((size, size)).astype(np.float32), np.eye(size, dtype=np.float32)
    wanted = {"tf32": to_tf32, "bfloat16": to_bf16}[precision](some)
    assert product.way_of(size, size, precision) == way_on_cores(size, size)
    for A, B in ((some, one), (one, some)):
        for found in products_of(A, B, precision):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 · inf, beyond the edges
@pytest.mark.parametrize("size", [20] if compiling.SIMULATED else [132, 260])
@pytest.mark.parametrize("number", [np.nan, -np.inf])
@ON_TENSOR_CORES
def test_what_is_not_finite_in_a_factor_reaches_what_it_is_a_factor_of(cuda, precision, number, size, monkeypatch):
    leave_no_transposed_product_to_the_library(monkeypatch)
    ones, other = np.ones((2, size, size), np.float32)
    other[3, 7] = number
    for A, B, row, column in ((ones, other, slice(None), 7), (other, ones, 3, slice(None))):
        wanted = np.full((size, size), size, np.float32)
        wanted[row, column] = number
        for found in products_of(A, B, precision):
            np.testing.assert_array_equal(found, wanted)


@ON_TENSOR_CORES
def test_factors_that_tensor_cores_cannot_fetch_are_left_to_the_library(cuda, precision, monkeypatch):
    from fastperm.kernels.cuda import product, product_on_warpgroups

    generator, xp = np.random.default_rng(SEED), compiling.xp()
    A, B = generator.integers(-2, 3, (5, 16)).astype(np.float32), np.eye(16, dtype=np.float32)
    flat = xp.asarray(np.append(np.float32(7), A))
    assert product.way_of(16, 16, precision) == product.ON_CORES
    for inner, columns in ((18, 16), (16, 17), (5002, 5000)):
        assert product.way_of(inner, columns, precision) == product.BY_LIBRARY
    wide = product.ON_WARPGROUPS if product_on_warpgroups.are_there() else product.BY_LIBRARY
    assert product.way_of(product.LIBRARY_ROUNDED, 5000, precision) == wide
    least = product.LIBRARY_ROUNDED_TRANSPOSED[precision]
    assert product.way_of(least, 5000, precision, transposed=True) == product.BY_LIBRARY
    assert product.way_of(least - 4, 5000, precision, transposed=True) != product.BY_LIBRARY
    asked = []
    matmul = product.matmul
    monkeypatch.setattr(product, "matmul", lambda *one, **how: (asked.append(how), matmul(*one, **how)))
    of_parameters = xp.asarray(np.append(np.float32(7), B))[1:].reshape(16, 16)  # weights are copied, if need be
    for factor, weights, by_library in (
        (xp.asarray(A), xp.asarray(B), False),
        (xp.asarray(A), of_parameters, False),
        (flat[1:].reshape(5, 16), xp.asarray(B), True),
    ):
        out = xp.asarray(poisoned((5, 16), "float32"))
        product.product(factor, weights, out, precision=precision)
        np.testing.assert_array_equal(on_host(out), A)
        assert len(asked) == by_library


@pytest.mark.parametrize("start", [0, 1], ids=["aligned", "unaligned"])
def test_numbers_are_rounded_to_the_nearest_bfloat16(cuda, start):
    from fastperm.kernels.cuda.library import numbers_of_bf16, round_to_bf16

    some = np.random.default_rng(SEED).integers(0, 1 << 32, 200, dtype=np.uint32)  # of every size
    ties = np.array([0x3F808000, 0x3F818000, 0x8000, 0x18000], np.uint32)
    largest = np.array([0x7F7F7FFF, 0x7F7F8000, 0xFF7FFFFF, 0x7F800000, 0xFF800000], np.uint32)  # and infinity
    nans, zeros = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32), np.array([0, 1 << 31, 1], np.uint32)
    numbers = np.concatenate([some, ties, largest, nans, zeros]).view(np.float32)
    pairs = round_to_bf16(compiling.xp().asarray(numbers)[start:])
    found = numbers_of_bf16(on_host(pairs), (1, len(numbers) - start))[0]
    with np.errstate(invalid="ignore"):
        wanted = to_bf16(numbers[start:])
    np.testing.assert_array_equal(found, wanted)
    known = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found[known]), np.signbit(wanted[known]))


def test_the_factors_of_a_layer_are_rounded_to_bfloat16_and_nothing_else(cuda):
    case = Case((32, 5) if compiling.SIMULATED else (512, 37), 13, 1, weighted=True)
    net = fastperm.DeepSet(13, 16, 1, 3, seed=SEED, backend="cuda", precision="bfloat16")
    sets = fastperm.Sets(*float32(case.x), case.offsets, *float32(case.weights))
    x, w = (array.astype(float) for array in float32(case.x, case.w))
    W_self, W_pool, bias, W, b = (on_host(array).astype(float) for array in net.parameters.values())

    def means(values):
        return np.add.reduceat(w[:, None] * values, case.offsets[:-1]) / np.add.reduceat(w, case.offsets[:-1])[:, None]

    c = means(x) @ W_pool + bias
    h = np.maximum(to_bf16(x) @ to_bf16(W_self) + np.repeat(c, case.counts, axis=0), 0)
    assert error(net(sets), means(h) @ W + b) <= TOLERANCE


def step_in_bfloat16(case, targets, flat, widths, narrowest, in_pairs):
    """Return y and all gradients, for means, in float64 but for the factors that are rounded to bfloat16.

    Those of layers that are narrower than ``narrowest`` are not, unless activations are kept ``in_pairs``: then each of
    these and of their gradients is.
    """

    def rounded(factor, W_self):
        return to_bf16(factor) if min(W_self.shape) >= narrowest else factor

    sets, first = np.repeat(np.arange(case.S), case.counts), case.offsets[:-1]
    share = (case.w / np.add.reduceat(case.w, first)[sets])[:, None]
    gradients = np.zeros(flat.shape)
    layers, (W, b) = split_parameters(flat, widths)
    of_layers, (dW, db) = split_parameters(gradients, widths)
    h, m = [case.x], []
    for W_self, W_pool, bias in layers:
        m.append(np.add.reduceat(share * h[-1], first))
        h.append(np.maximum(rounded(h[-1], W_self) @ rounded(W_self, W_self) + (m[-1] @ W_pool + bias)[sets], 0))
    p = np.add.reduceat(share * h[-1], first)
    y = p @ W + b
    dy = 2 / y.size * (y - targets)
    dW += p.T @ dy
    db += dy.sum(axis=0)
    g = share * (dy @ W.T)[sets] * (h[-1] > 0)
    for i, (W_self, W_pool, _) in reversed(list(enumerate(layers))):
        G = np.add.reduceat(g, first)
        factor = to_bf16(g) if in_pairs else rounded(g, W_self)
        of_layers[i][0][:], of_layers[i][1][:] = rounded(h[i], W_self).T @ factor, m[i].T @ G
        of_layers[i][2][:] = G.sum(axis=0)
        g = (factor @ rounded(W_self, W_self).T + share * (G @ W_pool.T)[sets]) * (h[i] > 0)
    return y, gradients


WIDER = (3, 36, 33, 36, 2) if compiling.SIMULATED else (3, 300, 257, 300, 2)
# Where these are multiplied by NVIDIA's library or by warpgroups, as on Hopper, all activations are kept in pairs.
IN_PAIRS = (3, 40, 48, 40, 2) if compiling.SIMULATED else (3, 256, 200, 264, 2)


@pytest.mark.parametrize(
    ("widths", "counts", "weighted"),
    [
        *((*RESIDENT[-2], False), (*RESIDENT[-1], True)),
        *((widths, (7, 1, 40), weighted) for widths in (WIDER, IN_PAIRS) for weighted in (True, False)),
    ],
    ids=brief,
)
def test_a_step_rounds_what_bfloat16_rounds(cuda, widths, counts, weighted, monkeypatch):
    from fastperm.kernels.cuda import layouts, product, resident

    monkeypatch.setattr(resident, "LEAST_ELEMENTS", 1)
    case, flat = Case(counts, widths[0], 1, weighted), network(widths).astype(np.float32).astype(float)
    case.x = case.x.astype(np.float32).astype(float)
    targets = targets_for(case, flat, widths, "mean", "mean", (case.S, widths[-1])).astype(np.float32)
    y, gradients = poisoned(targets.shape, "float32"), np.zeros(flat.shape, np.float32)
    x, weights, parameters = float32(case.x, case.weights, flat)
    batch, how = (x, case.offsets, weights), (parameters, widths, "mean", "mean")
    cuda.deep_set_forward(*batch, *how, y=y, precision="bfloat16")
    cuda.deep_set_step(*batch, targets, *how, gradients=gradients, precision="bfloat16")
    on_chip = isinstance(resident.layout_for(case.offsets, widths, "mean", "mean", "bfloat16"), layouts.Layout)
    assert on_chip == (widths not in (WIDER, IN_PAIRS))
    narrowest = 0 if on_chip else product.LEAST_ROUNDED
    in_pairs = product.may_be_in_pairs(widths, "mean", "mean", 0, "bfloat16")
    assert in_pairs == (widths is IN_PAIRS and product.way_of(256, 200, "bfloat16") != product.ON_CORES)
    of_float64 = step_in_bfloat16(case, targets, flat, widths, narrowest, in_pairs)
    for found, wanted in zip((y, gradients), of_float64, strict=True):
        # Here and there float32 is on the other side of a tie: one factor of many is off by 2^-8.
        assert error(found, wanted) <= 5e-4


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("how", [("mean", "sum"), ("sum", "mean")], ids="-".join)
def test_activations_in_pairs_change_one_rounding_alone(cuda, how, weighted, monkeypatch):
    """That of the gradient that the weights of the first layer are multiplied by, where x is not rounded."""
    from fastperm.kernels.cuda import deep_set, product

    if not product.may_be_in_pairs(IN_PAIRS, *how, 0, "bfloat16"):
        pytest.skip("needs a GPU with warpgroups")
    case, flat = Case((7, 1, 40, 3), IN_PAIRS[0], 1, weighted), network(IN_PAIRS).astype(np.float32)
    x, weights = float32(case.x, case.weights)
    batch, rest = (x, case.offsets, weights), (flat, IN_PAIRS, *how)
    targets = targets_for(case, flat, IN_PAIRS, *how, (case.S, IN_PAIRS[-1])).astype(np.float32)
    found = []
    for in_pairs in (True, False):
        if not in_pairs:
            monkeypatch.setattr(deep_set, "may_be_in_pairs", lambda *_: False)
        y, gradients = poisoned(targets.shape, "float32"), np.zeros(flat.shape, np.float32)
        cuda.deep_set_forward(*batch, *rest, y=y, precision="bfloat16")
        cuda.deep_set_step(*batch, targets, *rest, gradients=gradients, precision="bfloat16")
        (first, *others), head = split_parameters(gradients, IN_PAIRS)
        found.append((first[0], [y, *first[1:], *(array for layer in (*others, head) for array in layer)]))
    (of_pairs, others_of_pairs), (of_float32, others_of_float32) = found
    assert 1e-5 < error(of_pairs, of_float32) < 5e-3
    for own, other in zip(others_of_pairs, others_of_float32, strict=True):
        if compiling.SIMULATED:
            np.testing.assert_array_equal(own, other)
        else:  # sums are taken in another order, and a number may round to the other side
            assert error(own, other) <= 5e-4


@pytest.mark.parametrize(
    ("counts", "inner", "columns"),
    [((3,), 40, 40), ((30, 1, 18), 40, 48), ((1, 39), 56, 40)]
    if compiling.SIMULATED
    # A tile that nearly nothing fills, edges on all sides, many stages, whole tiles; and NVIDIA's library everywhere.
    else [
        *(((3,), 192, 192), ((170, 1, 120), 200, 264), ((1, 126), 1016, 256), ((512,) * many(40, 2), 512, 512)),
        *(() if ON_NUMPY_GPU else [((300, 1, 212), 1024, 1032)]),
    ],
    ids=brief,
)
def test_products_in_pairs_are_those_of_integers_and_rounded(cuda, counts, inner, columns):
    from fastperm.kernels.cuda import pooling, product, product_of_few
    from fastperm.kernels.cuda.library import in_float32, round_to_bf16
    from fastperm.kernels.cuda.pairs import Pairs

    generator, rows, n_sets = np.random.default_rng(SEED), sum(counts), len(counts)
    xp, sets = compiling.xp(), np.repeat(np.arange(n_sets, dtype=np.int32), counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if product.way_of(inner, columns, "bfloat16") == product.ON_CORES:
        pytest.skip("needs a GPU with warpgroups")

    # Exact in bfloat16 and their sums in float32, but these are often more than bfloat16 holds.
    def integers(*shape):
        return generator.integers(-8, 9, shape).astype(np.float32)

    def pairs(array):
        return Pairs(array.shape, round_to_bf16(xp.asarray(array)))

    A, B, c, G = integers(rows, inner), integers(inner, columns), integers(n_sets, columns), integers(rows, columns)
    weights, scales, dm = np.abs(integers(rows)), 100 + integers(rows), integers(n_sets, inner)
    on = {name: xp.asarray(array) for name, array in locals().items() if isinstance(array, np.ndarray)}
    in_pairs = {"A": pairs(A), "G": pairs(G)}

    def poisoned_pairs(shape):
        found = Pairs(shape)
        found.words[:] = np.nan
        return found

    def sums_of(partials):
        sums = xp.asarray(poisoned((n_sets, partials.shape[1]), "float32"))
        pooling.finish(partials, on["offsets"], "sum", None, sums)
        return on_host(sums)

    def held_to(wanted, A, B, *, code=pooling.SUM, **settings):
        out = poisoned_pairs(wanted.shape)
        own = {**settings, "sets": on["sets"], "code": code, "n_sets": n_sets, "precision": "bfloat16"}
        partials = product.product(A, B, out, **own)
        rounded = to_bf16(wanted)
        assert A.shape[1] < inner or (rounded != wanted).any()
        np.testing.assert_array_equal(on_host(in_float32(out)), rounded)
        if code != product.NO_POOL:  # sums of numbers before they are rounded
            weighted = wanted * (weights if settings.get("weights") is not None else np.ones(rows))[:, None]
            np.testing.assert_array_equal(sums_of(partials), np.add.reduceat(weighted, offsets[:-1]))

    def gradient_of_weights(x, g, wanted):
        start = integers(*wanted.shape)
        total = xp.array(start)
        product.add_transposed_product(x, g, total, precision="bfloat16")
        np.testing.assert_array_equal(on_host(total), start + wanted)

    layer = {"c": on["c"], "weights": on["weights"], "relu": True}
    held_to(np.maximum(A @ B + c[sets], 0), in_pairs["A"], on["B"], **layer)
    held_to(A @ B, in_pairs["A"], on["B"], code=product.NO_POOL)
    back = {"B_along_k": True, "c": on["dm"], "scales": on["scales"], "masked_by": in_pairs["A"]}
    held_to(np.where(A > 0, G @ B.T + scales[:, None] * dm[sets], 0), in_pairs["G"], on["B"], **back)
    gradient_of_weights(in_pairs["A"], in_pairs["G"], A.T @ G)
    for few in range(1, product_of_few.MOST + 1):
        x, W = integers(rows, few), integers(few, columns)
        held_to(np.maximum(x @ W + c[sets], 0), xp.asarray(x), xp.asarray(W), **layer)
        gradient_of_weights(xp.asarray(x), in_pairs["G"], x.T @ G)
    for own in (scales, None):  # in float32, of numbers that are not rounded
        dx = poisoned_pairs(A.shape)
        of_rows = None if own is None else on["scales"]
        partials = pooling.unpool(
            *(on["dm"], in_pairs["A"], on["dm"], on["offsets"], None, of_rows, on["sets"], "sum", None, dx), masked=True
        )
        wanted = np.where(A > 0, dm[sets] * (np.ones(rows) if own is None else own)[:, None], 0)
        assert own is None or (to_bf16(wanted) != wanted).any()
        np.testing.assert_array_equal(on_host(in_float32(dx)), to_bf16(wanted))
        np.testing.assert_array_equal(sums_of(partials), np.add.reduceat(wanted, offsets[:-1]))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], ids=hex)
@ON_TENSOR_CORES
def test_a_nan_of_a_weight_passes_through_tensor_cores(cuda, precision, bits):
    net = fastperm.DeepSet(2, 16, 2, 1, seed=SEED, backend="cuda", precision=precision)
    weights = on_host(net.parameters["layers.1.self"]).copy()
    weights[3] = np.array(bits, np.uint32).view(np.float32)  # 0x7FFFFFFF is what a GPU makes
    net.parameters["layers.1.self"] = weights
    assert np.isnan(net(np.random.default_rng(SEED).standard_normal((1, 32, 2)))).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 · inf, beyond the columns of the head
def test_an_infinite_weight_passes_through_tensor_cores(cuda):
    net = fastperm.DeepSet(2, 16, 2, 3, seed=SEED, backend="cuda", precision="bfloat16")
    weights, bias = (on_host(net.parameters[f"layers.{name}"]).copy() for name in ("1.self", "0.bias"))
    weights[3, 5], bias[3] = np.inf, 100  # a unit that is always on
    net.parameters["layers.1.self"], net.parameters["layers.0.bias"] = weights, bias
    head = on_host(net.parameters["head.weight"])[5]
    y = net(np.random.default_rng(SEED).standard_normal((1, 32, 2)))
    np.testing.assert_array_equal(y[0], np.copysign(np.inf, head))


# Factors are rounded by 2^-11 at most for TF32 and 2^-8 for bfloat16, in three layers, and some units are on in one
# network and off in the other, which gradients feel more: what errors of predictions and gradients are, at most.
MOST = {"tf32": (5e-3, 5e-2), "bfloat16": (4e-2, 1e-1)}
LEAST = {"tf32": 1e-6, "bfloat16": 1e-4}  # what both are at least: more than in float32
ROUNDED_NETWORKS = (
    [("tf32", 16), ("bfloat16", 16), ("bfloat16", 20), ("bfloat16", 36)]  # on chip, and layer by layer
    if compiling.SIMULATED
    else [(precision, width) for precision in MOST for width in (16, 32, 64, 128, 256)]
)


@pytest.mark.parametrize(("precision", "width"), ROUNDED_NETWORKS)
def test_a_precision_is_what_it_says(cuda, precision, width):
    count = 32 if compiling.SIMULATED else 512
    x = np.random.default_rng(SEED).standard_normal((1 if compiling.SIMULATED else 2, count, 2))
    targets = x.sum(axis=1) / count
    nets = [
        fastperm.DeepSet(2, width, 3, 2, seed=SEED, backend=backend, dtype=dtype, precision=own)
        for backend, dtype, own in (("cuda", "float32", precision), ("reference", "float64", "float32"))
    ]
    losses = [net.loss_and_gradients(x, targets) for net in nets]
    gradients = [on_host(net.gradients.flat) for net in nets]
    most, most_of_gradients = MOST[precision]
    assert LEAST[precision] < error(nets[0](x), nets[1](x)) < most
    assert losses[0] == pytest.approx(losses[1], rel=2 * most)
    assert LEAST[precision] < error(*gradients) < most_of_gradients


def test_a_loss_that_is_not_finite_is_returned(cuda):
    case, widths = Case((3,), 2, 1, weighted=False), (2, 3, 1)
    flat, targets = float32(network(widths), np.full((1, 1), np.nan))
    loss = cuda.deep_set_step(
        *float32(case.x), case.offsets, None, targets, flat, widths, "mean", "mean", gradients=np.zeros_like(flat)
    )
    assert np.isnan(float(loss))


def test_adam_does_nothing_after_a_loss_that_is_not_finite(cuda):
    for loss, moved in ((np.nan, False), (np.inf, False), (1.0, True)):
        p, m, v = float32(*np.ones((3, 5)))
        cuda.adam_step(*float32(np.full(5, 2.0)), 1e-2, 0.9, 0.999, 1e-7, 1, p=p, m=m, v=v, loss=np.array(loss))
        assert [np.array_equal(array, np.ones(5)) for array in (p, v)] == [not moved] * 2


def test_a_failed_step_leaves_everything_as_it_was(cuda):
    net, optimizer = fastperm.DeepSet(2, 4, 1, 1, seed=0, backend="cuda"), fastperm.Adam()
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        fastperm.train_step(net, np.ones((2, 3, 2)), np.full((2, 1), np.nan), optimizer)
    assert list(optimizer.state()) == ["steps"]
    x = np.random.default_rng(SEED).standard_normal((2, 3, 2))
    fastperm.train_step(net, x, np.ones((2, 1)), optimizer)
    before = [on_host(net.parameters.flat).copy(), *(array.copy() for array in optimizer.state().values())]
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        fastperm.train_step(net, x, np.full((2, 1), np.nan), optimizer)
    after = [on_host(net.parameters.flat), *optimizer.state().values()]
    for array, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(array, other)


@WEIGHTED
@pytest.mark.parametrize(
    ("aggregate", "pool", "orders"),
    [("mean", "max", 0), ("max", "mean", 0), ("sum", None, 0), ("mean", "max", 2), ("sum", None, 1)],
    ids=brief,
)
def test_deep_set_stream(cuda, aggregate, pool, orders, weighted, monkeypatch):
    from fastperm.kernels.cuda import deep_set_stream

    monkeypatch.setattr(deep_set_stream, "STREAM_ROWS", 8)
    case, widths = Case((21,), 2 + (orders > 0), 1, weighted), (2, 5, 8, 3)
    case.weights = None if case.weights is None else case.weights / 21
    rows = case.T if pool is None else 1
    results = []
    for kernels, dtype in ((cuda, "float32"), (reference, "float64")):
        x, weights, flat = as_dtype(dtype, case.x, case.weights, network(widths, orders=orders))
        c, y = poisoned((2 * (1 + 2 * orders), 8), dtype), poisoned((rows, 3), dtype)

        def blocks(x=x, weights=weights):
            for first in (0, 16):
                own = slice(first, first + 16)
                yield x[own], None if weights is None else weights[own]

        kernels.deep_set_stream_pool(blocks, flat, widths, aggregate, pool, orders, c=c, y=None if pool is None else y)
        if pool is None:
            kernels.deep_set_stream_rows(x, flat, widths, c, orders, y=y)
        results.append(y)
    assert error(*results) <= 2 * TOLERANCE


def test_float64_is_refused(cuda):
    with pytest.raises(TypeError, match="the cuda backend expected an array of float32, got float64"):
        cuda.dense_forward(*np.ones((2, 2, 2)), np.ones(2), y=np.ones((2, 2)))


@ON_TENSOR_CORES
def test_precision_is_where_a_network_computes_and_not_what_it_is(cuda, precision, tmp_path):
    net = fastperm.DeepSet(2, 4, 1, 1, seed=0, backend="cuda", precision=precision)
    assert f"precision='{precision}'" in repr(net)
    assert pickle.loads(pickle.dumps(net)).precision == precision
    assert net.to("cuda").precision == net.to("reference").precision == "float32"
    assert net.to("reference").to("cuda", precision=precision).precision == precision
    net.save(tmp_path / "net.safetensors")
    assert fastperm.load(tmp_path / "net.safetensors", backend="cuda").precision == "float32"


def test_a_run_knows_its_precision(cuda, tmp_path):
    run, task = Run(tmp_path), fastperm.PowerSpectrum(k_max=2, k_fin=2, set_size=4)
    net = fastperm.DeepSet(2, 4, 1, 2, seed=0, backend="cuda", precision="tf32")
    training = {"steps": 1, "batch": 1, "seed": 0, "every": 1, "validate": 0, **fastperm.Adam().config()}
    run.write(task, net, training)
    net.save(run.model)
    assert (run.read()["backend"], run.read()["precision"]) == ("cuda", "tf32")
    assert run.load("cuda", "bfloat16")[1].precision == "bfloat16"
    assert run.load("cuda")[1].precision == "float32"


@WEIGHTED
@pytest.mark.parametrize(("scale", "orders"), [("rms", 2), (None, 1), ("rms", 0), ("rms", None)], ids=brief)
def test_a_network_with_symmetries(cuda, scale, orders, weighted):
    case, targets = Case((4, 1, 3), 2, 1, weighted), np.ones((3, 2))
    settings = {"symmetry": None if orders is None else "circle", "orders": orders, "scale": scale, "seed": SEED}
    nets = [fastperm.DeepSet(2, 4, 2, 2, backend=name, **settings) for name in ("cuda", "reference")]
    sets = fastperm.Sets(case.x, case.offsets, case.weights)
    losses = [fastperm.train_step(net, sets, targets, fastperm.Adam()) for net in nets]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    y = nets[0](sets)
    assert error(y, nets[1](sets)) <= 1e-4
    dx = [net.backward(np.ones((3, 2)), net.forward(sets)[1]) for net in nets]
    assert error(*dx) <= 1e-4
    x, weights = case.x[5:], None if case.weights is None else case.weights[5:]
    assert error(nets[0].predict_stream(x, weights=weights), y[2]) <= TOLERANCE
    if orders is not None:
        turned = nets[0](fastperm.Sets(case.x + np.array([2.5, 0]), case.offsets, case.weights))
        assert error(turned, y) <= TOLERANCE
    if scale is not None:
        louder = nets[0](fastperm.Sets(case.x * np.array([1, 50]), case.offsets, case.weights))
        assert error(louder, y + 2 * np.log(50)) <= TOLERANCE


def test_a_network_trains_and_moves_between_backends(cuda):
    x, targets = np.random.default_rng(SEED).standard_normal((3, 5, 2)), np.ones((3, 2))
    nets = [fastperm.DeepSet(2, 4, 2, 2, seed=0, backend=name) for name in ("cuda", "reference")]
    optimizers = [fastperm.Adam(), fastperm.Adam()]
    for _ in range(2):
        losses = [fastperm.train_step(net, x, targets, own) for net, own in zip(nets, optimizers, strict=True)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert error(nets[0](x), nets[1](x)) <= 1e-4
    dx = [net.backward(np.ones((3, 2)), net.forward(x)[1]) for net in nets]
    assert error(*dx) <= 1e-4
    moved = nets[0].to("reference")
    assert error(moved(x), nets[0](x)) <= TOLERANCE
    assert error(nets[0].predict_stream(lambda: [x[0]]), nets[0](x[:1])[0]) <= TOLERANCE
