"""Everything that a pretraining run needs before its first step."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer

from masktuning.config.errors import UsageError
from masktuning.demo.pretrain import state
from masktuning.demo.pretrain.corpus import (
    Windows,
    documents,
    pack,
    packed_file,
    train_tokenizer,
)
from masktuning.demo.pretrain.masked_lm import new_model
from masktuning.demo.pretrain.start import initialise
from masktuning.demo.pretrain.workers import Workers

_BETAS = (0.9, 0.98)


@dataclass
class Setup:
    """The parts of a run, as they are before its next step."""

    tokenizer: Any
    train: Windows
    held_out: Windows
    model: Any
    optimizer: torch.optim.AdamW
    done: int
    """Steps that are done already."""
    metrics: dict[str, Any]
    """What metrics.json will hold."""


def set_up(arguments: Any, folder: Path, workers: Workers) -> Setup:
    """Prepares the corpus unless the folder holds a run, and loads its newest state or starts one.

    Raises:
        UsageError: if the corpus is too small, there are more processes than windows per batch, or
            the folder holds a run with other settings.
    """
    settings = state.settings_of(arguments)
    if arguments.batch_size < workers.count:
        raise UsageError(
            f"--batch_size {arguments.batch_size} is less than the {workers.count} processes that "
            "share it"
        )
    data = prepare(arguments, folder, settings) if workers.first else {}
    workers.wait()  # for the first process, which may have removed an earlier run
    found = state.newest(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    train, held_out = _windows(arguments, folder)
    counts_V = np.bincount(train.tokens, minlength=len(tokenizer))
    counts_V[tokenizer.all_special_ids] = 0
    model = new_model(arguments, len(tokenizer), workers.device)
    optimizer = _optimizer(model, arguments.weight_decay)
    metrics: dict[str, Any]
    if found is None:
        done = 0
        metrics = {"steps": 0, "seconds": 0.0, "starts": 0, "evaluations": [], "data": data}
        initialise(model, train.tokens, counts_V, arguments.seed)
    else:
        done, metrics = state.load(found, model, optimizer)
    metrics |= {"settings": settings, "starts": metrics["starts"] + 1}
    metrics |= _environment(model, workers.count)
    metrics["data"]["most_frequent_token"] = int(counts_V.argmax())
    return Setup(tokenizer, train, held_out, model, optimizer, done, metrics)


def prepare(arguments: Any, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Makes tokenizer and packed files from the corpus and returns their counts.

    Does nothing and returns no counts if the folder holds a state to resume from.
    """
    if state.check(folder, settings, arguments.overwrite) is not None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    share = arguments.held_out_share
    tokenizer = train_tokenizer(
        lambda: documents(arguments.corpus, held_out=False, share=share),
        arguments.vocab_size,
        arguments.max_length,
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    counts = pack(arguments.corpus, tokenizer, folder, share)
    counts["bytes"] = sum(os.path.getsize(name) for name in arguments.corpus)
    counts["vocabulary"] = len(tokenizer)
    return counts


def _windows(arguments: Any, folder: Path) -> tuple[Windows, Windows]:
    """The windows to train on and the held-out ones.

    Raises:
        UsageError: if there are fewer than a batch, or no held-out ones.
    """
    train, held_out = (
        Windows(packed_file(folder, name), arguments.max_length) for name in ("train", "held_out")
    )
    if train.count < arguments.batch_size or held_out.count < 1:
        raise UsageError(
            f"too little text: {train.count} training windows (a batch takes "
            f"{arguments.batch_size}) and {held_out.count} held out; give more text, or a smaller "
            "--batch_size or --max_length, or a larger --held_out_share"
        )
    return train, held_out


def _optimizer(model: Any, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; the loop sets the learning rate."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    groups.append({"params": others})
    return torch.optim.AdamW(groups, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)


def _environment(model: Any, workers: int) -> dict[str, Any]:
    """What the model card says about the machine, the software and the size of the model."""
    hardware = f"{platform.machine()} CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        hardware = names[0] if names else hardware
    if model.device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(model.device)}, {workers} of them"
    else:
        hardware += f", {workers * torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    parameters = sum(p.numel() for p in model.parameters())
    return {"hardware": hardware, "versions": versions, "parameters": parameters}
