"""dW_self = h gᵀ of a set on chip; part of ``resident.py``.

g lies on chip, and h comes once more from global memory. For tensor cores it waits there in the order of fragments, so
that a thread takes it to the registers that multiply it. Otherwise it comes through shared memory, in stages, one of
which is on its way while the other is multiplied. Groups of threads share the elements, and each has a tile of dW_self;
these are added up in shared memory, and then, with dW_pool, over the sets of a block.

A set of a few features, x, is no matrix worth of stages: two of its features at a time, as long as they find room, each
thread adds up its own elements and columns of g, as for the sum of g alone.
"""

import numpy as np

from fastperm.kernels.cuda.compiling import device
from fastperm.kernels.cuda.vectors import (
    block_barrier,
    copy4,
    end_copies,
    load1,
    load1_or_zero,
    store1,
    wait_for_copies_but_one,
)

NARROW = 4  # the most features of an x that has no stages


def self_gradient_of(layout, strips):
    """Return the function of a layout, whose `Strips` are given. All threads of a block call it."""
    return (_of_fragments if layout.tensor_cores else _of_stages)(layout, strips)


def _of_fragments(layout, strips):
    tile, strip_rows = layout.tile, layout.strip
    h, add_to_tiles, add_up_tiles = layout.places.h, strips.add_to_tiles, _tiles_adder(layout, strips)

    @device
    def self_gradient(
        shared, x, kept, x_start, kept_layer, is_first, K, stride, count, padded, own_group, thread, tiles, of_g, of_h
    ):  # fmt: skip
        for i in range(tile):
            tiles[i] = np.float32(0)
        strips_here = padded // strip_rows
        add_to_tiles(shared, kept, kept_layer, h, stride, strips_here, own_group, thread, of_g, of_h, tiles)
        add_up_tiles(shared, own_group, thread, tiles)

    return self_gradient


def _tiles_adder(layout, strips):
    """Return the function that adds up what the groups of a block have."""
    groups, heaps, heap, stages = layout.groups, layout.heaps, layout.width * layout.tile_lead, layout.places.stages
    put_tiles = strips.put_tiles

    @device
    def add_up_tiles(shared, own_group, thread, tiles):
        # The second half of the groups leaves its tiles there, and the first half adds its own.
        if own_group >= heaps:
            put_tiles(shared, stages + (own_group - heaps) * heap, thread, tiles, False)
        block_barrier()
        if own_group < heaps:
            put_tiles(shared, stages + own_group * heap, thread, tiles, groups > 1)
        block_barrier()

    return add_up_tiles


