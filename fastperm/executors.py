"""Where the cells of a sweep are computed: processes on this machine, MPI, or Dask."""

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, ProcessPoolExecutor, wait
from functools import partial

from fastperm.checks import check_integer
from fastperm.threads import get_num_threads

_MPI_COMMAND = "mpiexec -n N python -m mpi4py.futures -m fastperm sweep --executor mpi ..."

# Seconds that workers are given, after Ctrl-C, to finish their step and write a checkpoint.
_GRACE = 30


def share_cores(cells, workers=None, threads=None):
    """Return how many processes compute so many cells, and the threads of each: together no more than the cores.

    Parameters
    ----------
    cells : int
        How many there are to compute.
    workers : int or None, default None
        Processes; None makes as many as there are cores for, at ``threads`` each, and no more than cells.
    threads : int or None, default None
        Threads of a process; None shares the cores out.

    Returns
    -------
    (int, int)

    Raises
    ------
    ValueError
        If workers times threads exceeds the cores that this process may use (``FASTPERM_NUM_THREADS``, if it is set).
    """
    cores = get_num_threads()
    given = [
        number if number is None else check_integer(number, name, minimum=1)
        for number, name in ((workers, "workers"), (threads, "threads"))
    ]
    if (given[0] or 1) * (given[1] or 1) > cores:
        said = ", by FASTPERM_NUM_THREADS" if os.environ.get("FASTPERM_NUM_THREADS") else ""
        raise ValueError(
            f"expected workers times threads of at most {cores}, the cores that this process may use{said}, "
            f"got {given[0] or 1} times {given[1] or 1}"
        )
    workers = given[0] or max(1, min(cells, cores // (given[1] or 1)))
    return workers, given[1] or cores // workers


@contextlib.contextmanager
def opened(name, workers=None):
    """Give the executor that ``--executor`` names, and close it afterwards.

    Parameters
    ----------
    name : str
        "mpi": the processes that ``mpiexec -n N python -m mpi4py.futures`` started; "dask": a Dask cluster on this
        machine; "dask:ADDRESS": the cluster whose scheduler is there.
    workers : int or None, default None
        Processes of a cluster that is started here.

    Yields
    ------
    concurrent.futures.Executor

    Raises
    ------
    ValueError
        If the name is another one, or there is no MPI to speak of.
    RuntimeError
        If mpi4py or distributed is not installed; the message says how to install it.
    """
    kind, _, address = name.partition(":")
    if kind == "mpi" and not address:
        yield from _mpi()
    elif kind == "dask":
        yield from _dask(address, workers)
    else:
        raise ValueError(f"executor must be 'processes', 'mpi', 'dask' or 'dask:ADDRESS', got {name!r}")


def _mpi():
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPIPoolExecutor
    except ModuleNotFoundError as error:
        raise _missing(error, "mpi", "mpi4py") from None
    if MPI.COMM_WORLD.size < 2 or MPI.COMM_WORLD.rank > 0:
        raise ValueError(
            f"expected to be the first of N > 1 processes, the others waiting for work; start them with: {_MPI_COMMAND}"
        )
    with MPIPoolExecutor() as executor:
        yield executor


def _dask(address, workers):
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise _missing(error, "dask", "distributed") from None
    if address:
        arguments = {"address": address}
    else:
        arguments = {"n_workers": workers or get_num_threads(), "threads_per_worker": 1, "dashboard_address": None}
    with Client(**arguments) as client, client.get_executor(pure=False) as executor:
        yield executor


def _missing(error, extra, package):
    return RuntimeError(f"{package} is not installed ({error}); pip install 'fastperm[{extra}]'")


def run_on(executor, function, jobs, report):
    """Call ``function(*job)`` for every job on an executor, and ``report(job, result)`` as each is finished.

    Parameters
    ----------
    executor : concurrent.futures.Executor or int
        Where to; a number is that of processes on this machine, which end when this one does.
    function : callable
        What is called; importable, as are the jobs.
    jobs : iterable of tuple
        Arguments.
    report : callable
        Called with the result, or with the exception that the function raised. A worker that ends abruptly takes with
        it what the executor had begun, and no more where the processes are our own.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, here or in a worker. What has not begun is not begun any more.
    """
    waiting = list(jobs)[::-1]
    if isinstance(executor, Executor):
        _submit(executor, function, waiting, len(waiting), report)
        for job in reversed(waiting):
            report(job, BrokenExecutor("its executor broke down before it began"))
        return
    # Not forked: the parent may have threads, and CUDA does not outlive a fork.
    context = multiprocessing.get_context("spawn")
    while waiting:
        before = set(multiprocessing.active_children())
        with ProcessPoolExecutor(executor, context, _start_worker) as pool:
            _submit(pool, function, waiting, executor, report, partial(_end, before))


def _end(others):
    """End the processes that this one has started, but others: to leave their pool would be to wait for them."""
    for child in set(multiprocessing.active_children()) - others:
        child.terminate()


def _submit(executor, function, waiting, at_once, report, end=lambda: None):
    """Take jobs from the end of ``waiting`` until it is empty, or the executor broken.

    After an interruption, ``end`` is called if what is running does not finish in time.
    """
    running: dict = {}
    broken = False
    try:
        while running or (waiting and not broken):
            while waiting and not broken and len(running) < at_once:
                future = executor.submit(function, *waiting[-1])
                running[future] = waiting.pop()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    result = future.result()
                except Exception as error:
                    broken |= isinstance(error, BrokenExecutor)
                    result = error
                report(job, result)
    except BrokenExecutor:  # when asked for more; what is running has failed, too
        for future, job in running.items():
            report(job, future.exception())
    except BaseException:
        for future in running:
            future.cancel()
        if wait(running, timeout=_GRACE).not_done:
            end()
        raise


def _start_worker():
    """Leave Ctrl-C to training, which finishes its step, and end with the parent however it ends."""
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which training would leave as it is
    # Nor SIG_DFL: of a pool that breaks, those who do not end at once wait forever for a lock that a dead one holds.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end():
            parent.join()
            os._exit(1)

        threading.Thread(target=end, daemon=True).start()
