"""The products of a set on chip, as the threads of a block share them; part of ``resident.py``.

There are two ways: fused multiply-adds on blocks of numbers, and tensor cores on fragments (``tensor_cores.py``). Where
numbers lie, and which of them a thread has, is said in ``layouts.py``.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, cuda, device
from fastperm.kernels.cuda.product import holder, outer_product_adder, place_in_grid
from fastperm.kernels.cuda.vectors import (
    high_halves,
    load1,
    load2,
    load4,
    load4_or_zeros,
    low_halves,
    store1,
    store2,
    store4,
)

FRAGMENT = 128  # numbers of a fragment of h, for dW_self: four of each thread of a warp


class Strips(NamedTuple):
    """The functions of a layout that know how its threads share the products."""

    place_of_thread: Callable  # (thread): its warp, its lane, and its first row and column of a strip
    first_feature: Callable  # (line): the first feature that a line has; the other one, if there is one, is 8 later
    word: Callable  # (own, other): what stands for the numbers of these features in one place
    alone: Callable  # (x): a number as it is multiplied, not in a word
    lines_of: Callable
    put_inputs: Callable
    hold_rows: Callable
    hold_columns: Callable
    hold_two: Callable  # (shared, place, stride, own_column, i, own, other): rows of columns i and i + 1 of a thread
    round_strip: Callable  # (sums): where numbers are rounded one by one, before they are written to several places
    put_strip: Callable
    keep_strip: Callable  # (kept, layer, stride, strip, row, column, lane, sums): for dW_self, as that wants it
    keep_inputs: Callable  # (kept, layer, shared, h, stride, strip, lane): x, likewise
    multiply_strip: Callable
    add_to_tiles: Callable
    put_tiles: Callable


def strips_of(layout):
    """Return the functions of a layout."""
    return _strips_of_tensor_cores(layout) if layout.tensor_cores else _strips_of_multiply_adds(layout)


def _place_of_thread(layout, place_of_lane):
    """Return the function that says where a thread is, given that for the grid of a warp."""
    warp_threads = layout.rows * layout.columns
    first_row, first_column = layout.rows_at_once, 1 if layout.tensor_cores else 4

    @device
    def place_of_thread(thread):
        """Return the warp of a thread, its lane, and the first of its rows and of its columns in a strip.

        They lie so that accesses of a strip hardly wait for bank conflicts.
        """
        warp, lane = thread // warp_threads, thread % warp_threads
        row, column = place_of_lane(lane)
        return warp, lane, first_row * row, first_column * column

    return place_of_thread


def _lines_of(layout):
    """Return the function that counts lines."""
    steps, step_lines = layout.steps, layout.steps // layout.pack

    @device
    def lines_of(K):
        """Return how many lines a product along so many features takes, in whole steps."""
        return (K + steps - 1) // steps * step_lines

    return lines_of


def _put_inputs_of(pack, first_feature, word):
    """Return the function that writes x to shared memory; it takes eight registers."""
    at_once = 4

    @device
    def put_inputs(shared, place, apart, count, x, start, K, there, held):
        """Write the features of an element of x, or zeros, to a place in so many lines."""
        for first in range(0, count, at_once):  # several are fetched before the first is written
            for i in range(at_once):
                k = first_feature(first + i)
                held[pack * i] = x[start + k] if there and k < K else np.float32(0)
                if pack > 1:
                    held[pack * i + 1] = x[start + k + 8] if there and k + 8 < K else np.float32(0)
            for i in range(at_once):
                if first + i < count:
                    store1(shared, place + (first + i) * apart, word(held[pack * i], held[pack * i + pack - 1]))

    return put_inputs


def _strips_of_multiply_adds(layout):
    """Return the functions of a layout, which read shared memory 128 bits at a time."""
    held_columns, held, lead, width = layout.held_columns, layout.held, layout.lead, layout.width
    thread_rows, part_rows, part_columns = layout.rows, 4 * layout.rows, 4 * layout.columns
    column_parts, pack = held_columns // 4, layout.pack
    across, down, group = layout.across, layout.down, layout.group
    stage_lead, tile_lead = layout.stage_lead, layout.tile_lead
    tile_rows, tile_columns = width // across, width // down  # threads of a group
    assert part_columns * column_parts == width
    wide = layout.wide
    assert layout.stage // layout.groups % 4 == 0
    assert across == 8 or not wide

    place_of_lane, place_in_tile = place_in_grid(thread_rows), place_in_grid(tile_rows)
    hold_rows, hold_columns = holder(2, part_rows), holder(column_parts, part_columns)
    add_outer_product = outer_product_adder(8, held_columns)

    @device
    def first_feature(line):
        return line

    @device
    def word(own, other):
        return own

    @device
    def alone(x):
        return x

    @device
    def hold_two(shared, place, stride, own_column, i, own, other):
        line = own_column + i // 4 * part_columns + i % 4
        hold_rows(shared, place + line * stride, own)
        hold_rows(shared, place + (line + 1) * stride, other)

    @device
    def round_strip(sums):
        pass

    @device
    def put_strip(array, start, stride, sums):
        """Write this thread's part of a strip, whose features are lines of ``stride``."""
        for j in range(held_columns):
            place = start + (j // 4 * part_columns + j % 4) * stride
            r0, r1, r2, r3 = j, held_columns + j, 2 * held_columns + j, 3 * held_columns + j
            store4(array, place, sums[r0], sums[r1], sums[r2], sums[r3])
            r0, r1, r2, r3 = r0 + 4 * held_columns, r1 + 4 * held_columns, r2 + 4 * held_columns, r3 + 4 * held_columns
            store4(array, place + part_rows, sums[r0], sums[r1], sums[r2], sums[r3])

    @device
    def keep_strip(kept, layer, stride, strip, row, column, lane, sums):
        put_strip(kept, layer + column * stride + row, stride, sums)

    @device
    def keep_inputs(kept, layer, shared, h, stride, strip, lane):
        pass  # dW_self takes them where they came from

    @device
    def keep_quarter(own, start, sums):
        for i in range(start, start + held // 4):
            sums[i] = own[i]

    @device
    def multiply_strip(shared, strip, stride, weights, lines, lane, a, b, next_a, next_b, sums):
        """Add to the sums a strip, whose features are lines of ``stride``, times the weights; ``lines`` is even."""
        own_row, own_column = place_of_lane(lane)
        place, weights_place = strip + 4 * own_row, weights + 4 * own_column
        # Where compilers keep many sums in memory (`resident`), they do not keep those of this loop alone there.
        own = cuda.local.array(held, np.float32) if held > 64 else sums
        if held > 64:
            keep_quarter(sums, 0, own)
            keep_quarter(sums, held // 4, own)
            keep_quarter(sums, held // 2, own)
            keep_quarter(sums, 3 * held // 4, own)
        # Two steps at a time: shared memory answers one while the other is multiplied.
        left = np.int32(lines)
        while True:  # at least once: otherwise the sums would be moved to where they are used next
            hold_rows(shared, place, a)
            hold_columns(shared, weights_place, b)
            hold_rows(shared, place + stride, next_a)
            hold_columns(shared, weights_place + lead, next_b)
            add_outer_product(a, b, own)
            add_outer_product(next_a, next_b, own)
            place += 2 * stride
            weights_place += 2 * lead
            left -= np.int32(2)
            if left <= 0:
                break
        if held > 64:
            keep_quarter(own, 0, sums)
            keep_quarter(own, held // 4, sums)
            keep_quarter(own, held // 2, sums)
            keep_quarter(own, 3 * held // 4, sums)

    @device
    def add_tile_row(shared, place, k, of_g, of_h, tiles):
        of_h[0], of_h[1], of_h[2], of_h[3] = load4(shared, place)
        for r in range(4):
            for j in range(down):
                tiles[k * down + j] += of_h[r] * of_g[4 * j + r]

    @device
    def add_tile_rows(shared, place, first, end, of_g, of_h, tiles):
        for k in range(first, end):
            add_tile_row(shared, place + k * tile_rows * stage_lead, k, of_g, of_h, tiles)

    @device
    def add_to_tiles(shared, of_stage, of_strip, stride, rows, K, thread, of_g, of_h, tiles):
        """Add h gᵀ of so many elements, a multiple of 4, to the tile of the group."""
        tile_row, tile_column = place_in_tile(thread % group)
        for row in range(0, rows, 4):
            for j in range(down):
                j4 = 4 * j
                of_g[j4], of_g[j4 + 1], of_g[j4 + 2], of_g[j4 + 3] = load4(
                    shared, of_strip + (tile_column + j * tile_columns) * stride + row
                )
            add_tile_row(shared, of_stage + tile_row * stage_lead + row, 0, of_g, of_h, tiles)
            if tile_rows < K:  # few features, those of the first layer, have one row in each tile
                if wide:  # here a loop over all of them would keep the tile in memory, too
                    place = of_stage + tile_row * stage_lead + row
                    add_tile_rows(shared, place, 1, 3, of_g, of_h, tiles)
                    add_tile_rows(shared, place, 3, 5, of_g, of_h, tiles)
                    add_tile_rows(shared, place, 5, 7, of_g, of_h, tiles)
                    add_tile_rows(shared, place, 7, 8, of_g, of_h, tiles)
                else:
                    for k in range(1, across):
                        place = of_stage + (tile_row + k * tile_rows) * stage_lead + row
                        add_tile_row(shared, place, k, of_g, of_h, tiles)

    @device
    def put_tiles(shared, start, thread, tiles, adding):
        """Write the tile of a group, or add it to what is there: (width, width) with rows of ``tile_lead``."""
        tile_row, tile_column = place_in_tile(thread % group)
        place = start + tile_row * tile_lead + tile_column
        for k in range(across):
            for j in range(down):
                at = place + k * tile_rows * tile_lead + j * tile_columns
                value = tiles[k * down + j]
                store1(shared, at, value + load1(shared, at) if adding else value)

    return Strips(
        *(_place_of_thread(layout, place_of_lane), first_feature, word, alone),
        *(_lines_of(layout), _put_inputs_of(pack, first_feature, word)),
        *(hold_rows, hold_columns, hold_two, round_strip, put_strip),
        *(keep_strip, keep_inputs, multiply_strip, add_to_tiles, put_tiles),
    )


class _Words(NamedTuple):
    """The functions of a layout of tensor cores that know what stands in a place of shared memory.

    A block is what a thread has of 16 features and ``steps`` elements, as it is multiplied: four registers.
    """

    first_feature: Callable  # this, and the next three, as of `Strips`
    word: Callable
    alone: Callable
    hold_two: Callable
    round_strip: Callable
    put_pairs: Callable  # (array, place, stride, own, own_next, other, other_next): two elements of two features
    take_block: Callable  # (shared, place, lines_apart): the block that lies there
    block_of_sums: Callable  # (sums, f, step): the same of a strip that a thread has in registers


@device
def _hold_rows(array, place, registers):
    for i in range(4):
        registers[2 * i], registers[2 * i + 1] = load2(array, place + 8 * i)


def _single_words(layout):
    """Return the functions of a layout for TF32: a place has one number, and features that are 8 apart two lines."""
    held_columns, cores = layout.held_columns, layout.tensor_cores
    rounded, number_rounded = cores.rounded, cores.number_rounded

    @device
    def first_feature(line):
        return line

    @device
    def word(own, other):
        return rounded(own)

    @device
    def alone(x):
        return rounded(x)

    @device
    def hold_two(shared, place, stride, own_column, i, own, other):
        line = own_column + i // 2 * 16
        _hold_rows(shared, place + line * stride, own)
        _hold_rows(shared, place + (line + 8) * stride, other)

    @device
    def round_quarter(start, sums):
        for i in range(start, start + 2 * held_columns):
            sums[i] = number_rounded(sums[i])

    @device
    def round_strip(sums):
        # In place: a register that waits to be written to memory could not take the next number. Not as one loop,
        # which compilers would not unroll.
        round_quarter(0, sums)
        round_quarter(2 * held_columns, sums)
        round_quarter(4 * held_columns, sums)
        round_quarter(6 * held_columns, sums)

    @device
    def put_pairs(array, place, stride, own, own_next, other, other_next):
        """Write two elements of two features, which are 8 apart, as they are."""
        store2(array, place, own, own_next)
        store2(array, place + 8 * stride, other, other_next)

    @device
    def take_block(shared, place, lines_apart):
        """Return two features of the first elements of a fragment, and of its later ones: a register each."""
        own, own_later = load2(shared, place)
        far, far_later = load2(shared, place + 8 * lines_apart)
        return own, far, own_later, far_later

    @device
    def block_of_sums(sums, f, step):
        """Return the same of a strip that a thread has in registers."""
        r = 2 * step * held_columns + 2 * f
        return sums[r], sums[r + 1], sums[r + held_columns], sums[r + held_columns + 1]

    return _Words(first_feature, word, alone, hold_two, round_strip, put_pairs, take_block, block_of_sums)


def _paired_words(layout):
    """Return the functions of a layout for bfloat16: a place has a pair of them, of features that are 8 apart."""
    held_columns, half_of_elements, cores = layout.held_columns, layout.steps // 2, layout.tensor_cores
    rounded, number_rounded = cores.rounded, cores.number_rounded

    @device
    def first_feature(line):
        return 2 * line - (line & 7)

    @device
    def word(own, other):
        return rounded(own, other)

    @device
    def alone(x):
        return low_halves(np.float32(0), rounded(x, np.float32(0)))

    @device
    def hold_two(shared, place, stride, own_column, i, own, other):
        _hold_rows(shared, place + (own_column + i // 2 * 8) * stride, own)
        for r in range(8):
            other[r] = high_halves(np.float32(0), own[r])
            own[r] = low_halves(np.float32(0), own[r])

    @device
    def round_strip(sums):
        pass  # which makes pairs of them

    @device
    def put_pairs(array, place, stride, own, own_next, other, other_next):
        store2(array, place, number_rounded(own, other), number_rounded(own_next, other_next))

    @device
    def take_block(shared, place, lines_apart):
        first, second = load2(shared, place)
        third, fourth = load2(shared, place + half_of_elements)
        own, other = low_halves(first, second), high_halves(first, second)
        return own, other, low_halves(third, fourth), high_halves(third, fourth)

    @device
    def block_of_sums(sums, f, step):
        r = 4 * step * held_columns + 2 * f
        s, later = r + held_columns, r + 2 * held_columns
        s_later = s + 2 * held_columns
        own, other = number_rounded(sums[r], sums[s]), number_rounded(sums[r + 1], sums[s + 1])
        own_later = number_rounded(sums[later], sums[s_later])
        return own, other, own_later, number_rounded(sums[later + 1], sums[s_later + 1])

    return _Words(first_feature, word, alone, hold_two, round_strip, put_pairs, take_block, block_of_sums)


def _strips_of_tensor_cores(layout):
    """Return the functions of a layout whose products take tensor cores.

    Features are the rows of a fragment and elements its columns, so that a thread has pairs of elements side by side.
    Of the 32 threads of a warp, thread 4 g + t has features g and g + 8 of 16, and elements 2 t and 2 t + 1 of 8.
    """
    held_columns, lead, steps, pack = layout.held_columns, layout.lead, layout.steps, layout.pack
    features, strip_steps = layout.width // 16, 32 // steps  # fragments across, and along a strip
    step_size = features * FRAGMENT  # of a step along the elements, with all features
    step_lines, block_lines = steps // pack, 16 // pack  # of 16 features
    half_of_lines, at_once = step_lines // 2, min(features, 1 if SIMULATED else 4)
    multiply, words = layout.tensor_cores.multiply, _single_words(layout) if pack == 1 else _paired_words(layout)
    put_pairs, take_block, block_of_sums = words.put_pairs, words.take_block, words.block_of_sums
    assert layout.rows == 4
    assert layout.columns == 8
    assert features in (at_once, 2 * at_once)

    @device
    def place_of_lane(lane):
        return lane % 4, lane // 4

    @device
    def hold_columns(shared, place, registers):
        for j in range(held_columns):
            registers[j] = load1(shared, place + j // 2 * 16 + j % 2 * 8)

    @device
    def put_blocks(array, start, stride, first, sums):
        for f in range(first, first + at_once):
            for i in range(4):
                place = start + f * block_lines * stride + 8 * i
                r = 2 * i * held_columns + 2 * f
                s = r + held_columns  # the next element
                put_pairs(array, place, stride, sums[r], sums[s], sums[r + 1], sums[s + 1])

    @device
    def put_strip(array, start, stride, sums):
        """Write this thread's part of a strip, which is rounded, and whose features are in lines of ``stride``."""
        put_blocks(array, start, stride, 0, sums)
        if features > at_once:  # as one loop, compilers would not unroll it, and keep the sums in memory
            put_blocks(array, start, stride, at_once, sums)

    @device
    def keep_blocks(kept, place, first, sums):
        for f in range(first, first + at_once):
            for step in range(strip_steps):
                own, other, own_later, other_later = block_of_sums(sums, f, step)
                store4(kept, place + step * step_size + f * FRAGMENT, own, other, own_later, other_later)

    @device
    def keep_strip(kept, layer, stride, strip, row, column, lane, sums):
        # In the order of fragments: the threads of a warp write, and later read, lines of memory.
        place = layer + strip * strip_steps * step_size + lane * 4
        keep_blocks(kept, place, 0, sums)
        if features > at_once:
            keep_blocks(kept, place, at_once, sums)

    @device
    def keep_inputs(kept, layer, shared, h, stride, strip, lane):
        place, own = layer + strip * strip_steps * step_size + lane * 4, h + lane // 4 * stride + lane % 4 * 2
        for f in range(features):
            for step in range(strip_steps):
                first, second, third, fourth = take_block(
                    shared, own + f * block_lines * stride + strip * 32 + step * steps, stride
                )
                store4(kept, place + step * step_size + f * FRAGMENT, first, second, third, fourth)

    @device
    def multiply_strip(shared, strip, stride, weights, lines, lane, a, b, next_a, next_b, sums):
        """Add to the sums a strip, whose features are in lines of ``stride``, times the weights, in whole steps."""
        place, weights_place = strip + lane % 4 * stride + lane // 4, weights + lane % 4 * lead + lane // 4
        left = np.int32(lines)
        while True:  # at least once: otherwise the sums would be moved to where they are used next
            for i in range(4):
                a[2 * i] = load1(shared, place + 8 * i)
                a[2 * i + 1] = load1(shared, place + half_of_lines * stride + 8 * i)
            for f in range(features):
                near = weights_place + 16 * f
                far = near + half_of_lines * lead
                w0, w1 = load1(shared, near), load1(shared, near + 8)
                w2, w3 = load1(shared, far), load1(shared, far + 8)
                for i in range(4):
                    r = 2 * i * held_columns + 2 * f
                    s = r + held_columns  # the next element
                    sums[r], sums[s], sums[r + 1], sums[s + 1] = multiply(
                        w0, w1, w2, w3, a[2 * i], a[2 * i + 1], sums[r], sums[s], sums[r + 1], sums[s + 1]
                    )
            place += step_lines * stride
            weights_place += step_lines * lead
            left -= np.int32(step_lines)
            if left <= 0:
                break

    return Strips(
        *(_place_of_thread(layout, place_of_lane), words.first_feature, words.word, words.alone),
        *(_lines_of(layout), _put_inputs_of(pack, words.first_feature, words.word)),
        *(_hold_rows, hold_columns, words.hold_two, words.round_strip, put_strip),
        *(keep_strip, keep_inputs, multiply_strip, *_tiles_of_tensor_cores(layout, take_block)),
    )


def _tiles_of_tensor_cores(layout, take_block):
    """Return the functions of a layout that compute dW_self in a tile for each group of threads, and write it.

    The numbers of a fragment are in the places that a strip has for them: these are registers in a row, for both.
    """
    held_columns, tile_lead, steps, groups = layout.held_columns, layout.tile_lead, layout.steps, layout.groups
    features, tile_features, tile_columns = layout.width // 16, layout.across // 2, layout.down // 2  # fragments
    group, column_parts = layout.group, layout.width // (8 * tile_columns)
    strip_steps, step_size, step_held = 32 // steps, features * FRAGMENT, 4 * tile_features
    multiply, block_lines = layout.tensor_cores.multiply, 16 // layout.pack
    assert layout.tile == 4 * tile_features * tile_columns
    assert features % tile_features == group // 32 % column_parts == tile_columns % 2 == 0

    @device
    def hold_step(kept, place, there, first, registers):
        """Take a step of h, of the features of this thread's tile."""
        for f in range(tile_features):
            f4 = first + 4 * f
            registers[f4], registers[f4 + 1], registers[f4 + 2], registers[f4 + 3] = load4_or_zeros(
                kept, place + f * FRAGMENT, there
            )

    @device
    def add_step(shared, g_place, stride, of_g, first, of_h, tiles):
        for j in range(0, 2 * tile_columns, 4):
            of_g[j], of_g[j + 2], of_g[j + 1], of_g[j + 3] = take_block(
                shared, g_place + j // 4 * block_lines * stride, stride
            )
        for f in range(tile_features):
            for j in range(tile_columns):
                n, h = j * tile_features + f, first + 4 * f
                r = n // features * 2 * held_columns + n % features * 2
                s = r + held_columns
                tiles[r], tiles[s], tiles[r + 1], tiles[s + 1] = multiply(
                    *(of_h[h], of_h[h + 1], of_h[h + 2], of_h[h + 3], of_g[2 * j], of_g[2 * j + 1]),
                    *(tiles[r], tiles[s], tiles[r + 1], tiles[s + 1]),
                )

    @device
    def add_to_tiles(shared, kept, layer, g, stride, strips, own_group, thread, of_g, of_h, tiles):
        """Add h gᵀ of the strips of this group to its tile."""
        lane, in_group = thread % 32, thread % group // 32
        place = layer + in_group // column_parts * (tile_features * FRAGMENT) + lane * 4
        g_line = in_group % column_parts * (tile_columns // 2 * block_lines) + lane // 4
        g_place = g + g_line * stride + lane % 4 * 2
        for step in range(strip_steps):
            at = place + (own_group * strip_steps + step) * step_size
            hold_step(kept, at, own_group < strips, step * step_held, of_h)
        for strip in range(own_group, strips, groups):
            following = place + (strip + groups) * (strip_steps * step_size)
            # Each step of the next strip is on its way while the others of this one are multiplied.
            for step in range(strip_steps):
                own = g_place + strip * 32 + step * steps
                add_step(shared, own, stride, of_g, step * step_held, of_h, tiles)
                hold_step(kept, following + step * step_size, strip + groups < strips, step * step_held, of_h)

    @device
    def put_two(shared, at, first, second, adding):
        # As a loop over both pairs of a fragment, this made NVIDIA's compiler for sm_100 crash at width 32.
        if adding:
            there, next_there = load2(shared, at)
            first += there
            second += next_there
        store2(shared, at, first, second)

    @device
    def put_tiles(shared, start, thread, tiles, adding):
        """Write the tile of a group, or add it to what is there: (width, width) with rows of ``tile_lead``."""
        lane, in_group = thread % 32, thread % group // 32
        row = lane // 4 + in_group // column_parts * (16 * tile_features)
        place = start + row * tile_lead + in_group % column_parts * (8 * tile_columns) + 2 * (lane % 4)
        for f in range(tile_features):
            for j in range(tile_columns):
                n, at = j * tile_features + f, place + 16 * f * tile_lead + 8 * j
                r = n // features * 2 * held_columns + n % features * 2
                put_two(shared, at, tiles[r], tiles[r + held_columns], adding)
                put_two(shared, at + 8 * tile_lead, tiles[r + 1], tiles[r + 1 + held_columns], adding)

    return add_to_tiles, put_tiles
