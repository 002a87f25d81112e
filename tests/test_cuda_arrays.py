"""Sets, targets and gradients that lie on the GPU: on one, or in the simulator with a stand-in for CuPy."""

import sys

import fake_cupy
import numpy as np
import pytest
from cases import ON_NUMPY_GPU, error, to_bf16

import fastperm
from fastperm.kernels.arrays import on_gpu, on_host
from fastperm.kernels.cuda import compiling
from fastperm.losses import mean_squared_error

pytestmark = pytest.mark.cuda

COUNTS = (3, 1, 5)


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal((count, 2)).astype(np.float32) for count in COUNTS]
    weights = [generator.uniform(0.1, 1, count) for count in COUNTS]
    return arrays, weights, generator.standard_normal((3, 2)).astype(np.float32)


def network(**settings):
    return fastperm.DeepSet(2, 4, 2, 2, seed=0, backend="cuda", **settings)


class Foreign:
    """An array of another library."""

    def __init__(self, array, how):
        self.owner = array
        if how == "dlpack":
            self.__dlpack_device__ = lambda: (2, 0)
        else:
            self.__cuda_array_interface__ = {"data": (self.owner.ctypes.data, False)}


CIRCLE = {"symmetry": "circle", "orders": 1}


@pytest.mark.parametrize("invariance", ["rounding", "bitwise"])
@pytest.mark.parametrize(
    "settings",
    [
        {"aggregate": "mean", "pool": "mean"},
        {"aggregate": "max", "pool": None},
        {"aggregate": "sum", "pool": "max", "scale": "rms", **CIRCLE},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_what_is_given_on_the_gpu_comes_back_there(cupy, batch, settings, invariance):
    arrays, weights, _ = batch
    results = []
    for take in (np.asarray, cupy.asarray):
        net = network(invariance=invariance, **settings)
        sets = fastperm.Sets.ragged(map(take, arrays), map(take, weights))
        targets = take(np.ones(net.prediction_shape(sets), np.float32))
        loss = fastperm.train_step(net, sets, targets, fastperm.Adam())
        y, saved = net.forward(sets)
        loss_again, dy = mean_squared_error(y, targets, net.kernels)
        dx = net.backward(dy, saved)
        found = (net(sets), y, dy, dx)
        assert [on_gpu(array) for array in found] == 4 * [take is not np.asarray]
        results.append([loss, loss_again, *map(on_host, found)])
    for given, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(given, wanted)


def test_every_way_to_make_sets(cupy, batch):
    arrays, weights, _ = batch
    generator = np.random.default_rng(0)
    x, mask, w = generator.standard_normal((3, 4, 2)), np.eye(3, 4, dtype=bool), generator.uniform(0.1, 1, (3, 4))

    def ways(take):
        sets = fastperm.Sets.ragged(map(take, arrays), map(take, weights))
        yield sets
        yield fastperm.Sets.dense(take(x), take(w))
        yield fastperm.Sets.masked(take(x), take(mask), take(w))
        yield fastperm.Sets.mixture(map(take, arrays), map(take, weights))
        yield fastperm.Sets(take(x[0]), take(np.array([0, 1, 4])), take(w[0]))
        yield sets[1]
        yield sets[[2, 0]]
        yield sets.permute(0)
        yield sets.astype("float64")
        yield fastperm.Sets.concatenate([sets, fastperm.Sets.dense(take(x.astype(np.float32)))])

    for found, wanted in zip(ways(cupy.asarray), ways(np.asarray), strict=True):
        assert on_gpu(found.values)
        assert not on_gpu(found.offsets)
        assert repr(found) == repr(wanted)
        np.testing.assert_array_equal(on_host(found.values), wanted.values)
        np.testing.assert_array_equal(found.offsets, wanted.offsets)
        np.testing.assert_allclose(found.totals, wanted.totals, rtol=1e-6)
        if wanted.weights is not None:
            np.testing.assert_allclose(on_host(found.weights), wanted.weights, rtol=1e-6)


def test_nothing_is_copied_that_need_not_be(cupy, batch):
    values = cupy.asarray(np.concatenate(batch[0]))
    sets = fastperm.Sets(values, np.array([0, 3, 4, 9]))
    assert sets.values is values


@pytest.mark.skipif(not compiling.SIMULATED, reason="CuPy's arrays do not say when they are copied")
@pytest.mark.parametrize("invariance", ["rounding", "bitwise"])
@pytest.mark.parametrize("symmetry", [{}, CIRCLE, {"symmetry": "circle", "orders": 0}], ids=str)
def test_nothing_goes_through_the_host(cupy, batch, symmetry, invariance, monkeypatch):
    arrays, weights, targets = batch
    net = network(scale="rms", invariance=invariance, **symmetry)
    sets = fastperm.Sets.ragged(map(cupy.asarray, arrays), map(cupy.asarray, weights))
    targets = cupy.asarray(targets)

    def refuse(_):
        raise AssertionError("an array is copied to the host")

    monkeypatch.setattr(fake_cupy.ndarray, "get", refuse)
    fastperm.train_step(net, sets, targets, fastperm.Adam())
    y, saved = net.forward(sets)
    arrays = (net(sets), y, saved.scales, net.backward(targets, saved))
    assert all(isinstance(array, cupy.ndarray) for array in arrays)


@pytest.mark.skipif(not compiling.SIMULATED, reason="stands in for other libraries")
@pytest.mark.parametrize("how", ["dlpack", "cuda_array_interface"])
def test_arrays_of_other_libraries(cupy, batch, how):
    sets = fastperm.Sets(Foreign(np.concatenate(batch[0]), how), np.array([0, 3, 4, 9]))
    assert isinstance(sets.values, cupy.ndarray)
    np.testing.assert_array_equal(sets.values.get(), np.concatenate(batch[0]))


@pytest.mark.skipif(compiling.SIMULATED or ON_NUMPY_GPU, reason="needs a GPU")
def test_tensors_of_pytorch(cupy, batch):
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(np.concatenate(batch[0])).cuda()
    sets = fastperm.Sets(tensor, np.array([0, 3, 4, 9]))
    assert sets.values.data.ptr == tensor.data_ptr()
    net = network()
    np.testing.assert_array_equal(net(sets).get(), net(fastperm.Sets(np.concatenate(batch[0]), sets.offsets)))


@pytest.mark.skipif(compiling.SIMULATED or ON_NUMPY_GPU, reason="needs a GPU")
def test_the_current_stream_is_taken(cupy, batch):
    net, values = network(), cupy.asarray(np.concatenate(batch[0]))
    sets = fastperm.Sets(values, np.array([0, 3, 4, 9]))
    wanted = net(sets).get()
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        found = net(sets)
        stream.synchronize()
    np.testing.assert_array_equal(found.get(), wanted)


def test_a_stream_on_the_circle(cupy, batch):
    net = network(scale="rms", **CIRCLE)
    values = np.concatenate(batch[0])
    np.testing.assert_allclose(net.predict_stream(values), net(values[None])[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((1, 0), "set 1, element 0: values must be finite in float32, got nan in feature 1"),
        ((0, 2), "set 0, element 2: values must be finite in float32, got nan in feature 1"),
    ],
)
def test_values_are_checked_on_the_gpu(cupy, batch, where, message):
    batch[0][where[0]][where[1], 1] = np.nan
    with pytest.raises(ValueError, match=message):
        fastperm.Sets.ragged(map(cupy.asarray, batch[0]))


def test_weights_are_checked_on_the_gpu(cupy, batch):
    values = cupy.asarray(np.concatenate(batch[0]))
    weights = np.ones(9, np.float32)
    weights[3] = -1
    with pytest.raises(ValueError, match=r"set 1, element 0: weights must be finite .* and non-negative, got -1.0"):
        fastperm.Sets(values, [0, 3, 4, 9], cupy.asarray(weights))
    weights[3] = 0
    with pytest.raises(ValueError, match="set 1: weights must have a positive sum"):
        fastperm.Sets(values, [0, 3, 4, 9], cupy.asarray(weights))


def test_places_that_do_not_go_together_are_refused(cupy, batch):
    arrays, _, targets = batch
    values = cupy.asarray(np.concatenate(arrays))
    with pytest.raises(TypeError, match="weights lies on the host and values on a GPU; give both in one place"):
        fastperm.Sets(values, [0, 9], np.ones(9))
    with pytest.raises(TypeError, match="set 1 lies on the host and set 0 on a GPU"):
        fastperm.Sets.ragged([cupy.asarray(arrays[0]), arrays[1]])
    host = fastperm.DeepSet(2, 4, 2, 2, seed=0, backend="reference")
    with pytest.raises(TypeError, match="values lies on a GPU, and the backend 'reference' computes on the host"):
        host(fastperm.Sets(values, [0, 9]))
    with pytest.raises(TypeError, match="targets lies on a GPU, and the backend 'reference' computes"):
        fastperm.train_step(host, arrays, cupy.asarray(targets), fastperm.Adam())
    with pytest.raises(TypeError, match="chunk 0 lies on a GPU, expected an array of the host"):
        network().predict_stream(lambda: [values])
    if compiling.SIMULATED:
        sets, net = fastperm.Sets(values, [0, 9]), network()
        values.device = type("Device", (), {"id": 1})
        for call in (lambda: net(sets), lambda: net.loss_and_gradients(sets, np.zeros((1, 2)))):
            with pytest.raises(ValueError, match="values lies on GPU 1, and the current one is GPU 0; make the other"):
                call()
        del values.device
        cupy.cuda.Device = lambda: type("Device", (), {"id": 1})
        with pytest.raises(ValueError, match="values lies on GPU 0, and the current one is GPU 1; make the other"):
            fastperm.Sets(values, [0, 9])


def test_targets_of_a_validation_on_the_gpu(cupy, batch):
    arrays, _, targets = batch

    class Task:
        def sample(self, batch, generator):
            return fastperm.Sets.ragged(map(cupy.asarray, arrays)), cupy.asarray(targets)

    history = fastperm.train(network(), Task(), steps=1, batch=3, progress=False, validate=3)
    assert np.isfinite(history["validation_loss"]).all()


TASK = {"k_max": 3, "k_fin": (2, 3), "backend": "cuda"}


@pytest.mark.parametrize("set_size", [5, (2, 6)], ids=["fixed", "range"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sets_are_drawn_on_the_gpu(cupy, dtype, set_size):
    task = fastperm.PowerSpectrum(**TASK, set_size=set_size, output="power", dtype=dtype)
    sets, targets = task.sample(4, 3)
    assert on_gpu(sets.values)
    assert on_gpu(targets)
    assert sets.dtype == dtype
    assert set(sets.counts) <= set(range(2, 7))
    coefficients = task.draw(4, 3)
    np.testing.assert_allclose(on_host(targets), np.abs(coefficients[:, 1:]) ** 2, rtol=1e-12)
    for one, c in zip(sets, coefficients, strict=True):
        x, y = on_host(one.values).T
        np.testing.assert_allclose(y, fastperm.power_spectrum.evaluate_series(x, c), rtol=2e-7, atol=1e-12)
    again, _ = task.sample(4, 3)
    np.testing.assert_array_equal(on_host(again.values), on_host(sets.values))
    other, _ = task.sample(4, 4)
    assert not np.isin(on_host(other.values[:, 0]), on_host(sets.values)).any()


def test_a_generator_moves_on_with_sets_that_are_drawn_on_the_gpu(cupy):
    task, generator = fastperm.PowerSpectrum(**TASK, set_size=5), np.random.default_rng(0)
    draws = [on_host(task.sample(2, generator)[0].values) for _ in range(2)]
    assert not np.isin(draws[0], draws[1]).any()


def test_functions_of_the_user_draw_on_the_host(cupy):
    settings = TASK | {"set_size": 5, "positions": lambda generator, n: generator.uniform(1, 2, n)}
    task = fastperm.PowerSpectrum(**settings)
    (sets, targets), (own, wanted) = (of.sample(2, 0) for of in (task, task.to("auto")))
    assert on_gpu(sets.values)
    assert on_gpu(targets)
    np.testing.assert_array_equal(on_host(sets.values), own.values)
    np.testing.assert_array_equal(on_host(targets), wanted)


def test_training_on_sets_that_are_drawn_on_the_gpu(cupy):
    task = fastperm.PowerSpectrum(**TASK, set_size=5)
    nets = [network(), network()]
    for net, steps in zip(nets, (3, 4), strict=True):
        history = fastperm.train(net, task, steps=steps, batch=3, progress=False, validate=3)
        assert np.isfinite(history["validation_loss"][-1])
    fastperm.train(nets[0], task, steps=1, batch=3, seed=1, progress=False, validate=None)
    assert not np.array_equal(on_host(nets[0].parameters.flat), on_host(nets[1].parameters.flat))


def test_networks_of_all_backends_are_tested_on_the_same_sets(cupy):
    from fastperm.estimation import evaluate

    task = fastperm.PowerSpectrum(**TASK, set_size=5)
    found, wanted = (evaluate(network(), of, sets=3) for of in (task, task.to("reference")))
    np.testing.assert_array_equal(found.truths, wanted.truths)
    np.testing.assert_allclose(found.estimates, wanted.estimates, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_products_of_the_library(cupy, monkeypatch, precision):
    from fastperm.kernels.cuda import library, pooling, product

    if compiling.SIMULATED:
        monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
        monkeypatch.setattr(library, "SIMULATED", False)
    elif precision == "float32":
        monkeypatch.setattr(product, "LIBRARY", 64)
        monkeypatch.setattr(product, "LIBRARY_TRANSPOSED", 64)
    rows, inner, columns = (9, 17, 21) if compiling.SIMULATED else (1000, 131, 67)
    # Sums in float32; what the library rounds to TF32 differs from what is compared with here.
    generator, tolerance = np.random.default_rng(0), 5e-6 if compiling.SIMULATED or precision != "tf32" else 1e-3
    rounded = to_bf16 if precision == "bfloat16" else lambda array: array.astype(np.float64)
    flat = generator.standard_normal(1 + inner * columns).astype(np.float32)
    x, g = (generator.standard_normal((rows, width)).astype(np.float32) for width in (inner, columns))
    c, sets = generator.standard_normal((2, columns)).astype(np.float32), np.arange(rows, dtype=np.int32) // (rows - 3)
    x_, W_, g_ = (rounded(array) for array in (x, flat[1:].reshape(inner, columns), g))

    on_gpu = [cupy.asarray(array) for array in (x, flat, g, c, sets)]
    W = on_gpu[1][1:].reshape(inner, columns)  # of a network, whose matrices are not aligned
    y, dx, dW = cupy.empty(g.shape, np.float32), cupy.empty(x.shape, np.float32), cupy.asarray(np.ones_like(W_, "f4"))
    partials = product.product(
        *(on_gpu[0], W, y), c=on_gpu[3], sets=on_gpu[4], relu=True, code=pooling.SUM, n_sets=2, precision=precision
    )
    p = cupy.empty(c.shape, np.float32)
    pooling.finish(partials, cupy.asarray(np.array([0, rows - 3, rows])), "sum", None, p)
    product.product(on_gpu[2], W, dx, B_along_k=True, masked_by=on_gpu[0], precision=precision)
    product.add_transposed_product(on_gpu[0], on_gpu[2], dW, precision=precision)
    wanted = np.maximum(x_ @ W_ + c[sets], 0)
    assert error(on_host(y), wanted) <= tolerance
    assert error(on_host(p), np.add.reduceat(wanted, [0, rows - 3])) <= tolerance
    assert error(on_host(dx), np.where(x > 0, g_ @ W_.T, 0)) <= tolerance
    assert error(on_host(dW), 1 + x_.T @ g_) <= tolerance


def test_a_library_without_memory_is_a_memory_error(cupy, monkeypatch):
    from fastperm.kernels.cuda import library

    def fail(*_):
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")

    if compiling.SIMULATED:
        monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
        monkeypatch.setattr(library, "SIMULATED", False)
    monkeypatch.setattr(cupy.cuda.cublas, "gemmEx", fail)
    square = cupy.asarray(np.ones((16, 16), np.float32))
    with pytest.raises(MemoryError, match="ALLOC_FAILED"):
        library.matmul(square, square, square, "bfloat16")
