"""Rounding errors of contenders against the reference in float64."""

import numpy as np
from contenders import Ours

from fastperm import DeepSet

ROUNDING = 2.0**-24  # largest relative error of one rounding to float32


def evaluate(contender, x, targets):
    """Return prediction, loss and gradients as one dict of NumPy arrays."""
    prediction, loss, gradients = contender.evaluate(*contender.batch(x, targets))
    assert {array.dtype for array in (prediction, *gradients.values())} == {x.dtype}
    return {"prediction": prediction, "loss": np.asarray(loss), **gradients}


def relative_error(value, expected):
    """Return |value - expected| / |expected| in the Euclidean norm (absolute where everything should be zero).

    A norm and not the worst entry: single entries may vanish by cancellation, where relative errors mean nothing.
    """
    assert value.shape == expected.shape
    difference = np.linalg.norm(value.astype(np.float64) - expected)
    return float(difference / (np.linalg.norm(expected) or 1.0))


def median_errors(case, draws, ways):
    """Return the errors of prediction, loss and every gradient: for each way, the median over the draws.

    The median, because a unit whose input is zero up to rounding may be on in one computation and off in the other.
    The gradient then jumps by a whole term, a hundred times the rounding error: that happens to everyone, in some
    draws, and says nothing about sums.

    Parameters
    ----------
    case : contenders.Case
        The network and the batch, in float32.
    draws : iterable of int
        Seeds of parameters and data.
    ways : dict of str to callable
        Each makes a contender of a case.
    """
    found = {way: [] for way in ways}
    for seed in draws:
        drawn = case._replace(seed=seed)
        x, targets = drawn.sample()
        start = drawn.network()
        exact = DeepSet(**start.config() | {"dtype": "float64"}, backend="reference")
        exact.parameters.update(start.parameters)
        expected = evaluate(Ours(exact), x.astype(np.float64), targets.astype(np.float64))
        for way, make in ways.items():
            values = evaluate(make(drawn), x, targets)
            found[way].append([relative_error(values[what], expected[what]) for what in expected])
    return {way: dict(zip(expected, np.median(errors, axis=0).tolist(), strict=True)) for way, errors in found.items()}


def worse(ours, theirs):
    """Return in words which of our median errors are more than twice theirs.

    Below the error of a single rounding of the exact result there is nothing to be better or worse at.
    """
    return [
        f"{what} {error:.1e} against {theirs[what]:.1e}"
        for what, error in ours.items()
        if not error <= 2 * max(theirs[what], ROUNDING)
    ]
