"""What a block takes of the parameters for a set on chip: weights, and products with vectors; part of ``resident.py``.

All threads share a matrix of them, and each fetches many numbers before it uses the first.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastperm.kernels.cuda.compiling import device
from fastperm.kernels.cuda.vectors import block_barrier, load1, load1_or_zero, load4, load4_or_zeros, store1, store4


class Parameters(NamedTuple):
    """The functions of a layout, and how many parameters they want to hold."""

    held: int
    put_weights: Callable
    put_turned_weights: Callable
    vector_product: Callable
    turned_vector_product: Callable


def parameters_of(layout, first_feature, word):
    """Return the functions of a layout, given those of its `Strips`."""
    width, threads, lead, lines, pack = layout.width, layout.threads, layout.lead, layout.lines, layout.pack
    W, shares, line_shares = layout.places.weights, threads // width, threads // lines
    # Rounds of the threads over a matrix: as many at once as there are registers for, as many times as it takes.
    most_held = 16 if layout.blocks == 1 and threads <= 256 else 8
    held_rounds = min(width // shares, most_held)
    # Of a vector in shared memory, a thread takes four numbers at once, where it has many, and registers to spare.
    side = 4 if layout.wide and held_rounds % 4 == 0 else 1
    assert side == 1 or all(place % 4 == 0 for place in layout.places)
    # Over its words, four columns side by side at once, in lines of the features or, turned, in columns of them.
    most_fours = max(most_held // (4 * pack), 1)
    across = width // 4
    row_shares = max(threads // across, 1)
    row_rounds, turned_rounds = -(-lines // row_shares), -(-across // line_shares)
    held_rows, held_fours = min(row_rounds, most_fours), min(turned_rounds, most_fours)
    row_times, turned_times = -(-row_rounds // held_rows), -(-turned_rounds // held_fours)
    held_words = max(min(width // shares, most_held // 2) // pack, 1)  # where rows are not aligned
    # A vector along the rows of a matrix: threads side by side read numbers side by side, so many of a row each.
    lanes, sums_lead = layout.lanes, layout.lanes_lead
    groups, of_row = threads // lanes, width // lanes
    rows_each = width // groups
    rows_held = min(rows_each, max(most_held // of_row, 1))
    assert width % groups == rows_each % rows_held == 0

    @device
    def put_word(shared, place, registers, i):
        store1(shared, place, word(registers[pack * i], registers[pack * i + pack - 1]))

    @device
    def put_four_words(shared, place, registers, i):
        """Write four words side by side; the numbers of a word are four apart."""
        i, other = 4 * pack * i, 4 * pack * i + 4 * (pack - 1)
        store4(
            shared,
            place,
            word(registers[i], registers[other]),
            word(registers[i + 1], registers[other + 1]),
            word(registers[i + 2], registers[other + 2]),
            word(registers[i + 3], registers[other + 3]),
        )

    @device
    def hold_four(matrix, start, N, k, j, there, registers, i):
        registers[i], registers[i + 1], registers[i + 2], registers[i + 3] = load4_or_zeros(
            matrix, start + k * N + j, there
        )

    @device
    def put_weights(shared, matrix, start, K, N, inner, is_aligned, thread, registers):
        """Write so many lines of a matrix (K, N) of the parameters to where the weights lie."""
        if is_aligned and (start | N) & 3 == 0:
            j = thread % across * 4
            for time in range(row_times):
                first = thread // across + time * held_rows * row_shares
                for i in range(held_rows):
                    k = first_feature(first + i * row_shares)
                    hold_four(matrix, start, N, k, j, k < K and j < N, registers, 4 * pack * i)
                    if pack > 1:
                        hold_four(matrix, start, N, k + 8, j, k + 8 < K and j < N, registers, 4 * pack * i + 4)
                for i in range(held_rows):
                    line = first + i * row_shares
                    if line < inner:
                        put_four_words(shared, W + line * lead + j, registers, i)
        else:
            j = thread % width
            for start_of_lines in range(thread // width, inner, held_words * shares):
                for i in range(held_words):
                    k = first_feature(start_of_lines + i * shares)
                    registers[pack * i] = load1_or_zero(matrix, start + k * N + j, k < K and j < N)
                    if pack > 1:
                        registers[pack * i + 1] = load1_or_zero(matrix, start + (k + 8) * N + j, k + 8 < K and j < N)
                for i in range(held_words):
                    line = start_of_lines + i * shares
                    if line < inner:
                        put_word(shared, W + line * lead + j, registers, i)

    @device
    def put_turned_weights(shared, matrix, start, K, N, inner, thread, registers):
        """Write so many lines of its transpose."""
        line = thread % lines
        j = first_feature(line)
        for time in range(turned_times):
            first = (thread // lines + time * held_fours * line_shares) * 4
            for i in range(held_fours):
                for c in range(4):
                    k = first + i * 4 * line_shares + c
                    registers[4 * pack * i + c] = load1_or_zero(matrix, start + k * N + j, k < K and j < N)
                    if pack > 1:
                        registers[4 * pack * i + 4 + c] = load1_or_zero(
                            matrix, start + k * N + j + 8, k < K and j + 8 < N
                        )
            if line < inner:
                for i in range(held_fours):
                    k = first + i * 4 * line_shares
                    if k < width:
                        put_four_words(shared, W + line * lead + k, registers, i)

    @device
    def vector_product(shared, v, length, matrix, start, k_lead, j_lead, count, bias, at, thread, out, registers):
        """Write Σ_k v_k matrix_kj, plus the bias if there is one (bias ≥ 0), for j < count, and zeros beyond."""
        j, zero = thread % width, np.float32(0)
        total = zero
        for first in range(thread // width * side, length, held_rounds * shares):
            for i in range(held_rounds):
                k = first + i // side * (shares * side) + i % side
                registers[i] = matrix[start + k * k_lead + j * j_lead] if k < length and j < count else np.float32(0)
            for i in range(0, held_rounds, side):
                k = first + i * shares
                if k < length:
                    if side == 1:
                        total += load1(shared, v + k) * registers[i]
                    else:
                        v0, v1, v2, v3 = load4(shared, v + k)  # some of which may be beyond the vector
                        total += v0 * registers[i]
                        total += (v1 if k + 1 < length else zero) * registers[i + 1]
                        total += (v2 if k + 2 < length else zero) * registers[i + 2]
                        total += (v3 if k + 3 < length else zero) * registers[i + 3]
        store1(shared, at + thread, total)
        block_barrier()
        if thread < width:
            total = np.float32(0)
            for i in range(shares):
                total += load1(shared, at + i * width + thread)
            if bias >= 0 and thread < count:
                total += matrix[bias + thread]
            store1(shared, out + thread, total)
        block_barrier()

    @device
    def turned_vector_product(shared, v, N, matrix, start, K, at, thread, out, registers):
        """Write Σ_j matrix_kj v_j for k < K, and zeros beyond."""
        lane, group, zero = thread % lanes, thread // lanes, np.float32(0)
        for time in range(rows_each // rows_held):
            first = group + time * rows_held * groups
            for i in range(rows_held):
                k = first + i * groups
                for c in range(of_row):
                    j = lane + c * lanes
                    registers[i * of_row + c] = load1_or_zero(matrix, start + k * N + j, k < K and j < N)
            for i in range(rows_held):
                total = zero
                for c in range(of_row):
                    total += load1(shared, v + lane + c * lanes) * registers[i * of_row + c]
                store1(shared, at + (first + i * groups) * sums_lead + lane, total)
        block_barrier()
        if thread < width:
            total = zero
            for i in range(lanes):
                total += load1(shared, at + thread * sums_lead + i)
            store1(shared, out + thread, total)
        block_barrier()

    held = max(held_rounds, 4 * pack * max(held_rows, held_fours), rows_held * of_row)
    return Parameters(held, put_weights, put_turned_weights, vector_product, turned_vector_product)
