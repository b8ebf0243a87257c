"""How a run that was stopped goes on, and how one that is complete is taken up again."""

import json
import os
import pickle
import signal

import pytest
from test_commands import command, files  # noqa: F401
from transformers import Trainer, TrainerCallback

from masktuning import train
from masktuning.config.errors import UsageError
from masktuning.training import hub, resuming, run
from masktuning.training.arguments import arguments_for

EPOCHS = {"max_steps": -1, "num_train_epochs": 3, "method": "finetuning"}


def steps(folder):
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def test_a_complete_run_that_kept_only_an_earlier_checkpoint(files, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Its last model, and not the checkpoint's, is the one that was measured."""
    out = tmp_path / "out"
    words = command(files, output_dir=out, save_steps=1, keep_optimizer_states=True, **EPOCHS)
    train.main(words)
    last = steps(out)
    newest = out / f"checkpoint-{last}"
    results = json.loads((out / "all_results.json").read_text())
    for path in [*newest.iterdir()]:  # as --load_best_model_at_end leaves it with one to keep
        path.rename(tmp_path / path.name) if path.is_file() else None
    capsys.readouterr()
    train.main([*words, "--resume_from_checkpoint"])
    assert "nothing is left to train" in capsys.readouterr().out
    again = json.loads((out / "all_results.json").read_text())
    assert steps(out) == last
    assert again["eval_dev_accuracy"] == results["eval_dev_accuracy"]


def test_patience_is_that_of_the_call(files, tmp_path, capsys):  # noqa: F811
    """Trainer would restore that of the checkpoint."""
    words = command(
        files, output_dir=tmp_path, learning_rate=0.0, keep_optimizer_states=True, **EPOCHS
    )
    words += ["--metric_for_best_model", "accuracy", "--eval_strategy", "steps"]
    words += ["--eval_steps", "1", "--save_steps", "1", "--save_total_limit", "9"]
    train.main([*words, "--early_stopping_patience", "1"])
    assert steps(tmp_path) == 2
    train.main([*words, "--early_stopping_patience", "3", "--resume_from_checkpoint"])
    assert steps(tmp_path) == 4


class TerminateAt(TrainerCallback):
    """Ends a run as a scheduler does, with SIGTERM."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_with_a_checkpoint_just_in_time(files, tmp_path, monkeypatch):  # noqa: F811
    """Nothing is measured, and the states of the optimizer stay."""
    made = run.build_trainer

    def build(job):
        trainer, sets = made(job)
        for one in trainer.callback_handler.callbacks:
            if manager := getattr(one, "jit_manager", None):
                enable = manager._enable_checkpoint  # its handler would wait for three seconds
                signal.signal(signal.SIGTERM, lambda *_, enable=enable: enable())
        trainer.callback_handler.callbacks.insert(0, TerminateAt())
        return trainer, sets

    monkeypatch.setattr(run, "build_trainer", build)
    words = command(files, output_dir=tmp_path, **EPOCHS)
    with pytest.raises(SystemExit) as stopped:
        train.main([*words, "--enable_jit_checkpoint"])
    assert stopped.value.code == resuming._TERMINATED
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").is_file()
    assert not (tmp_path / "all_results.json").exists()
    monkeypatch.setattr(run, "build_trainer", made)
    train.main([*words, "--resume_from_checkpoint"])
    assert steps(tmp_path) > 2 and (tmp_path / "all_results.json").is_file()


def test_no_batch_to_train_on(files, tmp_path):  # noqa: F811
    words = command(files, output_dir=tmp_path, **EPOCHS)
    with pytest.raises(UsageError, match="--dataloader_drop_last leaves no batch of"):
        train.main([*words, "--dataloader_drop_last", "--per_device_train_batch_size", "5000"])


def test_a_run_is_uploaded_when_it_is_complete(files, tmp_path, monkeypatch):  # noqa: F811
    """With its model card, and without texts, checkpoints and paths of this machine."""
    uploaded = []

    def upload_folder(**given):
        uploaded.append(given)
        assert "library_name" in (given["folder_path"] / "README.md").read_text()

    def init_hf_repo(self, *args, **kwargs):
        self.hub_model_id = "me/model"

    monkeypatch.setattr(hub, "upload_folder", upload_folder)
    monkeypatch.setattr(Trainer, "init_hf_repo", init_hf_repo)
    words = command(files, output_dir=tmp_path, **{**EPOCHS, "num_train_epochs": 1})
    train.main([*words, "--save_steps", "1", "--push_to_hub", "--hub_model_id", "me/model"])
    (only,) = uploaded
    assert only["repo_id"] == "me/model" and only["folder_path"] == tmp_path
    assert {"config.yaml", "perturbations.jsonl", "checkpoint-*"} <= {*only["ignore_patterns"]}


@pytest.mark.parametrize("method", ["mask_tuning", "cutoff"])
def test_arguments_of_every_method_can_be_pickled(tmp_path, method):
    """Trainer pickles them where it uploads a checkpoint."""
    args = arguments_for(method)(str(tmp_path), learning_rate=3e-4, use_cpu=True)
    again = pickle.loads(pickle.dumps(args))
    assert type(again) is type(args) and again.to_dict() == args.to_dict()


def test_columns_that_masks_are_drawn_by_are_kept(tmp_path, caplog):
    with caplog.at_level("WARNING", "masktuning"):
        args = arguments_for("mask_tuning")(str(tmp_path), remove_unused_columns=True, use_cpu=True)
    assert not args.remove_unused_columns and "remove_unused_columns is not needed" in caplog.text
