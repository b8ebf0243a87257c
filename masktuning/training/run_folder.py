"""The folder of a run: what it holds, and how a killed run is found again.

A run folder holds the checkpoint (an ordinary classifier at its root, with `mlm_head/` alongside),
config.yaml, all_results.json, trainer_state.json, README.md and perturbations.jsonl. During
training it holds checkpoint-N folders too, and `stages/` the earlier trainings of a method. At the
end the optimizers' states are removed from the checkpoint-N folders.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from masktuning.config.errors import UsageError
from masktuning.data.unlabelled import TEST_FILE
from masktuning.evaluation.aggregate import RUN_RESULTS as RESULTS
from masktuning.evaluation.results import predictions_path
from masktuning.methods import method_class
from masktuning.methods.choice import MethodChoice
from masktuning.modeling.checkpoint import HEAD, PARTS
from masktuning.training.job import TrainingJob

CONFIG = "config.yaml"
CARD = "README.md"
STAGES = "stages"
_STATE = "trainer_state.json"
_MARK = "# Written by a masktuning run; `python -m masktuning.train --config` repeats it.\n"
_OF_THIS_CALL = ("config", "dry_run", "overwrite", "resume_from_checkpoint")
_NAMES_OR_PATHS = {
    *("tokenizer_name", "dataset_name", "deepspeed", "fsdp_config"),
    *("treebank", "dev_treebank", "scorer"),
}
# Where Trainer and Accelerate (for FSDP) keep the optimizer's state in a checkpoint.
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0")
# What a run writes at its root. It must not write over files of these names that are not its own.
_FILES = (CONFIG, RESULTS, CARD, _STATE, "config.json", "model.safetensors", "perturbations.jsonl")


def check(folder: Path, resume: str | None, overwrite: bool, mlm_head: bool) -> str | None:
    """The checkpoint to resume from, or None; checks the folder and changes nothing in it.

    Raises:
        UsageError: if the folder holds a run already, or files that no run of masktuning wrote,
            or if there is no whole checkpoint (with a masked-LM head, if `mlm_head`) to resume
            from.
    """
    if resume is not None:
        newest = is_newest(resume)
        found = last_checkpoint(folder) if newest else Path(resume)
        if found is None or not is_whole(found):
            where = folder if newest else resume
            raise UsageError(
                f"{where}: no complete checkpoint to resume from; if the run stopped before its "
                "first one, start it again with --overwrite"
            )
        if mlm_head and not (found / HEAD).is_dir():
            raise UsageError(
                f"{found} has no {HEAD}/: its run had another method; resume with that one"
            )
        return str(found)
    if holds_run(folder):
        if not overwrite:
            raise UsageError(
                f"{folder} holds a run already: give another --output_dir, or --overwrite, or "
                "--resume_from_checkpoint"
            )
        return None
    foreign = [name for name in _FILES if (folder / name).exists()]
    if foreign:
        raise UsageError(
            f"{folder} holds {foreign[0]}, which no run of masktuning wrote: give another "
            "--output_dir"
        )
    return None


def is_newest(resume: str) -> bool:
    """Whether --resume_from_checkpoint asks for the newest checkpoint rather than names one."""
    return resume in ("last", "True", "true")


def holds_run(folder: Path) -> bool:
    """Whether a run of masktuning wrote there: it marks its config.yaml, which it writes first."""
    config = folder / CONFIG
    return config.is_file() and config.read_text(encoding="utf-8").startswith(_MARK)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; trainer_state.json is written last."""
    return next((path for path in reversed(_checkpoints(folder)) if is_whole(path)), None)


def step_of(checkpoint: str) -> int:
    """The number of optimiser steps after which a whole checkpoint was written."""
    return _state_of(checkpoint)["global_step"]


def batch_size_of(checkpoint: str) -> int | None:
    """The number of examples of a process's micro-batch that the run had at a checkpoint."""
    return _state_of(checkpoint).get("train_batch_size")


def has_optimizer(checkpoint: str) -> bool:
    """Whether a checkpoint holds the state of its optimizer, which training needs to go on."""
    of_deepspeed = any(Path(checkpoint).glob("global_step*"))
    return of_deepspeed or any((Path(checkpoint) / name).exists() for name in _OPTIMIZER)


