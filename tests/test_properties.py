"""What a set network must not notice: the order of the elements, and how a measure is written down."""

import numpy as np
import pytest
from cases import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

import fastperm

HOW = ("mean", "sum", "max")


EITHER = st.booleans()


@st.composite
def batches(draw, weighted=EITHER):
    """Draw a list of (x, weights) per set, weights None where the batch has none."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    has_weights = draw(weighted)
    arrays = [generator.standard_normal((n, 3)) for n in counts]
    weights = [generator.uniform(0.1, 4, n) for n in counts] if has_weights else None
    return arrays, weights


@st.composite
def networks(draw, pools=(*HOW, None)):
    return fastperm.DeepSet(
        3,
        draw(st.sampled_from([1, 5, 16, 33])),
        draw(st.integers(1, 3)),
        2,
        aggregate=draw(st.sampled_from(HOW)),
        pool=draw(st.sampled_from(pools)),
        dtype="float64",
        backend=draw(st.sampled_from(BACKENDS)),
        seed=draw(st.integers(0, 1000)),
    )


def results(net, sets, dy):
    """Return prediction, dx and parameter gradients."""
    net.zero_gradients()
    y, saved = net.forward(sets)
    dx = net.backward(dy, saved)
    return y, dx, net.gradients.flat.copy()


def close(a, b):
    # float64 sums in another order: 1e-16 a term; sums over 40 elements and three layers grow numbers to 1e6.
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * max(1, np.abs(b).max()))


def random_dy(net, sets, seed=0):
    rows = sets.n_elements if net.pool is None else len(sets)
    return np.random.default_rng(seed).standard_normal((rows, 2))


@settings(deadline=None, max_examples=60)
@given(networks(), batches(), st.integers(0, 2**32 - 1))
def test_permuting_elements_permutes_outputs_and_input_gradients_only(net, batch, seed):
    sets = fastperm.Sets.ragged(*batch)
    order = sets.permutation(seed)
    dy = random_dy(net, sets)
    y, dx, gradients = results(net, sets, dy)
    moved = results(net, sets.permute(seed), dy[order] if net.pool is None else dy)
    close(moved[0], y[order] if net.pool is None else y)
    close(moved[1], dx[order])
    close(moved[2], gradients)


@settings(deadline=None, max_examples=40)
@given(networks(), batches(), st.integers(0, 2**32 - 1))
def test_permuting_sets_permutes_answers(net, batch, seed):
    sets = fastperm.Sets.ragged(*batch)
    order = np.random.default_rng(seed).permutation(len(sets))
    wanted = sets.split(net(sets)) if net.pool is None else net(sets)
    found = net(sets[order])
    moved = sets[order].split(found) if net.pool is None else found
    for i, s in enumerate(order):
        close(moved[i], wanted[s])


@settings(deadline=None, max_examples=40)
@given(networks(pools=HOW), batches())
def test_weight_two_is_listing_twice(net, batch):
    arrays, _ = batch
    generator = np.random.default_rng(0)
    repeats = [generator.integers(1, 4, len(a)) for a in arrays]
    weighted = fastperm.Sets.ragged(arrays, [r.astype(float) for r in repeats])
    listed = fastperm.Sets.ragged([np.repeat(a, r, axis=0) for a, r in zip(arrays, repeats, strict=True)])
    dy = random_dy(net, weighted)
    y, dx, _ = results(net, weighted, dy)
    y_listed, dx_listed, _ = results(net, listed, dy)
    close(y_listed, y)
    # An atom stands for all its copies, so its gradient is the sum of theirs.  (True of the network only: inside an
    # equivariant layer the outputs of copies are variables of their own.)
    sums = np.add.reduceat(dx_listed, np.concatenate([[0], np.cumsum(np.concatenate(repeats))[:-1]]), axis=0)
    close(sums, dx)


@settings(deadline=None, max_examples=40)
@given(networks(pools=HOW), batches())
def test_splitting_an_atom_changes_nothing(net, batch):
    arrays, weights = batch
    weights = weights or [np.ones(len(a)) for a in arrays]
    wanted = net(fastperm.Sets.ragged(arrays, weights))
    first = np.concatenate([arrays[0], arrays[0][:1]])
    first_weights = np.concatenate([weights[0], weights[0][:1] * 0.3])
    first_weights[0] *= 0.7
    close(net(fastperm.Sets.ragged([first, *arrays[1:]], [first_weights, *weights[1:]])), wanted)


@settings(deadline=None, max_examples=40)
@given(networks(), batches(weighted=st.just(True)), st.integers(0, 2**32 - 1))
def test_weight_zero_is_leaving_out(net, batch, seed):
    arrays, weights = batch
    generator = np.random.default_rng(seed)
    kept = [generator.random(len(a)) < 0.6 for a in arrays]
    for k in kept:
        k[0] = True
    zeroed = fastperm.Sets.ragged(arrays, [np.where(k, w, 0) for k, w in zip(kept, weights, strict=True)])
    left_out = fastperm.Sets.ragged(
        [a[k] for a, k in zip(arrays, kept, strict=True)], [w[k] for w, k in zip(weights, kept, strict=True)]
    )
    found = net(zeroed)
    # Without pooling an element of weight zero still has an answer of its own; the others do not notice it.
    close(found[np.concatenate(kept)] if net.pool is None else found, net(left_out))


@settings(deadline=None, max_examples=40)
@given(networks(), batches(weighted=st.just(False)))
def test_a_mask_is_a_ragged_batch(net, batch):
    arrays, _ = batch
    longest = max(map(len, arrays))
    padded = np.full((len(arrays), longest, 3), np.nan)
    mask = np.zeros((len(arrays), longest), bool)
    for i, a in enumerate(arrays):
        padded[i, : len(a)] = a
        mask[i, : len(a)] = True
    np.testing.assert_array_equal(net(fastperm.Sets.masked(padded, mask)), net(fastperm.Sets.ragged(arrays)))


@settings(deadline=None, max_examples=40)
@given(networks(pools=("mean", "max")), batches(weighted=st.just(True)), st.floats(1e-3, 1e3))
def test_a_common_factor_of_the_weights_cancels_in_means(net, batch, factor):
    if net.aggregate == "sum":
        net = fastperm.DeepSet(**{**net.config(), "aggregate": "mean"}, backend=net.backend, seed=0)
    arrays, weights = batch
    close(net(fastperm.Sets.ragged(arrays, [w * factor for w in weights])), net(fastperm.Sets.ragged(arrays, weights)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_fractions_are_the_limit_of_counts(backend):
    net = fastperm.DeepSet(3, 8, 2, 2, dtype="float64", backend=backend, seed=0)
    flowers = np.random.default_rng(0).standard_normal((3, 3))
    millions = fastperm.Sets.ragged([flowers], [np.array([2e6, 3e6, 1e6])])
    fractions = fastperm.Sets.mixture([flowers], [np.array([1 / 3, 1 / 2, 1 / 6])])
    listed = fastperm.Sets.ragged([np.repeat(flowers, [2, 3, 1], axis=0)])
    close(net(fractions), net(millions))
    close(net(fractions), net(listed))
