"""The task: its model exactly, its statistics within stated bounds, and its arguments.

Seeds are fixed, so a statistical test cannot fail by chance from run to run. Bounds are five standard deviations of the
estimator where it is a moment, and a p-value of 1e-3 where it is a test of a distribution.
"""

import json

import numpy as np
import pytest
from scipy import stats

from fastperm.power_spectrum import PowerSpectrum, evaluate_series
from fastperm.sets import Sets

BATCH = 20_000
K_MAX = 6
K = np.arange(1, K_MAX + 1)


def grid(generator, n):
    return 2 * np.pi * np.arange(n) / n


def squares(k):
    return k**-2


def exponential(generator, mean):
    return generator.exponential(mean)


@pytest.fixture(scope="module")
def samples():
    """Samples on a grid, (BATCH, 16), whose discrete Fourier transform gives back p_k and φ_k, and the targets."""
    task = PowerSpectrum(K_MAX, K_MAX, 16, positions=grid, output="power")
    sets, powers = task.sample(BATCH, 2024)
    return sets.values[:, 1].reshape(BATCH, 16), powers


@pytest.fixture(scope="module")
def fourier(samples):
    return np.fft.rfft(samples[0], axis=1)[:, 1 : K_MAX + 1] / 8


def assert_mean(values, expected, standard_deviation):
    bound = 5 * standard_deviation / np.sqrt(len(values))
    np.testing.assert_array_less(np.abs(values.mean(axis=0) - expected), bound)


def assert_variance(values, expected, excess_kurtosis):
    bound = 5 * expected * np.sqrt((excess_kurtosis + 2) / len(values))
    np.testing.assert_array_less(np.abs(values.var(axis=0) - expected), bound)


def test_targets_are_the_powers_in_the_samples(samples, fourier):
    np.testing.assert_allclose(np.abs(fourier) ** 2, samples[1], rtol=1e-9, atol=1e-15)


def test_least_squares_finds_the_targets():
    sets, targets = PowerSpectrum(5, 5, (60, 90)).sample(20, 0)
    for one, target in zip(sets, targets, strict=True):
        x, y = one.values.T
        angles = x[:, None] * np.arange(1, 6)
        a, b = np.linalg.lstsq(np.hstack([np.cos(angles), np.sin(angles)]), y, rcond=None)[0].reshape(2, 5)
        np.testing.assert_allclose(np.log(a**2 + b**2), target, rtol=0, atol=1e-9)


def test_mean_power(fourier):
    assert_mean(np.abs(fourier) ** 2, 1 / K**2, 1 / K**2)


def test_power_is_exponential(fourier):
    for k in K:
        assert stats.kstest(np.abs(fourier[:, k - 1] * k) ** 2, "expon").pvalue > 1e-3


def test_powers_and_phases_are_independent(fourier):
    powers = np.corrcoef(np.abs(fourier) ** 2, rowvar=False)[np.triu_indices(K_MAX, 1)]
    assert np.abs(powers).max() < 5 / np.sqrt(BATCH)
    unit = fourier / np.abs(fourier)
    for products in (unit.T @ unit.conj(), unit.T @ unit):
        resultants = np.abs(products[np.triu_indices(K_MAX, 1)]) / BATCH
        assert resultants.max() < 5 / np.sqrt(BATCH)


def test_phases_are_uniform(fourier):
    phases = np.angle(fourier) % (2 * np.pi)
    for column in phases.T:
        assert stats.kstest(column, "uniform", (0, 2 * np.pi)).pvalue > 1e-3
    assert np.abs(np.exp(1j * phases).mean(axis=0)).max() < 5 / np.sqrt(BATCH)


def test_function_is_a_gaussian_process(samples):
    variance = (1 / (2 * K**2)).sum()
    y = samples[0][:, [0, 3, 11]]
    assert_mean(y, 0, np.sqrt(variance))
    assert_variance(y, variance, 0)
    assert stats.kstest(y[:, 0], "norm", (0, np.sqrt(variance))).pvalue > 1e-3


def test_log_power(samples):
    log = np.log(samples[1])
    assert_mean(log, -2 * np.log(K) - np.euler_gamma, np.pi / np.sqrt(6))
    assert_variance(log, np.pi**2 / 6, 12 / 5)


@pytest.mark.parametrize("output", ["log", "power"])
@pytest.mark.parametrize(
    ("amplitudes", "kurtosis_of_log", "kurtosis"),
    [("exponential", 12 / 5, 6), ("lognormal", 0, np.exp(4) + 2 * np.exp(3) + 3 * np.exp(2) - 6)],
)
def test_prior_mean_error_is_the_variance_of_the_target(amplitudes, kurtosis_of_log, kurtosis, output):
    task = PowerSpectrum(4, (2, 4), 1, amplitudes=amplitudes, output=output)
    targets = task.sample(BATCH, 7)[1]
    assert_variance(targets, task.prior_mean_error(), kurtosis_of_log if output == "log" else kurtosis)


