"""The best rates of a GPU, and those of our tiles beside cuBLAS; part of `gpu`.

Bare products are in true float32. On tensor cores a product is timed with all that a layer does with it, by our tile
and by cuBLAS and a pass that finishes it: that says from which width on the library pays. Times are those of
events on the stream, over launches in a row; the best of several rows counts, as everywhere for bare rates. Narrow
layers have more elements there, or the host would take longer to launch them than the card to compute them.
"""

import time
from unittest.mock import patch

import numpy as np

ROWS, ROW_SECONDS, MOST_LAUNCHES = 7, 0.05, 1000
# Of the layers of a wide network: 256 sets of 512 elements, 512 features.
PRODUCT = (131072, 512, 512)
SQUARE, COPY_BYTES = 8192, 2**31
LAYER_WIDTHS, SET_SIZE = (128, 512, 1024, 2048), 512
LAYER_ROWS = 3  # of launches: there are many of them
DRAWN_ROWS = 2048
# Where the program is tried out.
QUICK_PRODUCT, QUICK_SQUARE, QUICK_COPY_BYTES = (16, 4, 4), 64, 2**20
QUICK_LAYER_WIDTHS, QUICK_ELEMENTS = (16, 40), 8


def measure(*, quick=False):
    """Return copy in bytes/s, products in flop/s and ratios of our products to cuBLAS's of the same shape."""
    from fastperm.kernels import cuda
    from fastperm.kernels.cuda.tensor_cores import TENSOR_CORES

    xp = cuda.xp
    shape = QUICK_PRODUCT if quick else PRODUCT
    n, size = (QUICK_SQUARE, QUICK_COPY_BYTES) if quick else (SQUARE, COPY_BYTES)
    return {
        "method": f"best of {ROWS} rows of launches of {ROW_SECONDS} s, by events on the stream, in true float32; "
        f"layers, of {LAYER_ROWS} rows, in the precision they name",
        "copy": {"best": _copy_rate(xp, size), "size_bytes": size, "counted": "bytes read and bytes written"},
        "sgemm": {"best": _square_rate(xp, n), "size": n},
        "products": {"shape": list(shape), "by_way": _product_rates(xp, *shape)},
        "layers": [
            _layer_seconds(xp, QUICK_ELEMENTS if quick else PRODUCT[0] * max(PRODUCT[1] // width, 1), width, precision)
            for precision in TENSOR_CORES
            for width in (QUICK_LAYER_WIDTHS if quick else LAYER_WIDTHS)
        ],
    }


def _copy_rate(xp, size):
    source, target = xp.ones(size // 4, np.float32), xp.zeros(size // 4, np.float32)
    return 2 * size / _least_seconds(lambda: xp.copyto(target, source), xp)


def _square_rate(xp, n):
    a, b, c = _random(xp, (n, n), (n, n), (n, n))
    return 2 * n**3 / _least_seconds(lambda: xp.matmul(a, b, out=c), xp)


def _product_rates(xp, R, K, N):
    from fastperm.kernels.cuda import product as products

    # Our tile, though for this shape the network takes the library.
    usual = products.LIBRARY, products.LIBRARY_TRANSPOSED
    products.LIBRARY = products.LIBRARY_TRANSPOSED = 1 << 62
    product, add_transposed_product = products.product, products.add_transposed_product
    x, W, g, y, dx, dW = _random(xp, (R, K), (K, N), (R, N), (R, N), (R, K), (K, N))
    ways = {
        "x W": (lambda: xp.matmul(x, W, out=y), lambda: product(x, W, y)),
        "g Wᵀ": (lambda: xp.matmul(g, W.T, out=dx), lambda: product(g, W, dx, B_along_k=True)),
        "xᵀ g": (lambda: xp.matmul(x.T, g, out=dW), lambda: add_transposed_product(x, g, dW)),
    }
    rates = {}
    for way, functions in ways.items():
        library, ours = (2 * R * K * N / _least_seconds(function, xp) for function in functions)
        rates[way] = {"cublas": library, "ours": ours, "ratio": ours / library}
    products.LIBRARY, products.LIBRARY_TRANSPOSED = usual
    return rates


def _layer_seconds(xp, elements, width, precision):
    """Return seconds of the products of a layer on tensor cores, as it needs them, by our tiles and by cuBLAS."""
    from fastperm.kernels.cuda import product as products
    from fastperm.kernels.cuda import product_on_warpgroups
    from fastperm.kernels.cuda.library import round_to_bf16
    from fastperm.kernels.cuda.pairs import Pairs
    from fastperm.kernels.cuda.pooling import SUM

    n_sets = max(elements // SET_SIZE, 1)
    x, g, y, W, dW, c = _random(xp, *[(elements, width)] * 3, *[(width, width)] * 2, (n_sets, width))
    sets = xp.arange(elements, dtype=np.int32) * n_sets // elements
    pooled = {"c": c, "sets": sets, "code": SUM, "n_sets": n_sets, "precision": precision}
    ways = {
        "forward": lambda: products.product(x, W, y, relu=True, **pooled),
        "dx": lambda: products.product(g, W, y, B_along_k=True, masked_by=x, **pooled),
        "dW": lambda: products.add_transposed_product(x, g, dW, precision=precision),
    }
    own, seconds = product_on_warpgroups.LEAST, {way: {} for way in ways}
    never, always = 1 << 62, 0
    # From how many columns on the library multiplies, and, short of that, warpgroups.
    limits = {"cublas": (always, never), "ours": (never, own)}
    if width >= own and product_on_warpgroups.are_there():
        limits["warps"] = (never, never)
    for name, (of_library, of_warpgroups) in limits.items():
        with (
            patch.object(products, "LIBRARY_ROUNDED", of_library),
            patch.object(products, "LIBRARY_ROUNDED_TRANSPOSED", {precision: of_library}),
            patch.object(product_on_warpgroups, "LEAST", of_warpgroups),
        ):
            for way, function in ways.items():
                seconds[way][name] = _least_seconds(function, xp, LAYER_ROWS)
    if precision == "bfloat16" and products.way_of(width, width, precision) != products.ON_CORES:
        x, g, y = (Pairs(matrix.shape, round_to_bf16(matrix)) for matrix in (x, g, y))  # which ways look up when called
        for way, function in ways.items():
            seconds[way]["pairs"] = _least_seconds(function, xp, LAYER_ROWS)
    return {"elements": elements, "width": width, "precision": precision, "seconds": seconds}


def _random(xp, *shapes):
    generator = np.random.default_rng(0)
    for rows, columns in shapes:
        # The host draws some rows, which are repeated: a thousand million numbers would take it half a minute.
        drawn = xp.asarray(generator.standard_normal((min(rows, DRAWN_ROWS), columns), dtype=np.float32))
        yield xp.tile(drawn, (-(-rows // len(drawn)), 1))[:rows]


def _least_seconds(function, xp, rows=ROWS):
    """Return the least time of a launch, of so many rows of them."""
    function()
    count = max(1, min(MOST_LAUNCHES, int(ROW_SECONDS / max(_row_seconds(function, 1, xp), 1e-9))))
    return min(_row_seconds(function, count, xp) / count for _ in range(rows))


def _row_seconds(function, count, xp):
    if xp is np:
        start = time.perf_counter()
        for _ in range(count):
            function()
        return time.perf_counter() - start
    begin, end = xp.cuda.Event(), xp.cuda.Event()
    begin.record()
    for _ in range(count):
        function()
    end.record()
    end.synchronize()
    return xp.cuda.get_elapsed_time(begin, end) / 1e3
