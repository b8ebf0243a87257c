"""Trains a run, goes on with one that was stopped, or takes up one that is complete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerState

from masktuning.config.errors import UsageError
from masktuning.training import run_folder
from masktuning.training.build import planned_steps, training_examples
from masktuning.training.job import TrainingJob
from masktuning.training.trainer import MaskTuningTrainer

_TERMINATED = 143
"""The exit status of a process that SIGTERM ended."""


def train_or_resume(
    job: TrainingJob, trainer: MaskTuningTrainer, resume: str | None
) -> tuple[dict[str, Any], bool]:
    """Trainer's metrics, and whether there was anything left to train.

    Args:
        job: what to train.
        trainer: its trainer.
        resume: the checkpoint to go on from, or None to begin.

    Raises:
        UsageError: for a checkpoint that cannot be trained further, and if there is no batch to
            train on.
        SystemExit: after SIGTERM with `--enable_jit_checkpoint`, which has saved a checkpoint.
    """
    batch_size = None
    if resume is not None and job.training.auto_find_batch_size:
        batch_size = run_folder.batch_size_of(resume)
    steps = planned_steps(job.training, training_examples(trainer), batch_size)
    complete = None if resume is None else _complete(job, resume, steps)
    if complete is not None:
        return _take_up(job, trainer, complete), False
    if resume is not None and not run_folder.has_optimizer(resume):
        raise UsageError(
            f"{resume}: cannot be trained further, since it has no optimizer state: a finished "
            "run has it only with --keep_optimizer_states, and none has it with "
            "--save_only_model; start a longer run with another --output_dir"
        )
    metrics = trainer.train(resume_from_checkpoint=resume).metrics
    if job.training.enable_jit_checkpoint and _was_terminated(trainer):
        if trainer.is_world_process_zero():
            print(
                f"stopped by SIGTERM after step {trainer.state.global_step} of "
                f"{trainer.state.max_steps}: --resume_from_checkpoint goes on"
            )
        sys.exit(_TERMINATED)
    return metrics, True


def _complete(job: TrainingJob, resume: str, steps: int) -> Path | None:
    """The folder of the last model of a run of `steps` steps, if nothing is left to train.

    That model is at the run's root, if the run was measured too: its newest checkpoint may be one
    of an earlier step, since only the best ones were saved or kept.
    """
    folders = [Path(resume)]
    if run_folder.is_newest(str(job.training.resume_from_checkpoint)):
        folders += [job.folder] if run_folder.read_results(job.folder) else []
    for folder in reversed(folders):
        if not run_folder.is_whole(folder):
            continue
        early = run_folder.stopped_early(str(folder), job.run.early_stopping_patience)
        if early or run_folder.step_of(str(folder)) >= steps:
            return folder
    return None


def _take_up(job: TrainingJob, trainer: MaskTuningTrainer, folder: Path) -> dict[str, Any]:
    """Loads the model of a complete run; Trainer itself would take one more step."""
    if trainer.is_fsdp_enabled:  # accelerate shards a model for training only
        raise UsageError(f"{folder}: the run was complete; measure it again without --fsdp")
    print("the run was complete: nothing is left to train")
    trainer._load_from_checkpoint(str(folder))
    trainer.state = TrainerState.load_from_json(f"{folder}/trainer_state.json")
    at_root = folder == job.folder  # where the best model is already
    if job.training.load_best_model_at_end and trainer.state.best_model_checkpoint and not at_root:
        trainer._load_best_model()
    return run_folder.read_results(job.folder)


def _was_terminated(trainer: MaskTuningTrainer) -> bool:
    """Whether training ended before its last step, and not for want of a better model."""
    callbacks = trainer.callback_handler.callbacks
    early = any(
        one.early_stopping_patience_counter >= one.early_stopping_patience
        for one in callbacks
        if isinstance(one, EarlyStoppingCallback)
    )
    return trainer.state.global_step < trainer.state.max_steps and not early
