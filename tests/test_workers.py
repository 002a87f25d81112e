import multiprocessing
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from cases import LARGE_COUNTS, split_large_sets

import fastperm
from fastperm.kernels.cpu import workers
from fastperm.threads import limited_threads


@pytest.fixture(autouse=True)
def default_threads():
    yield
    workers.set_num_threads(None)


def one_step(threads, seed=0, counts=None, **settings):
    """Return loss, gradients and parameters of one step of a ragged batch, and a prediction afterwards."""
    workers.set_num_threads(threads)
    generator = np.random.default_rng(seed)
    if counts is None:
        counts = generator.integers(1, 60, 100)
    sets = fastperm.Sets.ragged([generator.standard_normal((n, 3)) for n in counts])
    net = fastperm.DeepSet(3, 17, 2, 2, backend="cpu", seed=1, **settings)
    targets = generator.standard_normal(net.prediction_shape(sets))
    loss = fastperm.train_step(net, sets, targets, fastperm.Adam())
    return loss, net.gradients.flat.copy(), net.parameters.flat.copy(), net(sets)


def forward_and_backward(threads, counts):
    """Return prediction and all gradients of a ragged batch, layer by layer."""
    workers.set_num_threads(threads)
    generator = np.random.default_rng(0)
    sets = fastperm.Sets.ragged([generator.standard_normal((n, 3)) for n in counts])
    net = fastperm.DeepSet(3, 17, 2, 2, aggregate="max", backend="cpu", seed=1)
    y, saved = net.forward(sets)
    dx = net.backward(generator.standard_normal(y.shape), saved)
    return 0, y, dx, net.gradients.flat.copy()


