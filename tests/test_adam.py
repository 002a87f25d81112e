import numpy as np
import pytest
from cases import BACKENDS, kernels

import fastperm


def tensorflow_trajectory(p, gradient, steps, lr=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-7):
    """Return p after each step of TensorFlow's rule, in float64, written out number by number."""
    m, v, path = np.zeros_like(p), np.zeros_like(p), []
    for t in range(1, steps + 1):
        g = gradient(p)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        lr_t = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        p = p - lr_t * m / (v**0.5 + epsilon)
        path.append(p)
    return np.array(path)


def quadratic_gradient(p):
    curvature = np.logspace(-3, 2, p.size)
    return curvature * (p - np.linspace(-1, 1, p.size))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_trajectory_is_tensorflows(backend, dtype, tolerance):
    start = np.random.default_rng(0).standard_normal(33)
    wanted = tensorflow_trajectory(start, quadratic_gradient, 100, lr=0.05)
    p = start.astype(dtype)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t in range(1, 101):
        g = quadratic_gradient(p).astype(dtype)
        kernels(backend).adam_step(g, 0.05, 0.9, 0.999, 1e-7, t, p=p, m=m, v=v)
        np.testing.assert_allclose(p, wanted[t - 1], rtol=tolerance, atol=tolerance)


def test_the_optimiser_follows_the_same_trajectory():
    start = np.random.default_rng(0).standard_normal((3, 11))
    wanted = tensorflow_trajectory(start.ravel(), quadratic_gradient, 100)
    parameters, optimizer = {"p": start.copy()}, fastperm.Adam()
    for _ in range(100):
        optimizer.step(parameters, {"p": quadratic_gradient(parameters["p"].ravel()).reshape(3, 11)})
    np.testing.assert_allclose(parameters["p"].ravel(), wanted[-1], rtol=1e-13, atol=1e-13)
    assert optimizer.steps == 100


def test_epsilon_matters_where_gradients_are_tiny():
    # In TensorFlow's form a gradient far below ε / √(1 − β2) moves a parameter by far less than the learning rate.
    parameters = {"p": np.zeros(1)}
    fastperm.Adam(learning_rate=1.0).step(parameters, {"p": np.array([1e-9])})
    assert parameters["p"][0] == pytest.approx(
        tensorflow_trajectory(np.zeros(1), lambda p: np.array([1e-9]), 1, lr=1.0)[0, 0], rel=1e-12
    )
    assert abs(parameters["p"][0]) < 1e-3


def test_state_continues_to_the_bit():
    def run(optimizer, p, steps):
        for _ in range(steps):
            optimizer.step({"p": p}, {"p": quadratic_gradient(p)})

    whole, first = fastperm.Adam(), fastperm.Adam()
    p, q = np.ones(5), np.ones(5)
    run(whole, p, 20)
    run(first, q, 10)
    second = fastperm.Adam()
    second.load_state(first.state())
    run(second, q, 10)
    np.testing.assert_array_equal(p, q)
    assert second.steps == 20


@pytest.mark.parametrize(
    ("parameters", "gradients", "message"),
    [
        ({"p": np.ones(3)}, {}, "no gradient for parameter 'p'"),
        ({"p": np.ones(3)}, {"p": np.ones(4)}, r"shape \(3,\), but its gradient is float64 of shape \(4,\)"),
        ({"p": np.ones(3)}, {"p": np.ones(3, np.float32)}, "but its gradient is float32"),
        ({"p": np.ones((3, 4)).T}, {"p": np.ones((4, 3))}, "must be a writable C-contiguous array"),
        ({"p": [1.0, 2.0]}, {"p": np.ones(2)}, "^parameter 'p' must be an array, got list"),
        ({"p": np.ones(2)}, {"p": [1.0, 2.0]}, "the gradient of parameter 'p' must be an array, got list"),
        *(
            ({"p": np.ones(3, dtype)}, {"p": np.ones(3, dtype)}, f"'p' must be float32 or float64 .* got dtype {dtype}")
            for dtype in ("<i8", "<f2", ">f8", ">f4", "<c16")
        ),
    ],
)
def test_bad_steps_change_nothing(parameters, gradients, message):
    optimizer = fastperm.Adam()
    before = parameters["p"].copy()
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.step(parameters, gradients)
    np.testing.assert_array_equal(parameters["p"], before)
    assert optimizer.steps == 0


def test_other_parameters_than_before_are_refused():
    optimizer = fastperm.Adam()
    optimizer.step({"p": np.ones(3)}, {"p": np.ones(3)})
    with pytest.raises(ValueError, match="names differ in p, q"):
        optimizer.step({"q": np.ones(3)}, {"q": np.ones(3)})
    with pytest.raises(ValueError, match="earlier steps"):
        optimizer.step({"p": np.ones(4)}, {"p": np.ones(4)})


GOOD = {"steps": np.array(2), "first.p": np.ones(3), "second.p": np.ones(3)}
BAD_STATES = {
    "no steps": ({"first.p": np.ones(3), "second.p": np.ones(3)}, "the state has no 'steps'"),
    "no moments": ({"steps": 5}, "the state of 5 steps has no moments"),
    "negative steps": ({**GOOD, "steps": -3}, "the steps of the state must be at least 0, got -3"),
    "half a step": ({**GOOD, "steps": 1.5}, "the steps of the state must be an integer, got 1.5"),
    "one moment": ({"steps": 5, "first.p": np.ones(3)}, "the state has one of two moments of p"),
    "other shapes": ({**GOOD, "second.p": np.ones(2)}, r"of p are float64 of shape \(3,\) and float64 of shape \(2,\)"),
    "other dtypes": ({**GOOD, "second.p": np.ones(3, np.float32)}, "the moments of p are float64 .* and float32"),
    "NaN": ({**GOOD, "second.p": np.full(3, np.nan)}, "the moment second.p is NaN"),
    "another's": ({**GOOD, "lr": 1}, "expected 'steps', 'first.NAME' and 'second.NAME' in the state, got lr"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_bad_states_change_nothing(case):
    state, message = BAD_STATES[case]
    optimizer = fastperm.Adam()
    optimizer.load_state(GOOD)
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.load_state(state)
    assert optimizer.steps == 2
    assert {name: array.tolist() for name, array in optimizer.state().items()} == {
        name: array.tolist() for name, array in GOOD.items()
    }


@pytest.mark.parametrize("rate", [-1, np.nan, "0.1"])
def test_a_bad_learning_rate_is_refused_where_it_is_set(rate):
    optimizer = fastperm.Adam(0.5)
    with pytest.raises((ValueError, TypeError), match="learning_rate must be"):
        optimizer.learning_rate = rate
    assert optimizer.learning_rate == 0.5
    optimizer.learning_rate = 0
    assert optimizer.config()["learning_rate"] == 0
