"""Numba's simulator of a GPU, with threads that take turns.

Its own are threads of Python, and one more that asks all of them, again and again, whether they wait: more than nine
tenths of the time. Here a thread of a block is a greenlet. It runs until it waits for its block, or is interrupted
where it calls a function; then it is another's turn. The order is another one each time, but the same in every run.
So a barrier that is missing shows: of two threads that touch one number between two barriers, either may be the first.
"""

import random
import sys
from collections import deque
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import greenlet
import numpy as np
import pytest
from numba.cuda.simulator import kernel, kernelapi

# Calls of functions from one interruption of a thread to the next one of any thread: a prime, to meet all of them, and
# large: threads that are interrupted often stay side by side, and a missing barrier between them does not show.
BETWEEN_INTERRUPTIONS = 499


class Thread(greenlet.greenlet):
    """A thread of a block; to its parent, which gives out the turns, it says whether it waits for the others."""

    def __init__(self, body, block, thread):
        super().__init__(body)
        self.blockIdx, self.threadIdx = kernelapi.Dim3(*block), kernelapi.Dim3(*thread)

    def syncthreads(self):
        self.parent.switch(True)

    def interrupt(self):
        self.parent.switch(False)


class Block:
    """Takes the place of the simulator's `BlockManager`."""

    def __init__(self, function, grid, shape, debug):
        self.function, self.shape = function, shape

    def run(self, place, *arguments):
        def body():
            self.function(*arguments)

        waiting = [Thread(body, place, thread) for thread in np.ndindex(*self.shape)]
        order = random.Random(place[0])
        while waiting:
            order.shuffle(waiting)
            running, waiting = deque(waiting), []
            while running:
                thread = running.popleft()
                try:
                    waits = thread.switch()
                except Exception as error:
                    error.add_note(f"in thread {thread.threadIdx} of block {thread.blockIdx}")
                    raise
                if not thread.dead:
                    (waiting if waits else running).append(thread)


class Shared(kernelapi.FakeCUDAShared):
    """Shared memory that is NaN, or -1, until something is written there."""

    def __init__(self, size):
        super().__init__(size)
        self._dynshared[:] = -1

    def array(self, shape, dtype):
        if shape == 0:
            return super().array(shape, dtype)
        caller = sys._getframe(1)
        place = caller.f_code, caller.f_lineno
        if place not in self._allocations:
            if isinstance(dtype, kernelapi.types.Type):
                dtype = kernelapi.numpy_support.as_dtype(dtype)
            size = np.prod(shape, dtype=int) * np.dtype(dtype).itemsize
            self._allocations[place] = np.full(size, -1, np.byte).view(dtype).reshape(shape)
        return self._allocations[place]


@contextmanager
def threads_that_take_turns():
    """Have the simulator run kernels so."""
    calls, launch = count(1), kernel.FakeCUDAKernel.__call__

    def call(self, *arguments):
        if not self._device:
            return launch(self, *arguments)
        if next(calls) % BETWEEN_INTERRUPTIONS == 0:
            greenlet.getcurrent().interrupt()
        # The simulator would look for ``cuda`` in the function's module, to replace it: it stands in the kernel's.
        return self.fn(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernelapi, "threading", SimpleNamespace(current_thread=greenlet.getcurrent))
        patch.setattr(kernelapi, "FakeCUDAShared", Shared)
        patch.setattr(kernel, "BlockManager", Block)
        patch.setattr(kernel.FakeCUDAKernel, "__call__", call)
        yield
