"""The best possible estimate of a power spectrum: its exact posterior, given samples and the law of the functions.

**Posterior.** With exponential powers and uniform phases, √p_k e^{iφ_k} = a_k + i b_k has independent parts, both of
law N(0, s_k) with s_k = E p_k / 2, and the samples are linear in them:

    y_n = Σ_k a_k cos(k x_n) − b_k sin(k x_n) + ε_n,    ε_n ~ N(0, σ²).

Hence (a_k, b_k) given the samples is Gaussian, N(μ_k, C_k), by linear algebra (see `spectrum_posterior`), and what is
left is the law of q = p_k = a² + b² for one Gaussian in the plane.

**Mean and variance of ln q.** With φ(t) = E e^{−tq} and g(t) = e^{−t} − φ(t), the Mellin transform of φ is
∫ t^{s−1} φ(t) dt = Γ(s) E q^{−s}, and that of e^{−t} is Γ(s), so that

    Γ(s) (1 − E q^{−s}) = ∫₀^∞ t^{s−1} g(t) dt.

At s = 0, Γ(s) = 1/s − γ + … and 1 − E q^{−s} = s E ln q − s²/2 E (ln q)² + …, so the first two orders in s are

    E ln q     =    ∫₀^∞ g(t) dt/t,
    E (ln q)²  = −2 ∫₀^∞ (ln t + γ) g(t) dt/t.

For the Gaussian, with D = det(1 + 2tC) = 1 + 2t tr C + 4t² det C,

    φ(t) = D^{−1/2} exp(−t (|μ|² + 2t μᵀ adj(C) μ) / D).

In u = ln t the integrands are analytic for |Im u| < π/2, and once q is divided by its mean they fall off like e^{2u} to
the left and at least like e^{−u/2} to the right: the trapezoidal rule converges exponentially.

**Distribution of q.** On the axes of C, with deviations δ <= L, the chord of the disc |(a, b)| < r at r sin θ on the
short axis is 2 r cos θ long, so that

    P(q < r²) = ∫ N(r sin θ; μ_δ, δ²) P(|u| < r cos θ) r cos θ dθ,    u ~ N(μ_L, L²),    −π/2 < θ < π/2,

where P(|u| < s) is a difference of normal distribution functions. That holds however thin the Gaussian is; cut where
either factor begins and ends to vary, the integral is smooth on every piece.

References
----------
C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006, chapter 2. L. N. Trefethen and
J. A. C. Weideman, "The exponentially convergent trapezoidal rule", SIAM Review 56, 2014.
"""

from typing import NamedTuple

import numpy as np

from fastperm.checks import check_real
from fastperm.sets import as_sets

# Standard deviation, over that of f, of the white noise that samples are taken to carry at least. Rounding to float32
# errs by about a quarter of its eps. Float64 samples are exact to some 1e-15, but to rely on all of that would
# ask of the linear algebra more than float64 can give.
LEAST_NOISE = {"float64": 1e-11, "float32": float(np.finfo(np.float32).eps) / 4}

# A Cholesky factor is kept where the reciprocal of the condition number of its matrix is at least this. Below, QR gives
# the same factor without squaring the condition number, several times as slowly. With this bound, estimates were seen
# within 1e-6 of those by QR alone near 2 k_max = N, where it matters most.
_LEAST_RECIPROCAL = 1e-10

# Nodes in u = ln t. At step 1/4 the trapezoidal rule errs by about e^{-2π (π/2) / (1/4)} = e^{-39}; what is left out on
# the left is below e^{-40} and on the right below e^{-40} too, even where C has rank one and μ = 0.
_STEP = 0.25
_U = np.arange(-20, 80 + _STEP / 2, _STEP)

# Where the variance of q is below this part of its squared mean, the integrals lose the variance of ln q in rounding
# errors of about 1e-14, and the first three orders of a series in the cumulants of q are exact to about 1e-10 of it.
_NARROW = 1e-4

# Numbers in a temporary array.
_CHUNK = 1 << 20

# A normal distribution ends, for `cdf`, at so many deviations: what is beyond is below 2e-15. Gauss' rule with so many
# nodes integrates one from end to end to rounding.
_END, _NODES = 8.0, 48


