"""Every cuda kernel compiled, assembled and looked at, without a GPU: `make cuda-check`."""

import gc
import os
import re
import subprocess
import sysconfig
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest

from fastperm.kernels.cuda import compiling

# The first test waits until all kernels are compiled, which takes minutes.
pytestmark = [pytest.mark.machine_code, pytest.mark.timeout(1200)]

# The most that a kernel may take on any architecture: registers of a thread, bytes of shared memory of a block, bytes
# of a stack frame, and bytes of spills, stored and loaded, if there may be any: in a product a few, once a stage.
# More registers than these, and fewer blocks fit on a multiprocessor.
BUDGETS = {
    "adam_step": (24, 0, 0),
    "add_harmonics": (48, 0, 0),
    "add_parts": (40, 2048, 0),
    "angular_basis": (40, 0, 40),  # as of fourier_series
    "angular_basis_backward": (48, 0, 0),
    "angular_filter": (56, 0, 0),
    "begin_step": (24, 0, 0),
    "cluster_probe": (24, 0, 0),
    "copied": (32, 0, 0),
    "divide": (32, 0, 0),
    "divide_backward": (32, 0, 0),
    "filter_gradients": (64, 0, 0),
    "finish": (40, 2048, 0),
    "finish_product": (56, 0, 0),
    "finish_scale": (56, 2048, 0),
    "fourier_series": (54, 0, 40),  # the stack of cos and sin, for angles beyond 10⁵
    "harmonic_partials": (72, 0, 0),
    "harmonics_backward": (40, 0, 0),
    "mask": (16, 0, 0),
    "mean_of_sums": (48, 2048, 0),
    "pool_partials": (48, 0, 0),
    "product_128x128": (128, 17408, 0),
    "product_128x32": (152, 21504, 0),
    "product_128x64": (128, 12800, 40, 80),
    "product_transposed_128x128": (128, 17408, 24, 56),
    "product_transposed_128x32": (152, 21504, 0),
    "product_transposed_128x64": (128, 12800, 56, 116),
    "product_turned_128x128": (128, 17408, 0),
    "product_turned_128x32": (152, 21504, 0),
    "product_turned_128x64": (128, 12800, 48, 124),
    **{f"product{how}_{cores}": (255, 0, 0) for how in ("", "_turned", "_transposed") for cores in ("tf32", "bf16")},
    "random_functions_f4": (40, 0, 40),
    "random_functions_f8": (40, 0, 40),
    "random_samples_f4": (76, 0, 40),
    "random_samples_f8": (76, 0, 40),
    "resident_forward_128_clusters": (255, 0, 528),
    "resident_forward_16": (128, 0, 0),
    "resident_forward_16_clusters": (128, 0, 144),
    "resident_forward_32": (128, 0, 0),
    "resident_forward_32_clusters": (128, 0, 144),
    "resident_forward_64": (128, 0, 256, 64),
    "resident_forward_64_clusters": (128, 0, 272, 320),
    "resident_forward_bf16_128_clusters": (255, 0, 528),
    "resident_forward_bf16_16": (128, 0, 0),
    "resident_forward_bf16_32": (128, 0, 0),
    "resident_forward_bf16_64": (128, 0, 256, 64),
    "resident_forward_tf32_128_clusters": (255, 0, 528),
    "resident_forward_tf32_16": (128, 0, 0),
    "resident_forward_tf32_32": (128, 0, 0),
    "resident_forward_tf32_64": (128, 0, 256, 64),
    "resident_step_128_clusters": (255, 0, 528, 960),
    "resident_step_16": (128, 0, 128, 64),
    "resident_step_16_clusters": (128, 0, 144, 128),
    "resident_step_32": (128, 0, 144, 64),
    "resident_step_32_clusters": (128, 0, 160, 96),
    "resident_step_64": (128, 0, 304, 1100),
    "resident_step_64_clusters": (128, 0, 368, 1792),
    "resident_step_bf16_128_clusters": (255, 0, 528, 1024),
    "resident_step_bf16_16": (128, 0, 64, 64),
    "resident_step_bf16_32": (128, 0, 144, 64),
    "resident_step_bf16_64": (128, 0, 320, 1200),
    "resident_step_tf32_128_clusters": (255, 0, 528, 1024),
    "resident_step_tf32_16": (128, 0, 64, 64),
    "resident_step_tf32_32": (128, 0, 128, 64),
    "resident_step_tf32_64": (128, 0, 304, 1100),
    "round_to_bf16": (24, 0, 0),
    "row_scales": (24, 0, 0),
    "scale_partials": (56, 4096, 0),
    "sets_of_rows": (24, 0, 0),
    "shift": (24, 0, 0),
    "squared_error": (40, 2048, 0),
    "unpool": (40, 0, 0),
}

