"""MaskTuningArguments: Hugging Face's TrainingArguments and the method's own options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

from masktuning.training.method_arguments import MethodArguments


@dataclass
class MaskTuningArguments(MethodArguments, TrainingArguments):
    """Every field of TrainingArguments, plus those of `config.MethodArguments`.

    Defaults that differ, for the reasons given: the raw columns are dropped by the collator; NaN
    losses must show; short runs must log too; batches are made by each process; copies overlap
    with the computation.

    Raises:
        ValueError: on an option out of range, naming it.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "The collator drops what no model reads."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hides NaN losses and waits for the device every step."}
    )
    logging_steps: float = field(
        default=0.02, metadata={"help": "Log every so many steps, or this share of all steps."}
    )

    def __post_init__(self) -> None:
        self.check()
        _check_ranges(self)
        gpu = torch.cuda.is_available() and not self.use_cpu
        if not gpu:
            self.dataloader_pin_memory = False  # nothing to copy to; torch would warn
        if self.accelerator_config is None:
            self.accelerator_config = {
                "dispatch_batches": False,
                "non_blocking": self.dataloader_pin_memory,
            }
        super().__post_init__()


def _check_ranges(args: TrainingArguments) -> None:
    """Raises ValueError, naming the option, for what Trainer would stumble over much later."""
    for name in (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
    ):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} is {getattr(args, name)}: give 1 or more")
    for name in ("learning_rate", "weight_decay", "seed"):
        if getattr(args, name) < 0:
            raise ValueError(f"{name} is {getattr(args, name)}: give 0 or more")
    if not 0 <= args.label_smoothing_factor < 1:
        raise ValueError(
            f"label_smoothing_factor is {args.label_smoothing_factor}: give 0 or more, below 1"
        )
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise ValueError(f"num_train_epochs is {args.num_train_epochs}: give a number above 0")
    if args.output_dir is not None and Path(args.output_dir).is_file():
        raise ValueError(f"output_dir: {args.output_dir} is a file; give a folder")
