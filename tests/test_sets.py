import copy
import doctest
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastperm.sets
from fastperm import Sets
from fastperm.sets import as_sets

INF, NAN = np.inf, np.nan
quick = settings(deadline=None, max_examples=50)


@st.composite
def cases(draw, n_features=None):
    """Sets as a list of arrays, and their weights as one, or None."""
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    K = n_features or draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = [rng.normal(size=(n, K)).astype(dtype) for n in counts]
    weights = [rng.uniform(0.1, 2, size=n).astype(dtype) for n in counts] if draw(st.booleans()) else None
    return arrays, weights


def cut(sets):
    """Return the batch in the form `cases` gives."""
    return sets.split(sets.values), None if sets.weights is None else sets.split(sets.weights)


def assert_sets(sets, arrays, weights):
    """Compare with the oracle and check what every `Sets` promises, those made without validation included."""
    assert sets.offsets.dtype == np.int64
    assert sets.values.dtype == sets.dtype == np.result_type(*arrays)
    assert sets.values.flags.c_contiguous
    assert sets.n_sets == len(sets) == len(arrays)
    assert sets.n_elements == sum(map(len, arrays))
    assert sets.features == arrays[0].shape[1]
    np.testing.assert_array_equal(sets.counts, [len(array) for array in arrays])
    np.testing.assert_array_equal(sets.values, np.concatenate(arrays))
    if weights is None:
        assert sets.weights is None
        np.testing.assert_array_equal(sets.totals, sets.counts)
    else:
        assert sets.weights.dtype == sets.dtype
        assert sets.weights.flags.c_contiguous
        np.testing.assert_array_equal(sets.weights, np.concatenate(weights))
        np.testing.assert_allclose(sets.totals, [np.sum(row, dtype=np.float64) for row in weights], rtol=1e-14)
    assert sets.totals.dtype == np.float64
    Sets(sets.values, sets.offsets, sets.weights)


def test_docstring_examples_run():
    assert doctest.testmod(fastperm.sets).failed == 0


@quick
@given(cases())
def test_ragged_and_the_constructor_agree(case):
    arrays, weights = case
    assert_sets(Sets.ragged(arrays, weights), arrays, weights)
    offsets = np.cumsum([0, *map(len, arrays)])
    direct = Sets(np.concatenate(arrays), offsets, None if weights is None else np.concatenate(weights))
    assert_sets(direct, arrays, weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense(dtype):
    x = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(dtype)
    weights = np.random.default_rng(1).uniform(size=(4, 5)).astype(dtype)
    assert_sets(Sets.dense(x), list(x), None)
    assert_sets(Sets.dense(x, weights), list(x), list(weights))


@quick
@given(cases(), st.sampled_from([bool, int, np.uint8]))
def test_masked_is_ragged(case, mask_dtype):
    arrays, weights = case
    rng = np.random.default_rng(0)
    N = max(map(len, arrays)) + 1
    x = np.full((len(arrays), N, arrays[0].shape[1]), NAN, arrays[0].dtype)
    mask = np.zeros((len(arrays), N), mask_dtype)
    padded = None if weights is None else np.full(mask.shape, NAN, arrays[0].dtype)
    for s, array in enumerate(arrays):
        places = np.sort(rng.choice(N, len(array), replace=False))
        x[s, places], mask[s, places] = array, 1
        if weights is not None:
            padded[s, places] = weights[s]
    assert_sets(Sets.masked(x, mask, padded), arrays, weights)


def test_mixture_is_a_probability_measure():
    atoms = [np.zeros((2, 1)), np.ones((3, 1))]
    sets = Sets.mixture(atoms, [[1, 2], [1 / 3, 1 / 2, 1 / 6]])
    np.testing.assert_allclose(sets.weights, [1 / 3, 2 / 3, 1 / 3, 1 / 2, 1 / 6])
    np.testing.assert_allclose(sets.totals, 1)
    np.testing.assert_array_equal(Sets.mixture(atoms[:1], [[0, 3]]).weights, [0, 1])
    # Proportions are taken in float64, so that they may be tiny where the atoms are float32.
    small = Sets.mixture([np.zeros((2, 1), np.float32)], [[1e-60, 3e-60]])
    assert small.weights.dtype == np.float32
    np.testing.assert_allclose(small.weights, [0.25, 0.75])


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i4", "f8"), ("u1", "f8"), ("?", "f8"), (">f4", "f4"), (">f8", "f8")],
)
def test_dtypes(given_dtype, dtype):
    values = np.array([[1, 0], [1, 1]], given_dtype)
    sets = Sets(values, np.array([0, 1, 2], np.uint16), np.array([1, 2], "i8"))
    assert_sets(sets, [np.array([[1, 0]], dtype), np.array([[1, 1]], dtype)], [np.ones(1), np.full(1, 2.0)])
    assert sets.dtype == np.dtype(dtype)
    assert sets.dtype.isnative


