"""The trainings that bench_step.py and bench_epoch.py compare, each as a Trainer.

    a  Mask-tuning written with stock classes: every position through the masked-LM head
    b  the same, with the masked positions only
    c  plain fine-tuning by stock Trainer with its defaults: what the others are compared with
    d  the same on texts padded to 128 tokens, the default of transformers' run_glue.py
    e  plain fine-tuning by MaskTuningTrainer
    f  Mask-tuning by MaskTuningTrainer, on each back end of this machine

Optimizer, learning rates, clipping, batch size, precision, seed and the steps that are logged are
the same for all. The options in which MaskTuningArguments differs from TrainingArguments are not.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from naive_step import NaiveMaskTuning
from starting_point import StartingPoint
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator
from transformers.utils import logging

from masktuning import MaskTuningModel, MaskTuningTrainer, arguments_for
from masktuning.ops import backends

GPU = torch.cuda.is_available()
NAIVE = "a: stock classes, all positions"
GATHERED = "b: stock classes, masked positions"
STOCK = "c: stock Trainer"
PADDED = "d: stock Trainer, padded to 128"
FINETUNING = "e: finetuning"
MASK_TUNING = "f: mask_tuning, "
"""Followed by the name of the back end."""
ALPHA = 0.3


@dataclass(frozen=True)
class Settings:
    """What all contenders have in common."""

    folder: Path
    """An output folder, in which nothing is left."""
    batch_size: int
    """Of one process."""
    precision: str
    """fp32, bf16 or fp16."""
    logging_steps: int = 500
    sequential: bool = False
    """Whether the rows are taken in their order, rather than as each Trainer does by default."""


def chosen(letters: str) -> list[str]:
    """The names of the contenders with the given letters, with commas between them."""
    # On a GPU, cpp is the reference: it has no kernel there.
    names = [n for n in ("cuda", "triton", "cpp", "reference") if not backends.available()[n]]
    ours = [f"{MASK_TUNING}{n}" for n in names if n != "cpp" or not GPU]
    known = [NAIVE, GATHERED, STOCK, PADDED, FINETUNING, *ours]
    wanted = letters.split(",")
    if unknown := set(wanted) - {name[0] for name in known}:
        raise SystemExit(f"--contenders: {sorted(unknown)[0]!r} is none of a, b, c, d, e and f")
    return [name for name in known if name[0] in wanted]


def check_machine(precision: str) -> None:
    """Ends the program where the contenders would not do the same."""
    if torch.cuda.device_count() > 1 and not torch.distributed.is_torchelastic_launched():
        raise SystemExit("stock Trainer would use all GPUs: set CUDA_VISIBLE_DEVICES to one")
    if precision == "fp16" and not GPU:
        raise SystemExit("--precision fp16 needs a GPU")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def make_model(name: str, start: StartingPoint) -> nn.Module:
    """What a contender trains: a fresh copy of the classifier, and of the masked LM if it has one.

    On a GPU it is there already, so that a short training is not measured with that transfer.
    """
    classifier = copy.deepcopy(start.classifier)
    model: nn.Module = classifier
    if name in (NAIVE, GATHERED):
        mlm = copy.deepcopy(start.mlm)
        model = NaiveMaskTuning(classifier, mlm, start.tokenizer, ALPHA, name == GATHERED)
    elif name == FINETUNING:
        model = MaskTuningModel(classifier, None)
    elif name.startswith(MASK_TUNING):
        model = MaskTuningModel(classifier, copy.deepcopy(start.mlm))
    return model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))) if GPU else model


def make_trainer(
    name: str, model: nn.Module, tokenizer: Any, rows: Any, settings: Settings
) -> Trainer:
    """A Trainer of a contender's model, ready for one epoch of `rows`."""
    shared: Any = {"model": model, "train_dataset": rows, "processing_class": tokenizer}
    if isinstance(model, MaskTuningModel):
        trainer: Trainer = MaskTuningTrainer(args=_our_arguments(name, settings), **shared)
    else:
        collator = default_data_collator if name == PADDED else None
        trainer = Trainer(args=_stock_arguments(settings), data_collator=collator, **shared)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "output_dir": str(settings.folder),
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": 1,
        "logging_steps": settings.logging_steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not GPU,
    }


def _stock_arguments(settings: Settings) -> TrainingArguments:
    return TrainingArguments(
        **_common(settings),
        **_half(settings.precision),
        train_sampling_strategy="sequential" if settings.sequential else "random",
    )


def _our_arguments(name: str, settings: Settings) -> Any:
    options = {"backend": name.removeprefix(MASK_TUNING), "alpha": ALPHA}
    arguments = arguments_for("finetuning" if name == FINETUNING else "mask_tuning")
    return arguments(
        **_common(settings),
        precision=settings.precision,
        train_sampling_strategy="sequential" if settings.sequential else "group_by_length",
        **({} if name == FINETUNING else options),
    )


def _half(precision: str) -> dict[str, Any]:
    return {"bf16": precision == "bf16", "fp16": precision == "fp16"}
