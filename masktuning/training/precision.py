"""The floating-point precision of training: what `--precision auto` chooses on which device."""

from __future__ import annotations

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def settle_precision(args: Any) -> None:
    """Sets `bf16` or `fp16` of TrainingArguments as `args.precision` asks for, if it is given.

    Raises:
        ValueError: if `precision` contradicts `bf16` or `fp16`.
    """
    if args.precision is None:
        return
    wanted = args.precision if args.precision != "auto" else automatic(args.use_cpu)[0]
    for name in ("bf16", "fp16"):
        if getattr(args, name) and wanted != name:
            raise ValueError(f"precision {args.precision} and {name} contradict: give one of them")
        setattr(args, name, wanted == name)
    if wanted == "bf16" and not torch.cuda.is_available():
        args.use_cpu = True  # TrainingArguments refuses bf16 on a CPU without it


def automatic(use_cpu: bool = False) -> tuple[str, str]:
    """What `auto` stands for on this machine, and the reason.

    bf16 where the device has instructions for it, and fp32 otherwise. It is never fp16, whose loss
    scaling skips steps.
    """
    if torch.cuda.is_available() and not use_cpu:
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name} computes in it"
        return "fp32", f"{name} has no bf16 instructions"
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "this CPU has AMX instructions"
    if torch.cpu._is_avx512_bf16_supported():
        return "bf16", "this CPU has AVX512-BF16 instructions"
    return "fp32", "this CPU has no bf16 instructions"


def say_precision(args: Any) -> None:
    """Says which precision `auto` has chosen, and why."""
    if args.precision == "auto" and args.process_index == 0:
        logger.warning("precision auto: training in %s, since %s", *automatic(args.use_cpu))