def test_ragged_promotes_dtypes():
    assert Sets.ragged([np.zeros((1, 2), np.float32), np.zeros((1, 2))]).dtype == np.float64
    assert Sets.ragged([[[1, 2]], [[3, 4], [5, 6]]]).dtype == np.float64


def test_nothing_is_copied_where_it_suits():
    x, weights = np.zeros((3, 4, 2), np.float32), np.ones((3, 4), np.float32)
    values, offsets, flat = x.reshape(12, 2), np.array([0, 5, 12]), weights.reshape(12)
    sets = Sets(values, offsets, flat)
    assert sets.values is values
    assert sets.weights is flat
    dense = Sets.dense(x, weights)
    assert np.shares_memory(dense.values, x)
    assert np.shares_memory(dense.weights, weights)
    assert np.shares_memory(Sets.ragged([x[0]]).values, x)
    assert np.shares_memory(Sets.masked(x, np.ones((3, 4), bool)).values, x)
    assert np.shares_memory(as_sets(x, dtype="float32").values, x)
    assert as_sets(sets) is sets
    assert sets.astype(np.float32) is sets
    for part in (dense[1], dense[-1], dense[1:], dense[:], *dense):
        assert np.shares_memory(part.values, x)
        assert np.shares_memory(part.weights, weights)
    assert all(np.shares_memory(rows, values) for rows in sets.split(values))


def test_offsets_are_copied():
    offsets = np.array([0, 2, 4])
    sets = Sets(np.zeros((4, 1)), offsets)
    offsets[:] = 99
    np.testing.assert_array_equal(sets.offsets, [0, 2, 4])


def test_what_does_not_suit_is_copied():
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(6, 2)))
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float64).reshape(6, 2)
    assert not unaligned.flags.aligned
    for values in (x, x[::-1], unaligned, np.broadcast_to(x[:1], (6, 2))):
        sets = Sets(values, [0, 6], np.ones(12)[::2])
        assert sets.values.flags.carray
        assert_sets(sets, [np.array(values)], [np.ones(6)])


@quick
@given(cases(), st.data())
def test_indexing_is_that_of_a_list(case, data):
    arrays, weights = case
    S = len(arrays)
    sets = Sets.ragged(arrays, weights)
    in_range = st.integers(-S, S - 1)
    i = data.draw(in_range)
    chosen = data.draw(st.lists(in_range, min_size=1, max_size=8))
    bools = np.array(data.draw(st.lists(st.booleans(), min_size=S, max_size=S)))
    part = data.draw(st.slices(S))
    selections = [
        (i, [i]),
        (np.int8(i), [i]),
        (np.array(i), [i]),
        (chosen, chosen),
        (np.array(chosen, np.int16), chosen),
        (part, range(S)[part]),
        (bools, np.flatnonzero(bools)),
        (bools.tolist(), np.flatnonzero(bools)),
    ]
    for index, picked in selections:
        if len(picked) == 0:
            with pytest.raises(IndexError, match="at least one of the"):
                sets[index]
            continue
        assert_sets(sets[index], [arrays[s] for s in picked], weights and [weights[s] for s in picked])
    assert len(list(sets)) == S
    for s, one in enumerate(sets):
        assert_sets(one, [arrays[s]], weights and [weights[s]])
    assert_sets(sets[::-1][::-1], arrays, weights)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (3, "set 3 is out of range: there are 3 sets"),
        (-4, "set -4 is out of range"),
        ([0, 7], "set 7 is out of range"),
        (slice(3, None), "selects at least one of the 3 sets"),
        ([], "selects at least one"),
        ([True, False], "one bool for each of the 3 sets"),
        (True, "one bool for each of the 3 sets"),
        (1.0, "expected an integer, a slice"),
        ([1.0], "expected an integer, a slice"),
        ([[0]], "expected an integer, a slice"),
        ([[0], [0, 1]], "expected an integer, a slice"),
        ((0, 1), "expected an integer, a slice"),
        (None, "expected an integer, a slice"),
        ("a", "expected an integer, a slice"),
        (10**30, "expected an integer, a slice"),
    ],
)
def test_bad_index(index, message):
    with pytest.raises(IndexError, match=message):
        Sets.dense(np.zeros((3, 2, 1)))[index]


