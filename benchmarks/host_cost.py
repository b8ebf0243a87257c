"""What one call of each op costs the host, compared with the same in stock PyTorch.

    OMP_NUM_THREADS=1 python benchmarks/host_cost.py benchmarks/results/host_cost.json

This runs on the CPU, with so few rows that the arithmetic hardly counts. A fifth of 500 calls took
less time than what is reported.
Shapes: B examples, C classes, H width, L tokens, M masked positions, V vocabulary.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment, write_json

from masktuning.ops import dual_cross_entropy, masked_lm_head, sample_masks

CALLS = 500


def microseconds(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * sorted(times)[CALLS // 5]


def joint_losses() -> dict[str, Callable[[], Any]]:
    """dual_cross_entropy, forward and backward, with and without a gradient of the row losses."""
    M, B, C = 205, 32, 2
    losses, logits = torch.rand(M, requires_grad=True), torch.randn(B, C, requires_grad=True)
    labels, counts = torch.zeros(B, dtype=torch.int64), torch.tensor([float(M), float(B)])

    def both() -> None:
        dual = dual_cross_entropy(losses, logits, labels, counts, 0.3)
        torch.autograd.grad(dual.loss, (losses, logits))

    def detached() -> None:  # as in a training step with two backward passes
        dual = dual_cross_entropy(losses.detach(), logits, labels, counts, 0.3)
        torch.autograd.grad(dual.loss, logits)

    def stock() -> None:
        classification = F.cross_entropy(logits, labels, reduction="sum") / counts[1]
        loss = 0.3 * losses.sum() / counts[0] + 0.7 * classification
        torch.autograd.grad(loss, (losses, logits))

    def cross_entropy() -> None:
        torch.autograd.grad(F.cross_entropy(logits, labels), logits)

    return {
        "dual_cross_entropy": both,
        "dual_cross_entropy, detached row losses": detached,
        "the same in stock PyTorch": stock,
        "F.cross_entropy": cross_entropy,
    }


def masks_and_head() -> dict[str, Callable[[], Any]]:
    """sample_masks, and masked_lm_head without and with its backward pass."""
    B, L, M, H, V = 2, 16, 4, 8, 50
    input_ids, example_ids = torch.randint(5, V, (B, L)), torch.arange(B)
    maskable, rng = torch.ones(B, L, dtype=torch.bool), torch.tensor([0, 0])
    offsets = torch.tensor([0, 2, 4])
    masked = sample_masks(input_ids, maskable, example_ids, offsets, rng, M, 4)
    operands = [torch.randn(shape).requires_grad_() for shape in ((M, H), (V, H), (V,))]
    rows = (input_ids, masked.positions, masked.targets, example_ids, rng)

    def head() -> torch.Tensor:
        return masked_lm_head(*operands, *rows).losses.sum()

    def stock() -> torch.Tensor:
        return F.cross_entropy(F.linear(*operands), masked.targets, reduction="sum")

    return {
        "sample_masks": lambda: sample_masks(input_ids, maskable, example_ids, offsets, rng, M, 4),
        "masked_lm_head, forward": head,
        "masked_lm_head": lambda: torch.autograd.grad(head(), operands),
        "F.linear and F.cross_entropy": lambda: torch.autograd.grad(stock(), operands),
    }


if __name__ == "__main__":
    calls = joint_losses() | masks_and_head()
    for call in calls.values():
        microseconds(call)
    host_us = {name: round(microseconds(call), 1) for name, call in calls.items()}
    result = {"command": "python benchmarks/host_cost.py", **environment(), "host_us": host_us}
    print(json.dumps(result, indent=1))
    write_json(sys.argv[1] if len(sys.argv) > 1 else None, result)
