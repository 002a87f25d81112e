"""Products of a set whose elements lie in lanes, at the edges of tiles, and its pooling; longdouble is the oracle."""

import numpy as np
import pytest
from cases import error, poisoned

from fastperm.kernels.cpu.lane_pooling import pool_lanes, share_maximum
from fastperm.kernels.cpu.lane_product import (
    PACKED_STEPS,
    block_bounds,
    block_elements,
    blocks_of,
    lane_tiles,
    lanes_forward,
    lanes_masked,
    lanes_outer,
    lanes_sums,
    list_all,
    list_units_on,
    pack_panels,
    panels_size,
    row_stride,
    whole_vectors,
    workspace,
)
from fastperm.kernels.cpu.lane_tile import FEATURES
from fastperm.kernels.cpu.pooling import CODES
from fastperm.kernels.cpu.register_tile import VECTOR_BYTES
from fastperm.kernels.cpu.similar_order import LEAST_ELEMENTS, copy_to_lanes

TOLERANCES = {"float32": 1e-5, "float64": 1e-14}
WIDTHS = (1, 2, 3, 5, FEATURES, FEATURES + 1, 2 * FEATURES + 3, 40)
REST = 7.0  # what lies behind a row, or in a place that must stay as it is


def sizes(dtype):
    """Return numbers of elements at the edges of vectors, strips and blocks."""
    like = np.empty(0, dtype)
    lanes, block = VECTOR_BYTES // like.itemsize, block_elements.py_func(like)
    return sorted(
        {1, lanes - 1, lanes, lanes + 1, 2 * lanes, 3 * lanes + 1, block, block + 1, 3 * block // 2, 3 * block + 5}
    )


class Rows:
    """Features of n elements, in lanes: flat, with something between the rows that nobody may touch."""

    def __init__(self, values):
        self.values = values  # (K, n)
        self.K, self.n = values.shape
        self.stride = row_stride.py_func(self.n, values)
        self.padded = whole_vectors.py_func(self.n, values)
        rows = np.full((self.K + 1, self.stride), REST, values.dtype)
        rows[: self.K, : self.n] = values
        rows[: self.K, self.n : self.padded] = 0
        self.flat = rows.reshape(-1)

    def read(self):
        """Return the features, having looked at what lies around them."""
        rows = self.flat.reshape(-1, self.stride)
        assert (rows[:, self.padded :] == REST).all(), "wrote between the rows"
        assert (rows[self.K] == REST).all(), "wrote behind the rows"
        assert (rows[: self.K, self.n : self.padded] == 0).all(), "what lies behind the elements is not zero"
        return rows[: self.K, : self.n]

    def listing(self):
        """Return (listed, counts): the features that are not zero, block by block, found by NumPy."""
        blocks = blocks_of(self.n, self.values)
        listed, counts = np.full((blocks, self.K + 2), -1), np.zeros(blocks, np.int64)
        for b in range(blocks):
            first, last = block_bounds(b, blocks, self.n, self.values)
            found = np.flatnonzero(self.values[:, first:last].any(axis=1))
            listed[b, : len(found)], counts[b] = found, len(found)
        return listed, counts


def relu_like(generator, K, n, dtype):
    """Return features that are positive or zero, some of them off for whole runs of elements or everywhere."""
    values = np.abs(generator.standard_normal((K, n)))
    values[generator.random((K, n)) < 0.2] = 0
    for k in range(K):
        first, last = sorted(generator.integers(0, n + 1, 2))
        values[k, first:last] = 0
    values[generator.random(K) < 0.3] = 0
    return values.astype(dtype)


def space(K, dtype):
    sums, strip, all_steps = workspace(K, np.empty(0, dtype))
    return poisoned(sums.shape, dtype), poisoned(strip.shape, dtype), all_steps


def weights_in_lanes(w, padded):
    return np.concatenate([w, np.zeros(padded - len(w), w.dtype)])


@pytest.mark.parametrize("floor", [0.0, -np.inf])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_forward(dtype, floor):
    generator = np.random.default_rng(0)
    for n in sizes(dtype):
        for K_in in (1, 2, 9, PACKED_STEPS + 4):
            for K_out in WIDTHS:
                x = Rows(relu_like(generator, K_in, n, dtype))
                W, c = (generator.standard_normal(shape).astype(dtype) for shape in ((K_in, K_out), K_out))
                w = generator.uniform(0.5, 2, n).astype(dtype)
                panels = poisoned((panels_size.py_func(K_in, K_out),), dtype)
                pack_panels(W, panels, 0, len(W))
                y = Rows(np.full((K_out, n), np.nan, dtype))
                y.flat[: K_out * y.stride].reshape(K_out, -1)[:, : y.padded] = np.nan
                listed, counts = x.listing()
                listed_y, counts_y = np.full((len(counts), K_out + 1), -1), np.full(len(counts), -1)
                totals = np.ones(K_out)
                lanes_forward(
                    *(lane_tiles(np.dtype(dtype)), x.flat, K_in, x.stride, n, panels, c, np.dtype(dtype).type(floor)),
                    *(weights_in_lanes(w, x.padded), listed, counts, y.flat, space(max(K_in, K_out), dtype), totals),
                    *(listed_y, counts_y),
                )
                wanted = np.maximum(c.astype("g")[:, None] + W.T.astype("g") @ x.values.astype("g"), floor)
                found = y.read()
                assert error(found, wanted) <= TOLERANCES[dtype], (n, K_in, K_out)
                assert error(totals, 1 + wanted @ w.astype("g")) <= TOLERANCES[dtype], (n, K_in, K_out)
                if floor == 0:
                    for listing in ((listed_y, counts_y), (listed_y.copy(), counts_y.copy())):
                        wanted_listed, wanted_counts = Rows(found).listing()
                        assert (listing[1] == wanted_counts).all()
                        for b, count in enumerate(wanted_counts):
                            assert (listing[0][b, :count] == wanted_listed[b, :count]).all()
                        list_units_on(y.flat, K_out, y.stride, n, listed_y, counts_y)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_masked(dtype):
    generator = np.random.default_rng(1)
    for n in sizes(dtype):
        for K_out in (1, 2, 9, 2 * PACKED_STEPS):
            for K_in in WIDTHS:
                # The gradient has both signs; it is zero where its own unit is off.
                g = relu_like(generator, K_out, n, dtype)
                g = Rows(g * generator.choice([-1, 1], g.shape).astype(dtype))
                h = Rows(relu_like(generator, K_in, n, dtype))
                W, c = (generator.standard_normal(shape).astype(dtype) for shape in ((K_in, K_out), K_in))
                w = generator.uniform(0, 2, n).astype(dtype)
                totals = np.ones(K_in)
                lanes_masked(
                    *(lane_tiles(np.dtype(dtype)), g.flat, g.stride, n, W, c, weights_in_lanes(w, g.padded)),
                    *(*g.listing(), *h.listing(), h.flat, space(max(K_in, K_out), dtype), totals),
                )
                z = np.multiply.outer(c.astype("g"), w.astype("g")) + W.astype("g") @ g.values.astype("g")
                wanted = np.where(h.values > 0, z, 0)
                assert error(h.read(), wanted) <= TOLERANCES[dtype], (n, K_in, K_out)
                assert error(totals, 1 + wanted.sum(axis=1)) <= TOLERANCES[dtype], (n, K_in, K_out)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_outer(dtype):
    generator = np.random.default_rng(2)
    for n in sizes(dtype):
        for K_in in WIDTHS:
            for K_out in WIDTHS:
                x, g = (Rows(relu_like(generator, K, n, dtype)) for K in (K_in, K_out))
                guard = poisoned((K_in + 2, K_out), dtype)
                start = guard[1:-1] = generator.standard_normal((K_in, K_out)).astype(dtype)
                lanes_outer(
                    *(lane_tiles(np.dtype(dtype)), x.flat, g.flat, x.stride, n),
                    *(*x.listing(), *g.listing(), guard[1:-1]),
                )
                wanted = start + x.values.astype("g") @ g.values.astype("g").T
                assert error(guard[1:-1], wanted) <= TOLERANCES[dtype], (n, K_in, K_out)
                assert np.isnan(guard[[0, -1]]).all()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_an_element_has_the_same_bits_wherever_it_stands(dtype):
    generator = np.random.default_rng(3)
    n, K = 3 * block_elements.py_func(np.empty(0, dtype)) + 5, 19
    x = Rows(generator.standard_normal((K, n)).astype(dtype))
    W, c = generator.standard_normal((K, K)).astype(dtype), generator.standard_normal(K).astype(dtype)
    panels = np.empty(panels_size.py_func(K, K), dtype)
    pack_panels(W, panels, 0, len(W))

    def forward(x):
        y = Rows(np.zeros((K, n), dtype))
        blocks = blocks_of(n, x.values)
        listed, counts = np.empty((blocks, K), np.int64), np.empty(blocks, np.int64)
        list_all(K, listed, counts)
        one = weights_in_lanes(np.ones(n, dtype), x.padded)
        lanes_forward(
            *(lane_tiles(np.dtype(dtype)), x.flat, K, x.stride, n, panels, c, np.dtype(dtype).type(0), one),
            *(listed, counts, y.flat, space(K, dtype), np.zeros(K), listed.copy(), counts.copy()),
        )
        return y.read()

    order = generator.permutation(n)
    assert forward(Rows(x.values[:, order])).tobytes() == forward(x)[:, order].tobytes()


@pytest.mark.parametrize("how", CODES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_pooling(dtype, how):
    generator = np.random.default_rng(4)
    for n in sizes(dtype):
        x = Rows(generator.standard_normal((3, n)).astype(dtype))
        w = generator.choice([0.0, 0.5, 2.0], n).astype(dtype)
        w[generator.integers(n)] = 1
        p = poisoned((3,), dtype)

        def pool(x, w, n, p):
            lanes_w, totals = weights_in_lanes(w, x.padded), np.zeros(3)
            tiles, work = lane_tiles(np.dtype(dtype)), space(3, dtype)
            lanes_sums(tiles, x.flat, 3, x.stride, n, lanes_w, work, totals)
            pool_lanes(x.flat, 3, x.stride, n, lanes_w, float(w.sum(dtype="d")), totals, CODES[how], p)

        pool(x, w, n, p)
        wanted = {
            "max": x.values[:, w > 0].max(axis=1),
            "sum": x.values.astype("g") @ w,
            "mean": x.values.astype("g") @ w / w.sum(dtype="g"),
        }[how]
        assert error(p, wanted) <= TOLERANCES[dtype], n
        x.flat[n - 1], w[n - 1] = np.nan, 1
        pool(x, w, n, p)
        assert np.isnan(p[0]), "a NaN must reach the output"


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_ties_share_the_gradient_of_a_maximum_by_their_weights(dtype):
    x = Rows(np.array([[1, 3, 3, 3, 2], [0, 0, 0, 0, 0], [5, 1, 1, 1, 4]], dtype))
    w = weights_in_lanes(np.array([1, 1, 2, 0, 1], dtype), x.padded)
    dx, totals = Rows(np.ones((3, 5), dtype)), np.ones(3)
    share_maximum(np.array([3, 1, 8], dtype), x.flat, np.array([3, 0, 5], dtype), 3, x.stride, 5, w, dx.flat, totals)
    # A maximum of zero is behind its ReLU.
    assert dx.read().tolist() == [[1, 2, 3, 1, 1], [1, 1, 1, 1, 1], [9, 1, 1, 1, 1]]
    assert totals.tolist() == [4, 1, 9]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("similar", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_copies_every_element_once(dtype, similar, weighted):
    generator = np.random.default_rng(5)
    for n in (1, 5, LEAST_ELEMENTS + 3):
        for K in (1, 2, 5):
            for scale in (1, 1e30, 0):
                values = (scale * generator.standard_normal((n, K))).astype(dtype)
                w = generator.uniform(0.5, 1, n if weighted else 0).astype(dtype)
                x = Rows(np.zeros((K, n), dtype))
                lanes_w = poisoned((x.padded,), dtype)
                copy_to_lanes(values, w, x.stride, similar, x.flat, lanes_w)
                found = np.column_stack([x.read().T, lanes_w[:n]])
                wanted = np.column_stack([values, w if weighted else np.ones(n)])
                assert (lanes_w[n:] == 0).all()
                if similar:
                    found, wanted = (rows[np.lexsort(rows.T)] for rows in (found, wanted))
                assert (found == wanted).all()
