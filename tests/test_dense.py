import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from cases import BACKENDS, TOLERANCES, as_dtype, error, kernels, poisoned


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 4), (256, 64, 4), (2500, 5, 33)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_autograd(backend, shape, dtype):
    R, K_in, K_out = shape
    generator = np.random.default_rng(0)
    x, W, b, dy = (generator.standard_normal(s) for s in ((R, K_in), (K_in, K_out), (K_out,), (R, K_out)))
    wanted = autograd.grad(lambda x, W, b: anp.sum((anp.dot(x, W) + b) * dy), argnum=(0, 1, 2))(x, W, b)

    x_, W_, b_, dy_ = as_dtype(dtype, x, W, b, dy)
    y, dx = poisoned((R, K_out), dtype), poisoned((R, K_in), dtype)
    dW, db = np.full((K_in, K_out), 0.5, dtype), np.full(K_out, 0.5, dtype)
    kernels(backend).dense_forward(x_, W_, b_, y=y)
    kernels(backend).dense_backward(dy_, x_, W_, dx=dx, dW=dW, db=db)
    assert error(y, x @ W + b) <= TOLERANCES[dtype]
    assert error(dx, wanted[0]) <= TOLERANCES[dtype]
    assert error(dW, wanted[1] + 0.5) <= TOLERANCES[dtype]
    assert error(db, wanted[2] + 0.5) <= TOLERANCES[dtype]


@pytest.mark.parametrize("varied", range(3), ids=["x", "W", "b"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 4), (256, 64, 4)], ids=str)
def test_reference_matches_central_differences(shape, varied):
    R, K_in, K_out = shape
    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal(s) for s in ((R, K_in), (K_in, K_out), (K_out,))]
    dy = generator.standard_normal((R, K_out))
    direction, step = generator.standard_normal(inputs[varied].shape), 1e-6

    def loss(sign):
        moved = [array + sign * step * direction if i == varied else array for i, array in enumerate(inputs)]
        y = poisoned((R, K_out), "float64")
        kernels("reference").dense_forward(*moved, y=y)
        return np.sum(y * dy)

    x, W, b = inputs
    gradients = poisoned(x.shape, "float64"), np.zeros(W.shape), np.zeros(b.shape)
    kernels("reference").dense_backward(dy, x, W, **dict(zip(("dx", "dW", "db"), gradients, strict=True)))
    # Linear in each input: what is left is rounding, 1e-16 / 1e-6 of the terms that were summed.
    terms = gradients[varied] * direction
    assert abs((loss(1) - loss(-1)) / (2 * step) - terms.sum()) <= 1e-7 * np.linalg.norm(terms)
