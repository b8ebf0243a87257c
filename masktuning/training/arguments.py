"""MaskTuningArguments: Hugging Face's TrainingArguments with the options of a method."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from masktuning.config.errors import UsageError
from masktuning.methods import method_class
from masktuning.methods.choice import MethodChoice
from masktuning.methods.mask_tuning import MaskTuningOptions

logger = logging.getLogger(__name__)


@dataclass
class MethodArguments(MethodChoice, TrainingArguments):
    """Every field of TrainingArguments, the method and the back end.

    Defaults differ from TrainingArguments' where the collator drops the raw columns, NaN losses
    must show, short runs must log too, each process makes its own batches, and copies to the device
    overlap with the computation.

    Raises:
        ValueError: for an option that is out of range, naming it.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Unneeded: the collator drops what no model reads."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hides NaN losses and waits for the device every step."}
    )
    logging_steps: float = field(
        default=0.02, metadata={"help": "Log every so many steps, or this share of all steps."}
    )

    def __post_init__(self) -> None:
        method_options(self)
        _check_ranges(self)
        gpu = torch.cuda.is_available() and not self.use_cpu
        if not gpu:
            self.dataloader_pin_memory = False  # there is nothing to copy to; torch would warn
        if self.accelerator_config is None:
            self.accelerator_config = {
                "dispatch_batches": False,
                "non_blocking": self.dataloader_pin_memory,
            }
        super().__post_init__()


@dataclass
class MaskTuningArguments(MaskTuningOptions, MethodArguments):
    """TrainingArguments and the options of Mask-tuning, for `MaskTuningTrainer`.

    `arguments_for` gives the same class with the options of another method.

    Raises:
        ValueError: for an option that is out of range, naming it.
    """


@cache
def arguments_for(method: str) -> type[MethodArguments]:
    """MaskTuningArguments with the options of `method` in place of Mask-tuning's.

    Raises:
        UsageError: if there is no such method, or it cannot be used, or one of its options has the
            name of one of TrainingArguments.

    Example::

        args = arguments_for("span_cutoff")("out", cutoff_rate=0.2)
    """
    options = method_class(method).Options
    if options is MaskTuningOptions:
        return MaskTuningArguments
    taken = {f.name for f in fields(MethodArguments)} & {f.name for f in fields(options)}
    if taken:
        raise UsageError(
            f"the method {method!r} has an option {sorted(taken)[0]!r}, which is already one of "
            "TrainingArguments"
        )
    choice = next(f for f in fields(MethodChoice) if f.name == "method")
    own = ("method", str, field(default=method, metadata=dict(choice.metadata)))
    made: Any = make_dataclass("MethodArguments", [own], bases=(options, MethodArguments))
    return made


def method_options(args: Any) -> Any:
    """The options of the method that `args` name, with defaults for those that it has not.

    Raises:
        ValueError: for an option that is out of range, naming it.
        UsageError: if there is no such method, or it cannot be used.
    """
    options = method_class(args.method).Options
    here = [f.name for f in fields(options) if hasattr(args, f.name)]
    made = options(**{name: getattr(args, name) for name in here})
    if hasattr(made, "check"):
        made.check()
    return made


def use_one_gpu(args: MethodArguments) -> None:
    """Trainer would use every GPU of one process through DataParallel, which is slower."""
    if args.n_gpu > 1:
        logger.warning(
            "%d GPUs are here and one is used; start with `torchrun --nproc_per_node=%d` to use "
            "them all",
            args.n_gpu,
            args.n_gpu,
        )
        args._n_gpu = 1


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
