"""What a pretraining run leaves on disk while it runs, and how a killed one is found again.

The folder holds metrics.json, tokenizer/, train.u16, held_out.u16 and state-N/, N steps done:
weights as an ordinary checkpoint, optimizer.pt and progress.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from masktuning.config.errors import UsageError
from masktuning.config.files import write_json

METRICS = "metrics.json"
_PROGRESS = "progress.json"
_OPTIMIZER = "optimizer.pt"
_MAY_CHANGE = ("max_steps", "logging_steps", "eval_steps", "save_steps")


def settings_of(arguments: Any) -> dict[str, Any]:
    """The options as plain data; corpus files by name, since folders differ between machines."""
    settings = {k: v for k, v in vars(arguments).items() if k not in ("output_dir", "overwrite")}
    return settings | {"corpus": [Path(name).name for name in arguments.corpus]}


def check(folder: Path, settings: dict[str, Any], overwrite: bool) -> Path | None:
    """The state to go on from, or None to start anew; removes an earlier run if `overwrite`.

    Raises:
        UsageError: if the folder holds a run with other settings, naming the first, or a model
            that no run of ours wrote.
    """
    found = newest(folder)
    if found is None:
        if (folder / "config.json").exists():
            raise UsageError(
                f"{folder} holds a model, but no state to go on from: give another --output_dir"
            )
        return None
    if overwrite:
        _clear(folder)
        return None
    metrics = read_progress(found)
    for name, value in metrics["settings"].items():
        if name not in _MAY_CHANGE and value != settings[name]:
            raise UsageError(
                f"{folder} holds a run with --{name} {value}, not {settings[name]}: give that, "
                "another --output_dir, or --overwrite"
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
    """Writes state-N whole and removes the one before; a kill in between leaves one of them."""
    partial = folder / ".state.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    torch.save(optimizer.state_dict(), partial / _OPTIMIZER)
    write_json(partial / _PROGRESS, metrics)
    old = _states(folder)
    target = folder / f"state-{step}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for path in old:
        if path != target:
            shutil.rmtree(path)


def newest(folder: Path) -> Path | None:
    """The state with the most steps done; each was renamed into place, so it is whole."""
    return max(_states(folder), key=_step_of, default=None)


def load(state: Path, model: Any, optimizer: Any) -> tuple[int, dict[str, Any]]:
    """Puts a state's weights and moments in place; returns the steps done and the metrics."""
    from transformers import AutoModelForMaskedLM

    # from_pretrained knows which tensors are tied and stored once.
    model.load_state_dict(AutoModelForMaskedLM.from_pretrained(state).state_dict())
    optimizer.load_state_dict(torch.load(state / _OPTIMIZER, weights_only=True))
    return _step_of(state), read_progress(state)


def _clear(folder: Path) -> None:
    # The states last: they tell that the folder is ours, should a kill come in between.
    for name in (METRICS, "config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
    for path in _states(folder):
        shutil.rmtree(path)


def read_progress(state: Path) -> dict[str, Any]:
    return json.loads((state / _PROGRESS).read_text(encoding="utf-8"))


def _states(folder: Path) -> list[Path]:
    return [p for p in folder.glob("state-*") if re.fullmatch(r"state-\d+", p.name)]


def _step_of(state: Path) -> int:
    return int(state.name.removeprefix("state-"))
