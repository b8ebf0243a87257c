"""sample_masks and sample_masks_threshold on each back end, at the shapes of the tasks.

Shapes: B examples, L tokens.
"""

import pytest
import torch

from masktuning.ops import backends, sample_masks, sample_masks_threshold

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RATE = round(0.05 * 2**32)
NAMES = pytest.mark.parametrize("name", ["reference", "cpp", "cuda", "triton"])
SHAPES = pytest.mark.parametrize(("B", "L"), [(16, 32), (32, 128), (128, 512)])


@NAMES
@SHAPES
def bench_sample_masks(benchmark, name, B, L):
    benchmark.group = f"sample_masks B={B} L={L}"
    input_ids, maskable, example_ids, rng = batch_of(B, L)
    counts_B = ((maskable.sum(1) * RATE + 2**31) >> 32).clamp(min=1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts_B.cumsum(0)])
    M = int(offsets[-1])
    measure(benchmark, name, sample_masks, input_ids, maskable, example_ids, offsets, rng, M, 4)


@NAMES
@SHAPES
def bench_sample_masks_threshold(benchmark, name, B, L):
    """On a GPU this includes the wait for the number of masked tokens."""
    benchmark.group = f"sample_masks_threshold B={B} L={L}"
    input_ids, maskable, example_ids, rng = batch_of(B, L)
    thresholds = maskable * RATE
    measure(benchmark, name, sample_masks_threshold, input_ids, thresholds, example_ids, rng, 4)


def batch_of(B, L):
    """Texts of L / 2 to L tokens: input_ids, maskable, example_ids and rng."""
    generator = torch.Generator().manual_seed(0)
    lengths_B = torch.randint(L // 2, L + 1, (B,), generator=generator)
    maskable = torch.arange(L) < lengths_B[:, None]
    input_ids = torch.randint(5, 30000, (B, L), generator=generator)
    return input_ids, maskable, torch.arange(B), torch.tensor([0, 0])


def measure(benchmark, name, op, *arguments):
    """Times an op on the device of this machine."""
    if backends.available()[name] or (name == "cpp" and DEVICE == "cuda"):
        pytest.skip(f"{name} does not run on {DEVICE} here")
    moved = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments]

    def call():
        op(*moved)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with backends.use(name):
        benchmark(call)