class Moments(NamedTuple):
    """Mean and variance of S × K random numbers, both (S, K)."""

    mean: np.ndarray
    variance: np.ndarray


class SpectrumPosterior(NamedTuple):
    """What samples say about the Fourier coefficients a_k + i b_k = √p_k e^{iφ_k} of S functions at K frequencies.

    Attributes
    ----------
    mean : ndarray of float64, shape (S, K, 2)
        Posterior mean of (a_k, b_k), in units of the samples.
    covariance : ndarray of float64, shape (S, K, 2, 2)
        Posterior covariance of (a_k, b_k), positive definite.

    Examples
    --------
    Knowing nothing but that p_k has mean 1 is to expect -γ of its logarithm, with variance π²/6:

    >>> prior = SpectrumPosterior(np.zeros((1, 1, 2)), np.eye(2).reshape(1, 1, 2, 2) / 2)
    >>> mean, variance = prior.log_power()
    >>> print(f"{mean.item():.6f} {variance.item():.6f}")
    -0.577216 1.644934
    """

    mean: np.ndarray
    covariance: np.ndarray

    def log_power(self):
        """Return mean and variance of log p_k (natural logarithm).

        The mean is the estimate with the least mean squared error, and the variance is the error to be expected of it.

        Returns
        -------
        Moments
            Exact to about 1e-13, and the variance to about 1e-9 of itself too; to 1e-8 only where μ is small and one
            axis of C is 1e8 times longer than the other.
        """
        scale = self._mean_power()
        mean, C = self.mean / np.sqrt(scale)[..., None], self.covariance / scale[..., None, None]
        square, trace = (mean**2).sum(axis=-1), np.trace(C, axis1=-2, axis2=-1)
        first, second = _log_moments(square, trace, _determinant(C), _adjoint_form(C, mean))
        series = _narrow_variance(mean, C)
        return Moments(np.log(scale) + first, np.where(_power_variance(mean, C) < _NARROW, series, second))

    def power(self):
        """Return mean and variance of p_k, (S, K) each, in squared units of the samples."""
        return Moments(self._mean_power(), _power_variance(self.mean, self.covariance))

    def cdf(self, log_powers):
        """Return the probability that log p_k is below given numbers.

        Parameters
        ----------
        log_powers : array_like, shape (S, K)
            Natural logarithms. Where they are the truth of functions that were drawn from the assumed law, the
            probabilities are uniform on [0, 1].

        Returns
        -------
        probabilities : ndarray of float64, shape (S, K)
            Exact to 1e-12, and to what rounding leaves of μ and C: across a thin Gaussian, μ is known to about
            1e-16 |μ|, and where one axis of C is 1e8 times longer than the other, the short one is lost in float64.

        Raises
        ------
        ValueError
            If the shape is another one.
        """
        log_powers = check_real(log_powers, "log_powers", np.float64)
        S_K = self.mean.shape[:-1]
        if log_powers.shape != S_K:
            raise ValueError(f"log_powers must have shape (S, K) = {S_K}, got {log_powers.shape}")
        # Scaled by a power of two, which is exact: rounding C would change the determinant of a thin one.
        exponent = np.frexp(self._mean_power())[1] // 2
        radius = np.exp(np.clip(log_powers / 2 - exponent * np.log(2), -300, 300))  # far beyond 0 and 1
        mean = np.ldexp(self.mean, -exponent[..., None])
        C = np.ldexp(self.covariance, -2 * exponent[..., None, None])
        columns = [array.ravel() for array in (radius, *_on_axes(mean, C))]
        return _disc_probability(*columns).reshape(S_K)

    def _mean_power(self):
        return (self.mean**2).sum(axis=-1) + np.trace(self.covariance, axis1=-2, axis2=-1)


