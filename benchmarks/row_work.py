"""The work of the row kernel, done by each implementation that is here.

The work: cross-entropy with its gradient, the k largest that are not banned, one of them drawn, put
into the text; on a GPU the decoder's bias too, which the CUDA and Triton kernels add to the logits
(the C++ one gets them with the bias in, from the matrix product). All sides reuse their buffers;
ours overwrites the logits with their gradient. `copy` reads and writes as many bytes as the kernel
must.

Shapes: M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from masktuning.ops import backend, cpp, cuda, triton

Call = Callable[[], Any]
SPECIAL = 4
"""How many ids BERT and RoBERTa ban: all special ones but [UNK]."""


def make_rows(
    M: int, V: int, dtype: torch.dtype = torch.float32, device: str = "cpu", banned: int = SPECIAL
) -> tuple[Tensor, dict[str, Any]]:
    """Logits with a padded row stride, as masked_lm_head makes them, and what belongs to them."""
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


def choose_and_put_in(logits: Tensor, rows: dict[str, Any], k: int) -> Tensor:
    """Ban, top-k, draw and scatter by stock PyTorch; the banned logits become -inf."""
    if rows["banned_ids"] is not None:
        logits.index_fill_(1, rows["banned_ids"], -torch.inf)
    values, indices = logits.topk(k, dim=1)
    chosen = torch.multinomial(values.float().softmax(1), 1) if k > 1 else 0 * indices
    filled = rows["input_ids"].clone()
    filled.view(-1)[rows["positions"]] = indices.gather(1, chosen).squeeze(1)
    return filled


def eager(logits: Tensor, rows: dict[str, Any], k: int, buffers: tuple[Tensor, Tensor]) -> Any:
    """Stock PyTorch, gathered rows, in place where it can be."""
    log_p, gradient = buffers
    targets = rows["targets"]
    if rows["bias"] is not None:
        logits += rows["bias"]
    torch.log_softmax(logits, 1, out=log_p)
    losses = -log_p.gather(1, targets[:, None]).squeeze(1)
    torch.exp(log_p, out=gradient)
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, choose_and_put_in(logits, rows, k), gradient


def implementations(logits: Tensor, rows: dict[str, Any], k: int) -> dict[str, Call]:
    """By name, what does the work on these rows: a copy, ours, and eager PyTorch."""
    buffers = (torch.empty_like(logits), torch.empty_like(logits))
    scale = 1024.0 if logits.dtype == torch.float16 else 1.0
    draw = {"temperature": 1.0, "gradient_scale": scale}
    work: dict[str, Call] = {"copy": lambda: buffers[0].copy_(logits)}
    for name, module in (("cpp", cpp), ("cuda", cuda), ("triton", triton)):
        own = name == "cpp" if logits.device.type == "cpu" else name != "cpp"
        if own and not backend.available()[name]:
            given = {n: v for n, v in rows.items() if n != "bias" or module.ADDS_BIAS}
            work[name] = lambda m=module, r=given: m.substitute_tokens(logits, **r, top_k=k, **draw)
    if "cuda" in work:  # the same kernel, but nothing reaches its threshold: no candidate, no draw
        free = rows | {"banned_ids": None}
        work["cuda, no choice"] = lambda: cuda.substitute_tokens(logits, **free, top_k=0, **draw)
    work["eager"] = lambda: eager(logits, rows, k, buffers)
    return work
