"""Temporary."""

from __future__ import annotations

from dataclasses import dataclass, field

from masktuning.methods import METHODS


@dataclass
class MethodArguments:
    """How to train."""

    _argument_group_name = "method"

    method: str = field(
        default="mask_tuning", metadata={"help": "Training method.", "choices": list(METHODS)}
    )
    alpha: float = field(
        default=0.6,
        metadata={"help": "Weight of the masked-LM loss against the classification loss, 0 to 1."},
    )
    mask_rate: float = field(
        default=0.05, metadata={"help": "Share of an example's tokens to mask (at least one)."}
    )
    corruption: str = field(
        default="mask",
        metadata={
            "help": "What a masked token shows: always the mask, or BERT's 80/10/10.",
            "choices": ["mask", "80-10-10"],
        },
    )
    top_k: int = field(
        default=1,
        metadata={"help": "Fill in the most likely token (1), or draw among the k most likely."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Divides the logits of that draw; needs --top_k above 1."}
    )
    include_original: bool = field(
        default=False,
        metadata={"help": "Classify the original text too, with the perturbed one's weight."},
    )
    backend: str = field(
        default="auto",
        metadata={
            "help": "Kernels of the hot path.",
            "choices": ["auto", "reference", "cpp", "cuda", "triton"],
        },
    )

    def check(self) -> None:
        """Raises ValueError on an option out of range, naming it."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: it weighs two losses, from 0 to 1")
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate is {self.mask_rate}: give a share above 0, up to 1")
        if not 1 <= self.top_k <= 64:
            raise ValueError(f"top_k is {self.top_k}: give a number from 1 to 64")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}: give a number above 0")
