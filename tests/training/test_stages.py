"""Stages that start from the checkpoint of another stage, and runs that start from a stage."""

from pathlib import Path

import pytest

from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.methods.base import Stage
from masktuning.methods.finetuning import Finetuning
from masktuning.training.job import read_job
from masktuning.training.stages import stage_job, started


def test_where_stages_and_the_run_start(monkeypatch, tmp_path):
    words = ["--method", "finetuning", "--output_dir", str(tmp_path / "out"), "--seed", "7"]
    job = read_job(words, EMBEDDED)
    folder = tmp_path / "out" / "stages"

    first = stage_job(job, Stage("first", "finetuning", {"num_train_epochs": 2}))
    assert first.start is None and first.folder == folder / "first"
    assert (first.training.num_train_epochs, first.training.seed) == (2, 7)

    second = stage_job(job, Stage("second", "finetuning", starts_from="first"))
    assert second.start == folder / "first" and started(second) is second

    assert started(job) is job
    monkeypatch.setattr(Finetuning, "starts_from", classmethod(lambda cls, options: "second"))
    assert started(job).start == folder / "second"
    assert Path(started(job).folder) == job.folder


def test_a_stage_uploads_nothing_and_says_which_argument_it_cannot_have(tmp_path):
    words = ["--method", "finetuning", "--output_dir", str(tmp_path), "--push_to_hub"]
    job = read_job(words, EMBEDDED)
    assert job.training.push_to_hub and job.training.hub_strategy.value == "end"
    assert not stage_job(job, Stage("first", "finetuning")).training.push_to_hub
    plateau = read_job([*words, "--lr_scheduler_type", "reduce_lr_on_plateau"], EMBEDDED)
    with pytest.raises(UsageError, match=r"the stage 'first' of the method: .*eval"):
        stage_job(plateau, Stage("first", "finetuning", {"eval_strategy": "no"}))
    with pytest.raises(UsageError, match="--hub_strategy every_save does not go with this command"):
        read_job([*words, "--hub_strategy", "every_save"], EMBEDDED)
