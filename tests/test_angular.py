from itertools import pairwise

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

import fastperm

AGGREGATES = ("mean", "sum")


class AngularCase(Case):
    """A case with angles and filters, which are small enough for numbers to keep their size."""

    def __init__(self, counts, K_in, K_out, weighted, orders=3):
        super().__init__(counts, K_in, K_out, weighted)
        generator = np.random.default_rng(5)
        self.angles = generator.uniform(-4, 9, self.T)
        self.A, self.B = generator.standard_normal((2, orders, K_in, K_out)) / np.sqrt(4 * orders * K_in)


def basis(backend, angles, orders, dtype):
    E = poisoned((len(angles), 2 * orders), dtype)
    kernels(backend).angular_basis(angles, E=E)
    return E


def run_forward(backend, case, aggregate, activation, dtype="float64"):
    angles, x, weights, *matrices = as_dtype(
        dtype, case.angles, case.x, case.weights, case.W_self, case.W_pool, case.b, case.A, case.B
    )
    E = basis(backend, angles, len(case.A), dtype)
    y, m = poisoned((case.T, case.b.size), dtype), poisoned((case.S, x.shape[1]), dtype)
    Z = poisoned((E.shape[1], *m.shape), dtype)
    kernels(backend).angular_forward(x, E, case.offsets, weights, *matrices, aggregate, activation, y=y, m=m, Z=Z)
    return y, m, Z, E


def run_backward(backend, case, aggregate, activation, dtype="float64", start=0.0, inputs=True):
    """Return the gradients of angles, x, W_self, W_pool, b, A, B."""
    y, m, Z, E = run_forward(backend, case, aggregate, activation, dtype)
    dy, x, weights, W_self, W_pool, A, B = as_dtype(
        dtype, case.dy, case.x, case.weights, case.W_self, case.W_pool, case.A, case.B
    )
    dx, dE = (poisoned(x.shape, dtype), np.full(E.shape, start, dtype)) if inputs else (None, None)
    totals = [np.full(array.shape, start, dtype) for array in (W_self, W_pool, case.b, A, B)]
    kernels(backend).angular_backward(
        dy, x, E, y, m, Z, case.offsets, weights, W_self, W_pool, A, B, aggregate, activation,
        dx=dx, dE=dE, **dict(zip(("dW_self", "dW_pool", "db", "dA", "dB"), totals, strict=True)),
    )  # fmt: skip
    if not inputs:
        return [None, None, *totals]
    if start:
        return [dE, dx, *totals]
    dangles = poisoned(case.T, dtype)
    kernels(backend).angular_basis_backward(dE, E, dangles=dangles)
    return [dangles, dx, *totals]


def check(backend, case, aggregate, activation, dtype):
    arguments = (case.angles, case.x, case.W_self, case.W_pool, case.b, case.A, case.B)

    def predict(angles, x, W_self, W_pool, b, A, B):
        return oracle.angular(x, angles, case.bounds, case.w, W_self, W_pool, b, A, B, aggregate, activation)

    def loss(*arguments):
        return autograd.numpy.sum(predict(*arguments) * case.dy)

    assert error(run_forward(backend, case, aggregate, activation, dtype)[0], predict(*arguments)) <= TOLERANCES[dtype]
    wanted = autograd.grad(loss, argnum=tuple(range(len(arguments))))(*arguments)
    compare(case, run_backward(backend, case, aggregate, activation, dtype), wanted, dtype)


