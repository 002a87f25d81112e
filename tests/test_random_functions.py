"""Random functions drawn by kernels: the law of what is drawn."""

import numpy as np
import pytest
from scipy import stats

from fastperm.kernels import reference

K_MAX, SETS = 3, 20_000
MEAN = np.array([1.0, 0.25, 4.0])
# Of the right probability one in a thousand; keys are fixed.
LEAST = 1e-3


def drawn(amplitudes="exponential", first=1, logarithm=True, sets=SETS, key=11):
    coefficients = np.full((sets, K_MAX), np.nan, np.complex128)
    targets = np.full((sets, K_MAX + 1 - first), np.nan)
    reference.random_functions(key, MEAN, amplitudes, first, logarithm, coefficients=coefficients, targets=targets)
    return coefficients, targets


@pytest.mark.parametrize(
    ("amplitudes", "law"),
    [("exponential", stats.expon()), ("lognormal", stats.lognorm(1, scale=np.exp(-0.5))), ("fixed", None)],
)
def test_law_of_powers(amplitudes, law):
    powers = np.abs(drawn(amplitudes)[0]) ** 2 / MEAN
    if law is None:
        np.testing.assert_allclose(powers, 1, rtol=1e-14)
        return
    for column in powers.T:
        assert stats.kstest(column, law.cdf).pvalue > LEAST
    assert np.abs(np.corrcoef(stats.rankdata(powers, axis=0), rowvar=False)[np.triu_indices(K_MAX, 1)]).max() < 0.03


def test_phases_are_uniform_and_independent_of_powers():
    coefficients, _ = drawn()
    phases = np.angle(coefficients) % (2 * np.pi)
    for column, power in zip(phases.T, np.abs(coefficients.T), strict=True):
        assert stats.kstest(column, "uniform", (0, 2 * np.pi)).pvalue > LEAST
        assert np.abs((power * np.exp(1j * column)).mean()) < 5 * np.sqrt((power**2).mean() / SETS)


@pytest.mark.parametrize("logarithm", [True, False])
def test_targets_are_a_band_of_the_powers(logarithm):
    coefficients, targets = drawn(first=2, logarithm=logarithm)
    powers = np.abs(coefficients[:, 1:]) ** 2
    np.testing.assert_allclose(targets, np.log(powers) if logarithm else powers, rtol=1e-12, atol=1e-14)


def test_a_draw_does_not_depend_on_how_many_there_are():
    np.testing.assert_array_equal(drawn(sets=3)[0], drawn()[0][:3])
    assert not np.isin(drawn(sets=3)[0], drawn(sets=3, key=12)[0]).any()
