"""The product of a layer with its weights by warpgroups, on the tensor cores of Hopper, with its start and finish.

A block of two warpgroups computes 128 rows × 256 columns; a warp has 16 of the rows, and all columns. Its rows of A
come from memory to the registers that multiply them, and are rounded there; B lies in shared memory in the order in
which tensor cores take it (``warpgroups.py``), in a ring of stages. While a stage is multiplied, the next ones come.

B is the layer's weights, which a launch before has rounded and put into that order (`arranged`), so that a stage is a
piece of memory. Of 16 steps along k a thread has four that lie side by side, 128 bits: which step is which of a product
matters to nobody, as long as it is the same in both factors. Where A is kept in bfloat16 (``pairs.py``), its rows come
as they are multiplied, and of 32 steps a thread has eight.
"""

import functools

import numpy as np

from fastperm.kernels.cuda import warpgroups
from fastperm.kernels.cuda.bulk_copies import (
    BARRIER,
    barriers_are_made,
    copy_to_block,
    copy_to_blocks,
    expect_bytes,
    have_arrived,
    make_barrier,
    meet_cluster,
)
from fastperm.kernels.cuda.cluster_probe import clusters_run
from fastperm.kernels.cuda.compiling import (
    FLOAT32,
    HOPPER,
    SIMULATED,
    cuda,
    current_architecture,
    current_device,
    device,
    kernel,
    xp,
)
from fastperm.kernels.cuda.pooling import THREADS
from fastperm.kernels.cuda.product_finish import FETCHED, part_finisher
from fastperm.kernels.cuda.tensor_cores import TENSOR_CORES
from fastperm.kernels.cuda.vectors import (
    cluster_barrier,
    cluster_rank,
    cluster_size,
    load1_or_zero,
    load4_or_zeros,
    store2,
)
from fastperm.kernels.cuda.warpgroups import (
    SUMS,
    begin_products,
    end_products,
    wait_for_products,
    wait_for_products_but_one,
)

ROWS, COLUMNS, WARP = 128, warpgroups.COLUMNS, 32
BLOCK = 2 * warpgroups.WARPGROUP  # threads: as many as columns
PRODUCT = COLUMNS // 8 * 2 * warpgroups.CORE  # words of B that a product takes
ROOMS = 4  # for stages of B: one is multiplied while one before may still be, and two more come
OUT_STRIDE = COLUMNS + 8  # numbers between rows of the finished tile
AT_ONCE = 8  # pieces of it that a thread finishes with one wait for memory
FOR_FINISH = FETCHED * AT_ONCE
TEAM = 2  # blocks that share columns of weights, each of which brings its part of them to all
# Narrower layers leave half of the block without work.
LEAST = 192
STEPS = {"tf32": 32, "bfloat16": 64}  # of a stage
# Where barriers begin in shared memory, in words: behind the stages, of four products at most, and the finished tile.
BARRIERS = max(ROOMS * 4 * PRODUCT, ROWS * OUT_STRIDE)
SHARED_BYTES = 4 * (BARRIERS + BARRIER * ROOMS)
MULTIPLY = {"tf32": warpgroups.multiply_tf32, "bfloat16": warpgroups.multiply_bf16}


def are_there():
    """Return whether the current device has warpgroups that multiply."""
    return not SIMULATED and _are_there(current_device())


@functools.cache
def _are_there(device):
    return current_architecture() == HOPPER


def _products(precision):
    """Return how many products a stage is."""
    return STEPS[precision] // TENSOR_CORES[precision].steps


def _stage_adder(precision):
    """Return a function that begins to add the products of a stage, and waits for those of the stage before."""
    multiply = MULTIPLY[precision]
    assert _products(precision) == 4

    @device
    def add_stage(a, shared, room, sums):
        begin_products()
        multiply(sums, a[0], a[1], a[2], a[3], shared, room)
        multiply(sums, a[4], a[5], a[6], a[7], shared, room + PRODUCT)
        multiply(sums, a[8], a[9], a[10], a[11], shared, room + 2 * PRODUCT)
        multiply(sums, a[12], a[13], a[14], a[15], shared, room + 3 * PRODUCT)
        end_products()
        wait_for_products_but_one()

    return add_stage


