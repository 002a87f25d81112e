"""The kernel of Fourier series against a direct sum of cosines and sines."""

import numpy as np
import pytest

from fastperm import backend

BACKENDS = ["reference", "cpu"]
EPS = np.finfo(np.float64).eps
COUNTS = {
    "one point": [1],
    "one set": [131],
    "around the block of 64": [1, 63, 64, 65, 3, 128, 7],
    "many small sets": [1 + s % 5 for s in range(41)],
}


def random_case(counts, k_max, seed=0):
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    x = generator.uniform(-10, 10, offsets[-1])
    k = np.arange(1, k_max + 1)
    shape = (len(counts), k_max)
    return x, offsets, (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)) / k


def series(name, x, offsets, coefficients):
    y = np.full(len(x), np.nan)
    backend.get(name).fourier_series(x, offsets, coefficients, y=y)
    return y


def direct_sum(x, offsets, coefficients):
    c = np.repeat(coefficients, np.diff(offsets), axis=0)
    angles = x.astype(np.longdouble)[:, None] * np.arange(1, c.shape[1] + 1)
    return (c.real * np.cos(angles) - c.imag * np.sin(angles)).sum(axis=1)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k_max", [1, 3, 4, 17, 64, 512])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_direct_sum(name, k_max, counts):
    x, offsets, coefficients = random_case(counts, k_max)
    y = series(name, x, offsets, coefficients)
    # A step r·z + c errs by at most 3.3 units of roundoff (ε/2) times the sum of the |c_k| that r holds, the product
    # and the sum together, and the rounding of z adds at most 1.5 more: Σ_k k|c_k| · 4.8 ε/2 in all, rounded up.
    bound = 3 * EPS * (np.abs(coefficients) * np.arange(1, k_max + 1)).sum(axis=1)
    assert (np.abs(y - direct_sum(x, offsets, coefficients)) <= np.repeat(bound, counts)).all()


@pytest.mark.parametrize("k_max", [1, 3, 4, 17, 64, 512])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_cpu_is_reference(k_max, counts):
    case = random_case(counts, k_max, seed=1)
    expected = series("reference", *case)
    np.testing.assert_allclose(series("cpu", *case), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", BACKENDS)
def test_inputs_are_left_alone(name):
    case = random_case([5, 70], 17)
    kept = [array.copy() for array in case]
    series(name, *case)
    for array, copy in zip(case, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_same_bits_wherever_a_point_stands():
    x, offsets, coefficients = random_case([197], 35)
    y = series("cpu", x, offsets, coefficients)
    np.testing.assert_array_equal(series("cpu", x[::-1].copy(), offsets, coefficients)[::-1], y)
    alone = np.arange(len(x) + 1)
    np.testing.assert_array_equal(series("cpu", x, alone, np.repeat(coefficients, len(x), axis=0)), y)
