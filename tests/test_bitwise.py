"""Bitwise mode: the order of the elements changes no bit, whatever the numbers."""

import numpy as np
import pytest
from cases import BACKENDS, split_large_sets

import fastperm

HOW = ("mean", "sum", "max")


def awkward_sets(generator, counts, K, dtype, weighted):
    """Return sets of numbers from 1e-20 to 1e20, denormals, zeros of both signs, and duplicates."""
    T = sum(counts)
    x = generator.standard_normal((T, K)) * 10.0 ** generator.uniform(-20, 20, (T, K))
    x[generator.random((T, K)) < 0.1] = 1e-42
    x[generator.random((T, K)) < 0.1] = 0.0
    x[generator.random((T, K)) < 0.1] = -0.0
    x[:, 0][generator.random(T) < 0.3] = 2.5
    copied = generator.random(T) < 0.2
    x[copied] = x[0]
    weights = generator.choice([0.25, 1 / 3, 1e-3, 7.0], T) if weighted else None
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return fastperm.Sets(x.astype(dtype), offsets, None if weights is None else weights.astype(dtype))


def same_bits(a, b):
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def mild_net(pool, aggregate, backend, dtype, width=17):
    """Return a network whose sums of numbers up to 1e20 stay finite in float32."""
    return fastperm.DeepSet(
        3, [width, 5], 2, 2, aggregate=aggregate, pool=pool, invariance="bitwise", backend=backend, dtype=dtype, seed=0
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pool", [*HOW, None])
@pytest.mark.parametrize("aggregate", HOW)
@pytest.mark.parametrize("backend", BACKENDS)
def test_predictions_do_not_change_a_bit(backend, aggregate, pool, dtype):
    generator = np.random.default_rng(0)
    for weighted in (False, True):
        sets = awkward_sets(generator, [1, 2, 37, 64, 131], 3, dtype, weighted)
        net = mild_net(pool, aggregate, backend, dtype)
        wanted = net(sets)
        assert np.isfinite(wanted).all()
        for seed in range(50):
            order = sets.permutation(seed)
            found = net(sets.reorder(order))
            assert same_bits(found, wanted if pool is not None else wanted[order]), seed


def test_thousands_of_permutations():
    generator = np.random.default_rng(1)
    sets = awkward_sets(generator, [113], 3, "float32", weighted=True)
    net = mild_net("mean", "mean", "cpu", "float32", width=33)
    wanted = net(sets).tobytes()
    assert all(net(sets.permute(seed)).tobytes() == wanted for seed in range(3000))


def test_without_it_bits_do_change():
    generator = np.random.default_rng(1)
    sets = awkward_sets(generator, [113], 3, "float32", weighted=True)
    net = mild_net("mean", "mean", "cpu", "float32")
    plain = fastperm.DeepSet(**{**net.config(), "invariance": "rounding"}, seed=0)
    assert len({plain(sets.permute(seed)).tobytes() for seed in range(50)}) > 1


@pytest.mark.parametrize("pool", ["mean", None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_and_training_do_not_change_a_bit(backend, pool):
    generator = np.random.default_rng(2)
    sets = fastperm.Sets.ragged([generator.standard_normal((n, 3)) for n in (5, 40, 9)]).astype("float32")
    rows = sets.n_elements if pool is None else 3
    dy, targets = generator.standard_normal((2, rows, 2))
    wanted = {}
    for seed in range(30):
        order = sets.permutation(seed)
        moved, rows_moved = sets.reorder(order), (order if pool is None else slice(None))
        net = mild_net(pool, "mean", backend, "float32")
        y, saved = net.forward(moved)
        assert same_bits(y, wanted.setdefault("y", y[np.argsort(order)] if pool is None else y)[rows_moved])
        dx = net.backward(dy[rows_moved], saved)
        assert same_bits(dx, wanted.setdefault("dx", dx[np.argsort(order)])[order])
        assert same_bits(net.gradients.flat, wanted.setdefault("gradients", net.gradients.flat.copy()))
        loss = fastperm.train_step(net, moved, targets[rows_moved], fastperm.Adam())
        assert loss == wanted.setdefault("loss", loss)
        assert same_bits(net.parameters.flat, wanted.setdefault("parameters", net.parameters.flat.copy()))


@pytest.mark.parametrize("symmetry", [None, "circle"])
@pytest.mark.parametrize("pool", ["mean", "max", None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_elements_get_equal_bits(backend, pool, symmetry):
    """Wherever they stand, with `invariance="rounding"` too: what ties for a maximum must not do so by chance."""
    for seed in range(10):
        generator = np.random.default_rng(seed)
        few = generator.standard_normal((5, 3)).astype("float32")
        which = generator.integers(5, size=61)
        counts = [7, 54]
        net = fastperm.DeepSet(
            *(3, [int(width) for width in generator.integers(1, 70, size=2)], 2, 2),
            pool=pool,
            aggregate="max" if pool == "max" and symmetry is None else "mean",
            symmetry=symmetry,
            backend=backend,
            seed=seed,
        )
        sets = fastperm.Sets(few[which], np.cumsum([0, *counts]))
        y, saved = net.forward(sets)
        of_set = np.repeat([0, 1], counts)
        dy = generator.standard_normal((2, 5, 2))[of_set, which] if pool is None else generator.standard_normal((2, 2))
        results = [net.backward(dy, saved)]
        if pool is None:
            streams = [np.concatenate(list(net.predict_stream(sets[s].values))) for s in range(2)]
            results += [y, net(sets), np.concatenate(streams)]
        for rows in results:
            for s in range(2):
                for element in range(5):
                    own = rows[(of_set == s) & (which == element)]
                    assert len({row.tobytes() for row in own}) == (len(own) > 0), (seed, s, element)


@pytest.mark.parametrize("pool", ["mean", None])
def test_large_sets_do_not_change_a_bit(monkeypatch, pool):
    counts = [3, 2500, 40]
    split_large_sets(monkeypatch, counts, 17)
    sets = awkward_sets(np.random.default_rng(4), counts, 3, "float32", weighted=True)
    net = mild_net(pool, "mean", "cpu", "float32")
    wanted = net(sets)
    targets = np.zeros_like(wanted)
    loss, gradients = net.loss_and_gradients(sets, targets), net.gradients.flat.copy()
    for seed in range(20):
        order = sets.permutation(seed)
        moved = sets.reorder(order)
        assert same_bits(net(moved), wanted if pool is not None else wanted[order])
        assert net.loss_and_gradients(moved, targets) == loss
        assert same_bits(net.gradients.flat, gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_same_network_to_rounding(backend):
    generator = np.random.default_rng(3)
    sets = fastperm.Sets.ragged([generator.standard_normal((n, 3)) for n in (5, 40, 9)])
    for pool in ("mean", None):
        net = mild_net(pool, "mean", backend, "float64")
        plain = fastperm.DeepSet(**{**net.config(), "invariance": "rounding"}, backend=backend, seed=0)
        np.testing.assert_allclose(net(sets), plain(sets), rtol=1e-12, atol=1e-14)


def test_it_is_saved(tmp_path):
    net = mild_net("mean", "mean", "cpu", "float32")
    net.save(tmp_path / "net.safetensors")
    assert fastperm.load(tmp_path / "net.safetensors").invariance == "bitwise"
