import errno
import os
import re
import stat
import threading

import pytest

from fastperm.files import replacing


def test_the_file_is_there_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "result.csv"
    with replacing(path) as temporary:
        temporary.write_text("1,2")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "1,2"
    assert [p.name for p in path.parent.iterdir()] == ["result.csv"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "result.csv"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.csv"]


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), replacing(tmp_path / "file" / "result.csv"):
        pass


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_the_error_names_the_file_that_was_asked_for():
    with pytest.raises(OSError, match=r"'/proc/self/result\.csv'"), replacing("/proc/self/result.csv"):
        pass


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    target, link = tmp_path / "kept" / "result.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["result.csv"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_fifo_stays_and_receives_the_content(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_text()), daemon=True)
    reader.start()
    with replacing(path) as temporary:
        temporary.write_text("1,2")
    reader.join(10)
    assert received == ["1,2"]
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["fifo"]
    assert not temporary.exists()


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)), replacing(tmp_path):
        pass


@pytest.mark.parametrize("names_temporary", [False, True])
def test_an_error_of_writing_names_the_file(tmp_path, names_temporary):
    path, message = tmp_path / "result.csv", f"[Errno {errno.ENOSPC}] No space left on device"
    with pytest.raises(OSError, match=re.escape(f"{message}: '{path}'")) as found, replacing(path) as temporary:
        raise OSError(errno.ENOSPC, "", *([str(temporary)] if names_temporary else []))
    assert found.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_an_error_about_another_file_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as found, replacing(tmp_path / "result.csv"):
        (tmp_path / "missing.csv").read_text()
    assert str(found.value.filename) == str(tmp_path / "missing.csv")


def test_a_full_device_is_named():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), replacing("/dev/full") as temporary:
        temporary.write_text("1")