def test_lognormal_keeps_the_mean():
    powers = PowerSpectrum(3, 3, 1, amplitudes="lognormal", output="power").sample(BATCH, 8)[1]
    assert_mean(powers, 1 / K[:3] ** 2, np.sqrt(np.e - 1) / K[:3] ** 2)
    assert stats.kstest(np.log(powers[:, 0]), "norm", (-0.5, 1)).pvalue > 1e-3


def test_fixed_amplitudes():
    task = PowerSpectrum(3, 3, 1, amplitudes="fixed", output="power")
    np.testing.assert_array_equal(task.sample(5, 0)[1], np.tile(1 / K[:3] ** 2, (5, 1)))
    np.testing.assert_array_equal(task.prior_mean_error(), np.zeros(3))
    np.testing.assert_array_equal(PowerSpectrum(3, 3, amplitudes="fixed").prior_mean_error(), np.zeros(3))


def test_prior_mean_error_of_a_callable_is_unknown():
    assert PowerSpectrum(amplitudes=exponential).prior_mean_error() is None


def test_noise():
    clean = PowerSpectrum(4, 4, 50).sample(400, 3)[0].values
    noisy = PowerSpectrum(4, 4, 50, noise=0.3).sample(400, 3)[0].values
    np.testing.assert_array_equal(noisy[:, 0], clean[:, 0])
    noise = noisy[:, 1] - clean[:, 1]
    assert_mean(noise, 0, 0.3)
    assert_variance(noise, 0.09, 0)
    assert stats.kstest(noise, "norm", (0, 0.3)).pvalue > 1e-3


def test_positions_are_uniform_and_fresh():
    x = PowerSpectrum(2, 2, 100).sample(200, 4)[0].values[:, 0]
    assert stats.kstest(x, "uniform", (0, 2 * np.pi)).pvalue > 1e-3
    assert len(np.unique(x)) == len(x)


def test_set_size_range():
    counts = PowerSpectrum(2, 2, (3, 6)).sample(2000, 5)[0].counts
    found, frequency = np.unique(counts, return_counts=True)
    np.testing.assert_array_equal(found, [3, 4, 5, 6])
    assert stats.chisquare(frequency).pvalue > 1e-3


def test_shapes():
    task = PowerSpectrum()
    sets, targets = task.sample(3, 0)
    assert isinstance(sets, Sets)
    assert (sets.n_sets, sets.features, sets.values.dtype, sets.weights) == (3, 2, np.float64, None)
    np.testing.assert_array_equal(sets.counts, [512, 512, 512])
    assert (targets.shape, targets.dtype) == ((3, 4), np.float64)
    assert (task.in_features, task.out_features) == (2, 4)
    np.testing.assert_array_equal(task.frequencies, [1, 2, 3, 4])


def test_band_and_output():
    arguments = {"k_max": 9, "set_size": 2}
    powers = PowerSpectrum(k_fin=9, output="power", **arguments).sample(6, 1)[1]
    task = PowerSpectrum(k_fin=(4, 7), **arguments)
    np.testing.assert_array_equal(task.frequencies, [4, 5, 6, 7])
    np.testing.assert_array_equal(task.sample(6, 1)[1], np.log(powers[:, 3:7]))
    one = PowerSpectrum(k_fin=(5, 5), **arguments)
    assert one.out_features == 1
    np.testing.assert_array_equal(one.sample(6, 1)[1], np.log(powers[:, 4:5]))


