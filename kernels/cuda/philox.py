"""Philox4x32-10, for kernels that draw random numbers; source and conventions in ``kernels/reference/philox.py``."""

import math

import numpy as np

from fastperm.kernels.cuda.compiling import device
from fastperm.kernels.reference.philox import KEY_STEPS, MULTIPLIERS, ROUNDS, WORD

# All words in 64 bits: a product of two needs them.
MASK, HALF, SPARE, KEPT = np.uint64(WORD), np.uint64(32), np.uint64(6), np.uint64(26)
FIRST, SECOND = (np.uint64(factor) for factor in MULTIPLIERS)
FIRST_STEP, SECOND_STEP = (np.uint64(step) for step in KEY_STEPS)
TURN = 2 * math.pi


def key_or_keys(key):
    """Return the two parameters by which a kernel is given its key: a number, or an array on the GPU that has it."""
    return (key, None) if isinstance(key, int) else (-1, key)


@device
def uniforms(index, stream, key):
    """Return the two numbers of an index in a stream, uniform on (0, 1)."""
    place, own = np.uint64(index), np.uint64(key)
    a, b, c, d = place & MASK, place >> HALF, np.uint64(stream), np.uint64(0)
    k, l = own & MASK, own >> HALF  # noqa: E741
    for _ in range(ROUNDS):
        left, right = FIRST * a, SECOND * c
        a, b, c, d = right >> HALF ^ b ^ k, right & MASK, left >> HALF ^ d ^ l, left & MASK
        k, l = (k + FIRST_STEP) & MASK, (l + SECOND_STEP) & MASK  # noqa: E741
    return _between_0_and_1(a, b), _between_0_and_1(c, d)


@device
def normal(index, stream, key):
    """Return the normal number of an index in a stream."""
    u, v = uniforms(index, stream, key)
    return math.sqrt(-2 * math.log(u)) * math.cos(TURN * v)


@device
def _between_0_and_1(high, low):
    return (np.float64(high >> SPARE << KEPT | low >> SPARE) + 0.5) * 2.0**-52
