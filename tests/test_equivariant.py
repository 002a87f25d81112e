import autograd
import numpy as np
import oracle
import pytest
from cases import (
    BACKENDS,
    LARGE_COUNTS,
    SHAPES,
    TOLERANCES,
    Case,
    all_cases,
    as_dtype,
    error,
    kernels,
    poisoned,
    split_large_sets,
)

AGGREGATES = ("mean", "sum", "max")
ACTIVATIONS = ("relu", "identity")


def run_forward(backend, case, aggregate, activation, dtype="float64", x=None):
    x, weights, W_self, W_pool, b = as_dtype(
        dtype, case.x if x is None else x, case.weights, case.W_self, case.W_pool, case.b
    )
    y, m = poisoned((case.T, b.size), dtype), poisoned((case.S, x.shape[1]), dtype)
    kernels(backend).equivariant_forward(x, case.offsets, weights, W_self, W_pool, b, aggregate, activation, y=y, m=m)
    return y, m


def run_backward(backend, case, aggregate, activation, dtype="float64", start=0.0, inputs=True):
    y, m = run_forward(backend, case, aggregate, activation, dtype)
    dy, x, weights, W_self, W_pool = as_dtype(dtype, case.dy, case.x, case.weights, case.W_self, case.W_pool)
    dx = poisoned(x.shape, dtype) if inputs else None
    dW_self, dW_pool, db = (np.full(shape, start, dtype) for shape in (W_self.shape, W_pool.shape, case.b.shape))
    kernels(backend).equivariant_backward(
        dy, x, y, m, case.offsets, weights, W_self, W_pool, aggregate, activation,
        dx=dx, dW_self=dW_self, dW_pool=dW_pool, db=db,
    )  # fmt: skip
    return dx, dW_self, dW_pool, db


def oracle_gradients(case, aggregate, activation):
    def loss(x, W_self, W_pool, b):
        y = oracle.equivariant(x, case.bounds, case.w, W_self, W_pool, b, aggregate, activation)
        return autograd.numpy.sum(y * case.dy)

    return autograd.grad(loss, argnum=(0, 1, 2, 3))(case.x, case.W_self, case.W_pool, case.b)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("backend", BACKENDS)
@all_cases
def test_forward_and_backward_match_autograd(backend, aggregate, activation, dtype, shape, weighted):
    check(backend, Case(*shape, weighted), aggregate, activation, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("counts", LARGE_COUNTS, ids=str)
def test_large_sets_match_autograd(monkeypatch, counts, aggregate, weighted, dtype):
    split_large_sets(monkeypatch, counts, 33)
    check("cpu", Case(counts, 17, 33, weighted), aggregate, "relu", dtype)


def check(backend, case, aggregate, activation, dtype):
    y, _ = run_forward(backend, case, aggregate, activation, dtype)
    wanted = oracle.equivariant(case.x, case.bounds, case.w, case.W_self, case.W_pool, case.b, aggregate, activation)
    assert error(y, wanted) <= TOLERANCES[dtype]
    found = run_backward(backend, case, aggregate, activation, dtype)
    for array, gradient in zip(found, oracle_gradients(case, aggregate, activation), strict=True):
        assert array.dtype == dtype
        assert error(array, gradient) <= TOLERANCES[dtype]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@all_cases
def test_reference_matches_central_differences(aggregate, shape, weighted):
    case = Case(*shape, weighted)
    generator = np.random.default_rng(1)
    gradients = run_backward("reference", case, aggregate, "relu")
    step = 1e-6
    for name, gradient in zip(("x", "W_self", "W_pool", "b"), gradients, strict=True):
        value = getattr(case, name)
        direction = generator.standard_normal(value.shape)
        losses = []
        for sign in (1, -1):
            setattr(case, name, value + sign * step * direction)
            losses.append(np.sum(run_forward("reference", case, aggregate, "relu")[0] * case.dy))
        setattr(case, name, value)
        difference = (losses[0] - losses[1]) / (2 * step)
        # The layer is piecewise linear: what is left is rounding, 1e-16 / 1e-6 of the terms that were summed.
        scale = np.linalg.norm(gradient * direction)
        assert abs(difference - np.sum(gradient * direction)) <= 1e-7 * scale


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameter_gradients_accumulate_and_input_gradient_is_overwritten(backend):
    case = Case(*SHAPES[2], weighted=True)
    fresh = run_backward(backend, case, "mean", "relu")
    added = run_backward(backend, case, "mean", "relu", start=2.5)
    assert error(added[0], fresh[0]) == 0
    for more, plain in zip(added[1:], fresh[1:], strict=True):
        assert error(more, plain + 2.5) <= 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_input_gradient_can_be_left_out(backend, aggregate):
    case = Case(*SHAPES[2], weighted=True)
    with_inputs = run_backward(backend, case, aggregate, "relu")
    without = run_backward(backend, case, aggregate, "relu", inputs=False)
    assert without[0] is None
    for a, b in zip(without[1:], with_inputs[1:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_row_has_the_same_bits_wherever_it_stands(aggregate):
    case = Case((131,), 33, 100, weighted=False)
    # The maximum does not depend on the order at all; for the others the pooled term is taken out.
    if aggregate != "max":
        case.W_pool[:] = 0
    order = np.random.default_rng(2).permutation(case.T)
    y, _ = run_forward("cpu", case, aggregate, "relu", "float32")
    moved, _ = run_forward("cpu", case, aggregate, "relu", "float32", x=case.x[order])
    np.testing.assert_array_equal(moved, y[order])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_passes_through(backend, activation):
    case = Case((5, 4), 3, 17, weighted=False)
    case.x[1, 2] = np.nan
    y, _ = run_forward(backend, case, "max", activation)
    assert np.isnan(y[:5]).all()
    assert np.isfinite(y[5:]).all()


def test_nan_passes_through_a_large_set(monkeypatch):
    split_large_sets(monkeypatch, (1500, 4), 17)
    case = Case((1500, 4), 3, 17, weighted=False)
    case.x[1234, 2] = np.nan
    y, _ = run_forward("cpu", case, "max", "relu")
    assert np.isnan(y[:1500]).all()
    assert np.isfinite(y[1500:]).all()
