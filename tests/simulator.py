"""Numba's simulator of a GPU, with threads that take turns.

Its own are threads of Python, and one more that asks all of them, again and again, whether they wait: more than nine
tenths of the time. Here a thread of a block is a greenlet. It runs until it waits for its block, or is interrupted
where it calls a function; then it is another's turn. The order is another one each time, but the same in every run.
So a barrier that is missing shows: of two threads that touch one number between two barriers, either may be the first.

Numba's runs one block after the other; here those of a cluster run together, each with shared memory of its own.
"""

import functools
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

from fastperm.kernels.cuda import compiling, vectors

# Calls of functions from one interruption of a thread to the next one of any thread: a prime, to meet all of them, and
# large: threads that are interrupted often stay side by side, and a missing barrier between them does not show.
BETWEEN_INTERRUPTIONS = 499

CLUSTERS = (1, 2, 4)

# What a thread says to those who give out the turns: wake me when all of my block, or of my cluster, have come here; or
# when it is my turn again.
FOR_BLOCK, FOR_CLUSTER, INTERRUPTED = "block", "cluster", "interrupted"


class Thread(greenlet.greenlet):
    """A thread of a block; to its parent, which gives out the turns, it says for whom it waits."""

    def __init__(self, body, block, place):
        super().__init__(body)
        self.block, self.blockIdx, self.threadIdx = block, block.place, place

    def syncthreads(self):
        self.parent.switch(FOR_BLOCK)

    def wait_for_cluster(self):
        self.parent.switch(FOR_CLUSTER)

    def interrupt(self):
        self.parent.switch(INTERRUPTED)


@functools.cache
def places(shape):
    """Return the places of the threads of a block."""
    return [kernelapi.Dim3(*place) for place in np.ndindex(*shape)]


class Block:
    """Threads that wait for each other."""

    def __init__(self, body, cluster, rank, place, shape):
        self.cluster, self.rank, self.place = cluster, rank, kernelapi.Dim3(*place)
        self.threads = [Thread(body, self, thread) for thread in places(shape)]
        self.waits_for_cluster = self.has_ended = False

    def run(self, order):
        """Let all threads run to where they wait for each other, or to their end."""
        order.shuffle(self.threads)
        running, self.threads, barriers = deque(self.threads), [], set()
        while running:
            thread = running.popleft()
            try:
                waits = thread.switch()
            except Exception as error:
                error.add_note(f"in thread {thread.threadIdx} of block {thread.blockIdx}")
                raise
            if thread.dead:
                continue
            if waits == INTERRUPTED:
                running.append(thread)
            else:
                self.threads.append(thread)
                barriers.add(waits)
        assert len(barriers) <= 1, f"threads of block {self.place} wait at barriers of both kinds"
        self.waits_for_cluster, self.has_ended = FOR_CLUSTER in barriers, not barriers


class Cluster:
    """Takes the place of the simulator's `BlockManager`: all its blocks run when the first of them is to be run."""

    size = 1

    def __init__(self, function, grid, shape, debug):
        assert grid[0] % self.size == 0, f"{grid[0]} blocks are no clusters of {self.size}"
        self.function, self.shape = function, shape

    def run(self, place, *arguments):
        if place[0] % self.size > 0:
            return

        def body():
            self.function(*arguments)

        places = [(place[0] + rank, *place[1:]) for rank in range(self.size)]
        self.blocks = [Block(body, self, rank, own, self.shape) for rank, own in enumerate(places)]
        order = random.Random(place[0])
        while running := [block for block in self.blocks if not block.has_ended]:
            # One may be far ahead of the others: as far as the next barrier of the cluster.
            if free := [block for block in running if not block.waits_for_cluster]:
                order.choice(free).run(order)
            else:
                for block in running:
                    block.waits_for_cluster = False


class Shared(kernelapi.FakeCUDAShared):
    """Shared memory of each block of a cluster, which is NaN, or -1, until something is written there."""

    def __init__(self, size):
        super().__init__(size)
        self._of_blocks = {}

    def of_block(self, rank):
        """Return the dynamic shared memory of a block of the cluster."""
        if rank not in self._of_blocks:
            self._of_blocks[rank] = np.full(self._dynshared_size, -1, np.byte)
        return self._of_blocks[rank]

    def array(self, shape, dtype):
        if isinstance(dtype, kernelapi.types.Type):
            dtype = kernelapi.numpy_support.as_dtype(dtype)
        rank = greenlet.getcurrent().block.rank
        if shape == 0:
            return self.of_block(rank)[: self._dynshared_size // dtype.itemsize * dtype.itemsize].view(dtype)
        caller = sys._getframe(1)
        place = rank, caller.f_code, caller.f_lineno
        if place not in self._allocations:
            size = np.prod(shape, dtype=int) * np.dtype(dtype).itemsize
            self._allocations[place] = np.full(size, -1, np.byte).view(dtype).reshape(shape)
        return self._allocations[place]


def load1_of_block(shared, place, rank):
    block = greenlet.getcurrent().block.cluster.blocks[rank]
    assert not block.has_ended, f"the shared memory of block {block.place} is there no more"
    return kernel._get_kernel_context().shared.of_block(rank).view(np.float32)[place]


@contextmanager
def threads_that_take_turns():
    """Have the simulator run kernels so."""
    calls, launch = count(1), kernel.FakeCUDAKernel.__call__

    def call(self, *arguments):
        if not self._device:
            Cluster.size = getattr(self, "cluster", 1)
            return launch(self, *arguments)
        if next(calls) % BETWEEN_INTERRUPTIONS == 0:
            greenlet.getcurrent().interrupt()
        # The simulator would look for ``cuda`` in the function's module, to replace it: it stands in the kernel's.
        return self.fn(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernelapi, "threading", SimpleNamespace(current_thread=greenlet.getcurrent))
        patch.setattr(kernelapi, "FakeCUDAShared", Shared)
        patch.setattr(kernel, "BlockManager", Cluster)
        # Around arrays it puts two objects, which only records of several fields need.
        patch.setattr(kernel, "FakeWithinKernelCUDAArray", lambda array: array._ary)
        patch.setattr(kernel.FakeCUDAKernel, "__call__", call)
        patch.setattr(compiling, "SIMULATED_CLUSTERS", CLUSTERS)
        patch.setattr(vectors.cluster_size, "fn", lambda: greenlet.getcurrent().block.cluster.size)
        patch.setattr(vectors.cluster_rank, "fn", lambda: greenlet.getcurrent().block.rank)
        patch.setattr(vectors.cluster_barrier, "fn", lambda: greenlet.getcurrent().wait_for_cluster())
        patch.setattr(vectors.load1_of_block, "fn", load1_of_block)
        yield
