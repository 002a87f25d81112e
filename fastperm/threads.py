"""How many threads the cpu backend uses."""

import contextlib
import os
import threading

from fastperm.checks import check_integer


def get_num_threads():
    """Return how many threads the cpu backend uses.

    Returns
    -------
    int
        What `set_num_threads` said; else the environment variable ``FASTPERM_NUM_THREADS``; else the number of cores
        that this process may use.

    Raises
    ------
    ValueError
        If ``FASTPERM_NUM_THREADS`` is not a positive integer.
    """
    from fastperm.kernels.cpu import workers

    return workers.get_num_threads()


def set_num_threads(threads):
    """Use so many threads in the cpu backend from now on. The number changes no bit of any result.

    Parameters
    ----------
    threads : int or None
        At least 1; None goes back to the default (see `get_num_threads`).

    Examples
    --------
    >>> import fastperm
    >>> fastperm.set_num_threads(1)
    >>> fastperm.get_num_threads()
    1
    >>> fastperm.set_num_threads(None)
    """
    if threads is not None:
        threads = check_integer(threads, "threads", minimum=1)
    from fastperm.kernels.cpu import workers

    workers.set_num_threads(threads)


class _Limit:
    """A limit that holds, and what to go back to when it ends."""

    def __init__(self, threads):
        from threadpoolctl import threadpool_limits

        from fastperm.kernels.cpu import workers

        self.blas = threadpool_limits(threads)  # first: it may fail
        self.before = workers.set_num_threads(threads)

    def undo(self):
        from fastperm.kernels.cpu import workers

        workers.set_num_threads(self.before)
        self.blas.restore_original_limits()


_limits: list[_Limit] = []  # of all Python threads, the newest last
_lock = threading.Lock()


def _forget_lock():
    """Make another lock in a forked child, which has none of the threads that might have let go of it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


@contextlib.contextmanager
def limited_threads(threads):
    """Compute with so many threads within the block, BLAS included; None leaves everything as it is.

    The number is that of the process. Blocks may be nested, and overlap in several Python threads: what the one says
    that began last counts, and when all have ended, what was before the first.
    """
    if threads is None:
        yield
        return
    threads = check_integer(threads, "threads", minimum=1)
    with _lock:
        own = _Limit(threads)
        _limits.append(own)
    try:
        yield
    finally:
        with _lock:
            _end(own)


def _end(own):
    place = _limits.index(own)
    del _limits[place]
    if place == len(_limits):
        own.undo()
    else:  # the next one goes on, and back to what was before this one
        _limits[place].before, _limits[place].blas = own.before, own.blas
