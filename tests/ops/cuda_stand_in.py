"""A pytest plugin that runs tests/ops/test_gpu.py on the CPU, with stand-ins for the CUDA kernels.

    export PYTHONPATH=tests:tests/ops
    python -m pytest -p cuda_stand_in tests/ops/test_gpu.py -k "small and cuda"

Tensors that are requested on a GPU are made on the CPU, and the source of the kernels runs as in
test_cuda.py. This exercises the code of the tests, but no GPU, Triton, CUDA graph or stream.
"""

from contextlib import ExitStack

import pytest
import torch
from emulated_cuda import emulated
from torch.overrides import TorchFunctionMode

from masktuning.ops.backends import select


def _on_cpu(value):
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value == "cuda" else value


class _CpuForCuda(TorchFunctionMode):
    """Calls torch's functions with every device "cuda" replaced by the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cuda:
            return args[0].clone()  # as a copy to a GPU would be
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if function is torch.Tensor.to:  # in other functions the argument "cuda" is a back end
            args = tuple(map(_on_cpu, args))
        return function(*args, **kwargs)


def pytest_collection_modifyitems(items):
    for item in items:  # the only mark of the module is "needs a GPU"
        item.getparent(pytest.Module).own_markers.clear()


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    choose = select.choose
    with ExitStack() as stack:
        stack.enter_context(emulated())
        monkeypatch.setattr(select, "choose", choose)  # the tests say which back end
        for devices in select.PREFERRED.values():
            monkeypatch.setitem(devices, "cpu", ("cuda", "cpp"))
        monkeypatch.setattr(select, "unavailable_reason", lambda name, gpu: "")
        monkeypatch.setattr(select, "check", lambda name: name)
        stack.enter_context(_CpuForCuda())
        yield
