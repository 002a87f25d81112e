"""The one matrix product, with everything that goes with a layer in its start and its finish.

    out_n = finish(Σ_k A_nk B_k + scale_n c_s(n)),     finish: ReLU, or zero where a mask is not positive

`way_of` says what computes it: the register tiles below, those of tensor cores (``product_on_cores.py``; on Hopper,
``product_on_warpgroups.py``), or NVIDIA's library (``library.py``), after which a pass over memory does what the finish
of a tile does (``product_finish.py``). A few features have kernels of their own (``product_of_few.py``).

A block computes a tile of out, in stages along k. Shared memory holds two of them: while the threads multiply one, the
next is on its way from memory to their registers. Each thread holds 4 × 4 numbers of up to four parts of the tile
(`Tile`), so that a warp reads shared memory 128 bits at a time without bank conflicts.
A, B or both may be stored along k: then the loader turns them on their way into shared memory. So the same template
serves x W (A along k), g Wᵀ (both) and xᵀ g (neither); for the last the rows are what is summed over, in ``parts``
that are added up in a fixed order by `parts.add_parts`.

The finish adds up every PARTIAL_ROWS rows of out for the next pooling or gradient while they are at hand, through
shared memory (`pooling.pool_rows`), instead of reading all of out again.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastperm.kernels.cuda import product_of_few, product_on_cores, product_on_warpgroups
from fastperm.kernels.cuda.compiling import SIMULATED, cuda, device, kernel, xp
from fastperm.kernels.cuda.library import in_float32, matmul, round_to_bf16
from fastperm.kernels.cuda.pairs import MULTIPLE, Pairs
from fastperm.kernels.cuda.parts import add_parts, parts_of
from fastperm.kernels.cuda.pooling import partial_sums
from fastperm.kernels.cuda.product_finish import FETCHED, NO_POOL, finish_product, flags_of, part_finisher
from fastperm.kernels.cuda.tiles import count_tiles, own_tile_of
from fastperm.kernels.cuda.vectors import aligned, load4, own_block, own_thread, rest_of, store1, store4

PAD = 4  # between steps in shared memory, against bank conflicts; keeps 16 bytes aligned

# xᵀ g is cut into so many parts that a large card has work (an H200 has 132 multiprocessors), but none of fewer rows.
# Both depend on the shapes alone, and so do the bits of the result.
BLOCKS, BLOCKS_OF_FEW = (8, 16) if SIMULATED else (512, 2048)
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
# On tensor cores, in TF32 and bfloat16, the products of so many columns and steps, and only of those whose rows are
# aligned; wider ones are NVIDIA's, where warpgroups do not multiply by weights, and narrower ones stay in float32. For
# xᵀ g, whose rows our tiles fetch no faster than it, NVIDIA's library comes earlier: see docs/performance.md.
LEAST_ROUNDED, LIBRARY_ROUNDED = (16, 40) if SIMULATED else (16, 1024)
LIBRARY_ROUNDED_TRANSPOSED = {"tf32": 40, "bfloat16": 40} if SIMULATED else {"tf32": 128, "bfloat16": 512}
BY_LIBRARY, ON_WARPGROUPS, ON_CORES, BY_TILES = "library", "warpgroups", "cores", "tiles"


def product(
    A,  # (R, K)
    B,  # (K, N), or (N, K) if B_along_k
    out,  # (R, N); if it is `Pairs`, so are masked_by and, of more than a few features, A
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
    given = (c, sets, scales, masked_by, weights)
    flags = flags_of(*given, relu, code)
    if isinstance(out, Pairs):
        _product_in_pairs(A, B, out, B_along_k, given, flags, partials)
        return partials
    A_aligned, B_aligned = aligned(A, inner), aligned(B, inner if B_along_k else columns)
    out_aligned = all(aligned(array, columns) for array in (out, c, masked_by))
    way = way_of(inner, columns, precision, is_aligned=A_aligned and out_aligned)
    if way == BY_LIBRARY:
        matmul(A, B, out, precision, B_turned=B_along_k)
        if any(flags[:-1]) or code != NO_POOL:
            finish_product(given, flags, out, partials)
        return partials
    rest, shape = (*given, *flags), (rows, columns, inner, inner)
    if way == ON_WARPGROUPS:
        B = product_on_warpgroups.arranged(precision, B, along_k=B_along_k)
        product_on_warpgroups.launch(precision, A, B, rest, rows, columns, inner, out, partials)
    elif way == ON_CORES:
        B = product_on_cores.weights_for(precision, B, is_aligned=B_aligned)  # they begin anywhere among the parameters
        tiles, how = count_tiles(product_on_cores.TILE, rows, columns), {"A_along_k": True, "B_along_k": B_along_k}
        product_on_cores.launch(tiles, precision, A, B, *rest, *shape, out, partials, **how)
    elif inner <= product_of_few.MOST:
        product_of_few.launch_finished(A, B, rest, B_along_k, out_aligned, columns, out, partials)
    else:
        tile, kernels = suited(columns)
        tiles, alignment = count_tiles(tile, rows, columns), (A_aligned, B_aligned, out_aligned)
        kernels["turned" if B_along_k else "plain"](tiles, A, B, *rest, *alignment, *shape, out, partials)
    return partials


def _product_in_pairs(A, B, out, B_along_k, given, flags, partials):
    """Do what `product` does where activations are kept in bfloat16."""
    c, sets, scales, masked_by, weights = given
    (rows, inner), columns = A.shape, out.shape[1]
    rest = (c, sets, scales, None if masked_by is None else masked_by.words, weights, *flags)
    if inner <= product_of_few.MOST:
        assert masked_by is None  # an element has no mask
        product_of_few.launch_finished(A, B, rest, B_along_k, True, columns, out.words, partials, in_pairs=True)
    elif way_of(inner, columns, "bfloat16") == ON_WARPGROUPS:
        B = product_on_warpgroups.arranged("bfloat16", B, along_k=B_along_k, in_pairs=True)
        shape = (rows, columns, inner)
        product_on_warpgroups.launch("bfloat16", A.words, B, rest, *shape, out.words, partials, in_pairs=True)
    else:
        numbers = xp().empty(out.shape, np.float32)
        matmul(A, B, numbers, "bfloat16", B_turned=B_along_k)
        mask = None if masked_by is None else in_float32(masked_by)
        finish_product((c, sets, scales, mask, weights), flags, numbers, partials)
        round_to_bf16(numbers, out.words)


def may_be_in_pairs(
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,  # "mean", "sum" or "max"
    pool,  # "mean", "sum", "max" or None
    orders,  # M of angular layers
    precision,
):
    """Return whether h_1 … h_D and their gradients may be `Pairs`: maxima and tiles of our own need them in float32."""
    hidden = widths[1:-1]
    return (
        precision == "bfloat16"
        and not orders
        and aggregate != "max"
        and pool not in {"max", None}
        and widths[0] <= product_of_few.MOST
        and len(hidden) > 1
        and all(width % MULTIPLE == 0 for width in hidden)
        and all(way_of(*both, precision) in {ON_WARPGROUPS, BY_LIBRARY} for both in pairwise(hidden))
    )


def add_transposed_product(
    x,  # (R, M)
    g,  # (R, N), which may be `Pairs`, as x then is, if it has more than a few features
    total,  # (M, N): gets xᵀ g added
    *,
    precision="float32",  # or what tensor cores may round the factors to: "tf32" or "bfloat16"
):
    inner, columns = g.shape
    rows, in_pairs = x.shape[1], isinstance(g, Pairs)
    alignment = (True, True) if in_pairs else (aligned(x, rows), aligned(g, columns))
    way = way_of(rows, columns, precision, is_aligned=all(alignment), transposed=True)
    if way == BY_LIBRARY or isinstance(x, Pairs):
        assert precision == "bfloat16" or not in_pairs
        matmul(x, g, total, precision, A_turned=True, adds=True)
        return
    own_tile, kernels = suited(columns)
    few = way == BY_TILES and rows <= product_of_few.MOST
    if few:
        tiles = product_of_few.tiles(columns, in_pairs=in_pairs)
    else:
        tiles = count_tiles(product_on_cores.TILE if way == ON_CORES else own_tile, rows, columns)
    parts, inner_part = parts_of(inner, (BLOCKS_OF_FEW if few else BLOCKS) // tiles, LEAST_ROWS)
    out = xp().empty((parts, rows, columns), np.float32)
    nothing = (None,) * 5
    rest, shape = (*nothing, *flags_of(*nothing, False, NO_POOL)), (rows, columns, inner, inner_part)
    if few:
        product_of_few.launch(parts, x, g.words if in_pairs else g, inner_part, out, in_pairs=in_pairs)
    elif way == ON_CORES:
        how = {"A_along_k": False, "B_along_k": False}
        product_on_cores.launch(tiles * parts, precision, x, g, *rest, *shape, out, None, **how)
    else:
        kernels["transposed"](tiles * parts, x, g, *rest, *alignment, aligned(out, columns), *shape, out, None)
    add_parts(out, total)


def way_of(inner, columns, precision="float32", *, is_aligned=True, transposed=False):
    """Return what computes a product: `BY_LIBRARY`, `ON_WARPGROUPS`, `ON_CORES` or `BY_TILES`.

    ``transposed`` says whether it is xᵀ g, of so many rows and columns, and not one with a layer's weights.
    """
    narrowest = min(inner, columns)
    if precision == "float32":
        return BY_LIBRARY if narrowest >= (LIBRARY_TRANSPOSED if transposed else LIBRARY) else BY_TILES
    if narrowest < LEAST_ROUNDED:
        return BY_TILES
    if not is_aligned or inner % 4 or columns % 4:
        return BY_LIBRARY
    if not transposed and narrowest >= product_on_warpgroups.LEAST and product_on_warpgroups.are_there():
        return ON_WARPGROUPS
    return (
        BY_LIBRARY
        if narrowest >= (LIBRARY_ROUNDED_TRANSPOSED[precision] if transposed else LIBRARY_ROUNDED)
        else ON_CORES
    )


def suited(columns):
    """Return the tile for so many columns, and its kernels."""
    return next(found for most, found in PRODUCTS.items() if columns <= most)


def _loader(along_k, length, inner, threads):
    """Return functions that bring ``length`` rows or columns × ``inner`` steps of a matrix into shared memory.

    ``fetch`` takes any stage into registers, four numbers at a time, and ``fetch_whole`` the next one of an aligned
    matrix that has all its steps, with nothing to ask; ``begin`` says where the first of them is. ``put`` writes them
    from there to shared memory, step by step, each ``length + PAD`` numbers apart, from `place_of` the thread on.
    """
    fours = inner * length // 4
    own = fours // threads
    across = inner // 4 if along_k else length // 4
    stride = length + PAD
    assert own * threads == fours
    assert threads % across == 0 or across % threads == 0  # so that places in shared memory are sums

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
            if is_aligned and left >= 4:
                registers[4 * i], registers[4 * i + 1], registers[4 * i + 2], registers[4 * i + 3] = load4(
                    matrix, start
                )
            else:
                for j in range(4):
                    registers[4 * i + j] = matrix[start + j] if j < left else np.float32(0)

    @device
    def begin(matrix, lead, first, end, first_k, thread, apart):
        start = np.int64(0)  # of the first four of a thread; how far apart the others are, does not change
        for i in range(own):
            four = thread + i * threads
            # Beyond the end the last ones come again: nobody takes the sums that they go into.
            if along_k:
                place = min(first + four // across, end - 1) * lead + first_k + four % across * 4
            else:
                place = (first_k + four // across) * lead + min(first + four % across * 4, end - 4)
            if i == 0:
                start = place
            apart[i] = place - start
        return rest_of(matrix, start)

    @device
    def fetch_whole(rest, apart, registers):
        for i in range(own):
            registers[4 * i], registers[4 * i + 1], registers[4 * i + 2], registers[4 * i + 3] = load4(rest, apart[i])

    @device
    def place_of(four):
        line, place = four // across, four % across * 4
        return place * stride + line if along_k else line * stride + place

    @device
    def put(registers, shared, place):
        for i in range(own):
            own_place, i4 = place + place_of(i * threads), 4 * i
            if along_k:
                for j in range(4):
                    store1(shared, own_place + j * stride, registers[i4 + j])
            else:
                store4(shared, own_place, registers[i4], registers[i4 + 1], registers[i4 + 2], registers[i4 + 3])

    return fetch, begin, fetch_whole, place_of, put, own


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


def place_in_grid(rows):
    """Return a function that says in which row and column of a grid of so many rows a thread is.

    Shared memory answers 128 bits in half of the time where all threads i and i ^ 1 of a warp ask for the same numbers,
    or all i and i ^ 2. So neighbours are of one column, and those that are two apart of one row.
    """

    @device
    def place(thread):
        row, column = thread % rows, thread // rows
        if rows > 1:
            row = thread % 2 + thread // 4 % (rows // 2) * 2
            column = thread // 2 % 2 + thread // (2 * rows) * 2
        return row, column

    return place


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
    held_rows, held_columns = 4 * row_parts, 4 * column_parts
    steps = tile.inner
    fetch_A, begin_A, fetch_whole_A, place_of_A, put_A, own_A = _loader(A_along_k, rows_tile, steps, threads)
    fetch_B, begin_B, fetch_whole_B, place_of_B, put_B, own_B = _loader(B_along_k, columns_tile, steps, threads)
    fetched_A, fetched_B, held = 4 * own_A, 4 * own_B, held_rows * held_columns
    A_stride, B_stride = rows_tile + PAD, columns_tile + PAD
    B_start = steps * A_stride
    stage_size = B_start + steps * B_stride
    # The finish uses the same memory for one part of the tile.
    part_stride = part_columns + PAD
    shared_size = max(2 * stage_size, part_rows * part_stride)
    finish_part, pool_part = part_finisher(part_rows, part_columns, part_stride, threads)
    # Warps are 4 × 8 threads, side by side.
    in_warps = tile.thread_rows % 4 == thread_columns % 8 == 0
    place_in_warp, warps_across = place_in_grid(4), max(thread_columns // 8, 1)

    hold_A, hold_B = holder(row_parts, part_rows), holder(column_parts, part_columns)
    add_outer_product = outer_product_adder(held_rows, held_columns)

    at_once = min(steps, 8)  # steps that are one piece of code: compilers do not unroll so long a loop

    @device
    def add_two_steps(shared, A_place, B_place, a, b, next_a, next_b, sums):
        hold_A(shared, A_place, a)
        hold_B(shared, B_place, b)
        hold_A(shared, A_place + A_stride, next_a)
        hold_B(shared, B_place + B_stride, next_b)
        add_outer_product(a, b, sums)
        add_outer_product(next_a, next_b, sums)

    own_tile = own_tile_of(rows_tile, columns_tile)

    @device
    def own_place(thread):
        row, column = thread // thread_columns, thread % thread_columns
        if in_warps:
            row_in_warp, column_in_warp = place_in_warp(thread % 32)
            row = thread // 32 // warps_across * 4 + row_in_warp
            column = thread // 32 % warps_across * 8 + column_in_warp
        return row, column

    @device
    def multiply_and_put(shared, A_place, B_place, a, b, next_a, next_b, sums, A_put, B_put, next_A, next_B):
        # Two steps at a time: shared memory answers one while the other is multiplied.
        for _ in range(steps // at_once):
            add_two_steps(shared, A_place, B_place, a, b, next_a, next_b, sums)
            if at_once > 2:
                add_two_steps(shared, A_place + 2 * A_stride, B_place + 2 * B_stride, a, b, next_a, next_b, sums)
            if at_once > 4:
                add_two_steps(shared, A_place + 4 * A_stride, B_place + 4 * B_stride, a, b, next_a, next_b, sums)
                add_two_steps(shared, A_place + 6 * A_stride, B_place + 6 * B_stride, a, b, next_a, next_b, sums)
            A_place += at_once * A_stride
            B_place += at_once * B_stride
        # The other half of shared memory: nobody reads it any more since the last barrier.
        put_A(next_A, shared, A_put)
        put_B(next_B, shared, B_put)

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
        own_sets = cuda.local.array(1, np.int32)
        fetched = cuda.local.array(FETCHED, np.float32)
        A_apart = cuda.local.array(own_A, np.int64)
        B_apart = cuda.local.array(own_B, np.int64)

        thread = cuda.threadIdx.x
        thread_row, thread_column = own_place(thread)
        first_row, first_column, part = own_tile(np.int64(cuda.blockIdx.x), rows, columns)
        k = part * inner_part
        end_k = min(k + inner_part, inner)
        A_lead = inner if A_along_k else rows
        B_lead = inner if B_along_k else columns

        for i in range(held):
            sums[i] = np.float32(0)
        fetch_A(A, A_lead, first_row, rows, k, end_k, A_aligned, thread, next_A)
        fetch_B(B, B_lead, first_column, columns, k, end_k, B_aligned, thread, next_B)
        A_put, B_put = place_of_A(thread), B_start + place_of_B(thread)
        put_A(next_A, shared, A_put)
        put_B(next_B, shared, B_put)
        cuda.syncthreads()

        # From here on k is the step after those that are in shared memory. While whole stages are left, there is
        # nothing to ask and little to count: a multiprocessor issues no more than it does here.
        k += steps
        left = np.int32(max(end_k - k, 0) // steps) if A_aligned and B_aligned else np.int32(0)
        A_rest = begin_A(A, A_lead, first_row, rows, k, thread, A_apart)
        B_rest = begin_B(B, B_lead, first_column, columns, k, thread, B_apart)
        A_place, B_place = 4 * thread_row, B_start + 4 * thread_column
        turn = stage_size  # to the other half of shared memory
        A_put += turn
        B_put += turn
        while left > 0:
            fetch_whole_A(A_rest, A_apart, next_A)
            fetch_whole_B(B_rest, B_apart, next_B)
            A_rest = rest_of(A_rest, steps if A_along_k else steps * A_lead)
            B_rest = rest_of(B_rest, steps if B_along_k else steps * B_lead)
            multiply_and_put(shared, A_place, B_place, a, b, next_a, next_b, sums, A_put, B_put, next_A, next_B)
            A_place, B_place, A_put, B_put, turn = A_place + turn, B_place + turn, A_put - turn, B_put - turn, -turn
            left = np.int32(left - 1)
            cuda.syncthreads()

        # Then all others. What they need is computed anew: the loop above has no registers to keep it.
        thread = own_thread()
        first_row, first_column, part = own_tile(own_block(), rows, columns)
        k = part * inner_part
        end_k = min(k + inner_part, inner)
        k += steps
        if A_aligned and B_aligned:
            k += max(end_k - k, 0) // steps * steps
        while k - steps < end_k:
            if k < end_k:
                fetch_A(A, A_lead, first_row, rows, k, end_k, A_aligned, thread, next_A)
                fetch_B(B, B_lead, first_column, columns, k, end_k, B_aligned, thread, next_B)
            multiply_and_put(shared, A_place, B_place, a, b, next_a, next_b, sums, A_put, B_put, next_A, next_B)
            A_place, B_place, A_put, B_put, turn = A_place + turn, B_place + turn, A_put - turn, B_put - turn, -turn
            k += steps
            cuda.syncthreads()

        thread = own_thread()
        thread_row, thread_column = own_place(thread)
        # Part by part, the tile goes through shared memory: rows are written whole, and their columns can be added up.
        for i in range(row_parts):
            for j in range(column_parts):
                # Which part it is, is decided among constants: a place that is computed would put ``sums`` in memory.
                for own in range(row_parts * column_parts):
                    if own == i * column_parts + j:
                        for r in range(4):
                            h = (own // column_parts * 4 + r) * held_columns + own % column_parts * 4
                            place = (4 * thread_row + r) * part_stride + 4 * thread_column
                            store4(shared, place, sums[h], sums[h + 1], sums[h + 2], sums[h + 3])
                cuda.syncthreads()
                own_row, own_column = first_row + i * part_rows, first_column + j * part_columns
                finish_part(
                    shared, own_row, own_column, thread, c, sets, scales, masked_by,
                    with_c, with_sets, scaled, relu, masked, code, out_aligned, rows, columns, part * rows, out,
                    own_sets, fetched,
                )  # fmt: skip
                cuda.syncthreads()
                pool_part(
                    shared, own_row, own_column, thread,
                    sets, weights, with_sets, weighted, code, rows, columns, partials,
                )  # fmt: skip
                if code != NO_POOL:
                    cuda.syncthreads()

    return multiply


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
