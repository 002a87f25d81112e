"""The shape of the house: backends are twins, imports point down, and importing fastperm costs little."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fastperm
from fastperm import backend

PACKAGE = Path(fastperm.__file__).parent
KERNELS = Path(import_module("fastperm.kernels").__file__).parent
TWINS = ("cpu", "cuda")

# Floors of the house; an import may point to its own floor or further down.
FLOORS = (
    ("kernels",),
    ("backend", "checks", "files", "gpu", "parameters", "sets", "streams", "symmetries", "threads"),
    ("layers", "losses", "adam"),
    ("network", "steps", "training", "checkpoints", "history", "paths"),
    ("power_spectrum", "optimum", "baselines", "estimation", "figures", "runs"),
    ("executors", "sweeps", "paper", "paper_figures"),
    ("cli", "__main__"),
)
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}


def module_names(folder):
    return {path.stem for path in folder.glob("*.py")} - {"__init__"}


def imported_modules(path):
    """Return the fastperm modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("fastperm.")}


@pytest.mark.parametrize(
    "path", [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_imports_point_down(path):
    if path == PACKAGE / "__init__.py":
        return  # the front door: it names everything, and imports it on first use only
    own = "kernels" if KERNELS in path.parents else path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in FLOOR, f"{path} stands on no floor"
    for name in imported_modules(path) & FLOOR.keys():
        if own == "network" and name == "checkpoints":
            continue  # DeepSet.save is a door to the same floor
        assert FLOOR[name] <= FLOOR[own], f"{path} imports fastperm.{name}, which stands above it"


# What only this backend knows, at the end and by default.
OF_CUDA = dict.fromkeys(("deep_set_forward", "deep_set_step", "paths"), ("precision='float32'",)) | {
    "adam_step": ("loss=None", "rates=None")
}


@pytest.mark.parametrize("twin", TWINS)
def test_backends_have_the_same_names_and_signatures(twin):
    # Not through backend.get: this needs no GPU.
    reference, other = backend.get("reference"), import_module(f"fastperm.kernels.{twin}")
    for own, lacks, name in ((reference, other, twin), (other, reference, "reference")):
        missing = set(own.__all__) - set(lacks.__all__)
        assert not missing, f"__all__ of kernels/{name}/__init__.py lacks {', '.join(sorted(missing))}"
    for name in set(reference.__all__) - {"xp"}:
        wanted, found = (list(inspect.signature(getattr(own, name)).parameters.values()) for own in (reference, other))
        own = OF_CUDA.get(name, ()) if twin == "cuda" else ()
        assert list(map(str, found)) == [*map(str, wanted), *own], name


def test_one_module_imports_numba_cuda():
    importing = [path.name for path in (KERNELS / "cuda").glob("*.py") if "numba import cuda" in path.read_text()]
    assert importing == ["compiling.py"]


def test_importing_the_cuda_kernels_touches_neither_cupy_nor_a_driver():
    script = "import sys, fastperm.kernels.cuda; print('cupy' in sys.modules)"
    assert run_python(script) == "False"


@pytest.mark.parametrize("twin", TWINS)
def test_every_reference_kernel_has_a_twin_a_test_and_the_same_file_name(twin):
    kernels = module_names(KERNELS / "reference")
    assert kernels <= module_names(KERNELS / twin)
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert kernels <= tests


def test_every_module_of_the_checkout_can_be_imported():
    """From a wheel as well, which may have forgotten a package (`make wheel-test`)."""
    root = Path(__file__).parents[1]
    for path in (*root.glob("fastperm/**/*.py"), *root.glob("kernels/**/*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        import_module(f"fastperm.{name}" if parts[0] == "kernels" else name)


def test_kernels_refuse_any_other_name():
    script = f"import sys; sys.path.insert(0, {str(KERNELS.parent)!r}); import {KERNELS.name}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/", check=False)
    assert result.returncode == 1
    assert "ImportError: this package is fastperm.kernels" in result.stderr


def run_python(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_import_loads_nothing_heavy():
    script = "import sys, fastperm; print(sorted({n.split('.')[0] for n in sys.modules} & set(%r)))"
    heavy = ["numba", "cupy", "scipy", "matplotlib", "torch", "jax", "safetensors", "click", "tqdm"]
    assert run_python(script % heavy) == "[]"


def test_every_public_name_is_there_and_listed():
    for name in fastperm.__all__:
        assert getattr(fastperm, name) is not None
        assert name in dir(fastperm)
    with pytest.raises(AttributeError, match="module 'fastperm' has no attribute 'DeepSets'"):
        fastperm.DeepSets  # noqa: B018
