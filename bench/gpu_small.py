"""Every cuda kernel on small shapes, for compute-sanitizer to watch; part of `gpu`.

Arrays come straight from the driver, each of the size it was asked for: from a pool, an access beyond the end of one
would be one to another, and nobody would see it.
"""

import numpy as np

import fastperm
from fastperm.kernels import cuda
from fastperm.kernels.cuda import compiling

# One element, a set that spans tiles, many in one; widths of both tiles, aligned for 128 bits and not.
COUNTS = (1, 150, 3, 2, 40)
NETWORKS = ((3, 33), (8, 40))
HOW = (("mean", "mean"), ("sum", "max"), ("max", "sum"), ("mean", None))


def run():
    """Launch all kernels and return the names of those that were not."""
    launched = set()
    call = compiling.Kernel.__call__

    def remember(kernel, *arguments):
        launched.add(kernel.name)
        return call(kernel, *arguments)

    compiling.Kernel.__call__ = remember
    xp = cuda.xp
    if xp is not np:
        xp.cuda.set_allocator(None)
    generator = np.random.default_rng(0)
    for widths in NETWORKS:
        for aggregate, pool in HOW:
            _train(widths, aggregate, pool, generator)
    x, offsets = generator.uniform(0, 6, 9), np.array([0, 3, 4, 9])
    coefficients = generator.standard_normal((3, 10)).view(np.complex128)
    cuda.fourier_series(*map(xp.asarray, (x, offsets, coefficients)), y=xp.empty(9))
    if xp is not np:
        xp.cuda.runtime.deviceSynchronize()
    return sorted(set(compiling.KERNELS) - launched)


def _train(widths, aggregate, pool, generator):
    shape = {"in_features": 2, "width": widths, "depth": len(widths), "out_features": 3}
    net = fastperm.DeepSet(**shape, aggregate=aggregate, pool=pool, backend="cuda", seed=0)
    arrays = [generator.standard_normal((count, 2)) for count in COUNTS]
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
    print(f"{len(compiling.KERNELS)} kernels launched")
