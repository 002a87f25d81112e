import json
import os
import stat

import numpy as np
import pytest
from cases import BACKENDS
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import fastperm
from fastperm import checkpoints
from fastperm.checkpoints import load_checkpoint, save_checkpoint


@pytest.fixture
def saved(tmp_path):
    net = fastperm.DeepSet(2, [5, 7], 2, 3, aggregate="max", pool="sum", dtype="float64", seed=0)
    net.save(tmp_path / "net.safetensors")
    return net, tmp_path / "net.safetensors"


@pytest.mark.parametrize("backend", BACKENDS)
def test_round_trip_is_bitwise_on_any_backend(saved, backend):
    net, path = saved
    loaded = fastperm.load(path, backend=backend)
    assert loaded.config() == net.config()
    assert loaded.backend == backend
    np.testing.assert_array_equal(loaded.parameters.flat, net.parameters.flat)


def test_the_file_is_plain_safetensors(saved):
    net, path = saved
    arrays = load_file(path)
    assert arrays.keys() == net.parameters.keys()


def test_saving_replaces_and_leaves_nothing_else(saved):
    net, path = saved
    net.parameters["head.bias"] = 3
    net.save(path)
    assert fastperm.load(path).parameters["head.bias"][0] == 3
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    net, path = saved
    content = path.read_bytes()

    def fail(arrays, name, metadata):
        name.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr("fastperm.checkpoints.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        net.save(path)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def rewrite(path, change_arrays=lambda a: a, **metadata):
    """Write the file again with other arrays or metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        old = file.metadata()
    save_file(change_arrays(load_file(path)), path, metadata={**old, **metadata})


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip_header(path):
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)


def without(name):
    return lambda arrays: {n: a for n, a in arrays.items() if n != name}


DAMAGE = {
    "truncated": (truncate, "is not a fastperm network or fastperm checkpoint: it is damaged"),
    "header bytes": (flip_header, "is not a fastperm network or fastperm checkpoint: it is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "it is damaged, or no safetensors file"),
    "text": (lambda path: path.write_text("x,y\n1,2\n" * 10), "it is damaged, or no safetensors file"),
    "foreign": (lambda path: save_file({"w": np.ones(3)}, path), "its format is 'that of another program'"),
    "newer": (lambda path: rewrite(path, format_version="9"), "its format version is 9, this fastperm reads 1"),
    "no configuration": (lambda path: rewrite(path, header="{}"), "its configuration makes no network"),
    "bad configuration": (
        lambda path: rewrite(path, header=json.dumps({"network": {"in_features": 0}})),
        "its configuration makes no network",
    ),
    "header not json": (lambda path: rewrite(path, header="{"), "its header cannot be read"),
    "missing parameter": (lambda path: rewrite(path, without("head.bias")), "do not fit its configuration: head.bias"),
    "wrong shape": (
        lambda path: rewrite(path, lambda a: {**a, "head.bias": np.ones(9)}),
        r"head.bias is float64 of shape \(9,\), not float64 of shape \(3,\)",
    ),
    "wrong dtype": (
        lambda path: rewrite(path, lambda a: {**a, "head.bias": np.ones(3, np.float32)}),
        "head.bias is float32",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_and_foreign_files_are_clear_errors(saved, damage):
    _, path = saved
    spoil, message = DAMAGE[damage]
    spoil(path)
    with pytest.raises(ValueError, match=message) as caught:
        fastperm.load(path)
    assert str(path) in str(caught.value)


def test_missing_files_say_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"network or fastperm checkpoint at .*nothing.*does not exist"):
        fastperm.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="which is a folder"):
        fastperm.load(tmp_path)


def test_a_network_is_no_checkpoint_but_a_checkpoint_has_one(saved, tmp_path):
    net, path = saved
    with pytest.raises(ValueError, match="is not a fastperm checkpoint: its format is 'fastperm network'"):
        load_checkpoint(path)
    save_checkpoint(tmp_path / "state.safetensors", net, fastperm.Adam(), {"step": []}, {})
    loaded = fastperm.load(tmp_path / "state.safetensors", backend="reference")
    assert loaded.config() == net.config()
    np.testing.assert_array_equal(loaded.parameters.flat, net.parameters.flat)


@pytest.fixture
def state(tmp_path):
    """A checkpoint after two steps."""
    task = fastperm.PowerSpectrum(k_max=2, k_fin=2, set_size=5)
    net = fastperm.DeepSet(2, 3, 1, 2, dtype="float64", backend="reference", seed=0)
    path = tmp_path / "state.safetensors"
    fastperm.train(net, task, steps=2, batch=2, validate=None, progress=False, checkpoint=path)
    return path


def change(name, spoil):
    return lambda arrays: {n: np.asarray(spoil(a)) if n == name else a for n, a in arrays.items()}


def header_with(path, **parts):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return json.dumps({**json.loads(file.metadata()["header"]), **parts})


BAD_STATES = {
    "no history": (
        lambda arrays: {n: a for n, a in arrays.items() if not n.startswith("history.")},
        "the columns of its history are not step, loss, validation_loss, seconds; they differ in loss, seconds, step",
    ),
    "no loss": (without("history.loss"), "the columns of its history .* differ in loss"),
    "short column": (
        change("history.seconds", lambda a: a[:1]),
        r"seconds in its history is float64 of shape \(1,\), not float64 of shape \(2,\)",
    ),
    "steps without shape": (change("history.step", lambda a: a[0].reshape(())), "in its history is float64 of"),
    "NaN steps": (change("history.step", lambda a: a * np.nan), r"the steps in its history are not 1 \.\.\. 2"),
    "other steps": (change("history.step", lambda a: a + 1), r"the steps in its history are not 1 \.\.\. 2"),
    "NaN loss": (change("history.loss", lambda a: a * np.nan), "loss in its history is not finite"),
    "NaN parameter": (change("network.head.bias", lambda a: a * np.nan), "a parameter is not finite"),
    "missing parameter": (without("network.head.bias"), "do not fit its configuration: head.bias"),
    "no steps": (without("optimizer.steps"), "its optimiser has taken None steps, its history has 2"),
    "steps of another run": (change("optimizer.steps", lambda a: a + 1), "has taken 3 steps, its history has 2"),
    "a list of steps": (change("optimizer.steps", lambda a: np.array([2, 2])), "its optimiser has taken"),
    "no moments": (
        lambda arrays: {n: a for n, a in arrays.items() if not n.startswith(("optimizer.first", "optimizer.second"))},
        "the moments of its optimiser do not fit its parameters: first.",
    ),
    "a moment missing": (without("optimizer.second.head.bias"), "do not fit its parameters: second.head.bias"),
    "a moment's shape": (change("optimizer.first.head.bias", lambda a: a[:1]), r"first.head.bias is float64 of shape"),
    "a moment's dtype": (
        change("optimizer.first.head.bias", lambda a: a.astype(np.float32)),
        "the moment first.head.bias is float32",
    ),
    "NaN moment": (change("optimizer.first.head.bias", lambda a: a * np.nan), "the moment first.head.bias is NaN"),
}


@pytest.mark.parametrize("damage", BAD_STATES)
def test_damaged_checkpoints_are_clear_errors(state, damage):
    spoil, message = BAD_STATES[damage]
    load_checkpoint(state)
    rewrite(state, spoil)
    with pytest.raises(ValueError, match=f"state.safetensors is not a fastperm checkpoint: .*{message}"):
        load_checkpoint(state)


@pytest.mark.parametrize("parts", [{"settings": None}, {"optimizer": None}, {"optimizer": {"beta1": 2}}])
def test_damaged_headers_of_checkpoints_are_clear_errors(state, parts):
    rewrite(state, header=header_with(state, **parts))
    with pytest.raises(ValueError, match="is not a fastperm checkpoint: its header is incomplete"):
        load_checkpoint(state)


def test_a_configuration_that_speaks_of_backends_is_a_bad_file(saved):
    _, path = saved
    rewrite(path, header=json.dumps({"network": {"in_features": 2, "aggregate": "backend"}}))
    with pytest.raises(ValueError, match="is not a fastperm network: its configuration makes no network"):
        fastperm.load(path)


def test_an_unknown_backend_is_not_taken_for_a_bad_file(saved):
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'reference', 'cpu', 'cuda', got 'gpu'"):
        fastperm.load(saved[1], backend="gpu")


def test_what_is_equal_is_written_to_the_same_bits(tmp_path):
    contents = set()
    for i in range(8):  # of four entries in an order by chance
        path = tmp_path / f"{i}.safetensors"
        fastperm.DeepSet(2, 5, 2, 3, seed=0).save(path)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    fastperm.DeepSet(2, 5, 2, 3, seed=1).save(path)
    assert path.read_bytes() not in contents


def test_a_full_disk_is_an_error_that_names_the_file(saved, monkeypatch):
    net, path = saved
    before = path.read_bytes()

    def full(*arguments, **settings):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match=r"net\.safetensors could not be written: .*No space left"):
        net.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