def _adder(precision, in_pairs):
    """Return a function that adds A B of a tile to the sums of a thread, where A lies along k and B is `arranged`."""
    cores, each = TENSOR_CORES[precision], 2 if in_pairs else 1  # numbers of a word
    steps = STEPS[precision] // each  # words along k of a stage
    rounded, pack, fours, products = cores.rounded, cores.pack, steps // 16, _products(precision)
    fetched, held, stage = 8 * fours, 4 * products, products * PRODUCT
    add_stage = _stage_adder(precision)

    @device
    def fetch_rows(A, first, second, left, second_left, numbers):
        for i in range(fours):
            n, step = 8 * i, 16 * i
            numbers[n], numbers[n + 1], numbers[n + 2], numbers[n + 3] = load4_or_zeros(A, first + step, step < left)
            numbers[n + 4], numbers[n + 5], numbers[n + 6], numbers[n + 7] = load4_or_zeros(
                A, second + step, step < second_left
            )

    @device
    def round_rows(numbers, a):
        for i in range(fours):
            n = 8 * i
            if pack == 1 or in_pairs:  # two products, each of half of these words
                for half in range(2):
                    j, m = n + 4 * half, n + 2 * half
                    if in_pairs:
                        a[j], a[j + 1], a[j + 2], a[j + 3] = numbers[m], numbers[m + 4], numbers[m + 1], numbers[m + 5]
                    else:
                        a[j], a[j + 1] = rounded(numbers[m]), rounded(numbers[m + 4])
                        a[j + 2], a[j + 3] = rounded(numbers[m + 1]), rounded(numbers[m + 5])
            else:
                j = 4 * i
                a[j], a[j + 1] = rounded(numbers[n], numbers[n + 1]), rounded(numbers[n + 4], numbers[n + 5])
                a[j + 2], a[j + 3] = rounded(numbers[n + 2], numbers[n + 3]), rounded(numbers[n + 6], numbers[n + 7])

    @device
    def fetch_columns(B, start, shared, room, place, share, blocks):
        barrier = BARRIERS + BARRIER * room
        expect_bytes(shared, barrier, 4 * stage)
        if share == stage:
            copy_to_block(shared, room * stage, B, start, 4 * stage, barrier)
        else:
            copy_to_blocks(shared, room * stage + place, B, start + place, 4 * share, barrier, blocks)

    @device
    def wait_for_columns(shared, room, phase):
        while not have_arrived(shared, BARRIERS + BARRIER * room, phase):
            pass
        cuda.syncwarp()  # products are begun by whole warps, and one thread had copies to begin

    @device
    def add_products(A, B, first_row, first_column, rows, inner, thread, shared, sums):
        numbers = cuda.local.array(fetched, np.float32)
        next_numbers = cuda.local.array(fetched, np.float32)
        a = cuda.local.array(held, np.float32)
        next_a = cuda.local.array(held, np.float32)

        inner //= each
        row, step = first_row + thread // WARP * 16 + thread % WARP // 4, thread % 4 * 4
        first = row * inner + step
        second = first + 8 * inner
        left = inner - step if row < rows else np.int64(0)
        second_left = inner - step if row + 8 < rows else np.int64(0)
        pairs = (inner + 2 * steps - 1) // (2 * steps)
        team = cluster_size()
        share, blocks = stage // team, (1 << team) - 1  # of each stage a block brings its share, to all
        place = cluster_rank() * share
        B_start = first_column // COLUMNS * pairs * (2 * stage)
        if thread == 0:
            for room in range(ROOMS):
                make_barrier(shared, BARRIERS + BARRIER * room)
            barriers_are_made()
        cluster_barrier()
        if thread == 0:
            fetch_columns(B, B_start, shared, 0, place, share, blocks)
            fetch_columns(B, B_start + stage, shared, 1, place, share, blocks)
        cuda.syncwarp()
        fetch_rows(A, first, second, left, second_left, numbers)
        fetch_rows(A, first + steps, second + steps, left - steps, second_left - steps, next_numbers)
        # Two stages at a time, whose rows of A have registers of their own: where they come, two stages ahead, and
        # where they are rounded, as the stage before may still be multiplied.
        for pair in range(pairs):
            room, phase = pair % 2 * 2, pair // 2 % 2
            B_start += 2 * stage

            meet_cluster()  # all have multiplied the stage before the last one
            if thread == 0 and pair + 1 < pairs:
                fetch_columns(B, B_start, shared, 2 - room, place, share, blocks)
            wait_for_columns(shared, room, phase)
            round_rows(numbers, a)
            first += 2 * steps
            second += 2 * steps
            left -= 2 * steps
            second_left -= 2 * steps
            fetch_rows(A, first, second, left, second_left, numbers)
            add_stage(a, shared, room * stage, sums)

            meet_cluster()
            if thread == 0 and pair + 1 < pairs:
                fetch_columns(B, B_start + stage, shared, 3 - room, place, share, blocks)
            wait_for_columns(shared, room + 1, phase)
            round_rows(next_numbers, next_a)
            fetch_rows(A, first + steps, second + steps, left - steps, second_left - steps, next_numbers)
            add_stage(next_a, shared, (room + 1) * stage, sums)
        meet_cluster()  # nothing is on its way from this block to another one any more

    return add_products


