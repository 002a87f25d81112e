import copy
import pickle

import autograd
import autograd.numpy as anp
import numpy as np
import oracle
import pytest
from cases import BACKENDS, error

import fastperm
from fastperm import network

CONFIGS = [
    {"width": 16, "depth": 2},
    {"width": [17, 5, 33], "depth": 3, "aggregate": "sum"},
    {"width": 9, "depth": 1, "aggregate": "max", "pool": "max"},
    {"width": 12, "depth": 2, "pool": "sum"},
    {"width": [8, 40], "depth": 2, "aggregate": "max", "pool": None},
]
KINDS = ["dense", "ragged", "weighted"]


def make_sets(kind, seed=0, features=3):
    generator = np.random.default_rng(seed)
    if kind == "dense":
        return fastperm.Sets.dense(generator.standard_normal((5, 12, features)))
    counts = [1, 9, 30, 4]
    arrays = [generator.standard_normal((n, features)) for n in counts]
    if kind == "ragged":
        return fastperm.Sets.ragged(arrays)
    weights = [generator.uniform(0.2, 2, n) for n in counts]
    weights[1][3:6] = 0
    return fastperm.Sets.ragged(arrays, weights)


def make_net(config, **options):
    """Return a network with random biases: at zero, a set whose units are all off sits on the next ReLU's kink."""
    net = fastperm.DeepSet(3, **config, out_features=4, seed=1, **options)
    generator = np.random.default_rng(2)
    for name, array in net.parameters.items():
        if name.endswith("bias"):
            net.parameters[name] = generator.standard_normal(array.shape)
    return net


