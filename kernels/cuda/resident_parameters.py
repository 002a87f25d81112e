"""What a block takes of the parameters for a set on chip: weights, and products with vectors; part of ``resident.py``.

All threads share a matrix of them, and each fetches many numbers before it uses the first.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastperm.kernels.cuda.compiling import device
from fastperm.kernels.cuda.vectors import block_barrier, load1, load4, store1


class Parameters(NamedTuple):
    """The functions of a layout, and how many parameters they want to hold."""

    held: int
    put_weights: Callable
    put_turned_weights: Callable
    vector_product: Callable


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
    # And over its words, in lines of the features or, turned, in columns of them.
    word_rounds = -(-width // line_shares)
    held_words = min(word_rounds, most_held // pack)
    word_times = word_rounds // held_words

    @device
    def hold_pair(matrix, start, K, N, k, j, k_apart, j_apart, registers, i):
        """Take the numbers of a word of a matrix (K, N) of the parameters; zeros beyond it."""
        registers[pack * i] = matrix[start + k * N + j] if k < K and j < N else np.float32(0)
        if pack > 1:
            k, j = k + k_apart, j + j_apart
            registers[pack * i + 1] = matrix[start + k * N + j] if k < K and j < N else np.float32(0)

    @device
    def put_word(shared, place, registers, i):
        store1(shared, place, word(registers[pack * i], registers[pack * i + pack - 1]))

    @device
    def put_weights(shared, matrix, start, K, N, inner, thread, registers):
        """Write so many lines of a matrix (K, N) of the parameters to where the weights lie."""
        j = thread % width
        for time in range(word_times):
            first = thread // width + time * held_words * shares
            for i in range(held_words):
                hold_pair(matrix, start, K, N, first_feature(first + i * shares), j, 8, 0, registers, i)
            for i in range(held_words):
                line = first + i * shares
                if line < inner:
                    put_word(shared, W + line * lead + j, registers, i)

    @device
    def put_turned_weights(shared, matrix, start, K, N, inner, thread, registers):
        """Write so many lines of its transpose."""
        line = thread % lines
        j = first_feature(line)
        for time in range(word_times):
            first = thread // lines + time * held_words * line_shares
            for i in range(held_words):
                hold_pair(matrix, start, K, N, first + i * line_shares, j, 0, 8, registers, i)
            if line < inner:
                for i in range(held_words):
                    k = first + i * line_shares
                    if k < width:
                        put_word(shared, W + line * lead + k, registers, i)

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

    return Parameters(max(held_rounds, held_words * pack), put_weights, put_turned_weights, vector_product)
