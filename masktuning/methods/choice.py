"""The two options that every training run has: its method, and the kernels it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field

from masktuning.methods import names


@dataclass
class MethodChoice:
    """Which method trains, and which kernels its operations run on."""

    _argument_group_name = "method"

    method: str = field(
        default="mask_tuning",
        metadata={
            "help": "Training method. `--method NAME --help` shows the options of one method.",
            "choices": names(),
        },
    )
    backend: str = field(
        default="auto",
        metadata={
            "help": "Kernels of the operations; auto takes the fastest that this machine has.",
            "choices": ["auto", "reference", "cpp", "cuda", "triton"],
        },
    )
