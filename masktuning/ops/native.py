"""The compiled module masktuning_C, and how tensors are handed to it: as addresses."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType

from torch import Tensor

_ABI = 4  # of masktuning_C; raised together with kAbi in csrc/bindings.cpp


@cache
def extension() -> ModuleType | None:
    """The compiled module masktuning_C, or None where it is missing or of another version."""
    try:
        module = importlib.import_module("masktuning_C")
    except ModuleNotFoundError:
        return None
    if module.ABI != _ABI:
        warnings.warn(
            f"masktuning_C has ABI {module.ABI}, this masktuning needs {_ABI}: rebuild it with "
            "`pip install .`; until then the PyTorch reference runs in its place",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return module


def module() -> ModuleType:
    """masktuning_C, for a back end that was chosen because it is there."""
    found = extension()
    assert found is not None
    return found


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors without gaps; the caller holds the list until the kernel has been started."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def address(tensor: Tensor | None) -> int:
    """Where its elements are, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
