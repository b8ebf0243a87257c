"""The row kernel compared with eager PyTorch, torch.compile and, on a GPU, other packages.

Shapes: M masked positions, V vocabulary.
"""

import pytest
import torch
from row_peers import peers
from row_work import implementations, make_rows
from timing import half_dtype

GPU = torch.cuda.is_available()
SHAPES = [(800, 30522), (3270, 50265)] if GPU else [(102, 30522), (512, 50265)]
NAMES = ["copy", "cpp", "cuda", "triton", "eager", "torch.compile", "liger", "quack", "flash-attn"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize(("M", "V"), SHAPES)
def bench_substitute_tokens(benchmark, name, k, M, V):
    benchmark.group = f"substitute_tokens with gradient M={M} V={V} k={k}"
    dtype, device = (half_dtype(), "cuda") if GPU else (torch.float32, "cpu")
    logits, rows = make_rows(M, V, dtype, device)
    work = implementations(logits, rows, k) | peers(logits, rows, k)
    if name not in work:
        pytest.skip(f"{name} is not here")
    original = logits.clone()

    def call():
        work[name]()
        if GPU:
            torch.cuda.synchronize()

    benchmark.extra_info["bytes"] = 2 * logits.itemsize * M * V

    def restore():  # our kernels overwrite the logits, so every round needs them anew
        logits.copy_(original)

    benchmark.pedantic(call, setup=restore, rounds=30, warmup_rounds=3)