def spectrum_posterior(sets, task):
    """Return the posterior of the Fourier coefficients in the predicted band, given samples of each function.

    Parameters
    ----------
    sets : Sets, or array_like (S, N, 2), or list of array_like (n_i, 2)
        Positions in radians and samples, as from `PowerSpectrum.sample`, without weights.
    task : PowerSpectrum
        What is assumed of the functions: the mean spectrum 1 … k_max, the noise, and the band that is asked for. Only
        if it is the law they were drawn from is the posterior the true one; another task, of another ``k_max`` or
        ``noise``, shows what a wrong assumption costs. Its law must be Gaussian: ``amplitudes="exponential"``.

    Returns
    -------
    SpectrumPosterior
        In float64, of shape (S, K) with K = task.out_features.

    Raises
    ------
    TypeError, ValueError
        If the law of the task is not Gaussian, or the sets have another width, or weights.

    Notes
    -----
    The variance of the noise is σ² = noise² + (δ · standard deviation of f)², with δ = 1e-11 for samples in float64 and
    3e-8, about what rounding adds, for samples in float32. Without δ the problem has no solution in floating point
    where 2 k_max is near N.

    Coefficients are divided by their prior standard deviations √s_k, and A is the matrix of the samples' regression on
    them. Where 2 k_max <= N, a triangular factor R of AᵀA + σ² is computed in the space of the coefficients, with the
    band in the last columns: its last rows are the regression on the band alone. Where 2 k_max > N, the other
    coefficients are noise of covariance A₀A₀ᵀ + σ² = RᵀR, N × N; the samples and the columns of the band are divided by
    Rᵀ, and the regression on the band is that with noise of variance 1. Either way the covariance of the band comes out
    as a product, without a difference of large numbers. Factors are those of Cholesky, and of QR where that would lose
    more than half of the digits.

    Examples
    --------
    >>> import fastperm
    >>> task = fastperm.PowerSpectrum(k_max=4, k_fin=2, set_size=100)
    >>> sets, log_powers = task.sample(3, 0)
    >>> estimates, expected_errors = fastperm.spectrum_posterior(sets, task).log_power()
    >>> bool(abs(estimates - log_powers).max() < 1e-6)
    True
    """
    if not hasattr(task, "amplitudes"):
        raise TypeError(f"task must be a PowerSpectrum, got {task!r:.80}")
    if task.amplitudes != "exponential":
        raise ValueError(
            "the posterior is Gaussian, and known, only for a task with amplitudes='exponential', "
            f"got {task.amplitudes!r}"
        )
    sets = as_sets(sets, features=2)
    if sets.weights is not None:
        raise ValueError("expected sets without weights: how exact a sample of weight 2 is, is not defined")
    variances = task.mean_power / 2
    noise = np.hypot(task.noise, LEAST_NOISE[sets.dtype.name] * np.sqrt(variances.sum()))
    K = task.out_features
    mean, covariance = np.empty((len(sets), K, 2)), np.empty((len(sets), K, 2, 2))
    for s, one in enumerate(sets):
        x, y = one.values.T.astype(np.float64)
        mean[s], covariance[s] = _band_posterior(x, y, task, np.sqrt(variances), noise)
    return SpectrumPosterior(mean, covariance)


def harmonics(x, k_max):
    """Return e^{ikx} for k = 1 … k_max, shape (k_max, n): about k times as exact as x itself."""
    table = np.empty((k_max, len(x)), np.complex128)
    table[0] = np.exp(1j * x)
    done = 1
    while done < k_max:  # doubled each time: a third of the time of as many sines and cosines
        more = min(done, k_max - done)
        np.multiply(table[:more], table[done - 1], out=table[done : done + more])
        done += more
    return table


def design(table, deviations):
    """Return the samples' regression on a_k and b_k in units of ``deviations``, shape (2K, n): a row for each."""
    K, n = table.shape
    rows = np.empty((K, 2, n))
    np.multiply(table.real, deviations[:, None], out=rows[:, 0])
    np.multiply(table.imag, -deviations[:, None], out=rows[:, 1])
    return rows.reshape(2 * K, n)


