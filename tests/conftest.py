"""The cuda kernels as tests call them, in Numba's simulator or on a GPU; and Numba's compiler without pauses."""

import gc
import signal
import sys

import cases
import fake_cupy
import numpy as np
import pytest
from numba.core import event

from fastperm import backend
from fastperm.kernels.arrays import on_host

# A shell that starts tests in the background has them ignore Ctrl-C, and so would the programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if cases.ON_NUMPY_GPU:  # `make ptx-test`
    import numpy_gpu

    numpy_gpu.install()


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


@pytest.fixture
def cupy(cuda, monkeypatch):
    """CuPy, and kernels that refuse everything else."""
    from fastperm.kernels.cuda import compiling

    if not compiling.SIMULATED:
        yield pytest.importorskip("cupy")
        return
    module, simulated = fake_cupy.Cupy(), compiling._simulated_argument

    def argument(parameter, value):
        if isinstance(value, np.ndarray):
            raise TypeError("expected an array on the GPU, got one of NumPy")
        return simulated(parameter, value._array if isinstance(value, fake_cupy.ndarray) else value)

    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(compiling, "_simulated_argument", argument)
    for name, own in list(sys.modules.items()):
        if name.startswith("fastperm.kernels.cuda.") and hasattr(own, "xp"):
            monkeypatch.setattr(own, "xp", lambda: module)
    yield module
