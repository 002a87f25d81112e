"""The cuda kernels as tests call them: in Numba's simulator, or on a GPU."""

import sys
import threading

import fake_cupy
import numpy as np
import pytest

from fastperm import backend
from fastperm.kernels.arrays import on_host


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


class _OnceForAll(dict):
    """Where the simulator keeps shared arrays: the first thread that misses one makes it, while the others wait.

    Left to itself, the simulator gives two threads that ask at once an array each.
    """

    def __init__(self):
        self.lock = threading.Lock()

    def get(self, key):
        self.lock.acquire()
        found = super().get(key)
        if found is not None:
            self.lock.release()
        return found

    def __setitem__(self, key, array):
        super().__setitem__(key, array)
        self.lock.release()


@pytest.fixture(scope="module")
def cuda():
    from fastperm.kernels import cuda
    from fastperm.kernels.cuda import compiling

    if not compiling.SIMULATED:
        assert (why := backend.why_missing("cuda")) is None, f"{why}; NUMBA_ENABLE_CUDASIM=1 needs no GPU"
        yield OnDevice(cuda)
        return

    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    class Shared(FakeCUDAShared):
        def __init__(self, size):
            super().__init__(size)
            self._allocations = _OnceForAll()
            self._dynshared[:] = -1  # NaN, as four bytes of a float

    # The simulator has a Python thread for each of a block, and one that watches them without pause: let it be short.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("numba.cuda.simulator.kernelapi.FakeCUDAShared", Shared)
        yield cuda
    sys.setswitchinterval(interval)


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
