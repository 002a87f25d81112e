"""The estimators, each against a plain formula or a fit of its own, and the order they come in."""

import numpy as np
import pytest

from fastperm import PowerSpectrum, Sets, baselines, spectrum_posterior

BAND = np.arange(2, 6)


@pytest.fixture(scope="module")
def task():
    return PowerSpectrum(12, (2, 5), (4, 40), noise=0.1)


@pytest.fixture(scope="module")
def sample(task):
    return task.sample(60, 0)


def waves(x, k):
    return np.stack([np.cos(k * x), np.sin(k * x)], axis=-1)


def test_least_squares(task, sample):
    estimates = baselines.least_squares(sample[0], task)
    for one, found in zip(sample[0], estimates, strict=True):
        x, y = one.values.T
        A = np.hstack([waves(x, k) for k in BAND])
        powers = ((np.linalg.pinv(A) @ y).reshape(-1, 2) ** 2).sum(axis=1)
        np.testing.assert_allclose(found, np.log(powers), rtol=0, atol=1e-8)


def test_least_squares_on_all_frequencies_is_exact_without_noise():
    task = PowerSpectrum(5, 5, (20, 60))
    sets, log_powers = task.sample(20, 1)
    np.testing.assert_allclose(baselines.least_squares(sets, task), log_powers, rtol=0, atol=1e-8)


def test_lomb_scargle_is_the_fit_of_one_frequency(task, sample):
    """In its definition, N/4 of the squared amplitude is half of what the fit takes from the sum of squares."""
    estimates = baselines.lomb_scargle(sample[0], task)
    for one, found in zip(sample[0], estimates, strict=True):
        x, y = one.values.T
        for k, estimate in zip(BAND, found, strict=True):
            A = waves(x, k)
            fit = A @ np.linalg.lstsq(A, y, rcond=None)[0]
            assert estimate == pytest.approx(np.log(2 * fit @ fit / len(x)), abs=1e-9)


def test_periodogram(task, sample):
    estimates = baselines.periodogram(sample[0], task)
    for one, found in zip(sample[0], estimates, strict=True):
        x, y = one.values.T
        amplitudes = 2 / len(x) * (np.exp(-1j * BAND[:, None] * x) * y).sum(axis=1)
        np.testing.assert_allclose(found, 2 * np.log(np.abs(amplitudes)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["least_squares", "lomb_scargle", "periodogram"])
def test_one_wave_on_a_grid_is_found(method):
    x = 2 * np.pi * np.arange(32) / 32
    sets = np.stack([x, 3 * np.cos(2 * x + 1) + 0.5 * np.cos(3 * x)], axis=1)[None]
    estimates = getattr(baselines, method)(sets, PowerSpectrum(4, (2, 3)))
    np.testing.assert_allclose(estimates, [[np.log(9), np.log(0.25)]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("amplitudes", ["exponential", "fixed", "lognormal"])
@pytest.mark.parametrize("output", ["log", "power"])
def test_prior_mean_is_the_mean_of_the_targets(amplitudes, output):
    task = PowerSpectrum(4, (2, 4), 1, amplitudes=amplitudes, output=output)
    sets, targets = task.sample(20_000, 2)
    estimates = baselines.prior_mean(sets, task)
    np.testing.assert_array_equal(estimates, np.tile(task.prior_mean(), (20_000, 1)))
    bound = 5 * np.sqrt(task.prior_mean_error() / 20_000) + 1e-14
    np.testing.assert_array_less(np.abs(targets.mean(axis=0) - estimates[0]), bound)


def test_gaussian_process(task, sample):
    mean, covariance = spectrum_posterior(sample[0], task)
    powers = (mean**2).sum(axis=-1) + covariance[..., 0, 0] + covariance[..., 1, 1]
    np.testing.assert_allclose(baselines.gaussian_process(sample[0], task), np.log(powers), rtol=0, atol=1e-12)


def test_gaussian_process_overrates_what_it_does_not_know():
    task = PowerSpectrum(4, 4, noise=1e6)
    sets, _ = task.sample(3, 0)
    over = baselines.gaussian_process(sets, task) - baselines.optimum(sets, task)
    np.testing.assert_allclose(over, np.euler_gamma, rtol=0, atol=1e-6)


@pytest.mark.parametrize("output", ["log", "power"])
def test_none_is_better_than_the_optimum(output):
    task = PowerSpectrum(12, 4, 20, output=output)
    sets, targets = task.sample(400, 3)
    squared = {name: (estimate(sets, task) - targets) ** 2 for name, estimate in baselines.ESTIMATORS.items()}
    best = squared.pop("optimum").mean()
    if output == "power":
        np.testing.assert_array_equal(baselines.optimum(sets, task), baselines.gaussian_process(sets, task))
        del squared["gaussian-process"]
    for name, errors in squared.items():
        assert errors.mean() > best, name


@pytest.mark.parametrize("name", baselines.ESTIMATORS)
@pytest.mark.parametrize(("band", "K"), [((2, 4), 3), ((3, 3), 1)])
def test_one_signature(name, band, K):
    estimate = baselines.ESTIMATORS[name]
    task = PowerSpectrum(5, band, (1, 9), dtype="float32")
    sets, _ = task.sample(7, 4)
    found = estimate(sets, task)
    assert (found.shape, found.dtype) == ((7, K), np.float64)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(estimate([one.values for one in sets], task), found)
    silent = np.stack([np.arange(5.0), np.zeros(5)], axis=1)[None]
    assert np.isfinite(estimate(silent, task)).all()
    with pytest.raises(ValueError, match="expected K=2 features per element, got 3"):
        estimate(np.zeros((1, 4, 3)), task)


def test_what_cannot_be_known_is_refused():
    task = PowerSpectrum(amplitudes=lambda generator, mean: mean)
    sets = np.ones((1, 4, 2))
    for name in (*baselines.GAUSSIAN, "prior-mean"):
        with pytest.raises(ValueError, match="amplitudes"):
            baselines.ESTIMATORS[name](sets, task)
    weighted = Sets.dense(sets, np.ones((1, 4)))
    for name in ("optimum", "gaussian-process", "least-squares", "lomb-scargle", "periodogram"):
        with pytest.raises(ValueError, match="expected sets without weights"):
            baselines.ESTIMATORS[name](weighted, PowerSpectrum())
