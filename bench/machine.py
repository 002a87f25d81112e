"""What a result depends on besides the code: machine, versions, environment."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("fastperm", "numpy", "scipy", "numba", "llvmlite", "torch", "jax", "jaxlib")
ON_GPU = ("numba-cuda", "cupy-cuda13x", "triton")
# Variables by which libraries choose threads, code paths and allocators; places of files make no difference.
VARIABLES = re.compile(
    r"(?!.*_(DIR|PATH|HOME|FILE)$)"
    r"(OPENBLAS|OMP|GOMP|KMP|MKL|BLIS|NVPL|VECLIB|NUMBA|FASTPERM|TORCH|TORCHINDUCTOR|ONEDNN|DNNL|XLA|JAX|MALLOC)_"
    r"|GLIBC_TUNABLES$|LD_PRELOAD$"
)


def describe():
    """Return machine, versions and relevant environment variables as a dict that JSON can hold."""
    from llvmlite.binding import get_host_cpu_name

    return {
        "machine": {
            "cpu": _cpu_model(),
            "microarchitecture": get_host_cpu_name(),
            "cores": usable_cores(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in (*PACKAGES, *ON_GPU)}},
        "environment": {name: value for name, value in sorted(os.environ.items()) if VARIABLES.match(name)},
    }


def usable_cores():
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count()


def _cpu_model():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None
