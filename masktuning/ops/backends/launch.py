"""Starts CUDA kernels on torch's current stream, with their arguments packed into one struct.

Each op declares in its own file which kernels its .cu file has and what struct they take. Nothing
here waits for the device.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

from masktuning.ops.backends import cubins, extension

DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""How the kernels' names spell the dtype of their logits."""


class CudaFile(NamedTuple):
    """What one .cu file of csrc/cuda contains."""

    struct: str
    """The format, as the module `struct` writes it, of the argument that every kernel takes."""
    kernels: tuple[str, ...]


DECLARED: dict[str, CudaFile] = {}
"""The declared .cu files by name, without the suffix."""


def declare(file: str, struct: str, kernels: Sequence[str]) -> CudaFile:
    """Declares the kernels of csrc/cuda/<file>.cu, so that they are loaded with the others."""
    DECLARED[file] = declared = CudaFile(struct, tuple(kernels))
    return declared


@cache
def load(device: int) -> dict[str, int]:
    """Loads all declared kernels on a GPU.

    This is done when the back end is chosen, so before any graph is captured.

    Raises:
        CubinError: if the kernels cannot be had for this GPU.
    """
    major, minor = torch.cuda.get_device_capability(device)
    kernels = {file: declared.kernels for file, declared in DECLARED.items()}
    return cubins.load(device, f"sm_{major}{minor}", kernels)


def start(
    device: torch.device, kernel: str, grid: tuple[int, int], threads: int, arguments: bytes
) -> None:
    """Starts a kernel with the packed struct `arguments` on torch's current stream of `device`."""
    index = device.index  # never None for the device of a tensor
    stream = torch._C._cuda_getCurrentRawStream(index)
    extension.module().cuda_launch(index, load(index)[kernel], *grid, threads, stream, arguments)


def pack(file: CudaFile, *values: float) -> bytes:
    """The struct that the kernels of `file` take."""
    return struct.pack(file.struct, *values)
