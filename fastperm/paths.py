"""Which way a batch takes through the kernels of a network."""

from typing import NamedTuple

from fastperm.steps import why_one_by_one


class Path(NamedTuple):
    """The way that some sets of a batch take."""

    name: str  # such as "set-resident"
    sets: tuple  # their indices
    why: str


class Explanation(NamedTuple):
    """What `explain` returns; printed, it is a text."""

    backend: str
    paths: tuple  # of Path
    steps: str | None = None  # how training steps are launched on a GPU

    def __str__(self):
        lines = [f"backend {self.backend}"]
        for path in self.paths:
            count = len(path.sets)
            lines.append(f"  {path.name}: {count:,} {'set' if count == 1 else 'sets'}, {path.why}")
        return "\n".join(lines if self.steps is None else [*lines, f"  training steps: {self.steps}"])


def explain(net, sets):
    """Return which way a batch takes through the kernels of a network, and why.

    Parameters
    ----------
    net : DeepSet
        The network.
    sets : Sets or array-like
        The batch.

    Returns
    -------
    Explanation
        The backend and, for every path that is taken, its name, the sets that take it, and why. The tables of what
        decides are in the files ``paths.py`` of the backends. On the cuda backend also whether training steps on such a
        batch can become CUDA graphs.

    Raises
    ------
    ValueError, TypeError
        If the sets are malformed or of another width.

    Examples
    --------
    >>> import numpy as np, fastperm
    >>> net = fastperm.DeepSet(in_features=2, width=64, depth=2, out_features=4, backend="cpu")
    >>> [(path.name, path.sets) for path in fastperm.explain(net, [np.zeros((20000, 2)), np.zeros((3, 2))]).paths]
    [('set-resident', (1,)), ('chunked', (0,))]
    """
    sets = net.as_sets(sets)
    found = net.kernels.paths(sets.offsets, *net._whole()[1:], **net._settings())
    paths = tuple(Path(name, tuple(own.tolist()), why) for name, own, why in found)
    return Explanation(net.backend, paths, _steps(net, sets) if net.backend == "cuda" else None)


def _steps(net, sets):
    reason = why_one_by_one(net, sets.n_elements)
    if reason is not None:
        return f"one by one: {reason}"
    return "CUDA graphs, for a batch that lies on the GPU where one lay before"