def assert_same(a, b):
    assert a[0] == b[0]
    for left, right in zip(a[1:], b[1:], strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_number_of_threads_changes_no_bit(threads):
    assert_same(one_step(threads), one_step(1))


@pytest.mark.parametrize("counts", LARGE_COUNTS, ids=str)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_number_of_threads_changes_no_bit_of_large_sets(monkeypatch, threads, counts):
    split_large_sets(monkeypatch, counts, 17)
    for settings in ({}, {"aggregate": "max", "pool": "max"}, {"pool": None}):
        assert_same(one_step(threads, 0, counts, **settings), one_step(1, 0, counts, **settings))
    assert_same(forward_and_backward(threads, counts), forward_and_backward(1, counts))


def test_what_is_large():
    def large(counts, width):
        return workers.large_sets(np.concatenate([[0], np.cumsum(counts)]), width)

    assert large([10_000], 64) == [0]
    assert large([9_999], 64) == []
    assert large([5_000], 64) == []
    assert large([5_000], 128) == [0]
    assert large([4_095], 10_000) == []
    assert large([20_000] * 7, 64) == list(range(7))
    assert large([20_000] * 8, 64) == []  # enough for everybody as they are
    assert large([1, 50_000, 7, 3, 30_000, 1], 64) == [1, 4]


def test_chunks_leave_out_large_sets_only():
    for counts in ([50_000], [5] * 30, [1, 50_000], [50_000, 1], [10] * 500 + [50_000, 60_000] + [99] * 100 + [40_000]):
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        chunks, large = workers.small_chunks(offsets, 64), workers.large_sets(offsets, 64)
        covered = [s for first, last in chunks for s in range(first, last)]
        assert sorted(covered + large) == list(range(len(counts)))
        assert len(chunks) <= workers.CHUNKS
        if not large:
            assert chunks == list(pairwise(workers.chunk_bounds(offsets)))


def test_pieces_cover_the_rows():
    for rows in (1, 1023, 1024, 5000, 123_457):
        bounds = workers.pieces(rows)
        assert bounds[0] == 0
        assert bounds[-1] == rows
        assert (np.diff(bounds) >= min(rows, workers.PIECE)).all()
        assert len(bounds) <= workers.CHUNKS + 1


def test_python_threads_may_call_at_once():
    wanted = [one_step(2, seed) for seed in range(8)]
    found = {}

    def call(seed):
        found[seed] = one_step(2, seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for seed in range(8):
        assert_same(found[seed], wanted[seed])


def _child(queue):
    queue.put(one_step(2))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the point of the test
def test_a_forked_child_works_after_its_parent():
    wanted = one_step(2)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert_same(queue.get(timeout=60), wanted)
    child.join(60)
    assert child.exitcode == 0


def test_chunks_cover_the_batch_and_are_balanced():
    for counts in ([5], [1] * 3, [7] * 16, [3] * 1000, [1, 1, 10_000, 1], list(range(1, 200))):
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        bounds = workers.chunk_bounds(offsets)
        assert bounds[0] == 0
        assert bounds[-1] == len(counts)
        assert bounds == sorted(set(bounds))
        sizes = np.diff(offsets[bounds])
        assert len(sizes) <= workers.CHUNKS
        assert sizes.max() <= offsets[-1] / workers.CHUNKS + max(counts)


def test_the_first_failure_is_raised_and_the_pool_survives():
    workers.set_num_threads(2)

    def fail():
        raise ZeroDivisionError("task")

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="task"):
            workers.run([fail] * 4)
    done = []
    workers.run([lambda i=i: done.append(i) for i in range(20)])
    assert sorted(done) == list(range(20))


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_where_no_more_threads_can_be_started_everybody_is_waited_for(monkeypatch, allowed):
    started, start = [], threading.Thread.start

    def limited(thread):
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(workers, "_pool", None)
    monkeypatch.setattr(workers, "_pool_size", 0)
    monkeypatch.setattr(threading.Thread, "start", limited)
    workers.set_num_threads(8)
    for _ in range(5):
        done = []

        def slow(i, done=done):
            time.sleep(0.01)
            done.append(i)

        workers.run([lambda i=i: slow(i) for i in range(16)])
        assert sorted(done) == list(range(16))
    failing, caller = threading.Event(), threading.get_ident()

    def fail():
        failing.set()
        raise MemoryError("of a helper")

    def task():
        # The failing task falls to a helper, if there is one.
        if threading.get_ident() == caller and allowed:
            failing.wait(10)
        elif not failing.is_set():
            fail()

    with pytest.raises(MemoryError, match="of a helper"):
        workers.run([task] * 8)
    assert len(started) == allowed


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_bad_environment_variable_is_named(monkeypatch, value):
    monkeypatch.setenv("FASTPERM_NUM_THREADS", value)
    with pytest.raises(ValueError, match=f"FASTPERM_NUM_THREADS must be a positive integer, got '{value}'"):
        workers.get_num_threads()


def test_the_environment_variable_counts(monkeypatch):
    monkeypatch.setenv("FASTPERM_NUM_THREADS", "3")
    assert workers.get_num_threads() == 3
    workers.set_num_threads(2)
    assert workers.get_num_threads() == 2


def test_a_limit_of_threads_ends_with_the_number_before_it():
    workers.set_num_threads(3)
    with limited_threads(1):
        assert workers.get_num_threads() == 1
    assert workers.get_num_threads() == 3


# In a process of its own, whose BLAS has two threads whatever the tests are run with.
LIMITS = """
import multiprocessing
import numpy as np
from threadpoolctl import threadpool_info
from fastperm.kernels.cpu import workers
from fastperm.threads import limited_threads

np.ones((2, 2)) @ np.ones((2, 2))

def found():
    return workers.get_num_threads(), *{found["num_threads"] for found in threadpool_info()}

def child(queue):
    with limited_threads(1):
        queue.put(found())

workers.set_num_threads(3)
assert found() == (3, 2), found()
with limited_threads(2):
    with limited_threads(1):
        assert found() == (1, 1), found()
    assert found() == (2, 2), found()
    workers.set_num_threads(1)
    with limited_threads(2):
        pass
    assert workers.get_num_threads() == 1
    workers.set_num_threads(2)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    context.Process(target=child, args=(queue,)).start()
    assert queue.get(timeout=60) == (1, 1)
assert found() == (3, 2), found()

first, second, third = (limited_threads(n) for n in (1, 2, 1))
for limit in first, second, third:
    limit.__enter__()
second.__exit__(None, None, None)
assert found() == (1, 1), found()
first.__exit__(None, None, None)
assert found() == (1, 1), found()
third.__exit__(None, None, None)
assert found() == (3, 2), found()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_limits_of_threads_may_be_nested_and_overlap():
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", LIMITS], check=True, env=environment, timeout=120)
