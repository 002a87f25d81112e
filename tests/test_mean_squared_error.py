import math

import numpy as np
import pytest
from cases import BACKENDS, kernels, poisoned


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (37, 5), (256, 4)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradient(backend, shape, dtype):
    generator = np.random.default_rng(0)
    y, targets = (generator.standard_normal(shape).astype(dtype) for _ in range(2))
    dy = poisoned(shape, dtype)
    loss = kernels(backend).mean_squared_error(y, targets, dy=dy)
    difference = y.astype(np.float64) - targets.astype(np.float64)
    tolerance = float(4 * np.finfo(dtype).eps)
    assert isinstance(loss, float)
    assert loss == pytest.approx(math.fsum((difference**2).ravel()) / difference.size, rel=tolerance)
    np.testing.assert_allclose(dy, 2 * difference / difference.size, rtol=tolerance, atol=tolerance / difference.size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_huge_float32_error_does_not_overflow(backend):
    y, targets = np.full((2, 2), 1e30, np.float32), np.zeros((2, 2), np.float32)
    assert kernels(backend).mean_squared_error(y, targets, dy=np.empty_like(y)) == pytest.approx(1e60, rel=1e-6)
