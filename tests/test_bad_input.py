"""What a user can get wrong, and what they are told. Malformed sets: `test_sets`; damaged files: `test_checkpoints`."""

import numpy as np
import pytest

import fastperm

NET = fastperm.DeepSet(2, 4, 2, 3, seed=0, backend="cpu")
TASK = fastperm.PowerSpectrum(k_max=3, k_fin=3, set_size=5)
SETS, TARGETS = TASK.sample(4, 0)


def deep_set(**changes):
    return fastperm.DeepSet(**{"in_features": 2, "width": 4, "depth": 2, "out_features": 3, **changes})


def train(**changes):
    return fastperm.train(NET, **{"task": TASK, "steps": 1, "batch": 2, "progress": False, **changes})


def step(sets=SETS, targets=TARGETS):
    return fastperm.train_step(NET, sets, targets, fastperm.Adam())


CASES = [
    (lambda: deep_set(in_features=0), ValueError, "in_features must be at least 1, got 0"),
    (lambda: deep_set(in_features=2.5), TypeError, "in_features must be an integer, got 2.5"),
    (lambda: deep_set(out_features=-1), ValueError, "out_features must be at least 1, got -1"),
    (lambda: deep_set(depth=0), ValueError, "depth must be at least 1, got 0"),
    (lambda: deep_set(depth=True), TypeError, "depth must be an integer, got True"),
    (lambda: deep_set(width=0), ValueError, "width must be at least 1, got 0"),
    (lambda: deep_set(width="64"), TypeError, "width must be an integer, got '64'"),
    (lambda: deep_set(width=[4, 0]), ValueError, r"width\[1\] must be at least 1, got 0"),
    (lambda: deep_set(width=[4, 4, 4]), ValueError, r"one entry for each of the 2 layers, got \[4, 4, 4\]"),
    (lambda: deep_set(aggregate="median"), ValueError, "aggregate must be one of 'mean', 'sum', 'max', got 'median'"),
    (lambda: deep_set(pool="mode"), ValueError, "pool must be one of 'mean', 'sum', 'max', None, got 'mode'"),
    (lambda: deep_set(dtype="float16"), ValueError, "dtype must be float32 or float64, got 'float16'"),
    (lambda: deep_set(dtype=None), ValueError, "dtype must be float32 or float64, got None"),
    (lambda: deep_set(aggregate=np.array(["mean", "sum"])), ValueError, "aggregate must be one of .* got array"),
    (lambda: deep_set(pool=["mean"]), ValueError, r"pool must be one of .* got \['mean'\]"),
    (lambda: deep_set(dtype="floaty"), ValueError, "dtype must be float32 or float64, got 'floaty'"),
    (
        lambda: deep_set(backend="gpu"),
        ValueError,
        "backend must be one of 'auto', 'reference', 'cpu', 'cuda', got 'gpu'",
    ),
    (lambda: NET.to("tpu"), ValueError, "backend must be one of .* got 'tpu'"),
    (lambda: NET(np.ones((3, 5, 4))), ValueError, "expected .*2 features.*4"),
    (lambda: NET(np.ones((5, 2))), ValueError, r"x\[None\]"),
    (lambda: NET([np.ones((5, 2)), np.ones((5, 3))]), ValueError, "set 1.*"),
    (lambda: NET([np.ones((5, 2)), np.ones((0, 2))]), ValueError, "set 1.*no elements"),
    (lambda: NET(np.full((2, 3, 2), np.nan)), ValueError, "set 0.*nan"),
    (lambda: NET(np.full((2, 3, 2), 1e60)), ValueError, "set 0.*float32"),
    (lambda: NET("sets"), TypeError, "must be real numbers, float32 or float64, got dtype <U4"),
    (lambda: NET(None), TypeError, "must be real numbers, float32 or float64, got dtype object"),
    (
        lambda: NET.backward(np.ones((4, 2)), NET.forward(SETS)[1]),
        ValueError,
        r"dy must have shape \(4, 3\) \(as the prediction\), got \(4, 2\)",
    ),
    (lambda: NET.backward(TARGETS + 0j, NET.forward(SETS)[1]), TypeError, "dy must be real numbers, .* complex128"),
    (
        lambda: step(targets=TARGETS[:3]),
        ValueError,
        r"targets must have shape \(4, 3\) \(as the prediction\), got \(3, 3\)",
    ),
    (lambda: step(targets=TARGETS[:, 0]), ValueError, r"got \(4,\)"),
    (lambda: step(targets="high"), TypeError, "targets must be real numbers, .* got dtype <U4"),
    (lambda: step(targets=TARGETS.astype(str)), TypeError, "targets must be real numbers, .* got dtype <U"),
    (lambda: step(targets=TARGETS + 0j), TypeError, "targets must be real numbers, .* got dtype complex128"),
    (lambda: step(targets=np.ma.masked_less(TARGETS, 0)), TypeError, "targets is a masked array, whose mask"),
    (lambda: NET([[np.ma.masked_less(np.zeros(2), 1)]]), TypeError, "set 0 holds a masked array, whose mask would be"),
    (lambda: NET([np.ma.masked_less(np.zeros((3, 2)), 1)]), TypeError, "set 0 is a masked array, whose mask would be"),
    (lambda: step(targets=[[1.0, 2.0], [3.0]]), ValueError, "targets: expected an array of numbers, got rows"),
    (lambda: step(targets=TARGETS * np.nan), FloatingPointError, "the loss is nan"),
    (lambda: step(targets=TARGETS + 1e300), FloatingPointError, "the loss is inf"),
    (lambda: train(steps=-1), ValueError, "steps must be at least 0, got -1"),
    (lambda: train(steps=1.0), TypeError, "steps must be an integer, got 1.0"),
    (lambda: train(batch=0), ValueError, "batch must be at least 1, got 0"),
    (lambda: train(every=0), ValueError, "every must be at least 1, got 0"),
    (lambda: train(seed="0"), TypeError, "seed must be an integer, got '0'"),
    (lambda: train(task=None), TypeError, r"task must have a method sample\(batch, generator\), got None"),
    (lambda: train(validate=0), ValueError, "validate must be at least 1, got 0"),
    (lambda: train(validate=(SETS, TARGETS[:1])), ValueError, "targets must have shape"),
    (lambda: fastperm.set_num_threads(0), ValueError, "threads must be at least 1, got 0"),
    (lambda: fastperm.set_num_threads(2.0), TypeError, "threads must be an integer, got 2.0"),
    (lambda: fastperm.Adam(learning_rate=-1), ValueError, "learning_rate must be at least 0, got -1"),
    (lambda: fastperm.Adam(learning_rate="fast"), TypeError, "learning_rate must be a number, got 'fast'"),
    (lambda: fastperm.Adam(beta1=1), ValueError, "beta1 must be less than 1, got 1"),
    (lambda: fastperm.Adam(beta2=-0.1), ValueError, "beta2 must be at least 0, got -0.1"),
    (lambda: fastperm.Adam(epsilon=np.inf), ValueError, "epsilon must be finite, got inf"),
]


@pytest.mark.parametrize(("call", "kind", "message"), CASES, ids=[case[2][:50] for case in CASES])
def test_bad_input_is_told_what_was_expected(call, kind, message):
    before = NET.parameters.flat.copy()
    with pytest.raises(kind, match=message):
        call()
    np.testing.assert_array_equal(NET.parameters.flat, before)
