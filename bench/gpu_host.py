"""What a training step on the cuda backend costs the host in Python alone, measured without a GPU.

    python bench/gpu_host.py            # bench/results/gpu_host.json
    python bench/gpu_host.py --quick    # a trial, written nowhere

In place of CuPy and the driver stand objects that do nothing: an array is a shape, a launch is a call that returns. So
this is the time of fastperm's own checks, bookkeeping and packing of parameters. What CuPy and the driver add to it,
some microseconds for each launch, can be measured on a GPU only (`gpu`).
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import results
from contenders import Case
from turns import half_turn

ROUNDS, SECONDS = 25, 0.03
STEPS = 500  # of a run
CASE = Case(width=16)
STEP, AGAIN, QUEUED, PREDICT = "train_step", "train_step, batch seen before", "a step of train, queued", "prediction"


class Array:
    """An array on a GPU that is not there: its numbers are nowhere."""

    __cuda_array_interface__ = SimpleNamespace()
    device = SimpleNamespace(id=0)
    data = SimpleNamespace(ptr=4096)
    flags = SimpleNamespace(c_contiguous=True)
    __slots__ = ("dtype", "nbytes", "ndim", "shape", "size", "strides")

    def __init__(self, like):
        self.shape, self.strides, self.dtype = like.shape, like.strides, like.dtype
        self.size, self.ndim, self.nbytes = like.size, like.ndim, like.nbytes

    def _made(self, function):
        # Of the same shape and type, without memory: no page of it is touched.
        return Array(function(np.empty(self.shape, self.dtype)))

    def view(self, dtype):
        """Return the same memory as another type."""
        return self._made(lambda array: array.view(dtype))

    def reshape(self, *shape):
        """Return the same memory in another shape."""
        return self._made(lambda array: array.reshape(*shape))

    def __getitem__(self, index):
        return self._made(lambda array: array[index])

    def __setitem__(self, index, value):
        pass

    def __array_ufunc__(self, *_, **__):
        return self

    def __dlpack_device__(self):
        return 2, self.device.id

    def all(self):
        """Return True, as of finite numbers."""
        return True

    def fill(self, value):
        """Do nothing."""

    def get(self):
        """Return zeros on the host."""
        return np.zeros(self.shape, self.dtype)

    def __len__(self):
        return self.shape[0]

    def __float__(self):
        return 1.0


class _Pinned(bytearray):
    ptr = 0


def _cupy():
    module, stream = ModuleType("cupy"), SimpleNamespace(ptr=0, synchronize=lambda: None)
    module.ndarray = Array
    module.empty = module.zeros = lambda shape, dtype=float: Array(np.empty(shape, dtype))
    module.empty_like = module.zeros_like = lambda array: Array(array)
    module.asarray = lambda x, dtype=None: x if isinstance(x, Array) else Array(np.asarray(x, dtype))
    module.ascontiguousarray = module.asarray
    device = SimpleNamespace(id=0, compute_capability="90", attributes={"MaxSharedMemoryPerBlockOptin": 232448})
    module.cuda = SimpleNamespace(
        Device=lambda *_: device,
        Stream=_Stream,
        driver=SimpleNamespace(launchKernel=lambda *_: None),
        alloc_pinned_memory=_Pinned,
        get_current_stream=lambda: stream,
        runtime=SimpleNamespace(getDevice=lambda: 0, memGetInfo=lambda: (1 << 36, 1 << 36)),
    )
    return module


class _Stream:
    ptr = 0

    def __init__(self, *, non_blocking):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def begin_capture(self):
        pass

    def end_capture(self):
        return SimpleNamespace(launch=lambda: None)


def measure(rounds, seconds):
    """Return the seconds that one of each task takes the host: quartiles over the rounds, all taking turns."""
    sys.modules["cupy"] = _cupy()
    from fastperm import Adam, Sets, gpu, steps, train
    from fastperm.kernels.cuda import compiling

    gpu.why_unusable = lambda: None
    compiling._loaded = lambda *_: SimpleNamespace(kernel=SimpleNamespace(ptr=0))
    x, targets = (Array(array) for array in CASE.sample())
    sets = Sets._trusted(x.reshape(-1, CASE.in_features), CASE.set_size * np.arange(CASE.batch + 1), None)
    nets, optimizers = [CASE.network("cuda") for _ in range(3)], [Adam() for _ in range(2)]
    task = CASE.task().to("cuda")

    def first_seen():
        nets[0]._recorded.clear()
        steps.train_step(nets[0], sets, targets, optimizers[0])

    def run():
        train(nets[2], task, steps=STEPS, batch=CASE.batch, progress=False, validate=None)

    ways = {
        STEP: first_seen,
        AGAIN: lambda: steps.train_step(nets[1], sets, targets, optimizers[1]),
        QUEUED: run,
        PREDICT: lambda: nets[1](sets),
    }
    for way in ways.values():
        half_turn(way, seconds)
    taken = [{name: half_turn(way, seconds) for name, way in ways.items()} for _ in range(rounds)]
    each = {QUEUED: STEPS}
    return {name: results.quartiles([of_round[name] / each.get(name, 1) for of_round in taken]) for name in ways}


def main():
    """Run the command line."""
    options = results.arguments(__doc__).parse_args()
    result = results.start("gpu_host", quick=options.quick) | {"case": CASE._asdict()}
    result["seconds"] = measure(*(2, 0) if options.quick else (ROUNDS, SECONDS))
    for name, of in result["seconds"].items():
        print(f"{name:30} {1e6 * of['median']:6.1f} us")
    results.write(result, options)


if __name__ == "__main__":
    main()
