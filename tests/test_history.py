import csv
import errno
import math
import os
import re

import pytest

from fastperm import history
from fastperm.history import HistoryFile


def records(steps):
    return {
        "step": list(range(1, steps + 1)),
        "loss": [1 / step for step in range(1, steps + 1)],
        "validation_loss": [step / 7 if step % 2 == 0 else math.nan for step in range(1, steps + 1)],
        "seconds": [step / 3 for step in range(1, steps + 1)],
    }


def expected(steps):
    rows = [
        [str(step), repr(1 / step), repr(step / 7) if step % 2 == 0 else "", f"{step / 3:.3f}"]
        for step in range(1, steps + 1)
    ]
    return [["step", "loss", "validation_loss", "seconds"], *rows]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def written(monkeypatch):
    """Return a list of the steps from which rows were written."""
    found, write_rows = [], history._write_rows
    monkeypatch.setattr(
        history, "_write_rows", lambda file, new, first: found.append(first) or write_rows(file, new, first)
    )
    return found


def test_rows_are_added_to_those_that_are_there(tmp_path, written):
    path = tmp_path / "new" / "losses.csv"
    file = HistoryFile(path)
    for steps in (3, 4, 4, 9):
        file.write(records(steps))
        assert rows_of(path) == expected(steps)
    assert written == [0, 3, 4, 4]
    assert os.listdir(path.parent) == ["losses.csv"]


@pytest.mark.parametrize(
    "change", [lambda path: path.write_text("mine\n"), lambda path: path.unlink(), lambda path: os.truncate(path, 40)]
)
def test_a_file_that_another_one_changed_is_written_whole(tmp_path, written, change):
    path = tmp_path / "losses.csv"
    file = HistoryFile(path)
    file.write(records(3))
    change(path)
    file.write(records(5))
    assert rows_of(path) == expected(5)
    assert written == [0, 0]


def test_rows_that_were_cut_off_come_again(tmp_path, monkeypatch, written):
    path = tmp_path / "losses.csv"
    file = HistoryFile(path)
    file.write(records(3))
    with monkeypatch.context() as patch:
        patch.setattr(history, "_write_rows", lambda file, new, first: file.write("4,0.2") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            file.write(records(4))
    file.write(records(5))
    assert rows_of(path) == expected(5)


def test_a_full_disk_leaves_the_rows_that_were_there(tmp_path, monkeypatch):
    path = tmp_path / "losses.csv"
    file = HistoryFile(path)
    file.write(records(3))

    def full(open_file, new, first):
        open_file.write("4,0.2")
        open_file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(history, "_write_rows", full)
        with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
            file.write(records(4))
    assert rows_of(path) == expected(3)
    file.write(records(5))
    assert rows_of(path) == expected(5)


def test_what_is_no_file_gets_all_rows_each_time(tmp_path, written):
    file = HistoryFile(os.devnull)
    file.write(records(3))
    file.write(records(5))
    assert written == [0, 0]
