import os
import subprocess
import sys

import pytest

import fastperm
from fastperm import backend, gpu


def test_auto_is_the_fast_one(monkeypatch):
    # With a GPU: test_gpu.
    monkeypatch.setattr(gpu, "has_driver", lambda: False)
    backend._cuda_for_auto.cache_clear()
    assert backend.resolve("auto") == "cpu"
    assert fastperm.DeepSet(2, 3, 1, 1).backend == "cpu"
    backend._cuda_for_auto.cache_clear()


def test_a_backend_that_is_missing_says_why_and_nothing_falls_back():
    assert backend.why_missing("cpu") is None
    with pytest.raises(ValueError, match="backend must be one of"):
        backend.why_missing("tpu")


def test_without_the_compiler_there_is_no_cpu_backend():
    script = "from fastperm import backend; print(backend.why_missing('cpu'))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert "NUMBA_DISABLE_JIT is set" in result.stdout


def test_without_numba_the_reference_still_works(monkeypatch):
    def no_numba(name):
        if name.endswith(".cpu"):
            raise ImportError("no module named numba")
        return __import__(name, fromlist=["_"])

    monkeypatch.setattr(backend, "import_module", no_numba)
    monkeypatch.setattr(backend, "_cuda_for_auto", lambda: False)
    backend.why_missing.cache_clear()
    try:
        with pytest.warns(UserWarning, match="takes the slow 'reference': 'cpu' is not available: importing it failed"):
            assert backend.resolve("auto") == "reference"
        with pytest.raises(RuntimeError, match="'cpu' is not available: importing it failed: no module named numba"):
            backend.resolve("cpu")
    finally:
        backend.why_missing.cache_clear()
