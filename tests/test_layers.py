"""Layers put together by hand: they take rows as they come, or refuse them."""

import numpy as np
import pytest
from cases import BACKENDS, kernels

import fastperm
from fastperm.layers import Angular, Dense, Equivariant, Pooling

SETS = fastperm.Sets(np.zeros((11, 1), np.float32), [0, 4, 11])
GENERATOR = np.random.default_rng(0)
ROWS = GENERATOR.standard_normal((11, 6)).astype(np.float32)
E = GENERATOR.standard_normal((11, 4)).astype(np.float32)


def numbers(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def equivariant(backend, **how):
    parameters = {"self": numbers(3, 5), "pool": numbers(3, 5), "bias": numbers(5)}
    gradients = {name: np.zeros_like(own) for name, own in parameters.items()}
    return Equivariant(parameters, gradients, kernels(backend), **{"aggregate": "mean", **how})


def angular(backend, **how):
    filters = {"cos": numbers(2, 3, 5), "sin": numbers(2, 3, 5)}
    parameters = equivariant(backend).parameters | filters
    gradients = {name: np.zeros_like(own) for name, own in parameters.items()}
    return Angular(parameters, gradients, kernels(backend), **{"aggregate": "mean", **how})


def dense(backend):
    parameters = {"weight": numbers(3, 5), "bias": numbers(5)}
    return Dense(parameters, {name: np.zeros_like(own) for name, own in parameters.items()}, kernels(backend))


# Each makes a layer, and gives its forward and backward pass as functions of rows.
LAYERS = {
    "equivariant": lambda backend: (layer := equivariant(backend)) and _with(layer, SETS),
    "angular": lambda backend: (layer := angular(backend)) and _with(layer, SETS, E=E),
    "dense": lambda backend: (layer := dense(backend)) and _with(layer),
    "pooling": lambda backend: (layer := Pooling(kernels(backend), "mean")) and _with(layer, SETS),
}


def _with(layer, *sets, **shared):
    return (
        lambda x: layer.forward(x, *sets, **shared),
        lambda dy, saved: layer.backward(dy, saved, *sets, **shared),
    )


ODD = {
    "columns of a wider array": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "Fortran": np.asfortranarray,
    "float64": lambda a: a.astype(np.float64),
    "big-endian": lambda a: a.astype(">f4"),
    "a list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_taken_in_any_layout_and_dtype(backend, layer, odd):
    x = np.ascontiguousarray(ROWS[:, :3])
    forward, backward = LAYERS[layer](backend)
    wanted, saved = forward(x)
    dy = np.random.default_rng(2).standard_normal(wanted.shape).astype(np.float32)
    wanted_dx = backward(dy, saved)
    y, saved = forward(ODD[odd](x))
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(backward(ODD[odd](dy), saved), wanted_dx)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_another_shape_are_refused(backend, layer):
    forward, backward = LAYERS[layer](backend)
    y, saved = forward(ROWS[:, :3])
    with pytest.raises(ValueError, match=rf"d[yp] must have shape \({len(y)}, {y.shape[1]}\), got"):
        backward(y[:, :2], saved)
    with pytest.raises(ValueError, match=r"x must have shape \(.*\), got \(11,\)"):
        forward(ROWS[:, 0])
    if layer != "pooling":
        with pytest.raises(ValueError, match=r"x must have shape \((11|any), 3\), got \(11, 6\)"):
            forward(ROWS)
    if layer != "dense":
        with pytest.raises(ValueError, match=r"x must have shape \(11, (3|any)\), got \(4, 3\)"):
            forward(ROWS[:4, :3])


def test_angular_layers_need_the_harmonics_of_their_rows():
    with pytest.raises(ValueError, match=r"E must have shape \(11, 4\), got \(11, 3\)"):
        angular("cpu").forward(ROWS[:, :3], SETS, E=E[:, :3])


@pytest.mark.parametrize("how", [{"aggregate": "avg"}, {"activation": "tanh"}], ids=str)
def test_unknown_settings_are_refused(how):
    ((name, value),) = how.items()
    for make in (equivariant, angular):
        with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
            make("reference", **how)
    with pytest.raises(ValueError, match="aggregate must be one of 'mean', 'sum', got 'max'"):
        angular("reference", aggregate="max")
    with pytest.raises(ValueError, match="pool must be one of 'mean', 'sum', 'max', got None"):
        Pooling(kernels("reference"), None)
