"""CONTRIBUTING.md names the files that a new op consists of; here its list is held to the code."""

import re

import pytest
from conftest import ROOT

from masktuning import ops

OPS = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu"))


def files_of(section):
    """The files that a section of CONTRIBUTING.md lists."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", text, re.MULTILINE)


def sources():
    """The source files of the ops, by their path from the root."""
    paths = [
        path
        for folder in ("csrc", "kernels", "masktuning/ops")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py")
    ]
    return {str(path.relative_to(ROOT)): path for path in paths}


def belongs_to_an_op(name, path):
    """Whether a source file is one of an op's own, and not one that ops share."""
    listed = {pattern.replace("<op>", op) for pattern in files_of("A new op") for op in OPS}
    exporting = {f"{getattr(ops, each).__module__.replace('.', '/')}.py" for each in ops.__all__}
    if name in listed | exporting or path.stem.startswith(tuple(f"{op}_" for op in OPS)):
        return True
    return re.search(r"^KERNELS = select\.register\(", path.read_text(), re.MULTILINE) is not None


def test_a_new_op_takes_nine_files_at_most():
    listed = files_of("A new op")
    assert len(OPS) >= 3 and 5 < len(listed) <= 9
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_the_listed_files(op):
    for listed in files_of("A new op"):
        path = ROOT / listed.replace("<op>", op)
        assert path.is_file(), path
        assert "<op>" in listed or op in path.read_text(), f"{listed} does not name {op}"


@pytest.mark.parametrize("op", OPS)
def test_no_file_that_ops_share_names_an_op(op):
    """One that did would need an edit for the next op, and would be missing from the list."""
    shared = {name: path for name, path in sources().items() if not belongs_to_an_op(name, path)}
    assert "csrc/parallel.h" in shared and "csrc/cuda/launcher.cpp" in shared
    assert "masktuning/ops/checks.py" in shared and len(shared) >= 15
    for name, path in shared.items():
        assert op not in path.read_text(), f"{name} names {op}"


def test_no_back_end_names_an_op_or_its_functions():
    functions = [name for name in ops.__all__ if name.islower()]
    assert "sample_masks" in functions and len(functions) >= 5
    files = list((ROOT / "masktuning" / "ops" / "backends").glob("*.py"))
    assert len(files) >= 7
    for path in files:
        for name in (*OPS, *functions):
            assert name not in path.read_text(), f"{path} names {name}"


@pytest.mark.parametrize(("section", "most"), [("A new method", 3), ("A new task", 1)])
def test_a_new_method_or_task_takes_few_files(section, most):
    listed = files_of(section)
    assert 0 < len(listed) <= most
    for name in listed:
        assert (ROOT / name).parent.is_dir(), name
