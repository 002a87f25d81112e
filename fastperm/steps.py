"""Training steps: one alone, or one after another on fresh batches of a task, which a GPU takes without the host."""

import math
from typing import Any

from fastperm.adam import Adam
from fastperm.checks import check_device, check_number, check_optimizer
from fastperm.kernels.arrays import on_gpu
from fastperm.kernels.reference.adam import adam_rate
from fastperm.losses import as_targets, flaw_of
from fastperm.parameters import Parameters
from fastperm.sets import Sets

# Steps that may be queued on a GPU: more of them than it takes in the time between two looks at it.
QUEUED = 4096
# Batches that `train_step` remembers in order to know them again, those whose steps it keeps as CUDA graphs, with the
# memory that they work in, and the most bytes of offsets to compare.
REMEMBERED, RECORDED, MOST_BYTES = 16, 4, 1 << 16
# What is recorded keeps its memory: all of it may have as many activations as a sixteenth of the GPU's memory holds.
BYTES_FOR_A_NUMBER = 16 * 4


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
    TypeError
        If the optimiser takes no steps.
    ValueError
        If sets or targets have the wrong shape.
    """
    check_optimizer(optimizer)
    sets = net.as_sets(sets) if hasattr(sets, "__next__") else sets  # which can be read once
    if learning_rate is not None and type(optimizer).step is Adam.step:
        learning_rate = check_number(learning_rate, "learning_rate", minimum=0)
    place = _place(net, sets, targets, optimizer)
    queue = net._recorded.get(place)
    if queue is None and place is not None:
        if _recordable(net, sets, targets, optimizer):
            queue = _queue_at(place, net, sets, targets, optimizer)
        else:
            place = None
    if queue is not None:
        if _enqueued(queue, optimizer, learning_rate):
            net._recorded.move_to_end(place)  # not earlier: now the GPU computes meanwhile
            (loss,) = _known_losses(queue, optimizer)
            if not math.isfinite(loss):
                raise _not_finite(loss, net, sets, targets)
            return loss
        net._make_room()
    loss = net._loss_and_gradients(sets, targets)
    waiting = on_gpu(loss) and type(optimizer).step is Adam.step
    if waiting:  # the GPU goes on with the step and looks at the loss itself
        before = optimizer.steps, list(optimizer._moments)
        optimizer._step(net.parameters, net.gradients, learning_rate, loss=loss)
    loss = float(loss)
    if not math.isfinite(loss):
        if waiting:
            optimizer.steps, optimizer._moments = before
        raise _not_finite(loss, net, sets, targets)
    if not waiting:
        own = {} if learning_rate is None else {"learning_rate": learning_rate}  # which other optimisers need not know
        optimizer.step(net.parameters, net.gradients, **own)
    if place is not None:  # whose batch has passed all checks
        _remember(place, net._recorded)
    return loss


def _not_finite(loss, net, sets, targets):
    flaw = flaw_of(as_targets(targets, net.prediction_shape(net.as_sets(sets)), net.dtype))
    return FloatingPointError(f"the loss is {loss}" + (f" (of the targets, {flaw})" if flaw else ""))


def sample(task, batch, generator):
    """Return sets and targets that a task draws.

    Raises
    ------
    TypeError
        If it returns anything else.
    """
    drawn = task.sample(batch, generator)
    if not (isinstance(drawn, (tuple, list)) and len(drawn) == 2):
        raise TypeError(f"the task's sample(batch, generator) must return (sets, targets), got {drawn!r:.80}")
    return drawn


class Steps:
    """Training steps on batches of a task.

    They are `train_step` each; or, where a GPU draws the batches and the kernels of a step are all ours, queued there
    as CUDA graphs, so that the host need not wait for a loss before it begins the next step.

    Parameters
    ----------
    net : DeepSet
        The network.
    task : object with ``sample(batch, generator) -> (sets, targets)``
        Where batches come from. If it has ``device_sampler(batch, dtype)``, that may return None, or an object with
        ``sets``, ``targets``, ``key(generator)`` and ``draw(key)``, which draws the batch that `sample` would, in this
        dtype, into them.
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
        self._recorded_for: Any = None
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
            sets, targets = sample(self._task, self._batch, generator)
        else:
            if self._queue.recorded and self._recorded_for != self._constants():
                self._losses += _known_losses(self._queue, self._optimizer)
                self._make_queue()
            key = self._sampler.key(generator)
            if _enqueued(self._queue, self._optimizer, learning_rate, key):
                self._recorded_for = self._constants()
                return
            # There is no memory for it, and nothing has changed. In halves there may be.
            sets, targets = self._sampler.sets, self._sampler.targets
            self._sampler.draw(key)
            self._queue, self.capacity = None, 1
        self._losses.append(train_step(self._net, sets, targets, self._optimizer, learning_rate=learning_rate))

    def losses(self):
        """Return the losses of the steps since the last call, in their order.

        There are none after one that is not finite: such steps have changed nothing.
        """
        found, self._losses = self._losses, []
        return found if self._queue is None else found + _known_losses(self._queue, self._optimizer)

    def _constants(self):
        """Return what of the optimiser is the same at every step that is recorded once."""
        optimizer = self._optimizer
        return optimizer.beta1, optimizer.beta2, optimizer.epsilon, *map(id, optimizer._moments)

    def _make_queue(self):
        """Make the queue, if task and network are as it takes them."""
        net, task = self._net, self._task
        sampler = getattr(task, "device_sampler", lambda *_: None)(self._batch, net.dtype)
        if sampler is None or (task.in_features, task.out_features) != (net.in_features, net.out_features):
            return
        from fastperm.kernels.cuda.step_queue import StepQueue

        if net.pool is None or why_one_by_one(net, sampler.sets.n_elements) is not None:
            return
        check_device(net.parameters.flat, "the network")
        self._sampler, optimizer = sampler, self._optimizer

        def work(keys, rates):
            sampler.draw(keys)
            return _launched(net, sampler.sets, sampler.targets, optimizer, rates)

        self._queue = StepQueue(work, net.gradients.flat, QUEUED)


