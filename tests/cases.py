"""Batches that the kernel tests run on, and how results are compared."""

import os

import numpy as np
import pytest

from fastperm import backend

BACKENDS = ("reference", "cpu")

# Where cuda kernels run on a GPU of NumPy (`numpy_gpu.py`), sizes are those of a card, but for what only takes long.
ON_NUMPY_GPU = os.environ.get("FASTPERM_NUMPY_GPU", "0") != "0"

# (elements per set, K_in, K_out): a single element, one set, edges of every tile (columns, rows, vectors), ragged.
SHAPES = (
    ((1,), 1, 1),
    ((7,), 3, 17),
    ((1, 5, 2, 33), 17, 33),
    ((64, 3, 129), 2, 64),
    ((40,) * 5, 33, 3),
    ((27, 25), 16, 80),
    ((3,) * 37, 5, 113),
)

# Large sets for `split_large_sets`, alone and between small ones; the second ends where blocks of 1024 rows do.
LARGE_COUNTS = ((2500,), (5, 2048, 1, 30, 1700, 12), (3, 1025))


def many(count, least=4):
    """Return a count of sets or steps that a card has no trouble with; on NumPy at most the least that will do."""
    return min(count, least) if ON_NUMPY_GPU else count


def brief(value):
    """Return what stands for a parameter in the name of a test."""
    return f"{len(value)}x{value[:3]}" if isinstance(value, tuple) and len(value) > 9 else str(value)


class Case:
    """Random inputs for one layer, float64; some weights are zero where there are weights."""

    def __init__(self, counts, K_in, K_out, weighted, seed=0):
        generator = np.random.default_rng(seed)
        self.counts = np.array(counts)
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.T, self.S = int(self.offsets[-1]), len(counts)
        self.x = generator.standard_normal((self.T, K_in))
        self.weights = None
        if weighted:
            self.weights = generator.uniform(0.1, 3, self.T)
            self.weights[generator.random(self.T) < 0.3] = 0
            self.weights[300:700] = 0  # of a large set, whole pieces
            self.weights[self.offsets[:-1]] = 0.7  # no set is left without weight
        self.W_self, self.W_pool = generator.standard_normal((2, K_in, K_out)) / np.sqrt(K_in)
        self.b = generator.standard_normal(K_out)
        self.dy = generator.standard_normal((self.T, K_out))
        self.dp = generator.standard_normal((self.S, K_in))

    @property
    def bounds(self):
        return list(zip(self.offsets[:-1], self.offsets[1:], strict=True))

    @property
    def w(self):
        return np.ones(self.T) if self.weights is None else self.weights


def split_large_sets(monkeypatch, counts, width):
    """Have the cpu backend split the largest of these sets, of a thousand elements, as it splits larger ones."""
    from fastperm.kernels.cpu import workers

    for name, value in (("LARGE_ELEMENTS", 1000), ("LARGE_NUMBERS", 1), ("PIECE", 100)):
        monkeypatch.setattr(workers, name, value)
    assert len(workers.pieces(2500)) == workers.CHUNKS + 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    assert workers.large_sets(offsets, width) == [s for s, count in enumerate(counts) if count > 1000]


def all_cases(function):
    """Run a test on every shape, weighted and not."""
    for decorate in (
        pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"]),
        pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s[0])}sets-{s[1]}to{s[2]}"),
    ):
        function = decorate(function)
    return function


def as_dtype(dtype, *arrays):
    return tuple(None if a is None else np.ascontiguousarray(a, dtype=dtype) for a in arrays)


def poisoned(shape, dtype):
    return np.full(shape, np.nan, dtype)


def kernels(name):
    return backend.get(name)


def error(found, wanted):
    """Return the largest deviation, relative to the largest number wanted."""
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    return np.max(np.abs(found - wanted)) / max(np.max(np.abs(wanted)), 1e-300)


def to_bf16(x):
    """Return the nearest numbers of bfloat16: 8 bits from the leading one on, or multiples of 2^-133; ties to even."""
    x = np.asarray(x, np.float64)
    spacing = np.exp2(np.maximum(np.frexp(x)[1], -125) - 8.0)
    nearest = np.rint(x / spacing) * spacing
    return np.where(np.abs(nearest) >= 2.0**128, np.copysign(np.inf, x), nearest)


def to_tf32(x):
    """Return the nearest numbers of TF32: 11 bits from the leading one on; ties away from zero."""
    x = np.asarray(x, np.float64)
    spacing = np.exp2(np.frexp(x)[1] - 11.0)
    return np.copysign(np.floor(np.abs(x) / spacing + 0.5) * spacing, x)


# float64: sums of up to a few hundred terms of size 1, at 1e-16 each. float32: the same at 6e-8.
TOLERANCES = {"float64": 1e-12, "float32": 2e-5}
