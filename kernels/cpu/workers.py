"""Threads of the cpu backend: an ordinary pool over fixed chunks of sets, or fixed pieces of one large set.

Kernels release the GIL, so plain threads run them side by side. Numba's own layers are not used: ``workqueue`` aborts
the process when two Python threads call in at once, and OpenMP aborts after a fork. What is large, the chunks and the
pieces depend on the batch only, never on the number of threads, so that sums over them give the same bits on 1 or 64
threads.

An operation on rows takes `small_chunks` for whole sets, and `pieces` of each of the `large_sets`; one that does little
for each set and splits none, `for_each_chunk`, or `share` where a chunk takes less than a millisecond.
"""

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise

import numpy as np

from fastperm.kernels.cpu.addresses import fetch_and_add
from fastperm.kernels.cpu.compiling import jit, subroutine

CHUNKS = 16

# A set is large, and split over the workers, if it has at least so many elements, and activations of so many numbers
# (10,000 elements at width 64: two workers gain nothing there yet, since they wait for each other, but more do), and
# more than this part of the elements of its batch (with less, chunks of whole sets keep 8 workers busy).
LARGE_ELEMENTS, LARGE_NUMBERS, LARGE_PART = 4096, 640_000, 8
# Rows, and numbers to be added up, that are worth a thread.
PIECE, ADDED = 1024, 2**15
TOGETHER = 2048

_lock = threading.Lock()
_pool = None
_pool_size = 0
_num_threads = None


def get_num_threads():
    """Return how many threads the cpu backend uses: ``FASTPERM_NUM_THREADS``, or the cores this process may use."""
    if _num_threads is not None:
        return _num_threads
    given = os.environ.get("FASTPERM_NUM_THREADS", "").strip()
    if given:
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(f"FASTPERM_NUM_THREADS must be a positive integer, got {given!r}")
        return int(given)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def set_num_threads(threads):
    """Use this many threads from now on, None for the default, and return what had been set before."""
    global _num_threads
    before, _num_threads = _num_threads, threads
    return before


def chunk_bounds(offsets):
    """Return the sets at which chunks begin and end: at most CHUNKS of them, of about equal numbers of elements."""
    ends = offsets[-1] * np.arange(1, CHUNKS + 1) // CHUNKS
    return sorted({0, *(np.searchsorted(offsets[1:], ends) + 1).tolist()})


def widest_activation(widths, orders):
    """Return how many numbers an element has in the widest activation, with its 2M harmonics, if there are any."""
    return max(widths[:-1]) + 2 * orders


