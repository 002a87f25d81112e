"""A contender on a GPU in a process of its own, which serves one case after another.

Importing a framework takes as long as many measurements, so this process stays while the cases change. What it is asked
for has a time limit, as compilation may take minutes: a process that overruns it is ended, with its children.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial

import costs
from turns import half_turn
from worker import NotMeasuredError

# JAX would take most of the memory of the GPU at once, and the others need theirs.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# Unless it is asked for, TF32 is off in the frameworks' own settings, and once more in NVIDIA's libraries below them.
NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}


TOO_SLOW = "it took longer than"


class GpuWorker:
    """The process of one contender, as its parent sees it.

    Parameters
    ----------
    name : str
        A key of `contenders.CONTENDERS_ON_GPU`.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Of all its cases.

    Attributes
    ----------
    failed : bool
        Whether the contender has failed, and its process has ended.
    """

    def __init__(self, name, precision="float32"):
        self.failed, self.precision, self._asked = False, precision, time.monotonic()
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | ENVIRONMENT | (NO_TF32 if precision == "float32" else {}),
            start_new_session=True,
        )

    def ask(self, case):
        """Have a case set up, and each task done some times; `answer` has what came of it."""
        self._send(case=case._asdict())

    def run(self, task, seconds=0, limit=60):
        """Do the task once, and again until so many seconds have passed; return how long one took, measured there."""
        self._send(task=task, seconds=seconds)
        return self.answer(limit)["seconds"]

    def answer(self, limit):
        """Return the answer to what was asked, or end the process after so many seconds.

        Raises
        ------
        NotMeasuredError
            If the contender is not installed, fails, or takes too long.
        """
        ready, _, _ = select.select([self._process.stdout], [], [], max(0, limit))
        if not ready:
            raise self._failure(f"{TOO_SLOW} {time.monotonic() - self._asked:.0f} s")
        line = self._process.stdout.readline()
        if line:
            answer = json.loads(line)
            if "not_installed" in answer:
                raise NotMeasuredError(f"not installed ({answer['not_installed']})")
            if "error" in answer:
                raise self._failure(answer["error"])
            return answer
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        raise self._failure(f"its process ended with status {self._process.wait()}: {last}")

    def _failure(self, reason):
        self.failed = True
        self.close()
        return NotMeasuredError(reason)

    def close(self):
        """End the process, and those that it started to compile."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _send(self, **what):
        self._asked = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # the process has ended; the answer says how
            print(json.dumps(what), file=self._process.stdin, flush=True)


def simulated():
    """Return a context with the simulator of the tests, which is faster than Numba's, where kernels are simulated."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        with contextlib.suppress(ImportError):  # of what the tests need
            from simulator import threads_that_take_turns

            return threads_that_take_turns()
    return contextlib.nullcontext()


def _serve(name, answer):
    from contenders import CONTENDERS_ON_GPU, Case

    contender, rival, batch = CONTENDERS_ON_GPU[name], None, None

    def work(task):
        return rival.step(*batch) if task == costs.STEP else rival.predict(batch[0])

    for line in sys.stdin:
        job = json.loads(line)
        try:
            if "task" in job:
                answer(seconds=half_turn(partial(work, job["task"]), job["seconds"]))
                continue
            case, start = Case(**job["case"]), time.perf_counter()
            rival = batch = None  # the memory of the case before
            rival = contender.make(case)
            batch = rival.batch(*case.sample())
            for task in (costs.PREDICT, costs.STEP) * 4:  # a step of ours becomes a CUDA graph at the third
                work(task)
            answer(
                parameters=rival.n_parameters,
                precision=getattr(rival, "precision", dict)(),
                seconds_to_set_up=time.perf_counter() - start,
            )
        except ImportError as error:
            answer(not_installed=str(error))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            answer(error=f"{type(error).__name__}: {lines[0]}")


def main():
    """Serve the contender that the command line names."""
    # Frameworks print to standard output now and then; answers keep a channel of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with simulated():
        _serve(sys.argv[1], lambda **what: print(json.dumps(what), file=answers))


if __name__ == "__main__":
    main()
