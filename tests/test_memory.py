"""Batches that do not fit in memory, with kernels that raise where there are too many elements."""

import numpy as np
import pytest
from cases import Case

import fastperm

COUNTS = (3, 1, 5, 2, 6, 1, 1)


class Small:
    """Kernels that have memory for so many elements; how many they took is in `taken`."""

    def __init__(self, kernels, elements):
        self.kernels, self.elements, self.taken = kernels, elements, []

    def __getattr__(self, name):
        function = getattr(self.kernels, name)
        if name not in ("deep_set_forward", "deep_set_step"):
            return function

        def call(x, *arguments, **outputs):
            if len(x) > self.elements:
                for output in outputs.values():
                    output[...] = np.nan  # it broke off half-way
                raise MemoryError(f"{x.nbytes} bytes")
            self.taken.append(len(x))
            return function(x, *arguments, **outputs)

        return call


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("invariance", ["rounding", "bitwise"])
@pytest.mark.parametrize("pool", ["mean", "max", None])
def test_a_batch_that_does_not_fit_is_split(pool, invariance, backend):
    case = Case(COUNTS, 2, 1, weighted=True)
    sets = fastperm.Sets(case.x, case.offsets, case.weights)
    net = fastperm.DeepSet(2, 5, 2, 3, pool=pool, invariance=invariance, dtype="float64", backend=backend, seed=0)
    targets = np.random.default_rng(1).standard_normal(net.prediction_shape(sets))
    wanted = net(sets), net.loss_and_gradients(sets, targets), net.gradients.flat.copy()
    net.kernels = Small(net.kernels, 8)
    found = net(sets), net.loss_and_gradients(sets, targets), net.gradients.flat
    assert net.kernels.taken == [3, 6, 8, 2] * 2
    for value, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)


def test_a_set_that_does_not_fit_is_named_with_its_size():
    net = fastperm.DeepSet(2, (5, 4), 2, 3, backend="reference", seed=0)
    net.kernels = Small(net.kernels, 5)
    sets = fastperm.Sets.ragged([np.ones((count, 2)) for count in COUNTS])
    message = r"a set of 6 elements does not fit in memory with layers of widths \(5, 4\) in float32 .*\(48 bytes\)"
    with pytest.raises(MemoryError, match=message):
        net(sets)
    with pytest.raises(MemoryError, match=message):
        net.loss_and_gradients(sets, np.ones((len(sets), 3)))
