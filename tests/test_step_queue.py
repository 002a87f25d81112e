"""Training steps queued on the GPU: on one, or in the simulator with a stand-in for CuPy."""

import ctypes
import logging
import re

import fake_cupy
import numpy as np
import pytest

import fastperm
from fastperm import steps
from fastperm.kernels.arrays import on_gpu, on_host
from fastperm.kernels.cuda import compiling, graphs, mapped
from fastperm.steps import Steps

pytestmark = pytest.mark.cuda

# A GPU keeps no smaller sets on chip.
SIZE = 5 if compiling.SIMULATED else 40
TASK = {"k_max": 3, "k_fin": (2, 3), "set_size": SIZE, "dtype": "float32", "backend": "cuda"}
ON_CHIP = {"aggregate": "mean", "pool": "sum"}
LAYER_BY_LAYER = {"aggregate": "max", "pool": "mean"}
CIRCLE = {"symmetry": "circle", "orders": 2, "scale": "rms"}
# Rows that are not aligned are the library's in bfloat16, too; others are our tiles'. So narrow layers of the simulator
# would be on chip, but for the maximum.
LIBRARY = {"width": (17, 19), "aggregate": "max"} if compiling.SIMULATED else {"width": (257, 301)}
ON_CORES = {"precision": "bfloat16"} | (
    {"width": (20, 16), "aggregate": "max"} if compiling.SIMULATED else {"width": (256, 300)}
)
# On a GPU, where warpgroups multiply these.
IN_PAIRS = {"precision": "bfloat16", "width": (40, 48) if compiling.SIMULATED else (192, 200)}
WAYS = pytest.mark.parametrize(
    "how",
    [
        *(ON_CHIP, LAYER_BY_LAYER, CIRCLE, {"scale": "rms"}, LIBRARY, LIBRARY | {"precision": "bfloat16"}),
        *(ON_CORES, IN_PAIRS),
    ],
    ids=["on chip", "layer by layer", "circle", "scale", "library", "bfloat16", "cores", "pairs"],
)


def network(width=(4, 3), **settings):
    return fastperm.DeepSet(2, width, 2, 2, seed=0, backend="cuda", **settings)


def trained(how, task=TASK, rate=1e-2, **settings):
    """Return the parameters after some steps, the history and the optimiser."""
    net, optimizer = network(**how), fastperm.Adam(rate)
    settings = {"steps": 5, "batch": 3, "seed": 1, "every": 3, "validate": 2, "schedule": "cosine"} | settings
    history = fastperm.train(net, fastperm.PowerSpectrum(**task), optimizer=optimizer, progress=False, **settings)
    return on_host(net.parameters.flat), history, optimizer, on_host(net.gradients.flat)


@pytest.mark.parametrize(
    ("how", "product"),
    [
        (LIBRARY, "NVIDIA's library"),
        (LIBRARY | {"precision": "bfloat16"}, "NVIDIA's library, in bfloat16"),
        (ON_CORES, "on tensor cores, in bfloat16"),
    ],
)
def test_a_layer_of_these_networks_is_computed_as_their_names_say(cuda, how, product):
    inner, columns = how["width"]
    found = str(fastperm.explain(network(**how), np.zeros((2, SIZE, 2))))
    assert re.search(f"{inner} to {columns} columns: [^,;]*{product}", found), found


@pytest.fixture
def one_by_one(monkeypatch):
    """Return a function after which nothing is queued."""
    return lambda: monkeypatch.setattr(steps, "most_numbers", lambda: 0)


def same_as_one_by_one(one_by_one, how, task=TASK):
    queued = trained(how, task)
    one_by_one()
    wanted = trained(how, task)
    np.testing.assert_array_equal(queued[0], wanted[0])
    np.testing.assert_array_equal(queued[3], wanted[3])
    assert np.abs(queued[3]).max() > 0
    for name in ("step", "loss", "validation_loss"):
        np.testing.assert_array_equal(queued[1][name], wanted[1][name])
    assert queued[2].steps == 5
    for name, array in queued[2].state().items():
        np.testing.assert_array_equal(array, wanted[2].state()[name])


@WAYS
def test_queued_steps_are_those_that_one_waits_for(cupy, one_by_one, how):
    same_as_one_by_one(one_by_one, how)


@pytest.mark.parametrize("how", [ON_CHIP, LAYER_BY_LAYER], ids=["on chip", "layer by layer"])
def test_queued_steps_of_another_law_are_those_that_one_waits_for(cupy, one_by_one, how):
    same_as_one_by_one(one_by_one, how, TASK | {"amplitudes": "lognormal", "noise": 0.1, "output": "power"})


