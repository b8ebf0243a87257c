"""The files of a pretraining run: its saved states, and how it is resumed from them.

The folder of a run holds metrics.json, tokenizer/, train.u16, held_out.u16 and state-N/, the state
after N steps: the weights as an ordinary checkpoint, optimizer.pt and progress.json.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from masktuning.config.errors import UsageError
from masktuning.config.files import replaced_when_complete, write_json

METRICS = "metrics.json"
_PROGRESS = "progress.json"
_OPTIMIZER = "optimizer.pt"
_MAY_CHANGE = ("max_steps", "logging_steps", "eval_steps", "save_steps")


def settings_of(arguments: Any) -> dict[str, Any]:
    """The options as plain data. Corpus files are named without folders, which may have moved."""
    settings = {k: v for k, v in vars(arguments).items() if k not in ("output_dir", "overwrite")}
    return settings | {"corpus": [Path(name).name for name in arguments.corpus]}


def check(folder: Path, settings: dict[str, Any], overwrite: bool) -> Path | None:
    """The state to resume from, or None to start from the beginning.

    With `overwrite` an earlier run is removed.

    Raises:
        UsageError: if the folder holds a run with other settings, naming the first difference; if
            it holds a model but no state of a run.
    """
    found = newest(folder)
    if found is None:
        if (folder / "config.json").exists():
            raise UsageError(
                f"{folder} holds a model, but no state to resume from: give another --output_dir"
            )
        return None
    if overwrite:
        _clear(folder)
        return None
    metrics = read_progress(found)
    for name, value in metrics["settings"].items():
        if name not in _MAY_CHANGE and value != settings[name]:
            raise UsageError(
                f"{folder} holds a run with --{name} {value}, not {settings[name]}: give "
                f"{value}, another --output_dir, or --overwrite"
            )
    if metrics["steps"] > settings["max_steps"]:
        raise UsageError(
            f"{folder} holds a run of {metrics['steps']} steps, more than --max_steps "
            f"{settings['max_steps']}"
        )
    return found


def save(
    folder: Path, step: int, model: Any, tokenizer: Any, optimizer: Any, metrics: dict[str, Any]
) -> None:
    """Writes the state after `step` steps and removes older ones.

    A run that is killed meanwhile keeps its older state.
    """
    old = _states(folder)
    target = folder / f"state-{step}"
    with replaced_when_complete(target) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        torch.save(optimizer.state_dict(), partial / _OPTIMIZER)
        write_json(partial / _PROGRESS, metrics)
    for path in [*old, *folder.glob(".state-*.partial")]:  # what killed runs left incomplete too
        if path != target:
            shutil.rmtree(path)


def newest(folder: Path) -> Path | None:
    """The state after the most steps, or None; states are complete, since they were renamed."""
    return max(_states(folder), key=_step_of, default=None)


def load(state: Path, model: Any, optimizer: Any) -> tuple[int, dict[str, Any]]:
    """Loads a state into model and optimizer; returns its number of steps and its metrics."""
    from transformers import AutoModelForMaskedLM

    # Tied tensors are stored once; from_pretrained knows which ones are tied.
    model.load_state_dict(AutoModelForMaskedLM.from_pretrained(state).state_dict())
    optimizer.load_state_dict(torch.load(state / _OPTIMIZER, weights_only=True))
    return _step_of(state), read_progress(state)


def _clear(folder: Path) -> None:
    # The states are removed last: if this is interrupted, they still show that the run is ours.
    for name in (METRICS, "config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
    for path in _states(folder):
        shutil.rmtree(path)


def read_progress(state: Path) -> dict[str, Any]:
    """The metrics of a run up to a state."""
    return json.loads((state / _PROGRESS).read_text(encoding="utf-8"))


def _states(folder: Path) -> list[Path]:
    return [p for p in folder.glob("state-*") if re.fullmatch(r"state-\d+", p.name)]


def _step_of(state: Path) -> int:
    return int(state.name.removeprefix("state-"))
