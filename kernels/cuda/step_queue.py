"""Training steps that are launched again and again, each as one graph (`graphs.py`) with the same arguments.

`StepQueue` takes steps for which the host does not wait. What changes from step to step goes before the graph, by one
launch: the key of the batch, the rate of Adam, and the loss of the step before, which would be overwritten. If that is
not finite, no step changes anything any more.

`SingleStep` is for a step that the host waits for. Then nothing goes before or behind the graph: its first kernel takes
the rate from memory of the host, and its last one leaves the loss there (`mapped.py`).
"""

import math
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel, load, xp
from fastperm.kernels.cuda.graphs import Graph
from fastperm.kernels.cuda.mapped import MappedNumber

THREADS = 4 if SIMULATED else 256


class StepQueue:
    """Training steps that may wait for each other.

    Parameters
    ----------
    work : callable
        ``work(keys, rates)`` makes the launches of a step, once, and returns its loss as an array on the GPU. It takes
        the key of the batch and the rate of Adam from these arrays, (1,) each.
    gradients : array of shape (P,)
        They are zero when the work begins.
    capacity : int
        Steps that may wait for `losses`.

    Attributes
    ----------
    waiting : int
        Steps whose losses are not known.
    """

    def __init__(self, work, gradients, capacity):
        self._keys, self._rates = xp().zeros(1, np.int64), xp().zeros(1, np.float32)
        self._history = xp().zeros(capacity, np.float64)
        self._blocks, self._size = -(-gradients.size // THREADS), gradients.size
        self._arrays = self._keys, self._rates, self._history, gradients
        self._work = work
        self._graph: Any = None
        self.waiting = 0

    def step(self, rate, key):
        """Queue a step, at this rate of Adam and with this key, which is below 2⁶³."""
        before = self._graph.result if self.waiting else None
        _begin_step(self._blocks, key, rate, self.waiting - 1, before, self._size, *self._arrays)
        if self._graph is None:
            self._graph = Graph(partial(self._work, self._keys, self._rates))
            self._work = None
        else:
            self._graph.launch()
        self.waiting += 1

    @property
    def recorded(self):
        """Whether there has been a step."""
        return self._graph is not None

    def losses(self):
        """Wait for all steps and return their losses, of which those after one that is not finite mean nothing."""
        if not self.waiting:
            return []
        earlier = on_host(self._history[: self.waiting - 1]) if self.waiting > 1 else ()
        self.waiting = 0
        return [*map(float, earlier), float(self._graph.result)]


class SingleStep:
    """A training step on one batch, which the host waits for every time.

    Parameters
    ----------
    work : callable
        ``work(rates)`` makes the launches of the step, once, and returns its loss as an array on the GPU. It takes the
        rate of Adam from this array, (1,).
    gradients : array of shape (P,)
        They are zero when the work begins.
    lent : sequence of arrays
        What the work takes that is not to be kept: it is in the same place every time.

    Attributes
    ----------
    waiting : bool
        Whether there has been a step whose loss nobody has waited for.
    """

    def __init__(self, work, gradients, lent=()):
        self._rates = xp().zeros(1, np.float32)
        self._rate, self._loss = MappedNumber(np.float32), MappedNumber(np.float64)
        self._gradients, self._work, self._lent = gradients, work, lent
        self._graph: Any = None
        self._stream: Any = None
        self.waiting = False

    def __del__(self):
        # The memory that an interrupted step leaves its loss in must not be another's by then.
        if getattr(self, "waiting", False) and not SIMULATED:
            with suppress(Exception):
                self._stream.synchronize()

    def step(self, rate):
        """Begin the step, at this rate of Adam."""
        if self.waiting:  # an interruption came between: the GPU may not have read the last rate yet
            self.losses()
        self._rate.on_host[0] = rate
        self.waiting = True  # before it is: an interruption may come at once
        try:
            if self._graph is None:
                self._begin()
            else:
                self._graph.launch()
        except MemoryError:
            self.waiting = False
            raise

    def losses(self):
        """Wait for the step, and return its loss in a list."""
        if not SIMULATED:
            xp().cuda.get_current_stream().synchronize()
        self.waiting = False
        return [self._loss.on_host.item()]

    def _begin(self):
        if not SIMULATED:
            self._stream = xp().cuda.get_current_stream()
            load(_end_single_step.name)  # what comes behind Adam has to be there before it
        self._graph = Graph(self._whole, self._lent)
        self._work = self._lent = None

    def _whole(self):
        gradients = self._gradients
        _begin_single_step(-(-gradients.size // THREADS), self._rate, gradients.size, self._rates, gradients)
        _end_single_step(1, self._work(self._rates), self._loss)


@kernel("f4* i8 f4* f4*", threads=THREADS)
def _begin_single_step(
    given,  # (1,), of the host
    size,  # P
    rates,  # (1,)
    gradients,  # (P,)
):
    i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if i < size:
        gradients[i] = np.float32(0)
    if i == 0:
        rates[0] = given[0]


@kernel("f8* f8*", threads=1)
def _end_single_step(
    loss,  # (1,)
    left,  # (1,), of the host
):
    left[0] = loss[0]


@kernel("i8 f4 i8 f8* i8 i8* f4* f8* f4*", threads=THREADS)
def _begin_step(
    key,
    rate,
    place,  # of the loss of the step before; −1: there is none that is not known
    loss,  # (1,)
    size,  # P
    keys,  # (1,)
    rates,  # (1,)
    history,  # (capacity,)
    gradients,  # (P,)
):
    i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    if i < size:
        gradients[i] = np.float32(0)
    if i == 0:
        if place >= 0:
            history[place] = loss[0]
            if not (math.isfinite(loss[0]) and math.isfinite(rates[0])):
                rate = np.float32(np.nan)
        keys[0] = key
        rates[0] = rate
