"""The row kernel beside eager PyTorch doing the same work, and a copy of the same bytes.

The work: cross-entropy forward and backward, the k largest, one drawn, put into the text. Both
sides reuse their buffers; ours overwrites the logits with their gradient. `copy_` reads and writes
as many bytes as the kernel must.

Shapes: M masked positions, V vocabulary.
"""

import pytest
import torch

from masktuning.ops import cpp

SHAPES = [(102, 30522), (512, 50265)]


def make_rows(M, V):
    generator = torch.Generator().manual_seed(0)
    stride = -(-V // 64) * 64
    logits = torch.randn(M, stride, generator=generator)[:, :V]
    input_ids = torch.randint(0, V, (M, 20), generator=generator)
    positions = torch.arange(M) * 20 + 3
    return logits, {
        "input_ids": input_ids,
        "positions": positions,
        "targets": input_ids.flatten()[positions],
        "example_ids": torch.arange(M),
        "rng": torch.tensor([0, 0]),
    }


def eager(logits, input_ids, positions, targets, k, buffers):
    """Stock PyTorch, gathered rows, in place where it can be."""
    log_p, gradient = buffers
    torch.log_softmax(logits, 1, out=log_p)
    losses = -log_p.gather(1, targets[:, None]).squeeze(1)
    torch.exp(log_p, out=gradient)
    gradient[torch.arange(len(targets)), targets] -= 1
    values, indices = logits.topk(k, dim=1)
    chosen = torch.multinomial(values.softmax(1), 1) if k > 1 else torch.zeros_like(indices)
    tokens = indices.gather(1, chosen).squeeze(1)
    filled = input_ids.clone()
    filled.view(-1)[positions] = tokens
    return losses, tokens, filled, gradient


@pytest.mark.parametrize("name", ["copy", "cpp", "eager"])
@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize(("M", "V"), SHAPES)
def bench_substitute_tokens(benchmark, name, k, M, V):
    benchmark.group = f"substitute_tokens with gradient M={M} V={V} k={k}"
    logits, rows = make_rows(M, V)
    buffers = (torch.empty(M, V), torch.empty(M, V))
    original = logits.clone()

    def restore():
        logits.copy_(original)

    work = {
        "copy": lambda: buffers[0].copy_(logits),
        "cpp": lambda: cpp.substitute_tokens(
            logits, **rows, banned_ids=None, top_k=k, temperature=1.0, gradient_scale=1.0
        ),
        "eager": lambda: eager(
            logits, rows["input_ids"], rows["positions"], rows["targets"], k, buffers
        ),
    }
    benchmark.extra_info["bytes"] = 2 * 4 * M * V
    # Fresh logits for every round: ours has written its gradient over them.
    benchmark.pedantic(work[name], setup=restore, rounds=30, warmup_rounds=3)
