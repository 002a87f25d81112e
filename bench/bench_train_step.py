"""One full training step of the headline network, ours beside its rivals.

    pytest bench/bench_train_step.py --benchmark-only

Contenders are timed one after another here; ratios are published from `compare`, which interleaves them. Each runs in
a process of its own, so the figures include a message there and back, about 0.1 ms.
"""

from functools import partial

import costs
import machine
import pytest
from contenders import CONTENDERS, Case
from worker import NotMeasuredError, Worker

CASE = Case()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CONTENDERS)
def test_train_step(benchmark, name):
    try:
        worker = Worker(name, CASE, (costs.STEP,))
    except NotMeasuredError as reason:
        pytest.skip(f"{CONTENDERS[name].label} is not measured: {reason}")
    with worker:
        benchmark.group = f"training step, {CASE.width}x{CASE.depth}, {CASE.batch} sets of {CASE.set_size}"
        benchmark.pedantic(partial(worker.run, costs.STEP), rounds=7, warmup_rounds=2)
        benchmark.extra_info.update(
            worker.description[costs.STEP],
            sets_per_second=CASE.batch / benchmark.stats.stats.median,
            case=CASE._asdict(),
            **machine.describe(),
        )
