"""The cuda kernels as tests call them, in Numba's simulator or on a GPU; and Numba's compiler without pauses."""

import gc

import numpy as np
import pytest
from numba.core import event

from fastperm import backend
from fastperm.kernels.arrays import on_host


class _NoGarbage(event.Listener):
    """Looks for no garbage while something is compiled: a seventh of the time, and there is little to find."""

    depth = 0  # a function is compiled while another one is that calls it

    def on_start(self, event):
        self.depth += 1
        gc.disable()

    def on_end(self, event):
        self.depth -= 1
        if self.depth == 0:
            gc.enable()


event.register("numba:compile", _NoGarbage())


class OnDevice:
    """The kernels, for arrays on the host: they are taken to the GPU, and the outputs back."""

    def __init__(self, kernels):
        self.kernels = kernels

    def __getattr__(self, name):
        def call(*inputs, **outputs):
            inputs, on_device = map(self._moved, inputs), {key: self._moved(value) for key, value in outputs.items()}
            result = getattr(self.kernels, name)(*inputs, **on_device)
            for key, value in outputs.items():
                if isinstance(value, np.ndarray):
                    value[...] = on_host(on_device[key])
            return result

        return call

    def _moved(self, value):
        return self.kernels.xp.asarray(value) if isinstance(value, np.ndarray) else value


@pytest.fixture(scope="module")
def cuda():
    from fastperm.kernels import cuda
    from fastperm.kernels.cuda import compiling

    if not compiling.SIMULATED:
        assert (why := backend.why_missing("cuda")) is None, f"{why}; NUMBA_ENABLE_CUDASIM=1 needs no GPU"
        yield OnDevice(cuda)
        return

    from simulator import threads_that_take_turns

    with threads_that_take_turns():
        yield cuda
