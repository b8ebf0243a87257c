"""dual_cross_entropy, forward and backward, on each back end at the size of a batch.

Shapes: B examples, C classes, M masked positions.
"""

import pytest
import torch

from masktuning.ops import backends, dual_cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("name", ["reference", "cpp", "cuda", "triton"])
@pytest.mark.parametrize(("M", "B", "C"), [(205, 32, 2), (3270, 128, 3)])
def bench_dual_cross_entropy(benchmark, name, M, B, C):
    if backends.available()[name] or (name == "cpp" and DEVICE == "cuda"):
        pytest.skip(f"{name} does not run on {DEVICE} here")
    benchmark.group = f"dual_cross_entropy M={M} B={B} C={C}"
    losses = torch.rand(M, device=DEVICE, requires_grad=True)
    logits = torch.randn(B, C, device=DEVICE, requires_grad=True)
    labels = torch.zeros(B, dtype=torch.int64, device=DEVICE)
    denominators = torch.tensor([float(M), float(B)], device=DEVICE)

    def call():
        dual = dual_cross_entropy(losses, logits, labels, denominators, 0.3)
        torch.autograd.grad(dual.loss, (losses, logits))
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with backends.use(name):
        benchmark(call)
