"""The product of ``product.py`` on tensor cores, in one launch with its start and its finish.

Both factors come in float32, by copies that need no register, two stages ahead of the one that is multiplied, and are
rounded on their way from shared memory to the registers, but for weights in TF32, which were rounded before
(`weights_for`). A warp has fragments of 16 rows × 8 columns; thread 4 g + t of it holds rows g and g + 8 of a fragment,
and steps t and t + 4 of eight or, where a register has two of them, 2 t, 2 t + 1 and those eight further of sixteen.
Room between the lines keeps all accesses off each other's banks.
"""

from typing import NamedTuple

import numpy as np

from fastperm.kernels.cuda.compiling import FLOAT32, SIMULATED, cuda, device, kernel
from fastperm.kernels.cuda.copying import copied
from fastperm.kernels.cuda.product_finish import FETCHED, part_finisher
from fastperm.kernels.cuda.tensor_cores import TENSOR_CORES
from fastperm.kernels.cuda.tiles import own_tile_of
from fastperm.kernels.cuda.vectors import (
    copy4_or_zeros,
    end_copies,
    store2,
    wait_for_copies_but_one,
)

STAGES = 3  # in shared memory: one is multiplied while two are on their way
WARP = 32
PAD_OUT = 8  # between rows of the finished tile
AT_ONCE = 2 if SIMULATED else 4  # pieces of it that a thread finishes with one wait for memory


class Tile(NamedTuple):
    """What a block computes: a grid of warps, each with a grid of fragments."""

    row_warps: int
    column_warps: int
    row_fragments: int  # of 16 rows
    column_fragments: int  # of 8 columns
    inner: int  # steps of a stage
    blocks: int = 1  # on a multiprocessor

    @property
    def threads(self):
        """Number of threads of the block."""
        return WARP * self.row_warps * self.column_warps

    @property
    def rows(self):
        """Number of rows of the tile."""
        return 16 * self.row_fragments * self.row_warps

    @property
    def columns(self):
        """Number of columns of the tile."""
        return 8 * self.column_fragments * self.column_warps

    @property
    def out_stride(self):
        """Numbers from one row of the finished tile to the next, in shared memory."""
        return self.columns + PAD_OUT

    def shared_bytes(self, cores, *, A_along_k, B_along_k):
        """Return the shared memory of a block."""
        stage = _stage(cores, A_along_k, self.rows, self.inner) + _stage(cores, B_along_k, self.columns, self.inner)
        return 4 * max(STAGES * stage, self.rows * self.out_stride)


# A warp of 64 × 64 takes one number from shared memory for 32 multiply-adds, and two blocks fit on a multiprocessor.
TILE = Tile(1, 1, 1, 2, 16) if SIMULATED else Tile(2, 2, 4, 8, 16, 2)


def _stride(cores, along_k, length, inner):
    """Return the numbers from one line of a factor to the next, in shared memory."""
    return inner + 4 * cores.pack if along_k else length + 8 // cores.pack


def _stage(cores, along_k, length, inner):
    """Return the numbers that a stage of a factor takes."""
    return (length if along_k else inner) * _stride(cores, along_k, length, inner)


def _loader(cores, along_k, length, inner, threads):
    """Return functions that bring ``length`` rows or columns × ``inner`` steps of a factor into shared memory.

    The first says where a thread begins: its place in the factor, how far its next four numbers are behind these, and
    how many places that leaves there in shared memory. The second begins to copy, and writes zeros beyond the end.
    """
    across = (inner if along_k else length) // 4  # threads that share a line
    lines = threads // across  # at once
    own = (length if along_k else inner) // lines
    stride = _stride(cores, along_k, length, inner)
    apart = 4 // cores.pack  # lines whose places are in different banks
    assert lines * across == threads
    assert own * lines == (length if along_k else inner)
    assert lines % (2 * apart) == 0 or not along_k

    @device
    def own_place(thread):
        line, four = thread // across, thread % across * 4
        if along_k:  # eight threads, which write at once, have two lines
            line = line // (2 * apart) * (2 * apart) + line % 2 * apart + line // 2 % apart
        return line, four

    @device
    def begin(lead, first, first_k, thread):
        line, four = own_place(thread)
        start = (first + line) * lead + first_k + four if along_k else (first_k + line) * lead + first + four
        return start, lines * lead, line * stride + four

    @device
    def fetch(matrix, start, jump, place, first, end, first_k, end_k, shared, thread):
        line, four = own_place(thread)
        # As small numbers, which take one instruction to compare.
        left = np.int32(min(end - first if along_k else end_k - first_k, np.int64(1 << 20)))
        there = four < (end_k - first_k if along_k else end - first)
        for i in range(own):
            copy4_or_zeros(
                shared, place + i * lines * stride, matrix, start + i * jump, there and line + i * lines < left
            )

    return begin, fetch


