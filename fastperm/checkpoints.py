"""Networks and training states on disk: safetensors, no pickle, written whole or not at all."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import fastperm
from fastperm import backend as backends
from fastperm.adam import Adam
from fastperm.checks import DTYPES
from fastperm.files import replacing
from fastperm.kernels.arrays import on_host
from fastperm.network import DeepSet

_NETWORK, _CHECKPOINT = "fastperm network", "fastperm checkpoint"
_FORMAT_VERSION = 1

# The columns of a history.
COLUMNS = ("step", "loss", "validation_loss", "seconds")


def save_network(net, path):
    """Write a network to ``path``.

    Parameters
    ----------
    net : DeepSet
        The network.
    path : str or path-like
        Where to; a file that is there is replaced once the new one is complete.
    """
    _write(path, _NETWORK, {"network": net.config()}, dict(net.parameters))


def load(path, backend="auto"):
    """Read a network that `DeepSet.save` wrote, or that of a checkpoint of `fastperm.train`.

    Parameters
    ----------
    path : str or path-like
        The file.
    backend : {"auto", "reference", "cpu", "cuda"}, default="auto"
        Kernels to use; any backend reads what any other wrote.

    Returns
    -------
    DeepSet
        The same parameters, to the bit.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or neither a fastperm network nor a checkpoint.
    TypeError
        If the backend does not compute in the dtype of the network.
    """
    kind, header, arrays = _read(path, _NETWORK, _CHECKPOINT)
    backend = backends.resolve(backend, _dtype(header))
    return _network(path, kind, header, arrays if kind == _NETWORK else _part("network", arrays), backend)


def save_checkpoint(path, net, optimizer, history, settings):
    """Write everything that training needs to go on as if it had never stopped.

    Parameters
    ----------
    path : str or path-like
        The file.
    net : DeepSet
        The network.
    optimizer : Adam
        The optimiser, with its moments.
    history : dict of str to list of float
        The history so far, its `COLUMNS` with one entry per step.
    settings : dict
        JSON-able values that a run which goes on must agree with.
    """
    arrays = {f"network.{name}": array for name, array in net.parameters.items()}
    arrays |= {f"optimizer.{name}": array for name, array in optimizer.state().items()}
    arrays |= {f"history.{name}": np.asarray(values, dtype=np.float64) for name, values in history.items()}
    header = {"network": net.config(), "optimizer": optimizer.config(), "settings": settings}
    _write(path, _CHECKPOINT, header, arrays)


def load_checkpoint(path, backend="auto"):
    """Read what `save_checkpoint` wrote.

    Returns
    -------
    net : DeepSet
        The network.
    optimizer : Adam
        The optimiser.
    history : dict of str to list of float
        The history.
    settings : dict
        The settings.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, not a fastperm checkpoint, or its parts do not fit each other.
    """
    _, header, arrays = _read(path, _CHECKPOINT)
    backend = backends.resolve(backend, _dtype(header))
    parts = {part: _part(part, arrays) for part in ("network", "optimizer", "history")}
    net = _network(path, _CHECKPOINT, header, parts["network"], backend)
    try:
        optimizer = Adam(**header["optimizer"])
        settings = header["settings"]
        if not isinstance(settings, dict):
            raise TypeError(f"settings must be a dict, got {settings!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(path, _CHECKPOINT, f"its header is incomplete ({error!r})") from error
    why = _history_flaw(parts["history"]) or _state_flaw(net, parts["optimizer"], len(parts["history"]["step"]))
    if why is not None:
        raise _not_ours(path, _CHECKPOINT, why)
    try:
        optimizer.load_state(parts["optimizer"])
    except ValueError as error:
        raise _not_ours(path, _CHECKPOINT, str(error)) from error
    return net, optimizer, {name: parts["history"][name].tolist() for name in COLUMNS}, settings


def _part(part, arrays):
    """Return the arrays of one part of a checkpoint."""
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}


def _history_flaw(history):
    """Return what is wrong with the columns of a history, or None."""
    if different := sorted(history.keys() ^ set(COLUMNS)):
        return f"the columns of its history are not {', '.join(COLUMNS)}; they differ in {', '.join(different)}"
    n = history["step"].size
    for name, values in history.items():
        if values.shape != (n,) or values.dtype != np.float64:
            return f"{name} in its history is {values.dtype} of shape {values.shape}, not float64 of shape ({n},)"
    if not np.array_equal(history["step"], np.arange(1, n + 1)):
        return f"the steps in its history are not 1 ... {n}"
    # The validation loss is NaN where it was not measured.
    for name in ("loss", "seconds"):
        if not np.isfinite(history[name]).all():
            return f"{name} in its history is not finite"
    return None


def _state_flaw(net, state, steps):
    """Return what is wrong with parameters and moments after so many steps, or None."""
    if not np.isfinite(net.parameters.flat).all():
        return "a parameter is not finite"
    taken = state.get("steps")
    if taken is None or taken.shape != () or taken.dtype.kind != "i" or taken != steps:
        return f"its optimiser has taken {taken} steps, its history has {steps}"
    moments = {name: array for name, array in state.items() if name != "steps"}
    wanted = {f"{moment}.{name}": array for moment in ("first", "second") for name, array in net.parameters.items()}
    if steps == 0:
        wanted = {}
    if different := sorted(moments.keys() ^ wanted.keys()):
        return f"the moments of its optimiser do not fit its parameters: {', '.join(different)}"
    for name, array in moments.items():
        if (why := _unlike(array, wanted[name])) is not None:
            return f"the moment {name} is {why}"
    return None


def _write(path, kind, header, arrays):
    metadata = {
        "format": kind,
        "format_version": str(_FORMAT_VERSION),
        "fastperm_version": fastperm.__version__,
        "header": json.dumps(header, sort_keys=True),
    }
    tensors = {name: np.asarray(on_host(array), order="C") for name, array in arrays.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error
        _sort_metadata(temporary)


def _sort_metadata(path):
    """Put the metadata of a safetensors file in order: what is equal shall be equal to the bit."""
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


def _read(path, *kinds):
    path, wanted = Path(path), " or ".join(kinds)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"expected a {wanted} at {path}, which {found}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise _not_ours(path, wanted, f"it is damaged, or no safetensors file ({error})") from error
    kind = metadata.get("format", "that of another program")
    if kind not in kinds:
        raise _not_ours(path, wanted, f"its format is {kind!r}")
    if metadata.get("format_version") != str(_FORMAT_VERSION):
        version = metadata.get("format_version")
        raise _not_ours(path, kind, f"its format version is {version}, this fastperm reads {_FORMAT_VERSION}")
    try:
        header = json.loads(metadata["header"])
    except (KeyError, ValueError) as error:
        raise _not_ours(path, kind, f"its header cannot be read ({error!r})") from error
    return kind, header, arrays


def _dtype(header):
    """Return the dtype of the network, which not every backend computes in; None if the header does not say."""
    config = header.get("network") if isinstance(header, dict) else None
    dtype = config.get("dtype") if isinstance(config, dict) else None
    return dtype if dtype in DTYPES else None


def _network(path, kind, header, parameters, backend):
    try:
        net = DeepSet(**header["network"], backend=backend, seed=0)
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(path, kind, f"its configuration makes no network ({error})") from error
    if parameters.keys() != net.parameters.keys():
        different = ", ".join(sorted(parameters.keys() ^ net.parameters.keys()))
        raise _not_ours(path, kind, f"its parameters do not fit its configuration: {different}")
    for name, array in parameters.items():
        if (why := _unlike(array, net.parameters[name])) is not None:
            raise _not_ours(path, kind, f"{name} is {why}")
    net.parameters.update(parameters)
    return net


def _unlike(array, wanted):
    """Return how shape or dtype of an array differ from those wanted, or None."""
    if array.shape == wanted.shape and array.dtype == wanted.dtype:
        return None
    return f"{array.dtype} of shape {array.shape}, not {wanted.dtype} of shape {wanted.shape}"


def _not_ours(path, kind, why):
    return ValueError(f"{path} is not a {kind}: {why}")
