"""What a finished run leaves, and how it is repeated or trained further."""

import json
import re

import pytest
import yaml
from test_commands import command, files  # noqa: F401

from masktuning import train
from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.training.job import read_job
from masktuning.training.run_folder import config_text, has_optimizer


def contents(folder):
    """The files of a folder at every depth, with their contents."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("runs") / "out"
    train.main(command(files, output_dir=out, seed=7))
    return out


def test_optimizer_states_are_removed_and_the_models_stay(finished, files, capsys):  # noqa: F811
    for name in ("checkpoint-2", "checkpoint-4"):
        names = {path.name for path in (finished / name).iterdir()}
        assert names >= {"model.safetensors", "mlm_head", "trainer_state.json", "scheduler.pt"}
        assert not has_optimizer(str(finished / name))
    before = contents(finished)
    for name in ("last", "checkpoint-2"):
        place = name if name == "last" else str(finished / name)
        longer = command(files, output_dir=finished, max_steps=8, resume_from_checkpoint=place)
        with pytest.raises(UsageError, match="cannot be trained further") as caught:
            train.main(longer)
        assert "--keep_optimizer_states" in str(caught.value) and "\n" not in str(caught.value)
    assert contents(finished) == before


def test_a_config_alone_says_what_to_add_and_changes_nothing(finished):
    before = contents(finished)
    with pytest.raises(UsageError, match="out holds a run already: give another --output_dir, or"):
        train.main(["--config", str(finished / "config.yaml")])
    assert contents(finished) == before


def test_kept_states_let_a_run_go_on(finished, tmp_path, capsys):
    """The repeated run has the seed of the first one, and keeps its states as it was told to."""
    words = ["--config", str(finished / "config.yaml"), "--output_dir", str(tmp_path)]
    train.main([*words, "--keep_optimizer_states"])
    assert "optimizer states" not in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["seed"] == 7 and config["keep_optimizer_states"] is True
    for name in ("model.safetensors", "mlm_head/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    size = sum(path.stat().st_size for path in tmp_path.glob("checkpoint-*/optimizer.pt"))
    words = ["--config", str(tmp_path / "config.yaml"), "--resume_from_checkpoint"]
    train.main([*words, "--max_steps", "6", "--keep_optimizer_states", "false"])
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert [log["step"] for log in state["log_history"] if "loss" in log] == [2, 4, 6]
    (removed,) = re.findall(r"([\d.]+) MB of optimizer states", capsys.readouterr().out)
    assert float(removed) == pytest.approx(size / 1e6, abs=0.06), "of two checkpoints"
    assert not list(tmp_path.glob("checkpoint-*/optimizer*"))


def test_the_config_names_files_from_anywhere(tmp_path, monkeypatch):
    """A task's file and a tokenizer too; a task's name stays, though a folder has it as well."""
    monkeypatch.chdir(tmp_path)
    task = yaml.safe_dump(
        {"name": "t", "description": "t", "labels": ["a", "b"]}
        | {"sets": {name: {"role": name, "text": ["x"], "label": "y", "file": f"{name}.csv"}
                    for name in ("train", "dev")}}
    )  # fmt: skip
    (tmp_path / "t.yaml").write_text(task)
    for name in ("words", "demo"):
        (tmp_path / name).mkdir()
    words = ["--task", "t.yaml", "--model_name_or_path", "m", "--tokenizer_name", "words"]
    config = yaml.safe_load(config_text(read_job([*words, "--output_dir", "x"], EMBEDDED)))
    assert config["task"] == str(tmp_path / "t.yaml")
    assert config["tokenizer_name"] == str(tmp_path / "words")
    config = yaml.safe_load(config_text(read_job(["--output_dir", "x"], EMBEDDED)))
    assert config["task"] == "demo"
