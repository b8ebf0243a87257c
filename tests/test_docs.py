"""Every command and every Python block of the README runs, on tiny stand-ins for its files."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from families import save_tiny

from masktuning.methods import METHODS
from masktuning.tasks import load_task, names

README = (ROOT / "README.md").read_text()
BASH = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.strip().splitlines()
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# Run by .ci/run in an environment of its own, or needing the network and a V100.
SET_UP = [line for line in BASH if line.startswith("pip install")]
COMMANDS = [line for line in BASH if line not in SET_UP]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the README's commands name: a model, a task's data, own files."""
    folder = tmp_path_factory.mktemp("readme")
    save_tiny(folder / "roberta-base", "roberta")
    rows = [(f"w{7 * i % 80} w{i % 11}", 7 * i % 80 % 2) for i in range(32)]
    (folder / "data" / "sst2").mkdir(parents=True)
    (folder / "data" / "imdb_cad" / "new").mkdir(parents=True)
    for name in ("train", "dev"):
        lines = ["sentence\tlabel", *(f"{text} \t{label}" for text, label in rows)]
        (folder / "data" / "sst2" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    reviews = ["Sentiment\tText", 'Positive\t"w1 w2<br />w3"', 'Negative\t"w4"']
    (folder / "data" / "imdb_cad" / "new" / "dev.tsv").write_text("\n".join(reviews) + "\n")
    for method in ("mask", "plain"):
        for seed in (1, 2, 3):
            (folder / f"{method}-{seed}").mkdir()
            results = json.dumps({"eval_dev_accuracy": seed / 10})
            (folder / f"{method}-{seed}" / "all_results.json").write_text(results)
    for name in ("train", "dev", "reviews"):
        lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(folder, command):
    environment = {**os.environ, "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_set_up_commands_are_those_of_ci():
    ours = [line for line in SET_UP if "constraints.txt" in line]
    assert ours == [
        "pip install -c constraints.txt . && python -m masktuning.train",
        'pip install -c constraints.txt ".[test]" && pytest',
    ]
    assert any("cu126" in line for line in SET_UP) and len(SET_UP) == 3


def test_commands_and_blocks_in_their_order(folder):
    """In order, since evaluate and resume read what train wrote."""
    assert len(COMMANDS) >= 7 and len(PYTHON) == 2
    for command in COMMANDS:
        words = command.split()
        assert words[:2] == ["python", "-m"] and words[2].startswith("masktuning."), command
        printed = run(folder, [sys.executable, *words[1:]])
        assert any(word in printed for word in ("dev", "reviews", "model.onnx")), command
    (folder / "out" / "README.md").read_text()
    for block in PYTHON:
        assert run(folder, [sys.executable, "-c", block]).strip()
    assert (folder / "from_python" / "config.json").is_file()


def test_the_task_file_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    task = load_task(str(tmp_path / "mine.yaml"))
    assert task.name == "tickets" and task.named("phone").f1 == "angry"


def test_what_the_readme_lists_is_there():
    for name in [*METHODS, *names()]:
        assert f"`{name}`" in README
    import masktuning

    for name in masktuning.__all__:
        assert name in README or name in ("MaskTuningCollator", "MaskTuningModel")
