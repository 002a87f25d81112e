"""The products, compiled for processors with fewer and narrower registers than this one."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding

PROCESSORS = {
    "avx2": ("haswell", "+sse,+sse2,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2,+lzcnt"),
    "sse": ("generic", ""),
}
# Where registers of AVX-512 are missing, all other tests are those of AVX2.
NARROWER = [name for name in PROCESSORS if name != "avx2" or binding.get_host_cpu_features().get("avx512f")]


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="the instruction sets of another processor")
@pytest.mark.parametrize("name", NARROWER)
def test_the_products_hold_on_narrower_processors(tmp_path, name):
    cpu, features = PROCESSORS[name]
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": features,
        "FASTPERM_CACHE_DIR": str(tmp_path),
    }
    tests = [str(Path(__file__).with_name(name)) for name in ("test_product.py", "test_lane_product.py")]
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", *tests]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent, check=False, timeout=280
    )
    assert result.returncode == 0, result.stdout[-3000:]
