"""A contender in a process of its own, kept warm and asked for one training step at a time.

In one process the thread pools of several frameworks would fight, and their memory could not be told apart. While one
worker steps, the others wait for a line on their standard input.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time

WARM_STEPS = 2


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

    Attributes
    ----------
    description : dict
        ``parameters``, ``flops`` of a step, ``peak_bytes`` (see `_serve`), ``first_step_seconds`` with compilation.

    Raises
    ------
    NotMeasuredError
        If the contender is not installed, or fails.
    """

    def __init__(self, name, case):
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"name": name, "case": case._asdict()})],
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

    def step(self):
        """Take one training step and return the seconds it took, measured over there."""
        with contextlib.suppress(BrokenPipeError):  # the process has ended; the answer says how
            self._process.stdin.write("step\n")
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


def _serve(name, case, answer):
    """Set the contender up, describe it, and take a step for every line that comes.

    Its peak memory is measured against a baseline after a step on two sets: by then the data, the parameters, the
    moments of Adam and all code are in memory, and what a step on the whole batch needs on top is activations,
    temporaries, and buffers that are kept from step to step.
    """
    import memory
    from contenders import CONTENDERS

    contender = CONTENDERS[name]
    rival = contender.make(case)
    few, whole = rival.batch(*case.sample(2)), rival.batch(*case.sample())
    rival.step(*few)
    baseline = memory.resident()
    start = time.perf_counter()
    rival.step(*whole)
    first = time.perf_counter() - start
    for _ in range(WARM_STEPS - 1):
        rival.step(*whole)
    peak = memory.peak(lambda: rival.step(*whole))
    answer(
        parameters=rival.n_parameters,
        flops=contender.flops(case),
        peak_bytes=max(0, peak - baseline),
        first_step_seconds=first,
    )
    for _ in sys.stdin:
        start = time.perf_counter()
        rival.step(*whole)
        answer(seconds=time.perf_counter() - start)


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
        _serve(job["name"], Case(**job["case"]), answer)
    except ImportError as error:
        answer(not_measured=f"not installed ({error})")
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        answer(not_measured=f"{type(error).__name__}: {lines[0]}")
        raise


if __name__ == "__main__":
    main()
