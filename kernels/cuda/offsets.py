"""Small arrays of the host that many launches need on the GPU: offsets above all."""

import functools

import numpy as np

from fastperm.kernels.cuda.compiling import SIMULATED, current_place, xp

KEPT = 16  # arrays, the last that were asked for
KEPT_BYTES = 1 << 20  # larger ones are copied each time: comparing them takes as long


def on_device(
    array,  # on the host, or already there
):
    """Return an array on the current GPU, copied there once for as long as the same numbers are asked for."""
    if not isinstance(array, np.ndarray):
        return array
    if SIMULATED or array.nbytes > KEPT_BYTES:
        return xp().asarray(array)
    # Of one stream: its memory goes back to that, in order with what reads it.
    return _copied(array.tobytes(), array.dtype.str, current_place())


def sizes(
    offsets,  # (S + 1,), on the host
):
    """Return the numbers of elements of a batch of sets: the mean and the largest."""
    return _sizes(offsets) if offsets.nbytes > KEPT_BYTES else _known_sizes(offsets.tobytes(), offsets.dtype.str)


def _sizes(offsets):
    counts = np.diff(offsets)
    return float(counts.mean()), int(counts.max())


@functools.lru_cache(KEPT)
def _known_sizes(content, dtype):
    return _sizes(np.frombuffer(content, dtype))


@functools.lru_cache(KEPT)
def _copied(content, dtype, place):
    return xp().asarray(np.frombuffer(content, dtype))
