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
from masktuning.config.options import DataArguments, ModelArguments, RunArguments
from masktuning.methods import method_class
from masktuning.methods.choice import MethodChoice
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.training.class_weights import read_class_weights
from masktuning.training.precision import PRECISIONS, settle_precision

logger = logging.getLogger(__name__)


@dataclass
class MethodArguments(MethodChoice, TrainingArguments):
    """Every field of TrainingArguments, the method and the back end.

    Some defaults differ from those of TrainingArguments. `remove_unused_columns` and
    `logging_nan_inf_filter` are False, `logging_steps` is 0.02 and `train_sampling_strategy` is
    "group_by_length", as their help texts explain; `accelerator_config` lets each process make its
    own batches (`dispatch_batches` False) and, with a GPU, copies them while it computes
    (`non_blocking` True).

    Raises:
        ValueError: for an option that is out of range, naming it.
    """

    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Not needed: the collator drops columns that no model reads."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Would hide NaN losses, and wait for the device in every step."},
    )
    logging_steps: float = field(
        default=0.02, metadata={"help": "Log every so many steps, or this share of all steps."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "group_by_length makes batches of texts of similar length, which need little "
            "padding; random, sequential and batch_rebalance are Trainer's own.",
            "choices": ["group_by_length", "random", "sequential", "batch_rebalance"],
        },
    )
    precision: str | None = field(
        default=None,
        metadata={
            "help": "auto trains in bf16 where the device has instructions for it and in fp32 "
            "elsewhere; bf16 and fp16 are --bf16 and --fp16; without it those flags decide.",
            "choices": [*PRECISIONS],
        },
    )
    class_weights: list[float] | str | None = field(
        default=None,
        metadata={
            "help": "Weights of the labels in the cross-entropy, in the order of their ids, such "
            "as 1.0,2.5; balanced gives a label with n_c of the n training examples n / (C * n_c).",
            "nargs": "+",
        },
    )
    pad_to_multiple_of: int | None = field(
        default=None,
        metadata={"help": "Pad batches to a multiple of this length, so that few lengths occur."},
    )

    def __post_init__(self) -> None:
        method_options(self)
        self.class_weights = read_class_weights(self.class_weights)
        _check_ranges(self)
        settle_precision(self)
        if self.remove_unused_columns:  # Trainer would drop those of the method, and example_id
            logger.warning(
                "warning: remove_unused_columns is not needed and stays off: the collator drops "
                "columns that no model reads, and masks are drawn by the column example_id"
            )
            self.remove_unused_columns = False
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

        args = arguments_for("cutoff")("out", cutoff_rate=0.2)
    """
    options = method_class(method).Options
    if options is MaskTuningOptions:
        return MaskTuningArguments
    others = (ModelArguments, DataArguments, RunArguments)
    reserved = {*dir(MethodArguments), *(f.name for group in others for f in fields(group))}
    if taken := reserved & {f.name for f in fields(options)}:
        raise UsageError(
            f"the method {method!r} has an option {sorted(taken)[0]!r}, a name that is already one "
            "of TrainingArguments or of the command"
        )
    choice = next(f for f in fields(MethodChoice) if f.name == "method")
    own = ("method", str, field(default=method, metadata=dict(choice.metadata)))
    # Options may have a __post_init__ of its own, which must not hide that of the arguments.
    # Pickle finds no class that was made here by its name; Trainer pickles the arguments that it
    # uploads to the hub.
    namespace = {
        "__post_init__": MethodArguments.__post_init__,
        "__reduce__": lambda self: (_unpickled, (self.method, self.__dict__)),
    }
    bases = (options, MethodArguments)
    made: Any = make_dataclass("MethodArguments", [own], bases=bases, namespace=namespace)
    return made


def _unpickled(method: str, values: dict[str, Any]) -> MethodArguments:
    """Arguments that `arguments_for(method)` gave, with the values that were pickled."""
    made = object.__new__(arguments_for(method))
    made.__dict__.update(values)
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
            "Only one of %d GPUs is used; start with `torchrun --nproc_per_node=%d` to use all",
            args.n_gpu,
            args.n_gpu,
        )
        args._n_gpu = 1


def _check_ranges(args: MethodArguments) -> None:
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
    if args.pad_to_multiple_of is not None and args.pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of is {args.pad_to_multiple_of}: give 1 or more")
    if args.neftune_noise_alpha is not None:  # Trainer would look for the embeddings in the method
        raise ValueError("neftune_noise_alpha is not supported: leave it out")
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise ValueError(f"num_train_epochs is {args.num_train_epochs}: give a number above 0")
    if args.output_dir is not None and Path(args.output_dir).is_file():
        raise ValueError(f"output_dir: {args.output_dir} is a file; give a folder")
