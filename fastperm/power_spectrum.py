"""The headline task: the power spectrum of a random periodic function, from unordered samples of it.

Source: the paper "Permutation-equivariant neural networks for power spectrum estimation".
"""

import copy
import math
from itertools import pairwise

import numpy as np

from fastperm import backend as backends
from fastperm.checks import check_choice, check_dtype, check_generator, check_integer, check_number
from fastperm.kernels.arrays import on_host
from fastperm.sets import Sets

_AMPLITUDES = {
    "exponential": lambda generator, mean: mean * generator.standard_exponential(mean.shape),
    "fixed": lambda generator, mean: mean.copy(),
    "lognormal": lambda generator, mean: mean * np.exp(generator.standard_normal(mean.shape) - 0.5),
}
# Of log p_k less that of log E p_k.
_MEAN_OF_LOG = {"exponential": -np.euler_gamma, "fixed": 0.0, "lognormal": -0.5}
_VARIANCE_OF_LOG = {"exponential": math.pi**2 / 6, "fixed": 0.0, "lognormal": 1.0}
_VARIANCE_OVER_MEAN_SQUARED = {"exponential": 1.0, "fixed": 0.0, "lognormal": math.e - 1}


class PowerSpectrum:
    """Random periodic functions, sampled at random positions: sets, and the power spectrum to estimate from them.

    Each set has a function of its own,

        f(x) = Σ_{k=1}^{k_max} √p_k cos(kx + φ_k),    φ_k uniform on [0, 2π),

    and its elements are the rows (x_n, f(x_n)). The target is log p_k (natural logarithm) for the predicted band of k.
    By default p_k is exponential with mean 1/k², so that f is a Gaussian process, and x_n is uniform on [0, 2π).

    Parameters
    ----------
    k_max : int, default 4
        Highest frequency in f, in cycles per 2π.
    k_fin : int or (int, int), default 4
        The predicted band: k = 1 ... k_fin, or k = first ... last, both included. It must lie within 1 ... k_max.
    set_size : int or (int, int), default 512
        Elements per set, or the smallest and the largest number of them, both included; each set then draws its own
        uniformly.
    power_law : float or callable, optional
        Mean of p_k. None is 1/k², a number a is k^(-a). A callable takes the array k = 1.0, 2.0, ..., k_max and returns
        as many positive means.
    amplitudes : {"exponential", "fixed", "lognormal"} or callable, default "exponential"
        Law of p_k around its mean. "exponential" makes the Fourier coefficients Gaussian, "fixed" gives every function
        the mean spectrum, "lognormal" has log p_k normal with variance 1. A callable takes a numpy Generator and the
        means, shape (batch, k_max), and returns powers of the same shape: positive, or zero too where
        ``output="power"``.
    positions : {"uniform"} or callable, default "uniform"
        Law of x_n. A callable takes a numpy Generator and the size n of one set and returns n positions in radians.
    noise : float, default 0.0
        Standard deviation of white Gaussian noise added to f(x_n).
    output : {"log", "power"}, default "log"
        Whether targets are log p_k or p_k.
    dtype : {"float64", "float32"}, default "float64"
        Type of the sets' values. Targets are float64 always, and f is evaluated in float64, at the positions handed
        out.
    backend : {"auto", "cpu", "reference", "cuda"}, default "auto"
        What evaluates f. It is a property of the machine, not of the task, so `config` leaves it out. "auto" is the
        fastest that computes on the host; `train` moves it to "cuda" with a network that is there. With "cuda" sets and
        targets are drawn on the GPU and stay there, as CuPy arrays: from other random numbers, so that the same seed
        gives other sets than elsewhere, of the same law. Where ``amplitudes`` or ``positions`` are callables, sets are
        those of the host, copied to the GPU.

    Attributes
    ----------
    in_features : int
        Numbers per element: 2.
    out_features : int
        Numbers per target: how many k are predicted.
    frequencies : ndarray of int64, shape (out_features,)
        The predicted k.
    mean_power : ndarray of float64, shape (k_max,)
        Mean of p_k for k = 1 ... k_max. The variance of f is half its sum.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range; the message says what was expected and what came.
    RuntimeError
        If the backend is "cuda", which is not available here.

    References
    ----------
    "Permutation-equivariant neural networks for power spectrum estimation".

    Examples
    --------
    >>> from fastperm import PowerSpectrum
    >>> task = PowerSpectrum(k_max=8, k_fin=3, set_size=(100, 200))
    >>> sets, targets = task.sample(5, 0)
    >>> sets.values.shape[1], targets.shape
    (2, (5, 3))
    """

    in_features = 2

    def __init__(
        self,
        k_max=4,
        k_fin=4,
        set_size=512,
        *,
        power_law=None,
        amplitudes="exponential",
        positions="uniform",
        noise=0.0,
        output="log",
        dtype="float64",
        backend="auto",
    ):
        self.k_max = check_integer(k_max, "k_max", minimum=1)
        self.k_fin = _check_integer_or_pair(k_fin, "k_fin")
        self.set_size = _check_integer_or_pair(set_size, "set_size")
        self.power_law = power_law if power_law is None or callable(power_law) else check_number(power_law, "power_law")
        self.amplitudes = (
            amplitudes if callable(amplitudes) else check_choice(amplitudes, "amplitudes", tuple(_AMPLITUDES))
        )
        self.positions = positions if callable(positions) else check_choice(positions, "positions", ("uniform",))
        self.noise = check_number(noise, "noise", minimum=0)
        self.output = check_choice(output, "output", ("log", "power"))
        self.dtype = check_dtype(dtype)
        self.backend = _check_backend(backend)

        first, last = self.k_fin if isinstance(self.k_fin, tuple) else (1, self.k_fin)
        if last > self.k_max:
            raise ValueError(f"k_fin must lie within k = 1 ... k_max = {self.k_max}, got {first} ... {last}")
        self.frequencies = np.arange(first, last + 1)
        self.mean_power = _mean_power(self.power_law, self.k_max)
        self.frequencies.flags.writeable = False
        self.mean_power.flags.writeable = False

    def __repr__(self):
        arguments = [f"k_max={self.k_max}, k_fin={self.k_fin}, set_size={self.set_size}"]
        arguments += [f"{name}={getattr(self, name)!r}" for name in ("power_law", "amplitudes", "positions", "noise")]
        return f"PowerSpectrum({', '.join(arguments)}, output={self.output!r}, dtype={self.dtype.name!r})"

    @property
    def out_features(self):
        """Numbers per target: how many k are predicted."""
        return len(self.frequencies)

    def sample(self, batch, seed):
        """Draw functions and samples of them.

        The draws are made in this order, each for the whole batch: powers, phases, set sizes (only for a range of
        them), positions (set by set where ``positions`` is a callable), noise (only if ``noise`` > 0). The functions
        come first: one seed gives the same functions whatever the set sizes, positions and noise.

        Parameters
        ----------
        batch : int
            Number of sets.
        seed : int, sequence of int, SeedSequence or Generator
            As in `numpy.random.default_rng`, to which [7, 0] is the same seed as 7. The same seed gives the same batch;
            a Generator moves on with each call.

        Returns
        -------
        sets : Sets
            Values of shape (T, 2), of the task's dtype: the position in radians and the sample, with T the number of
            elements in all.
        targets : ndarray of float64, shape (batch, out_features)
            log p_k, or p_k where ``output="power"``, in the order of `frequencies`. A CuPy array with the backend
            "cuda", as are the values of the sets.

        Raises
        ------
        TypeError, ValueError
            If ``batch`` or ``seed`` is unusable, or one of the task's callables returns something unusable.
        """
        batch = check_integer(batch, "batch", minimum=1)
        generator = _generator(seed)
        if self.backend != "cuda":
            return self._sample(batch, generator)
        kernels = backends.get("cuda")
        if self._calls_back:
            sets, targets = self._sample(batch, generator)
            return Sets._trusted(kernels.xp.asarray(sets.values), sets.offsets, None), kernels.xp.asarray(targets)
        key = _DeviceSampler.key(generator)
        sampler = _DeviceSampler(self, self._offsets(batch, generator), self.dtype, np.float64)
        sampler.draw(key)
        return sampler.sets, sampler.targets

    def device_sampler(self, batch, dtype):
        """Return what draws batches of one size on the GPU without asking the host, as `train` does there.

        Parameters
        ----------
        batch : int
            Number of sets.
        dtype : numpy.dtype
            Type of values and targets.

        Returns
        -------
        sampler : object or None
            ``key(generator)`` takes from a generator what ``draw(key)`` then draws a batch from, into ``sets`` and
            ``targets``; None if the task is not on the backend "cuda", if sets differ in size, or if callables draw.
        """
        own = type(self).sample is PowerSpectrum.sample
        if self.backend != "cuda" or self._calls_back or isinstance(self.set_size, tuple) or not own:
            return None
        return _DeviceSampler(self, self._offsets(batch, None), dtype, dtype)

    def _sample(self, batch, generator):
        """Draw a batch on the host."""
        powers, coefficients = self._draw(batch, generator)
        offsets = self._offsets(batch, generator)

        # Rounded first, so that the samples belong to the positions that are handed out.
        x = self._draw_positions(offsets, generator).astype(self.dtype).astype(np.float64)
        y = np.empty_like(x)
        host = "auto" if self.backend == "cuda" else self.backend
        backends.get(backends.for_numpy(host)).fourier_series(x, offsets, coefficients, y=y)
        if self.noise > 0:
            y += self.noise * generator.standard_normal(len(y))

        values = np.empty((len(x), 2), self.dtype)
        values[:, 0] = x
        values[:, 1] = y
        powers = powers[:, self.frequencies - 1]
        return Sets(values, offsets), np.log(powers) if self.output == "log" else powers

    def to(self, backend):
        """Return a copy of this task on another backend.

        Parameters
        ----------
        backend : {"auto", "cpu", "reference", "cuda"}
            What evaluates f for the copy.

        Returns
        -------
        task : PowerSpectrum

        Raises
        ------
        RuntimeError
            If it is "cuda", which is not available here.
        """
        copied = copy.copy(self)
        copied.backend = _check_backend(backend)
        return copied

    def beside(self, backend):
        """Return this task where a network on a backend finds its sets: on the GPU, if "auto" left that open.

        Parameters
        ----------
        backend : str
            That of the network.

        Returns
        -------
        task : PowerSpectrum
            Itself, or a copy. A subclass with a ``sample`` of its own stays where it is.
        """
        own = type(self).sample is not PowerSpectrum.sample
        return self if backend != "cuda" or self.backend != "auto" or own else self.to("cuda")

    def draw(self, batch, seed):
        """Draw functions only: their Fourier coefficients, for `evaluate_series`.

        Parameters
        ----------
        batch : int
            Number of functions.
        seed : int, sequence of int, SeedSequence or Generator
            `sample` of the same batch and seed has the same functions.

        Returns
        -------
        coefficients : ndarray of complex128, shape (batch, k_max)
            √p_k e^{iφ_k} for k = 1 ... k_max.

        Raises
        ------
        TypeError, ValueError
            As in `sample`.
        """
        batch, generator = check_integer(batch, "batch", minimum=1), _generator(seed)
        if self.backend == "cuda" and not self._calls_back:
            offsets = np.arange(batch + 1)
            return on_host(_DeviceSampler(self, offsets, self.dtype, np.float64).draw(_DeviceSampler.key(generator)))
        return self._draw(batch, generator)[1]

    def prior_mean(self):
        """Return the mean of the target: the best answer without looking at the samples.

        Returns
        -------
        means : ndarray of float64, shape (out_features,), or None
            The mean of log p_k, or of p_k where ``output="power"``; None where ``amplitudes`` is a callable, whose
            law is unknown.
        """
        if callable(self.amplitudes):
            return None
        mean = self.mean_power[self.frequencies - 1]
        return np.log(mean) + _MEAN_OF_LOG[self.amplitudes] if self.output == "log" else mean

    def prior_mean_error(self):
        """Return the error of ignoring the data: the mean squared error of always predicting the target's mean.

        It is the variance of the target. For log p_k that is π²/6 ≈ 1.645 ("exponential"), 0 ("fixed") or 1
        ("lognormal") at every k; for p_k it is the squared mean of p_k times 1, 0 or e - 1.

        Returns
        -------
        errors : ndarray of float64, shape (out_features,), or None
            One number per predicted frequency; None where ``amplitudes`` is a callable, whose variance is unknown.
        """
        if callable(self.amplitudes):
            return None
        if self.output == "log":
            return np.full(self.out_features, _VARIANCE_OF_LOG[self.amplitudes])
        return _VARIANCE_OVER_MEAN_SQUARED[self.amplitudes] * self.mean_power[self.frequencies - 1] ** 2

    def config(self):
        """Return the arguments of the constructor, all but ``backend``, in types that JSON can write.

        Returns
        -------
        config : dict
            For `from_config`.

        Raises
        ------
        ValueError
            If an argument is a callable, which cannot be written down.
        """
        for name in ("power_law", "amplitudes", "positions"):
            if callable(getattr(self, name)):
                raise ValueError(f"{name} is a callable ({getattr(self, name)!r}) and cannot be written down")
        return {
            "k_max": self.k_max,
            "k_fin": list(self.k_fin) if isinstance(self.k_fin, tuple) else self.k_fin,
            "set_size": list(self.set_size) if isinstance(self.set_size, tuple) else self.set_size,
            "power_law": self.power_law,
            "amplitudes": self.amplitudes,
            "positions": self.positions,
            "noise": self.noise,
            "output": self.output,
            "dtype": self.dtype.name,
        }

    @classmethod
    def from_config(cls, config, *, backend="auto"):
        """Return the task that `config` describes.

        Parameters
        ----------
        config : dict
            What `config` returned; what is left out takes its default.
        backend : {"auto", "cpu", "reference", "cuda"}, default "auto"
            What evaluates f.

        Returns
        -------
        task : PowerSpectrum

        Raises
        ------
        TypeError, ValueError
            If the dict has an unknown name or an unusable value.
        """
        known = cls().config()
        unknown = [name for name in config if name not in known]
        if unknown:
            raise ValueError(
                f"config has unknown names {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}"
            )
        return cls(**config, backend=backend)

    def _draw(self, batch, generator):
        mean = np.tile(self.mean_power, (batch, 1))
        if callable(self.amplitudes):
            powers = self._check_powers(self.amplitudes(generator, mean), mean.shape)
        else:
            powers = _AMPLITUDES[self.amplitudes](generator, mean)
        phases = generator.uniform(0, 2 * np.pi, mean.shape)
        return powers, np.sqrt(powers) * np.exp(1j * phases)

    def _check_powers(self, powers, shape):
        powers = _check_returned(powers, "amplitudes", shape)
        if (powers < 0).any():
            raise ValueError(f"amplitudes must return powers that are not negative, got {powers.min():g}")
        if self.output == "log" and not powers[:, self.frequencies - 1].all():
            raise ValueError(
                "amplitudes returned a power of zero in the predicted band, whose logarithm is -inf; "
                "return positive powers or use output='power'"
            )
        return powers

    @property
    def _calls_back(self):
        """Whether a draw asks functions of the user's, who get and return what lies on the host."""
        return callable(self.amplitudes) or callable(self.positions)

    def _offsets(self, batch, generator):
        """Return offsets of sets, whose sizes are drawn if they have a range."""
        if not isinstance(self.set_size, tuple):
            return self.set_size * np.arange(batch + 1, dtype=np.int64)
        sizes = generator.integers(*self.set_size, size=batch, endpoint=True)
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64, copy=False)

    def _draw_positions(self, offsets, generator):
        if not callable(self.positions):
            return generator.uniform(0, 2 * np.pi, offsets[-1])
        x = np.empty(offsets[-1])
        for first, last in pairwise(offsets):
            size = int(last - first)
            x[first:last] = _check_returned(self.positions(generator, size), "positions", (size,))
        return x