def _make(precision, in_pairs=False):
    """Return the kernel."""
    add_products = _adder(precision, in_pairs)
    finish_part, pool_part = part_finisher(ROWS, COLUMNS, OUT_STRIDE, BLOCK, at_once=AT_ONCE, in_pairs=in_pairs)

    @kernel(
        "f4* f4* f4* i4* f4* f4* f4* " + "i4 " * 7 + "i8 i8 i8 f4* f4*",
        threads=BLOCK,
        name=f"product_warpgroups_{'pairs_' if in_pairs else ''}{TENSOR_CORES[precision].name}",
        dynamic=True,
        clustered=True,
        only=HOPPER,
    )
    def multiply(
        A,  # (R, K), which may be in pairs; then so are masked_by and out
        B,  # `arranged`
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
        inner,  # K
        out,  # (R, N)
        partials,  # (G + S − 1, N)
    ):
        shared = cuda.shared.array(0, FLOAT32)
        sums = cuda.local.array(SUMS, np.float32)
        own_sets = cuda.local.array(AT_ONCE, np.int32)
        fetched = cuda.local.array(FOR_FINISH, np.float32)

        thread = cuda.threadIdx.x
        team = cluster_size()  # blocks that share columns, each with rows of its own
        column_tiles = (columns + COLUMNS - 1) // COLUMNS
        row_tiles = ((rows + ROWS - 1) // ROWS + team - 1) // team * team
        block = np.int64(cuda.blockIdx.x)
        # Neighbouring blocks, or clusters, share rows of A, the larger matrix.
        own_team = block // team
        first_column = own_team % column_tiles * COLUMNS
        first_row = (own_team // column_tiles * team + block % team) % row_tiles * ROWS
        for i in range(SUMS):
            sums[i] = np.float32(0)
        add_products(A, B, first_row, first_column, rows, inner, thread, shared, sums)
        wait_for_products()
        cuda.syncthreads()  # the finished tile takes the place of the stages

        # The tile goes through shared memory: rows are written whole, and their columns can be added up.
        place = (thread // WARP * 16 + thread % WARP // 4) * OUT_STRIDE + thread % 4 * 2
        for i in range(COLUMNS // 8):
            store2(shared, place + 8 * i, sums[4 * i], sums[4 * i + 1])
            store2(shared, place + 8 * OUT_STRIDE + 8 * i, sums[4 * i + 2], sums[4 * i + 3])
        cuda.syncthreads()
        finish_part(
            shared, first_row, first_column, thread, c, sets, scales, masked_by,
            with_c, with_sets, scaled, relu, masked, code, True, rows, columns, 0, out, own_sets, fetched,
        )  # fmt: skip
        cuda.syncthreads()
        pool_part(
            shared, first_row, first_column, thread,
            sets, weights, with_sets, weighted, code, rows, columns, partials,
        )  # fmt: skip

    return multiply


def _arranger(precision, in_pairs=False):
    """Return the kernel of `arranged`."""
    rounded, pack = TENSOR_CORES[precision].rounded, TENSOR_CORES[precision].pack
    name = f"arranged_{'pairs_' if in_pairs else ''}{TENSOR_CORES[precision].name}"

    @kernel("f4* i8 i8 i8 i8 i8 f4*", threads=THREADS, name=name, only=HOPPER)
    def arrange(
        B,
        k_stride,  # elements from one step to the next
        column_stride,  # and from one column
        inner,  # K
        columns,  # N
        products,  # for a tile of columns
        out,  # (tiles, products, COLUMNS / 8, 2, 8, 4)
    ):
        word = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        product = word // PRODUCT
        column = product // products * COLUMNS + word % PRODUCT // 64 * 8 + word % 32 // 4
        half, product = word % 64 // 32, product % products
        if pack == 1:
            k = product // 2 * 16 + word % 4 * 4 + product % 2 * 2 + half
        elif in_pairs:
            k = product // 2 * 32 + word % 4 * 8 + product % 2 * 4 + half * 2
        else:
            k = product * 16 + word % 4 * 4 + half * 2
        place = k * k_stride + column * column_stride
        if pack == 1:
            out[word] = rounded(load1_or_zero(B, place, k < inner and column < columns))
        else:
            low = load1_or_zero(B, place, k < inner and column < columns)
            out[word] = rounded(low, load1_or_zero(B, place + k_stride, k + 1 < inner and column < columns))

    return arrange


# By precision, and whether rows are in pairs.
WAYS = (*((precision, False) for precision in TENSOR_CORES), ("bfloat16", True))
KERNELS_OF = {way: _make(*way) for way in WAYS}
ARRANGERS = {way: _arranger(*way) for way in WAYS}


def arranged(precision, B, *, along_k=False, in_pairs=False):
    """Return weights (K, N), or (N, K) if they lie along k, as a kernel takes them: stages of tiles of columns."""
    inner, columns = B.shape[::-1] if along_k else B.shape
    steps = 2 * STEPS[precision]
    products = -(-inner // steps) * 2 * _products(precision)
    size = -(-columns // COLUMNS) * products * PRODUCT
    out = xp().empty(size, np.float32)
    strides = (1, inner) if along_k else (columns, 1)
    ARRANGERS[precision, in_pairs](size // THREADS, B, *strides, inner, columns, products, out)
    return out


def launch(precision, A, weights, rest, rows, columns, inner, out, partials, *, in_pairs=False):
    """Launch A B for `arranged` weights, arranged for what is in pairs if it is."""
    team = TEAM if -(-rows // ROWS) > 1 and clusters_run(TEAM, SHARED_BYTES) else 1
    blocks = -(-rows // (ROWS * team)) * team * -(-columns // COLUMNS)
    kernel = KERNELS_OF[precision, in_pairs]
    kernel(blocks, A, weights, *rest, rows, columns, inner, out, partials, shared=SHARED_BYTES, cluster=team)