def _band_posterior(x, y, task, deviations, noise):
    """Return mean (K, 2) and covariance (K, 2, 2) of the band's coefficients for one set."""
    rows = design(harmonics(x, task.k_max), deviations)
    first, last = task.frequencies[[0, -1]]
    rows_others, rows_band = np.delete(rows, slice(2 * first - 2, 2 * last), axis=0), rows[2 * first - 2 : 2 * last]
    m = len(rows_band)
    if len(rows) <= len(x) or not len(rows_others):
        R, z = _regression(np.vstack([rows_others, rows_band]), y, noise)
        R, z = R[-m:, -m:], z[-m:]
    else:
        from scipy.linalg import solve_triangular

        factor, _ = _regression(rows_others.T, None, noise)
        whitened = solve_triangular(factor, np.column_stack([rows_band.T, y]), trans="T", check_finite=False)
        noise = 1.0
        R, z = _regression(whitened[:, :m].T, whitened[:, m], noise)
    scale = deviations[task.frequencies - 1]
    inverse = np.linalg.inv(R)
    mean = (inverse @ z).reshape(-1, 2) * scale[:, None]
    roots = (noise * inverse).reshape(-1, 2, m) * scale[:, None, None]
    return mean, roots @ roots.transpose(0, 2, 1)


def _regression(rows, y, noise):
    """Return R and z with RᵀR = AᵀA + noise² and Rᵀz = Aᵀy, Aᵀ = rows, R upper triangular; z is None where y is."""
    from scipy.linalg import lapack, solve_triangular

    m = len(rows)
    gram = rows @ rows.T
    gram.flat[:: m + 1] += noise**2
    # Divided by its diagonal first: columns of very different size are no trouble, and should not look like it.
    scale = np.sqrt(gram.diagonal())
    gram /= scale
    gram /= scale[:, None]
    norm = np.abs(gram).sum(axis=0).max()
    try:
        R = np.linalg.cholesky(gram).T
    except np.linalg.LinAlgError:
        R = np.zeros_like(gram)
    if lapack.dpocon(R, norm)[0] >= _LEAST_RECIPROCAL:
        R = R * scale
        return R, None if y is None else solve_triangular(R, rows @ y, trans="T", check_finite=False)
    stacked = np.vstack([rows.T, noise * np.eye(m)])
    if y is not None:
        stacked = np.column_stack([stacked, np.concatenate([y, np.zeros(m)])])
    triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
    return triangle[:m, :m], None if y is None else triangle[:m, m]


def _determinant(C):
    """Return det C of a symmetric C as exactly as C is given: the products' rounding errors are taken along."""
    first, first_error = _exact_product(C[..., 0, 0], C[..., 1, 1])
    second, second_error = _exact_product(C[..., 0, 1], C[..., 0, 1])
    return np.maximum((first - second) + (first_error - second_error), 0)


def _exact_product(x, y):
    """Return x y rounded and what rounding took away (Dekker 1971)."""

    def halves(z):
        high = z * 134217729.0  # 2^27 + 1
        high = high - (high - z)
        return high, z - high

    product = x * y
    (x1, x2), (y1, y2) = halves(x), halves(y)
    return product, ((x1 * y1 - product) + x1 * y2 + x2 * y1) + x2 * y2


def _on_axes(mean, C):
    """Return |μ| and deviation on the long axis of C, and the same on the short one, each of shape (S, K)."""
    a, b, half = C[..., 0, 0], C[..., 1, 1], np.hypot((C[..., 0, 0] - C[..., 1, 1]) / 2, C[..., 0, 1])
    angle = np.arctan2(2 * C[..., 0, 1], a - b) / 2
    largest = (a + b) / 2 + half
    smallest = np.maximum(_determinant(C) / largest, np.finfo(np.float64).eps * largest)  # not below rounding
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = mean[..., 0] * cos + mean[..., 1] * sin, mean[..., 1] * cos - mean[..., 0] * sin
    return np.abs(along), np.sqrt(largest), np.abs(across), np.sqrt(smallest)


def _adjoint_form(C, mean):
    """Return μᵀ adj(C) μ."""
    a, b = mean[..., 0], mean[..., 1]
    return np.maximum(a**2 * C[..., 1, 1] - 2 * a * b * C[..., 0, 1] + b**2 * C[..., 0, 0], 0)


