"""Everything that is timed, under one interface (see `rivals`)."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import costs
import numpy as np

from fastperm import Adam, DeepSet, PowerSpectrum, Sets, train_step
from fastperm.kernels.arrays import on_host


class Case(NamedTuple):
    """A network and a batch; the defaults are the headline network on the headline task."""

    width: int = 64
    depth: int = 4
    out_features: int = 4
    set_size: int = 512
    batch: int = 256
    dtype: str = "float32"
    seed: int = 0
    precision: str = "float32"  # of products on a GPU

    in_features = 2  # the task's x and f(x)

    def network(self, backend="reference", **settings):
        """Return the network; the same parameters whatever the backend."""
        shape = (self.in_features, self.width, self.depth, self.out_features)
        return DeepSet(*shape, dtype=self.dtype, backend=backend, seed=self.seed, **settings)

    def task(self):
        """Return the power-spectrum task."""
        return PowerSpectrum(self.out_features, self.out_features, self.set_size, dtype=self.dtype)

    def sample(self, batch=None):
        """Return x (batch, set_size, in_features) and targets (batch, out_features) of the power-spectrum task."""
        batch = self.batch if batch is None else batch
        sets, targets = self.task().sample(batch, self.seed)
        return sets.values.reshape(batch, self.set_size, self.in_features), np.ascontiguousarray(targets, self.dtype)


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

    def predict(self, sets):
        """Return the predictions."""
        return self.net(sets)

    def evaluate(self, sets, targets):
        """Return prediction, loss and the gradient of every parameter, by the pass that `step` takes."""
        loss = self.net.loss_and_gradients(sets, targets)
        return self.net(sets), loss, {name: array.copy() for name, array in self.net.gradients.items()}


class OursOnGpu(Ours):
    """The same on the cuda backend, with the batch on the GPU before it is asked for anything."""

    def __init__(self, net):
        super().__init__(net)
        self.xp = net.kernels.xp

    def precision(self):
        """Return what decides the precision of its products."""
        return {"precision": self.net.precision}

    def batch(self, x, targets):
        """Return the batch as `Sets` and targets on the GPU."""
        return super().batch(*map(self.xp.asarray, (x, targets)))

    def predict(self, sets):
        """Return the predictions, on the host."""
        return on_host(super().predict(sets))

    def step(self, sets, targets):
        """Take one training step, to its end, and return its loss."""
        loss = super().step(sets, targets)
        if self.xp is not np:  # the loss is there before Adam has run
            self.xp.cuda.get_current_stream().synchronize()
        return loss

    def evaluate(self, sets, targets):
        """Return prediction, loss and the gradient of every parameter, on the host."""
        prediction, loss, gradients = super().evaluate(sets, targets)
        return on_host(prediction), loss, {name: on_host(array) for name, array in gradients.items()}


class Contender(NamedTuple):
    """Something that is timed."""

    label: str
    make: Callable[[Case], Any]
    flops: Callable[[Case, str], int] = costs.flops


# Rivals are imported when they are made: each runs in a process of its own, and may not be installed.


def _dense_network(case):
    from rivals.dense_network import DenseNetwork

    return DenseNetwork(case.network(), case.set_size)


def _dense_network_flops(case, task):
    from rivals.dense_network import HIDDEN

    # The input needs no gradient.
    to_hidden, to_answer = (2, 3) if task == costs.STEP else (1, 1)
    return 2 * case.batch * HIDDEN * (to_hidden * case.in_features * case.set_size + to_answer * case.out_features)


def _torch_deepset(case, **how):
    from rivals.torch_deepset import TorchDeepSet

    return TorchDeepSet(case.network(), precision=case.precision, **how)


def _torch_graph(case):
    from rivals.torch_graph import TorchGraph

    return TorchGraph(case.network(), precision=case.precision)


def _jax_deepset(case):
    from rivals.jax_deepset import JaxDeepSet

    return JaxDeepSet(case.network(), precision=case.precision)


def _matrix_products(case):
    from rivals.matrix_products import MatrixProducts

    return MatrixProducts(case.network())


# M of the network on the circle.
ORDERS = 4


def _circle_flops(case, task):
    """Return those of the same network without a circle, and of what goes to and from its 2M harmonics."""
    # Z and E Q forward; dQ, and dx below the first layer, on the way back.
    products = 4 * case.depth - 1 if task == costs.STEP else 2 * case.depth
    return costs.flops(case, task) + products * 2 * case.batch * case.set_size * 2 * ORDERS * case.width


OURS, BITWISE, CIRCLE = "fastperm-cpu", "fastperm-cpu-bitwise", "fastperm-cpu-circle"
PRODUCTS = "matrix-products"
FRAMEWORKS = ("torch-eager", "torch-compile", "jax-jit")
CONTENDERS = {
    OURS: Contender("fastperm, cpu", lambda case: Ours(case.network("cpu"))),
    BITWISE: Contender("fastperm, cpu, bitwise", lambda case: Ours(case.network("cpu", invariance="bitwise"))),
    CIRCLE: Contender(
        "fastperm, cpu, angular",
        lambda case: Ours(case.network("cpu", symmetry="circle", orders=ORDERS)),
        _circle_flops,
    ),
    "fastperm-reference": Contender("fastperm, reference (NumPy)", lambda case: Ours(case.network("reference"))),
    "torch-eager": Contender("PyTorch, eager", lambda case: _torch_deepset(case, compiled=False)),
    "torch-compile": Contender("PyTorch, torch.compile", lambda case: _torch_deepset(case, compiled=True)),
    "jax-jit": Contender("JAX, jit", _jax_deepset),
    "dense-network": Contender("dense layer on the flattened set (NumPy)", _dense_network, _dense_network_flops),
    PRODUCTS: Contender("matrix products alone (NumPy SGEMM)", _matrix_products),
}

# On a GPU. In the simulator, where the program is tried out without one, rivals run on the processor.
OURS_ON_GPU = "fastperm-cuda"
FRAMEWORKS_ON_GPU = ("torch-eager", "torch-compile", "torch-graph", "jax-jit")
CONTENDERS_ON_GPU = {
    OURS_ON_GPU: Contender("fastperm, cuda", lambda case: OursOnGpu(case.network("cuda", precision=case.precision))),
    "fastperm-reference": CONTENDERS["fastperm-reference"],
    "torch-eager": Contender("PyTorch, eager", lambda case: _torch_deepset(case, device=_device())),
    "torch-compile": Contender(
        "PyTorch, torch.compile (max-autotune)",
        lambda case: _torch_deepset(case, compiled=True, mode="max-autotune", device=_device()),
    ),
    "torch-graph": Contender("PyTorch, torch.compile, whole step in a CUDA graph", _torch_graph),
    "jax-jit": Contender("JAX, jit", _jax_deepset),
}


def _device():
    return "cpu" if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else "cuda"
