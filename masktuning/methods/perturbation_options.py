"""The options of methods that perturb texts as Mask-tuning does, but have another loss."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from masktuning.methods.mask_tuning_options import MaskTuningOptions


def same_option(name: str, **changed: Any) -> Any:
    """The field of Mask-tuning's option `name`, with its help; `default` may differ."""
    known = MaskTuningOptions.__dataclass_fields__[name]
    return field(**{"default": known.default, "metadata": dict(known.metadata), **changed})


@dataclass
class PerturbationOptions:
    """Which tokens are masked and what replaces them, with the defaults of Mask-tuning."""

    mask_rate: float = same_option("mask_rate")
    min_per_example: int = same_option("min_per_example")
    corruption: str = same_option("corruption")
    top_k: int = same_option("top_k")
    temperature: float = same_option("temperature")

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        self.of_mask_tuning().check()

    def of_mask_tuning(self) -> MaskTuningOptions:
        """The options with which `MaskTuning` makes this perturbation and trains no masked LM."""
        own = {f.name: getattr(self, f.name) for f in fields(PerturbationOptions)}
        return MaskTuningOptions(alpha=0.0, **own)
