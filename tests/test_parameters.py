import copy
import pickle

import numpy as np
import pytest

import fastperm

HOW_TO_COPY = {
    "copy": lambda parameters: parameters.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda parameters: pickle.loads(pickle.dumps(parameters)),
}


def make():
    return fastperm.DeepSet(2, 4, 2, 3, backend="reference", seed=0)


@pytest.mark.parametrize("take", HOW_TO_COPY.values(), ids=HOW_TO_COPY)
def test_the_best_values_can_be_kept_and_put_back(take):
    net, x = make(), np.random.default_rng(0).standard_normal((3, 5, 2))
    flat, wanted, prediction = net.parameters.flat, net.parameters.flat.copy(), net(x)
    best = take(net.parameters)
    assert type(best) is dict
    assert list(best) == list(net.parameters)
    net.parameters.flat += 1
    assert not np.array_equal(net(x), prediction)
    net.parameters.update(best)
    assert net.parameters.flat is flat
    np.testing.assert_array_equal(flat, wanted)
    np.testing.assert_array_equal(net(x), prediction)


def test_arrays_are_views_that_assignment_fills():
    net = make()
    held = net.parameters["head.bias"]
    net.parameters["head.bias"] = [1, 2, 3]
    assert net.parameters["head.bias"] is held
    assert held.tolist() == net.parameters.flat[-3:].tolist() == [1, 2, 3]


def test_names_and_shapes_are_fixed():
    parameters = make().parameters
    with pytest.raises(KeyError, match=r"no parameter is called 'tail'; there are layers\.0\.self"):
        parameters["tail"] = 1
    with pytest.raises(ValueError, match=r"head\.bias has shape \(3,\), got \(4,\)"):
        parameters["head.bias"] = np.ones(4)
    with pytest.raises(TypeError, match="neither added nor removed"):
        del parameters["head.bias"]


def test_assigning_to_the_flat_array_copies_into_it():
    net, x = make(), np.random.default_rng(0).standard_normal((3, 5, 2))
    held, flat = net.parameters["head.bias"], net.parameters.flat
    net.parameters.flat = np.arange(flat.size)
    assert net.parameters.flat is flat
    assert held.tolist() == list(range(flat.size - 3, flat.size))
    np.testing.assert_allclose(net(x), net.forward(x)[0], rtol=1e-6)
    with pytest.raises(ValueError, match=rf"flat has shape \({flat.size},\), got \(3,\)"):
        net.parameters.flat = np.zeros(3)