# What the machine code of a product must contain: accesses of 128 bits everywhere, and so many fused multiply-adds
# (on later cards two of them in one instruction) between the loads of two steps.
WIDE = (r"LDG\.E\S*\.128", r"STG\.E\S*\.128", r"LDS\.128", r"STS\.128")
FUSED = {"128x32": 64, "128x64": 128, "128x128": 128}
# The loops of kernels that keep a set on chip have at least so many of these.
LOOPS = {"16": ("FFMA", 64), "32": ("FFMA", 64), "64": ("FFMA", 128), "128": ("FFMA", 256)}
# Of which kernels the tests read the machine code: a disassembler takes half a second to begin.
READ = "product|resident|round_to_bf16"
CORES = {"tf32": "HMMA.1688.F32.TF32", "bf16": "HMMA.16816.F32.BF16"}


def everywhere(kind=""):
    """Parametrise a test by the kernels whose names match, and the architectures that they run on."""
    cases = [
        pytest.param(name, architecture, id=f"{name}-sm_{architecture[0]}{architecture[1]}")
        for architecture in compiling.ARCHITECTURES
        for name in BUDGETS
        if re.match(kind, name) and compiling.KERNELS[name].runs_on(architecture)
    ]
    return pytest.mark.parametrize(("name", "architecture"), cases)


def tool(name):
    """Return the path of a program of NVIDIA's wheels."""
    path = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / name
    assert path.exists(), f"{path} is missing: pip install -e .[cuda-check]"
    return path


def everything_about(name, folder):
    """Assemble a kernel for all architectures and leave its PTX, its machine code and what ptxas says in a folder."""
    kernel = compiling.KERNELS[name]
    gc.disable()  # there is little to find while a kernel is compiled, and looking for it takes an eighth of the time
    for architecture, ptx in compiled(kernel, [own for own in compiling.ARCHITECTURES if kernel.runs_on(own)]):
        arch = f"sm_{architecture[0]}{architecture[1]}"
        path = folder / f"{name}-{arch}"
        path.with_suffix(".ptx").write_text(ptx)
        cubin = path.with_suffix(".cubin")
        command = [tool("ptxas"), "-v", "-arch", arch, path.with_suffix(".ptx"), "-o", cubin]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        path.with_suffix(".says").write_text(result.stderr)
        if result.returncode == 0 and re.match(READ, name):
            code = subprocess.run([tool("nvdisasm"), "-c", cubin], capture_output=True, text=True, check=True).stdout
            path.with_suffix(".sass").write_text(code)
    gc.collect()


def compiled(kernel, architectures):
    """Yield PTX for these architectures. Nine tenths of the time go by before Numba asks for which: once is enough."""
    try:
        from numba.cuda.compiler import _compile_pyfunc_with_fixup as analyse
    except ImportError:  # it is not for others to use
        yield from ((architecture, kernel.compile(architecture)) for architecture in architectures)
        return
    settings = dict.fromkeys(("debug", "lineinfo", "device", "fastmath"), False)
    with warnings.catch_warnings(), compiling.quick_analysis():
        warnings.simplefilter("ignore")
        library, _ = analyse(kernel.function, kernel.signature, cc=(8, 0), opt=True, abi="numba", **settings)
        for architecture in architectures:
            (ptx,) = library.get_asm_strs(cc=architecture)
            yield architecture, kernel.finished(ptx)


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    # The longest first, so that none is left for the end.
    names = sorted(compiling.KERNELS, key=lambda name: (not name.startswith("resident_step"), "128" not in name, name))
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        list(pool.map(everything_about, names, [folder] * len(names)))

    def found(name, architecture):
        path = folder / f"{name}-sm_{architecture[0]}{architecture[1]}"
        assert path.with_suffix(".cubin").exists(), path.with_suffix(".says").read_text()
        code = path.with_suffix(".sass").read_text() if re.match(READ, name) else None
        return path.with_suffix(".says").read_text(), code, path.with_suffix(".ptx").read_text()

    return found


def test_every_kernel_has_a_budget():
    assert sorted(BUDGETS) == sorted(compiling.KERNELS)


@everywhere()
def test_the_budget_is_kept(name, architecture, assembled):
    says, _, _ = assembled(name, architecture)
    kernel = says.partition(f"Function properties for {name}\n")[2]  # functions of libdevice have their own
    found = {
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", says))),
        "registers": int(re.search(r"Used (\d+) registers", says)[1]),
        "shared": int((re.search(r"(\d+) bytes smem", says) or [0, 0])[1]),
        "stack": int(re.search(r"(\d+) bytes stack frame", kernel)[1]),
    }
    registers, shared, stack, *spilled = BUDGETS[name]
    assert found["spilled"] <= sum(spilled), found
    assert found["registers"] <= registers, found
    assert found["shared"] <= shared, found
    assert found["stack"] <= stack, found
    threads = compiling.KERNELS[name].threads
    assert found["registers"] * threads <= 65536  # of a multiprocessor


