"""Prediction for a set that is read in chunks: however it is cut, and what is wrong with it."""

import subprocess
import sys

import numpy as np
import pytest
from cases import BACKENDS, error, split_large_sets
from hypothesis import given, settings
from hypothesis import strategies as st

import fastperm
from fastperm import streams

POOLS = ("mean", "sum", "max", None)


def make_net(pool="mean", aggregate="mean", **options):
    return fastperm.DeepSet(2, [9, 20, 5], 3, 4, pool=pool, aggregate=aggregate, seed=0, **options)


def make_set(n, weighted, dtype="float32"):
    generator = np.random.default_rng(n)
    x = generator.standard_normal((n, 2)).astype(dtype)
    return x, generator.choice([0, 0.5, 1, 3], n).astype(dtype) if weighted else None


def cut(x, weights, ends):
    """Return a function that yields the set in chunks between these rows."""

    def chunks():
        for first, last in zip([0, *ends], [*ends, len(x)], strict=True):
            yield x[first:last] if weights is None else (x[first:last], weights[first:last])

    return chunks


def joined(y):
    """Return the prediction of `predict_stream` as one array of rows."""
    return y[None] if isinstance(y, np.ndarray) else np.concatenate(list(y))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1)  # the least: blocks of 1024 rows


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("aggregate", ["mean", "max"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("small_blocks")
def test_it_is_the_prediction_for_the_whole_set(backend, aggregate, pool, weighted):
    x, weights = make_set(3000, weighted, "float64")
    if weighted:
        weights /= 1000
    net = make_net(pool, aggregate, dtype="float64", backend=backend)
    wanted = net(fastperm.Sets(x, [0, len(x)], weights))
    found = joined(net.predict_stream(cut(x, weights, [100, 100, 2000])))
    assert error(found, wanted) <= 1e-12


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("aggregate", ["mean", "max"])
@pytest.mark.usefixtures("small_blocks")
def test_a_large_set_has_the_same_bits(monkeypatch, aggregate, pool, weighted):
    x, weights = make_set(5000, weighted)
    split_large_sets(monkeypatch, [5000], 20)
    net = make_net(pool, aggregate, backend="cpu")
    wanted = net(fastperm.Sets(x, [0, len(x)], weights))
    np.testing.assert_array_equal(joined(net.predict_stream(cut(x, weights, [100, 2000]))), wanted)
    np.testing.assert_array_equal(joined(net.predict_stream(x, weights=weights)), wanted)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 2500), max_size=8),
    st.booleans(),
    st.sampled_from(["mean", None]),
    st.sampled_from(BACKENDS),
)
def test_how_it_is_cut_changes_no_bit(ends, weighted, pool, backend):
    x, weights = make_set(2500, weighted)
    net = make_net(pool, backend=backend)
    before, streams.BLOCK_BYTES = streams.BLOCK_BYTES, 1
    try:
        wanted = joined(net.predict_stream(lambda: [x if weights is None else (x, weights)]))
        found = net.predict_stream(cut(x, weights, sorted(ends)))
        if pool is None:
            found = list(found)
            assert [len(y) for y in found] == np.diff([0, *sorted(ends), 2500]).tolist()
        np.testing.assert_array_equal(joined(found), wanted)
    finally:
        streams.BLOCK_BYTES = before


@pytest.mark.parametrize("pool", ["mean", None])
@pytest.mark.usefixtures("small_blocks")
def test_chunks_of_one_row(pool):
    x, _ = make_set(1100, False)
    net = make_net(pool)
    wanted = joined(net.predict_stream(x))
    np.testing.assert_array_equal(joined(net.predict_stream(cut(x, None, range(1, 1100)))), wanted)


@pytest.mark.parametrize("pool", ["mean", None])
def test_an_array_on_disk(tmp_path, pool):
    x, weights = make_set(2500, True)
    for name, array in (("x", x), ("weights", weights)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped, mapped_weights = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "weights"))
    net = make_net(pool)
    wanted = joined(net.predict_stream(x, weights=weights))
    np.testing.assert_array_equal(joined(net.predict_stream(mapped, weights=mapped_weights)), wanted)


def test_anything_that_can_be_cut_into_slices_is_an_array():
    x, _ = make_set(2500, False)

    class Dataset:
        shape = x.shape

        def __getitem__(self, rows):
            assert isinstance(rows, slice)
            return x[rows].tolist()

    np.testing.assert_array_equal(make_net().predict_stream(Dataset()), make_net().predict_stream(x))


def test_rows_go_out_with_the_parameters_that_came_in():
    x, _ = make_set(50, False)
    net = make_net(None)
    wanted = joined(net.predict_stream(x))
    found = net.predict_stream(x)
    net.parameters["head.bias"] = 7
    np.testing.assert_array_equal(joined(found), wanted)


GOOD = np.ones((3, 2))
WITH_NAN = np.where(np.arange(6).reshape(3, 2) == 3, np.nan, 1.0)