def least_large(offsets, width):
    """Return how many elements make a set of this batch a large one; ``width`` is that of the widest activation."""
    return max(LARGE_ELEMENTS, -(-LARGE_NUMBERS // width), int(offsets[-1]) // LARGE_PART + 1)


def large_sets(offsets, width):
    """Return the sets that are to be split over the workers, in order."""
    return (offsets[1:] - offsets[:-1] >= least_large(offsets, width)).nonzero()[0].tolist()


def small_chunks(offsets, width):
    """Return the (first, last) sets of each chunk of the sets that are not large."""
    large = large_sets(offsets, width)
    # Still at most CHUNKS: at least two chunks would have ended within a large set, and now one begins at it.
    bounds = sorted({*chunk_bounds(offsets), *large, *(s + 1 for s in large)})
    return [(first, last) for first, last in pairwise(bounds) if first not in large]


def pieces(rows, least=None):
    """Return the bounds of at most CHUNKS pieces of about as many rows each, (pieces + 1,) int64: offsets, if you like.

    Fewer than ``least``, by default PIECE, are one piece, since a thread costs more than they do.
    """
    count = min(CHUNKS, max(1, rows // (least or PIECE)))
    return rows * np.arange(count + 1, dtype=np.int64) // count


def run(tasks):
    """Run the callables in ``tasks``, the caller working too; raises the first exception among them."""
    threads = min(get_num_threads(), len(tasks))
    if threads <= 1:
        for task in tasks:
            task()
        return
    waiting = deque(tasks)

    def work():
        while True:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            task()

    helpers = _start(work, threads - 1)
    try:
        work()
    finally:
        waiting.clear()
        # A helper that another caller kept from starting, or for whom there is no thread, has nothing left to do.
        started = [helper for helper in helpers if not helper.cancel()]
        failures = [failure for failure in (helper.exception() for helper in started) if failure]
    if failures:
        raise failures[0]


def for_each_chunk(function, offsets, *arguments):
    """Call ``function(first_set, last_set, *arguments)`` for every chunk of the batch."""
    shared = ready(arguments)
    run([partial(function, *ends, *shared) for ends in pairwise(chunk_bounds(offsets))])


def share(function, chunks, *arguments):
    """Have every worker call ``function(counter, chunks, *arguments)``, which takes the chunks that `next_chunk` gives.

    For chunks that take less than a millisecond: a call of a compiled function for each of them would have to wait for
    Python's lock.
    """
    shared = ready((np.zeros(1, np.int64), np.array(chunks, np.int64).reshape(-1, 2), *arguments))
    run([partial(function, *shared)] * min(get_num_threads(), len(chunks)))


@subroutine
def next_chunk(counter, chunks):
    """Return the number of a chunk that nobody has taken yet, or -1, and its first and last set."""
    i = fetch_and_add(counter)
    if i < len(chunks):
        return i, chunks[i, 0], chunks[i, 1]
    return -1, 0, 0


def task(function, *arguments):
    """Return the call of a compiled function, to be given to `run`."""
    return partial(function, *ready(arguments))


def ready(arguments):
    """Return arguments as compiled functions take them; for those that many tasks share, once is enough."""
    return tuple(_writable(a) if isinstance(a, np.ndarray) else a for a in arguments)


def add_parts(parts, total):
    """Add the arrays parts[0], parts[1], … to ``total``, in their order; the workers share the numbers, not the arrays.

    Both are C-contiguous.
    """
    flat = (parts.reshape(len(parts), total.size), total.reshape(-1))
    run([task(_add, *ends, *flat) for ends in pairwise(pieces(total.size, least=ADDED))])


@jit
def _add(first, last, parts, total):
    # So many at a time that the totals stay in the first-level cache while all parts pass by.
    for start in range(first, last, TOGETHER):
        own = total[start : min(start + TOGETHER, last)]
        for part in range(len(parts)):
            added = parts[part, start : start + own.size]
            for i in range(own.size):
                own[i] += added[i]


class _Memory:
    """Somebody's array, without the mark that it is read-only."""

    def __init__(self, array):
        self.array = array  # kept alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _writable(array):
    """Return the array as one that may be written to: for Numba a read-only one is another type, compiled anew."""
    return array if array.flags.writeable else np.asarray(_Memory(array))


def _start(work, helpers):
    """Have so many helpers do the work, as far as there are threads, and return a future for each of them.

    The futures are our own: where the pool cannot start a thread, it has queued what it was given, and whoever takes it
    later must find out that nobody waits for it.
    """
    global _pool, _pool_size
    futures: list[Future] = [Future() for _ in range(helpers)]
    with _lock:
        if _pool is None or _pool_size < helpers:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool = ThreadPoolExecutor(helpers, thread_name_prefix="fastperm")
            _pool_size = helpers
        # No thread can be started as the interpreter shuts down, or where the system allows no more.
        begun = 0
        with suppress(RuntimeError):
            for future in futures:
                _pool.submit(_help, future, work)
                begun += 1
        if begun == 0:  # nobody may ever take what was queued
            _pool.shutdown(wait=False)
            _pool = None
    return futures


def _help(future, work):
    if not future.set_running_or_notify_cancel():
        return
    try:
        work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(None)


def _forget_pool():
    """Start afresh in a forked child: it has none of its parent's threads, and perhaps a lock that one of them held."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
