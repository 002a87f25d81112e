"""The posterior and the moments and probabilities made of it, against oracles that share nothing with the code.

Closed forms and quadratures are met to the accuracy of the oracle. Statistical tests have fixed seeds; their bounds are
five standard errors.
"""

import decimal
from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import exp1, ndtr

from fastperm import PowerSpectrum, Sets, optimum, spectrum_posterior
from fastperm.optimum import LEAST_NOISE, SpectrumPosterior


def gaussian(mean, covariance):
    """Return the posterior of one set at one frequency."""
    return SpectrumPosterior(np.reshape(mean, (1, 1, 2)).astype(float), np.reshape(covariance, (1, 1, 2, 2)) * 1.0)


def log_power(mean, covariance):
    return [moment.item() for moment in gaussian(mean, covariance).log_power()]


def rotated(mean, deviations, angle):
    """Return a Gaussian with these deviations along axes that are turned by an angle."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ mean, turn @ np.diag(np.square(deviations)) @ turn.T


# Mean and deviations along the axes: prior-like, off-centre, long and thin, far and nearly certain.
GAUSSIANS = [
    ((0.0, 0.0), (1.0, 1.0)),
    ((0.0, 0.0), (1.0, 0.3)),
    ((0.3, -1.2), (0.7, 0.5)),
    ((2.0, 0.1), (0.2, 1.0)),
    ((0.0, 1.0), (0.05, 0.6)),
    ((-3.0, 2.0), (0.3, 0.1)),
    ((5.0, 5.0), (0.1, 0.1)),
]


def by_polar_grid(function, mean, covariance):
    """Return E function(ln q), integrating the density itself over a fine grid in ln r and the angle."""
    inverse = np.linalg.inv(covariance)
    u = np.linspace(-18, 4, 2001)[:, None]
    angle = np.linspace(0, 2 * np.pi, 600, endpoint=False)
    difference = np.exp(u)[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1) - mean
    exponent = -np.einsum("...i,ij,...j->...", difference, inverse, difference) / 2
    density = np.exp(exponent + 2 * u) * np.sqrt(np.linalg.det(inverse)) / (2 * np.pi)
    return (function(2 * u) * density).sum() * (22 / 2000) * (2 * np.pi / 600)


@pytest.mark.parametrize(("mean", "deviations"), GAUSSIANS)
def test_moments_of_the_logarithm_against_the_density(mean, deviations):
    mean, covariance = rotated(mean, deviations, 0.7)
    first = by_polar_grid(lambda log: log, mean, covariance)
    second = by_polar_grid(lambda log: log**2, mean, covariance)
    assert by_polar_grid(np.ones_like, mean, covariance) == pytest.approx(1, abs=1e-11)  # how good the grid is
    assert log_power(mean, covariance) == pytest.approx([first, second - first**2], abs=1e-9)


def test_moments_of_the_logarithm_against_monte_carlo():
    mean, covariance = rotated((0.5, -0.4), (0.6, 0.15), 2.0)
    draws = np.random.default_rng(0).multivariate_normal(mean, covariance, 400_000)
    log = np.log((draws**2).sum(axis=1))
    found, variance = log_power(mean, covariance)
    assert abs(log.mean() - found) < 5 * np.sqrt(variance / len(log))
    spread = np.sqrt(((log - log.mean()) ** 2).var() / len(log))
    assert abs(log.var() - variance) < 5 * spread


@pytest.mark.parametrize("ratio", [0, 1e-12, 1e-3, 0.5, 3, 40, 1e3, 1e5])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e100])
def test_isotropic_posterior_has_a_closed_form(ratio, scale):
    """With s² = E|c − μ|² and λ = |μ|²/s², E ln q = ln s² + ln λ + E₁(λ)."""
    mean = np.sqrt(ratio * scale) * np.array([0.6, -0.8])
    expected = np.log(scale) + (np.log(ratio) + exp1(ratio) if ratio else -np.euler_gamma)
    found, variance = log_power(mean, np.eye(2) * scale / 2)
    assert found == pytest.approx(expected, rel=1e-13, abs=1e-13)
    if ratio <= 40:
        logs = [np.log(scale), 1 + ratio]
        density = stats.ncx2(2, 2 * ratio).pdf  # of 2q/s²
        second = integrate.quad(
            lambda u: (u - (expected - logs[0])) ** 2 * density(2 * np.exp(u)) * 2 * np.exp(u),
            *(-60, np.log(logs[1] + 200)),
            limit=500,
            points=[np.log(logs[1])],
        )[0]
        assert variance == pytest.approx(second, rel=1e-7)


def test_knowing_nothing():
    for k in (1, 7, 1000):
        found = log_power((0, 0), np.eye(2) / (2 * k**2))
        assert found == pytest.approx([-2 * np.log(k) - np.euler_gamma, np.pi**2 / 6], abs=1e-13)


def test_knowing_one_coefficient_only():
    """For q = a², a ~ N(0, 1): a chi-square of one degree of freedom."""
    covariance = np.diag([1.0, 1e-40])
    assert log_power((0, 0), covariance) == pytest.approx([-np.euler_gamma - np.log(2), np.pi**2 / 2], abs=1e-8)


@pytest.mark.parametrize("size", [1e-32, 1e-20, 1e-16, 1e-12, 1e-8])
def test_knowing_nearly_everything(size):
    mean, covariance = rotated((3.0, 4.0), (np.sqrt(size), np.sqrt(size) / 7), 0.4)
    found, variance = log_power(mean, covariance)
    # The next terms of both are smaller by about size.
    assert found == pytest.approx(2 * np.log(np.hypot(*mean)), abs=2e-15 + size)
    assert variance == pytest.approx(4 * mean @ covariance @ mean / (mean @ mean) ** 2, rel=1e-14 + 3 * size)


@pytest.mark.parametrize(("mean", "deviations"), [((1.0, 0.0), (1.0, 1.0)), ((0.6, 0.8), (1.0, 0.2)), ((0, 1), (1, 0))])
def test_the_variance_has_no_step_where_its_formula_changes(mean, deviations, monkeypatch):
    """The series errs by its fourth order there, some 1e-16; the integral by rounding, some 1e-14 of 1e-4."""
    found = []
    size = 1e-4 / (4 * np.square(mean) @ np.square(deviations) + 1e-30)
    mean, covariance = rotated(mean, np.sqrt(min(size, 1e-4)) * np.array(deviations), 1.0)
    for narrow in (0.0, np.inf):
        monkeypatch.setattr(optimum, "_NARROW", narrow)
        found.append(log_power(mean, covariance)[1])
    assert found[0] == pytest.approx(found[1], rel=2e-9)


@pytest.mark.parametrize(("mean", "deviations"), GAUSSIANS)
def test_probabilities_against_an_integral_over_one_coordinate(mean, deviations):
    (a, b), (da, db) = mean, deviations
    turned, covariance = rotated(mean, deviations, 1.1)
    posterior = gaussian(turned, covariance)

    def below(radius):
        """Given the first coordinate, radius · sin θ, the other lies between ± radius · cos θ."""

        def integrand(theta):
            x, y = radius * np.sin(theta), radius * np.cos(theta)
            return y * stats.norm.pdf(x, a, da) * (ndtr((y - b) / db) - ndtr((-y - b) / db))

        peak = np.clip((a + da * np.array([-9, -6, -3, -1, 0, 1, 3, 6, 9])) / radius, -1, 1)
        return integrate.quad(integrand, -np.pi / 2, np.pi / 2, points=np.arcsin(peak), limit=400, epsabs=1e-11)[0]

    for radius in (0.01, 0.3, 1.0, 1.3, 2.5, 3.6, 7.0, 7.2, 20.0):
        found = posterior.cdf([[2 * np.log(radius)]]).item()
        assert found == pytest.approx(below(radius), abs=2e-10)


@pytest.mark.parametrize("size", [1e-3, 1e-8])
def test_probabilities_of_a_nearly_certain_power(size):
    """It is normal then, up to a skewness of the order of size."""
    mean, covariance = rotated((3.0, 4.0), (5 * size, size), 0.9)
    deviation = np.sqrt(mean @ covariance @ mean) / 5
    for z in (-3, -1, 0, 0.5, 2):
        found = gaussian(mean, covariance).cdf([[2 * np.log(5 + z * deviation)]]).item()
        assert found == pytest.approx(ndtr(z), abs=2 * size + 1e-14 * 5 / size)


def on_exact_axes(mean, covariance):
    """Return mean and deviation on the long and on the short axis of the very numbers given, found with 60 digits."""
    with decimal.localcontext(prec=60):
        (a, c), (_, b) = [[decimal.Decimal(float(entry)) for entry in row] for row in covariance]
        x, y = (decimal.Decimal(float(entry)) for entry in mean)
        largest = (a + b + ((a - b) ** 2 + 4 * c * c).sqrt()) / 2
        smallest = (a * b - c * c) / largest
        u, v = largest - b, c  # an eigenvector
        norm = (u * u + v * v).sqrt()
        found = (u * x + v * y) / norm, largest.sqrt(), (u * y - v * x) / norm, smallest.sqrt()
        return [float(number) for number in found]


def below_by_strips_across(radius, m, long, n, short):
    """Return P(q < radius²) by quadrature along the long axis, cut where the other factor rises and falls."""
    ends = [(abs(n) + k * short) / radius for k in (-9, -3, 0, 3, 9)]
    angles = [np.arccos(end) for end in ends if 0 < end < 1] + [
        np.arcsin(end) for k in (-9, -3, 0, 3, 9) if abs(end := (m + k * long) / radius) < 1
    ]
    cuts = np.unique([-np.pi / 2, np.pi / 2, *angles, *np.negative(angles)])

    def integrand(theta):
        half = radius * np.cos(theta)
        inside = ndtr((half - n) / short) - ndtr((-half - n) / short)
        return stats.norm.pdf(radius * np.sin(theta), m, long) * inside * half

    return sum(integrate.fixed_quad(integrand, *ends, n=150)[0] for ends in pairwise(cuts))


@pytest.mark.parametrize("ratio", [30.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
@pytest.mark.parametrize("mean", [(0.0, 0.0), (0.8, 0.0), (-2.0, 0.001), (0.4, 1.5), (0.0, 2000.0), (30.0, 40.0)])
def test_probabilities_of_a_thin_gaussian(ratio, angle, mean):
    mean, covariance = rotated(mean, (1.0, 1 / ratio), angle)
    m, long, n, short = on_exact_axes(mean, covariance)
    posterior = gaussian(mean, covariance)
    middle = np.hypot(m, n)
    steps = [k * size for size in (short, 10 * short, 1.0) for k in (-2, -0.5, 0, 0.5, 2)]
    for radius in {*(abs(n) + np.array(steps)), *(middle + np.array(steps)), short / 3}:
        if radius <= 0:
            continue
        found = posterior.cdf([[2 * np.log(radius)]]).item()
        # The logarithm is known to 1e-16 of itself, the mean to 1e-16 of its length, either over what is across.
        known = 4e-16 * (radius * (1 + abs(np.log(radius))) + middle) / short
        assert found == pytest.approx(below_by_strips_across(radius, m, long, n, short), abs=2e-12 + known), radius


def test_probabilities_on_a_line():
    """Of a Gaussian without any width across, a difference of two distribution functions is left."""
    for n in (0.0, 0.3, 1.2):
        for radius in (0.1, 0.5, 1.5, 4.0):
            found = gaussian((0.6, n), np.diag([1.0, 1e-40])).cdf([[2 * np.log(radius)]]).item()
            half = np.sqrt(max(radius**2 - n**2, 0))
            assert found == pytest.approx(ndtr(half - 0.6) - ndtr(-half - 0.6), abs=1e-8)


def test_probabilities_at_the_ends():
    for covariance in (np.eye(2), np.diag([1.0, 1e-40])):
        for mean in ((0, 0), (1, 2)):
            assert gaussian(mean, covariance).cdf([[-np.inf]]).item() == pytest.approx(0, abs=1e-14)
            assert gaussian(mean, covariance).cdf([[np.inf]]).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("k_max", [3, 12])
def test_bounds_hold_where_one_sample_is_missing(k_max):
    """From 2 k_max - 1 samples without noise all is known but one number: every posterior is a line."""
    task = PowerSpectrum(k_max, 2, 2 * k_max - 1)
    sets, truths = task.sample(2000, 11)
    for probabilities in spectrum_posterior(sets, task).cdf(truths).T:
        assert stats.kstest(probabilities, "uniform").pvalue > 1e-3


def test_probabilities_refuse_another_shape():
    with pytest.raises(ValueError, match=r"log_powers must have shape \(S, K\) = \(1, 1\), got \(2, 1\)"):
        gaussian((0, 0), np.eye(2)).cdf([[0.0], [1.0]])


def test_moments_of_the_power():
    mean, covariance = rotated((0.5, -0.4), (0.6, 0.15), 2.0)
    q = (np.random.default_rng(1).multivariate_normal(mean, covariance, 400_000) ** 2).sum(axis=1)
    found, variance = (moment.item() for moment in gaussian(mean, covariance).power())
    assert abs(q.mean() - found) < 5 * np.sqrt(variance / len(q))
    assert abs(q.var() - variance) < 5 * np.sqrt(((q - q.mean()) ** 2).var() / len(q))


def by_bayes(x, y, task, noise):
    """Return the posterior of a_k, b_k in the band, by the textbook formula over all coefficients."""
    angles = x[:, None] * np.arange(1, task.k_max + 1)
    A = np.hstack([np.cos(angles), -np.sin(angles)])
    prior = np.tile(task.mean_power / 2, 2)
    gain = prior[:, None] * A.T @ np.linalg.inv(A * prior @ A.T + noise**2 * np.eye(len(x)))
    pairs = np.stack([task.frequencies - 1, task.k_max + task.frequencies - 1], axis=1)
    covariance = np.diag(prior) - gain @ A * prior
    return (gain @ y)[pairs], covariance[pairs[:, :, None], pairs[:, None, :]]


# Coefficients far fewer than samples, as many, a few more, far more; bands with and without others around them.
@pytest.mark.parametrize(
    ("k_max", "k_fin"), [(1, 1), (3, 3), (4, (2, 3)), (9, 2), (10, 10), (13, (5, 8)), (30, (28, 30)), (60, 7), (60, 60)]
)
@pytest.mark.parametrize("power_law", [None, 0.5, lambda k: 1 + k % 3])
def test_posterior_against_the_textbook(k_max, k_fin, power_law):
    noise = 0.05
    task = PowerSpectrum(k_max, k_fin, (1, 40), noise=noise, power_law=power_law)
    sets, _ = task.sample(8, 3)
    posterior = spectrum_posterior(sets, task)
    for s, one in enumerate(sets):
        mean, covariance = by_bayes(*one.values.T, task, noise)
        # The textbook subtracts from a prior that is up to 1e4 times the posterior.
        np.testing.assert_allclose(posterior.mean[s], mean, rtol=0, atol=1e-9)
        np.testing.assert_allclose(posterior.covariance[s], covariance, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("k_max", "k_fin"), [(4, 4), (12, 2), (16, 4), (24, 3), (200, 5)])
def test_cholesky_and_qr_agree(k_max, k_fin, monkeypatch):
    task = PowerSpectrum(k_max, k_fin, (20, 40))
    sets, _ = task.sample(10, 4)
    found = spectrum_posterior(sets, task)
    monkeypatch.setattr(optimum, "_LEAST_RECIPROCAL", 2.0)
    by_qr = spectrum_posterior(sets, task)
    np.testing.assert_allclose(found.log_power().mean, by_qr.log_power().mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.log_power().variance, by_qr.log_power().variance, rtol=1e-5)


def test_enough_samples_of_a_function_without_noise_give_it_away():
    for k_max, set_size in ((1, 2), (4, 512), (5, (20, 40)), (64, 512)):
        task = PowerSpectrum(k_max, min(k_max, 4), set_size)
        sets, log_powers = task.sample(20, 5)
        estimates, variances = spectrum_posterior(sets, task).log_power()
        assert ((estimates - log_powers) ** 2).mean() < 1e-12
        assert variances.max() < 1e-8


def test_coinciding_samples():
    """Ten samples at two positions say what two say, to rounding errors over the assumed noise: 1e-16 / 1e-11."""
    x = np.repeat([0.3, 2.0], 5)
    y = np.repeat([0.7, -0.2], 5)
    task = PowerSpectrum(4, 4)
    many = spectrum_posterior(np.stack([x, y], axis=1)[None], task)
    two = spectrum_posterior(np.stack([x, y], axis=1)[None, ::5], task)
    np.testing.assert_allclose(many.mean, two.mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(many.covariance, two.covariance, rtol=0, atol=1e-6)


# Near the line 2 k_max = N, beyond it, with noise, with other laws of the spectrum and of x.
@pytest.mark.parametrize(
    "arguments",
    [
        {"k_max": 20, "k_fin": 5, "set_size": 40, "noise": 1e-3},
        {"k_max": 60, "k_fin": 4, "set_size": (5, 30)},
        {"k_max": 6, "k_fin": 6, "set_size": 30, "noise": 0.3},
        {"k_max": 40, "k_fin": (3, 8), "set_size": 30, "power_law": 1, "noise": 0.1},
        {"k_max": 30, "k_fin": 4, "set_size": 30, "positions": lambda generator, n: generator.normal(3, 1, n)},
    ],
)
def test_the_error_is_the_expected_one_and_the_bounds_hold(arguments):
    task = PowerSpectrum(**arguments)
    sets, truths = task.sample(500, 6)
    posterior = spectrum_posterior(sets, task)
    estimates, variances = posterior.log_power()
    excess = ((estimates - truths) ** 2 - variances).mean(axis=1)
    assert abs(excess.mean()) < 5 * excess.std() / np.sqrt(len(excess))
    for k, probabilities in enumerate(posterior.cdf(truths).T):
        assert stats.kstest(probabilities, "uniform").pvalue > 1e-3, k


def test_samples_in_float32():
    wide, narrow = (PowerSpectrum(4, 4, 200, dtype=dtype).sample(50, 7) for dtype in ("float64", "float32"))
    task = PowerSpectrum(4, 4, 200)
    exact, rounded = (spectrum_posterior(sets, task) for sets, _ in (wide, narrow))
    np.testing.assert_allclose(rounded.log_power().mean, exact.log_power().mean, rtol=0, atol=1e-4)
    expected = (LEAST_NOISE["float32"] / LEAST_NOISE["float64"]) ** 2
    ratio = rounded.covariance / exact.covariance
    np.testing.assert_allclose(np.diagonal(ratio, axis1=2, axis2=3), expected, rtol=1e-3)


def test_a_wrong_assumption_costs():
    true = PowerSpectrum(30, 4, 50)
    sets, log_powers = true.sample(100, 8)
    errors = {}
    for assumed in (PowerSpectrum(k_max, 4) for k_max in (10, 30, 100)):
        estimates = spectrum_posterior(sets, assumed).log_power().mean
        errors[assumed.k_max] = ((estimates - log_powers) ** 2).mean()
    assert errors[30] < errors[10]
    assert errors[30] < errors[100]
    noisy = PowerSpectrum(4, 4, 50, noise=0.5).sample(300, 9)
    right, wrong = (
        ((spectrum_posterior(noisy[0], PowerSpectrum(4, 4, noise=noise)).log_power().mean - noisy[1]) ** 2).mean()
        for noise in (0.5, 0.0)
    )
    assert right < wrong


def test_whatever_holds_sets():
    task = PowerSpectrum(4, 2, 10)
    sets, _ = task.sample(3, 0)
    expected = spectrum_posterior(sets, task).mean
    assert expected.shape == (3, 2, 2)
    np.testing.assert_array_equal(spectrum_posterior(sets.values.reshape(3, 10, 2), task).mean, expected)
    np.testing.assert_array_equal(spectrum_posterior([one.values for one in sets], task).mean, expected)


@pytest.mark.parametrize(
    ("amplitudes", "named"), [("fixed", "'fixed'"), ("lognormal", "'lognormal'"), (lambda g, mean: mean, "function")]
)
def test_a_law_that_is_not_gaussian_is_refused(amplitudes, named):
    task = PowerSpectrum(4, 4, 10, amplitudes=amplitudes)
    with pytest.raises(ValueError, match=f"only for a task with amplitudes='exponential', got .*{named}"):
        spectrum_posterior(task.sample(1, 0)[0], task)


def test_other_sets_are_refused():
    with pytest.raises(ValueError, match="expected K=2 features per element, got 3"):
        spectrum_posterior(np.zeros((1, 4, 3)), PowerSpectrum())
    with pytest.raises(ValueError, match="expected sets without weights"):
        spectrum_posterior(Sets.dense(np.zeros((1, 4, 2)), np.ones((1, 4))), PowerSpectrum())


@pytest.mark.parametrize("task", [None, np.zeros((1, 5, 2)), "task"], ids=["none", "swapped", "name"])
def test_a_task_is_expected(task):
    with pytest.raises(TypeError, match="task must be a PowerSpectrum, got"):
        spectrum_posterior(np.zeros((1, 5, 2)), task)
