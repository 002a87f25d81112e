from itertools import pairwise

import numpy as np
import pytest
from cases import BACKENDS, kernels


def sorted_batch(backend, x, offsets, weights):
    order = np.full(len(x), -1)
    found, found_weights = np.full_like(x, np.nan), None if weights is None else np.full_like(weights, np.nan)
    kernels(backend).canonical_order(x, offsets, weights, order=order, sorted_x=found, sorted_weights=found_weights)
    assert found.tobytes() == x[order].tobytes()
    assert weights is None or found_weights.tobytes() == weights[order].tobytes()
    for first, last in pairwise(offsets):
        assert sorted(order[first:last]) == list(range(first, last))
    return order


def bits(x, weights, order):
    return x[order].tobytes() + (b"" if weights is None else weights[order].tobytes())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_order_is_brought_into_one(backend, dtype, weighted):
    generator = np.random.default_rng(0)
    for K in (1, 2, 5):
        counts = generator.integers(1, 60, 9)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        # Few values: many ties in each column, whole duplicates, and both zeros.
        x = generator.choice([-1.5, -0.0, 0.0, 1e-40, 2.0], (offsets[-1], K)).astype(dtype)
        weights = generator.choice([0.0, 0.5, 1.0], offsets[-1]).astype(dtype) if weighted else None
        wanted = bits(x, weights, sorted_batch(backend, x, offsets, weights))
        for _ in range(20):
            shuffle = np.concatenate(
                [first + generator.permutation(n) for first, n in zip(offsets[:-1], counts, strict=True)]
            )
            moved = x[shuffle], None if weights is None else weights[shuffle]
            assert bits(*moved, sorted_batch(backend, moved[0], offsets, moved[1])) == wanted


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_agree(dtype, weighted):
    generator = np.random.default_rng(1)
    offsets = np.array([0, 7, 8, 300])
    x = generator.choice(generator.standard_normal(5), (300, 3)).astype(dtype)
    weights = generator.choice([1.0, 2.0], 300).astype(dtype) if weighted else None
    a, b = (bits(x, weights, sorted_batch(name, x, offsets, weights)) for name in BACKENDS)
    assert a == b
