"""Philox4x32-10: random bits as a function of a counter and a key, so that any thread can have those of any place.

Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". Each of ten rounds multiplies
two of the four words of the counter by constants, mixes the halves of the products with the other words and the key,
and moves the key on.

A draw is named by its index and by the stream that it belongs to; both, and the key, are the caller's.
"""

import numpy as np

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85  # golden ratio, √3 − 1
WORD = 0xFFFFFFFF


def philox(
    counters,  # (..., 4), below 2³² each
    key,  # (2,), likewise
):
    """Return four random words of 32 bits for each counter: (..., 4) uint64."""
    a, b, c, d = np.moveaxis(np.asarray(counters, np.uint64), -1, 0)
    first, second = (np.uint64(factor) for factor in MULTIPLIERS)
    half, word = np.uint64(32), np.uint64(WORD)
    for i in range(ROUNDS):
        own = [np.uint64((int(k) + i * step) & WORD) for k, step in zip(key, KEY_STEPS, strict=True)]
        left, right = first * a, second * c
        a, b, c, d = right >> half ^ b ^ own[0], right & word, left >> half ^ d ^ own[1], left & word
    return np.stack([a, b, c, d], axis=-1)


def uniforms(
    index,  # (n,), not negative
    stream,  # below 2³²
    key,  # below 2⁶³
):
    """Return two numbers for each index: (2, n) float64, uniform on (0, 1), of which neither end occurs.

    They are (i + ½) / 2⁵², i being 52 bits of two words.
    """
    index = np.asarray(index, np.uint64)
    counters = np.zeros((len(index), 4), np.uint64)
    counters[:, 0] = index & np.uint64(WORD)
    counters[:, 1] = index >> np.uint64(32)
    counters[:, 2] = stream
    a, b, c, d = philox(counters, (key & WORD, key >> 32)).T
    bits = np.stack(
        [a >> np.uint64(6) << np.uint64(26) | b >> np.uint64(6), c >> np.uint64(6) << np.uint64(26) | d >> np.uint64(6)]
    )
    return (bits.astype(np.float64) + 0.5) * 2.0**-52


def normals(index, stream, key):
    """Return a normal number for each index, (n,) float64, by the transform of Box & Muller (1958)."""
    u, v = uniforms(index, stream, key)
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