class _DeviceSampler:
    """Batches of a task whose functions are no callables, drawn on the GPU into the same arrays every time."""

    def __init__(self, task, offsets, dtype, target_dtype):
        self._kernels, batch = backends.get("cuda"), len(offsets) - 1
        xp = self._kernels.xp
        self._coefficients = xp.empty((batch, task.k_max), np.complex128)
        self.targets = xp.empty((batch, task.out_features), target_dtype)
        self.sets = Sets._trusted(xp.empty((int(offsets[-1]), 2), dtype), offsets, None)
        self._law = task.mean_power, task.amplitudes, int(task.frequencies[0]), task.output == "log"
        self._noise = task.noise

    @staticmethod
    def key(generator):
        """Return what a batch is drawn from: 63 bits of the generator, which moves on."""
        return int(generator.integers(1 << 63, dtype=np.uint64))

    def draw(self, key):
        """Draw a batch from a key, or from an array on the GPU that has it, and return its Fourier coefficients."""
        c = self._coefficients
        self._kernels.random_functions(key, *self._law, coefficients=c, targets=self.targets)
        self._kernels.random_samples(key, self.sets.offsets, c, self._noise, values=self.sets.values)
        return c


def evaluate_series(x, coefficients, *, backend="auto"):
    """Evaluate real Fourier series, f(x) = Re Σ_k c_k e^{ikx}.

    Parameters
    ----------
    x : array_like, shape (n,) or (S, n)
        Positions in radians: the same for all series, or a row for each.
    coefficients : array_like of complex, shape (k_max,) or (S, k_max)
        c_k for k = 1 ... k_max, of one series for all rows of ``x`` or of a series for each, as from
        `PowerSpectrum.draw`.
    backend : {"auto", "cpu", "reference"}, default "auto"
        What evaluates the series.

    Returns
    -------
    y : ndarray of float64, shape (n,) or (S, n)
        The values; of shape (n,) where both ``x`` and ``coefficients`` have one dimension.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> from fastperm.power_spectrum import evaluate_series
    >>> evaluate_series([0.0, 3.141592653589793], [1, 0.5]).round(6).tolist()
    [1.5, -0.5]
    """
    x = np.asarray(x, np.float64)
    coefficients = np.asarray(coefficients, np.complex128)
    check_choice(backend, "backend", ("auto", "cpu", "reference"))
    if coefficients.ndim not in (1, 2) or x.ndim not in (1, 2):
        raise ValueError(
            "expected x of shape (n,) or (S, n) and coefficients of shape (k_max,) or (S, k_max), "
            f"got {x.shape} and {coefficients.shape}"
        )
    rows, series = np.atleast_2d(x), np.atleast_2d(coefficients)
    S, n = max(len(rows), len(series)), rows.shape[1]
    if len(rows) not in (1, S) or len(series) not in (1, S):
        raise ValueError(f"expected as many rows of x as series, or one, got {len(rows)} and {len(series)}")
    rows = np.array(np.broadcast_to(rows, (S, n)), order="C")
    series = np.array(np.broadcast_to(series, (S, series.shape[1])), order="C")
    y = np.empty((S, n))
    backends.get(backends.for_numpy(backend)).fourier_series(rows.ravel(), n * np.arange(S + 1), series, y=y.ravel())
    return y[0] if coefficients.ndim == x.ndim == 1 else y


