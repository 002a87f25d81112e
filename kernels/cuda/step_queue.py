"""Training steps that are queued on the GPU, while the host does not wait for their losses.

A step is one graph (`graphs.py`), whose launches have the same arguments every time. What changes from step to step
goes before it, by one launch: the key of the batch, the rate of Adam, and the loss of the step before, which would be
overwritten. If that is not finite, no step changes anything any more.
"""

import math
from functools import partial
from typing import Any

import numpy as np

from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda.compiling import SIMULATED, cuda, kernel, xp
from fastperm.kernels.cuda.graphs import Graph

THREADS = 4 if SIMULATED else 256


class _PinnedNumber:
    """Where the host reads a float64 of the GPU: in memory that is pinned, so a copy goes there without another one."""

    def __init__(self):
        self._memory = xp().cuda.alloc_pinned_memory(np.dtype(np.float64).itemsize)
        self._number = np.frombuffer(self._memory, np.float64, 1)

    def read(self, array):
        """Wait for the current stream, and return the number in an array."""
        stream = xp().cuda.get_current_stream()
        array.data.copy_to_host_async(self._memory.ptr, self._number.nbytes, stream)
        stream.synchronize()
        return self._number.item()


class StepQueue:
    """Training steps whose launches are always the same.

    Parameters
    ----------
    work : callable
        ``work(keys, rates)`` makes the launches of a step, once, and returns its loss as an array on the GPU. It takes
        the key of the batch and the rate of Adam from these arrays, (1,) each.
    gradients : array of shape (P,)
        They are zero when the work begins.
    capacity : int, default=1
        Steps that may wait for `losses`.
    lent : sequence of arrays
        What the work takes that is not the queue's to keep: it is in the same place at every step.

    Attributes
    ----------
    waiting : int
        Steps whose losses are not known.
    """

    def __init__(self, work, gradients, capacity=1, lent=()):
        self._keys, self._rates = xp().zeros(1, np.int64), xp().zeros(1, np.float32)
        self._history = xp().zeros(capacity, np.float64)
        self._blocks, self._size = -(-gradients.size // THREADS), gradients.size
        self._arrays = self._keys, self._rates, self._history, gradients
        self._work, self._lent = work, lent
        self._graph: Any = None
        self._read = float if SIMULATED else _PinnedNumber().read
        self.waiting = 0

    def step(self, rate, key=0):
        """Queue a step, at this rate of Adam and with this key, which is below 2⁶³."""
        before = self._graph.result if self.waiting else None
        _begin_step(self._blocks, key, rate, self.waiting - 1, before, self._size, *self._arrays)
        if self._graph is None:
            self._graph = Graph(partial(self._work, self._keys, self._rates), self._lent)
            self._work = self._lent = None
        else:
            self._graph.launch()
        self.waiting += 1

    @property
    def recorded(self):
        """Whether there has been a step."""
        return self._graph is not None

    def forget(self):
        """Forget steps whose losses nobody has asked for, as after an interruption."""
        self.waiting = 0

    def losses(self):
        """Wait for all steps and return their losses, of which those after one that is not finite mean nothing."""
        if not self.waiting:
            return []
        earlier = on_host(self._history[: self.waiting - 1]) if self.waiting > 1 else ()
        self.waiting = 0
        return [*map(float, earlier), self._read(self._graph.result)]


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
