import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastperm.kernels.cpu.compiling as compiling

SCRIPT = """
import numpy as np
from fastperm.kernels.cpu.pooling import pooling_forward, _forward
from fastperm.kernels.cpu.product import tiles
p = np.empty((1, 2))
pooling_forward(np.ones((3, 2)), np.array([0, 3]), None, "mean", p=p)
assert (p == 1).all()
tiles(np.dtype("float32"))
print(sum(_forward.stats.cache_hits.values()), sum(_forward.stats.cache_misses.values()))
"""


def run(folder):
    environment = {**os.environ, "FASTPERM_CACHE_DIR": str(folder), "PYTHONWARNINGS": "error"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return (*map(int, result.stdout.split()), result.stderr)


def test_a_second_process_compiles_nothing(tmp_path):
    def files():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}

    message = f"compiling kernels, up to a minute; they are kept in {tmp_path / 'cache'}\n"
    assert run(tmp_path / "cache") == (0, 1, message)
    written = files()
    assert {Path(name).suffix for name in written} == {".nbi", ".nbc"}
    assert run(tmp_path / "cache") == (1, 0, "")
    assert files() == written


def test_nothing_is_written_beside_the_source():
    folder = Path(compiling.__file__).parent
    assert not [path for path in folder.rglob("*") if path.suffix in {".nbi", ".nbc"}]


def test_without_a_folder_to_write_to_it_still_works(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder should be")
    assert run(blocked)[0] == 0


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_damaged_cache_is_written_anew(tmp_path, suffix):
    run(tmp_path)
    for path in tmp_path.glob(f"*{suffix}"):
        path.write_bytes(path.read_bytes()[: 0 if suffix == ".nbi" else 100])
    assert run(tmp_path)[0] == 0
    assert run(tmp_path) == (1, 0, "")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_left_alone():
    assert run("/proc/self")[0] == 0


def test_a_change_in_any_source_file_is_noticed(monkeypatch, tmp_path):
    before = compiling._source_stamp()
    for path in Path(compiling.__file__).parent.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "compiling.py"))
    compiling._source_stamp.cache_clear()
    try:
        assert compiling._source_stamp() == before
        with (tmp_path / "product.py").open("a") as file:
            file.write("# changed\n")
        compiling._source_stamp.cache_clear()
        assert compiling._source_stamp() != before
    finally:
        compiling._source_stamp.cache_clear()


def test_the_folder_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("FASTPERM_CACHE_DIR", raising=False)
    assert "fastperm" in compiling.cache_folder().parts
    monkeypatch.setenv("FASTPERM_CACHE_DIR", "/elsewhere")
    assert compiling.cache_folder() == Path("/elsewhere")


pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="there is nothing to cache without the compiler"
)