def test_steps_are_queued(cupy, monkeypatch):
    calls, launch = [], graphs.Graph.launch
    monkeypatch.setattr(graphs.Graph, "launch", lambda self: calls.append(1) or launch(self))
    trained(ON_CHIP)
    assert len(calls) == 4  # the first step is recorded


def test_losses_are_known_whenever_one_asks(cupy):
    found = []
    for groups in ((1, 3, 2), (1,) * 6):
        work = Steps(network(**ON_CHIP), fastperm.PowerSpectrum(**TASK), fastperm.Adam(), 3)
        generator, losses = np.random.default_rng(0), []
        for asked in groups:
            for _ in range(asked):
                work.take(generator)
            losses += work.losses()
        assert work.losses() == []
        found.append(losses)
    assert len(set(found[0])) == 6
    assert found[0] == found[1]


def test_a_run_goes_on_to_the_bit(cupy, tmp_path):
    path = tmp_path / "run.safetensors"
    trained(ON_CHIP, steps=2, checkpoint=path, schedule="constant")
    again = trained(ON_CHIP, steps=5, checkpoint=path, resume=True, schedule="constant")
    wanted = trained(ON_CHIP, schedule="constant")
    np.testing.assert_array_equal(again[0], wanted[0])
    np.testing.assert_array_equal(again[1]["loss"], wanted[1]["loss"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_all_steps_behind_it(cupy, one_by_one):
    """The same step is named, and parameters and moments are those before it, however many were queued behind."""
    found = []
    for prepare in (lambda: None, one_by_one):
        prepare()
        net, optimizer = network(**ON_CHIP), fastperm.Adam(1e13)
        with pytest.raises(FloatingPointError) as error:
            fastperm.train(
                *(net, fastperm.PowerSpectrum(**TASK)),
                steps=9,
                batch=3,
                optimizer=optimizer,
                progress=False,
                validate=None,
            )
        found.append((str(error.value), on_host(net.parameters.flat), optimizer.steps, optimizer.state()))
    assert found[0][0] == found[1][0]
    assert 1 < found[0][2] + 1 < 9, "this test is of steps before and behind"
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]
    for name, array in found[0][3].items():
        np.testing.assert_array_equal(array, found[1][3][name])


def test_without_memory_steps_are_taken_one_by_one(cupy, one_by_one, monkeypatch):
    step = fastperm.kernels.cuda.deep_set_step
    sizes = []

    def too_large(x, *rest, **how):
        sizes.append(len(x))
        if len(x) > 2 * SIZE:
            raise MemoryError("too large")
        return step(x, *rest, **how)

    monkeypatch.setattr(fastperm.kernels.cuda, "deep_set_step", too_large)
    found = trained(ON_CHIP, steps=2, validate=None)
    assert sizes == [SIZE * count for count in (3, 3, 1, 2, 3, 1, 2)]  # queued, alone, in halves; and again
    one_by_one()
    wanted = trained(ON_CHIP, steps=2, validate=None)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1]["loss"], wanted[1]["loss"])


class OwnSample(fastperm.PowerSpectrum):
    def sample(self, batch, seed):
        sets, targets = super().sample(batch, seed)
        return sets, targets + targets * 0


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        ({"symmetry": "circle", "orders": 0}, fastperm.PowerSpectrum),
        ({"invariance": "bitwise"}, fastperm.PowerSpectrum),
        ({"most": 3 * SIZE * 8 - 1}, fastperm.PowerSpectrum),
        ({}, OwnSample),
        ({}, lambda **task: fastperm.PowerSpectrum(**task | {"set_size": (SIZE - 1, SIZE)})),
        ({}, lambda **task: fastperm.PowerSpectrum(**task).to("auto")),
        ({}, lambda **task: fastperm.PowerSpectrum(**task | {"amplitudes": lambda generator, mean: mean})),
    ],
    ids=["no angles", "bitwise", "large", "subclass", "sizes", "host", "callable"],
)
def test_what_is_not_queued(cupy, monkeypatch, settings, task):
    settings = dict(settings)
    most = settings.pop("most", 3 * SIZE * 8)
    monkeypatch.setattr(steps, "most_numbers", lambda: most)
    net = fastperm.DeepSet(2, 4, 2, 2, seed=0, backend="cuda", **settings)
    work = Steps(net, task(**TASK), fastperm.Adam(), 3)
    assert work.capacity == 1
    work.take(np.random.default_rng(0))
    assert np.isfinite(work.losses()).all()