CASES = [
    (list, ValueError, "the stream has no elements"),
    (lambda: [GOOD[:0]], ValueError, "the stream has no elements"),
    (GOOD[:0], ValueError, "the stream has no elements"),
    (lambda: [GOOD, np.ones((3, 4))], ValueError, r"chunk 1: expected shape \(n, 2\), got \(3, 4\)"),
    (lambda: [np.ones(2)], ValueError, r"chunk 0: expected shape \(n, 2\), got \(2,\)"),
    (lambda: [GOOD, WITH_NAN], ValueError, "chunk 1, row 1: values must be finite in float32, got nan in feature 1"),
    (lambda: [GOOD * 1e60], ValueError, "chunk 0, row 0: values must be finite in float32, got inf"),
    (lambda: [GOOD.astype(str)], TypeError, "chunk 0 must be real numbers, float32 or float64, got dtype <U"),
    (lambda: [GOOD + 0j], TypeError, "chunk 0 must be real numbers, .* got dtype complex128"),
    (lambda: [np.ma.masked_less(GOOD, 0)], TypeError, "chunk 0 is a masked array"),
    (lambda: [(GOOD, np.ones(3), 1)], ValueError, r"chunk 0: expected an array or a pair \(values, weights\), got 3"),
    (lambda: [(GOOD, np.ones(2))], ValueError, r"chunk 0: weights must have shape \(n,\) = \(3,\), got \(2,\)"),
    (lambda: [(GOOD, [1, -1, 1])], ValueError, "chunk 0, row 1: weights must be finite .* non-negative, got -1"),
    (lambda: [(GOOD, [1, 1, np.nan])], ValueError, "chunk 0, row 2: weights must be finite .*, got nan"),
    (lambda: [(GOOD, ["a", "b", "c"])], TypeError, "chunk 0: weights must be real numbers"),
    (lambda: [(GOOD, np.zeros(3))], ValueError, "weights must have a positive sum within the range of float32, .* 0"),
    (
        lambda: [(GOOD, np.ones(3)), GOOD],
        ValueError,
        r"chunk 1: expected \(values, weights\) as in chunk 0, got values",
    ),
    (lambda: [GOOD, (GOOD, np.ones(3))], ValueError, r"chunk 1: expected values alone as in chunk 0, got \(values"),
    (lambda: 5, TypeError, r"chunks\(\) must return an iterable of arrays, got int"),
    ((x for x in [GOOD]), TypeError, "a function that returns the chunks anew for each pass, got generator"),
    ([GOOD], TypeError, "got list; of a list, `lambda: chunks` makes one"),
    (None, TypeError, "chunks must be an array of shape .* got NoneType"),
    (np.ones((3, 4)), ValueError, r"chunks: expected an array of shape \(T, 2\), got \(3, 4\)"),
    (np.ones((1, 3, 2)), ValueError, r"expected an array of shape \(T, 2\), got \(1, 3, 2\)"),
]


@pytest.mark.parametrize("pool", ["mean", None])
@pytest.mark.parametrize(("chunks", "kind", "message"), CASES, ids=[case[2][:50] for case in CASES])
def test_bad_chunks_are_told_what_was_expected(chunks, kind, message, pool):
    with pytest.raises(kind, match=message):
        make_net(pool).predict_stream(chunks)


@pytest.mark.parametrize(
    ("chunks", "weights", "kind", "message"),
    [
        (lambda: [GOOD], np.ones(3), TypeError, "weights go with an array of values"),
        (GOOD, np.ones(2), ValueError, r"weights must have shape \(T,\) = \(3,\), got \(2,\)"),
        (GOOD, -np.ones(3), ValueError, "chunk 0, row 0: weights must be finite"),
    ],
    ids=["function", "shape", "negative"],
)
def test_bad_weights(chunks, weights, kind, message):
    with pytest.raises(kind, match=message):
        make_net().predict_stream(chunks, weights=weights)


def test_a_generator_that_is_read_once_only():
    generator = iter([GOOD, GOOD])
    with pytest.raises(
        ValueError, match=r"pass 2 over the chunks gave 0 elements, the first one 6: .* give the function"
    ):
        make_net().predict_stream(lambda: generator)


def test_a_stream_that_ends_early_in_the_last_pass():
    lengths = iter([2, 2, 2, 1])
    answers = make_net(None).predict_stream(lambda: [GOOD] * next(lengths))
    with pytest.raises(ValueError, match="pass 4 over the chunks gave 3 elements, the first one 6"):
        list(answers)


def test_bitwise_networks_cannot_sort_a_stream():
    with pytest.raises(
        ValueError, match=r"a stream cannot be sorted: call the network on the whole set, or .*'rounding'"
    ):
        make_net(invariance="bitwise").predict_stream(GOOD)


MEMORY = """
import re
from pathlib import Path
import numpy as np, fastperm

def status(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def growth(function):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before

kinds = {}, {"symmetry": "circle", "orders": 2}
nets = [fastperm.DeepSet(2, 64, 4, 4, backend="cpu", seed=0, **kind) for kind in kinds]
x = np.random.default_rng(0).standard_normal((2_000_000, 2)).astype(np.float32)
chunks = lambda: (np.random.default_rng(i).standard_normal((20_000, 2), np.float32) for i in range(100))
for net in nets:
    net(x[None, :300_000])
    print(growth(lambda: net(x[None])), growth(lambda: net.predict_stream(chunks)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_set():
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    # In MB. The activations of one layer would be 512, a copy of the set 16; checking the values takes 4, a block and
    # its chunk 5.
    found = [float(grown) for grown in result.stdout.split()]
    assert len(found) == 4
    assert max(found) < 14, found
