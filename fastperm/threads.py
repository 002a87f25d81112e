"""How many threads the cpu backend uses."""

import contextlib
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


# Limits that hold now, of whatever Python threads, the newest last; and what undoes all of them.
_limits: list[list[int]] = []
_undo = contextlib.ExitStack()
_lock = threading.Lock()


@contextlib.contextmanager
def limited_threads(threads):
    """Compute with so many threads within the block, BLAS included; None leaves everything as it is.

    The number is that of the process. Of blocks in several Python threads, the one that began last says it; BLAS stays
    with what the first one said, until all have ended.
    """
    if threads is None:
        yield
        return
    threads = check_integer(threads, "threads", minimum=1)
    own = [threads]  # a list, as it is looked for by identity
    with _lock:
        _begin(own)
    try:
        yield
    finally:
        with _lock:
            _end(own)


def _begin(limit):
    from threadpoolctl import threadpool_limits

    from fastperm.kernels.cpu import workers

    (threads,) = limit
    before = workers.set_num_threads(threads)
    if not _limits:
        _undo.callback(workers.set_num_threads, before)
        _undo.enter_context(threadpool_limits(threads))
    _limits.append(limit)


def _end(limit):
    from fastperm.kernels.cpu import workers

    del _limits[next(i for i, other in enumerate(_limits) if other is limit)]
    if _limits:
        workers.set_num_threads(_limits[-1][0])
    else:
        _undo.close()
