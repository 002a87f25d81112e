"""Every cuda kernel compiled, assembled and looked at, without a GPU: `make cuda-check`."""

import gc
import importlib
import os
import re
import subprocess
import sysconfig
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import attrgetter
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
    "add_harmonics": (50, 0, 0),
    "add_parts": (60, 8192, 0),
    "angular_basis": (40, 0, 40),  # as of fourier_series
    "angular_basis_backward": (48, 0, 0),
    "angular_filter": (56, 0, 0),
    **{f"arranged_{cores}": (24, 0, 0) for cores in ("tf32", "bf16", "pairs_bf16")},
    "begin_single_step": (24, 0, 0),
    "begin_step": (24, 0, 0),
    "cluster_probe": (24, 0, 0),
    "copied": (32, 0, 0),
    "divide": (32, 0, 0),
    "divide_backward": (32, 0, 0),
    "end_single_step": (24, 0, 0),
    "filter_gradients": (64, 0, 0),
    "finish": (64, 2048, 0),  # of sums on their way, and of more to do for a thread
    "finish_product": (64, 0, 0),  # of eight rows on their way
    "finish_scale": (56, 2048, 0),
    "fourier_series": (57, 0, 40),  # the stack of cos and sin, for angles beyond 10⁵
    "harmonic_partials": (72, 0, 0),
    "harmonics_backward": (54, 0, 0),
    "in_float32": (16, 0, 0),
    "mask": (16, 0, 0),
    "pool_partials": (88, 0, 0),  # of values that are on their way, instead of more threads
    "product_128x128": (128, 17408, 0),
    "product_128x32": (152, 21504, 0),
    "product_128x64": (128, 12800, 0),
    **{f"product_from_2_by_{own}": (64, 0, 0) for own in (1, 4)},
    "product_from_8_by_1": (64, 0, 0),
    "product_from_8_by_4": (96, 0, 0),  # 32 of them for weights
    "product_of_2": (64, 2048, 0),
    "product_of_8": (128, 8192, 0),
    "product_pairs_from_2_by_4": (64, 0, 0),
    "product_pairs_from_8_by_4": (96, 0, 0),
    "product_pairs_of_2": (64, 4096, 0),
    "product_pairs_of_8": (128, 16384, 0),
    "product_transposed_128x128": (128, 17408, 0),
    "product_transposed_128x32": (152, 21504, 0),
    "product_transposed_128x64": (128, 12800, 0),
    "product_turned_128x128": (128, 17408, 0),
    "product_turned_128x32": (152, 21504, 0),
    "product_turned_128x64": (128, 12800, 0),
    **{f"product{how}_{cores}": (255, 0, 0) for how in ("", "_turned", "_transposed") for cores in ("tf32", "bf16")},
    **{f"product_warpgroups_{cores}": (255, 0, 0) for cores in ("tf32", "bf16", "pairs_bf16")},
    "random_functions_f4": (40, 0, 40),
    "random_functions_f8": (40, 0, 40),
    "random_samples_f4": (78, 0, 40),
    "random_samples_f8": (79, 0, 40),
    "resident_forward_128_clusters": (255, 0, 0),
    "resident_forward_16": (128, 0, 0),
    "resident_forward_16_clusters": (128, 0, 0),
    "resident_forward_32": (128, 0, 0),
    "resident_forward_32_clusters": (128, 0, 0),
    "resident_forward_64": (128, 0, 0),
    "resident_forward_64_clusters": (128, 0, 0),
    "resident_forward_bf16_128_clusters": (255, 0, 0),
    "resident_forward_bf16_16": (128, 0, 0),
    "resident_forward_bf16_32": (128, 0, 0),
    "resident_forward_bf16_64": (128, 0, 0),
    "resident_forward_tf32_128_clusters": (255, 0, 0),
    "resident_forward_tf32_16": (128, 0, 0),
    "resident_forward_tf32_32": (128, 0, 0),
    "resident_forward_tf32_64": (128, 0, 0),
    "resident_step_128_clusters": (255, 0, 16, 180),
    "resident_step_16": (128, 0, 0),
    "resident_step_16_clusters": (128, 0, 0),
    "resident_step_32": (128, 0, 16, 30),
    "resident_step_32_clusters": (128, 0, 0),
    "resident_step_64": (128, 0, 88, 270),
    "resident_step_64_clusters": (128, 0, 104, 430),
    "resident_step_bf16_128_clusters": (255, 0, 24, 200),
    "resident_step_bf16_16": (128, 0, 0),
    "resident_step_bf16_32": (128, 0, 8, 10),
    "resident_step_bf16_64": (128, 0, 144, 380),
    "resident_step_tf32_128_clusters": (255, 0, 16, 40),
    "resident_step_tf32_16": (128, 0, 0),
    "resident_step_tf32_32": (128, 0, 24, 40),
    "resident_step_tf32_64": (128, 0, 80, 260),
    "round_to_bf16": (24, 0, 0),
    "row_scales": (24, 0, 0),
    "scale_partials": (56, 4096, 0),
    "sets_of_rows": (24, 0, 0),
    "shift": (24, 0, 0),
    "squared_error": (40, 2048, 0),
    "unpool": (64, 0, 0),  # as finish_product
    "unpool_pairs": (64, 0, 0),
}