def test_float32_values_belong_to_float32_positions():
    task = PowerSpectrum(300, 4, 40, dtype="float32")
    sets, targets = task.sample(5, 9)
    x, y = sets.values.reshape(5, 40, 2).transpose(2, 0, 1)
    assert (sets.values.dtype, targets.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(y, evaluate_series(x, task.draw(5, 9)).astype(np.float32))
    wide = PowerSpectrum(300, 4, 40).sample(5, 9)
    np.testing.assert_array_equal(x.ravel(), wide[0].values[:, 0].astype(np.float32))
    np.testing.assert_array_equal(targets, wide[1])


@pytest.mark.parametrize(("power_law", "exponent"), [(None, 2), (2, 2), (0, 0), (-1, -1), (1.5, 1.5), (squares, 2)])
def test_power_law(power_law, exponent):
    task = PowerSpectrum(5, 5, 1, power_law=power_law, amplitudes="fixed", output="power")
    np.testing.assert_allclose(task.sample(1, 0)[1][0], [k**-exponent for k in range(1, 6)], rtol=1e-14)
    np.testing.assert_array_equal(task.mean_power, task.sample(1, 0)[1][0])


def test_amplitudes_callable():
    task = PowerSpectrum(3, 3, 4, amplitudes=lambda generator, mean: mean * [1.0, 2.0, 3.0], output="power")
    np.testing.assert_allclose(task.sample(2, 0)[1], np.tile([1, 2 / 4, 3 / 9], (2, 1)))


def test_zero_power():
    silent = PowerSpectrum(3, 2, 4, amplitudes=lambda generator, mean: mean * [1.0, 1.0, 0.0])
    assert np.isfinite(silent.sample(2, 0)[1]).all()
    with pytest.raises(ValueError, match="power of zero in the predicted band"):
        PowerSpectrum(3, 3, 4, amplitudes=silent.amplitudes).sample(2, 0)
    assert (PowerSpectrum(3, 3, 4, amplitudes=silent.amplitudes, output="power").sample(2, 0)[1][:, 2] == 0).all()


def test_positions_callable_is_called_for_every_set():
    sizes = []

    def rising(generator, n):
        sizes.append(n)
        return np.arange(n)

    sets, _ = PowerSpectrum(2, 2, (1, 5), positions=rising).sample(8, 0)
    np.testing.assert_array_equal(sets.counts, sizes)
    for one in sets:
        np.testing.assert_array_equal(one.values[:, 0], np.arange(one.n_elements))


def batch_bytes(task, seed, batch=3):
    sets, targets = task.sample(batch, seed)
    return sets.values.tobytes() + sets.offsets.tobytes() + targets.tobytes()


def test_seed():
    task = PowerSpectrum(6, 3, (5, 9), noise=0.1)
    expected = batch_bytes(task, 11)
    assert batch_bytes(task, 11) == expected
    assert batch_bytes(task, np.random.SeedSequence(11)) == expected
    assert batch_bytes(task, np.int64(11)) == expected
    assert batch_bytes(task, [11, 1]) != expected
    assert batch_bytes(task, 12) != expected
    generator = np.random.default_rng(11)
    assert batch_bytes(task, generator) == expected
    assert batch_bytes(task, generator) != expected


def test_functions_do_not_depend_on_how_they_are_sampled():
    plain = PowerSpectrum(6, 3, 5)
    other = PowerSpectrum(6, 3, (2, 9), noise=0.5, positions=grid)
    np.testing.assert_array_equal(plain.sample(4, 1)[1], other.sample(4, 1)[1])
    np.testing.assert_array_equal(plain.draw(4, 1), other.draw(4, 1))


def test_draw_gives_the_functions_of_sample():
    task = PowerSpectrum(7, 7, 20)
    sets, targets = task.sample(4, 5)
    coefficients = task.draw(4, 5)
    np.testing.assert_allclose(2 * np.log(np.abs(coefficients)), targets, rtol=0, atol=1e-12)
    x, y = sets.values.reshape(4, 20, 2).transpose(2, 0, 1)
    np.testing.assert_array_equal(evaluate_series(x, coefficients), y)


def test_backends_agree():
    reference, cpu = (PowerSpectrum(40, 4, (5, 90), backend=name).sample(9, 2) for name in ("reference", "cpu"))
    np.testing.assert_allclose(cpu[0].values, reference[0].values, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(cpu[1], reference[1])


@pytest.mark.parametrize("rows", [(), (1,), (3,)])
@pytest.mark.parametrize("series", [(), (1,), (3,)])
def test_evaluate_series_shapes(rows, series):
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 7, (*rows, 5))
    c = generator.standard_normal((*series, 4)) + 1j
    expected = (c[..., None, :] * np.exp(1j * x[..., None] * np.arange(1, 5))).sum(axis=-1).real
    y = evaluate_series(x, c)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("x", "coefficients", "message"),
    [
        (np.zeros((2, 5)), np.ones((3, 4)), "as many rows of x as series, or one, got 2 and 3"),
        (0.5, [1.0], r"expected x of shape .* got \(\) and \(1,\)"),
        ([0.5], np.ones((1, 1, 1)), "coefficients of shape"),
    ],
)
def test_evaluate_series_refuses(x, coefficients, message):
    with pytest.raises(ValueError, match=message):
        evaluate_series(x, coefficients)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"k_max": 20, "k_fin": (3, 9), "set_size": (10, 30), "power_law": 1, "amplitudes": "lognormal"},
        {"noise": 0.25, "output": "power", "dtype": np.float32, "set_size": np.int64(7)},
    ],
)
def test_config_round_trip(arguments):
    task = PowerSpectrum(**arguments)
    config = json.loads(json.dumps(task.config()))
    again = PowerSpectrum.from_config(config, backend="reference")
    assert again.config() == task.config()
    assert again.backend == "reference"
    assert repr(again) == repr(task)
    assert eval(repr(task)).config() == task.config()
    np.testing.assert_array_equal(again.sample(2, 0)[1], task.sample(2, 0)[1])


