"""The one matrix product: register tiles, with everything that goes with a layer in its start and its finish.

Wide products are NVIDIA's (`by_library`), and `_finish_product` does then what the finish of a tile does.

    out_n = finish(Σ_k A_nk B_k + scale_n c_s(n)),     finish: ReLU, or zero where a mask is not positive

A block computes a tile of out, in steps along k. Shared memory holds two steps: while
the threads multiply one, the next is on its way from memory to their registers. Each thread holds 4 × 4 numbers of
up to four parts of the tile (`Tile`), so that a warp reads shared memory 128 bits at a time without bank conflicts.
A, B or both may be stored along k: then the loader turns them on their way into shared memory. So the same template
serves x W (A along k), g Wᵀ (both) and xᵀ g (neither); for the last the rows are what is summed over, in ``parts``
that are added up in a fixed order by `add_parts`.

The finish adds up every PARTIAL_ROWS rows of out for the next pooling or gradient while they are at hand, through
shared memory (`pooling.pool_rows`), instead of reading all of out again.
"""

from typing import NamedTuple

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, device, kernel, put, xp
from fastperm.kernels.cuda.pooling import (
    FINISH_COLUMNS,
    FINISH_SHARES,
    FINISH_THREADS,
    PARTIAL_ROWS,
    THREADS,
    partial_sums,
    pool_rows,
    pooled,
    pooled_nothing,
)
from fastperm.kernels.cuda.vectors import aligned, load4, round_bf16, store1, store4

NO_POOL = -1  # beside the codes of pooling.py

PAD = 4  # between steps in shared memory, against bank conflicts; keeps 16 bytes aligned

# xᵀ g is cut into so many parts that a large card has work (an H200 has 132 multiprocessors), but none of fewer rows.
# Both depend on the shapes alone, and so do the bits of the result.
BLOCKS = 8 if SIMULATED else 512
LEAST_ROWS = 8 if SIMULATED else 256


class Tile(NamedTuple):
    """What a block computes.

    Its threads are a grid, and each has 4 rows × 4 columns in every part of the tile; parts lie side by side.
    """

    thread_rows: int
    thread_columns: int
    row_parts: int
    column_parts: int
    inner: int  # steps along k that shared memory holds at a time, twice
    blocks: int = 1  # on a multiprocessor

    @property
    def threads(self):
        """Number of threads of the block."""
        return self.thread_rows * self.thread_columns

    @property
    def rows(self):
        """Number of rows of the tile."""
        return 4 * self.thread_rows * self.row_parts

    @property
    def columns(self):
        """Number of columns of the tile."""
        return 4 * self.thread_columns * self.column_parts


# By the number of columns that they suit at most: the fastest of some twenty on an H100.
TILES = (
    {4: Tile(2, 1, 1, 1, 4), 8: Tile(2, 2, 1, 1, 4), 1 << 62: Tile(1, 2, 2, 2, 4)}
    if SIMULATED
    else {32: Tile(16, 8, 2, 1, 16), 64: Tile(16, 8, 2, 2, 8, 4), 1 << 62: Tile(16, 16, 2, 2, 8, 2)}
)
# From so many columns and steps on, NVIDIA's library is faster, though its product is finished in a pass of its own;
# for xᵀ g, which needs no finish, from so many rows and columns on.
LIBRARY, LIBRARY_TRANSPOSED = (12, 12) if SIMULATED else (256, 128)
LIBRARY_ROUNDED = 16  # its tensor cores, in TF32 and (not timed yet) bfloat16; narrower products stay in float32
_ONE_AND_ZERO = np.array([1, 0], np.float32)
ROUNDED = 8  # numbers that a thread rounds to bfloat16


