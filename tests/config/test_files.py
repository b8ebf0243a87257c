"""Files appear completely or not at all."""

import os
import time

import pytest

from masktuning.config.files import replaced_when_complete, write, write_json


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write(path, "old")
    write_json(path, {"é": [1]})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
    with pytest.raises(ZeroDivisionError), replaced_when_complete(path) as partial:
        partial.write_text("half")
        assert "é" in path.read_text(encoding="utf-8")
        raise ZeroDivisionError
    assert "é" in path.read_text(encoding="utf-8")
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_replaces_one_and_what_a_killed_process_left_is_removed(tmp_path):
    killed, other = ".out.0123abcd.partial", ".out.89abcdef.partial"
    for name in ("out", killed, other):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    two_days_ago = time.time() - 2 * 86400
    os.utime(tmp_path / killed, (two_days_ago, two_days_ago))
    with replaced_when_complete(tmp_path / "out") as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert sorted(one.name for one in tmp_path.iterdir()) == [other, "out"]
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["new"]


def test_two_writers_at_once_each_replace_the_file_whole(tmp_path):
    path = tmp_path / "a.txt"
    with replaced_when_complete(path) as slow:
        slow.write_text("the beginning")
        write(path, "of another writer")
        assert path.read_text() == "of another writer"
        slow.write_text("whole")
    assert path.read_text() == "whole"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
