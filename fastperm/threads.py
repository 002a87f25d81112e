"""How many threads the cpu backend uses."""

import contextlib

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


@contextlib.contextmanager
def limited_threads(threads):
    """Compute with so many threads within the block, BLAS included; None leaves everything as it is."""
    if threads is None:
        yield
        return
    from threadpoolctl import threadpool_limits

    from fastperm.kernels.cpu import workers

    before = workers.set_num_threads(check_integer(threads, "threads", minimum=1))
    try:
        with threadpool_limits(threads):
            yield
    finally:
        workers.set_num_threads(before)
