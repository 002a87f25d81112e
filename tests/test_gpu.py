"""Finding a GPU, and launching on it, with a fake driver and a fake CuPy: no GPU is needed."""

import ctypes
import gc
import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastperm
from fastperm import backend, gpu
from fastperm.kernels import cuda as kernels
from fastperm.kernels import reference
from fastperm.kernels.arrays import on_host
from fastperm.kernels.cuda import cluster_probe, compiling, step_queue
from fastperm.losses import mean_squared_error


class FakeRuntime(SimpleNamespace):
    class CUDARuntimeError(RuntimeError):
        pass


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that makes this a machine with a GPU: one that is fine, but for what is said."""
    caches = (backend.why_missing, backend._cuda_for_auto, compiling._loaded, compiling.xp)

    def forget():
        for cache in caches:
            cache.cache_clear()

    def make(
        *,
        cupy=True,
        built_for=13000,
        driver=13000,
        devices=1,
        capability="90",
        nvrtc=True,
        cublas=True,
        compiler="numba-cuda-0",
    ):
        def count():
            if devices is None:
                raise FakeRuntime.CUDARuntimeError("cudaErrorNoDevice")
            return devices

        def nvrtc_version():
            if not nvrtc:
                raise RuntimeError("libnvrtc.so.13")
            return 13, 0

        class Cuda(SimpleNamespace):
            @property
            def cublas(self):  # CuPy imports it when it is asked for
                if not cublas:
                    raise ImportError("libcublas.so.13: cannot open shared object file")
                return SimpleNamespace()

        module = SimpleNamespace(
            cuda=Cuda(
                runtime=FakeRuntime(
                    driverGetVersion=lambda: driver,
                    runtimeGetVersion=lambda: built_for,
                    getDeviceCount=count,
                    getDevice=lambda: 0,
                ),
                nvrtc=SimpleNamespace(getVersion=nvrtc_version),
                Device=lambda device=0: SimpleNamespace(compute_capability=capability),
            )
        )
        monkeypatch.setattr(gpu, "has_driver", lambda: True)
        monkeypatch.setitem(sys.modules, "cupy", module if cupy else None)
        monkeypatch.setattr(compiling, "compiler", lambda: compiler)
        monkeypatch.setenv("FASTPERM_CACHE_DIR", str(tmp_path))
        forget()
        return module

    yield make
    forget()


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr(gpu, "has_driver", lambda: False)
    backend.why_missing.cache_clear()
    backend._cuda_for_auto.cache_clear()
    wanted = "backend 'cuda' is not available: there is no NVIDIA driver .*install driver 580 or newer"
    with pytest.raises(RuntimeError, match=wanted):
        fastperm.DeepSet(2, 3, 1, 1, backend="cuda")
    assert backend.resolve("auto") == "cpu"
    backend.why_missing.cache_clear()


CASES = (
    (
        {"built_for": 12040},
        "CuPy is one for CUDA 12.4, expected one for CUDA 13; uninstall cupy-cuda12x and pip install",
    ),
    ({"driver": 12080}, "the NVIDIA driver is one for CUDA 12.8, expected 13.0 or newer; install driver 580 or newer"),
    ({"devices": 0}, "the NVIDIA driver finds no GPU"),
    ({"devices": None}, "the NVIDIA driver finds no usable GPU (cudaErrorNoDevice)"),
    ({"capability": "75"}, "the GPU has compute capability 7.5; expected at least 8.0"),
    ({"nvrtc": False}, "CuPy does not find NVRTC, the compiler of its own kernels (libnvrtc.so.13); pip install"),
    ({"cublas": False}, "CuPy does not find cuBLAS, which multiplies the matrices of wide layers (libcublas.so.13: "),
    ({"compiler": None}, "numba-cuda, which compiles the kernels, is not installed, and "),
)


@pytest.mark.parametrize(("fault", "message"), CASES, ids=lambda value: next(iter(value), ""))
def test_what_is_missing_is_said(machine, fault, message, caplog):
    machine(**fault)
    with pytest.raises(RuntimeError) as caught:
        fastperm.DeepSet(2, 3, 1, 1, backend="cuda")
    assert message in str(caught.value)
    with caplog.at_level(logging.WARNING, "fastperm"):
        assert backend.resolve("auto") == backend.resolve("auto") == "cpu"
    assert [record.getMessage() for record in caplog.records if "'auto'" in record.getMessage()] == [
        f"backend 'auto' does not take 'cuda', which is not available: {backend.why_missing('cuda')}"
    ]


def test_without_cupy(machine):
    machine(cupy=False)
    assert "CuPy is not installed" in backend.why_missing("cuda") or "CuPy cannot" in backend.why_missing("cuda")
    assert 'pip install "fastperm[cuda]"' in backend.why_missing("cuda")


def test_with_a_cupy_that_is_broken(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.delitem(sys.modules, "cupy")
    (tmp_path / "cupy.py").write_text("raise ValueError('numpy.dtype size changed')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "CuPy cannot be imported (numpy.dtype size changed)" in backend.why_missing("cuda")
    assert backend.resolve("auto") == "cpu"


def test_auto_takes_a_usable_gpu_for_float32_and_not_for_numpy_arrays(machine):
    machine()
    assert backend.why_missing("cuda") is None
    assert backend.resolve("auto") == backend.resolve("auto", "float32") == "cuda"
    assert backend.resolve("auto", "float64") == backend.for_numpy("auto") == "cpu"
    with pytest.raises(TypeError, match="backend 'cuda' computes in float32 only, got dtype float64"):
        fastperm.DeepSet(2, 3, 1, 1, backend="cuda", dtype="float64")


def test_a_file_of_float64_is_read_beside_a_usable_gpu(machine, tmp_path):
    path = tmp_path / "net.safetensors"
    fastperm.DeepSet(2, 3, 1, 1, dtype="float64", backend="reference").save(path)
    machine()
    assert fastperm.load(path).backend == "cpu"
    with pytest.raises(TypeError, match="backend 'cuda' computes in float32 only"):
        fastperm.load(path, "cuda")


def test_kernels_compiled_elsewhere_will_do(machine):
    machine(compiler=None, capability="86")
    compiling.cache_folder().mkdir(parents=True)
    for name in compiling.KERNELS:
        (compiling.cache_folder() / f"{name}-sm_80-numba-cuda-1.ptx").touch()
    assert backend.why_missing("cuda") is None


class FakeArray:
    """An array on a device, to a launch."""

    def __init__(self, array):
        self.array, self.dtype, self.shape, self.size = array, array.dtype, array.shape, array.size
        self.__cuda_array_interface__ = {}
        self.data = SimpleNamespace(ptr=array.ctypes.data)

    def get(self):
        return self.array


def test_a_launch_goes_through_cupy(machine, monkeypatch):
    module = machine(capability="89")
    loaded, launches = [], []

    def raw_module(path):
        loaded.append(path)
        return SimpleNamespace(get_function=lambda name: SimpleNamespace(kernel=SimpleNamespace(ptr=name)))

    def launch(*arguments):
        *where, extra = arguments
        marks = (ctypes.c_void_p * 5).from_address(extra)
        size = ctypes.c_size_t.from_address(marks[3]).value
        launches.append((where, marks[::2], ctypes.string_at(marks[1], size)))

    module.RawModule = raw_module
    module.cuda.driver = SimpleNamespace(launchKernel=launch)
    module.cuda.get_current_stream = lambda: SimpleNamespace(ptr=77)
    monkeypatch.setattr(compiling.Kernel, "compile", lambda self, architecture: f"{self.name} {architecture}")
    arrays = [FakeArray(np.zeros(1000, np.float32)) for _ in range(4)]
    for t in (1, 2):
        kernels.adam_step(arrays[0], 0.1, 0.9, 0.999, 1e-7, t, **dict(zip("pmv", arrays[1:], strict=True)))
    assert [path.rpartition("/")[2] for path in loaded] == ["adam_step-sm_80-numba-cuda-0.ptx"]  # once
    assert Path(loaded[0]).read_text() == "adam_step (8, 0)"
    where, marks, packed = launches[1]
    assert where == ["adam_step", 4, 1, 1, 256, 1, 1, 0, 77, 0]
    assert marks == [1, 2, None]  # a buffer, its size, the end
    names = [("g", "u8"), *((f"c{i}", "f4") for i in range(6)), ("size", "i8")]
    names += [("with_loss", "i4"), ("loss", "u8"), ("with_rates", "i4"), ("rates", "u8")]
    (found,) = np.frombuffer(packed, np.dtype([*names, ("p", "u8"), ("m", "u8"), ("v", "u8")], align=True))
    assert [found[name] for name in "gpmv"] == [array.data.ptr for array in arrays]
    assert [found[f"c{i}"] for i in range(1, 6)] == pytest.approx([0.9, 0.1, 0.999, 1e-3, 1e-7])
    assert [found[name] for name in ("size", "with_loss", "loss", "with_rates", "rates")] == [1000, 0, 0, 0, 0]
    with pytest.raises(TypeError, match="expected an array of float32, got float64"):
        kernels.adam_step(FakeArray(np.zeros(3)), 0.1, 0.9, 0.999, 1e-7, 1, p=arrays[1], m=arrays[2], v=arrays[3])
    with pytest.raises(TypeError, match="expected an array on the GPU, got one of NumPy"):
        kernels.adam_step(arrays[0].array, 0.1, 0.9, 0.999, 1e-7, 1, p=arrays[1], m=arrays[2], v=arrays[3])


def test_a_folder_that_cannot_be_written_to(machine, monkeypatch, tmp_path):
    module = machine()
    module.RawModule = lambda path: SimpleNamespace(get_function=lambda name: path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTPERM_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(compiling.Kernel, "compile", lambda self, architecture: f"{self.name} {architecture}")
    assert Path(compiling._loaded("mask", 0, 1)).read_text() == "mask (9, 0)"
    with pytest.raises(OSError, match="file"):
        compiling.fill_cache([(9, 0)])


def test_a_folder_can_be_filled_and_used_where_there_is_no_compiler(machine, monkeypatch):
    machine()
    monkeypatch.setattr(compiling.Kernel, "compile", lambda self, architecture: f"{self.name} {architecture}")
    assert compiling.fill_cache([(9, 0)]) == len(compiling.KERNELS)
    machine(compiler=None)
    assert backend.why_missing("cuda") is None
    assert compiling._ptx("mask", (9, 0)).read_text() == "mask (9, 0)"


@pytest.mark.parametrize("cluster", [1, 8])
def test_how_many_blocks_are_a_cluster_is_said_when_a_kernel_is_loaded(machine, monkeypatch, cluster):
    module = machine()
    launches = []
    module.RawModule = lambda path: SimpleNamespace(
        get_function=lambda name: SimpleNamespace(kernel=SimpleNamespace(ptr=Path(path).read_text()))
    )
    module.cuda.driver = SimpleNamespace(launchKernel=lambda *arguments: launches.append(arguments[:7]))
    module.cuda.get_current_stream = lambda: SimpleNamespace(ptr=77)
    monkeypatch.setattr(compiling, "KERNELS", {})
    kernel = compiling.Kernel(None, "wide", ["f4"], 32, clustered=True)
    text = ".entry other(f32)\n{"
    monkeypatch.setattr(compiling.Kernel, "compile", lambda self, architecture: self.finished(text))
    said = ".entry wide(f32)\n.maxntid 32, 1, 1\n.minnctapersm 1\n.reqnctapercluster {}, 1, 1\n{{"
    for _ in range(2):
        kernel(16, 1.0, cluster=cluster)
    assert launches == [(said.format(cluster), 16, 1, 1, 32, 1, 1)] * 2
    assert [path.name for path in compiling.cache_folder().iterdir()] == ["wide-sm_90-numba-cuda-0.ptx"]
    assert compiling._ptx("wide", (9, 0)).read_text() == said.format(1)
    assert [kernel.runs_on(architecture) for architecture in compiling.ARCHITECTURES] == [False, True, True]


def test_streams_of_threads_are_told_apart(machine):
    module = machine()
    places = set()
    for address in (7, 2):  # an ordinary one, and CUDA's word for each thread's own
        module.cuda.get_current_stream = lambda address=address: SimpleNamespace(ptr=address)
        found = [compiling.current_place()]
        thread = threading.Thread(target=lambda: found.append(compiling.current_place()))  # noqa: B023
        thread.start()
        thread.join()
        assert len({place[:2] for place in found}) == 1
        assert len(set(found)) == (2 if address == 2 else 1)
        places |= set(found)
    assert len(places) == 3


def test_parameters_on_another_gpu_have_another_layout():
    first, second = (fastperm.DeepSet(2, 3, 1, 1, backend="reference", seed=0).parameters for _ in range(2))
    assert first.same_layout(second)
    second._flat = type("Elsewhere", (np.ndarray,), {"device": "another"})(first.flat.shape, first.flat.dtype)
    assert not first.same_layout(second)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_step_that_is_dropped_is_waited_for(monkeypatch, waiting):
    waited = []
    monkeypatch.setattr(step_queue, "SIMULATED", False)
    step = step_queue.SingleStep.__new__(step_queue.SingleStep)
    step.waiting, step._stream = waiting, SimpleNamespace(synchronize=lambda: waited.append(True))
    del step
    gc.collect()
    assert waited == [True] * waiting


def test_clusters_are_not_given_up_for_good_while_somebody_captures(machine, monkeypatch):
    module, capturing, tried = machine(), [True], []

    def probe(blocks, seen, **_):
        tried.append(blocks)
        seen[:] = [(rank + 1) % blocks + 1 for rank in range(blocks)]

    module.zeros = np.zeros
    module.cuda.get_current_stream = lambda: SimpleNamespace(is_capturing=lambda: capturing[0])
    monkeypatch.setattr(cluster_probe, "_cluster_probe", probe)
    monkeypatch.setattr(cluster_probe, "_found", {})
    assert not cluster_probe.clusters_run(2, 100)

    def refuse():
        raise RuntimeError("cudaErrorStreamCaptureImplicit")

    with monkeypatch.context() as patch:
        patch.setattr(module.cuda, "get_current_stream", lambda: SimpleNamespace(is_capturing=refuse))
        assert not cluster_probe.clusters_run(2, 100)
    capturing[0] = False
    assert cluster_probe.clusters_run(2, 100)
    capturing[0] = True
    assert cluster_probe.clusters_run(2, 100)
    assert tried == [2]


def test_older_cards_need_no_kernels_that_they_cannot_run(machine, monkeypatch):
    machine(capability="86")
    monkeypatch.setattr(compiling.Kernel, "compile", lambda self, architecture: f"{self.name} {architecture}")
    fewer = sum(kernel.runs_on((8, 0)) for kernel in compiling.KERNELS.values())
    assert compiling.fill_cache([(8, 0)]) == fewer < len(compiling.KERNELS)
    machine(compiler=None, capability="86")
    assert backend.why_missing("cuda") is None
    assert compiling._clusters.__wrapped__(0) == ()
    machine(capability="120")
    assert compiling._clusters.__wrapped__(0) == (1, 2, 4, 8)


def test_kernels_of_one_architecture_run_on_no_later_one(monkeypatch):
    monkeypatch.setattr(compiling, "KERNELS", {})
    own = compiling.Kernel(None, "own", ["f4"], 32, only=compiling.HOPPER)
    assert [own.runs_on(architecture) for architecture in compiling.ARCHITECTURES] == [False, True, False]
    text = ".version 9.0\n.target sm_100\n"
    assert own.for_architecture(text, (9, 0)) == ".version 9.0\n.target sm_90a\n"
    assert compiling.Kernel(None, "any", ["f4"], 32).for_architecture(text, (9, 0)) == ".version 9.0\n.target sm_90\n"


class DriverError(RuntimeError):
    """As CuPy tells of them."""

    def __init__(self, status, says):
        super().__init__(says)
        self.status = status


def driver(taken):
    """Return a RawModule that takes texts of which ``taken`` is true and, as CuPy, reads a file of a name once."""
    read: dict = {}

    class RawModule:
        asked: list = []  # noqa: RUF012

        def __init__(self, path):
            self.text = read.setdefault(path, Path(path).read_text())
            self.asked.append(self.text)

        def get_function(self, name):
            if not taken(self.text):
                raise DriverError(218, "CUDA_ERROR_INVALID_PTX")
            return self.text

    return RawModule


@pytest.fixture
def says_how_it_was_compiled(monkeypatch):
    monkeypatch.setattr(compiling.Kernel, "compile", lambda self, *architecture, by=None: f"{self.name} by {by}")


def test_a_damaged_file_is_compiled_anew(machine, says_how_it_was_compiled, caplog):
    module = machine()
    module.RawModule = driver(lambda text: text.startswith("mask"))
    path = compiling._ptx("mask", (9, 0))
    path.write_text("mas")
    with caplog.at_level(logging.WARNING, "fastperm"):
        assert compiling._loaded("mask", 0, 1) == path.read_text() == "mask by None"
    assert caplog.text.count("CUDA_ERROR_INVALID_PTX") == 1
    path.write_text("mas")
    compiling._loaded.cache_clear()
    machine(compiler=None).RawModule = driver(lambda text: text.startswith("mask"))
    with pytest.raises(RuntimeError, match=r"the GPU's driver does not take .*mask-sm_90.*\(CUDA_ERROR_INVALID_PTX\)"):
        compiling._loaded("mask", 0, 1)


@pytest.mark.parametrize("taken", ["mask by (9, 0)", None])
def test_what_a_card_refuses_is_compiled_for_the_card_itself(machine, says_how_it_was_compiled, taken):
    module = machine()
    module.RawModule = driver(lambda text: text == taken)
    if taken:
        assert compiling._loaded("mask", 0, 1) == taken
        assert compiling._ptx("mask", (9, 0)).read_text() == taken
    else:
        with pytest.raises(DriverError, match="CUDA_ERROR_INVALID_PTX"):
            compiling._loaded("mask", 0, 1)
    assert module.RawModule.asked == ["mask by None", "mask by None", "mask by (9, 0)"]


def test_a_damaged_file_in_a_folder_of_somebody_else_is_left(machine, says_how_it_was_compiled, monkeypatch):
    module = machine()
    module.RawModule = driver(lambda text: text.startswith("mask"))
    path = compiling._ptx("mask", (9, 0))
    path.write_text("mas")

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        unlink = Path.unlink
        patch.setattr(Path, "unlink", lambda self, *a, **k: (refuse if self == path else unlink)(self, *a, **k))
        assert compiling._loaded("mask", 0, 1) == "mask by None"
    assert path.read_text() == "mas"


@pytest.mark.parametrize(("status", "kind"), [(2, MemoryError), (719, DriverError)], ids=["memory", "a failed launch"])
def test_errors_that_are_not_the_files_leave_it(machine, says_how_it_was_compiled, status, kind):
    module = machine()

    class RawModule:
        def __init__(self, path):
            raise DriverError(status, "CUDA_ERROR_OF_SOME_KIND")

    module.RawModule = RawModule
    path = compiling._ptx("mask", (9, 0))
    with pytest.raises(kind, match="CUDA_ERROR_OF_SOME_KIND"):
        compiling._loaded("mask", 0, 1)
    assert path.read_text() == "mask by None"


def test_a_launch_that_finds_no_memory_is_an_error_of_memory(machine, says_how_it_was_compiled, monkeypatch):
    module = machine()
    module.RawModule = lambda path: SimpleNamespace(
        get_function=lambda name: SimpleNamespace(kernel=SimpleNamespace(ptr=name))
    )
    module.cuda.get_current_stream = lambda: SimpleNamespace(ptr=77)
    monkeypatch.setattr(compiling, "KERNELS", {})
    kernel = compiling.Kernel(None, "wide", ["f4"], 32)
    for status, kind in ((2, MemoryError), (1, DriverError)):

        def launch(*_, status=status):
            raise DriverError(status, "CUDA_ERROR_OF_SOME_KIND")

        module.cuda.driver = SimpleNamespace(launchKernel=launch)
        with pytest.raises(kind, match="CUDA_ERROR_OF_SOME_KIND"):
            kernel(16, 1.0)


def test_a_kernel_is_compiled_once_for_all_architectures(machine, monkeypatch):
    machine()
    compiled = []

    def compile_one(kernel, architecture):
        compiled.append(kernel.name)
        return f".version 9.0\n.target sm_100\n{kernel.name}"

    monkeypatch.setattr(compiling.Kernel, "compile", compile_one)
    compiling.fill_cache()
    assert sorted(compiled) == sorted(compiling.KERNELS)
    for architecture in compiling.ARCHITECTURES:
        text = compiling._ptx("mask", architecture).read_text()
        assert text == f".version 9.0\n.target {compiling.name_of(architecture)}\nmask"


def test_what_another_compiler_made_is_taken_where_this_one_fails(machine, monkeypatch, caplog):
    machine()
    other = compiling.cache_folder() / "mask-sm_90-numba-cuda-1.ptx"
    other.parent.mkdir(parents=True)

    def fail(kernel, architecture):
        raise ValueError("no NVVM")

    monkeypatch.setattr(compiling.Kernel, "compile", fail)
    with pytest.raises(ValueError, match="no NVVM"):
        compiling._ptx("mask", (9, 0))
    other.write_text("mask")
    with caplog.at_level(logging.WARNING, "fastperm"):
        assert compiling._ptx("mask", (9, 0)) == other
    assert "numba-cuda-0 does not compile kernel mask (no NVVM)" in caplog.text
    assert [path.name for path in other.parent.iterdir()] == [other.name]


def test_a_compiler_that_is_broken_is_named(tmp_path):
    # numba-cuda is in place of numba.cuda, and what it loads at import can fail in any way.
    script = """