@quick
@given(cases(n_features=2), st.integers(0, 2**64))
def test_permute_shuffles_within_sets(case, seed):
    arrays, weights = case
    sets = Sets.ragged(arrays, weights)
    order = sets.permutation(seed)
    assert order.dtype == np.int64
    for start, rows in zip(sets.offsets, sets.split(order), strict=False):
        np.testing.assert_array_equal(np.sort(rows), start + np.arange(len(rows)))
    np.testing.assert_array_equal(order, sets.permutation(np.random.default_rng(seed)))
    moved = sets.permute(seed)
    assert_sets(moved, *cut(moved))
    np.testing.assert_array_equal(moved.values, sets.values[order])
    np.testing.assert_array_equal(moved.offsets, sets.offsets)
    if weights is not None:
        np.testing.assert_array_equal(moved.weights, sets.weights[order])
    for given_order in (order, order.tolist(), order.astype(np.uint64), order.astype(">i4")):
        assert_sets(sets.reorder(given_order), *cut(moved))


def test_permutations_are_uniform_and_seeded():
    sets = Sets.dense(np.zeros((60_000, 3, 1)))
    order = sets.permutation(0).reshape(-1, 3) % 3
    _, times = np.unique(order, axis=0, return_counts=True)
    assert len(times) == 6
    assert abs(times - 10_000).max() < 500  # over five standard deviations
    assert (sets.permutation(0) != sets.permutation(1)).any()
    assert (sets.permutation() != sets.permutation(None)).any()
    rng = np.random.default_rng(0)
    assert (sets.permutation(rng) != sets.permutation(rng)).any()


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (np.arange(3), ValueError, r"order must have shape \(T,\) = \(4,\), got \(3,\)"),
        ([[0, 1, 2, 3]], ValueError, r"order must have shape .* got \(1, 4\)"),
        ([0.0, 1.0, 2.0, 3.0], TypeError, "order must be integers, got dtype float64"),
        (np.ones(4, bool), TypeError, "order must be integers, got dtype bool"),
        ([0, 2, 1, 3], ValueError, "set 0, element 1: .*within their set, here rows 0 to 1, got 2"),
        ([0, 1, 2, 4], ValueError, "set 1, element 1: .*within their set, here rows 2 to 3, got 4"),
        ([0, 1, -1, 2], ValueError, "set 1, element 0: .*got -1"),
        (np.array([0, 1, 2, 2**64 - 1], np.uint64), ValueError, "set 1, element 1: .*got 18446744073709551615"),
        ([0, 1, 3, 3], ValueError, "set 1, element 1: order must list each row once, got row 3 2x"),
    ],
)
def test_bad_order(order, error, message):
    with pytest.raises(error, match=message):
        Sets(np.zeros((4, 1)), [0, 2, 4]).reorder(order)


@quick
@given(st.lists(cases(n_features=2), min_size=1, max_size=3))
def test_concatenate(batches):
    arrays = [array for part, _ in batches for array in part]
    weights = None
    if any(rows is not None for _, rows in batches):
        weights = [row for part, rows in batches for row in (rows or [np.ones(len(array)) for array in part])]
    joined = Sets.concatenate(Sets.ragged(*batch) for batch in batches)
    assert_sets(joined, arrays, weights)


@quick
@given(cases())
def test_astype(case):
    arrays, weights = case
    sets = Sets.ragged(arrays, weights)
    for dtype in (np.float32, np.float64, ">f8"):
        native = np.dtype(dtype).newbyteorder("=")
        converted = sets.astype(dtype)
        assert_sets(converted, [a.astype(native) for a in arrays], weights and [w.astype(native) for w in weights])
        assert (converted is sets) == (native == sets.dtype)


def test_split():
    sets = Sets(np.zeros((4, 1)), [0, 1, 4])
    rows = np.arange(24).reshape(4, 2, 3)
    first, second = sets.split(rows)
    np.testing.assert_array_equal(first, rows[:1])
    np.testing.assert_array_equal(second, rows[1:])


