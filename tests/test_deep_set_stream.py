"""One set block by block: the kernels against the oracle, and what must not change a bit."""

import numpy as np
import oracle
import pytest
from cases import BACKENDS, TOLERANCES, as_dtype, error, kernels, poisoned, split_large_sets
from test_deep_set import HOW, WIDTHS, make

from fastperm.kernels.cpu import deep_set_stream, workers
from fastperm.kernels.reference.deep_set_stream import STREAM_ROWS


@pytest.fixture(autouse=True)
def default_threads():
    yield
    workers.set_num_threads(None)


def predict(backend, x, weights, parameters, widths, aggregate, pool, block_rows, orders=0):
    """Return the prediction (rows, K_fin) for one set in blocks of so many rows."""
    c = poisoned(((len(widths) - 2) * (1 + 2 * orders), max(widths)), x.dtype)
    starts = range(0, len(x), block_rows)

    def blocks():
        for first in starts:
            own = slice(first, first + block_rows)
            yield x[own], None if weights is None else weights[own]

    y = poisoned((len(x) if pool is None else 1, widths[-1]), x.dtype)
    network = (parameters, widths, aggregate, pool, orders)
    kernels(backend).deep_set_stream_pool(blocks, *network, c=c, y=None if pool is None else y)
    if pool is None:
        for first in starts:
            own = slice(first, first + block_rows)
            kernels(backend).deep_set_stream_rows(x[own], parameters, widths, c, orders, y=y[own])
    return y


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("n", [1, 1000, 2048, 2500])
@pytest.mark.parametrize("pool", [*HOW, None])
@pytest.mark.parametrize("aggregate", HOW)
@pytest.mark.parametrize("backend", BACKENDS)
def test_prediction_matches_the_oracle(backend, aggregate, pool, n, weighted, dtype):
    for widths in WIDTHS:
        case, named, flat = make(widths, (n,), weighted)
        if aggregate == "sum":  # keep numbers of size 1 through the layers
            case.weights = case.w / n
        wanted = oracle.deep_set(case.x, named, case.bounds, case.w, len(widths) - 2, aggregate, pool)
        x, weights, parameters = as_dtype(dtype, case.x, case.weights, flat)
        y = predict(backend, x, weights, parameters, widths, aggregate, pool, STREAM_ROWS)
        assert error(y, wanted) <= TOLERANCES[dtype]


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("n", [1, 300, 2500])
@pytest.mark.parametrize("pool", [*HOW, None])
@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_prediction_of_an_angular_network_matches_the_oracle(backend, aggregate, pool, n, weighted):
    for orders, widths in zip((1, 3, 2), WIDTHS, strict=False):
        case, named, flat = make(widths, (n,), weighted, orders)
        if aggregate == "sum":  # keep numbers of size 1 through the layers
            case.weights = case.w / n
        how = (flat, widths, aggregate, pool, orders)
        y = predict(backend, case.x, case.weights, *how[:-1], STREAM_ROWS, orders)
        if n < 1000:
            wanted = oracle.deep_set(case.x, named, case.bounds, case.w, len(widths) - 2, aggregate, pool)
        else:  # the oracle goes through all pairs
            wanted = poisoned(y.shape, "float64")
            kernels("reference").deep_set_forward(case.x, np.array([0, n]), case.weights, *how, y=wanted)
        assert error(y, wanted) <= TOLERANCES["float64"]


@pytest.mark.parametrize("pool", [*HOW, None])
@pytest.mark.parametrize(("aggregate", "orders"), [*((how, 0) for how in HOW), ("mean", 3), ("sum", 3)])
@pytest.mark.parametrize("widths", [(3, 17, 40, 5, 2), (3, 256, 64, 64, 2), (300, 64, 64, 2)], ids=str)
def test_neither_blocks_nor_threads_nor_memory_change_a_bit(monkeypatch, widths, aggregate, pool, orders):
    n = 9 * STREAM_ROWS + 77
    case, _, flat = make(widths, (n,), True, orders)
    case.weights /= n
    x, weights, parameters = as_dtype("float32", case.x, case.weights, flat)
    how = (parameters, widths, aggregate, pool)
    wanted = predict("cpu", x, weights, *how, n, orders)
    for count in (1, 2, 5):
        np.testing.assert_array_equal(predict("cpu", x, weights, *how, count * STREAM_ROWS, orders), wanted)
    monkeypatch.setattr(deep_set_stream, "ROUND", 2)
    np.testing.assert_array_equal(predict("cpu", x, weights, *how, n, orders), wanted)
    split_large_sets(monkeypatch, (n,), max(widths))
    for threads in (1, 2, 3, 8):
        workers.set_num_threads(threads)
        for most in (0, 2**30):  # activations computed anew in each pass, and kept
            monkeypatch.setattr(deep_set_stream, "KEPT_BYTES", most)
            y = poisoned(wanted.shape, "float32")
            kernels("cpu").deep_set_forward(x, np.array([0, n]), weights, *how, orders, y=y)
            np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("aggregate", HOW)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_passes_through(backend, aggregate):
    case, _, flat = make((3, 16, 16, 4), (2000,), weighted=False)
    case.x[1234, 2] = np.nan
    y = predict(backend, case.x, None, flat, (3, 16, 16, 4), aggregate, "mean", STREAM_ROWS)
    assert np.isnan(y).all()


def test_a_block_of_weight_zero_adds_nothing():
    n, widths = 3 * STREAM_ROWS, (3, 16, 16, 4)
    case, _, flat = make(widths, (n,), weighted=True)
    case.weights[STREAM_ROWS : 2 * STREAM_ROWS] = 0
    case.x[STREAM_ROWS : 2 * STREAM_ROWS] = 100
    present = np.r_[0:STREAM_ROWS, 2 * STREAM_ROWS : n]
    case.weights /= n
    for aggregate in HOW:
        found, wanted = (
            predict("cpu", x, w, flat, widths, aggregate, "max", STREAM_ROWS)
            for x, w in ((case.x, case.weights), (case.x[present], case.weights[present]))
        )
        np.testing.assert_array_equal(found, wanted)
