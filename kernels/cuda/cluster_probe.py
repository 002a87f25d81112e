"""Whether a GPU runs clusters of blocks as large as wanted: tried out once, as nothing else says so for sure.

Capability and limits promise clusters of eight blocks, and say nothing of whether so many find room beside each other.
"""

import logging

import numpy as np

from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda.compiling import FLOAT32, SIMULATED, cuda, current_device, kernel, recorded, xp
from fastperm.kernels.cuda.vectors import cluster_barrier, cluster_rank, cluster_size, load1_of_block, store1

THREADS = 4 if SIMULATED else 512

# What was found out, by device, blocks and bytes.
_found: dict[tuple[int, int, int], bool] = {}

_logger = logging.getLogger("fastperm")


def clusters_run(
    cluster,  # blocks
    shared,  # bytes of each
):
    """Return whether blocks of such clusters read each other's shared memory; the first time, it is waited for."""
    if cluster == 1:
        return True
    tried = (0 if SIMULATED else current_device(), cluster, shared)
    if tried not in _found:
        if not SIMULATED and _captures():
            return False
        _found[tried] = _run(cluster, shared)
    return _found[tried]


def _captures():
    """Return whether somebody captures a graph now, so that nothing can be tried."""
    try:
        return xp().cuda.get_current_stream().is_capturing()
    except RuntimeError:  # on another stream, so that this one must not even be asked
        return True


def _run(cluster, shared):
    try:
        seen = xp().zeros(cluster, np.float32)
        with recorded():  # this is no part of a step that may be recorded now
            _cluster_probe(cluster, seen, shared=shared, cluster=cluster)
        found = on_host(seen).tolist()
    except MemoryError:
        raise
    except Exception as error:
        found = error
    if found == [(rank + 1) % cluster + 1.0 for rank in range(cluster)]:
        return True
    _logger.warning(
        "the GPU does not run clusters of %d blocks with %s bytes of shared memory each (%s): the work is done without "
        "them, more slowly",
        *(cluster, f"{shared:,}", found),
    )
    return False


@kernel("f4*", threads=THREADS, dynamic=True, clustered=True)
def _cluster_probe(
    seen,  # (cluster,): what each block found in the next one
):
    shared = cuda.shared.array(0, FLOAT32)
    thread = cuda.threadIdx.x
    rank = cluster_rank()
    if thread == 0:
        store1(shared, 0, np.float32(rank + 1))
    cluster_barrier()
    if thread == 0:
        seen[rank] = load1_of_block(shared, 0, (rank + 1) % cluster_size())
    cluster_barrier()
