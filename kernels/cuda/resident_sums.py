"""Sums over the elements of a set that lies on chip, of a block or of a cluster of blocks; part of ``resident.py``.

A thread adds up its elements for each of its features, to numbers of its own in shared memory (its "own sums"). From
there they become one sum of each feature, and, where blocks share a set, one of all blocks: each shows its own, and
adds up those of all in the same order, so that all go on with the same bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastperm.kernels.cuda.compiling import device
from fastperm.kernels.cuda.vectors import (
    add1,
    block_barrier,
    cluster_barrier,
    cluster_size,
    load1,
    load1_of_block,
    store1,
)


class Sums(NamedTuple):
    """The functions of a layout. All threads of a block call the last two, which wait for each other."""

    add_to_own_sums: Callable
    clear_own_sums: Callable
    add_up: Callable
    column_sums: Callable


def sums_of(layout):
    """Return the functions of a layout."""
    width, threads, held_columns, clustered = layout.width, layout.threads, layout.held_columns, layout.clustered
    U, near, far = layout.columns_near
    sums_rows, sums_lead, sums_size = layout.sums_rows, layout.sums_lead, layout.sums_rows * layout.sums_lead
    shares, adders, exchanged = threads // width, min(32, threads // 2), layout.places.exchanged

    @device
    def add_to_own_sums(shared, own_sums, a, sums, b):
        """Add the rows of a strip, times ``a``, to what this thread has summed of its columns."""
        for j in range(held_columns):
            b[j] = np.float32(0)
        for r in range(8):
            for j in range(held_columns):
                b[j] += a[r] * sums[r * held_columns + j]
        for j in range(held_columns):
            add1(shared, own_sums + j // U * far + j % U * near, b[j])

    @device
    def clear_own_sums(shared, own_sums):
        for j in range(held_columns):
            store1(shared, own_sums + j // U * far + j % U * near, np.float32(0))

    @device
    def exchange(shared, thread, count, own, shown):
        """Show the other blocks of the cluster so many numbers, one of each thread; return where all have theirs."""
        # Two places take turns: a block may go on while others still read what it has shown.
        place = exchanged + shown[0] * width
        shown[0] = np.int32(1) - shown[0]
        if thread < count:
            store1(shared, place + thread, np.float32(own))
        cluster_barrier()
        return place

    @device
    def sum_of_blocks(shared, place):
        total = np.float64(0)
        for rank in range(cluster_size()):
            total += np.float64(load1_of_block(shared, place, rank))
        return total

    @device
    def add_up(shared, at, thread, shown):
        """Return the sum of one number of each thread, which lie at ``at``, in all threads of all blocks of a set."""
        block_barrier()
        if thread < adders:
            total = np.float32(0)
            for i in range(thread, threads, adders):
                total += load1(shared, at + i)
            store1(shared, at + thread, total)
        block_barrier()
        whole = np.float64(0)
        for i in range(adders):
            whole += np.float64(load1(shared, at + i))
        if clustered:
            whole = sum_of_blocks(shared, exchange(shared, thread, 1, whole, shown))
        else:
            block_barrier()
        return whole

    @device
    def column_sums(shared, at, divisor, thread, out, shown):
        """Add up what the threads of all blocks of a set have summed of their columns, and divide."""
        block_barrier()
        column = thread % width
        total = np.float32(0)
        for i in range(thread // width, sums_rows, shares):
            total += load1(shared, at + i * sums_lead + column)
        store1(shared, at + sums_size + thread, total)
        block_barrier()
        whole = np.float64(0)
        if thread < width:
            for i in range(shares):
                whole += np.float64(load1(shared, at + sums_size + i * width + thread))
        if clustered:
            place = exchange(shared, thread, width, whole, shown)
            if thread < width:
                whole = sum_of_blocks(shared, place + thread)
        if thread < width:
            store1(shared, out + thread, np.float32(whole / divisor))
        block_barrier()

    return Sums(add_to_own_sums, clear_own_sums, add_up, column_sums)
