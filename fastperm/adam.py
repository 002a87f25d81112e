"""The Adam optimiser, in TensorFlow's form and with its defaults."""

import numpy as np

from fastperm import backend as backends
from fastperm.checks import DTYPES, check_integer, check_number
from fastperm.kernels.arrays import on_backend, on_host
from fastperm.parameters import Parameters

ORDERS = ("first.", "second.")  # of the moments, in what `Adam.state` returns


class Adam:
    r"""Adam (Kingma & Ba 2014): p ← p − lr_t · m / (√v + ε), lr_t = lr · √(1 − β2^t) / (1 − β1^t).

    TensorFlow's form: ε is outside the bias correction. (In these terms PyTorch's ε is smaller, by √(1 − β2^t).)

    Parameters
    ----------
    learning_rate : float, default=1e-3
        lr, at least 0. The attribute may be changed between steps.
    beta1 : float, default=0.9
        Decay of the mean of the gradient.
    beta2 : float, default=0.999
        Decay of the mean of its square.
    epsilon : float, default=1e-7
        ε.

    Attributes
    ----------
    steps : int
        Steps taken so far.

    Examples
    --------
    >>> import numpy as np, fastperm
    >>> parameters, optimizer = {"p": np.ones(3)}, fastperm.Adam(learning_rate=0.1)
    >>> optimizer.step(parameters, {"p": np.array([1.0, 2.0, 3.0])})
    >>> parameters["p"].round(6).tolist()  # the first step has the length of the learning rate
    [0.9, 0.9, 0.9]
    """

    def __init__(self, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-7):
        self.learning_rate = learning_rate
        self.beta1 = check_number(beta1, "beta1", minimum=0, below=1)
        self.beta2 = check_number(beta2, "beta2", minimum=0, below=1)
        self.epsilon = check_number(epsilon, "epsilon", above=0)
        self.steps = 0
        self._moments: list[dict] = [{}, {}]  # by name, in the order of ORDERS

    @property
    def learning_rate(self):
        """The rate of steps that are given none of their own."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self._learning_rate = check_number(learning_rate, "learning_rate", minimum=0)

    def config(self):
        """Return the constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "epsilon": self.epsilon,
        }

    def __repr__(self):
        settings = ", ".join(f"{name}={value:g}" for name, value in self.config().items())
        return f"{type(self).__name__}({settings}, steps={self.steps})"

    def step(self, parameters, gradients, *, learning_rate=None):
        """Take one step: change the arrays in ``parameters`` in place.

        Parameters
        ----------
        parameters : dict of str to ndarray
            Writable C-contiguous arrays, float32 or float64. The same names and shapes at every step.
        gradients : dict of str to ndarray
            A gradient of the same shape and dtype for every parameter.
        learning_rate : float or None, default=None
            That of this step alone; None for the optimiser's own.

        Raises
        ------
        TypeError
            If something is not an array, or a parameter not float32 or float64 in native byte order.
        ValueError
            If names, shapes or dtypes do not match. Whatever is wrong is found before anything has changed.
        """
        if learning_rate is not None:
            learning_rate = check_number(learning_rate, "learning_rate", minimum=0)
        self._step(parameters, gradients, learning_rate)

    def _step(self, parameters, gradients, learning_rate=None, **settings):
        """Do what `step` does, with settings of `adam_step` that only some backends know."""
        kernels = getattr(parameters, "kernels", None) or backends.get(backends.for_numpy("auto"))
        if not _alike(parameters, gradients, *self._moments):
            self._check(parameters, gradients)
            self._make_moments(parameters, _alike(parameters, gradients), kernels.xp)
        self.steps += 1
        together = (gradients, parameters, *self._moments)
        flat = _alike(*together)
        rate = self.learning_rate if learning_rate is None else learning_rate
        constants = (rate, self.beta1, self.beta2, self.epsilon, self.steps)
        for g, p, m, v in [[of.flat for of in together]] if flat else _by_name(*together):
            kernels.adam_step(g, *constants, p=p, m=m, v=v, **settings)

    def state(self):
        """Return the state as NumPy arrays: ``steps``, and ``first.NAME`` and ``second.NAME`` for every parameter."""
        state = {"steps": np.array(self.steps)}
        for order, moments in zip(ORDERS, self._moments, strict=True):
            state |= {order + name: on_host(array).copy() for name, array in moments.items()}
        return state

    def load_state(self, state):
        """Take over a state that `state` returned, of this optimiser or of another one.

        Raises
        ------
        ValueError, TypeError
            If it is no such state. Then nothing has changed.
        """
        if strange := [name for name in state if name != "steps" and not name.startswith(ORDERS)]:
            raise ValueError(f"expected 'steps', 'first.NAME' and 'second.NAME' in the state, got {', '.join(strange)}")
        if "steps" not in state:
            raise ValueError("the state has no 'steps'")
        steps = check_integer(state["steps"], "the steps of the state", minimum=0)
        first, second = (
            {name.removeprefix(order): _copied(array) for name, array in state.items() if name.startswith(order)}
            for order in ORDERS
        )
        if different := sorted(first.keys() ^ second.keys()):
            raise ValueError(f"the state has one of two moments of {', '.join(different)}")
        if steps > 0 and not first:
            raise ValueError(f"the state of {steps} steps has no moments")
        for name, array in first.items():
            other = second[name]
            if (array.shape, array.dtype) != (other.shape, other.dtype):
                raise ValueError(
                    f"the moments of {name} are {array.dtype} of shape {array.shape} and {other.dtype} of shape "
                    f"{other.shape}"
                )
            for order, moment in zip(ORDERS, (array, other), strict=True):
                # One may have overflowed to infinity; NaN would have spoilt the parameters.
                if np.isnan(on_host(moment)).any():
                    raise ValueError(f"the moment {order}{name} is NaN")
        self.steps, self._moments = steps, [first, second]

    def _check(self, parameters, gradients):
        first = self._moments[0]
        if first and first.keys() != parameters.keys():
            different = ", ".join(sorted(first.keys() ^ parameters.keys()))
            raise ValueError(f"the parameters are not those of the earlier steps; the names differ in {different}")
        for name, array in parameters.items():
            if name not in gradients:
                raise ValueError(f"no gradient for parameter {name!r}")
            _check_array(array, f"parameter {name!r}")
            _check_array(gradients[name], f"the gradient of parameter {name!r}")
            if array.dtype.name not in DTYPES or not array.dtype.isnative:
                raise TypeError(
                    f"parameter {name!r} must be float32 or float64 in native byte order, got dtype {array.dtype.str}"
                )
            if not (array.flags.c_contiguous and getattr(array.flags, "writeable", True)):
                raise ValueError(f"parameter {name!r} must be a writable C-contiguous array")
            wanted = {"its gradient": gradients[name]}
            if first:
                wanted["it at the earlier steps"] = first[name]
            for what, other in wanted.items():
                if other.shape != array.shape or other.dtype != array.dtype:
                    raise ValueError(
                        f"parameter {name!r} is {array.dtype} of shape {array.shape}, "
                        f"but {what} is {other.dtype} of shape {other.shape}"
                    )

    def _make_moments(self, parameters, flat, xp):
        """Make the moments zeros, or lay those of earlier steps out as the parameters are."""
        for i, earlier in enumerate(self._moments):
            # They come from the host if the state was loaded, and from elsewhere if the network moved.
            moved = {name: on_backend(array, xp) for name, array in earlier.items()}
            if flat:
                self._moments[i] = parameters.like()
                for name, array in moved.items():
                    self._moments[i][name][...] = array
            else:
                self._moments[i] = moved or {name: xp.zeros_like(array) for name, array in parameters.items()}


def _alike(first, *others):
    """Return whether all of them lie in flat arrays, in the same way, so that one pass serves every name."""
    return all(isinstance(of, Parameters) and first.same_layout(of) for of in (first, *others))


def _by_name(gradients, parameters, first, second):
    """Yield the flat arrays of each parameter."""
    for name in parameters:
        yield [of[name].reshape(-1) for of in (gradients, parameters, first, second)]


def _copied(array):
    return array.copy() if hasattr(array, "copy") and hasattr(array, "dtype") else np.array(array)


def _check_array(array, name):
    """Refuse what is not an array, of NumPy or of a library like it."""
    if not all(hasattr(array, attribute) for attribute in ("dtype", "flags", "shape")):
        raise TypeError(f"{name} must be an array, got {type(array).__name__}")
