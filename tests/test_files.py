import os

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
