"""Which back ends exist on this machine, which one an op uses, and how to force one.

`auto`, the default, takes the first back end of the op's own list that runs on the tensors'
device, and warns once if a faster one was expected. Forcing a back end that is not available is an
error. An op that the forced back end does not implement runs on the PyTorch reference.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from masktuning.ops.backends import extension, launch
from masktuning.ops.checks import KERNEL_FLOATS

NAMES = ("reference", "cpp", "cuda", "triton")
ENVIRONMENT = "MASKTUNING_BACKEND"
CUDA_SWITCH = "MASKTUNING_CUDA"  # the value 0 disables the CUDA kernels

PREFERRED: dict[str, dict[str, tuple[str, ...]]] = {}
"""The back ends of each registered op by device type, fastest first."""

_forced: ContextVar[str | None] = ContextVar("masktuning_backend", default=None)

Kernel = Callable[..., Any]


class BackendError(ValueError):
    """A back end was requested that does not exist or does not run on this machine."""


def register(op: str, **devices: dict[str, Kernel]) -> dict[str, Kernel]:
    """Declares the back ends of an op, and returns its kernels by the name of the back end.

    Each op calls this in its own file. The reference needs no registration; it runs everywhere.

    Args:
        op: the name of the public function.
        devices: for each device type ("cpu", "cuda") the kernels by back end, fastest first.
    """
    PREFERRED[op] = {device: tuple(kernels) for device, kernels in devices.items()}
    return {name: kernel for kernels in devices.values() for name, kernel in kernels.items()}


def available() -> Mapping[str, str]:
    """Every back end with the reason why it cannot be used here, or "" if it can."""
    gpu = _current_gpu()
    return MappingProxyType({name: unavailable_reason(name, gpu) for name in NAMES})


def _current_gpu() -> torch.device | None:
    available = torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if available else None


@cache
def unavailable_reason(name: str, gpu: torch.device | None) -> str:
    """Why a back end does not run here (cuda and triton: on `gpu`), or "" if it does.

    Asking for "cuda" loads the CUDA kernels, so this happens before any graph is captured.
    """
    if name == "reference" or (name == "cpp" and extension.find()):
        return ""
    if name == "cpp":
        return "masktuning_C is not built: run `pip install .`"
    if gpu is None:
        return "torch sees no CUDA device"
    if name == "triton":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    if os.environ.get(CUDA_SWITCH) == "0":
        return f"{CUDA_SWITCH}=0 disables it"
    if not extension.find():
        return unavailable_reason("cpp", None)
    try:
        launch.load(gpu.index)
    except (RuntimeError, OSError) as error:  # of the driver, NVRTC, or a home that is not there
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
    reason = unavailable_reason(name, _current_gpu())  # of this one alone: "cuda" may compile
    if reason:
        raise BackendError(f"back end {name!r} is not available here: {reason}")
    return name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Forces one back end within a `with` block; "auto" leaves the choice to the environment.

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
    """The back end that `op` uses for tensors on `device`; torch.compile asks once, when it traces.

    Raises:
        BackendError: if the one forced by `use` or the environment is not available here.
    """
    forced = _forced.get() or os.environ.get(ENVIRONMENT, "auto")
    candidates = PREFERRED[op].get(device.type, ())
    if forced != "auto":
        return forced if check(forced) in candidates else "reference"
    gpu = device if device.type == "cuda" else None
    for name in candidates:
        if not unavailable_reason(name, gpu):
            break
    else:
        name = "reference"
    if candidates and name != candidates[0]:
        _warn_once(op, device, name, candidates[0])
    return name


def kernels_for(op: str, tensor: Tensor) -> str:
    """The back end whose kernels `op` uses for this tensor, or "" for the reference.

    A floating-point tensor that no kernel accepts (float64) always goes to the reference.
    """
    name = choose(op, tensor.device)
    if name == "reference" or (tensor.is_floating_point() and tensor.dtype not in KERNEL_FLOATS):
        return ""
    return name


@cache
def _warn_once(op: str, device: torch.device, found: str, wanted: str) -> None:
    name = "the PyTorch reference" if found == "reference" else found
    reason = unavailable_reason(wanted, device if device.type == "cuda" else None)
    warnings.warn(
        f"{op} on {device.type} runs on {name}: {wanted}: {reason}", RuntimeWarning, stacklevel=4
    )


def missing_gpu_code(capability: tuple[int, int], built_for: Sequence[str]) -> str:
    """Why a torch built for the architectures `built_for` has no code for a GPU, or "" if it has.

    A GPU runs machine code (sm_XY) that was built for its own major version and for a minor version
    not above its own. It compiles older intermediate code (compute_XY) itself.
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
    """The back end of every op on every device of this machine, and why it is not a faster one."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    return [
        {"op": op, "device": device.type, "backend": name, "why": _why(op, device, name)}
        for op in sorted(PREFERRED)
        for device in devices
        for name in [choose(op, device)]
    ]


def _why(op: str, device: torch.device, found: str) -> str:
    """Why an op does not run on the fastest of its back ends, or "" if it does."""
    candidates = PREFERRED[op].get(device.type, ())
    if not candidates:
        return f"it has no kernel for {device.type}"
    if found == candidates[0]:
        return ""
    gpu = device if device.type == "cuda" else None
    found_reasons = ((name, unavailable_reason(name, gpu)) for name in candidates)
    reasons = [f"{name}: {reason}" for name, reason in found_reasons if reason]
    return "; ".join(reasons) or f"{ENVIRONMENT} asks for it"
