"""A run on disk: a folder with the settings, the state of training, the model and pictures."""

import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import fastperm
from fastperm.backend import BACKENDS
from fastperm.checks import check_choice, check_integer
from fastperm.files import replacing
from fastperm.network import PRECISIONS
from fastperm.training import SCHEDULES

_FORMAT, _FORMAT_VERSION = "fastperm run", 1
_PACKAGES = ("numpy", "scipy", "numba", "safetensors")

# What every run.json has. Settings that came later (invariance, epsilon) take their defaults where they are absent.
_SETTINGS = {
    "task": ("k_max", "k_fin", "set_size", "power_law", "amplitudes", "positions", "noise", "output", "dtype"),
    "network": ("in_features", "width", "depth", "out_features", "aggregate", "pool", "dtype"),
    "training": ("steps", "batch", "learning_rate", "beta1", "beta2", "seed", "every", "validate"),
}


class Run:
    """The folder of a run and the names in it.

    Parameters
    ----------
    folder : str or path-like
        The folder, which need not be there.

    Attributes
    ----------
    settings, checkpoint, history, model : pathlib.Path
        ``run.json``, ``checkpoint.safetensors``, ``history.csv``, ``model.safetensors``.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.settings = self.folder / "run.json"
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.history = self.folder / "history.csv"
        self.model = self.folder / "model.safetensors"

    @classmethod
    def open(cls, path):
        """Return the finished run at ``path``, a run's folder or the model file in it.

        Raises
        ------
        FileNotFoundError
            If it is not there, or a part of it is missing; the message says which.
        """
        path = Path(path)
        run = cls(path.parent if path.name == "model.safetensors" else path)
        if not run.folder.exists():
            raise FileNotFoundError(f"there is no run at {run.folder}; `fastperm train --out {run.folder}` makes one")
        if not run.folder.is_dir():
            raise FileNotFoundError(f"{run.folder} is not a run: expected a folder that `fastperm train` wrote")
        if not run.settings.exists():
            raise FileNotFoundError(f"{run.folder} is not a run: {run.settings.name} is missing")
        if not run.model.exists():
            hint = f"; finish its training with `fastperm train --out {run.folder} --resume`"
            raise FileNotFoundError(
                f"{run.folder} has no {run.model.name}{hint if run.checkpoint.exists() else ' (was it moved away?)'}"
            )
        return run

    def read(self):
        """Return the settings that `write` wrote, checked and complete.

        Raises
        ------
        ValueError
            If the file is damaged or of another program; the message says what is missing or wrong in it.
        """
        try:
            settings = json.loads(self.settings.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.settings} is damaged: {error}") from error
        if not isinstance(settings, dict) or settings.get("format") != _FORMAT:
            raise ValueError(f"{self.settings} was not written by `fastperm train`")
        if settings.get("format_version") != _FORMAT_VERSION:
            version = settings.get("format_version")
            raise ValueError(f"{self.settings} has format version {version}, this fastperm reads {_FORMAT_VERSION}")
        if missing := [part for part in _SETTINGS if not isinstance(settings.get(part), dict)]:
            raise ValueError(f"{self.settings} is damaged: it has no {', '.join(missing)}")
        for part, names in _SETTINGS.items():
            if missing := [name for name in names if name not in settings[part]]:
                raise ValueError(f"{self.settings} is damaged: its {part} has no {', '.join(missing)}")
            try:
                settings[part] = _COMPLETE[part](settings[part])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.settings} is damaged: its {part} is unusable: {error}") from error
        try:
            check_choice(settings.setdefault("backend", "auto"), "backend", ("auto", *BACKENDS))
            check_choice(settings.setdefault("precision", "float32"), "precision", PRECISIONS)
        except ValueError as error:
            raise ValueError(f"{self.settings} is damaged: {error}") from error
        return settings

    def write(self, task, net, training, *, started=None):
        """Write the settings.

        Parameters
        ----------
        task : PowerSpectrum
            The task.
        net : DeepSet
            The network.
        training : dict
            How it is trained; JSON-able.
        started : str or None, default None
            When the run began, if not now.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        settings = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "started": started or now,
            "written": now,
            "task": task.config(),
            "network": net.config(),
            "training": training,
            "backend": net.backend,
            "precision": net.precision,
            **versions(),
        }
        with replacing(self.settings) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def load(self, backend, precision="float32"):
        """Return the task and the network.

        Parameters
        ----------
        backend : str
            Kernels for the network.
        precision : str, default "float32"
            That of the network; others are for the cuda backend.

        Returns
        -------
        task : PowerSpectrum
        net : DeepSet

        Raises
        ------
        ValueError
            If a file is damaged or the two do not belong together, or the backend does not have this precision.
        """
        task = fastperm.PowerSpectrum.from_config(self.read()["task"], backend=backend)
        net = fastperm.load(self.model, backend)
        if precision != net.precision:
            net = net.to(net.backend, precision)
        if (net.in_features, net.out_features) != (task.in_features, task.out_features) or net.pool is None:
            raise ValueError(
                f"{self.model} and {self.settings} do not belong together: the network gives {net.out_features} "
                f"numbers, the task has {task.out_features} frequencies"
            )
        return task, net


def check_output(scale, output):
    """Refuse a network of this ``scale`` for a task of this ``output``, if it would not mean anything."""
    if scale is not None and output != "log":
        raise ValueError(
            f"scale={scale!r} adds the logarithm of a scale to estimates, which is right for log p_k alone, got "
            f"output={output!r}"
        )


def versions():
    """Return the ``versions`` of what computes, and its ``platform``."""
    return {
        "versions": {
            "fastperm": fastperm.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "platform": platform.platform(),
    }


def _complete_task(config):
    return fastperm.PowerSpectrum.from_config(config).config()


def _complete_network(config):
    if not isinstance(config["width"], list):
        raise TypeError(f"width must be a list, got {config['width']!r}")
    return fastperm.DeepSet(**config, backend="reference", seed=0).config()


def _complete_training(training):
    names = ("learning_rate", "beta1", "beta2", "epsilon")
    optimizer = fastperm.Adam(**{name: training[name] for name in names if name in training})
    minima = {"steps": 1, "batch": 1, "seed": 0, "every": 1, "validate": 0}
    schedule = check_choice(training.get("schedule", SCHEDULES[0]), "schedule", SCHEDULES)
    numbers = {name: check_integer(training[name], name, minimum=m) for name, m in minima.items()}
    return {**optimizer.config(), "schedule": schedule, **numbers}


_COMPLETE = {"task": _complete_task, "network": _complete_network, "training": _complete_training}
