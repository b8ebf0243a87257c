"""MaskTuningArguments: Hugging Face's TrainingArguments and the method's own options."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from masktuning.config import MethodArguments


@dataclass
class MaskTuningArguments(MethodArguments, TrainingArguments):
    """Every field of TrainingArguments, plus those of `config.MethodArguments`.

    Four defaults differ, for the reasons given: the raw columns are dropped by the collator; NaN
    losses must show; batches are made by each process; copies overlap with the computation.

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
        default=50, metadata={"help": "Log every so many steps, or this share of all steps."}
    )

    def __post_init__(self) -> None:
        self.check()
        gpu = torch.cuda.is_available() and not self.use_cpu
        if not gpu:
            self.dataloader_pin_memory = False  # nothing to copy to; torch would warn
        if self.accelerator_config is None:
            self.accelerator_config = {
                "dispatch_batches": False,
                "non_blocking": self.dataloader_pin_memory,
            }
        super().__post_init__()