def why_one_by_one(net, elements):
    """Return why steps on batches of so many elements are not recorded and done again, or None if they are."""
    if net.backend != "cuda":
        return "there is no GPU"
    if net.invariance == "bitwise":
        return "CuPy sorts the elements"
    if net._symmetries.ignores_angles and net.scale is None:
        return "CuPy leaves out the angles"
    numbers, most = elements * sum(net.widths), most_numbers()
    if numbers > most:
        return f"activations of {numbers:,} numbers, more than {most:,}"
    return None


def most_numbers():
    """Return how many activations all recorded steps may have on the current GPU."""
    from fastperm.kernels.cuda.compiling import memory_bytes

    return memory_bytes() // BYTES_FOR_A_NUMBER


def _launched(net, sets, targets, optimizer, rates):
    """Launch a step on arrays that are as the kernels take them, with gradients that are zero; return the loss."""
    sets, scales = net._symmetries.seen(sets, net.kernels)
    targets = net._symmetries.shifted(targets, scales, net.kernels, sign=-1)
    batch = (*net._batch(sets), targets)
    loss = net.kernels.deep_set_step(*batch, *net._whole(), gradients=net.gradients.flat, **net._settings())
    optimizer._step(net.parameters, net.gradients, loss=loss, rates=rates)
    return loss


def _enqueued(queue, optimizer, learning_rate, *key):
    """Queue a step and return True; False if there is no memory for it, and none is waiting before it."""
    before = optimizer.steps
    learning_rate = optimizer.learning_rate if learning_rate is None else learning_rate
    try:
        queue.step(adam_rate(learning_rate, optimizer.beta1, optimizer.beta2, before + 1), *key)
    except MemoryError:
        if queue.waiting:
            raise
        return False
    optimizer.steps = before + 1
    return True


def _known_losses(queue, optimizer):
    """Return the losses of all steps that are queued, up to one that is not finite, after which none has been taken."""
    found = queue.losses()
    if all(map(math.isfinite, found)):
        return found
    taken = [math.isfinite(loss) for loss in found].index(False)
    optimizer.steps -= len(found) - taken
    return found[: taken + 1]


def _queue_at(place, net, sets, targets, optimizer):
    """Return a new queue that takes steps on a batch, or None: it came for the first time, or is not recorded.

    A batch is known by where it lies: its numbers may be others.
    """
    known = net._recorded
    if place not in known:
        return None
    known.move_to_end(place)
    numbers = [_numbers(net, other) for other, queue in known.items() if queue is not None]
    if len(numbers) == RECORDED or sum(numbers) + _numbers(net, place) > most_numbers():
        return None
    known[place] = _batch_queue(net, sets, targets, optimizer)
    return known[place]


def _remember(place, known):
    """Take a place into those that are known, and forget the one that was not asked for longest."""
    if place not in known:
        known[place] = None
        if len(known) > REMEMBERED:
            known.popitem(last=False)


def _numbers(net, place):
    """Return how many activations a step on the batch in a place has."""
    (elements, _), *_ = place
    return elements * sum(net.widths)


def _batch_queue(net, sets, targets, optimizer):
    """Return a queue of steps on a batch."""
    from fastperm.kernels.cuda.step_queue import SingleStep

    def work(rates):
        return _launched(net, sets, targets, optimizer, rates)

    return SingleStep(work, net.gradients.flat, lent=(sets.values, sets.weights, targets))


def _place(net, sets, targets, optimizer):
    """Return where everything lies that a step reads and writes, and what else its launches depend on.

    None if some of it is not on a GPU, or steps on such a batch are not recorded at all. A GPU has nothing to do while
    this is found out, before every step. So what follows from the place is not checked here: once there is a graph, it
    was `_recordable`.
    """
    if net.backend != "cuda" or type(sets) is not Sets or type(optimizer).step is not Adam.step:
        return None
    values, offsets, weights = sets.values, sets.offsets, sets.weights
    if offsets.nbytes > MOST_BYTES:
        return None
    try:
        first, second = optimizer._moments
        place = (
            *(values.shape, values.data.ptr, values.strides, values.dtype),
            *(targets.shape, targets.data.ptr, targets.strides, targets.dtype),
            None if weights is None else weights.data.ptr,
            *(first.flat.data.ptr, second.flat.data.ptr),
        )
    except AttributeError:  # arrays of the host have no such address, and moments by name no flat array
        return None
    constants = optimizer.beta1, optimizer.beta2, optimizer.epsilon, net.precision, net.invariance
    return *place, *constants, *net.kernels.compiling.current_place(), offsets.tobytes()


def _recordable(net, sets, targets, optimizer):
    """Return whether steps in a place can be recorded: nothing has to be checked or moved before one."""
    if why_one_by_one(net, sets.n_elements) is not None:
        return False
    values, moments = sets.values, optimizer._moments
    if not (on_gpu(values) and isinstance(targets, type(values)) and all(isinstance(m, Parameters) for m in moments)):
        return False
    if not (values.dtype == targets.dtype == net.dtype and targets.flags.c_contiguous):
        return False
    fits = targets.shape == net.prediction_shape(sets) and sets.features == net.in_features
    return fits and net.parameters.same_layout(moments[0])
