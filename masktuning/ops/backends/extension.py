"""The compiled C++ module masktuning_C, and how tensors are passed to it: by address."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType

from torch import Tensor

_ABI = 5  # must equal kAbi in csrc/bindings.cpp; both are raised when a signature there changes


@cache
def find() -> ModuleType | None:
    """The compiled module masktuning_C, or None if it is missing or of another version."""
    try:
        found = importlib.import_module("masktuning_C")
    except ModuleNotFoundError:
        return None
    if found.ABI != _ABI:
        warnings.warn(
            f"masktuning_C has ABI {found.ABI}, this masktuning needs {_ABI}: rebuild it with "
            "`pip install .`; until then the PyTorch reference runs in its place",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return found


def module() -> ModuleType:
    """masktuning_C, for a back end that was chosen because it is available."""
    found = find()
    assert found is not None
    return found


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in contiguous memory; keep the list until the kernel has been started."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def address(tensor: Tensor | None) -> int:
    """The address of the tensor's first element, or 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def length(tensor: Tensor | None) -> int:
    """The length of the tensor's first dimension, or 0 for None."""
    return 0 if tensor is None else tensor.shape[0]
