"""Uploads a run that is complete to the hub."""

from __future__ import annotations

from typing import Any

from huggingface_hub import upload_folder

from masktuning.training.job import TrainingJob

# Checkpoints, texts of the user's data, paths of this machine, and what loads no model.
_KEPT_HERE = [
    *("checkpoint-*", "stages/*", "perturbations.jsonl", "predictions_*", "report.html"),
    *("config.yaml", "run.log", "runs/*", "_*"),
]


def upload(job: TrainingJob, trainer: Any) -> None:
    """Uploads the classifier, the masked-LM head, the model card and the results."""
    args = trainer.args
    upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=job.folder,
        commit_message=f"{job.training.method} on {job.task.name}",
        ignore_patterns=_KEPT_HERE,
        revision=args.hub_revision,
        token=args.hub_token,
    )
    print(f"uploaded to {trainer.hub_model_id}")
