"""Which numbers of a layer are positive, one bit each, for the way back of a set on chip; part of ``resident.py``.

A thread has the same elements and features of a strip forward and back, so it writes words of its own. Those of a
thread are as far apart as there are threads, so that a warp writes whole lines of memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastperm.kernels.cuda.compiling import device
from fastperm.kernels.cuda.vectors import push_sign, where_bit


class Masks(NamedTuple):
    """The functions of a layout."""

    put_signs: Callable
    hold_signs: Callable
    mask_sums: Callable


def masks_of(layout):
    """Return the functions of a layout."""
    threads, words, in_word = layout.threads, layout.words, layout.held // layout.words
    assert words in (1, 2, 4)

    @device
    def signs_of(sums, first):
        """Return which of so many sums, from this one on, are positive, the first one's bit above the others."""
        bits = np.int32(0)
        for i in range(first, first + in_word):
            bits = push_sign(bits, sums[i])
        return bits

    @device
    def put_signs(signs, place, sums):
        # Written out: compilers do not unroll a loop over many sums.
        signs[place] = signs_of(sums, 0)
        if words > 1:
            signs[place + threads] = signs_of(sums, in_word)
        if words > 2:
            signs[place + 2 * threads] = signs_of(sums, 2 * in_word)
            signs[place + 3 * threads] = signs_of(sums, 3 * in_word)

    @device
    def hold_signs(signs, place, bits):
        for i in range(words):
            bits[i] = signs[place + i * threads]

    @device
    def mask_some(bits, first, sums):
        for i in range(in_word):
            sums[first + i] = where_bit(bits, in_word - 1 - i, sums[first + i])

    @device
    def mask_sums(bits, sums):
        """Make zero what was not positive on the way forward."""
        mask_some(bits[0], 0, sums)
        if words > 1:
            mask_some(bits[1], in_word, sums)
        if words > 2:
            mask_some(bits[2], 2 * in_word, sums)
            mask_some(bits[3], 3 * in_word, sums)

    return Masks(put_signs, hold_signs, mask_sums)