# What the machine code of a product must contain: accesses of 128 bits everywhere, and so many fused multiply-adds
# (on later cards two of them in one instruction) between the loads of two steps.
WIDE = (r"LDG\.E\S*\.128", r"STG\.E\S*\.128", r"LDS\.128", r"STS\.128")
FUSED = {"128x32": 64, "128x64": 128, "128x128": 128}
# The loops of kernels that keep a set on chip have at least so many of these.
LOOPS = {"16": ("FFMA", 64), "32": ("FFMA", 64), "64": ("FFMA", 128), "128": ("FFMA", 256)}
# Of which kernels the tests read the machine code, and how many of these are assembled at once.
READ, BATCH = "product|finish_product|unpool|resident|round_to_bf16", 4
# Names that Numba makes of a number: of an array that nobody reads, and of arrays in shared memory.
NUMBERED = r"\b_ZN08NumbaEnv\w+|\b_cudapy_smem_\d+"
CORES = {"tf32": "HMMA.1688.F32.TF32", "bf16": "HMMA.16816.F32.BF16"}


def everywhere(kind=""):
    """Parametrise a test by the kernels whose names match, and the architectures that they run on."""
    cases = [
        pytest.param(name, architecture, id=f"{name}-{compiling.name_of(architecture)}")
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


def batches(wanted):
    """Return lists of kernels that are assembled together; the longest first, so that none is left for the end."""
    names = sorted(wanted, key=lambda name: (not name.startswith("resident_step"), "128" not in name, name))
    large = [name for name in names if re.match(READ, name) and not compiling.KERNELS[name].only]
    of_one_architecture = [name for name in names if compiling.KERNELS[name].only]
    return [
        *(large[i : i + BATCH] for i in range(0, len(large), BATCH)),
        *([of_one_architecture] if of_one_architecture else []),  # a text has one target, and theirs is another
        *([name] for name in names if name not in large and not compiling.KERNELS[name].only),
    ]


def everything_about(names, folder):
    """Assemble kernels for all architectures and leave PTX, machine code and what ptxas says in a folder.

    Of several kernels the text is one: programs of NVIDIA take half a second to begin.
    """
    texts: dict = {}
    for name in names:
        kernel = compiling.KERNELS[name]
        architectures = [own for own in compiling.ARCHITECTURES if kernel.runs_on(own)]
        gc.disable()  # while a kernel is compiled there is little to find, and looking takes an eighth of the time
        try:
            compiling._fill(name, architectures)
        finally:
            gc.enable()
        for architecture in architectures:
            texts.setdefault(architecture, {})[name] = compiling._ptx(name, architecture).read_text()
    for architecture, of_kernels in texts.items():
        arch = compiling.name_of(architecture)
        paths = {name: folder / f"{name}-{arch}" for name in of_kernels}
        for name, ptx in of_kernels.items():
            paths[name].with_suffix(".ptx").write_text(ptx)
        whole, cubin = (folder / f"{'+'.join(names)}-{arch}{suffix}" for suffix in (".whole", ".cubin"))
        whole.write_text(in_one_text(of_kernels))
        target = re.search(r"^\.target (\w+)", whole.read_text(), re.MULTILINE)[1]
        command = [tool("ptxas"), "-v", "-arch", target, whole, "-o", cubin]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        code = ""
        if result.returncode == 0 and any(re.match(READ, name) for name in names):
            # Code alone, and not where its jumps may go, which takes a sixth of the time.
            disassemble = [tool("nvdisasm"), "--print-code", "--no-dataflow", cubin]
            code = subprocess.run(disassemble, capture_output=True, text=True, check=True).stdout
        says = of_each(r"Compiling entry function '(\w+)'.*", result.stderr)
        codes = of_each(r"^//-+ \.text\.(\w+) .*", code)
        for name, path in paths.items():
            warned = "serialized" in result.stderr  # which stands before the kernel that it is about
            path.with_suffix(".says").write_text(result.stderr if result.returncode or warned else says[name])
            if result.returncode == 0:
                path.with_suffix(".sass").write_text(codes.get(name, ""))


def in_one_text(of_kernels):
    """Return one text of PTX with all kernels of a mapping from names to texts.

    What stands beside a kernel gets its name: numbers in Numba's names begin anew in each process, and a folder of
    compiled code is filled by several.
    """
    heads = re.compile(r"^\.(?:version|target|address_size) .*$", re.MULTILINE)
    first, *_ = of_kernels.values()
    return "\n".join(
        [
            *heads.findall(first),
            *(re.sub(NUMBERED, rf"\g<0>_of_{name}", heads.sub("", ptx)) for name, ptx in of_kernels.items()),
        ]
    )


def of_each(heading, text):
    """Return the parts of a text by the name that is in the heading before each."""
    _, *parts = re.split(heading, text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture(scope="module")
def assembled(tmp_path_factory, request):
    """What there is to know of the kernels that are asked about: a few, after ``-k``, take seconds."""
    folder = tmp_path_factory.mktemp("kernels")
    asked = {item.callspec.params["name"] for item in request.session.items if "assembled" in item.fixturenames}
    lists = batches(asked)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        list(pool.map(everything_about, lists, [folder] * len(lists)))

    def found(name, architecture):
        path = folder / f"{name}-{compiling.name_of(architecture)}"
        assert path.with_suffix(".sass").exists(), path.with_suffix(".says").read_text()
        return tuple(path.with_suffix(suffix).read_text() for suffix in (".says", ".sass", ".ptx"))

    return found


def test_every_kernel_has_a_budget():
    missing, gone = compiling.KERNELS.keys() - BUDGETS.keys(), BUDGETS.keys() - compiling.KERNELS.keys()
    said = "; begin with (16, 0, 0) each, and see what the tests of the budget find"
    assert not missing, f"no line in BUDGETS for {', '.join(sorted(missing))}{said}"
    assert not gone, f"there are no kernels {', '.join(sorted(gone))}"


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


@everywhere(r"product(_turned|_transposed)?_(tf32|bf16)")
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
    # All copies have arrived before the finished tile takes their place.
    assert re.search(r"DEPBAR\.LE SB0, 0x1(.*\n)+?.*\bBAR\.SYNC(.*\n)+?.*\bSTS", code.rpartition("LDGSTS")[2])
    for pattern in (r"STG\.E\S*\.128", r"LDS\.128"):  # of the finish
        assert re.search(pattern, code), f"no {pattern} in {name}"


@everywhere(r"product.*warpgroups")
def test_products_of_warpgroups_go_on_while_threads_fetch(name, architecture, assembled):
    says, code, ptx = assembled(name, architecture)
    assert "serialized" not in says  # as ptxas says where registers of a product are touched too early
    bf16 = name.endswith("bf16")
    loop = code[code.index("WARPGROUP.ARRIVE") : code.index("gsb0, 0x0 ;")]  # from the first stage to the end
    products = re.findall(r"\bHGMMA\S* (R\d+), R\d+, gdesc\S* (R\d+)(, gsb0)? ;", loop)
    assert len(products) == 8
    assert set(re.findall(r"\bHGMMA\S*", code)) == {"HGMMA.64x256x16.F32.BF16" if bf16 else "HGMMA.64x256x8.F32.TF32"}
    assert len({sums for product in products for sums in product[:2]}) == 1  # nothing moves
    assert loop.count("WARPGROUP.DEPBAR.LE gsb0, 0x1") == sum(bool(last) for *_, last in products) == 2
    # Two stages, and what was fetched before the first.
    fetched = len(re.findall(r"\bLDG\.E\.128", code.partition("gsb0, 0x0 ;")[0]))
    assert fetched == 4 * (8 if name.endswith("warpgroups_bf16") else 4)
    assert bool(re.search(r"\bF2FP\.BF16", loop)) == name.endswith("warpgroups_bf16")  # pairs come as they are
    assert len(re.findall(r"\bUBLKCP\S*MULTICAST", code)) == len(re.findall(r"\bUBLKCP\.S\.G ", code)) == 4
    assert len(re.findall(r"\bSYNCS\S*TRYWAIT", code)) >= 2
    assert not re.search(r"\bMEMBAR\.ALL\.GPU", loop)
    assert not re.search(r"\b(LDL|STL)\b", code)
    # An address of shared memory is cut to what a descriptor holds: above, it says which block of a cluster it is in.
    assert len(re.findall(r"and\.b64\s+\S+ \S+ 16383;", ptx)) >= len(products) // 2


@everywhere(r"product.*x\d+$")
def test_products_are_made_of_wide_accesses_and_fused_multiply_adds(name, architecture, assembled):
    _, code, _ = assembled(name, architecture)
    for pattern in WIDE:
        assert re.search(pattern, code), f"no {pattern} in {name}"
    fused = len(re.findall(r"\bFFMA\b", code)) + 2 * len(re.findall(r"\bFFMA2\b", code))
    assert fused >= FUSED[name.rpartition("_")[2]]
    if len(BUDGETS[name]) == 3:
        assert not re.search(r"\b(LDL|STL)\b", code)  # no array in memory


@everywhere(r"product.*x(64|128)$")
def test_the_loop_over_whole_stages_is_little_but_multiply_adds(name, architecture, assembled):
    _, code, _ = assembled(name, architecture)
    # A block of instructions that ends by going back to its own beginning, with no other label in it.
    blocks = re.findall(r"^(\.L_x_\d+):\n((?:(?!\.L_x_).*\n)*?.*\bBRA\S* .*\1\).*\n)", code, re.MULTILINE)
    (loop,) = [block for _, block in blocks if len(re.findall(r"\bFFMA\b", block)) >= 512]
    assert len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", loop, re.MULTILINE)) <= 600
    assert len(re.findall(r"\bLDS\.128", loop)) == 32
    assert not re.search(r"\b(LDL|STL)\b", loop)


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
        assert not re.search(r"\b(LDL|STL)\b", block)
        assert cores or re.search(r"LDS\.128", block)
        assert not re.search(r"\bF2FP?\b", block)  # factors were rounded where they were written
    assert set(re.findall(r"\bHMMA[.\w]*", code)) == ({cores} if cores else set())
    if re.search("step_bf16_(?!16)", name):  # pairs of features become pairs of elements, for dW_self
        assert any("PRMT" in block for block in products)
    # h comes without a register, or, for tensor cores, to those that multiply it.
    assert bool(re.search(r"LDGSTS", code)) == ("step" in name and not cores)
    if "step" in name:
        assert not cores or re.search(r"LDG\.E\.128", code)
    if "step" in name:  # which numbers are positive, one instruction a number
        assert len(re.findall(r"\bSHF\.L\.W", code)) >= 16


@everywhere("round_to_bf16")
def test_numbers_are_rounded_in_pairs_with_wide_accesses(name, architecture, assembled):
    _, code, _ = assembled(name, architecture)
    assert len(re.findall(r"LDG\.E\S*\.128", code)) == 2
    assert len(re.findall(r"STG\.E\S*\.128", code)) == 1
    assert len(re.findall(r"F2FP\.BF16\S*\.PACK_AB", code)) >= 4


@everywhere("finish_product|unpool")
def test_rows_are_fetched_together(name, architecture, assembled):
    _, code, _ = assembled(name, architecture)
    # Eight rows of three arrays, or of two, with no store between them.
    least = 16 if name == "unpool_pairs" else 24
    assert max(len(re.findall(r"\bLDG\b", between)) for between in re.split(r"\bSTG\b", code)) >= least


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


def without_counts(ptx):
    """Return PTX without what Numba counts, and without the name of an array that nobody reads."""
    return re.sub(NUMBERED + r"|B\d+v\d+B", "", ptx)


@pytest.mark.parametrize("name", ["product_128x64"])
def test_kernels_that_two_processes_compiled_are_assembled_together(name, assembled, tmp_path):
    _, _, ptx = assembled(name, (9, 0))
    path = tmp_path / "both.ptx"
    path.write_text(in_one_text({name: ptx, "other": ptx.replace(f" {name}(", " other(")}))
    subprocess.run([tool("ptxas"), "-arch", "sm_90", path, "-o", tmp_path / "both.cubin"], check=True)


@pytest.mark.parametrize(("name", "architecture"), [("add_parts", (8, 0)), ("product_tf32", (9, 0))], ids=str)
def test_a_kernel_can_be_compiled_by_the_compiler_of_its_own_architecture(name, architecture, tmp_path):
    kernel = compiling.KERNELS[name]
    path = tmp_path / "kernel.ptx"
    path.write_text(kernel.compile(architecture, by=architecture))
    arch = compiling.name_of(architecture)
    assert f".target {arch}\n" in path.read_text()
    subprocess.run([tool("ptxas"), "-arch", arch, path, "-o", tmp_path / "kernel.cubin"], check=True)


def test_our_analysis_of_a_kernel_leaves_its_code_as_it_is(monkeypatch):
    places = {
        "live_map": ("numba.cuda.core.analysis", "compute_live_map"),
        "postprocessor": ("numba.cuda.core.postproc", "PostProcessor.run"),
        "rewriter": ("numba.cuda.core.ssa", "_run_block_rewrite"),
        "inliner": ("numba.cuda.core.inline_closurecall", "InlineWorker.inline_function"),
        "resolver": ("numba.core.types.functions", "BaseFunction.get_call_type"),
    }
    numbas = {ours: attrgetter(path)(pytest.importorskip(place)) for ours, (place, path) in places.items()}

    def code():
        return without_counts(compiling.KERNELS["product_from_8_by_4"].compile(compiling.ARCHITECTURES[0]))

    ours = code()
    asked = {name: mock.Mock(side_effect=lambda original: original) for name in places}
    asked["live_map"] = mock.Mock(wraps=numbas["live_map"])
    for name, instead in asked.items():
        monkeypatch.setattr(compiling, name, instead)
    assert code() == ours
    assert asked.pop("live_map").called
    for name, instead in asked.items():
        instead.assert_called_once_with(numbas[name])
    for name, (place, path) in places.items():  # as if we had not been there
        assert attrgetter(path)(importlib.import_module(place)) is numbas[name]
