"""Training steps: one alone, or one after another on fresh batches of a task, which a GPU takes without the host."""

from typing import Any

import numpy as np

from fastperm.adam import Adam
from fastperm.checks import check_device
from fastperm.kernels.arrays import on_gpu
from fastperm.kernels.reference.adam import adam_rate

# Steps that may be queued on a GPU: more of them than it takes in the time between two looks at it.
QUEUED = 4096


def train_step(net, sets, targets, optimizer, *, learning_rate=None):
    """Take one training step: forward, mean squared error, backward, Adam.

    Parameters
    ----------
    net : DeepSet
        The network. Its parameters change, and its gradients become those of this batch.
    sets : Sets or array-like
        The batch.
    targets : array-like of shape (S, out_features)
        What the network should predict; (T, out_features) without pooling.
    optimizer : Adam
        The optimiser.
    learning_rate : float or None, default=None
        That of this step alone; None for the optimiser's own.

    Returns
    -------
    float
        Mean squared error before the step.

    Raises
    ------
    FloatingPointError
        If the loss is not finite. Parameters and optimiser are then as they were.
    ValueError
        If sets or targets have the wrong shape.
    """
    loss = net._loss_and_gradients(sets, targets)
    waiting = on_gpu(loss) and type(optimizer).step is Adam.step
    if waiting:  # the GPU goes on with the step and looks at the loss itself
        before = optimizer.steps, list(optimizer._moments)
        optimizer._step(net.parameters, net.gradients, learning_rate, loss=loss)
    loss = float(loss)
    if not np.isfinite(loss):
        if waiting:
            optimizer.steps, optimizer._moments = before
        raise FloatingPointError(f"the loss is {loss}")
    if not waiting:
        own = {} if learning_rate is None else {"learning_rate": learning_rate}  # which other optimisers need not know
        optimizer.step(net.parameters, net.gradients, **own)
    return loss


class Steps:
    """Training steps on batches of a task.

    They are `train_step` each; or, where a GPU draws the batches and the kernels of a step are all ours, queued there
    as one CUDA graph, so that the host need not wait for a loss before it begins the next step.

    Parameters
    ----------
    net : DeepSet
        The network.
    task : object with ``sample(batch, generator) -> (sets, targets)``
        Where batches come from. If it has ``device_sampler(batch, dtype)``, that may return an object with ``sets``,
        ``targets``, ``key(generator)`` and ``draw(key)``, which draws the batch that `sample` would into them; or None.
    optimizer : Adam
        The optimiser.
    batch : int
        Sets per step.

    Attributes
    ----------
    capacity : int
        Steps after which one must ask for the losses.
    """

    def __init__(self, net, task, optimizer, batch):
        self._net, self._task, self._optimizer, self._batch = net, task, optimizer, batch
        self._losses: list[float] = []
        self._sampler: Any = None
        self._queue: Any = None
        if net.backend == "cuda" and type(optimizer).step is Adam.step:
            self._make_queue()
        self.capacity = 1 if self._queue is None else QUEUED

    def take(self, generator, learning_rate=None):
        """Take a step, or queue it, on the batch that this generator draws, at a learning rate of its own or not.

        Raises
        ------
        FloatingPointError
            If the loss is known and not finite. The parameters are then as they were before this step.
        """
        if self._queue is None:
            sets, targets = self._task.sample(self._batch, generator)
        else:
            key = self._sampler.key(generator)
            try:
                self._enqueue(key, self._optimizer.learning_rate if learning_rate is None else learning_rate)
                return
            except MemoryError:  # at the first step, before anything has changed; `train_step` goes on in halves
                sets, targets = self._sampler.sets, self._sampler.targets
                self._sampler.draw(key)
                self._queue, self.capacity = None, 1
        self._losses.append(train_step(self._net, sets, targets, self._optimizer, learning_rate=learning_rate))

    def losses(self):
        """Return the losses of the steps since the last call, in their order.

        There are none after one that is not finite: such steps have changed nothing.
        """
        if self._queue is None:
            found, self._losses = self._losses, []
            return found
        found = self._queue.losses()
        finite = np.isfinite(found)
        if not finite.all():
            known = int(np.argmin(finite))
            self._optimizer.steps -= len(found) - known
            found = found[: known + 1]
        return found

    def _make_queue(self):
        """Make the queue, if everything is as it takes it."""
        net = self._net
        plain = net.symmetry is None and net.scale is None and net.invariance == "rounding" and net.pool is not None
        sampler = getattr(self._task, "device_sampler", lambda *_: None)(self._batch, net.dtype) if plain else None
        if sampler is None or (self._task.in_features, self._task.out_features) != (net.in_features, net.out_features):
            return
        from fastperm.kernels.cuda.step_queue import StepQueue, why_not_queued

        _, *shape = net._whole()
        if why_not_queued(sampler.sets.offsets, *shape, **net._settings()) is None:
            check_device(net.parameters.flat, "the network")
            self._sampler, self._queue = sampler, StepQueue(net.gradients.flat, QUEUED)

    def _enqueue(self, key, learning_rate):
        optimizer, queue = self._optimizer, self._queue
        before = optimizer.steps
        rate = adam_rate(learning_rate, optimizer.beta1, optimizer.beta2, before + 1)
        queue.step(key, rate, self._work)
        optimizer.steps = before + 1

    def _work(self):
        """Take a step by launches alone, with what the queue says of key and rate."""
        net, sets = self._net, self._sampler.sets
        self._sampler.draw(self._queue.keys)
        batch = (*net._batch(sets), self._sampler.targets)
        loss = net.kernels.deep_set_step(*batch, *net._whole(), gradients=net.gradients.flat, **net._settings())
        self._optimizer._step(net.parameters, net.gradients, loss=loss, rates=self._queue.rates)
        return loss
