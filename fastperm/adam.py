"""The Adam optimiser, in TensorFlow's form and with its defaults."""

import numpy as np

from fastperm import backend as backends
from fastperm.checks import DTYPES, check_number
from fastperm.kernels.arrays import on_backend, on_host


class Adam:
    r"""Adam (Kingma & Ba 2014): p ← p − lr_t · m / (√v + ε), lr_t = lr · √(1 − β2^t) / (1 − β1^t).

    TensorFlow's form: ε is outside the bias correction. (In these terms PyTorch's ε is smaller, by √(1 − β2^t).)

    Parameters
    ----------
    learning_rate : float, default=1e-3
        lr. The attribute may be changed between steps.
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
        self.learning_rate = check_number(learning_rate, "learning_rate", above=0)
        self.beta1 = check_number(beta1, "beta1", minimum=0, below=1)
        self.beta2 = check_number(beta2, "beta2", minimum=0, below=1)
        self.epsilon = check_number(epsilon, "epsilon", above=0)
        self.steps = 0
        self._moments = {}

    def config(self):
        """Return the constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "epsilon": self.epsilon,
        }

    def __repr__(self):
        return f"Adam({', '.join(f'{name}={value:g}' for name, value in self.config().items())}, steps={self.steps})"

    def step(self, parameters, gradients):
        """Take one step: change the arrays in ``parameters`` in place.

        Parameters
        ----------
        parameters : dict of str to ndarray
            Writable C-contiguous arrays, float32 or float64. The same names and shapes at every step.
        gradients : dict of str to ndarray
            A gradient of the same shape and dtype for every parameter.

        Raises
        ------
        TypeError
            If something is not an array, or a parameter not float32 or float64 in native byte order.
        ValueError
            If names, shapes or dtypes do not match. Whatever is wrong is found before anything has changed.
        """
        self._check(parameters, gradients)
        kernels = getattr(parameters, "kernels", None) or backends.get(backends.for_numpy("auto"))
        if not self._moments:
            self._moments = {
                name: (kernels.xp.zeros_like(array), kernels.xp.zeros_like(array)) for name, array in parameters.items()
            }
        self.steps += 1
        for name, array in parameters.items():
            # They come from the host if the state was loaded, and from elsewhere if the network moved.
            m, v = self._moments[name] = tuple(on_backend(moment, kernels.xp) for moment in self._moments[name])
            kernels.adam_step(
                gradients[name].reshape(-1),
                *(self.learning_rate, self.beta1, self.beta2, self.epsilon, self.steps),
                p=array.reshape(-1),
                m=m.reshape(-1),
                v=v.reshape(-1),
            )

    def state(self):
        """Return the state as NumPy arrays: ``steps``, and ``first.NAME`` and ``second.NAME`` for every parameter."""
        state = {"steps": np.array(self.steps)}
        for name, (m, v) in self._moments.items():
            state[f"first.{name}"] = on_host(m).copy()
            state[f"second.{name}"] = on_host(v).copy()
        return state

    def load_state(self, state):
        """Take over a state that `state` returned."""
        names = [name.removeprefix("first.") for name in state if name.startswith("first.")]
        self._moments = {name: (state[f"first.{name}"].copy(), state[f"second.{name}"].copy()) for name in names}
        self.steps = int(state["steps"])

    def _check(self, parameters, gradients):
        if self._moments and self._moments.keys() != parameters.keys():
            different = ", ".join(sorted(self._moments.keys() ^ parameters.keys()))
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
            if self._moments:
                wanted["it at the earlier steps"] = self._moments[name][0]
            for what, other in wanted.items():
                if other.shape != array.shape or other.dtype != array.dtype:
                    raise ValueError(
                        f"parameter {name!r} is {array.dtype} of shape {array.shape}, "
                        f"but {what} is {other.dtype} of shape {other.shape}"
                    )


def _check_array(array, name):
    """Refuse what is not an array, of NumPy or of a library like it."""
    if not all(hasattr(array, attribute) for attribute in ("dtype", "flags", "shape")):
        raise TypeError(f"{name} must be an array, got {type(array).__name__}")
