"""The scales of sets against loops over sets, and gradients against those that `autograd` derives."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from cases import BACKENDS, SHAPES, TOLERANCES, Case, as_dtype, error, kernels, poisoned

# (elements per set, K); the last ones have sets of several pieces.
BATCHES = (*((counts, K) for counts, K, _ in SHAPES), ((1024, 1, 1025), 2), ((3000,), 1))
ALL_BATCHES = pytest.mark.parametrize(("counts", "K"), BATCHES, ids=str)
WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
POSITIONS = pytest.mark.parametrize("positions", [True, False], ids=["positions", "values-alone"])


def roots(values, case):
    """Return r (S,), a set after another."""
    own = [(values[a:b], case.w[a:b]) for a, b in case.bounds]
    return anp.stack([anp.sqrt(anp.sum(w[:, None] * v**2) / (v.shape[1] * anp.sum(w))) for v, w in own])


@POSITIONS
@WEIGHTED
@ALL_BATCHES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward(backend, dtype, counts, K, weighted, positions):
    case = Case(counts, 1 + K, 1, weighted)
    x, weights = as_dtype(dtype, case.x, case.weights)
    u, r = poisoned((case.T, K + positions), dtype), poisoned(case.S, "float64")
    kernels(backend).root_mean_square_forward(x, case.offsets, weights, u=u, r=r)
    wanted = roots(x[:, 1:].astype(float), case)
    assert error(r, wanted) <= TOLERANCES[dtype]
    np.testing.assert_allclose(
        u[:, positions:],
        np.where(case.w[:, None] > 0, x[:, 1:] / np.repeat(wanted, counts)[:, None], 0),
        rtol=TOLERANCES[dtype],
    )
    if positions:
        np.testing.assert_array_equal(u[:, 0], x[:, 0])


@POSITIONS
@WEIGHTED
@ALL_BATCHES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backward(backend, dtype, counts, K, weighted, positions):
    case, generator = Case(counts, 1 + K, 1, weighted), np.random.default_rng(1)
    du, dr = generator.standard_normal((case.T, 1 + K)), generator.standard_normal(case.S)

    def scalar(values):
        r = roots(values, case)
        present = case.w[:, None] > 0
        u = anp.concatenate([values[a:b] / own for (a, b), own in zip(case.bounds, r, strict=True)])
        return anp.sum(u * du[:, 1:] * present) + anp.sum(r * dr)

    wanted = autograd.grad(scalar)(case.x[:, 1:])
    x, weights, du_ = as_dtype(dtype, case.x, case.weights, du)
    u, r, dx = poisoned((case.T, K + positions), dtype), np.empty(case.S), poisoned(x.shape, dtype)
    own = kernels(backend)
    own.root_mean_square_forward(x, case.offsets, weights, u=u, r=r)
    own.root_mean_square_backward(du_, u, r, r * dr, case.offsets, weights, dx=dx)
    present = case.w > 0  # u of the others is 0, which the formula of the gradient does not look at
    assert error(dx[present, 1:], wanted[present]) <= 10 * TOLERANCES[dtype]
    divided = du_[:, 1:].astype(float) / np.repeat(r, counts)[:, None]
    np.testing.assert_allclose(dx[~present, 1:], divided[~present], rtol=TOLERANCES[dtype])
    np.testing.assert_array_equal(dx[:, 0], du_[:, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_set_without_a_scale(backend):
    own, offsets = kernels(backend), np.array([0, 2, 4, 5])
    values = np.array([0, 0, 1e-150, -3e-150, 2.0])
    x, u, r, dx = np.stack([np.ones(5), values], axis=1), np.empty((5, 2)), np.empty(3), np.empty((5, 2))
    own.root_mean_square_forward(x, offsets, None, u=u, r=r)
    np.testing.assert_array_equal(r, [1, 1, 2])
    np.testing.assert_array_equal(u[:, 1], [*values[:4], 1])
    own.root_mean_square_backward(np.ones((5, 2)), u, r, np.ones(3), offsets, None, dx=dx)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_squares_out_of_range_are_refused(backend):
    x, r = np.ones((6, 2)), np.empty(3)
    x[4, 1] = 1e200
    with pytest.raises(ValueError, match="set 2: the squares of its values leave the range of float64"):
        kernels(backend).root_mean_square_forward(x, np.array([0, 1, 3, 6]), None, u=np.empty_like(x), r=r)