def test_a_task_that_does_not_fit_is_refused_as_ever(cupy):
    task = fastperm.PowerSpectrum(**TASK | {"k_fin": 3})
    with pytest.raises(ValueError, match=r"targets must have shape \(3, 2\)"):
        fastperm.train(network(), task, steps=1, batch=3, progress=False, validate=None)


def test_an_optimizer_of_ones_own_is_asked(cupy):
    class Halved(fastperm.Adam):
        def step(self, parameters, gradients, *, learning_rate=None):
            super().step(parameters, gradients, learning_rate=self.learning_rate / 2)

    assert Steps(network(), fastperm.PowerSpectrum(**TASK), Halved(), 3).capacity == 1


class Stream:
    """A stream that captures as CUDA does: what is launched meanwhile does not run."""

    def __init__(self, log, error=None):
        self.log, self.error = log, error

    def __enter__(self):
        self.log.append("enter")

    def __exit__(self, *exception):
        self.log.append("exit")

    def begin_capture(self):
        if self.error:
            raise self.error
        self.log.append("begin")
        self.launch, self.captured = compiling.Kernel.__call__, []
        compiling.Kernel.__call__ = lambda kernel, *a, **how: self.captured.append((kernel, a, how))

    def end_capture(self):
        self.log.append("end")
        if self.error:
            raise RuntimeError("no capture has begun")
        compiling.Kernel.__call__ = self.launch
        return self

    def launch_graph(self):
        for kernel, arguments, how in self.captured:
            kernel(*arguments, **how)


@pytest.mark.skipif(not compiling.SIMULATED, reason="a GPU captures by itself")
@pytest.mark.parametrize(
    "error", [None, RuntimeError("cudaErrorStreamCaptureUnsupported")], ids=["captured", "refused"]
)
def test_capture(cupy, monkeypatch, caplog, error):
    wanted = trained(ON_CHIP)
    log = []

    def make(non_blocking):
        assert non_blocking
        stream = Stream(log, error)
        end = stream.end_capture
        graph = type("Graph", (), {"launch": lambda self: log.append("launch") or stream.launch_graph()})
        stream.end_capture = lambda: end() and graph()
        return stream

    monkeypatch.setattr(cupy.cuda, "Stream", make, raising=False)
    monkeypatch.setattr(graphs, "SIMULATED", False)
    with caplog.at_level(logging.WARNING):
        found = trained(ON_CHIP)
    np.testing.assert_array_equal(found[0], wanted[0])
    if error:
        assert "cannot be captured" in caplog.text
        assert caplog.text.count("cannot") == 1
    else:
        assert log == ["enter", "begin", "end", "exit", *["launch"] * 4]
        assert not caplog.text


