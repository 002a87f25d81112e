"""The products at the edges of every tile: rows, columns, vectors, blocks; checked against longdouble sums."""

import numpy as np
import pytest
from cases import error, poisoned

from fastperm.kernels.cpu.product import (
    ROW_BLOCK,
    STEP_BLOCK,
    add_outer,
    product,
    product_accumulate,
    tiles,
    vector_product,
)
from fastperm.kernels.cpu.register_tile import ROWS, VECTOR_BYTES

TOLERANCES = {"float32": 1e-5, "float64": 1e-14}


def lanes(dtype):
    return VECTOR_BYTES // np.dtype(dtype).itemsize


@pytest.mark.parametrize("floor", [0.0, -np.inf])
@pytest.mark.parametrize("n", [1, 3, 4, 5, ROWS[1] - 1, ROWS[1], 2 * ROWS[1] + 7, ROW_BLOCK + 3])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_width_up_to_six_vectors(dtype, n, floor):
    generator = np.random.default_rng(n)
    for columns in {1, 2, *(v * lanes(dtype) + d for v in range(1, 6) for d in (-1, 0, 1, lanes(dtype) // 2))}:
        steps = int(generator.integers(1, 40))
        a, B = (
            generator.standard_normal((n, steps)).astype(dtype),
            generator.standard_normal((steps, columns)).astype(dtype),
        )
        c = generator.standard_normal(columns).astype(dtype)
        for scales in (np.ones(1, dtype), generator.uniform(0, 2, n).astype(dtype)):
            guard, totals = poisoned((n + 2, columns), dtype), np.ones(columns)
            product(tiles(np.dtype(dtype)), a, B, c, scales, guard[1:-1], np.dtype(dtype).type(floor), totals, scales)
            wanted = np.maximum(scales[:, None] * c.astype("g") + a.astype("g") @ B.astype("g"), floor)
            assert error(guard[1:-1], wanted) <= TOLERANCES[dtype], columns
            assert error(totals, 1 + np.sum(wanted * scales[:, None], axis=0)) <= TOLERANCES[dtype], columns
            assert np.isnan(guard[[0, -1]]).all(), f"wrote outside at {columns} columns"


@pytest.mark.parametrize("K_in", [1, 2, 5, ROWS[1] + 3])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_accumulate_adds_the_transposed_product(dtype, K_in):
    generator = np.random.default_rng(K_in)
    for columns in {1, 3, *(v * lanes(dtype) + d for v in range(1, 6) for d in (-1, 0, 1))}:
        steps = int(generator.integers(1, 40))
        x, g = (generator.standard_normal((steps, k)).astype(dtype) for k in (K_in, columns))
        start = generator.standard_normal((K_in, columns)).astype(dtype)
        guard = poisoned((K_in + 2, columns), dtype)
        guard[1:-1] = start
        product_accumulate(tiles(np.dtype(dtype)), x, g, guard[1:-1])
        assert error(guard[1:-1], start + x.astype("g").T @ g.astype("g")) <= TOLERANCES[dtype], columns
        assert np.isnan(guard[[0, -1]]).all()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_zeros_are_left_out_without_a_trace(dtype):
    """At the edges of vectors and words of steps: nothing, all, one step or whole blocks of a are zero."""
    generator = np.random.default_rng(5)
    one, n = np.ones(1, dtype), 2 * ROW_BLOCK + 11
    for steps in (lanes(dtype) - 1, lanes(dtype), 63, 64, 65, 128, 130, 200):
        for columns in (lanes(dtype), 2 * lanes(dtype), 4 * lanes(dtype) + 3):
            B, c = (generator.standard_normal(shape).astype(dtype) for shape in ((steps, columns), columns))
            g = generator.standard_normal((n, columns)).astype(dtype)
            for zeros in ("some", "units", "block", "all but the last", "all"):
                a = generator.standard_normal((n, steps)).astype(dtype)
                if zeros == "some":
                    a[generator.random(a.shape) < 0.9] = 0
                elif zeros == "units":
                    a[:, generator.random(steps) < 0.6] = 0
                elif zeros == "block":
                    a[:STEP_BLOCK] = 0
                    a[:, :64] = 0
                else:
                    a[:, : steps - (zeros != "all")] = 0
                out, totals = poisoned((n, columns), dtype), np.zeros(columns)
                product(tiles(np.dtype(dtype)), a, B, c, one, out, np.dtype(dtype).type(-np.inf), totals, one)
                wanted = c.astype("g") + a.astype("g") @ B.astype("g")
                assert error(out, wanted) <= TOLERANCES[dtype], (steps, columns, zeros)
                gradient = np.zeros((steps, columns), dtype)
                product_accumulate(tiles(np.dtype(dtype)), a, g, gradient)
                assert error(gradient, a.astype("g").T @ g.astype("g")) <= TOLERANCES[dtype], (steps, columns, zeros)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_products_of_one_row(dtype):
    generator = np.random.default_rng(6)
    for steps, columns in ((1, 1), (3, 17), (33, 4), (64, 64)):
        x, start, B = (generator.standard_normal(shape).astype(dtype) for shape in (steps, columns, (steps, columns)))
        x[generator.random(steps) < 0.4] = 0
        out = poisoned((columns,), dtype)
        vector_product(x, B, start, out)
        assert error(out, start.astype("g") + x.astype("g") @ B.astype("g")) <= TOLERANCES[dtype]
        wanted = B.astype("g") + np.multiply.outer(x.astype("g"), start.astype("g"))
        add_outer(x, start, B)
        assert error(B, wanted) <= TOLERANCES[dtype]
