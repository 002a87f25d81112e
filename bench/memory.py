"""Peak memory of a function, as the operating system sees it: frameworks allocate where tracemalloc does not look."""

import contextlib
import ctypes
import gc
import os
import re
import resource
import sys
from pathlib import Path

STATUS, MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")


def method():
    """Return in words how `peak` measures here."""
    if STATUS.exists():
        return "high-water mark of resident memory (VmHWM, reset before) in one warm step"
    return "ru_maxrss after a few steps, which misses what fits into memory that was freed earlier"


def resident():
    """Return the memory that this process holds now, in bytes, after handing back what it can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    return _kilobytes(STATUS, "VmRSS") if STATUS.exists() else _max_resident()


def peak(function):
    """Call ``function`` and return the most memory that this process held meanwhile, in bytes."""
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
    function()
    return _kilobytes(STATUS, "VmHWM") if STATUS.exists() else _max_resident()


def free():
    """Return the memory that this machine has to spare, in bytes; all it has where nobody says."""
    if MEMINFO.exists():
        return _kilobytes(MEMINFO, "MemAvailable")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _kilobytes(path, name):
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", path.read_text())[1])


def _max_resident():
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size
