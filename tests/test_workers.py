import multiprocessing
import sys
import threading

import numpy as np
import pytest

import fastperm
from fastperm.kernels.cpu import workers


@pytest.fixture(autouse=True)
def default_threads():
    yield
    workers.set_num_threads(None)


def one_step(threads, seed=0):
    """Return loss and all gradients of one step of a ragged batch."""
    workers.set_num_threads(threads)
    generator = np.random.default_rng(seed)
    sets = fastperm.Sets.ragged([generator.standard_normal((n, 3)) for n in generator.integers(1, 60, 100)])
    targets = generator.standard_normal((100, 2))
    net = fastperm.DeepSet(3, 17, 2, 2, backend="cpu", seed=1)
    loss = fastperm.train_step(net, sets, targets, fastperm.Adam())
    return loss, net.gradients.flat.copy(), net.parameters.flat.copy()


def assert_same(a, b):
    assert a[0] == b[0]
    for left, right in zip(a[1:], b[1:], strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_number_of_threads_changes_no_bit(threads):
    assert_same(one_step(threads), one_step(1))


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
