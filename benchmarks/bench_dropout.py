"""Dropout on the CPU compared with PyTorch's, at the shapes of hidden states."""

import pytest
import torch

from masktuning.ops import backends
from masktuning.ops.dropout import dropout


@pytest.mark.parametrize("name", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(192, 256), (512, 768)], ids=["192x256", "512x768"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
def bench_dropout(benchmark, name, dtype, shape, backward):
    if reason := backends.available()[name]:
        pytest.skip(reason)
    passes = "forward and backward" if backward else "forward"
    benchmark.group = f"dropout {shape[0]} x {shape[1]} {dtype} {passes}"
    x = torch.randn(shape).to(dtype).requires_grad_(backward)
    gradient = torch.ones(shape, dtype=dtype)

    def call():
        out = dropout(x, 0.1)
        if backward:
            out.backward(gradient)
            x.grad = None

    with backends.use(name):
        benchmark(call)