import sys
import threading
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "numba.cuda":
            raise OSError("libnvvm.so: undefined symbol")
sys.meta_path.insert(0, Broken())
from fastperm.kernels.cuda import compiling
print(compiling.NO_COMPILER, compiling.compiler())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "cannot be imported (OSError: libnvvm.so: undefined symbol) None"


def test_why_there_is_no_compiler_is_said(machine, monkeypatch):
    machine(compiler=None)
    monkeypatch.setattr(compiling, "NO_COMPILER", "cannot be imported (OSError: libnvvm.so)")
    message = "numba-cuda, which compiles the kernels, cannot be imported (OSError: libnvvm.so), and "
    assert message in backend.why_missing("cuda")


def test_a_kernel_that_nobody_compiled_is_named(machine):
    machine(compiler=None)
    with pytest.raises(RuntimeError, match="kernel mask was not compiled for sm_90: numba-cuda is not installed"):
        compiling._ptx("mask", (9, 0))


def test_arrays_come_back_to_the_host():
    array = np.ones(2)
    assert on_host(array) is array
    assert on_host(FakeArray(array)) is array
    assert on_host(None) is None


def test_adam_goes_on_when_a_network_has_moved_to_the_host():
    results = []
    for moved in (False, True):
        optimizer, parameters = fastperm.Adam(), {"p": np.ones(3)}
        for _ in range(2):
            optimizer.step(parameters, {"p": np.array([1.0, 2.0, 3.0])})
            if moved:
                optimizer._moments = [
                    {name: FakeArray(array) for name, array in moments.items()} for moments in optimizer._moments
                ]
        results.append(parameters["p"])
    np.testing.assert_array_equal(*results)


def test_the_loss_takes_and_gives_arrays_of_the_host():
    class Kernels:
        xp = SimpleNamespace(asarray=FakeArray, empty_like=lambda y: FakeArray(np.empty_like(y.array)))

        @staticmethod
        def mean_squared_error(y, targets, *, dy):
            return reference.mean_squared_error(y.array, targets.array, dy=dy.array)

    loss, dy = mean_squared_error(np.ones((2, 1)), np.zeros((2, 1)), Kernels)
    assert loss == 1
    assert isinstance(dy, np.ndarray)
