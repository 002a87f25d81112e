"""Everything that is timed, under one interface (see `rivals`), and what one training step of it costs on paper."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fastperm import Adam, DeepSet, PowerSpectrum, Sets, train_step


class Case(NamedTuple):
    """A network and a batch; the defaults are the headline network on the headline task."""

    width: int = 64
    depth: int = 4
    out_features: int = 4
    set_size: int = 512
    batch: int = 256
    dtype: str = "float32"
    seed: int = 0

    def network(self, backend="reference"):
        """Return the network; the same parameters whatever the backend."""
        return DeepSet(2, self.width, self.depth, self.out_features, dtype=self.dtype, backend=backend, seed=self.seed)

    def sample(self, batch=None):
        """Return x (batch, set_size, 2) and targets (batch, out_features) of the power-spectrum task."""
        batch = self.batch if batch is None else batch
        task = PowerSpectrum(self.out_features, self.out_features, self.set_size, dtype=self.dtype)
        sets, targets = task.sample(batch, self.seed)
        return sets.values.reshape(batch, self.set_size, 2), targets.astype(self.dtype)

    def network_flops(self):
        """Return the flops of the matrix products of one step, a multiplication and an addition counting as two.

        Forward, gradient of the weights, and gradient of the input in all layers but the first.
        """
        inputs = (2, *(self.width,) * (self.depth - 1))
        elements = self.batch * self.set_size
        layers = sum((2 if i == 0 else 3) * (elements + self.batch) * K * self.width for i, K in enumerate(inputs))
        return 2 * (layers + 3 * self.batch * self.width * self.out_features)


class Ours:
    """Training of a `fastperm.DeepSet`.

    Parameters
    ----------
    net : DeepSet
        The network; it is trained in place.
    """

    def __init__(self, net):
        self.net = net
        self.optimizer = Adam()

    @property
    def n_parameters(self):
        """Number of trainable numbers."""
        return self.net.n_parameters

    def batch(self, x, targets):
        """Return the batch as `Sets` and targets."""
        return Sets.dense(x), targets

    def step(self, sets, targets):
        """Take one training step and return its loss."""
        return train_step(self.net, sets, targets, self.optimizer)

    def evaluate(self, sets, targets):
        """Return prediction, loss and the gradient of every parameter, by the pass that `step` takes."""
        loss = self.net.loss_and_gradients(sets, targets)
        return self.net(sets), loss, {name: array.copy() for name, array in self.net.gradients.items()}


class Contender(NamedTuple):
    """Something that is timed."""

    label: str
    make: Callable[[Case], Any]
    flops: Callable[[Case], int] = Case.network_flops


# Rivals are imported when they are made: each runs in a process of its own, and may not be installed.


def _dense_network(case):
    from rivals.dense_network import DenseNetwork

    return DenseNetwork(case.network(), case.set_size)


def _dense_network_flops(case):
    from rivals.dense_network import HIDDEN

    return 2 * case.batch * HIDDEN * (2 * 2 * case.set_size + 3 * case.out_features)


def _torch_deepset(case, *, compiled):
    from rivals.torch_deepset import TorchDeepSet

    return TorchDeepSet(case.network(), compiled=compiled)


def _jax_deepset(case):
    from rivals.jax_deepset import JaxDeepSet

    return JaxDeepSet(case.network())


OURS = "fastperm-cpu"
CONTENDERS = {
    OURS: Contender("fastperm, cpu", lambda case: Ours(case.network("cpu"))),
    "fastperm-reference": Contender("fastperm, reference (NumPy)", lambda case: Ours(case.network("reference"))),
    "torch-eager": Contender("PyTorch, eager", lambda case: _torch_deepset(case, compiled=False)),
    "torch-compile": Contender("PyTorch, torch.compile", lambda case: _torch_deepset(case, compiled=True)),
    "jax-jit": Contender("JAX, jit", _jax_deepset),
    "dense-network": Contender("dense layer on the flattened set (NumPy)", _dense_network, _dense_network_flops),
}