@everywhere(r"product.*(tf32|bf16)")
def test_products_on_tensor_cores_hold_all_sums_in_registers(name, architecture, assembled):
    _, code, _ = assembled(name, architecture)
    cores = CORES[name.rpartition("_")[2]]
    labels = {found[1]: found.start() for found in re.finditer(r"^(\.L_x_\d+):", code, re.MULTILINE)}
    branches = re.finditer(r"\bBRA\S* .*?(\.L_x_\d+)\)", code)
    loop = max(
        (code[labels[to[1]] : to.start()] for to in branches), key=lambda body: body.count(cores) / (1 + len(body))
    )
    # 16 steps of the 64 × 64 numbers of a warp, in pieces of 16 × 8 numbers and 8 or 16 steps.
    assert loop.count(cores) == (64 if "1688" in cores else 32)
    assert len(re.findall("LDGSTS", loop)) == 8  # factors come without a register
    assert set(re.findall(r"\bHMMA[.\w]*", code)) == {cores}
    assert not re.search(r"\b(LDL|STL)\b", code)  # no array in memory
    for pattern in (r"STG\.E\S*\.128", r"LDS\.128"):  # of the finish
        assert re.search(pattern, code), f"no {pattern} in {name}"


@everywhere(r"product.*x\d+$")
def test_products_are_made_of_wide_accesses_and_fused_multiply_adds(name, architecture, assembled):
    _, code, _ = assembled(name, architecture)
    for pattern in WIDE:
        assert re.search(pattern, code), f"no {pattern} in {name}"
    fused = len(re.findall(r"\bFFMA\b", code)) + 2 * len(re.findall(r"\bFFMA2\b", code))
    assert fused >= FUSED[name.rpartition("_")[2]]
    if len(BUDGETS[name]) == 3:
        assert not re.search(r"\b(LDL|STL)\b", code)  # no array in memory


@everywhere("resident")
def test_the_loops_of_a_set_on_chip_are_made_of_products(name, architecture, assembled):
    _, code, _ = assembled(name, architecture)
    cores = next((own for kind, own in CORES.items() if kind in name), None)
    instruction, least = (
        (re.escape(cores), 4) if cores else LOOPS[re.search(r"\d+$", name.removesuffix("_clusters"))[0]]
    )
    # A block of instructions that ends by going back to its own beginning.
    blocks = re.findall(r"^(\.L_x_\d+):\n((?:(?!\.L_x_).*\n)*?.*\bBRA\S* .*\1\).*\n)", code, re.MULTILINE)
    products = [block for _, block in blocks if len(re.findall(rf"\b{instruction}\d?\b", block)) >= least]
    assert len(products) >= (2 if "step" in name else 1)
    for block in products:
        # Of TF32 at width 64, one place is fetched from the stack for each eight features on sm_80.
        assert len(re.findall(r"\b(?:LDL|STL)\b", block)) <= bool(cores)
        assert cores or re.search(r"LDS\.128", block)
    assert set(re.findall(r"\bHMMA[.\w]*", code)) == ({cores} if cores else set())
    assert bool(re.search(r"LDGSTS", code)) == ("step" in name)  # h comes without a register


@everywhere("round_to_bf16")
def test_numbers_are_rounded_in_pairs_with_wide_accesses(name, architecture, assembled):
    _, code, _ = assembled(name, architecture)
    assert len(re.findall(r"LDG\.E\S*\.128", code)) == 2
    assert len(re.findall(r"STG\.E\S*\.128", code)) == 1
    assert len(re.findall(r"F2FP\.BF16\S*\.PACK_AB", code)) >= 4


@everywhere("finish$")
def test_shared_memory_is_aligned_for_vectors(name, architecture, assembled):
    _, _, ptx = assembled(name, architecture)
    assert re.findall(r"\.shared \.align (\d+)", ptx) == ["16"]
    assert f".target sm_{architecture[0]}{architecture[1]}" in ptx
    assert ".entry finish(" in ptx


@everywhere("resident")
def test_blocks_of_a_cluster_wait_and_read_each_others_memory(name, architecture, assembled):
    _, code, ptx = assembled(name, architecture)
    clustered = compiling.KERNELS[name].clustered
    assert clustered == name.endswith("_clusters")
    assert ptx.count(".reqnctapercluster 1, 1, 1\n") == clustered
    for instruction in ("UCGABAR_ARV", "UCGABAR_WAIT"):
        assert (instruction in code) == clustered, instruction
    assert ("ld.shared::cluster.f32" in ptx) == clustered


def test_our_analysis_of_a_kernel_leaves_its_code_as_it_is(monkeypatch):
    analysis, ssa = (pytest.importorskip(f"numba.cuda.core.{name}") for name in ("analysis", "ssa"))
    numbas = analysis.compute_live_map, ssa._run_block_rewrite

    def code():
        ptx = compiling.KERNELS["product_128x32"].compile(compiling.ARCHITECTURES[0])
        return re.sub(r"B\d+v\d+B|_smem_\d+", "", ptx)  # without what Numba counts

    ours = code()
    asked, given = mock.Mock(wraps=numbas[0]), mock.Mock(return_value=numbas[1])
    monkeypatch.setattr(compiling, "live_map", asked)
    monkeypatch.setattr(compiling, "rewriter", given)
    assert code() == ours
    assert asked.called
    given.assert_called_once_with(numbas[1])
    assert (analysis.compute_live_map, ssa._run_block_rewrite) == numbas  # as if we had not been there