@quick
@given(cases())
def test_as_sets_takes_lists(case):
    arrays, _ = case
    for x in (arrays, tuple(arrays), [array.tolist() for array in arrays]):
        assert_sets(as_sets(x, dtype=arrays[0].dtype), arrays, None)


def test_as_sets_takes_arrays():
    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return x

    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    for given_x in (x, Wrapped(), x.tolist()):
        assert_sets(as_sets(given_x, features=4), list(x), None)
    assert as_sets(Sets.dense(x), features=4, dtype="float32").dtype == np.float32
    assert_sets(as_sets([Wrapped().__array__()[0], Wrapped().__array__()[1]]), list(x), None)


def test_repr_pickle_and_copy():
    sets = Sets.ragged([np.zeros((1, 2)), np.zeros((3, 2))], [[1], [1, 2, 3]])
    assert repr(sets) == "Sets(n_sets=2, n_elements=4, features=2, counts=1..3, float64, weighted)"
    assert "counts=3, float64, weighted" in repr(sets[1])
    assert_sets(pickle.loads(pickle.dumps(sets)), *cut(sets))
    assert_sets(copy.deepcopy(sets), *cut(sets))
    assert sets != sets[:]
    with pytest.raises(TypeError, match="take its values"):
        np.asarray(sets)


A, B = np.zeros((2, 3)), np.zeros((4, 3))
FOUR = np.zeros((4, 1))