def _log_moments(square, trace, determinant, adjoint):
    """Return mean and variance of ln q by quadrature, for q of mean 1 (see the module)."""
    invariants = np.stack([square, trace, determinant, adjoint], axis=-1).reshape(-1, 4, 1)
    t = np.exp(_U)
    exponential = np.expm1(-t)
    first, second = np.empty(len(invariants)), np.empty(len(invariants))
    rows = max(1, _CHUNK // len(t))
    for start in range(0, len(invariants), rows):
        part = slice(start, start + rows)
        size, tr, det, adj = invariants[part].swapaxes(0, 1)
        D = 2 * t * (tr + 2 * t * det)  # less the 1
        log = -t * (size + 2 * t * adj) / (1 + D) - np.log1p(D) / 2
        g = exponential - np.expm1(log)
        first[part] = _STEP * g.sum(axis=1)
        second[part] = -2 * _STEP * (g @ (_U + np.euler_gamma))
    return first.reshape(square.shape), (second - first**2).reshape(square.shape)


def _power_variance(mean, C):
    """Return the variance of q: 4 μᵀCμ + 2 tr C²."""
    return 4 * _form(mean, C) + 2 * (C**2).sum(axis=(-2, -1))


def _form(mean, C):
    """Return μᵀCμ."""
    return np.einsum("...i,...ij,...j->...", mean, C, mean)


def _narrow_variance(mean, C):
    """Return the variance of ln q to third order in C / |μ|², for q of mean 1.

    It is that of ln(1 + δ) = δ − δ²/2 + δ³/3 − … in the cumulants κ_n = 2^{n−1} (n−1)! (tr Cⁿ + n μᵀC^{n−1}μ) of δ.
    """
    C2 = C @ C
    C3 = C2 @ C
    second = _power_variance(mean, C)
    third = 8 * (C * C2).sum(axis=(-2, -1)) + 24 * _form(mean, C2)
    fourth = 48 * (C * C3).sum(axis=(-2, -1)) + 192 * _form(mean, C3)
    return second - third + 5 / 2 * second**2 + 11 / 12 * fourth - 8 * second * third + 32 / 3 * second**3


def _disc_probability(radius, along, L, across, delta):
    """Return P(|c| < radius) for c ~ N((along, across), diag(L², delta²)), L >= delta, along, across >= 0; all (n,)."""
    from scipy.special import ndtr

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    found = np.empty(len(radius))
    rows = max(1, _CHUNK // (5 * _NODES))
    for start in range(0, len(radius), rows):
        r, m, l, n, d = (a[start : start + rows, None] for a in (radius, along, L, across, delta))  # noqa: E741
        # Angles are counted from where the short coordinate is n, or next to it: its distance from n keeps its digits.
        sin, cos = np.minimum(n / r, 1), np.sqrt(np.maximum((r - n) / r, 0) * (1 + n / r))
        origin = np.arctan2(sin, cos)
        first, last = (np.arcsin(np.clip((n + end * d) / r, -1, 1)) for end in (-_END, _END))
        inner = [np.arccos(np.clip((m + end * l) / r, 0, 1)) for end in (-_END, _END)]
        cuts = np.clip(np.hstack([first, *(-angle for angle in inner), *inner, last]), first, last) - origin
        cuts.sort(axis=1)
        middle, half = (cuts[:, 1:] + cuts[:, :-1]) / 2, (cuts[:, 1:] - cuts[:, :-1]) / 2
        theta = (middle[..., None] + half[..., None] * nodes).reshape(len(r), -1)
        chord = r * np.cos(origin + theta)
        distance = np.minimum(r - n, 0) + r * (cos * np.sin(theta) - 2 * sin * np.sin(theta / 2) ** 2)
        density = np.exp(-((distance / d) ** 2) / 2) / (np.sqrt(2 * np.pi) * d)
        inside = ndtr((chord - m) / l) - ndtr((-chord - m) / l)
        measure = (half[..., None] * weights).reshape(len(r), -1)
        found[start : start + rows] = (measure * density * inside * chord).sum(axis=1)
    return np.clip(found, 0, 1)