def oracle_of(net, sets, dy):
    bounds = list(zip(sets.offsets[:-1], sets.offsets[1:], strict=True))
    w = np.ones(sets.n_elements) if sets.weights is None else np.asarray(sets.weights, np.float64)
    parameters = {name: array.astype(np.float64) for name, array in net.parameters.items()}

    def predict(x, parameters):
        return oracle.deep_set(x, parameters, bounds, w, net.depth, net.aggregate, net.pool)

    def loss(x, parameters):
        return anp.sum(predict(x, parameters) * dy)

    x = sets.values.astype(np.float64)
    return predict(x, parameters), autograd.grad(loss, argnum=(0, 1))(x, parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_network_matches_autograd(backend, config, kind):
    net = make_net(config, dtype="float64", backend=backend)
    sets = make_sets(kind)
    dy = np.random.default_rng(5).standard_normal(net.prediction_shape(sets))
    wanted, (dx_wanted, wanted_gradients) = oracle_of(net, sets, dy)
    y, saved = net.forward(sets)
    dx = net.backward(dy, saved)
    assert error(y, wanted) <= 1e-12
    assert error(net(sets), y) <= 1e-13  # the whole-network kernel: the same sums in another order
    assert error(dx, dx_wanted) <= 1e-12
    for name, gradient in net.gradients.items():
        assert error(gradient, wanted_gradients[name]) <= 1e-12, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_float32_matches_autograd(config, kind):
    net = make_net(config, backend="cpu")
    sets = make_sets(kind).astype("float32")
    dy = np.random.default_rng(5).standard_normal(net.prediction_shape(sets))
    wanted, (dx_wanted, wanted_gradients) = oracle_of(net, sets, dy)
    y, saved = net.forward(sets)
    dx = net.backward(dy, saved)
    # A few hundred float32 roundings, relative to the largest entry.
    assert error(y, wanted) <= 2e-5
    assert error(dx, dx_wanted) <= 2e-5
    for name, gradient in net.gradients.items():
        assert error(gradient, wanted_gradients[name]) <= 2e-5, name


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_reference_matches_central_differences(config):
    net = make_net(config, dtype="float64", backend="reference")
    sets = make_sets("weighted")
    generator = np.random.default_rng(5)
    dy = generator.standard_normal(net.prediction_shape(sets))
    _, saved = net.forward(sets)
    net.backward(dy, saved, inputs=False)
    step = 1e-5  # the network is piecewise linear in each array: small only so as not to cross a kink
    for name, gradient in net.gradients.items():
        direction = generator.standard_normal(gradient.shape)
        start = net.parameters[name].copy()
        losses = []
        for sign in (1, -1):
            net.parameters[name] = start + sign * step * direction
            losses.append(np.sum(net(sets) * dy))
        net.parameters[name] = start
        difference = (losses[0] - losses[1]) / (2 * step)
        assert abs(difference - np.sum(gradient * direction)) <= 1e-7 * np.linalg.norm(gradient * direction), name


def test_gradients_add_up_until_they_are_cleared():
    net = fastperm.DeepSet(3, 6, 2, 2, dtype="float64", seed=0)
    sets = make_sets("ragged")
    y, saved = net.forward(sets)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    net.backward(dy, saved)
    once = {name: array.copy() for name, array in net.gradients.items()}
    net.backward(dy, saved)
    for name, array in net.gradients.items():
        assert error(array, 2 * once[name]) <= 1e-14
    net.zero_gradients()
    assert all((array == 0).all() for array in net.gradients.values())


def test_names_and_shapes_of_parameters():
    net = fastperm.DeepSet(2, [5, 7], 2, 4, seed=0)
    assert {name: array.shape for name, array in net.parameters.items()} == {
        "layers.0.self": (2, 5),
        "layers.0.pool": (2, 5),
        "layers.0.bias": (5,),
        "layers.1.self": (5, 7),
        "layers.1.pool": (5, 7),
        "layers.1.bias": (7,),
        "head.weight": (7, 4),
        "head.bias": (4,),
    }
    assert net.gradients.keys() == net.parameters.keys()
    assert net.n_parameters == 10 + 10 + 5 + 35 + 35 + 7 + 28 + 4


def test_assigning_a_parameter_changes_the_network():
    net = fastperm.DeepSet(2, 5, 1, 3, seed=0)
    x = np.ones((2, 4, 2))
    net.parameters["head.weight"] = np.zeros((5, 3))
    net.parameters["head.bias"] = [1, 2, 3]
    np.testing.assert_array_equal(net(x), [[1, 2, 3]] * 2)
    with pytest.raises(ValueError, match=r"head.bias has shape \(3,\), got \(4,\)"):
        net.parameters["head.bias"] = np.zeros(4)
    with pytest.raises(KeyError, match=r"no parameter is called 'head\.wieght'"):
        net.parameters["head.wieght"] = 0
    with pytest.raises(TypeError, match="neither added nor removed"):
        del net.parameters["head.bias"]


def test_seeds():
    def parameters(seed):
        return fastperm.DeepSet(2, 5, 1, 3, seed=seed).parameters.flat

    np.testing.assert_array_equal(parameters(3), parameters(3))
    assert not np.array_equal(parameters(3), parameters(4))
    assert not np.array_equal(parameters(None), parameters(None))


def test_backends_are_one_word():
    net = fastperm.DeepSet(3, 20, 3, 2, dtype="float64", backend="cpu", seed=0)
    sets = make_sets("weighted")
    for name in BACKENDS:
        other = net.to(name)
        assert other.backend == name
        assert error(other(sets), net(sets)) <= 1e-13
    other.parameters["head.bias"] = 7  # a copy: the first network does not notice
    assert net.parameters["head.bias"][0] != 7


def test_a_copy_may_have_another_dtype():
    net = fastperm.DeepSet(2, 5, 2, 3, dtype="float64", backend="reference", seed=0)
    single = net.to("cpu", dtype="float32")
    assert (single.dtype, single.backend) == (np.float32, "cpu")
    np.testing.assert_array_equal(single.parameters.flat, net.parameters.flat.astype(np.float32))
    assert net.to("reference").dtype == np.float64
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got 'float16'"):
        net.to("cpu", dtype="float16")


def test_array_likes_are_taken_for_sets():
    net = fastperm.DeepSet(2, 5, 2, 3, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 6, 2)).astype(np.float32)
    wanted = net(fastperm.Sets.dense(x))
    np.testing.assert_array_equal(net(x), wanted)
    np.testing.assert_array_equal(net(list(x)), wanted)
    np.testing.assert_array_equal(net(x.astype(np.float64)), wanted)
    np.testing.assert_array_equal(net(x.tolist()), wanted)
    np.testing.assert_array_equal(net(np.asfortranarray(x)), wanted)
    np.testing.assert_array_equal(net(own for own in x), wanted)
    objects = np.empty(len(x), object)  # what a column of a table is
    objects[:] = list(x)
    np.testing.assert_array_equal(net(objects), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_read_only_memory_is_fine(tmp_path, backend):
    generator = np.random.default_rng(0)
    x, targets = (generator.standard_normal(shape).astype(np.float32) for shape in ((4, 6, 2), (4, 3)))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    targets.flags.writeable = False
    results = []
    for batch in (x, mapped):
        net = fastperm.DeepSet(2, 5, 2, 3, seed=0, backend=backend)
        y, saved = net.forward(batch)
        dx = net.backward(targets, saved)
        loss = fastperm.train_step(net, batch, targets, fastperm.Adam())
        results.append((y, dx, loss, net(batch), net.parameters.flat))
    for plain, read_only in zip(*results, strict=True):
        np.testing.assert_array_equal(read_only, plain)
    np.testing.assert_array_equal(mapped, x)


@pytest.mark.parametrize(
    "other",
    [
        *({"width": 6}, {"depth": 3}, {"pool": None}, {"dtype": "float64"}),
        *({"pool": "max"}, {"aggregate": "sum"}, {"scale": "rms"}),
    ],
    ids=str,
)
def test_what_another_network_saved_is_refused(other):
    settings = {"in_features": 2, "width": 5, "depth": 2, "out_features": 3, "seed": 0}
    _, saved = fastperm.DeepSet(**{**settings, **other}).forward(np.ones((4, 6, 2)))
    net = fastperm.DeepSet(**settings)
    (name,) = other
    with pytest.raises(ValueError, match=f"saved comes from another network, with .*{name}="):
        net.backward(np.ones((4, 3)), saved)
    with pytest.raises(TypeError, match="saved must be what forward returned, got tuple"):
        net.backward(np.ones((4, 3)), ())


def test_copies_and_pickles_are_whole():
    net = fastperm.DeepSet(2, [5, 4], 2, 3, aggregate="max", pool=None, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 6, 2))
    for other in (copy.deepcopy(net), copy.copy(net), pickle.loads(pickle.dumps(net))):
        assert repr(other) == repr(net)
        np.testing.assert_array_equal(other(x), net(x))
        other.parameters["head.bias"] = 1
        assert net.parameters["head.bias"].max() == 0