def with_entry(shape, place, entry, fill=1.0):
    array = np.full(shape, fill)
    array[place] = entry
    return array


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        # values
        (lambda: Sets(np.zeros(4), [0, 4]), ValueError, r"values must have shape \(T, K\), got \(4,\)"),
        (lambda: Sets(np.zeros((2, 2, 1)), [0, 4]), ValueError, r"shape \(T, K\), got \(2, 2, 1\)"),
        (lambda: Sets(np.zeros((4, 0)), [0, 4]), ValueError, r"at least one feature .* \(4, 0\)"),
        (lambda: Sets(FOUR + 1j, [0, 4]), TypeError, "values must be real numbers.* complex128"),
        (lambda: Sets(FOUR.astype(object), [0, 4]), TypeError, "real numbers.* object"),
        (lambda: Sets(FOUR.astype(str), [0, 4]), TypeError, "real numbers.* <U"),
        (lambda: Sets([[1.0], [1.0, 2.0]], [0, 2]), ValueError, "values: expected an array of numbers"),
        (lambda: Sets(np.ma.masked_less(FOUR, 1), [0, 4]), TypeError, "masked array.*Sets.masked"),
        (lambda: Sets(with_entry((4, 2), (3, 1), NAN), [0, 2, 4]), ValueError, "set 1, element 1: .*nan in feature 1"),
        (lambda: Sets.dense(with_entry((3, 2, 1), (2, 0), -INF)), ValueError, "set 2, element 0: .*got -inf"),
        # offsets
        (lambda: Sets(FOUR, [[0, 4]]), ValueError, r"offsets must have shape \(S \+ 1,\), got \(1, 2\)"),
        (lambda: Sets(FOUR, []), ValueError, r"offsets must have shape \(S \+ 1,\), got \(0,\)"),
        (lambda: Sets(FOUR, [0]), ValueError, "at least one set, got none"),
        (lambda: Sets(FOUR, [0.0, 4.0]), TypeError, "offsets must be integers, got dtype float64"),
        (lambda: Sets(FOUR, [False, True]), TypeError, "offsets must be integers, got dtype bool"),
        (lambda: Sets(FOUR, [1, 4]), ValueError, "offsets must start at 0 for set 0, got 1"),
        (lambda: Sets(FOUR, [0, 3, 2, 4]), ValueError, "set 1: offsets must not decrease, got 3 and then 2"),
        (lambda: Sets(FOUR, [0, 1, 3]), ValueError, "offsets must end at T = 4, .* got 3 as the end of set 1"),
        (lambda: Sets(FOUR, [0, 2, 6]), ValueError, "offsets must end at T = 4, .* got 6 as the end of set 1"),
        (lambda: Sets(FOUR, [0, 2, 2, 4]), ValueError, "set 1 has no elements"),
        (lambda: Sets(FOUR, np.array([2**64 - 1, 4], np.uint64)), ValueError, "start at 0 .* got 18446744073709551615"),
        (
            lambda: Sets(FOUR, np.array([0, 2**63 + 4], np.uint64)),
            ValueError,
            "end at T = 4, .* got 9223372036854775812",
        ),
        (lambda: Sets(FOUR[:0], [0, 0]), ValueError, "set 0 has no elements"),
        # weights
        (lambda: Sets(FOUR, [0, 4], np.ones(3)), ValueError, r"weights must have shape \(T,\) = \(4,\), got \(3,\)"),
        (lambda: Sets(FOUR, [0, 4], np.ones((4, 1))), ValueError, r"weights .* got \(4, 1\)"),
        (lambda: Sets(FOUR, [0, 4], ["a"] * 4), TypeError, "weights must be real numbers"),
        (lambda: Sets(FOUR, [0, 3, 4], [1, 1, 1, 0]), ValueError, "set 1: weights .* positive sum.* got a sum of 0"),
        (lambda: Sets(FOUR, [0, 1, 4], [1, 2, 3, -1]), ValueError, "set 1, element 2: weights .*non-negative, got -1"),
        (lambda: Sets(FOUR, [0, 1, 4], [1, 2, NAN, 1]), ValueError, "set 1, element 1: weights .*finite.* got nan"),
        (lambda: Sets(FOUR, [0, 1, 4], [INF, 2, 1, 1]), ValueError, "set 0, element 0: weights .*finite.* got inf"),
        (lambda: Sets(FOUR, [0, 2, 4], [1, 1, 1e308, 1e308]), ValueError, "set 1: .*float64, got a sum of inf"),
        (lambda: Sets(FOUR, [0, 2, 4], [1, 1, 0, 5e-324]), ValueError, "set 1: .*range of float64"),
        (lambda: Sets(np.float32(FOUR), [0, 2, 4], [1, 1, 1, 1e39]), ValueError, "set 1, element 1: .*in float32"),
        # dense
        (lambda: Sets.dense(np.zeros((4, 3))), ValueError, r"\(S, N, K\), got \(4, 3\); pass x\[None\]"),
        (lambda: Sets.dense(np.zeros((0, 4, 3))), ValueError, "at least one set, got none"),
        (lambda: Sets.dense(np.zeros((2, 0, 3))), ValueError, "set 0 has no elements"),
        (lambda: Sets.dense(np.zeros((2, 4, 0))), ValueError, "at least one feature"),
        (lambda: Sets.dense(np.zeros((2, 3, 1)), np.ones(6)), ValueError, r"\(S, N\) = \(2, 3\), got \(6,\)"),
        # ragged
        (lambda: Sets.ragged([]), ValueError, "at least one set, got none"),
        (lambda: Sets.ragged([A, B, B[:, :2]]), ValueError, "set 2: expected K=3 features .* got 2"),
        (lambda: Sets.ragged([A, B[:0]]), ValueError, "set 1 has no elements"),
        (lambda: Sets.ragged([A, []]), ValueError, "set 1 has no elements"),
        (lambda: Sets.ragged([A, B[0]]), ValueError, r"set 1: expected an array of shape \(n, K\), got \(3,\)"),
        (lambda: Sets.ragged([A, B + 1j]), TypeError, "set 1 must be real numbers"),
        (lambda: Sets.ragged([A, with_entry((2, 3), 1, NAN)]), ValueError, "set 1, element 1: values must be finite"),
        (lambda: Sets.ragged([A, B], [np.ones(2)]), ValueError, "weights for each of the 2 sets, got 1"),
        (lambda: Sets.ragged([A, B], [np.ones(2)] * 2), ValueError, r"set 1: weights .* \(4,\), got \(2,\)"),
        (lambda: Sets.ragged([A, B], [[1, 1], None]), TypeError, "set 1: weights must be real numbers"),
        (lambda: Sets.ragged(Sets.dense(FOUR[None])), TypeError, "cannot be one array"),
        # masked
        (lambda: Sets.masked(A, [1, 1]), ValueError, r"\(S, N, K\), got \(2, 3\)"),
        (lambda: Sets.masked(A[None], [[1, 1, 1]]), ValueError, r"mask must .* \(1, 2\), got \(1, 3\)"),
        (lambda: Sets.masked(A[None], [[1.0, 0.0]]), TypeError, "mask must be of bools"),
        (lambda: Sets.masked(B.reshape(2, 2, 3), [[1, 1], [1, 2]]), ValueError, "set 1, element 1: mask .* got 2"),
        (lambda: Sets.masked(B.reshape(2, 2, 3), [[1, 1], [0, 0]]), ValueError, "set 1 has no elements: the mask"),
        (lambda: Sets.masked(np.zeros((2, 0, 3)), np.ones((2, 0), bool)), ValueError, "set 0 has no elements"),
        (lambda: Sets.masked(np.zeros((0, 2, 3)), np.ones((0, 2), bool)), ValueError, "at least one set"),
        (lambda: Sets.masked(with_entry((1, 2, 3), (0, 1), NAN), [[0, 1]]), ValueError, "set 0, element 0: .*nan"),
        (lambda: Sets.masked(A[None], [[1, 1]], [[1, 2, 3]]), ValueError, r"weights must .* \(1, 2\), got \(1, 3\)"),
        (lambda: Sets.masked(B[None], [[0, 1, 1, 1]], [[1, 1, -1, 1]]), ValueError, "set 0, element 1: weights .* -1"),
        # mixture
        (lambda: Sets.mixture([A, B], None), TypeError, "fractions must hold .* got None"),
        (lambda: Sets.mixture([A, B], [[1, 1]]), ValueError, "fractions for each of the 2 sets, got 1"),
        (lambda: Sets.mixture([A, B], [[1, 1], [1] * 3]), ValueError, r"set 1: fractions .* \(4,\), got \(3,\)"),
        (lambda: Sets.mixture([A, A], [[1, 1], [2, -1]]), ValueError, "set 1, element 1: fractions .* got -1"),
        (lambda: Sets.mixture([A, A], [[1, 1], [0, 0]]), ValueError, "set 1: fractions .* got a sum of 0"),
        # concatenate
        (lambda: Sets.concatenate([]), ValueError, "at least one batch"),
        (lambda: Sets.concatenate([A]), TypeError, "batch 0: expected a Sets, got ndarray"),
        (
            lambda: Sets.concatenate(map(Sets.dense, (A[None], FOUR[None]))),
            ValueError,
            "batch 1: expected K=3 .* got 1",
        ),
        # astype
        (lambda: Sets.dense(A[None]).astype("float16"), ValueError, "dtype must be float32 or float64"),
        (lambda: Sets.dense(A[None]).astype(None), ValueError, "dtype must be float32 or float64, got None"),
        (
            lambda: Sets(with_entry((4, 1), 2, 1e39), [0, 2, 4]).astype("f4"),
            ValueError,
            "set 1, element 0: .*float32",
        ),
        (lambda: Sets(FOUR, [0, 2, 4], [1, 1, 1e-50, 0]).astype("f4"), ValueError, "set 1: .*got a sum of 0"),
        (lambda: Sets(FOUR, [0, 2, 4], [1, 1, 1e39, 0]).astype("f4"), ValueError, "set 1, element 0: .*float32"),
        (lambda: Sets(FOUR, [0, 2, 4], [1, 1, 3e38, 3e38]).astype("f4"), ValueError, r"set 1: .*sum of 6e\+38"),
        # split
        (lambda: Sets.dense(A[None]).split(np.zeros(3)), ValueError, r"each of the 2 elements, got shape \(3,\)"),
        (lambda: Sets.dense(A[None]).split(1.0), ValueError, r"each of the 2 elements, got shape \(\)"),
        # as_sets
        (lambda: as_sets(A), ValueError, r"pass x\[None\]"),
        (lambda: as_sets(np.zeros((1, 1, 2, 3))), ValueError, r"\(S, N, K\), got \(1, 1, 2, 3\)"),
        (lambda: as_sets([A, B], features=2), ValueError, "expected K=2 features per element, got 3"),
        (lambda: as_sets([[1.0, 2.0], [3.0, 4.0]]), ValueError, r"set 0: expected an array of shape \(n, K\)"),
        (lambda: as_sets([1.0, 2.0]), ValueError, r"set 0: expected an array of shape \(n, K\), got \(\)"),
        (lambda: as_sets(None), TypeError, "real numbers.* object"),
        (lambda: as_sets([Sets.dense(A[None])]), TypeError, "cannot be one array"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
