"""Samples of random functions drawn by kernels: the law of positions and noise, and the function in between."""

import numpy as np
import pytest
from scipy import stats

from fastperm.kernels import reference
from fastperm.power_spectrum import evaluate_series

OFFSETS = np.array([0, 1, 8, 20_000])
C = np.random.default_rng(0).standard_normal((3, 10)).view(np.complex128)


def drawn(noise=0.0, dtype="float64", key=5, offsets=OFFSETS):
    values = np.full((offsets[-1], 2), np.nan, dtype)
    reference.random_samples(key, offsets, C, noise, values=values)
    return values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_are_those_of_the_function_at_the_positions(dtype):
    x, y = drawn(dtype=dtype).T
    expected = np.concatenate(
        [evaluate_series(x[first:last], c) for first, last, c in zip(OFFSETS, OFFSETS[1:], C, strict=False)]
    )
    # Float32 rounds the sample, not the position that f is evaluated at.
    np.testing.assert_allclose(y, expected, rtol=np.finfo(dtype).eps, atol=1e-13)


def test_positions_are_uniform():
    x = drawn()[:, 0]
    assert stats.kstest(x, "uniform", (0, 2 * np.pi)).pvalue > 1e-3
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 5 / np.sqrt(len(x))


def test_noise_is_white():
    clean, noisy = drawn(), drawn(0.3)
    np.testing.assert_array_equal(clean[:, 0], noisy[:, 0])
    z = (noisy - clean)[:, 1] / 0.3
    assert stats.kstest(z, "norm").pvalue > 1e-3
    for other in (z[1:], clean[:-1, 0]):
        assert abs(np.corrcoef(z[:-1], other)[0, 1]) < 5 / np.sqrt(len(z))


def test_a_draw_does_not_depend_on_how_many_there_are():
    np.testing.assert_array_equal(drawn(offsets=OFFSETS[:3]), drawn()[:8])
    assert not np.isin(drawn(key=6)[:, 0], drawn()[:, 0]).any()
