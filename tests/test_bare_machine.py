"""A checkout that was never installed, on a machine without datasets, as gpu_check.sh may find it.

The absent packages are hidden from import and from importlib.metadata, and so is the metadata of
this package. The compiled module is the one that these tests use.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import masktuning_C
import pytest
from conftest import ROOT

import masktuning

HIDDEN = """
import importlib.machinery
import importlib.metadata

HIDDEN = {"datasets", "optuna"}
finder, distribution = importlib.machinery.PathFinder, importlib.metadata.Distribution
find_spec, from_name = finder.find_spec, distribution.from_name


def hiding_find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find_spec(name, path, target)


def hiding_from_name(name):
    if name in HIDDEN | {"masktuning"}:
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)


finder.find_spec = classmethod(hiding_find_spec)
distribution.from_name = staticmethod(hiding_from_name)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the sources with the built module, and a file that hides packages at start-up."""
    folder = tmp_path_factory.mktemp("bare") / "checkout"
    folder.mkdir()
    for name in ("benchmarks", "csrc", "kernels", "masktuning", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "cubins", "results")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for file in ("pyproject.toml", "setup.py", masktuning_C.__file__):
        shutil.copy(ROOT / file, folder)
    hidden = folder.parent / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDDEN)
    return folder


def run(checkout, *command):
    path = os.pathsep.join(map(str, (checkout.parent / "hidden", checkout)))
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )


def python(checkout, *arguments):
    return run(checkout, sys.executable, *arguments)


def test_the_version_has_one_place():
    assert version("masktuning") == masktuning.__version__
    assert masktuning.__version__ not in (ROOT / "pyproject.toml").read_text()


def test_the_packages_are_hidden(checkout):
    """Otherwise the tests below would test nothing."""
    done = python(checkout, "-c", "import masktuning; print(masktuning.__file__); import datasets")
    assert done.stdout.strip() == str(checkout / "masktuning" / "__init__.py")
    assert "No module named 'datasets'" in done.stderr
    done = python(checkout, "-c", "from importlib.metadata import version; version('masktuning')")
    assert "PackageNotFoundError" in done.stderr


def test_info(checkout):
    done = python(checkout, "-m", "masktuning.info")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert lines["masktuning"] == [masktuning.__version__]
    assert lines["datasets"] == ["not", "installed"]
    assert lines["cpp"] == ["available"]


def test_a_command_that_needs_datasets_says_so(checkout):
    done = python(checkout, "-m", "masktuning.train", "--output_dir", "run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "pip install 'datasets" in done.stderr
    assert not (checkout / "run").exists()


def test_a_training_step(checkout, tmp_path):
    small = "--sizes 2x64 --lengths 16 --batch_size 4 --rounds 2".split()
    done = python(checkout, "benchmarks/bench_step.py", str(tmp_path / "step.json"), *small)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "step.json").read_text())
    (case,) = result["cases"]
    assert case["rounds"] == 2 and case["contenders"]["f: mask_tuning, cpp"]["ms"] > 0
    assert result["environment"]["commit"] is None


def test_a_small_training(checkout, tmp_path):
    done = python(checkout, "benchmarks/small_training.py", str(tmp_path / "run.json"), "40")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run.json").read_text())["eval_accuracy"] > 0.7


def test_the_gpu_tests_themselves_run_on_stand_ins():
    """This tests at least their own code: a wrong name would otherwise be found on a GPU only."""
    tests = "cuda and (registered or dual or masks and 0 or broken and split and nan)"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "cuda_stand_in"]
    path = os.pathsep.join(str(ROOT / folder) for folder in ("tests", "tests/ops"))
    done = subprocess.run(
        [sys.executable, *command, "tests/ops/test_gpu.py", "-k", tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.split(" passed")[0].split()[-1] == "8" and "skipped" not in done.stdout


def test_the_gpu_tests_are_collected(checkout):
    """As gpu_check.sh collects them: they load without datasets, and are skipped without a GPU."""
    done = python(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_gpu.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split(" skipped")[0].split()[-1]) > 150
