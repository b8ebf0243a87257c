"""What holds the house together: which room may know which, and what an installation contains."""

import ast
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from conftest import ROOT

# Lowest first: a file imports from its own folder and from folders in rows above its own.
FLOORS = [
    {"config"},
    {"ops"},
    {"tasks"},
    {"data", "modeling"},
    {"methods"},
    {"evaluation"},
    {"training"},
    {"experiments"},
    {"demo"},
    {"commands"},
]
PACKAGE = ROOT / "masktuning"
COMMANDS = {
    *("__init__", "__main__", "compare", "evaluate", "export", "info", "predict", "reproduce"),
    "train",
}


def floor_of(name):
    """The folder of a module; a module at the package's top or a __main__ is a command."""
    folder, _, rest = name.partition(".")
    command = name in COMMANDS or rest.endswith("__main__")
    return next(i for i, names in enumerate(FLOORS) if ("commands" if command else folder) in names)


def modules():
    """Every module of the package by its dotted name, without `masktuning.`; no `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__") if "." in name else name] = path
    return found


def imported(path, known):
    """Modules of this package that a file imports, for type checking only too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("masktuning"):
            base = node.module.removeprefix("masktuning").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in known else base or "__init__"


def test_imports_run_downward():
    known = modules()
    for name, path in known.items():
        if name == "__init__":
            continue  # the public names, imported on first use
        for other in imported(path, known):
            if other == "__init__" or other.split(".")[0] == name.split(".")[0]:
                continue  # the same folder; circles within it are for the test below
            assert floor_of(other) < floor_of(name), f"{name} imports {other}"


def test_no_files_import_each_other_in_a_circle():
    known = modules()
    graph = {name: set(imported(path, known)) - {name} for name, path in known.items()}
    graph.pop("__init__")
    # A package's __init__ imports its files: from below it is the file that is meant.
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


def test_modules_at_the_top_are_commands():
    assert {path.stem for path in PACKAGE.glob("*.py")} == COMMANDS


def code_lines(function):
    """How many lines a function has, its docstring not counted."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_function_has_more_than_50_lines():
    folders = ("masktuning", "kernels", "benchmarks")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in [*paths, ROOT / "setup.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert code_lines(node) <= 50, f"{path}: {node.name}"


def test_kernels_know_no_masktuning():
    for path in (ROOT / "kernels").glob("*.py"):
        assert "masktuning" not in path.read_text()


def test_the_kernels_folder_shadows_no_package():
    """`import kernels` from the root must not find files of ours (transformers looks for it)."""
    code = (
        "import importlib.util as u; s = u.find_spec('kernels'); "
        "print(s is None or s.origin is None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("folder", [ROOT, Path("/")], ids=["root", "elsewhere"])
def test_works_from_the_repository_and_from_elsewhere(folder):
    code = (
        "import masktuning_C, masktuning.tasks as t; import masktuning.kernels; "
        "from masktuning.ops.backends import cuda_source, extension; "
        "assert all(map(cuda_source.source_hash, cuda_source.sources()[0])); "
        "assert extension.find() is masktuning_C; assert 'sst2' in t.names(); "
        "print(t.load_task('demo').labels)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() == "['negative', 'positive']", done.stderr


def test_the_installation_has_its_data():
    """Read from what pip recorded, so a file missing from the wheel shows."""
    # An egg-info that a build left in the checkout has no RECORD, and is no installation.
    installed = next(d for d in distributions(name="masktuning") if d.read_text("RECORD"))
    recorded = {str(path) for path in installed.files or ()}
    if any("__editable__" in path for path in recorded):
        pytest.skip("an editable installation records no files")
    wanted = [p for p in (ROOT / "masktuning").rglob("*") if p.suffix in (".py", ".yaml", ".md")]
    missing = [p for p in wanted if str(p.relative_to(ROOT)) not in recorded]
    assert len(wanted) > 30 and not missing
    assert "masktuning/py.typed" in recorded
    assert "masktuning/demo/checkpoint/model.safetensors" in recorded
    kernels = [*(ROOT / "csrc" / "cuda").glob("*.cu*"), *(ROOT / "kernels").glob("*.py")]
    assert len(kernels) >= 9 and "masktuning/csrc/philox.h" in recorded
    assert {f"masktuning/{path.relative_to(ROOT)}" for path in kernels} <= recorded
    assert not [path for path in recorded if path.startswith(("csrc", "tests", "kernels"))]


def test_no_file_outgrows_its_idea():
    for folder in ("masktuning", "csrc", "kernels"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                assert len(path.read_text().splitlines()) <= 300, path
