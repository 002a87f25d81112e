"""The kernels of the whole network against autograd: every way of pooling, every kind of batch, odd widths."""

import functools
from itertools import pairwise

import autograd
import autograd.numpy as anp
import numpy as np
import oracle
import pytest
from cases import BACKENDS, LARGE_COUNTS, TOLERANCES, Case, as_dtype, error, kernels, poisoned, split_large_sets

from fastperm.kernels.cpu import workers

WIDTHS = [(3, 16, 16, 4), (1, 5, 33, 17, 1), (2, 70, 4), (17, 130, 9, 130, 40)]
COUNTS = [(1,), (7, 1, 30, 12), (26,) * 3, (1013, 2)]
HOW = ("mean", "sum", "max")


def make(widths, counts, weighted, orders=0, seed=3):
    """Return a case, flat parameters (no bias is zero: no unit sits on the kink of its ReLU), and their names."""
    case = Case(counts, widths[0] + (orders > 0), 1, weighted)
    generator = np.random.default_rng(seed)
    named = {}
    for i, (K_in, K_out) in enumerate(pairwise(widths[:-1])):
        for name, shape in (("self", (K_in, K_out)), ("pool", (K_in, K_out)), ("bias", (K_out,))):
            named[f"layers.{i}.{name}"] = generator.standard_normal(shape) / np.sqrt(shape[0])
        for name in ("cos", "sin") if orders else ():
            named[f"layers.{i}.{name}"] = generator.standard_normal((orders, K_in, K_out)) / np.sqrt(4 * orders * K_in)
    named["head.weight"] = generator.standard_normal(widths[-2:]) / np.sqrt(widths[-2])
    named["head.bias"] = generator.standard_normal(widths[-1])
    return case, named, np.concatenate([array.ravel() for array in named.values()])


# Tests with one answer follow each other: pytest varies first what is parametrized on top.
@functools.lru_cache(maxsize=len(WIDTHS))
def wanted(widths, counts, weighted, aggregate, pool, orders):
    """Return a batch, flat parameters, and by the oracle the prediction, the loss and its gradients by name."""
    case, named, flat = make(widths, counts, weighted, orders)
    if aggregate == "sum":  # keep numbers of size 1 through the layers
        case.weights = case.w / case.counts.max()
    rows = case.T if pool is None else case.S
    targets = np.random.default_rng(4).standard_normal((rows, widths[-1]))
    depth = len(widths) - 2

    def predict(named):
        return oracle.deep_set(case.x, named, case.bounds, case.w, depth, aggregate, pool)

    def loss(named):
        return anp.mean((predict(named) - targets) ** 2)

    value, gradients = autograd.value_and_grad(loss)(named)
    return (case.x, case.offsets, case.weights, targets), flat, (predict(named), value, gradients)


