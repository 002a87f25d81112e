"""Every cuda kernel compiled, assembled and looked at, without a GPU: `make cuda-check`."""

import functools
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from fastperm.kernels.cuda import compiling

pytestmark = pytest.mark.machine_code

# The most that a kernel may take on any architecture: registers of a thread, bytes of shared memory of a block, bytes
# of a stack frame. More registers than these, and fewer blocks fit on a multiprocessor.
BUDGETS = {
    "adam_step": (24, 0, 0),
    "add_parts": (32, 0, 0),
    "add_sums": (32, 2048, 0),
    "finish": (40, 2048, 0),
    "fourier_series": (40, 0, 40),  # the stack of cos and sin, for angles beyond 10⁵
    "mask": (16, 0, 0),
    "pool_partials": (48, 0, 0),
    "product_128x32": (128, 21504, 0),
    "product_128x64": (168, 25600, 0),
    "product_transposed_128x32": (128, 21504, 0),
    "product_transposed_128x64": (168, 25600, 0),
    "product_turned_128x32": (128, 21504, 0),
    "product_turned_128x64": (168, 25600, 0),
    "row_scales": (24, 0, 0),
    "sets_of_rows": (24, 0, 0),
    "squared_error": (40, 2048, 0),
    "unpool": (32, 0, 0),
}

# What the machine code of a product must contain: accesses of 128 bits everywhere, and so many fused multiply-adds
# (on later cards two of them in one instruction) between the loads of two steps.
WIDE = (r"LDG\.E\S*\.128", r"STG\.E\S*\.128", r"LDS\.128", r"STS\.128")
FUSED = {"128x32": 64, "128x64": 128}

EVERY = pytest.mark.parametrize("name", BUDGETS)
ARCHITECTURES = pytest.mark.parametrize("architecture", compiling.ARCHITECTURES, ids=lambda a: f"sm_{a[0]}{a[1]}")


def tool(name):
    """Return the path of a program of NVIDIA's wheels."""
    path = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / name
    assert path.exists(), f"{path} is missing: pip install -e .[cuda-check]"
    return path


@functools.cache
def assembled(name, architecture, folder):
    """Return what ptxas says of a kernel, and its machine code."""
    ptx, cubin = folder / f"{name}.ptx", folder / f"{name}.cubin"
    ptx.write_text(compiling.KERNELS[name].compile(architecture))
    arch = f"sm_{architecture[0]}{architecture[1]}"
    result = subprocess.run(
        [tool("ptxas"), "-v", "-arch", arch, ptx, "-o", cubin], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    code = subprocess.run([tool("nvdisasm"), "-c", cubin], capture_output=True, text=True, check=True).stdout
    return result.stderr, code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


def test_every_kernel_has_a_budget():
    assert sorted(BUDGETS) == sorted(compiling.KERNELS)


@ARCHITECTURES
@EVERY
def test_nothing_spills_and_the_budget_is_kept(name, architecture, folder):
    says, _ = assembled(name, architecture, folder)
    kernel = says.partition(f"Function properties for {name}\n")[2]  # functions of libdevice have their own
    found = {
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", says))),
        "registers": int(re.search(r"Used (\d+) registers", says)[1]),
        "shared": int((re.search(r"(\d+) bytes smem", says) or [0, 0])[1]),
        "stack": int(re.search(r"(\d+) bytes stack frame", kernel)[1]),
    }
    registers, shared, stack = BUDGETS[name]
    assert found["spilled"] == 0, found
    assert found["registers"] <= registers, found
    assert found["shared"] <= shared, found
    assert found["stack"] <= stack, found
    threads = compiling.KERNELS[name].threads
    assert found["registers"] * threads <= 65536  # of a multiprocessor


@ARCHITECTURES
@pytest.mark.parametrize("name", [name for name in BUDGETS if name.startswith("product")])
def test_products_are_made_of_wide_accesses_and_fused_multiply_adds(name, architecture, folder):
    _, code = assembled(name, architecture, folder)
    for pattern in WIDE:
        assert re.search(pattern, code), f"no {pattern} in {name}"
    fused = len(re.findall(r"\bFFMA\b", code)) + 2 * len(re.findall(r"\bFFMA2\b", code))
    assert fused >= FUSED[name.rpartition("_")[2]]
    assert not re.search(r"\b(LDL|STL)\b", code)  # no array in memory


@ARCHITECTURES
def test_shared_memory_is_aligned_for_vectors(architecture):
    ptx = compiling.KERNELS["finish"].compile(architecture)
    assert re.findall(r"\.shared \.align (\d+)", ptx) == ["16"]
    assert f".target sm_{architecture[0]}{architecture[1]}" in ptx
    assert ".entry finish(" in ptx
