"""Networks and training states on disk: safetensors, no pickle, written whole or not at all."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import fastperm
from fastperm.adam import Adam
from fastperm.files import replacing
from fastperm.network import DeepSet

_NETWORK, _CHECKPOINT = "fastperm network", "fastperm checkpoint"
_FORMAT_VERSION = 1


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
    """Read a network that `DeepSet.save` wrote.

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
        If the file is damaged, or not a fastperm network.
    """
    header, arrays = _read(path, _NETWORK)
    return _network(path, header, arrays, backend)


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
        The history so far, one entry per step.
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
    FileNotFoundError, ValueError
        As in `load`.
    """
    header, arrays = _read(path, _CHECKPOINT)
    parts = {
        part: {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}
        for part in ("network", "optimizer", "history")
    }
    net = _network(path, header, parts["network"], backend)
    try:
        optimizer = Adam(**header["optimizer"])
        optimizer.load_state(parts["optimizer"])
        settings = header["settings"]
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(path, _CHECKPOINT, f"its header or its optimiser is incomplete ({error!r})") from error
    return net, optimizer, {name: values.tolist() for name, values in parts["history"].items()}, settings


def _write(path, kind, header, arrays):
    metadata = {
        "format": kind,
        "format_version": str(_FORMAT_VERSION),
        "fastperm_version": fastperm.__version__,
        "header": json.dumps(header, sort_keys=True),
    }
    with replacing(path) as temporary:
        save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, temporary, metadata=metadata)


def _read(path, kind):
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"expected a {kind} at {path}, which {found}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise _not_ours(path, kind, f"it is damaged, or no safetensors file ({error})") from error
    if metadata.get("format") != kind:
        raise _not_ours(path, kind, f"its format is {metadata.get('format', 'that of another program')!r}")
    if metadata.get("format_version") != str(_FORMAT_VERSION):
        version = metadata.get("format_version")
        raise _not_ours(path, kind, f"its format version is {version}, this fastperm reads {_FORMAT_VERSION}")
    try:
        header = json.loads(metadata["header"])
    except (KeyError, ValueError) as error:
        raise _not_ours(path, kind, f"its header cannot be read ({error!r})") from error
    return header, arrays


def _network(path, header, parameters, backend):
    try:
        net = DeepSet(**header["network"], backend=backend, seed=0)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and "backend" in str(error):
            raise
        raise _not_ours(path, _NETWORK, f"its configuration makes no network ({error})") from error
    if parameters.keys() != net.parameters.keys():
        different = ", ".join(sorted(parameters.keys() ^ net.parameters.keys()))
        raise _not_ours(path, _NETWORK, f"its parameters do not fit its configuration: {different}")
    for name, array in parameters.items():
        if array.shape != net.parameters[name].shape or array.dtype != net.dtype:
            wanted = net.parameters[name]
            raise _not_ours(
                path,
                _NETWORK,
                f"{name} is {array.dtype} of shape {array.shape}, not {wanted.dtype} of shape {wanted.shape}",
            )
    net.parameters.update(parameters)
    return net


def _not_ours(path, kind, why):
    return ValueError(f"{path} is not a {kind}: {why}")