class Named(fastperm.DeepSet):
    """A network with a constructor, attributes and settings of its own."""

    def __init__(self, name):
        self.name = name
        self.scale = "of its own, until the network has one"
        super().__init__(2, 4, 1, 3, seed=0)

    def config(self):
        return {**super().config(), "name": self.name}


def test_copies_keep_the_class_and_what_others_added():
    net = Named("mine")
    net.note = [1, 2]
    for other in (copy.deepcopy(net), copy.copy(net), pickle.loads(pickle.dumps(net)), net.to("reference")):
        assert type(other) is Named
        assert (other.name, other.note) == ("mine", [1, 2])
        np.testing.assert_array_equal(other.parameters.flat, net.parameters.flat)


def test_what_a_network_keeps_is_told_from_what_others_add():
    for settings in ({}, {"pool": None}, {"symmetry": "circle", "scale": "rms"}):
        assert set(vars(fastperm.DeepSet(2, 4, 1, 3, seed=0, **settings))) == network._OWN


@pytest.mark.parametrize(
    "name", ["pool", "aggregate", "scale", "widths", "dtype", "backend", "parameters", "gradients"]
)
def test_what_layers_follow_from_cannot_be_changed(name):
    net = fastperm.DeepSet(2, 4, 1, 3, seed=0)
    with pytest.raises(AttributeError, match=f"{name} of a network cannot be changed"):
        setattr(net, name, "max")
    with pytest.raises(TypeError, match="does not support item assignment"):
        net.layers[0].parameters["self"] = np.ones((2, 4))
    net.layers[0].parameters["self"][:] = 1
    assert net.parameters["layers.0.self"].min() == 1


def test_an_equivariant_network_answers_for_every_element():
    net = fastperm.DeepSet(3, 8, 2, 2, pool=None, seed=0)
    sets = make_sets("ragged").astype("float32")
    rows = sets.split(net(sets))
    assert [len(r) for r in rows] == sets.counts.tolist()
    for i, own in enumerate(rows):
        np.testing.assert_array_equal(own, net(sets[i]))


def test_repr_says_the_settings():
    net = fastperm.DeepSet(2, 64, 4, 4, backend="cpu")
    assert repr(net).startswith("DeepSet(in_features=2, width=64, depth=4, out_features=4, aggregate='mean'")


def test_a_precision_that_the_backend_does_not_know():
    with pytest.raises(ValueError, match="precision='tf32' is for the cuda backend, and this network is on 'cpu'"):
        fastperm.DeepSet(2, 3, 1, 1, backend="cpu", precision="tf32")
    with pytest.raises(ValueError, match="precision='bfloat16' is for the cuda backend"):
        fastperm.DeepSet(2, 3, 1, 1, backend="cpu").to("reference", precision="bfloat16")
    with pytest.raises(ValueError, match="precision must be one of"):
        fastperm.DeepSet(2, 3, 1, 1, backend="cpu", precision="float16")


@pytest.mark.parametrize("seed", [-1, 1.5, "seed"])
def test_a_seed_that_is_none_is_refused_by_name(seed):
    with pytest.raises(
        (TypeError, ValueError), match=f"seed must be as numpy.random.default_rng takes it, got {seed!r}"
    ):
        fastperm.DeepSet(2, 4, 1, 1, seed=seed)