def remove_optimizers(folder: Path) -> int:
    """Removes the optimizers' states from all checkpoints of a run; returns their bytes.

    They are twice as large as the model, and a finished run needs them no more.
    """
    removed = 0
    own = [checkpoint for checkpoint in _checkpoints(folder) if not checkpoint.is_symlink()]
    for path in (checkpoint / name for checkpoint in own for name in _OPTIMIZER):
        if path.is_dir():
            removed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path)
        elif path.is_file():
            removed += path.stat().st_size
            path.unlink()
    return removed


def read_results(folder: Path) -> dict[str, Any]:
    """all_results.json, or nothing where there is none yet."""
    path = folder / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def config_text(job: TrainingJob) -> str:
    """The options as YAML that `--config` takes: all of masktuning's, and Trainer's where given.

    Tokens are left out, since they are secrets.
    """
    method = method_class(job.training.method).Options
    own = {f.name for group in (method, MethodChoice) for f in fields(group)}
    secrets = {f.name for f in fields(TrainingArguments) if f.name.endswith("_token")}
    options = {
        f.name: _plain(getattr(job.training, f.name))
        for f in fields(job.training)
        if f.name in own | job.chosen | {"seed"}  # without which nothing is repeated
    }
    for group in (job.model, job.data, job.run):
        options |= {f.name: getattr(group, f.name) for f in fields(group)}
    for name, value in options.items():  # absolute, so that the file can be used from anywhere
        if _is_path(name, value) and Path(value).exists():
            options[name] = str(Path(value).absolute())
    named = [entry.partition("=") for entry in options.get("eval_files") or []]
    options["eval_files"] = [f"{name}={Path(path).absolute()}" for name, _, path in named]
    kept = {
        name: value
        for name, value in options.items()
        if name not in secrets.union(_OF_THIS_CALL) and value is not None
    }
    return _MARK + yaml.safe_dump(kept, sort_keys=True, allow_unicode=True)


def changed_options(folder: Path, text: str) -> dict[str, tuple[Any, Any]]:
    """Options that differ between the run's config.yaml and a new `config_text`: old and new."""
    path = folder / CONFIG
    old = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(old, dict):
        return {}
    new = yaml.safe_load(text)
    names = sorted(old.keys() | new.keys())
    both = {name: (old.get(name), new.get(name)) for name in names}
    return {name: (a, b) for name, (a, b) in both.items() if a != b and name != "output_dir"}


def _is_path(name: str, value: Any) -> bool:
    """Whether the value of an option may be the path of a file or a folder."""
    if not isinstance(value, str) or not value:
        return False
    if name == "task":  # else it is a task's name, which a folder may have too
        return value.endswith((".yaml", ".yml"))
    return name in _NAMES_OR_PATHS or name.endswith(("_file", "_dir", "_path"))


def _plain(value: Any) -> Any:
    """What YAML can hold of an option, in the form that the flag takes."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return items or None
    if hasattr(value, "to_dict"):
        return value.to_dict()
    known = value is None or isinstance(value, bool | int | float | str | dict)
    return value if known else str(value)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint, or the model at a run's root, was written to its end."""
    try:
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def clear(folder: Path, stages: bool = True) -> None:
    """Removes an earlier run's checkpoints, results and (if `stages`) stages, and nothing else."""
    if not holds_run(folder):
        return
    if stages:
        shutil.rmtree(folder / STAGES, ignore_errors=True)
    for path in _checkpoints(folder):
        shutil.rmtree(path)
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    for path in [*(folder / name for name in _FILES), predictions_path(folder, TEST_FILE)]:
        path.unlink(missing_ok=True)


def stopped_early(checkpoint: str, patience: int | None) -> bool:
    """Whether a run had stopped early by the time of a checkpoint, for want of a better model."""
    kept = _state_of(checkpoint).get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    if patience is None or kept is None:
        return False
    return kept["attributes"]["early_stopping_patience_counter"] >= patience


def _state_of(checkpoint: str) -> dict[str, Any]:
    """What Trainer knew of the run when it wrote a checkpoint."""
    return json.loads((Path(checkpoint) / _STATE).read_text(encoding="utf-8"))
