import autograd
import numpy as np
import oracle
import pytest
from cases import (
    BACKENDS,
    LARGE_COUNTS,
    TOLERANCES,
    Case,
    all_cases,
    as_dtype,
    error,
    kernels,
    poisoned,
    split_large_sets,
)

POOLS = ("mean", "sum", "max")


def run(backend, case, pool, dtype="float64"):
    x, weights, dp = as_dtype(dtype, case.x, case.weights, case.dp)
    p, dx = poisoned((case.S, x.shape[1]), dtype), poisoned(x.shape, dtype)
    kernels(backend).pooling_forward(x, case.offsets, weights, pool, p=p)
    kernels(backend).pooling_backward(dp, x, p, case.offsets, weights, pool, dx=dx)
    return p, dx


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("backend", BACKENDS)
@all_cases
def test_matches_autograd(backend, pool, dtype, shape, weighted):
    check(backend, Case(*shape, weighted), pool, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("counts", LARGE_COUNTS, ids=str)
def test_large_sets_match_autograd(monkeypatch, counts, pool, weighted, dtype):
    split_large_sets(monkeypatch, counts, 17)
    check("cpu", Case(counts, 17, 1, weighted), pool, dtype)


def test_ties_are_shared_across_the_pieces_of_a_large_set(monkeypatch):
    counts = (3, 2000)
    split_large_sets(monkeypatch, counts, 2)
    case = Case(counts, 2, 1, weighted=True)
    case.x[700:, 0] = 5.0
    for found, wanted in zip(run("cpu", case, "max"), run("reference", case, "max"), strict=True):
        assert error(found, wanted) <= TOLERANCES["float64"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nobody_attains_a_maximum_that_is_nan(backend):
    case = Case((2, 3), 2, 1, weighted=False)
    case.x[0, 1] = np.nan
    p, dx = run(backend, case, "max")
    assert np.isnan(p).tolist() == [[False, True], [False, False]]
    assert not dx[:2, 1].any()
    sums = np.add.reduceat(dx, case.offsets[:-1], axis=0)  # each gradient goes to one element
    np.testing.assert_array_equal(sums, np.where(np.isnan(p), 0, case.dp))


def check(backend, case, pool, dtype):
    p, dx = run(backend, case, pool, dtype)
    assert error(p, oracle.pooling(case.x, case.bounds, case.w, pool)) <= TOLERANCES[dtype]

    def loss(x):
        return autograd.numpy.sum(oracle.pooling(x, case.bounds, case.w, pool) * case.dp)

    assert error(dx, autograd.grad(loss)(case.x)) <= TOLERANCES[dtype]


@pytest.mark.parametrize("pool", POOLS)
@all_cases
def test_reference_matches_central_differences(pool, shape, weighted):
    case = Case(*shape, weighted)
    _, dx = run("reference", case, pool)
    direction, step = np.random.default_rng(1).standard_normal(case.x.shape), 1e-6
    x, losses = case.x, []
    for sign in (1, -1):
        case.x = x + sign * step * direction
        losses.append(np.sum(run("reference", case, pool)[0] * case.dp))
    # Piecewise linear, as the layers are: what is left is rounding, 1e-16 / 1e-6 of the terms that were summed.
    difference = (losses[0] - losses[1]) / (2 * step)
    assert abs(difference - np.sum(dx * direction)) <= 1e-7 * np.linalg.norm(dx * direction)


@pytest.mark.parametrize("backend", BACKENDS)
def test_elements_that_tie_for_the_maximum_share_its_gradient_by_weight(backend):
    case = Case((4,), 1, 1, weighted=True)
    case.x[:, 0] = [3, 1, 3, 3]
    case.weights[:] = [2, 5, 1, 0]  # the last one is not there
    case.dp[:] = 6
    p, dx = run(backend, case, "max")
    assert p.item() == 3
    np.testing.assert_allclose(dx[:, 0], [4, 0, 2, 0], rtol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_long_float32_sums_keep_their_digits(backend, pool):
    # A plain float32 sum of a million terms loses three digits; blocks of float32 within a float64 sum lose none.
    case = Case((1_000_000,), 2, 1, weighted=False)
    case.x = np.abs(case.x.astype(np.float32)).astype(np.float64)
    p, _ = run(backend, case, pool, "float32")
    wanted = case.x.sum(axis=0) / (case.T if pool == "mean" else 1)
    np.testing.assert_allclose(p[0], wanted, rtol=3e-7)
