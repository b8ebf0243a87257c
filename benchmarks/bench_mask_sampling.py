"""sample_masks on each back end, at the shapes of the tasks.

Shapes: B examples, L tokens.
"""

import pytest
import torch

from masktuning.ops import backends, sample_masks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("name", ["reference", "cpp", "cuda", "triton"])
@pytest.mark.parametrize(("B", "L"), [(16, 32), (32, 128), (128, 512)])
def bench_sample_masks(benchmark, name, B, L):
    if backends.available()[name] or (name == "cpp" and DEVICE == "cuda"):
        pytest.skip(f"{name} does not run on {DEVICE} here")
    benchmark.group = f"sample_masks B={B} L={L}"
    generator = torch.Generator().manual_seed(0)
    lengths_B = torch.randint(L // 2, L + 1, (B,), generator=generator)
    maskable = torch.arange(L) < lengths_B[:, None]
    counts_B = ((lengths_B * round(0.05 * 2**32) + 2**31) >> 32).clamp(min=1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts_B.cumsum(0)])
    arguments = (
        torch.randint(5, 30000, (B, L), generator=generator),
        maskable,
        torch.arange(B),
        offsets,
        torch.tensor([0, 0]),
        int(offsets[-1]),
        4,
    )
    arguments = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments]

    def call():
        sample_masks(*arguments)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with backends.use(name):
        benchmark(call)