def check(backend, widths, counts, weighted, aggregate, pool, dtype, orders=0):
    """Compare prediction, loss and gradients with those of the oracle."""
    (*batch, targets), flat, (wanted_y, loss, of_oracle) = wanted(widths, counts, weighted, aggregate, pool, orders)
    x, weights, parameters, targets = as_dtype(dtype, batch[0], batch[2], flat, targets)
    y, gradients = poisoned(targets.shape, dtype), np.zeros(flat.shape, dtype)
    batch, network = (x, batch[1], weights), (parameters, widths, aggregate, pool, orders)
    kernels(backend).deep_set_forward(*batch, *network, y=y)
    found = kernels(backend).deep_set_step(*batch, targets, *network, gradients=gradients)
    assert error(y, wanted_y) <= TOLERANCES[dtype]
    assert isinstance(found, float)
    assert found == pytest.approx(loss, rel=TOLERANCES[dtype])
    start = 0
    for name, gradient in of_oracle.items():
        own = gradients[start : start + gradient.size].reshape(gradient.shape)
        # A set of one element sees itself at no distance, and a sine of that is zero, to the rounding of the cosine.
        likewise = of_oracle[name.replace(".sin", ".cos")]
        size = max(np.abs(gradient).max(), np.abs(likewise).max())
        assert np.abs(own - gradient).max() <= TOLERANCES[dtype] * size, (widths, name)
        start += gradient.size


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("pool", [*HOW, None])
@pytest.mark.parametrize("aggregate", HOW)
def test_prediction_loss_and_gradients_match_autograd(backend, aggregate, pool, counts, weighted, dtype):
    for widths in WIDTHS:
        check(backend, widths, counts, weighted, aggregate, pool, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("counts", [*COUNTS[:3], (301, 2)], ids=str)  # the oracle goes through all pairs
@pytest.mark.parametrize("pool", [*HOW, None])
@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_angular_networks_match_autograd(backend, aggregate, pool, counts, weighted, dtype):
    for orders, widths in zip((1, 3, 2), WIDTHS, strict=False):
        check(backend, widths, counts, weighted, aggregate, pool, dtype, orders)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("counts", LARGE_COUNTS, ids=str)
@pytest.mark.parametrize("pool", [*HOW, None])
@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_large_sets_of_angular_networks_match_the_reference(monkeypatch, aggregate, pool, counts, weighted):
    for orders, widths in zip((1, 3, 2), WIDTHS, strict=False):
        split_large_sets(monkeypatch, counts, max(widths))
        case, _, flat = make(widths, counts, weighted, orders)
        if aggregate == "sum":  # keep numbers of size 1 through the layers
            case.weights = case.w / case.counts.max()
        compare_with_reference(case, flat, widths, aggregate, pool, orders)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("counts", LARGE_COUNTS, ids=str)
@pytest.mark.parametrize("pool", [*HOW, None])
@pytest.mark.parametrize("aggregate", HOW)
def test_large_sets_match_autograd(monkeypatch, aggregate, pool, counts, weighted, dtype):
    for widths in WIDTHS[:3]:
        split_large_sets(monkeypatch, counts, max(widths))
        check("cpu", widths, counts, weighted, aggregate, pool, dtype)


@pytest.mark.parametrize("pool", ["mean", "max", None])
def test_a_set_of_real_size_matches_the_reference(pool):
    widths, counts = (2, 64, 64, 64, 4), (100, 20_000, 3)
    case, _, flat = make(widths, counts, weighted=True)
    assert workers.large_sets(case.offsets, 64) == [1]
    compare_with_reference(case, flat, widths, "mean", pool)


def compare_with_reference(case, flat, widths, aggregate, pool, orders=0):
    batch, how = (case.x, case.offsets, case.weights), (flat, widths, aggregate, pool, orders)
    y = {backend: poisoned((case.T if pool is None else case.S, widths[-1]), "float64") for backend in BACKENDS}
    targets = np.random.default_rng(4).standard_normal(y["cpu"].shape)
    losses, gradients = {}, {}
    for backend in BACKENDS:
        kernels(backend).deep_set_forward(*batch, *how, y=y[backend])
        gradients[backend] = np.zeros(flat.shape)
        losses[backend] = kernels(backend).deep_set_step(*batch, targets, *how, gradients=gradients[backend])
    assert error(y["cpu"], y["reference"]) <= 1e-12
    assert error(gradients["cpu"], gradients["reference"]) <= 1e-12
    assert losses["cpu"] == pytest.approx(losses["reference"], rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_accumulate(backend):
    case, _, flat = make((3, 16, 16, 4), (7, 1, 30), weighted=True)
    targets = np.random.default_rng(4).standard_normal((case.S, 4))
    fresh, added = np.zeros(flat.shape), np.full(flat.shape, 2.5)
    for gradients in (fresh, added):
        kernels(backend).deep_set_step(
            case.x, case.offsets, case.weights, targets, flat, (3, 16, 16, 4), "mean", "mean", gradients=gradients
        )
    assert error(added, fresh + 2.5) <= 1e-13
