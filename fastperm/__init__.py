"""Neural networks on sets, differentiated and fused by hand."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Where each public name lives; it is imported on first use, so that `import fastperm` does not load Numba.
_HOMES = {
    "Adam": "adam",
    "DeepSet": "network",
    "PowerSpectrum": "power_spectrum",
    "Sets": "sets",
    "SpectrumPosterior": "optimum",
    "explain": "paths",
    "get_num_threads": "threads",
    "load": "checkpoints",
    "set_num_threads": "threads",
    "spectrum_posterior": "optimum",
    "train": "training",
    "train_step": "steps",
}

__all__ = [
    "Adam",
    "DeepSet",
    "PowerSpectrum",
    "Sets",
    "SpectrumPosterior",
    "__version__",
    "explain",
    "get_num_threads",
    "load",
    "set_num_threads",
    "spectrum_posterior",
    "train",
    "train_step",
]

if TYPE_CHECKING:
    from fastperm.adam import Adam
    from fastperm.checkpoints import load
    from fastperm.network import DeepSet
    from fastperm.optimum import SpectrumPosterior, spectrum_posterior
    from fastperm.paths import explain
    from fastperm.power_spectrum import PowerSpectrum
    from fastperm.sets import Sets
    from fastperm.steps import train_step
    from fastperm.threads import get_num_threads, set_num_threads
    from fastperm.training import train


def __getattr__(name):
    if name in _HOMES:
        value = getattr(import_module(f"fastperm.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastperm' has no attribute {name!r}")


def __dir__():
    return sorted(set(globals()) | set(__all__))