def batches(cupy, count):
    """Return batches that lie on the GPU, each elsewhere."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        arrays = [generator.standard_normal((size, 2)).astype(np.float32) for size in (SIZE - 2, 1, 3 * SIZE)]
        weights = [generator.uniform(0.1, 1, len(array)).astype(np.float32) for array in arrays]
        sets = fastperm.Sets.ragged(map(cupy.asarray, arrays), map(cupy.asarray, weights))
        yield sets, cupy.asarray(generator.standard_normal((3, 2)).astype(np.float32))


@WAYS
def test_a_batch_that_comes_again_is_a_graph(cupy, one_by_one, monkeypatch, how):
    calls, launch = [], graphs.Graph.launch
    monkeypatch.setattr(graphs.Graph, "launch", lambda self: calls.append(1) or launch(self))

    def run():
        net, optimizer = network(**how), fastperm.Adam(1e-2)
        own = list(batches(cupy, 2))
        losses = [
            fastperm.train_step(net, *own[i], optimizer, learning_rate=rate)
            for i, rate in ((0, None), (0, 0.1), (0, None), (1, None), (0, None), (1, 0.2), (1, None), (0, None))
        ]
        # What lies there may change; what was left to gradients does not matter.
        own[0][0].values[:] = own[1][0].values
        net.gradients.flat.fill(np.nan)
        losses.append(fastperm.train_step(net, *own[0], optimizer))
        arrays = net.parameters.flat, net.gradients.flat
        return losses, [on_host(array) for array in arrays], optimizer.steps, optimizer.state()

    found = run()
    # The first step makes the moments, the second is seen for the first time, and the third is recorded.
    assert len(calls) == 4
    one_by_one()
    wanted = run()
    assert len(calls) == 4
    assert found[0] == wanted[0]
    for given, array in zip(found[1], wanted[1], strict=True):
        np.testing.assert_array_equal(given, array)
    assert found[2] == wanted[2] == 9
    for name, array in found[3].items():
        np.testing.assert_array_equal(array, wanted[3][name])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_of_a_graph_that_is_not_finite(cupy):
    net, optimizer = network(**ON_CHIP), fastperm.Adam()
    ((sets, targets),) = batches(cupy, 1)
    for _ in range(4):
        fastperm.train_step(net, sets, targets, optimizer)
    before, state = on_host(net.parameters.flat).copy(), optimizer.state()
    assert any(net._recorded.values())
    targets[0, 0] = np.float32(np.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        fastperm.train_step(net, sets, targets, optimizer)
    np.testing.assert_array_equal(on_host(net.parameters.flat), before)
    for name, array in optimizer.state().items():
        np.testing.assert_array_equal(array, state[name])
    targets[0, 0] = np.float32(1)
    assert np.isfinite(fastperm.train_step(net, sets, targets, optimizer))
    assert not np.array_equal(on_host(net.parameters.flat), before)


def test_graphs_are_few_and_make_room(cupy, monkeypatch):
    monkeypatch.setattr(steps, "RECORDED", 2)
    monkeypatch.setattr(steps, "REMEMBERED", 3)
    net, optimizer = network(**ON_CHIP), fastperm.Adam()
    own = list(batches(cupy, 4))

    def seen(*which):
        for i in which:
            fastperm.train_step(net, *own[i], optimizer)
        return [bool(queue) for queue in net._recorded.values()]

    assert seen(0, 0, 1, 2) == [False] * 3
    assert seen(0, 1, 2) == [True, True, False]  # the third finds no place
    assert seen(3, 3) == [True, False, True]  # the first is forgotten, and its graph with it
    step = fastperm.kernels.cuda.deep_set_step

    def too_large(x, *rest, **how):
        sizes.append(len(x))
        if len(x) > 3 * SIZE:
            raise MemoryError("too large")
        return step(x, *rest, **how)

    sizes = []
    monkeypatch.setattr(fastperm.kernels.cuda, "deep_set_step", too_large)
    # The graphs make room, and the batch is tried as a whole once more; then it is taken in halves.
    assert seen(0) == [False]
    assert sizes[:3] == [len(own[0][0].values)] * 2 + [SIZE - 2]


def _moved(array):
    """Return an array of other numbers elsewhere."""
    return array * np.float32(0.5)


# What is done to the network, the sets and the optimiser between two steps.
CHANGES = {
    "parameters": lambda net, sets, optimizer: net.parameters.update({"head.bias": 3}),
    "moments": lambda net, sets, optimizer: optimizer.load_state(optimizer.state()),
    "beta1": lambda net, sets, optimizer: setattr(optimizer, "beta1", 0.5),
    "beta2": lambda net, sets, optimizer: setattr(optimizer, "beta2", 0.5),
    "epsilon": lambda net, sets, optimizer: setattr(optimizer, "epsilon", 1e-2),
    "precision": lambda net, sets, optimizer: setattr(net, "precision", "tf32"),
    "values": lambda net, sets, optimizer: setattr(sets, "values", _moved(sets.values)),
    "weights": lambda net, sets, optimizer: setattr(sets, "weights", sets.weights * sets.weights),
    "no weights": lambda net, sets, optimizer: setattr(sets, "weights", None),
    "offsets": lambda net, sets, optimizer: setattr(sets, "offsets", sets.offsets - [0, 1, 0, 0]),
    "offsets in place": lambda net, sets, optimizer: sets.offsets.__isub__([0, 1, 0, 0]),
}


@pytest.mark.parametrize("name", [*CHANGES, "targets", "order of targets", "optimizer", "sets"])
def test_a_graph_is_of_what_it_was_made_for(cupy, one_by_one, name):
    def run():
        net, optimizer = network(**ON_CHIP), fastperm.Adam(1e-2)
        ((sets, targets),) = batches(cupy, 1)
        losses = []
        for i in range(6):  # the third is recorded, and so is the fifth, after the change
            if i == 3:
                if name == "targets":
                    targets = _moved(targets)
                elif name == "order of targets":  # at the same place, in the same shape
                    targets = targets.reshape(2, 3).T
                elif name == "optimizer":
                    optimizer = fastperm.Adam(1e-3, epsilon=1e-3)
                elif name == "sets":
                    sets = fastperm.Sets._trusted(sets.values[:-1], sets.offsets - [0, 0, 0, 1], None)
                else:
                    CHANGES[name](net, sets, optimizer)
            losses.append(fastperm.train_step(net, sets, targets, optimizer))
        return losses, on_host(net.parameters.flat)

    found = run()
    one_by_one()
    wanted = run()
    assert found[0] == wanted[0]
    np.testing.assert_array_equal(found[1], wanted[1])


def test_a_graph_is_of_one_stream(cupy, monkeypatch):
    net, optimizer = network(**ON_CHIP), fastperm.Adam()
    ((sets, targets),) = batches(cupy, 1)
    for stream, known in ((1, 1), (2, 2), (1, 2)):
        monkeypatch.setattr(compiling, "current_place", lambda stream=stream: (0, stream))
        for _ in range(3):
            fastperm.train_step(net, sets, targets, optimizer)
        assert len(net._recorded) == known
    assert all(net._recorded.values())
    assert len({id(queue) for queue in net._recorded.values()}) == 2


def test_a_network_that_sorts_now_has_no_graph(cupy, monkeypatch):
    net, optimizer = network(**ON_CHIP), fastperm.Adam()
    ((sets, targets),) = batches(cupy, 1)
    for _ in range(4):
        fastperm.train_step(net, sets, targets, optimizer)
    net.invariance = "bitwise"
    monkeypatch.setattr(graphs.Graph, "launch", lambda self: pytest.fail("done as before"))
    fastperm.train_step(net, sets, targets, optimizer)


def test_a_batch_that_is_known_is_not_checked_again(cupy, monkeypatch):
    net, optimizer = network(**ON_CHIP), fastperm.Adam()
    own = list(batches(cupy, 2))
    for sets, targets in own * 3:
        fastperm.train_step(net, sets, targets, optimizer)
    assert all(net._recorded.values())
    monkeypatch.setattr(steps, "_recordable", lambda *_: pytest.fail("checked"))
    for sets, targets in own:
        again = fastperm.Sets._trusted(sets.values, sets.offsets.copy(), sets.weights)
        fastperm.train_step(net, again, targets, optimizer)
    # They were recorded in the other order; the one to forget is that not asked for longest.
    assert [place[1] for place in net._recorded] == [sets.values.data.ptr for sets, _ in own]


def test_a_number_of_the_host_is_where_kernels_are_told(monkeypatch):
    monkeypatch.setattr(mapped, "SIMULATED", False)
    monkeypatch.setattr(mapped, "xp", fake_cupy.Cupy)
    for dtype, kind in ((np.float32, ctypes.c_float), (np.float64, ctypes.c_double)):
        number = mapped.MappedNumber(dtype)
        on_host = number.on_host
        assert (number.dtype, on_host.dtype, on_host.shape, on_host[0]) == (dtype, dtype, (1,), 0)
        of_kernels = kind.from_address(number.data.ptr)
        of_kernels.value = 3.5
        assert on_host[0] == 3.5
        on_host[0] = -2.25
        assert of_kernels.value == -2.25


def test_the_task_goes_where_the_network_is(cupy):
    wanted = trained(ON_CHIP)
    found = trained(ON_CHIP, TASK | {"backend": "auto"})
    np.testing.assert_array_equal(found[0], wanted[0])
    host = trained(ON_CHIP, TASK | {"backend": "reference"})
    assert not np.array_equal(host[0], wanted[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ON_CHIP, "CUDA graphs, for a batch that lies on the GPU where one lay before"),
        ({"most": 32 * SIZE - 1}, f"one by one: activations of {32 * SIZE:,} numbers, more than {32 * SIZE - 1:,}"),
        ({"invariance": "bitwise"}, "one by one: CuPy sorts the elements"),
        ({"symmetry": "circle", "orders": 0}, "one by one: CuPy leaves out the angles"),
    ],
    ids=["on chip", "large", "bitwise", "no angles"],
)
def test_explain_says_how_steps_are_launched(cuda, monkeypatch, settings, said):
    settings = dict(settings)
    most = settings.pop("most", 32 * SIZE)
    monkeypatch.setattr(steps, "most_numbers", lambda: most)
    net = fastperm.DeepSet(**{"in_features": 2, "width": 8, "depth": 2, "out_features": 2} | settings, backend="cuda")
    found = str(fastperm.explain(net, np.zeros((2, SIZE, 2))))
    assert found.endswith(f"\n  training steps: {said}")


def test_a_task_of_ones_own_stays_on_the_host(cupy):
    task = OwnSample(**TASK | {"backend": "auto"})
    assert task.beside("cuda") is task
    assert task.to("cuda").beside("cuda").backend == "cuda"
    fastperm.train(network(), task, steps=2, batch=3, progress=False, validate=None)


def test_other_threads_are_not_recorded(cupy):
    from concurrent.futures import ThreadPoolExecutor

    bystander, optimizer = network(), fastperm.Adam()
    ((sets, targets),) = batches(cupy, 1)

    def work():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(compiling.put, lambda: None).result()
        compiling.put(lambda: None)

    with compiling.recorded() as found, compiling.recorded() as inner:
        work()
    assert (len(found), len(inner)) == (0, 1)
    fastperm.train_step(bystander, sets, targets, optimizer)
    assert (len(found), len(inner)) == (0, 1)


def test_a_batch_that_is_refused_is_not_remembered(cupy, monkeypatch):
    net, optimizer = network(), fastperm.Adam()
    ((sets, targets),) = batches(cupy, 1)
    fastperm.train_step(net, sets, targets, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr("fastperm.network.check_device", lambda *_: pytest.fail("on another GPU"))
        for _ in range(3):
            with pytest.raises(pytest.fail.Exception):
                fastperm.train_step(net, sets, targets, optimizer)
    assert not net._recorded
    fastperm.train_step(net, sets, targets, optimizer)
    assert len(net._recorded) == 1


@pytest.mark.parametrize("rate", [-1, np.nan])
def test_a_learning_rate_that_is_none(cupy, rate):
    net, optimizer = network(), fastperm.Adam()
    ((sets, targets),) = batches(cupy, 1)
    for _ in range(4):
        fastperm.train_step(net, sets, targets, optimizer)
        with pytest.raises(ValueError, match="learning_rate must be"):
            fastperm.train_step(net, sets, targets, optimizer, learning_rate=rate)


def test_an_interruption_before_the_loss_was_asked_for(cupy, monkeypatch):
    net, optimizer = network(), fastperm.Adam()
    ((sets, targets),) = batches(cupy, 1)
    for _ in range(4):
        fastperm.train_step(net, sets, targets, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_known_losses", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                fastperm.train_step(net, sets, targets, optimizer)
    assert np.isfinite(fastperm.train_step(net, sets, targets, optimizer))
    assert optimizer.steps == 7


def test_memory_that_ends_later(cupy, monkeypatch):
    work = Steps(network(), fastperm.PowerSpectrum(**TASK), optimizer := fastperm.Adam(), 3)
    for _ in range(3):
        work.take(np.random.default_rng(0))

    def fail(self):
        raise MemoryError("CUBLAS_STATUS_ALLOC_FAILED")

    with monkeypatch.context() as patch:
        patch.setattr(graphs.Graph, "launch", fail)
        with pytest.raises(MemoryError):
            work.take(np.random.default_rng(0))
        assert len(work.losses()) == optimizer.steps == 3
        work.take(np.random.default_rng(0))  # nothing is waiting now: one by one
    assert len(work.losses()) == 1
    assert (optimizer.steps, work.capacity) == (4, 1)


@pytest.mark.parametrize("change", ["beta1", "state"])
def test_an_optimizer_that_is_changed_by_a_report(cupy, one_by_one, change):
    def run():
        net, optimizer = network(), fastperm.Adam(1e-2)
        state = []

        def report(step, errors):
            state.append(optimizer.state())
            if change == "beta1":
                optimizer.beta1 = 0.5
            else:
                optimizer.load_state(state[0])

        task = fastperm.PowerSpectrum(**TASK)
        history = fastperm.train(
            *(net, task), steps=6, batch=3, every=2, optimizer=optimizer, report=report, progress=False, validate=2
        )
        return on_host(net.parameters.flat), history["loss"]

    found = run()
    one_by_one()
    wanted = run()
    np.testing.assert_array_equal(found[0], wanted[0])
    assert found[1] == wanted[1]


def test_what_lies_on_the_gpu_stays_there(cupy, monkeypatch):
    monkeypatch.setattr("fastperm.kernels.cuda.step_queue.on_host", lambda array: pytest.fail("copied to the host"))
    work = Steps(network(**ON_CHIP), fastperm.PowerSpectrum(**TASK), fastperm.Adam(), 3)
    for _ in range(3):
        work.take(np.random.default_rng(0))
    assert on_gpu(work._queue._graph.result)
