"""Which back ends exist here, which one an op uses, and how to force one.

    with masktuning.ops.backend.use("reference"): ...
    MASKTUNING_BACKEND=cpp python -m masktuning.train

`auto`, the default, takes the first back end of the op's own list that runs on the tensors'
device, and warns once where a faster one was to be expected. A forced back end that is not there
is an error. An op that a back end does not implement runs on the reference.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from masktuning.ops import cpp, cuda, cuda_images, triton
from masktuning.ops.native import extension

NAMES = ("reference", "cpp", "cuda", "triton")
ENVIRONMENT = "MASKTUNING_BACKEND"
CUDA_SWITCH = "MASKTUNING_CUDA"  # 0 leaves the CUDA kernels out

# What each op should run on, by device type, fastest first. The reference runs everywhere.
_EVERYWHERE = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}
PREFERRED: dict[str, dict[str, tuple[str, ...]]] = {
    "sample_masks": _EVERYWHERE,
    "sample_masks_threshold": {"cpu": ("cpp",)},
    "substitute_tokens": _EVERYWHERE,
    "masked_lm_head": _EVERYWHERE,
    "dual_cross_entropy": _EVERYWHERE,
}

_MODULES = {"cpp": cpp, "cuda": cuda, "triton": triton}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_forced: ContextVar[str | None] = ContextVar("masktuning_backend", default=None)


class BackendError(ValueError):
    """A back end was asked for that does not exist or does not run on this machine."""


def available() -> Mapping[str, str]:
    """Every back end with why it is not usable here; an empty reason means it is."""
    gpu = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    return MappingProxyType({name: missing(name, gpu) for name in NAMES})


@cache
def missing(name: str, gpu: torch.device | None) -> str:
    """Why a back end does not run here (cuda and triton: on `gpu`), or ""; loads CUDA kernels."""
    if name == "reference" or (name == "cpp" and extension()):
        return ""
    if name == "cpp":
        return "masktuning_C is not built: run `pip install .`"
    if gpu is None:
        return "torch sees no CUDA device"
    if name == "triton":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    if os.environ.get(CUDA_SWITCH) == "0":
        return f"{CUDA_SWITCH}=0 leaves it out"
    if not extension():
        return missing("cpp", None)
    try:
        cuda.load(gpu.index)
    except (cuda_images.ImageError, OSError) as error:
        return str(error)
    return ""


def check(name: str) -> str:
    """Returns `name` if it is "auto" or a back end that runs here.

    Raises:
        BackendError: naming the reason and what to do.
    """
    if name == "auto":
        return name
    if name not in NAMES:
        raise BackendError(f"unknown back end {name!r}: choose from auto, {', '.join(NAMES)}")
    reason = available()[name]
    if reason:
        raise BackendError(f"back end {name!r} is not available here: {reason}")
    return name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Forces one back end within a `with` block; "auto" leaves it to the environment.

    Raises:
        BackendError: if it is not available here.
    """
    token = _forced.set(check(name) if name != "auto" else None)
    try:
        yield
    finally:
        _forced.reset(token)


@torch.compiler.assume_constant_result
def choose(op: str, device: torch.device) -> str:
    """The back end that `op` uses for tensors on `device`; torch.compile asks once, as it traces.

    Raises:
        BackendError: if the one forced by `use` or the environment is not available here.
    """
    forced = _forced.get() or os.environ.get(ENVIRONMENT, "auto")
    candidates = PREFERRED[op].get(device.type, ())
    if forced != "auto":
        return forced if check(forced) in candidates else "reference"
    gpu = device if device.type == "cuda" else None
    for name in candidates:
        if not missing(name, gpu):
            break
    else:
        name = "reference"
    if candidates and name != candidates[0]:
        _warn_once(op, device, name, candidates[0])
    return name


def kernels_for(op: str, tensor: Tensor) -> str:
    """The back end whose kernels `op` runs on for this tensor; "" for the reference.

    A float tensor that only the reference takes (float64) goes there whatever was chosen.
    """
    name = choose(op, tensor.device)
    if name == "reference" or (tensor.is_floating_point() and tensor.dtype not in _FLOATS):
        return ""
    return name


def module(name: str) -> Any:
    """The kernels of a back end as functions of tensors: ops.cpp, ops.cuda or ops.triton."""
    return _MODULES[name]


@cache
def _warn_once(op: str, device: torch.device, found: str, wanted: str) -> None:
    name = "the PyTorch reference" if found == "reference" else found
    reason = missing(wanted, device if device.type == "cuda" else None)
    warnings.warn(
        f"{op} on {device.type} runs on {name}: {wanted}: {reason}", RuntimeWarning, stacklevel=4
    )


def missing_gpu_code(capability: tuple[int, int], built_for: Sequence[str]) -> str:
    """Why a torch built for the architectures `built_for` has no code for a GPU; "" if it has.

    A GPU runs machine code (sm_XY) of its own major version up to its own minor one, and compiles
    older intermediate code (compute_XY) itself.
    """
    own = 10 * capability[0] + capability[1]
    for name in built_for:
        kind, _, digits = name.partition("_")
        number = int("".join(filter(str.isdigit, digits)))
        if number <= own and (kind == "compute" or number // 10 == capability[0]):
            return ""
    return (
        f"this torch has no code for sm_{own}, only for {', '.join(built_for) or 'the CPU'}: "
        "install a build that has (for a V100, torch==2.13.0 for CUDA 12.6)"
    )


def describe() -> list[dict[str, Any]]:
    """The back end of every op on every device at hand, and why it is not a faster one."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    return [
        {"op": op, "device": device.type, "backend": name, "why": _why(op, device, name)}
        for op in PREFERRED
        for device in devices
        for name in [choose(op, device)]
    ]


def _why(op: str, device: torch.device, found: str) -> str:
    """Why an op does not run on the first of its back ends; "" where it does."""
    candidates = PREFERRED[op].get(device.type, ())
    if not candidates:
        return f"it has no kernel for {device.type}"
    if found == candidates[0]:
        return ""
    gpu = device if device.type == "cuda" else None
    reasons = [f"{name}: {reason}" for name in candidates if (reason := missing(name, gpu))]
    return "; ".join(reasons) or f"{ENVIRONMENT} asks for it"
