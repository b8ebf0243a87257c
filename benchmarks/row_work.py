"""The work of the row kernel, done by each implementation that is available.

The work is the cross-entropy with its gradient, the k largest logits that are not banned, a draw
among them, and the substitution in the text. On a GPU the bias of the decoder is added too, as the
CUDA and Triton kernels do; for the C++ kernel the matrix product adds it. All sides reuse their
buffers. Our kernels overwrite the logits by their gradient. `copy` reads and writes as many bytes
as they must.

Shapes: M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from masktuning.ops import backends
from masktuning.ops.masked_rows import MaskedRows, TokenChoice
from masktuning.ops.token_substitution_kernels import KERNELS

Call = Callable[[], Any]
SPECIAL = 4
"""How many ids BERT and RoBERTa ban: all special ids except [UNK]."""


def make_rows(
    M: int, V: int, dtype: torch.dtype = torch.float32, device: str = "cpu", banned: int = SPECIAL
) -> tuple[Tensor, dict[str, Any]]:
    """Logits with a padded row stride, as in masked_lm_head, and the other arguments by name."""
    generator = torch.Generator(device).manual_seed(0)
    stride = -(-V // 64) * 64
    logits = torch.randn(M, stride, generator=generator, device=device).to(dtype)[:, :V]
    bias = torch.randn(V, generator=generator, device=device).to(dtype)
    input_ids = torch.randint(0, V, (M, 32), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(M) * 32 + 3
    rows = {
        "input_ids": input_ids,
        "positions": positions,
        "targets": input_ids.flatten()[positions],
        "example_ids": torch.arange(M),
        "rng": torch.tensor([0, 0]),
        "banned_ids": torch.arange(banned) if banned else None,
    }
    rows = {name: tensor if tensor is None else tensor.to(device) for name, tensor in rows.items()}
    return logits, rows | {"bias": None if device == "cpu" else bias}


def choose_and_substitute(logits: Tensor, rows: dict[str, Any], k: int) -> Tensor:
    """Top-k, draw and scatter in stock PyTorch; the banned logits are overwritten by -inf."""
    if rows["banned_ids"] is not None:
        logits.index_fill_(1, rows["banned_ids"], -torch.inf)
    values, indices = logits.topk(k, dim=1)
    chosen = 0 * indices
    if k > 1:  # as torch.multinomial draws, which waits for a GPU to check its probabilities
        p = values.float().softmax(1)
        chosen = (p / torch.empty_like(p).exponential_()).argmax(1, keepdim=True)
    filled = rows["input_ids"].clone()
    filled.view(-1)[rows["positions"]] = indices.gather(1, chosen).squeeze(1)
    return filled


def eager(logits: Tensor, rows: dict[str, Any], k: int, buffers: tuple[Tensor, Tensor]) -> Any:
    """The work in stock PyTorch, in place where that is possible."""
    log_p, gradient = buffers
    targets = rows["targets"]
    if rows["bias"] is not None:
        logits += rows["bias"]
    torch.log_softmax(logits, 1, out=log_p)
    losses = -log_p.gather(1, targets[:, None]).squeeze(1)
    torch.exp(log_p, out=gradient)
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, choose_and_substitute(logits, rows, k), gradient


def implementations(logits: Tensor, rows: dict[str, Any], k: int) -> dict[str, Call]:
    """By name, the work on these rows done by a copy, by our kernels and by eager PyTorch."""
    buffers = (torch.empty_like(logits), torch.empty_like(logits))
    scale = 1024.0 if logits.dtype == torch.float16 else 1.0
    masked = MaskedRows(*(rows[field] for field in MaskedRows._fields))

    def ours(name: str, banned_ids: Tensor | None, top_k: int) -> Call:
        choice = TokenChoice(banned_ids, top_k, 1.0, None)
        return lambda: KERNELS[name](logits, rows["bias"], masked, choice, scale)

    work: dict[str, Call] = {"copy": lambda: buffers[0].copy_(logits)}
    for name in KERNELS:
        own = name == "cpp" if logits.device.type == "cpu" else name != "cpp"
        if own and not backends.available()[name]:
            work[name] = ours(name, rows["banned_ids"], k)
    if "cuda" in work:  # the same kernel, but no logit reaches its threshold, so it chooses nothing
        work["cuda, no choice"] = ours("cuda", None, 0)
    work["eager"] = lambda: eager(logits, rows, k, buffers)
    return work