@pytest.mark.parametrize("arguments", [{"power_law": squares}, {"amplitudes": exponential}, {"positions": grid}])
def test_config_refuses_callables(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} is a callable .* cannot be written down"):
        PowerSpectrum(**arguments).config()


def test_from_config():
    assert PowerSpectrum.from_config({"k_max": 9}).config() == PowerSpectrum(9).config()
    with pytest.raises(ValueError, match="config has unknown names 'kmax'; expected some of k_max, k_fin"):
        PowerSpectrum.from_config({"kmax": 9})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k_max": 0}, ValueError, "k_max must be at least 1, got 0"),
        ({"k_max": 4.0}, TypeError, "k_max must be an integer, got 4.0"),
        ({"k_fin": 5}, ValueError, "k_fin must lie within k = 1 ... k_max = 4, got 1 ... 5"),
        ({"k_fin": (2, 5)}, ValueError, "k_max = 4, got 2 ... 5"),
        ({"k_fin": (3, 2)}, ValueError, r"k_fin must be a pair \(first, last\) with first <= last, got \(3, 2\)"),
        ({"k_fin": (0, 2)}, ValueError, "k_fin must be at least 1, got 0"),
        ({"k_fin": "4"}, TypeError, "k_fin must be an integer, got '4'"),
        ({"set_size": 0}, ValueError, "set_size must be at least 1, got 0"),
        ({"set_size": (5, 4)}, ValueError, "set_size must be a pair .* got"),
        ({"set_size": ()}, ValueError, r"set_size must be an integer or a pair of them, got \(\)"),
        ({"set_size": (1, 2.5)}, TypeError, "set_size must be an integer, got 2.5"),
        ({"power_law": "steep"}, TypeError, "power_law must be a number, got 'steep'"),
        ({"power_law": 2000}, ValueError, "power_law must give positive finite means, got 0 at k = 2"),
        ({"power_law": -2000}, ValueError, "power_law must give positive finite means, got inf at k = 2"),
        ({"power_law": lambda k: 2.0 - k}, ValueError, "positive finite means, got 0 at k = 2"),
        ({"power_law": lambda k: 1.0}, ValueError, r"power_law must return an array of shape \(4,\), got shape \(\)"),
        ({"amplitudes": "gamma"}, ValueError, "amplitudes must be one of 'exponential', 'fixed', 'lognormal'"),
        ({"amplitudes": ["fixed"]}, ValueError, "amplitudes must be one of"),
        ({"positions": "normal"}, ValueError, "positions must be one of 'uniform', got 'normal'"),
        ({"noise": -0.1}, ValueError, "noise must be at least 0, got -0.1"),
        ({"output": "ln"}, ValueError, "output must be one of 'log', 'power', got 'ln'"),
        ({"dtype": "float16"}, ValueError, "dtype must be float32 or float64"),
        ({"backend": "gpu"}, ValueError, "backend must be one of 'auto', 'reference', 'cpu', 'cuda', got 'gpu'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        PowerSpectrum(**arguments)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr("fastperm.backend.why_missing", lambda name: "there is no GPU")
    for make in (lambda: PowerSpectrum(backend="cuda"), lambda: PowerSpectrum().to("cuda")):
        with pytest.raises(RuntimeError, match="backend 'cuda' is not available: there is no GPU"):
            make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amplitudes": lambda generator, mean: mean[0]}, r"amplitudes must return an array of shape \(2, 4\), got"),
        ({"amplitudes": lambda generator, mean: -mean}, "amplitudes must return powers that are not negative, got -1"),
        ({"amplitudes": lambda generator, mean: mean * np.nan}, "amplitudes must return finite numbers"),
        ({"positions": lambda generator, n: np.zeros(3)}, r"positions must return an array of shape \(512,\), got"),
        ({"positions": lambda generator, n: np.full(n, np.inf)}, "positions must return finite numbers"),
    ],
)
def test_bad_callables(arguments, message):
    with pytest.raises(ValueError, match=message):
        PowerSpectrum(**arguments).sample(2, 0)


@pytest.mark.parametrize("method", ["sample", "draw"])
@pytest.mark.parametrize(
    ("batch", "seed", "error", "message"),
    [
        (0, 0, ValueError, "batch must be at least 1, got 0"),
        (2.0, 0, TypeError, "batch must be an integer"),
        (2, None, TypeError, "seed must be an integer, .* got None"),
        (2, -1, ValueError, "seed must be as numpy.random.default_rng takes it, got -1"),
        (2, 1.5, TypeError, "seed must be as numpy.random.default_rng takes it, got 1.5"),
    ],
)
def test_bad_batch_or_seed(method, batch, seed, error, message):
    with pytest.raises(error, match=message):
        getattr(PowerSpectrum(), method)(batch, seed)