def _holder(cores, along_k, stride, *, rounded=False):
    """Return a function that takes a thread's steps of a line, ``rounded`` or not, into two registers of a fragment."""
    half = cores.half
    take_along, take_down = (cores.along_rounded, cores.down_rounded) if rounded else (cores.along, cores.down)

    @device
    def hold(shared, place, registers, i):
        if along_k:
            registers[i] = take_along(shared, place)
            registers[i + 1] = take_along(shared, place + half)
        else:
            registers[i] = take_down(shared, place, stride)
            registers[i + 1] = take_down(shared, place + half * stride, stride)

    return hold


def make(name, tile, cores, A_along_k, B_along_k):
    """Return the kernel of a tile; all rows of all its arrays are aligned for accesses of four numbers."""
    rows_tile, columns_tile, threads, inner_tile = tile.rows, tile.columns, tile.threads, tile.inner
    row_fragments, column_fragments, column_warps = tile.row_fragments, tile.column_fragments, tile.column_warps
    out_stride = tile.out_stride
    held, held_of_B = 4 * row_fragments * column_fragments, 2 * column_fragments
    steps, pack, multiply_fragments = cores.steps, cores.pack, cores.multiply
    own_tile = own_tile_of(rows_tile, columns_tile)
    begin_A, fetch_A = _loader(cores, A_along_k, rows_tile, inner_tile, threads)
    begin_B, fetch_B = _loader(cores, B_along_k, columns_tile, inner_tile, threads)
    A_stride = _stride(cores, A_along_k, rows_tile, inner_tile)
    B_stride = _stride(cores, B_along_k, columns_tile, inner_tile)
    hold_A = _holder(cores, A_along_k, A_stride)
    hold_B = _holder(cores, B_along_k, B_stride, rounded=A_along_k)  # then these are weights
    # From one row or column to the next in shared memory, and from one step to the next.
    A_line, A_step = (A_stride, 1) if A_along_k else (1, A_stride)
    B_line, B_step = (B_stride, 1) if B_along_k else (1, B_stride)
    B_room = _stage(cores, A_along_k, rows_tile, inner_tile)
    stage = B_room + _stage(cores, B_along_k, columns_tile, inner_tile)
    finish_part, pool_part = part_finisher(rows_tile, columns_tile, out_stride, threads, at_once=AT_ONCE)
    for_finish = FETCHED * AT_ONCE
    assert inner_tile % steps == 0

    @kernel(
        "f4* f4* f4* i4* f4* f4* f4* " + "i4 " * 7 + "i8 i8 i8 i8 f4* f4*",
        threads=threads,
        name=name,
        blocks=tile.blocks,
        dynamic=True,
    )
    def multiply(
        A,  # (R, K) along k, else (K, R)
        B,  # (N, K) along k, else (K, N); with A along k from `weights_for`
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
        inner_part,  # of each part, K if there is one
        out,  # (parts, R, N)
        partials,  # (G + S − 1, N)
    ):
        shared = cuda.shared.array(0, FLOAT32)
        a = cuda.local.array(4, np.float32)
        b = cuda.local.array(held_of_B, np.float32)
        sums = cuda.local.array(held, np.float32)
        own_sets = cuda.local.array(AT_ONCE, np.int32)
        fetched = cuda.local.array(for_finish, np.float32)

        thread = cuda.threadIdx.x
        lane, warp = thread % WARP, thread // WARP
        own_line, own_step = lane // 4, pack * (lane % 4)
        own_row = warp // column_warps * (16 * row_fragments) + own_line
        own_column = warp % column_warps * (8 * column_fragments)
        first_row, first_column, part = own_tile(np.int64(cuda.blockIdx.x), rows, columns)
        k = part * inner_part
        end_k = min(k + inner_part, inner)
        A_lead = inner if A_along_k else rows
        B_lead = inner if B_along_k else columns

        for i in range(held):
            sums[i] = np.float32(0)
        A_start, A_jump, A_place = begin_A(A_lead, first_row, k, thread)
        B_start, B_jump, B_place = begin_B(B_lead, first_column, k, thread)
        A_further, B_further = inner_tile * (1 if A_along_k else A_lead), inner_tile * (1 if B_along_k else B_lead)
        B_place += B_room
        next_k = k
        for ahead in range(STAGES - 1):
            if next_k < end_k:
                room = ahead * stage
                fetch_A(A, A_start, A_jump, A_place + room, first_row, rows, next_k, end_k, shared, thread)
                fetch_B(B, B_start, B_jump, B_place + room, first_column, columns, next_k, end_k, shared, thread)
                A_start += A_further
                B_start += B_further
                next_k += inner_tile
            end_copies()
        room, next_room = 0, (STAGES - 1) * stage  # of the stage that is multiplied, and of the one that is fetched
        while k < end_k:
            wait_for_copies_but_one()
            cuda.syncthreads()  # what all have fetched is there, and nobody reads the stage before it any more
            if next_k < end_k:
                fetch_A(A, A_start, A_jump, A_place + next_room, first_row, rows, next_k, end_k, shared, thread)
                fetch_B(B, B_start, B_jump, B_place + next_room, first_column, columns, next_k, end_k, shared, thread)
                A_start += A_further
                B_start += B_further
                next_k += inner_tile
            end_copies()
            for step in range(0, inner_tile, steps):
                of_A = room + own_row * A_line + (step + own_step) * A_step
                of_B = room + B_room + (own_column + own_line) * B_line + (step + own_step) * B_step
                for j in range(column_fragments):
                    hold_B(shared, of_B + 8 * j * B_line, b, 2 * j)
                for f in range(row_fragments):
                    hold_A(shared, of_A + 16 * f * A_line, a, 0)
                    hold_A(shared, of_A + (16 * f + 8) * A_line, a, 2)
                    for j in range(column_fragments):
                        i = 4 * (f * column_fragments + j)
                        sums[i], sums[i + 1], sums[i + 2], sums[i + 3] = multiply_fragments(
                            a[0], a[2], a[1], a[3], b[2 * j], b[2 * j + 1],
                            sums[i], sums[i + 1], sums[i + 2], sums[i + 3],
                        )  # fmt: skip
            next_room = room
            room = room + stage if room < (STAGES - 1) * stage else 0
            k += inner_tile
        wait_for_copies_but_one()  # no copy is on its way any more: the last group is empty
        cuda.syncthreads()  # the finished tile takes the place of the stages

        # The tile goes through shared memory: rows are written whole, and their columns can be added up.
        for f in range(row_fragments):
            for j in range(column_fragments):
                i = 4 * (f * column_fragments + j)
                place = (own_row + 16 * f) * out_stride + own_column + 8 * j + 2 * (lane % 4)
                store2(shared, place, sums[i], sums[i + 1])
                store2(shared, place + 8 * out_stride, sums[i + 2], sums[i + 3])
        cuda.syncthreads()
        finish_part(
            shared, first_row, first_column, thread, c, sets, scales, masked_by,
            with_c, with_sets, scaled, relu, masked, code, True, rows, columns, part * rows, out, own_sets, fetched,
        )  # fmt: skip
        cuda.syncthreads()
        pool_part(
            shared, first_row, first_column, thread,
            sets, weights, with_sets, weighted, code, rows, columns, partials,
        )  # fmt: skip

    return multiply


# By whether A and B lie along k.
WAYS = {(True, False): "product", (True, True): "product_turned", (False, False): "product_transposed"}
KERNELS_OF = {
    precision: {along_k: make(f"{name}_{cores.name}", TILE, cores, *along_k) for along_k, name in WAYS.items()}
    for precision, cores in TENSOR_CORES.items()
}


def weights_for(precision, B, *, is_aligned):
    """Return weights as the kernels of a precision take them: copied, if they have to be rounded or aligned."""
    if precision != "tf32" and is_aligned:
        return B
    return copied(B, B.shape, (B.shape[1], 1), tf32=precision == "tf32")


def launch(blocks, precision, *arguments, A_along_k, B_along_k):
    """Launch the kernel of a precision and of how the factors lie, with the arguments of `multiply`."""
    shared = TILE.shared_bytes(TENSOR_CORES[precision], A_along_k=A_along_k, B_along_k=B_along_k)
    KERNELS_OF[precision][A_along_k, B_along_k](blocks, *arguments, shared=shared)
