"""Starts Triton kernels.

Each op has a function that describes its launch as a `Launch`. The tests compile these for GPUs
that are not present.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch


class Launch(NamedTuple):
    """A kernel together with everything that it is compiled for and started with."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@cache
def kernels(file: str) -> Any:
    """The module kernels/<file>.py, imported on first use.

    Triton may not be installed, and importing it takes a while.
    """
    return import_module(f"masktuning.kernels.{file}")


def start(launch: Launch, device: torch.device) -> None:
    """Starts a kernel on `device`.

    Triton starts kernels on the current device, wherever the tensors are, so `device` is made the
    current one.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        launch.kernel[(launch.programs,)](*launch.arguments, **launch.options)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()