def compare(case, found, wanted, dtype):
    largest = max(np.abs(gradient).max() for gradient in wanted)
    for array, gradient in zip(found, wanted, strict=True):
        assert array.dtype == dtype
        # A set of one element sees itself at no distance: gradients of its angle and of B are zero, to rounding.
        own = largest if case.T == 1 else np.abs(gradient).max()
        assert np.isfinite(array).all()
        assert np.abs(array - gradient).max() <= TOLERANCES[dtype] * own


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("orders", "activation"), [(1, "identity"), (3, "relu")])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("backend", BACKENDS)
@all_cases
def test_forward_and_backward_match_the_double_sum(backend, aggregate, activation, orders, dtype, shape, weighted):
    check(backend, AngularCase(*shape, weighted, orders), aggregate, activation, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("counts", LARGE_COUNTS, ids=str)
def test_large_sets_match_the_reference(monkeypatch, counts, aggregate, weighted, dtype):
    split_large_sets(monkeypatch, counts, 33)
    case = AngularCase(counts, 17, 33, weighted)
    if aggregate == "sum":  # keep numbers of size 1
        case.weights = case.w / case.counts.max()
    y, *_ = run_forward("cpu", case, aggregate, "relu", dtype)
    assert error(y, run_forward("reference", case, aggregate, "relu")[0]) <= TOLERANCES[dtype]
    wanted = run_backward("reference", case, aggregate, "relu")
    compare(case, run_backward("cpu", case, aggregate, "relu", dtype), wanted, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_accumulate_and_that_of_x_is_overwritten(backend):
    case = AngularCase(*SHAPES[2], weighted=True)
    fresh = run_backward(backend, case, "mean", "relu")
    added = run_backward(backend, case, "mean", "relu", start=2.5)
    assert error(added[1], fresh[1]) == 0
    for more, plain in zip(added[2:], fresh[2:], strict=True):
        assert error(more, plain + 2.5) <= 1e-13
    dangles = poisoned(case.T, "float64")
    kernels(backend).angular_basis_backward(added[0] - 2.5, basis(backend, case.angles, 3, "float64"), dangles=dangles)
    assert error(dangles, fresh[0]) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_gradients_can_be_left_out(backend):
    case = AngularCase(*SHAPES[2], weighted=True)
    with_inputs = run_backward(backend, case, "mean", "relu")
    without = run_backward(backend, case, "mean", "relu", inputs=False)
    for a, b in zip(without[2:], with_inputs[2:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e5, 1e7, 1e12])
def test_cosines_and_sines_are_those_of_the_library(size):
    angles = np.random.default_rng(0).uniform(-size, size, 1001)
    angles[:3] = 0.0, np.pi / 2, -np.pi / 4
    for first, last in ((0, 1001), (5, 6)):
        found = basis("cpu", angles[first:last], 16, "float64")
        turns = np.exp(1j * angles[first:last].astype(np.longdouble))
        wanted = np.sqrt(2) * np.stack([turns**m for m in range(1, 17)], axis=1)
        # A rounding or two for each order.
        assert np.abs(found[:, :16] - wanted.real).max() <= 32 * 2.3e-16
        assert np.abs(found[:, 16:] - wanted.imag).max() <= 32 * 2.3e-16


@pytest.mark.parametrize("backend", BACKENDS)
def test_filters_of_several_sets(backend):
    generator = np.random.default_rng(1)
    Z, A, B = generator.standard_normal((6, 4, 5)), *generator.standard_normal((2, 3, 5, 7))
    Q = poisoned((6, 4, 7), "float64")
    kernels(backend).angular_filter(Z, A, B, Q=Q)
    for s in range(4):
        C, D = Z[:3, s], Z[3:, s]
        for m in range(3):
            np.testing.assert_allclose(Q[m, s], C[m] @ A[m] - D[m] @ B[m], rtol=0, atol=1e-13)
            np.testing.assert_allclose(Q[3 + m, s], D[m] @ A[m] + C[m] @ B[m], rtol=0, atol=1e-13)


def network(**settings):
    settings = {"symmetry": "circle", "orders": 3, "dtype": "float64", "seed": 0} | settings
    net = fastperm.DeepSet(3, settings.pop("width", 20), settings.pop("depth", 3), 2, **settings)
    generator = np.random.default_rng(1)
    for name, array in net.parameters.items():
        if array.ndim == 1:
            net.parameters[name] = 0.1 * generator.standard_normal(array.shape)
    return net


def sets_of(counts=(7, 200, 1, 33), weighted=True, seed=2):
    generator = np.random.default_rng(seed)
    T = sum(counts)
    values = np.column_stack([generator.uniform(0, 2 * np.pi, T), generator.standard_normal((T, 2))])
    weights = generator.uniform(0.1, 2, T) if weighted else None
    return fastperm.Sets(values, np.concatenate([[0], np.cumsum(counts)]), weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("pool", "scale"), [("mean", None), ("sum", None), ("max", None), (None, None), ("mean", "rms"), ("max", "rms")]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shift_of_the_angles_changes_nothing(backend, pool, scale, weighted):
    net, sets = network(pool=pool, scale=scale, backend=backend), sets_of(weighted=weighted)
    wanted = net(sets)
    for shift in (0.3, -2.0, 2 * np.pi):
        moved = fastperm.Sets(sets.values + np.array([shift, 0, 0]), sets.offsets, sets.weights)
        np.testing.assert_allclose(net(moved), wanted, rtol=0, atol=1e-12 * max(1, np.abs(wanted).max()))
    # Each set may be shifted by itself; features are not free to move, and neither is one angle alone.
    own = np.repeat(np.arange(len(sets)), np.diff(sets.offsets))
    moved = fastperm.Sets(sets.values + np.column_stack([own, 0 * own, 0 * own]), sets.offsets, sets.weights)
    np.testing.assert_allclose(net(moved), wanted, rtol=0, atol=1e-12 * max(1, np.abs(wanted).max()))
    values = sets.values.copy()
    values[3, 0] += 0.5
    assert np.abs(net(fastperm.Sets(values, sets.offsets, sets.weights)) - wanted).max() > 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_orders_it_is_the_plain_network(backend):
    net, sets = network(orders=0, backend=backend), sets_of()
    plain = fastperm.DeepSet(2, 20, 3, 2, dtype="float64", backend=backend)
    plain.parameters.update(net.parameters)
    features = fastperm.Sets(np.ascontiguousarray(sets.values[:, 1:]), sets.offsets, sets.weights)
    np.testing.assert_array_equal(net(sets), plain(features))
    targets = np.random.default_rng(3).standard_normal((4, 2))
    assert net.loss_and_gradients(sets, targets) == plain.loss_and_gradients(features, targets)
    np.testing.assert_array_equal(net.gradients.flat, plain.gradients.flat)


@pytest.mark.parametrize("symmetry", [None, "circle"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scale_of_the_values_is_added_as_its_logarithm(backend, symmetry):
    net = network(symmetry=symmetry, orders=None, scale="rms", backend=backend)
    sets = sets_of()
    wanted = net(sets)
    for factor in (1e-30, 0.3, 7.0, 1e30):
        moved = fastperm.Sets(sets.values * [1, factor, factor], sets.offsets, sets.weights)
        np.testing.assert_allclose(net(moved), wanted + 2 * np.log(factor), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [None, "rms"])
@pytest.mark.parametrize("symmetry", [None, "circle"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_network_match_autograd(backend, symmetry, scale, weighted):
    net = network(symmetry=symmetry, orders=3 if symmetry else None, scale=scale, backend=backend)
    sets = sets_of(weighted=weighted)
    dy = np.random.default_rng(4).standard_normal((len(sets), 2))
    bounds = list(zip(sets.offsets[:-1], sets.offsets[1:], strict=True))
    w = np.ones(sets.n_elements) if sets.weights is None else sets.weights

    def predict(values, parameters):
        shift = autograd.numpy.zeros((len(bounds), 1))
        if scale is not None:
            roots = [
                autograd.numpy.sqrt(
                    autograd.numpy.sum(w[a:b, None] * values[a:b, 1:] ** 2) / (2 * autograd.numpy.sum(w[a:b]))
                )
                for a, b in bounds
            ]
            shift = 2 * autograd.numpy.log(autograd.numpy.stack(roots))[:, None]
            divided = [values[a:b, 1:] / root for (a, b), root in zip(bounds, roots, strict=True)]
            values = autograd.numpy.concatenate([values[:, :1], autograd.numpy.concatenate(divided)], axis=1)
        return oracle.deep_set(values, parameters, bounds, w, 3, "mean", "mean") + shift

    parameters = {name: array.copy() for name, array in net.parameters.items()}
    y, saved = net.forward(sets)
    assert error(y, predict(sets.values, parameters)) <= 1e-12
    np.testing.assert_allclose(net(sets), y, rtol=1e-12, atol=1e-12)
    net.zero_gradients()
    dx = net.backward(dy, saved)
    gradients = net.gradients.flat.copy()
    wanted_dx, wanted = autograd.grad(lambda *a: autograd.numpy.sum(predict(*a) * dy), argnum=(0, 1))(
        sets.values, parameters
    )
    assert error(dx, wanted_dx) <= 1e-11
    for name, gradient in wanted.items():
        assert error(net.gradients[name], gradient) <= 1e-11, name
    # The training step, for targets at which its dy is this one.
    targets = y - dy * y.size / 2
    net.loss_and_gradients(sets, targets)
    assert error(net.gradients.flat, gradients) <= 1e-11


def test_a_set_without_a_scale_is_taken_as_it_is():
    net = network(scale="rms")
    zeros = np.column_stack([np.linspace(0, 6, 9), np.zeros((9, 2))])
    plain = network(scale=None)
    np.testing.assert_array_equal(net(zeros[None]), plain(zeros[None]))
    assert np.isfinite(net.backward(np.ones((1, 2)), net.forward(zeros[None])[1])).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_no_weight_has_no_part_in_the_scale(backend):
    net = network(scale="rms", dtype="float32", backend=backend)
    values = np.array([[0.1, 1e-6, 2e-6], [0.7, 3e-6, 1e-6], [2.0, 1e33, -1e33]], np.float32)
    whole = fastperm.Sets(values, np.array([0, 3]), np.array([1.0, 2.0, 0.0], np.float32))
    part = fastperm.Sets(values[:2], np.array([0, 2]), np.array([1.0, 2.0], np.float32))
    np.testing.assert_allclose(net(whole), net(part), rtol=1e-5)
    found = net.predict_stream(lambda: [(whole.values, whole.weights)])
    np.testing.assert_allclose(found[None], net(part), rtol=1e-5)
    assert np.isfinite(net.backward(np.ones((1, 2)), net.forward(whole)[1])).all()


def test_values_whose_squares_vanish_have_no_scale():
    net, plain, sets = network(scale="rms"), network(scale=None), sets_of()
    tiny = fastperm.Sets(sets.values * np.array([1, 1e-160, 1e-160]), sets.offsets, sets.weights)
    np.testing.assert_array_equal(net(tiny), plain(tiny))


@pytest.mark.parametrize("scale", [None, "rms"])
def test_bitwise_invariance(scale):
    net = network(invariance="bitwise", scale=scale, dtype="float32")
    sets = sets_of().astype("float32")
    wanted = net(sets).tobytes()
    net.loss_and_gradients(sets, np.ones((4, 2)))
    gradients = net.gradients.flat.tobytes()
    for seed in range(50):
        moved = sets.permute(seed)
        assert net(moved).tobytes() == wanted
        net.loss_and_gradients(moved, np.ones((4, 2)))
        assert net.gradients.flat.tobytes() == gradients


@pytest.mark.parametrize("pool", ["mean", "max", None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_gives_what_the_set_gives(backend, pool):
    net = network(pool=pool, backend=backend, scale=None if pool is None else "rms")
    sets = sets_of((3000,))
    whole = net(sets)
    cuts = [0, 1, 700, 2999, 3000]

    def chunks():
        for a, b in pairwise(cuts):
            yield sets.values[a:b], sets.weights[a:b]

    found = net.predict_stream(chunks)
    found = np.concatenate(list(found)) if pool is None else found[None]
    assert error(found, whole) <= 1e-12


def test_threads_change_no_bit():
    net, sets = network(dtype="float32", scale="rms"), sets_of((40, 300, 5) * 20).astype("float32")
    targets = np.random.default_rng(3).standard_normal((60, 2)).astype("float32")
    results = []
    for threads in (1, 2, 3, 8):
        fastperm.set_num_threads(threads)
        loss = net.loss_and_gradients(sets, targets)
        results.append((loss, net(sets).tobytes(), net.gradients.flat.tobytes()))
    fastperm.set_num_threads(None)
    assert all(result == results[0] for result in results)


def test_a_saved_network_is_the_same(tmp_path):
    net, sets = network(scale="rms", orders=5), sets_of()
    net.save(tmp_path / "net.safetensors")
    loaded = fastperm.load(tmp_path / "net.safetensors")
    assert loaded.config() == net.config()
    assert (loaded.symmetry, loaded.orders, loaded.scale) == ("circle", 5, "rms")
    np.testing.assert_array_equal(loaded(sets), net(sets))
    assert "symmetry='circle'" in repr(net)


def test_what_another_network_saved_is_refused():
    _, saved = network().forward(sets_of())
    for other in (network(orders=2), network(symmetry=None, orders=None), network(scale="rms")):
        with pytest.raises(ValueError, match="saved comes from another network"):
            other.backward(np.ones((4, 2)), saved)
    plain = fastperm.DeepSet(2, 20, 3, 2, dtype="float64", seed=0)
    _, saved = plain.forward(sets_of().values[None, :, 1:])
    with pytest.raises(ValueError, match="saved comes from another network"):
        network(orders=0).backward(np.ones((1, 2)), saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregate": "max"}, "a maximum has no harmonics"),
        ({"symmetry": None}, "need symmetry='circle'"),
        ({"symmetry": "sphere"}, "symmetry must be one of None, 'circle'"),
        ({"orders": -1}, "orders must be at least 0"),
        ({"scale": "std"}, "scale must be one of None, 'rms'"),
        ({"scale": "rms", "pool": None}, "needs pooling"),
    ],
)
def test_settings_that_make_no_network(settings, message):
    with pytest.raises(ValueError, match=message):
        network(**settings)


@pytest.mark.parametrize("settings", [{"symmetry": "circle"}, {"scale": "rms"}])
def test_one_column_is_too_few(settings):
    with pytest.raises(ValueError, match="in_features must be at least 2"):
        fastperm.DeepSet(1, 8, 2, 1, **settings)


def test_squares_out_of_range_are_refused():
    values = np.ones((2, 5, 3))
    values[1, 2, 1] = 1e200
    with pytest.raises(ValueError, match="set 1: the squares of its values leave the range"):
        network(scale="rms")(values)
