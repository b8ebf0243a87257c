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
    "substitute_tokens": _EVERYWHERE,
    "masked_lm_head": _EVERYWHERE,
    "dual_cross_entropy": _EVERYWHERE,
}

_MODULES = {"cpp": cpp, "cuda": cuda, "triton": triton}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_forced: ContextVar[str | None] = ContextVar("masktuning_backend", default=None)


class BackendError(ValueError):
    """A back end was asked for that does not exist or does not run on this machine."""


@cache
def available() -> Mapping[str, str]:
    """Every back end with why it is not usable here; an empty reason means it is."""
    missing_cpp = "" if extension() else "masktuning_C is not built: run `pip install .`"
    missing_gpu = "" if torch.cuda.is_available() else "torch sees no CUDA device"
    no_triton = "" if importlib.util.find_spec("triton") else "triton is not installed"
    return MappingProxyType(
        {
            "reference": "",
            "cpp": missing_cpp,
            "cuda": missing_gpu or missing_cpp or _missing_cuda(),
            "triton": missing_gpu or no_triton,
        }
    )


def _missing_cuda() -> str:
    """Loads the CUDA kernels on the current GPU; why that cannot be, or ""."""
    if os.environ.get(CUDA_SWITCH) == "0":
        return f"{CUDA_SWITCH}=0 leaves it out"
    try:
        cuda.load(torch.cuda.current_device())
    except (cuda_images.ImageError, RuntimeError) as error:
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
    found = next((name for name in candidates if not available()[name]), "reference")
    if candidates and found != candidates[0]:
        _warn_once(op, device.type, found, candidates[0])
    return found


def kernels_for(op: str, tensor: Tensor) -> Any:
    """The module of kernels (ops.cpp, ops.cuda or ops.triton) that `op` runs on for this tensor.

    None means the reference: chosen, or because a float tensor is one that only it takes (float64).
    """
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        return None
    return _MODULES.get(choose(op, tensor.device))


def kernels_compiled_in(op: str, tensor: Tensor) -> Any:
    """The same inside a registered op, which stands in a graph whatever is forced by now.

    Raises:
        BackendError: if nothing but the reference runs there.
    """
    if kernels := kernels_for(op, tensor):
        return kernels
    for name in PREFERRED[op].get(tensor.device.type, ()):
        if not available()[name]:
            return _MODULES[name]
    raise BackendError(f"{op} was compiled for kernels that are not available on {tensor.device}")


@cache
def _warn_once(op: str, device: str, found: str, wanted: str) -> None:
    name = "the PyTorch reference" if found == "reference" else found
    warnings.warn(
        f"{op} on {device} runs on {name}: {wanted}: {available()[wanted]}",
        RuntimeWarning,
        stacklevel=4,
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
    """For every op and device at hand, the back end that it would use now."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [
        {"op": op, "device": device, "backend": choose(op, torch.device(device))}
        for op in PREFERRED
        for device in devices
    ]
