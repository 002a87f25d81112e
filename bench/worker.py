"""A contender in a process of its own, kept warm and asked for one training step or one prediction at a time.

In one process the thread pools of several frameworks would fight, and their memory could not be told apart. While one
worker works, the others wait for a line on their standard input.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import costs
from turns import half_turn


class NotMeasuredError(RuntimeError):
    """A contender cannot be measured here; the message is the reason."""


class Worker:
    """The process of one contender, as its parent sees it.

    Parameters
    ----------
    name : str
        A key of `contenders.CONTENDERS`.
    case : contenders.Case
        The network and the batch.
    tasks : sequence of str
        What it will be asked for, of `costs.TASKS`.

    Attributes
    ----------
    description : dict of str to dict
        For each task ``parameters``, ``flops``, ``peak_bytes`` and ``kept_bytes`` (see `_describe`), and
        ``first_seconds``, with compilation.

    Raises
    ------
    NotMeasuredError
        If the contender is not installed, or fails.
    """

    def __init__(self, name, case, tasks=costs.TASKS):
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"name": name, "case": case._asdict(), "tasks": tasks})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.description = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, task, seconds=0):
        """Do the task once, and again until so many seconds have passed; return how long one took, measured there."""
        with contextlib.suppress(BrokenPipeError):  # the process has ended; the answer says how
            self._process.stdin.write(f"{task} {seconds}\n")
            self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self):
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _answer(self):
        line = self._process.stdout.readline()
        if line:
            answer = json.loads(line)
            if "not_measured" in answer:
                raise NotMeasuredError(answer["not_measured"])
            return answer
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        raise NotMeasuredError(f"its process ended with status {self._process.wait()}: {last}")


def _serve(name, case, tasks, answer):
    """Set the contender up, describe it, and do a task for every line with its name and how long to repeat it."""
    from contenders import CONTENDERS

    contender = CONTENDERS[name]
    rival = contender.make(case)
    few, whole = rival.batch(*case.sample(2)), rival.batch(*case.sample())

    def work(task, batch):
        return rival.step(*batch) if task == costs.STEP else rival.predict(batch[0])

    # Predictions come first: memory that they free and the process keeps is little beside that of training.
    known = {"parameters": rival.n_parameters}
    order = sorted(tasks, key=(costs.PREDICT, costs.STEP).index)
    answer(
        **{
            task: known | {"flops": contender.flops(case, task), **_describe(partial(work, task), few, whole)}
            for task in order
        }
    )
    for line in sys.stdin:
        task, seconds = line.split()
        answer(seconds=half_turn(partial(work, task, whole), float(seconds)))


def _describe(work, few, whole):
    """Do a task for the first times; return its peak memory, and how long the very first took.

    ``peak_bytes`` is above a baseline after the task on two sets, by when the data, the parameters, the moments of Adam
    and all code are there: what the whole batch needs on top is activations and temporaries. ``kept_bytes`` is what the
    first whole batch left behind: code compiled for it, and buffers that are kept for the next time.
    """
    import memory

    work(few)
    before = memory.resident()
    start = time.perf_counter()
    work(whole)
    first = time.perf_counter() - start
    work(few)
    baseline = memory.resident()
    peak = memory.peak(partial(work, whole))
    return {
        "peak_bytes": max(0, peak - baseline),
        "kept_bytes": max(0, baseline - before),
        "first_seconds": first,
    }


def main():
    """Serve the contender that the command line names."""
    # Frameworks print to standard output now and then; answers keep a channel of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**what):
        print(json.dumps(what), file=answers)

    from contenders import Case

    job = json.loads(sys.argv[1])
    try:
        _serve(job["name"], Case(**job["case"]), job["tasks"], answer)
    except ImportError as error:
        answer(not_measured=f"not installed ({error})")
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        answer(not_measured=f"{type(error).__name__}: {lines[0]}")
        raise


if __name__ == "__main__":
    main()
