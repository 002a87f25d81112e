import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastperm.kernels.cpu.compiling as compiling
from fastperm.kernels import sources

# Kernels of the package, and functions of all kinds that are quickly compiled.
KERNELS = """
import numpy as np
from fastperm.kernels.cpu.pooling import pooling_forward, _forward
from fastperm.kernels.cpu.product import tiles
p = np.empty((1, 2))
pooling_forward(np.ones((3, 2)), np.array([0, 3]), None, "mean", p=p)
assert (p == 1).all()
tiles(np.dtype("float32"))
print(sum(_forward.stats.cache_hits.values()), sum(_forward.stats.cache_misses.values()))
"""
SMALL = """
import ctypes
from numba.types import int64
from fastperm.kernels.cpu.compiling import c_function, jit, subroutine
@subroutine
def double(x):
    return 2 * x
@jit
def quadruple(x):
    return double(double(x))
def triple(x):
    return 3 * x
assert quadruple(5) == 20
assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(c_function(triple, int64(int64)))(5) == 15
print(sum(quadruple.stats.cache_hits.values()), sum(quadruple.stats.cache_misses.values()))
"""


def run(folder, script=SMALL):
    environment = {**os.environ, "FASTPERM_CACHE_DIR": str(folder), "PYTHONWARNINGS": "error"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return (*map(int, result.stdout.split()), result.stderr)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder that a first process filled."""
    folder = tmp_path_factory.mktemp("cache") / "new"
    run(folder)
    return folder


@pytest.mark.parametrize("script", [KERNELS, SMALL], ids=["kernels", "small"])
def test_a_second_process_compiles_nothing(tmp_path, script):
    folder = tmp_path / "new"
    said = run(folder, script)

    def files():
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("cpu-*/*")}

    assert said == (0, 1, f"compiling kernels, up to a minute; they are kept in {folder}\n")
    written = files()
    assert {Path(name).suffix for name in written} == {".nbi", ".nbc"}
    assert run(folder, script) == (1, 0, "")
    assert files() == written


def test_processes_that_compile_at_once_do_not_take_each_others_code(tmp_path):
    own, other = (compiling._CacheFile(str(tmp_path), "function", "stamp") for _ in range(2))
    seen_before = own._load_index()
    other.save("float64", "code for float64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "_load_index", lambda: seen_before)
        own.save("float32", "code for float32")
    for file in own, other:
        assert file.load("float32") == "code for float32"
        assert file.load("float64") in (None, "code for float64")
    own.save("float64", "newer code for float64")
    assert other.load("float64") == "newer code for float64"
    assert other.load("float32") == "code for float32"


def test_nothing_is_written_beside_the_source():
    folder = Path(compiling.__file__).parent
    assert not [path for path in folder.rglob("*") if path.suffix in {".nbi", ".nbc"}]


def test_without_a_folder_to_write_to_it_still_works(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder should be")
    assert run(blocked)[0] == 0


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_damaged_cache_is_written_anew(first, tmp_path, suffix):
    folder = shutil.copytree(first, tmp_path / "damaged")
    for path in folder.glob(f"cpu-*/*{suffix}"):
        path.write_bytes(path.read_bytes()[: 0 if suffix == ".nbi" else 100])
    assert run(folder)[0] == 0
    assert run(folder) == (1, 0, "")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_left_alone():
    assert run("/proc/self")[0] == 0


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("part", ["own", "reference"])
def test_a_change_in_any_source_file_is_noticed(monkeypatch, tmp_path, backend, part):
    """Those of the reference have numbers that are compiled in."""
    kernels = Path(sources.__file__).parent
    for name in (backend, "reference"):
        shutil.copytree(kernels / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "sources.py"))
    before = sources.stamp_of(tmp_path / backend)
    assert before == sources.stamp_of(tmp_path / backend)
    with (tmp_path / (backend if part == "own" else part) / "product.py").open("a") as file:
        file.write("# changed\n")
    assert sources.stamp_of(tmp_path / backend) != before


def test_each_backend_is_known_by_its_own_sources(monkeypatch):
    from fastperm.kernels.cuda import compiling as of_cuda

    kernels = Path(sources.__file__).parent
    assert of_cuda._source_stamp() == sources.stamp_of(kernels / "cuda")[:16] != sources.stamp_of(kernels / "cpu")[:16]
    asked = []
    monkeypatch.setattr(compiling, "stamp_of", lambda folder: asked.append(folder) or "stamp")
    stamp = compiling._source_stamp.__wrapped__
    before = stamp()
    assert asked == [kernels / "cpu"]
    for module in (compiling.numba, compiling.llvmlite):
        with monkeypatch.context() as patch:
            patch.setattr(module, "__version__", "another")
            assert stamp() != before


def test_versions_that_share_a_cache_do_not_take_each_others_code(first, tmp_path):
    folder = shutil.copytree(first, tmp_path / "shared")
    other = SMALL.replace("from fastperm", "import numba; numba.__version__ += '.other'\nfrom fastperm", 1)
    assert run(folder, other)[:2] == (0, 1)
    assert run(folder) == (1, 0, "")
    assert run(folder, other) == (1, 0, "")
    assert len(list(folder.iterdir())) == 2


def test_a_subroutine_is_compiled_once_for_all_numbers_and_not_for_python(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTPERM_CACHE_DIR", str(tmp_path))

    @compiling.subroutine
    def add(a, b):
        return a + b

    @compiling.jit
    def add_three(x):
        return add(add(x, 1), b=2)

    for _ in range(2):  # before it is compiled, and after
        with pytest.raises(TypeError, match="add is a subroutine of compiled code, which Python cannot call"):
            add(1, 2)
        assert add_three(4) == 7
        assert len(add.overloads) == 1


def test_a_subroutine_that_was_kept_becomes_part_of_a_new_caller(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTPERM_CACHE_DIR", str(tmp_path))

    @compiling.subroutine
    def square(x):
        return x * x

    def sum_of_squares(x):
        total = 0.0
        for i in range(len(x)):
            total += square(x[i])
        return total

    x = np.random.default_rng(1).standard_normal(9)
    for kept in False, True:
        subroutine = compiling.subroutine(sum_of_squares)

        @compiling.jit
        def twice(x):
            return 2 * subroutine(x)  # noqa: B023 - compiled in this turn

        twice._cache.flush()
        np.testing.assert_allclose(twice(x), 2 * (x**2).sum(), rtol=1e-14)
        assert sum(subroutine.stats.cache_hits.values()) == kept
        (result,) = subroutine.overloads.values()
        assert isinstance(result.library, compiling._Linked)


def test_the_folder_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("FASTPERM_CACHE_DIR", raising=False)
    assert "fastperm" in compiling.cache_folder().parts
    monkeypatch.setenv("FASTPERM_CACHE_DIR", "/elsewhere")
    assert compiling.cache_folder() == Path("/elsewhere")


pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="there is nothing to cache without the compiler"
)


def test_one_hears_that_compiled_code_cannot_be_kept(monkeypatch, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("FASTPERM_CACHE_DIR", str(blocked / "cache"))
    assert compiling.why_not_kept() == os.strerror(errno.ENOTDIR)
    compiling._say_that_it_compiles.cache_clear()
    doubled = compiling.jit(lambda x: 2 * x)
    assert not caplog.messages
    assert [doubled(3), doubled(1.5)] == [6, 3.0]
    (message,) = caplog.messages
    assert f"in every process: they cannot be kept in {blocked / 'cache'} (Not a directory)" in message
    monkeypatch.setenv("FASTPERM_CACHE_DIR", str(tmp_path / "new"))
    assert compiling.why_not_kept() is None
    compiling._say_that_it_compiles.cache_clear()