def _of_stages(layout, strips):
    width, threads, tile = layout.width, layout.threads, layout.tile
    stage, stage_lead, stage_size, fours = layout.stage, layout.stage_lead, layout.stage_size, layout.stage // 4
    group_rows, stages, h = stage // layout.groups, layout.places.stages, layout.places.h
    lines_at_once, put_inputs = threads // fours, strips.put_inputs
    add_to_tiles, add_up_tiles = strips.add_to_tiles, _tiles_adder(layout, strips)
    assert threads % fours == threads % width == stage % layout.strip == width % lines_at_once == 0

    @device
    def fetch_stage(
        shared, room, x, kept, x_start, kept_layer, is_first, K, stride, count, padded, start, thread, of_h
    ):  # fmt: skip
        """Begin to copy a stage of h, if there is one."""
        if start < padded:
            if is_first:
                for row in range(thread, min(np.int64(stage), padded - start), threads):
                    element = start + row
                    put_inputs(
                        shared, room + row, stage_lead, K, x, x_start + element * K, K, element < count, of_h
                    )  # fmt: skip
            else:
                row, line = thread % fours * 4, thread // fours
                target, source = room + line * stage_lead + row, kept_layer + line * stride + start + row
                if start + row < padded:
                    for i in range(width // lines_at_once):  # written out, with one addition for each
                        if line + i * lines_at_once < K:
                            copy4(shared, target + i * lines_at_once * stage_lead, kept, source)
                        source += lines_at_once * stride
        end_copies()

    @device
    def self_gradient(
        shared, x, kept, x_start, kept_layer, is_first, K, stride, count, padded, own_group, thread, tiles, of_g, of_h
    ):  # fmt: skip
        """Leave h gᵀ, (width, width), in the room of the stages, as the sum of some heaps."""
        for i in range(tile):
            tiles[i] = np.float32(0)
        # One stage is on its way while the other is multiplied.
        start, room = np.int64(0), np.int64(stages)
        fetch_stage(shared, room, x, kept, x_start, kept_layer, is_first, K, stride, count, padded, start, thread, of_h)
        while start < padded:
            other = stages + stages + stage_size - room
            fetch_stage(
                shared, other, x, kept, x_start, kept_layer, is_first, K, stride, count, padded, start + stage, thread,
                of_h,
            )  # fmt: skip
            wait_for_copies_but_one()
            block_barrier()
            first = start + own_group * group_rows
            rows = min(np.int64(group_rows), padded - first)
            add_to_tiles(shared, room + first - start, h + first, stride, rows, K, thread, of_g, of_h, tiles)
            block_barrier()
            start += stage
            room = other
        add_up_tiles(shared, own_group, thread, tiles)

    return self_gradient


def put_gradients_of(layout):
    """Return the function of a layout that adds up the gradients of a layer over the sets of a block."""
    width, shares, tile_lead, heaps = layout.width, layout.threads // layout.width, layout.tile_lead, layout.heaps
    heap, clustered, places = width * layout.tile_lead, layout.clustered, layout.places
    stages, m, G = places.stages, places.m, places.G
    at_once = min(width // shares, layout.tile // 2, 16)
    assert width // shares % at_once == 0

    @device
    def put_gradients(
        shared, parts, start, K, N, all_heaps, rank, team, fresh, thread, registers
    ):  # fmt: skip
        """Add dW_self, which lies where the stages are, and dW_pool = m Gᵀ to the sums of this block.

        Many of these are fetched before the first is needed. Of dW_pool, each block of a cluster has rows of its own.
        """
        j, zero = thread % width, np.float32(0)
        if j < N:
            of_G = load1(shared, G + j)
            for first in range(thread // width, K, at_once * shares):
                place = start + first * N + j
                for i in range(at_once):
                    there = not fresh and first + i * shares < K
                    own = not clustered or (i & (team - 1)) == rank
                    registers[2 * i] = load1_or_zero(parts, place + i * shares * N, there)
                    registers[2 * i + 1] = load1_or_zero(parts, place + (K + i * shares) * N, there and own)
                for i in range(at_once):
                    k = first + i * shares
                    if k < K:
                        total = load1(shared, stages + k * tile_lead + j)
                        if all_heaps:
                            for other in range(1, heaps):
                                total += load1(shared, stages + other * heap + k * tile_lead + j)
                        parts[place + i * shares * N] = registers[2 * i] + total
                        own = not clustered or (i & (team - 1)) == rank
                        if own or fresh:
                            product = load1(shared, m + k) * of_G if own else zero
                            parts[place + (K + i * shares) * N] = registers[2 * i + 1] + product

    return put_gradients


def narrow_gradient_of(layout, strips):
    """Return the functions of a layout that say whether the first layer is narrow, and that compute its gradient."""
    width, threads, held_columns, warps = layout.width, layout.threads, layout.held_columns, layout.warps
    strip_rows, tile_lead, stages, h = layout.strip, layout.tile_lead, layout.places.stages, layout.places.h
    sums_rows, sums_lead, sums_size = layout.sums_rows, layout.sums_lead, layout.sums_rows * layout.sums_lead
    (U, near, far), shares, thread_rows = layout.columns_near, threads // width, layout.rows
    room, end = stages + NARROW * tile_lead, layout.places.work + layout.work
    of_shares, rows_at_once = room + 2 * sums_size, layout.rows_at_once
    place_of_thread, alone = strips.place_of_thread, strips.alone
    hold_rows, hold_two = strips.hold_rows, strips.hold_two
    assert of_shares + 2 * threads <= end

    @device
    def is_narrow(K, stride):
        """Return whether x has so few features that it has no stages; of larger sets, two find no room there."""
        return K <= NARROW and 2 * stride <= end - room

    @device
    def narrow_gradient(
        shared, x, x_start, K, stride, count, padded, thread, sums, a, b, x_own, x_other
    ):  # fmt: skip
        """Leave x gᵀ, (K, width), in the room of the stages."""
        warp, _, own_row, own_column = place_of_thread(thread)
        column, share, zero = thread % width, thread // width, np.float32(0)
        for k in range(0, K, 2):
            two = k + 1 < K
            for row in range(thread, padded, threads):
                own, other = zero, zero
                if row < count:
                    own = x[x_start + row * K + k]
                    other = x[x_start + row * K + k + 1] if two else zero
                store1(shared, room + row, alone(own))
                store1(shared, room + stride + row, alone(other))
            block_barrier()
            for i in range(2 * held_columns):
                sums[i] = zero
            for strip in range(warp, padded // strip_rows, warps):
                row = strip * strip_rows + own_row
                hold_rows(shared, room + row, x_own)
                hold_rows(shared, room + stride + row, x_other)
                for i in range(0, held_columns, 2):
                    hold_two(shared, h + row, stride, own_column, i, a, b)
                    for r in range(8):
                        sums[i] += x_own[r] * a[r]
                        sums[i + 1] += x_own[r] * b[r]
                        sums[held_columns + i] += x_other[r] * a[r]
                        sums[held_columns + i + 1] += x_other[r] * b[r]
            block_barrier()  # x is not read any more
            for i in range(held_columns):
                at = (
                    room
                    + (warp * thread_rows + own_row // rows_at_once) * sums_lead
                    + own_column
                    + i // U * far
                    + i % U * near
                )
                store1(shared, at, sums[i])
                store1(shared, at + sums_size, sums[held_columns + i])
            block_barrier()
            own, other = zero, zero
            for i in range(share, sums_rows, shares):
                own += load1(shared, room + i * sums_lead + column)
                other += load1(shared, room + sums_size + i * sums_lead + column)
            store1(shared, of_shares + thread, own)
            store1(shared, of_shares + threads + thread, other)
            block_barrier()
            if thread < width:
                own, other = zero, zero
                for i in range(shares):
                    own += load1(shared, of_shares + i * width + thread)
                    other += load1(shared, of_shares + threads + i * width + thread)
                store1(shared, stages + k * tile_lead + thread, own)
                store1(shared, stages + (k + 1) * tile_lead + thread, other)
            block_barrier()

    return is_narrow, narrow_gradient
