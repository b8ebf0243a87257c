"""The best model is kept, training stops early, and the scores of all sets are in the log."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from test_commands import command, files  # noqa: F401

from masktuning import train
from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.training import set_scores
from masktuning.training.job import read_job
from masktuning.training.run import run  # noqa: F401 (it imports what a test replaces elsewhere)

WORDS = ["--task", "sst2", "--model_name_or_path", "m", "--output_dir", "x"]


def job(*words):
    return read_job([*WORDS, *words], EMBEDDED).training


def test_checkpoints_match_the_evaluations_where_the_best_model_is_wanted(caplog):
    with caplog.at_level(logging.WARNING, "masktuning"):
        best = job("--load_best_model_at_end")
    assert best.save_strategy == best.eval_strategy == "epoch" and best.load_best_model_at_end
    assert "a checkpoint is written whenever dev is measured (--save_strategy epoch)" in caplog.text
    steps = job("--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "7")
    assert (steps.save_strategy, steps.save_steps) == ("steps", 7)
    stopping = job("--early_stopping_patience", "2")
    assert stopping.load_best_model_at_end and stopping.save_strategy == "epoch"
    plain = job("--load_best_model_at_end", "false")
    assert plain.save_strategy == "steps" and not plain.load_best_model_at_end


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--save_strategy", "steps"], "requires the save and eval strategy to match"),
        (
            ["--metric_for_best_model", "acuracy"],
            "unknown metric 'acuracy'; did you mean 'accuracy",
        ),
        (
            ["--metric_for_best_model", "eval_imdb_cad_dev_accuracy"],
            "is measured at the end only: add --eval_ood epoch",
        ),
        (["--early_stopping_patience", "0"], "early_stopping_patience is 0: give 1 or more"),
    ],
)
def test_what_cannot_be_selected_by_is_told_at_once(words, told):
    with pytest.raises(UsageError, match=told):
        job("--load_best_model_at_end", *words)


def test_names_of_sets_that_are_measured_in_training():
    for name in ("eval_dev_accuracy", "dev_accuracy", "eval_loss", "accuracy"):
        assert job("--load_best_model_at_end", "--metric_for_best_model", name)
    ood = ["--metric_for_best_model", "eval_imdb_cad_dev_accuracy", "--eval_ood", "epoch"]
    assert job("--load_best_model_at_end", *ood).metric_for_best_model == ood[1]


def test_a_run_stops_early_and_keeps_its_best_model(files, tmp_path, monkeypatch):  # noqa: F811
    """Among three epochs with given scores it is the second, after which one is worse."""
    given, original = iter([0.3, 0.6, 0.5, 0.9]), set_scores.scores_to_log
    monkeypatch.setattr(
        set_scores, "scores_to_log", lambda r: {**original(r), "eval_far_accuracy": next(given)}
    )
    out = tmp_path / "out"
    train.main(
        command(
            files,
            output_dir=out,
            num_train_epochs=4,
            early_stopping_patience=1,
            eval_ood="epoch",
            metric_for_best_model="eval_far_accuracy",
            **dict.fromkeys(("max_steps", "save_strategy", "save_steps")),
        )
    )
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    results = json.loads((out / "all_results.json").read_text())
    *by_epoch, last = [line["eval_far_accuracy"] for line in log if "eval_far_accuracy" in line]
    assert by_epoch == [0.3, 0.6, 0.5] and last == results["eval_far_accuracy"]
    dev = [line["eval_dev_accuracy"] for line in log if "eval_dev_accuracy" in line]
    assert len(dev) == 4 and dev[-1] == dev[1] == results["eval_dev_accuracy"]
    best = load_file(out / "checkpoint-12" / "model.safetensors")  # 48 texts in batches of 8
    kept = load_file(out / "model.safetensors")
    assert all(torch.equal(kept[name], best[name]) for name in best)
