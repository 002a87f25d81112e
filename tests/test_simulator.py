"""What the simulator, as tests use it, sees of mistakes between the threads of a block."""

import numpy as np
import pytest

from fastperm.kernels.cuda import compiling
from fastperm.kernels.cuda.compiling import cuda
from fastperm.kernels.cuda.vectors import add1, cluster_barrier, cluster_rank, cluster_size, load1_of_block

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("cuda"),
    pytest.mark.skipif(not compiling.SIMULATED, reason="is about the simulator"),
]

THREADS = 8


def launch(body, *arguments):
    cuda.jit(body)[1, THREADS](*arguments)


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("barrier", [True, False])
def test_what_another_thread_writes_is_there_behind_a_barrier_only(step, barrier):
    def body(found):
        i = cuda.threadIdx.x
        shared = cuda.shared.array(THREADS, np.float32)
        shared[i] = i
        if barrier:
            cuda.syncthreads()
        found[i] = shared[(i + step) % THREADS]

    found = np.zeros(THREADS, np.float32)
    launch(body, found)
    assert np.array_equal(found, np.roll(np.arange(THREADS), -step)) == barrier
    assert np.isnan(found).any() != barrier


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("barrier", [True, False])
def test_what_another_thread_reads_stays_until_a_barrier_only(step, barrier):
    def body(found):
        i = cuda.threadIdx.x
        other = found[(i + step) % THREADS]
        if barrier:
            cuda.syncthreads()
        found[i] = other

    found = np.arange(THREADS, dtype=np.float32)
    launch(body, found)
    assert np.array_equal(found, np.roll(np.arange(THREADS), -step)) == barrier


def test_sums_of_several_threads_into_one_number_are_lost():
    def body(total):
        for _ in range(1000):
            add1(total, 0, np.float32(1))

    total = np.zeros(1, np.float32)
    launch(body, total)
    assert 0 < total[0] < 1000 * THREADS


@pytest.mark.parametrize("missing", ["before", "behind", "last", None])
def test_blocks_of_a_cluster_see_each_other_between_barriers_of_the_cluster_only(missing):
    def body(found):
        shared = cuda.shared.array(0, np.dtype(np.float32))
        thread, rank = cuda.threadIdx.x, cluster_rank()
        other = (rank + 1) % cluster_size()
        for turn in range(3):
            if thread == 0:
                shared[0] = 10 * turn + rank
            if missing != "before":
                cluster_barrier()
            seen = load1_of_block(shared, 0, other)
            if missing != ("behind" if turn < 2 else "last"):
                cluster_barrier()
            found[turn, cuda.blockIdx.x, thread] = seen

    found = np.zeros((3, 4, THREADS), np.float32)
    wanted = np.add.outer([0, 10, 20], [1, 0, 1, 0])[:, :, None]
    kernel = cuda.jit(body)
    kernel.cluster = 2
    if missing == "last":
        with pytest.raises(AssertionError, match="is there no more"):
            kernel[4, THREADS, 0, 4](found)
    else:
        kernel[4, THREADS, 0, 4](found)
        assert np.array_equal(found, np.broadcast_to(wanted, found.shape)) == (missing is None)


def test_threads_of_a_block_that_wait_for_others_wait_forever():
    def body():
        if cuda.threadIdx.x == 0:
            cluster_barrier()
        else:
            cuda.syncthreads()

    with pytest.raises(AssertionError, match="barriers of both kinds"):
        launch(body)


def test_an_error_says_where_it_was():
    def body(found):
        cuda.syncthreads()
        if cuda.threadIdx.x == 3:
            found[THREADS] = 0

    with pytest.raises(IndexError) as caught:
        launch(body, np.zeros(THREADS, np.float32))
    assert caught.value.__notes__ == ["in thread (3, 0, 0) of block (0, 0, 0)"]
