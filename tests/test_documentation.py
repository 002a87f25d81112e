"""What the documentation shows runs as it stands."""

import contextlib
import doctest
import io
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = ("adam", "baselines", "network", "optimum", "power_spectrum", "sets", "sweeps", "threads")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(import_module(f"fastperm.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_python_in_the_readme(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        exec(compile("\n".join(blocks), "README.md", "exec"), {})
    assert (tmp_path / "spectrum.safetensors").exists()


def test_python_in_the_documents():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "power-spectrum.md").read_text(), re.DOTALL)
    assert blocks
    names: dict = {}
    exec(compile("\n".join(blocks), "power-spectrum.md", "exec"), names)
    assert names["estimates"].shape == names["expected_errors"].shape == names["below"].shape == (10, 4)


def test_examples_are_short_and_compile():
    for path in (ROOT / "examples").glob("*.py"):
        compile(path.read_text(), path, "exec")
    assert len((ROOT / "examples" / "tutorial.py").read_text().splitlines()) < 60


def test_links_in_the_documentation_lead_somewhere():
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_make_targets_in_the_documentation_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        for arguments in re.findall(r"^make ([^#\n]+)", (ROOT / document).read_text(), re.MULTILINE):
            called = [word for word in arguments.split() if not word.startswith("-")]
            assert called
            assert set(called) <= targets, f"{document} calls make {arguments}"