def _generator(seed):
    if seed is None:
        raise TypeError("seed must be an integer, a sequence of integers, a SeedSequence or a Generator, got None")
    return check_generator(seed)


def _check_backend(name):
    """Return the name, or say at once that there is no GPU."""
    check_choice(name, "backend", ("auto", *backends.BACKENDS))
    return backends.resolve(name) if name == "cuda" else name


def _check_integer_or_pair(value, name):
    """Return a positive integer, or a tuple of two with the first not above the second."""
    if not isinstance(value, (tuple, list)):
        return check_integer(value, name, minimum=1)
    if len(value) != 2:
        raise ValueError(f"{name} must be an integer or a pair of them, got {value!r}")
    first, last = (check_integer(number, name, minimum=1) for number in value)
    if first > last:
        raise ValueError(f"{name} must be a pair (first, last) with first <= last, got ({first}, {last})")
    return first, last


def _mean_power(power_law, k_max):
    k = np.arange(1.0, k_max + 1)
    if callable(power_law):
        mean = _check_returned(power_law(k), "power_law", k.shape).copy()
    else:
        with np.errstate(over="ignore", under="ignore"):  # refused below
            mean = k ** -(2.0 if power_law is None else power_law)
    unusable = np.flatnonzero(~(np.isfinite(mean) & (mean > 0)))
    if len(unusable):
        first = unusable[0]
        raise ValueError(f"power_law must give positive finite means, got {mean[first]:g} at k = {first + 1}")
    return mean


def _check_returned(values, name, shape):
    """Return what a callable argument returned as finite float64 of the expected shape."""
    values = np.asarray(values, np.float64)
    if values.shape != shape:
        raise ValueError(f"{name} must return an array of shape {shape}, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must return finite numbers, got NaN or infinity")
    return values