def product(
    A,  # (R, K)
    B,  # (K, N), or (N, K) if B_along_k
    out,  # (R, N)
    *,
    B_along_k=False,
    c=None,  # (S, N), or (N,) for all rows
    sets=None,  # (R,): the row of c, and the set that a row of out is pooled into
    scales=None,  # (R,): what c is multiplied by
    relu=False,
    masked_by=None,  # (R, N)
    weights=None,  # (R,), for pooling
    code=NO_POOL,  # how out is pooled: SUM or MAX
    n_sets=1,  # S
    precision="float32",  # or what tensor cores may round the factors to: "tf32" or "bfloat16"
):
    """Write the product, and return the partial sums of its pooling, which `pooling.finish` takes; or None."""
    rows, inner = A.shape
    columns = out.shape[1]
    partials = None if code == NO_POOL else partial_sums(rows, n_sets, columns)
    flags = (
        c is not None,
        sets is not None,
        scales is not None,
        relu,
        masked_by is not None,
        weights is not None,
        code,
    )
    if by_library(inner, columns, precision):
        _matmul(A, B, out, precision, B_turned=B_along_k)
        if any(flags[:-1]) or code != NO_POOL:
            units = -(-rows // PARTIAL_ROWS) * columns
            _finish_product(
                -(-units // THREADS), c, sets, scales, masked_by, weights, *flags, rows, columns, out, partials
            )
        return partials
    tile, kernels = suited(columns)
    alignment = (
        *(aligned(A, inner), aligned(B, inner if B_along_k else columns)),
        all(aligned(array, columns) for array in (out, c, masked_by)),
    )
    blocks = -(-rows // tile.rows) * -(-columns // tile.columns)
    shape = (rows, columns, inner, inner)
    kernels["turned" if B_along_k else "plain"](
        *(blocks, A, B, c, sets, scales, masked_by, weights, *flags, *alignment, *shape, out, partials)
    )
    return partials


def add_transposed_product(
    x,  # (R, M)
    g,  # (R, N)
    total,  # (M, N): gets xᵀ g added
    *,
    precision="float32",  # or what tensor cores may round the factors to: "tf32" or "bfloat16"
):
    inner, columns = g.shape
    rows = x.shape[1]
    if min(rows, columns) >= (LIBRARY_TRANSPOSED if precision == "float32" else LIBRARY_ROUNDED):
        _matmul(x, g, total, precision, A_turned=True, adds=True)
        return
    tile, kernels = suited(columns)
    tiles = -(-rows // tile.rows) * -(-columns // tile.columns)
    parts = max(1, min(BLOCKS // tiles, inner // LEAST_ROWS))
    inner_part = -(-inner // parts)
    parts = -(-inner // inner_part)
    out = xp().empty((parts, rows, columns), np.float32)
    flags = (False, False, False, False, False, False, NO_POOL, aligned(x, rows), aligned(g, columns))
    kernels["transposed"](
        *(tiles * parts, x, g, None, None, None, None, None, *flags, aligned(out, columns)),
        *(rows, columns, inner, inner_part, out, None),
    )
    add_parts(out, total)


def add_parts(
    parts,  # (P, …)
    total,  # (…), C-contiguous: gets the sum added
):
    size = total.size
    _add_parts(-(-size // FINISH_COLUMNS), parts, len(parts), size, total)


def by_library(inner, columns, precision="float32"):
    """Return whether NVIDIA's library computes a product."""
    return min(inner, columns) >= (LIBRARY if precision == "float32" else LIBRARY_ROUNDED)


def _matmul(A, B, out, precision, *, A_turned=False, B_turned=False, adds=False):
    """Write A B, or Aᵀ B or A Bᵀ, by NVIDIA's library, in the precision that was asked for; or add it to ``out``."""
    factors = map(round_to_bf16, (A, B)) if precision == "bfloat16" else (A, B)
    put(_gemm, *factors, A.shape, B.shape, out, precision, A_turned, B_turned, adds)


def _gemm(A, B, A_shape, B_shape, out, precision, A_turned, B_turned, adds):
    """Write, or add, the product of two matrices, of float32 or pairs of bfloat16, that lie row by row.

    What the library calls a matrix lies column by column: our rows are its columns, so it is asked for outᵀ = Bᵀ Aᵀ.
    """
    if SIMULATED:
        if precision == "bfloat16":
            A, B = numbers_of_bf16(A, A_shape), numbers_of_bf16(B, B_shape)
        found = xp().matmul(A.T if A_turned else A, B.T if B_turned else B)
        out[:] = out + found if adds else found
        return
    from cupy.cuda import cublas, device, runtime

    number = runtime.CUDA_R_16BF if precision == "bfloat16" else runtime.CUDA_R_32F
    # Whatever CuPy is set to (CUPY_TF32).
    compute_type = cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if precision == "tf32" else cublas.CUBLAS_COMPUTE_32F
    one, zero = (_ONE_AND_ZERO[i:].ctypes.data for i in range(2))
    as_is = {False: cublas.CUBLAS_OP_N, True: cublas.CUBLAS_OP_T}
    (rows, columns), inner = out.shape, A_shape[0] if A_turned else A_shape[1]
    try:
        cublas.gemmEx(
            *(device.get_cublas_handle(), as_is[B_turned], as_is[A_turned], columns, rows, inner, one),
            *(B.data.ptr, number, B_shape[1], A.data.ptr, number, A_shape[1], one if adds else zero),
            *(out.data.ptr, runtime.CUDA_R_32F, columns, compute_type, cublas.CUBLAS_GEMM_DEFAULT),
        )
    except Exception as error:
        if "CUBLAS_STATUS_ALLOC_FAILED" in str(error):  # not an error of memory for CuPy
            raise MemoryError(str(error)) from error
        raise


def round_to_bf16(matrix):
    """Return a matrix in bfloat16, row by row, two numbers in what is called a float32."""
    threads = -(-matrix.size // ROUNDED)
    pairs = xp().empty(threads * ROUNDED // 2, np.float32)
    _round_to_bf16(-(-threads // THREADS), matrix, aligned(matrix, 4), matrix.size, pairs)
    return pairs


def numbers_of_bf16(pairs, shape):
    """Return what `round_to_bf16` has made of a matrix of a shape, in float32."""
    bits = pairs.view(np.uint16)[: shape[0] * shape[1]].astype(np.uint32) << 16
    return bits.view(np.float32).reshape(shape)


def suited(columns):
    """Return the tile for so many columns, and its kernels."""
    return next(found for most, found in PRODUCTS.items() if columns <= most)


def _loader(along_k, length, inner, threads):
    """Return two functions that bring ``length`` rows or columns × ``inner`` steps of a matrix into shared memory.

    The first takes them into registers, four numbers at a time, and the second writes them from there to shared
    memory, step by step, each ``length + PAD`` numbers apart.
    """
    fours = inner * length // 4
    own = -(-fours // threads)
    across = inner // 4 if along_k else length // 4
    stride = length + PAD

    @device
    def fetch(matrix, lead, first, end, first_k, end_k, is_aligned, thread, registers):
        for i in range(own):
            four = thread + i * threads
            if along_k:
                line = first + four // across
                place = first_k + four % across * 4
                left = end_k - place if line < end else np.int64(0)
            else:
                line = first_k + four // across
                place = first + four % across * 4
                left = end - place if line < end_k else np.int64(0)
            start = line * lead + place
            if four >= fours:
                left = np.int64(0)
            if is_aligned and left >= 4:
                registers[4 * i], registers[4 * i + 1], registers[4 * i + 2], registers[4 * i + 3] = load4(
                    matrix, start
                )
            else:
                for j in range(4):
                    registers[4 * i + j] = matrix[start + j] if j < left else np.float32(0)

    @device
    def put(registers, shared, start, thread):
        for i in range(own):
            four = thread + i * threads
            if four < fours:
                if along_k:
                    for j in range(4):
                        store1(shared, start + (four % across * 4 + j) * stride + four // across, registers[4 * i + j])
                else:
                    place = start + four // across * stride + four % across * 4
                    i4 = 4 * i
                    store4(shared, place, registers[i4], registers[i4 + 1], registers[i4 + 2], registers[i4 + 3])

    return fetch, put, own


def holder(parts, part_length):
    """Return a function that takes what a thread multiplies in one step from shared memory into registers."""

    @device
    def hold(shared, place, registers):
        for i in range(parts):
            i4 = 4 * i
            registers[i4], registers[i4 + 1], registers[i4 + 2], registers[i4 + 3] = load4(
                shared, place + i * part_length
            )

    return hold


def outer_product_adder(rows, columns):
    """Return a function that adds a bᵀ, of so many rows and columns, to sums in registers."""

    @device
    def add_outer_product(a, b, sums):
        for i in range(rows):
            for j in range(columns):
                sums[i * columns + j] += a[i] * b[j]

    return add_outer_product


def _make(name, tile, A_along_k, B_along_k):
    """Return the kernel of a tile."""
    rows_tile, columns_tile, threads = tile.rows, tile.columns, tile.threads
    row_parts, column_parts, thread_columns = tile.row_parts, tile.column_parts, tile.thread_columns
    part_rows, part_columns = rows_tile // row_parts, columns_tile // column_parts
    part_fours, zero = part_columns // 4, np.float32(0)
    held_rows, held_columns = 4 * row_parts, 4 * column_parts
    steps = tile.inner
    fetch_A, put_A, own_A = _loader(A_along_k, rows_tile, steps, threads)
    fetch_B, put_B, own_B = _loader(B_along_k, columns_tile, steps, threads)
    fetched_A, fetched_B, held = 4 * own_A, 4 * own_B, held_rows * held_columns
    A_stride, B_stride = rows_tile + PAD, columns_tile + PAD
    A_step, B_step = steps * A_stride, steps * B_stride
    B_start = 2 * A_step
    # The finish uses the same memory for one part of the tile.
    shared_size = max(B_start + 2 * B_step, part_rows * part_columns)
    groups = part_rows // PARTIAL_ROWS
    assert part_rows % PARTIAL_ROWS == 0

    hold_A, hold_B = holder(row_parts, part_rows), holder(column_parts, part_columns)
    add_outer_product = outer_product_adder(held_rows, held_columns)

    @kernel(
        "f4* f4* f4* i4* f4* f4* f4* " + "i4 " * 10 + "i8 i8 i8 i8 f4* f4*",
        threads=threads,
        name=name,
        blocks=tile.blocks,
    )
    def multiply(
        A,  # (R, K) along k, else (K, R)
        B,  # (N, K) along k, else (K, N)
        c,  # (S, N), if with_c
        sets,  # (R,), if with_sets
        scales,  # (R,), if scaled
        masked_by,  # (R, N), if masked
        weights,  # (R,), if weighted
        with_c,
        with_sets,
        scaled,
        relu,
        masked,
        weighted,
        code,  # NO_POOL, SUM or MAX
        A_aligned,
        B_aligned,
        out_aligned,  # and c and masked_by
        rows,  # R
        columns,  # N
        inner,  # K
        inner_part,  # of each part, K if there is one
        out,  # (parts, R, N)
        partials,  # (G + S − 1, N)
    ):
        shared = cuda.shared.array(shared_size, np.float32)
        next_A = cuda.local.array(fetched_A, np.float32)
        next_B = cuda.local.array(fetched_B, np.float32)
        a = cuda.local.array(held_rows, np.float32)
        b = cuda.local.array(held_columns, np.float32)
        next_a = cuda.local.array(held_rows, np.float32)
        next_b = cuda.local.array(held_columns, np.float32)
        sums = cuda.local.array(held, np.float32)

        thread = cuda.threadIdx.x
        thread_row = thread // thread_columns
        thread_column = thread % thread_columns
        column_tiles = (columns + columns_tile - 1) // columns_tile
        row_tiles = (rows + rows_tile - 1) // rows_tile
        block = np.int64(cuda.blockIdx.x)
        # Neighbouring blocks share rows of A, the larger matrix.
        first_column = block % column_tiles * columns_tile
        first_row = block // column_tiles % row_tiles * rows_tile
        part = block // column_tiles // row_tiles
        k = part * inner_part
        end_k = min(k + inner_part, inner)
        A_lead = inner if A_along_k else rows
        B_lead = inner if B_along_k else columns

        for i in range(held):
            sums[i] = np.float32(0)
        fetch_A(A, A_lead, first_row, rows, k, end_k, A_aligned, thread, next_A)
        fetch_B(B, B_lead, first_column, columns, k, end_k, B_aligned, thread, next_B)
        put_A(next_A, shared, 0, thread)
        put_B(next_B, shared, B_start, thread)
        cuda.syncthreads()
        turn = 0
        while k < end_k:
            k += steps
            if k < end_k:
                fetch_A(A, A_lead, first_row, rows, k, end_k, A_aligned, thread, next_A)
                fetch_B(B, B_lead, first_column, columns, k, end_k, B_aligned, thread, next_B)
            A_place = turn * A_step + 4 * thread_row
            B_place = B_start + turn * B_step + 4 * thread_column
            # Two steps at a time: shared memory answers one while the other is multiplied.
            for _ in range(steps // 2):
                hold_A(shared, A_place, a)
                hold_B(shared, B_place, b)
                hold_A(shared, A_place + A_stride, next_a)
                hold_B(shared, B_place + B_stride, next_b)
                add_outer_product(a, b, sums)
                add_outer_product(next_a, next_b, sums)
                A_place += 2 * A_stride
                B_place += 2 * B_stride
            turn = 1 - turn
            if k < end_k:
                # The other half of shared memory: nobody reads it any more since the last barrier.
                put_A(next_A, shared, turn * A_step, thread)
                put_B(next_B, shared, B_start + turn * B_step, thread)
            cuda.syncthreads()

        # Part by part, the tile goes through shared memory: rows are written whole, and their columns can be added up.
        for i in range(row_parts):
            for j in range(column_parts):
                # Which part it is, is decided among constants: a place that is computed would put ``sums`` in memory.
                for own in range(row_parts * column_parts):
                    if own == i * column_parts + j:
                        for r in range(4):
                            h = (own // column_parts * 4 + r) * held_columns + own % column_parts * 4
                            place = (4 * thread_row + r) * part_columns + 4 * thread_column
                            store4(shared, place, sums[h], sums[h + 1], sums[h + 2], sums[h + 3])
                cuda.syncthreads()
                for unit in range(thread, part_rows * part_fours, threads):
                    row = first_row + i * part_rows + unit // part_fours
                    column = first_column + j * part_columns + unit % part_fours * 4
                    left = columns - column
                    if row < rows and left > 0:
                        z0, z1, z2, z3 = load4(shared, 4 * unit)
                        place = (part * rows + row) * columns + column
                        if with_c:
                            s = np.int64(sets[row]) if with_sets else np.int64(0)
                            scale = scales[row] if scaled else np.float32(1)
                            c0, c1, c2, c3 = _four(c, s * columns + column, left, out_aligned)
                            z0 += scale * c0
                            z1 += scale * c1
                            z2 += scale * c2
                            z3 += scale * c3
                        if relu:
                            # Written so that a NaN stays one.
                            z0 = zero if z0 < zero else z0
                            z1 = zero if z1 < zero else z1
                            z2 = zero if z2 < zero else z2
                            z3 = zero if z3 < zero else z3
                        if masked:
                            h0, h1, h2, h3 = _four(masked_by, place, left, out_aligned)
                            z0 = z0 if h0 > zero else zero
                            z1 = z1 if h1 > zero else zero
                            z2 = z2 if h2 > zero else zero
                            z3 = z3 if h3 > zero else zero
                        if out_aligned:
                            store4(out, place, z0, z1, z2, z3)
                        else:
                            out[place] = z0
                            if left > 1:
                                out[place + 1] = z1
                            if left > 2:
                                out[place + 2] = z2
                            if left > 3:
                                out[place + 3] = z3
                        if code != NO_POOL:
                            store4(shared, 4 * unit, z0, z1, z2, z3)
                cuda.syncthreads()
                if code != NO_POOL:
                    for unit in range(thread, groups * part_columns, threads):
                        column = first_column + j * part_columns + unit % part_columns
                        place = unit // part_columns * PARTIAL_ROWS
                        row = first_row + i * part_rows + place
                        if row < rows and column < columns:
                            count = min(np.int64(PARTIAL_ROWS), rows - row)
                            place = place * part_columns + unit % part_columns
                            pool_rows(
                                shared, place, part_columns, row, count, column, columns,
                                sets, weights, weights, with_sets, weighted, code, partials,
                            )  # fmt: skip
                    cuda.syncthreads()

    return multiply


@device
def _four(matrix, place, left, is_aligned):
    """Return four numbers of a row, of which there may be fewer left."""
    zero = np.float32(0)
    if is_aligned and left > 0:
        return load4(matrix, place)
    return (
        matrix[place] if left > 0 else zero,
        matrix[place + 1] if left > 1 else zero,
        matrix[place + 2] if left > 2 else zero,
        matrix[place + 3] if left > 3 else zero,
    )


PRODUCTS = {
    most: (
        tile,
        {
            "plain": _make(f"product_{tile.rows}x{tile.columns}", tile, True, False),
            "turned": _make(f"product_turned_{tile.rows}x{tile.columns}", tile, True, True),
            "transposed": _make(f"product_transposed_{tile.rows}x{tile.columns}", tile, False, False),
        },
    )
    for most, tile in TILES.items()
}


@kernel("f4* i4* f4* f4* f4* " + "i4 " * 7 + "i8 i8 f4* f4*", threads=THREADS)
def _finish_product(
    c,  # (S, N), if with_c
    sets,  # (R,), if with_sets
    scales,  # (R,), if scaled
    masked_by,  # (R, N), if masked
    weights,  # (R,), if weighted
    with_c,
    with_sets,
    scaled,
    relu,
    masked,
    weighted,
    code,  # NO_POOL, SUM or MAX
    rows,  # R
    columns,  # N
    out,  # (R, N)
    partials,  # (G + S − 1, N)
):
    """Do what `multiply` does with a tile, with a product that the library has written."""
    zero = np.float32(0)
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    column = unit % columns
    first = unit // columns * PARTIAL_ROWS
    if first < rows:
        group, s, total = unit // columns, np.int64(0), pooled_nothing(code)
        for row in range(first, min(first + PARTIAL_ROWS, rows)):
            place = row * columns + column
            z = out[place]
            if with_sets:
                own = np.int64(sets[row])
                if code != NO_POOL and row > first and own != s:
                    partials[(group + s) * columns + column] = total
                    total = pooled_nothing(code)
                s = own
            if with_c:
                scale = scales[row] if scaled else np.float32(1)
                z += scale * c[s * columns + column]
            if relu:
                z = zero if z < zero else z
            if masked:
                z = z if masked_by[place] > zero else zero
            out[place] = z
            total = pooled(total, z, weights[row] if weighted else np.float32(1), code)
        if code != NO_POOL:
            partials[(group + s) * columns + column] = total


@kernel("f4* i4 i8 f4*", threads=THREADS)
def _round_to_bf16(
    numbers,  # (size,)
    is_aligned,
    size,
    pairs,  # (size / 2,), rounded up to 4
):
    unit = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
    first = unit * ROUNDED
    if first < size:
        left = size - first
        a0, a1, a2, a3 = _four(numbers, first, left, is_aligned and left >= 4)
        b0, b1, b2, b3 = _four(numbers, first + 4, left - 4, is_aligned and left >= ROUNDED)
        first_pairs, second_pairs = round_bf16(a0, a1), round_bf16(a2, a3)
        store4(pairs, first // 2, first_pairs, second_pairs, round_bf16(b0, b1), round_bf16(b2, b3))


@kernel("f4* i8 i8 f4*", threads=FINISH_THREADS)
def _add_parts(
    parts,  # (P, size)
    count,  # P
    size,
    total,  # (size,), added to
):
    shared = cuda.shared.array(FINISH_THREADS, np.float64)
    thread = cuda.threadIdx.x
    place = np.int64(cuda.blockIdx.x) * FINISH_COLUMNS + thread % FINISH_COLUMNS
    added = np.float64(0)
    if place < size:
        for part in range(thread // FINISH_COLUMNS, count, FINISH_SHARES):
            added += np.float64(parts[part * size + place])
    shared[thread] = added
    cuda.syncthreads()
    if thread < FINISH_COLUMNS and place < size:
        for share in range(1, FINISH_SHARES):
            added += shared[share * FINISH_COLUMNS + thread]
        total[place] += np.float32(added)
