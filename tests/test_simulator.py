"""What the simulator, as tests use it, sees of mistakes between the threads of a block."""

import numpy as np
import pytest

from fastperm.kernels.cuda import compiling
from fastperm.kernels.cuda.compiling import cuda
from fastperm.kernels.cuda.vectors import add1

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


def test_an_error_says_where_it_was():
    def body(found):
        cuda.syncthreads()
        if cuda.threadIdx.x == 3:
            found[THREADS] = 0

    with pytest.raises(IndexError) as caught:
        launch(body, np.zeros(THREADS, np.float32))
    assert caught.value.__notes__ == ["in thread (3, 0, 0) of block (0, 0, 0)"]
