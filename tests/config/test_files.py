"""Files appear completely or not at all."""

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
    for name in ("out", ".out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    with replaced_when_complete(tmp_path / "out") as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [one.name for one in tmp_path.iterdir()] == ["out"]
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["new"]
