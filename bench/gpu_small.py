"""Every cuda kernel on small shapes, for compute-sanitizer to watch; part of `gpu`.

Arrays come straight from the driver, each of the size it was asked for: from a pool, an access beyond the end of one
would be one to another, and nobody would see it.
"""

from itertools import pairwise

import numpy as np

import fastperm
from fastperm.kernels import cuda
from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda import cluster_probe, compiling, product_on_warpgroups
from fastperm.kernels.cuda.layouts import LAYOUTS, TENSOR_LAYOUTS
from fastperm.kernels.cuda.library import in_float32
from fastperm.kernels.cuda.pairs import Pairs
from fastperm.kernels.cuda.resident import resident_forward, resident_step
from fastperm.kernels.cuda.step_queue import SingleStep

# One element, a set that spans tiles, many in one; widths of few features, of all tiles in all ways, and of the
# library, aligned for 128 bits or not.
COUNTS = (1, 150, 3, 2, 40)
NETWORKS = ((3, 33), (8, 130), (33, 40), (130, 9, 130), (257, 260))
# What the tiles of tensor cores take, layer by layer; and what warpgroups do, where there are any.
ON_CORES, ON_WARPGROUPS = (36, 20), (192, 260)
# What is kept in pairs of bfloat16 wherever it runs.
IN_PAIRS = (1032, 1024)
HOW = (("sum", "max"), ("max", "mean"), ("mean", None))  # layer by layer
RESIDENT = ("mean", "sum")


def run():
    """Launch all kernels and return the names of those that were not."""
    launched = set()
    call = compiling.Kernel.__call__

    def remember(kernel, *arguments, **how):
        launched.add(kernel.name)
        return call(kernel, *arguments, **how)

    compiling.Kernel.__call__ = remember
    xp = cuda.xp
    if xp is not np:
        xp.cuda.set_allocator(None)
    generator = np.random.default_rng(0)
    for widths in NETWORKS:
        for how in HOW:
            _train(widths, how, generator)
    for layout in LAYOUTS:
        _train((layout.width, layout.width - 3), RESIDENT, generator)
    for precision, layouts in TENSOR_LAYOUTS.items():
        for layout in layouts:
            _train((layout.width, layout.width - 3), RESIDENT, generator, precision=precision)
    with_clusters = xp is np or 2 in compiling.clusters()
    if with_clusters:
        cluster_probe.clusters_run(2, 1 << 12)
        for layouts in (LAYOUTS, *TENSOR_LAYOUTS.values()):
            for layout in layouts:
                if layout.divisible:
                    _clusters(layout._replace(cluster=2), generator)
    _train(NETWORKS[-1], HOW[0], generator, precision="bfloat16")
    for precision in TENSOR_LAYOUTS:
        _train(ON_CORES, HOW[0], generator, precision=precision)
        if product_on_warpgroups.are_there():
            _train(ON_WARPGROUPS, HOW[0], generator, precision=precision)
    for in_features in (2, 3):
        _train(IN_PAIRS, RESIDENT, generator, in_features=in_features, precision="bfloat16")
    in_float32(Pairs((3, 8), xp.ones(12, np.float32)))  # where warpgroups multiply, nobody asks for it
    _train(NETWORKS[0], RESIDENT, generator, symmetry="circle", orders=3, scale="rms")
    x, offsets = generator.uniform(0, 6, 9), np.array([0, 3, 4, 9])
    coefficients = generator.standard_normal((3, 10)).view(np.complex128)
    cuda.fourier_series(*map(xp.asarray, (x, offsets, coefficients)), y=xp.empty(9))
    for dtype in ("float32", "float64"):
        fastperm.PowerSpectrum(set_size=(1, 150), dtype=dtype, backend="cuda").sample(3, 0)
    _queue()
    _step()
    if xp is not np:
        xp.cuda.runtime.deviceSynchronize()
    if compiling.SIMULATED:
        wanted = {name for name, kernel in compiling.KERNELS.items() if not kernel.only}
    else:
        architecture = compiling.current_architecture()
        wanted = {name for name, kernel in compiling.KERNELS.items() if kernel.runs_on(architecture)}
    return sorted(wanted - launched)


def _queue():
    task = fastperm.PowerSpectrum(set_size=40, dtype="float32", backend="cuda")
    net = fastperm.DeepSet(2, 16, 2, task.out_features, backend="cuda", seed=0)
    history = fastperm.train(net, task, steps=3, batch=3, progress=False, validate=None)
    assert np.isfinite(history["loss"]).all()


def _step():
    loss = cuda.xp.full((), 2.0, np.float64)
    step = SingleStep(lambda rates: loss, cuda.xp.ones(7, np.float32))
    for _ in range(3):
        step.step(1e-3)
        assert np.isfinite(step.losses()).all()


def _clusters(layout, generator):
    """Launch the kernels of a layout for clusters: a set that needs one would be a large one."""
    widths = (2, layout.width, layout.width - 3, 3)
    size = sum((2 * inner + 1) * width for inner, width in pairwise(widths[:-1])) + (widths[-2] + 1) * widths[-1]
    offsets = np.concatenate([[0], np.cumsum(COUNTS)])
    arrays = generator.standard_normal((offsets[-1], 2)), generator.uniform(0.1, 1, offsets[-1])
    x, weights, parameters, targets = (
        cuda.xp.asarray(array, dtype=np.float32)
        for array in (*arrays, generator.standard_normal(size) / 8, np.ones((len(COUNTS), 3)))
    )
    y, gradients = cuda.xp.empty_like(targets), cuda.xp.zeros(size, np.float32)
    resident_forward(layout, x, offsets, weights, parameters, widths, *RESIDENT, y=y)
    loss = resident_step(layout, x, offsets, weights, targets, parameters, widths, *RESIDENT, gradients=gradients)
    assert np.isfinite(float(loss))
    assert np.isfinite(on_host(y)).all()


def _train(widths, how, generator, in_features=2, **settings):
    shape = {"in_features": in_features, "width": widths, "depth": len(widths), "out_features": 3}
    settings |= dict(zip(("aggregate", "pool"), how, strict=True))
    net = fastperm.DeepSet(**shape, **settings, backend="cuda", seed=0)
    arrays = [generator.standard_normal((count, in_features)) for count in COUNTS]
    sets = fastperm.Sets.ragged(arrays, [generator.uniform(0.1, 1, count) for count in COUNTS])
    targets = np.ones(net.prediction_shape(sets))
    loss = fastperm.train_step(net, sets, targets, fastperm.Adam())
    prediction, saved = net.forward(sets)
    net.backward(prediction - targets, saved)
    net.predict_stream(lambda: arrays)
    assert np.isfinite(loss)
    assert np.isfinite(net(sets)).all()


if __name__ == "__main__":
    missing = run()
    assert not missing, f"not launched: {', '.join(missing)}"
    print("all kernels for this GPU launched")
