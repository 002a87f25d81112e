"""dW_self = h gᵀ of a set on chip; part of ``resident.py``.

g lies on chip, and h comes once more from global memory, in stages, one of which is on its way while the other is
multiplied. Groups of threads share the elements, and each has a tile of dW_self; these are added up in shared memory.
"""

import numpy as np

from fastperm.kernels.cuda.compiling import device
from fastperm.kernels.cuda.vectors import block_barrier, copy4, end_copies, wait_for_copies_but_one


def self_gradient_of(layout, strips):
    """Return the function of a layout, whose `Strips` are given. All threads of a block call it."""
    width, threads, tile, pack = layout.width, layout.threads, layout.tile, layout.pack
    stage, stage_lead, stage_size, fours = layout.stage, layout.stage_lead, layout.stage_size, layout.stage // 4
    groups, heaps, heap, group_rows = layout.groups, layout.heaps, width * layout.tile_lead, stage // layout.groups
    stages, h = layout.places.stages, layout.places.h
    lines_of, put_inputs = strips.lines_of, strips.put_inputs
    add_to_tiles, put_tiles = strips.add_to_tiles, strips.put_tiles
    assert threads % fours == threads % width == stage % layout.strip == 0

    @device
    def lines_of_stage(K):
        """Return how many lines hold so many features: in pairs, those of whole steps."""
        return K if pack == 1 else lines_of(K)

    @device
    def fetch_stage(
        shared, room, x, kept, x_start, kept_layer, is_first, K, stride, count, padded, start, thread
    ):  # fmt: skip
        """Begin to copy a stage of h, if there is one."""
        if start < padded:
            if is_first:
                for row in range(thread, min(np.int64(stage), padded - start), threads):
                    element = start + row
                    put_inputs(
                        shared, room + row, stage_lead, lines_of_stage(K), x, x_start + element * K, K, element < count
                    )
            else:
                row = thread % fours * 4
                if start + row < padded:
                    for line in range(thread // fours, lines_of_stage(K), threads // fours):
                        copy4(shared, room + line * stage_lead + row, kept, kept_layer + line * stride + start + row)
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
        fetch_stage(shared, room, x, kept, x_start, kept_layer, is_first, K, stride, count, padded, start, thread)
        while start < padded:
            other = stages + stages + stage_size - room
            fetch_stage(
                shared, other, x, kept, x_start, kept_layer, is_first, K, stride, count, padded, start + stage, thread
            )
            wait_for_copies_but_one()
            block_barrier()
            first = start + own_group * group_rows
            rows = min(np.int64(group_rows), padded - first)
            add_to_tiles(shared, room + first - start, h + first, stride, rows, K, thread, of_g, of_h, tiles)
            block_barrier()
            start += stage
            room = other
        # The second half of the groups leaves its tiles there, and the first half adds its own.
        if own_group >= heaps:
            put_tiles(shared, stages + (own_group - heaps) * heap, thread, tiles, False)
        block_barrier()
        if own_group < heaps:
            put_tiles(shared, stages + own_group * heap, thread, tiles, groups > 1)
        block_barrier()

    return self_gradient
