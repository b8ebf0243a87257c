"""The work of the row kernel, done by each implementation that is here.

The work: cross-entropy with its gradient, the k largest, one drawn, put into the text. All sides
reuse their buffers; ours overwrites the logits with their gradient. `copy` reads and writes as
many bytes as the kernel must.

Shapes: M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.ops import backend, cpp, cuda, triton

Call = Callable[[], Any]


def make_rows(
    M: int, V: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits with a padded row stride, as masked_lm_head makes them, and what belongs to them."""
    generator = torch.Generator().manual_seed(0)
    stride = -(-V // 64) * 64
    logits = torch.randn(M, stride, generator=generator).to(device, dtype)[:, :V]
    input_ids = torch.randint(0, V, (M, 20), generator=generator)
    positions = torch.arange(M) * 20 + 3
    rows = {
        "input_ids": input_ids,
        "positions": positions,
        "targets": input_ids.flatten()[positions],
        "example_ids": torch.arange(M),
        "rng": torch.tensor([0, 0]),
    }
    return logits, {name: tensor.to(device) for name, tensor in rows.items()}


def choose_and_put_in(logits: Tensor, rows: dict[str, Tensor], k: int) -> Tensor:
    """Top-k, draw and scatter by stock PyTorch."""
    values, indices = logits.topk(k, dim=1)
    chosen = torch.multinomial(values.float().softmax(1), 1) if k > 1 else 0 * indices
    filled = rows["input_ids"].clone()
    filled.view(-1)[rows["positions"]] = indices.gather(1, chosen).squeeze(1)
    return filled


def eager(logits: Tensor, rows: dict[str, Tensor], k: int, buffers: tuple[Tensor, Tensor]) -> Any:
    """Stock PyTorch, gathered rows, in place where it can be."""
    log_p, gradient = buffers
    targets = rows["targets"]
    torch.log_softmax(logits, 1, out=log_p)
    losses = -log_p.gather(1, targets[:, None]).squeeze(1)
    torch.exp(log_p, out=gradient)
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, choose_and_put_in(logits, rows, k), gradient


def through_autograd(loss: Callable[..., Tensor], logits: Tensor, rows: dict[str, Tensor]) -> None:
    leaf = logits.detach().requires_grad_()
    loss(leaf, rows["targets"]).backward()


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")


_compiled = torch.compile(_summed)


def implementations(
    logits: Tensor, rows: dict[str, Tensor], k: int, peers: bool = True
) -> dict[str, Call]:
    """By name, what does the work on these rows; those of other packages where they are here."""
    buffers = (torch.empty_like(logits), torch.empty_like(logits))
    scale = 1024.0 if logits.dtype == torch.float16 else 1.0
    draw = {"banned_ids": None, "temperature": 1.0, "gradient_scale": scale}
    work: dict[str, Call] = {"copy": lambda: buffers[0].copy_(logits)}
    for name, module in (("cpp", cpp), ("cuda", cuda), ("triton", triton)):
        own = name == "cpp" if logits.device.type == "cpu" else name != "cpp"
        if own and not backend.available()[name]:
            work[name] = lambda m=module: m.substitute_tokens(logits, **rows, top_k=k, **draw)
    if "cuda" in work:  # the same kernel, but nothing reaches its threshold: no candidate, no draw
        work["cuda, no choice"] = lambda: cuda.substitute_tokens(logits, **rows, top_k=0, **draw)
    work["eager"] = lambda: eager(logits, rows, k, buffers)
    if not peers:
        return work

    def stock_choice_after(loss: Callable[..., Tensor]) -> Call:
        def call() -> None:
            filled = choose_and_put_in(logits, rows, k)  # first: some overwrite the logits
            through_autograd(loss, logits, rows)
            return filled

        return call

    work["torch.compile"] = stock_choice_after(_compiled)
    if logits.device.type == "cuda":
        if find_spec("liger_kernel"):
            from liger_kernel.transformers.functional import liger_cross_entropy

            work["liger"] = stock_choice_after(
                lambda x, y: liger_cross_entropy(x, y, reduction="sum")
            )
        if find_spec("quack") and logits.shape[1] % 8 == 0:
            from quack.cross_entropy import cross_entropy

            work["quack"] = stock_choice_after(lambda x, y: cross_entropy(x, y, reduction="sum"))
        if find_spec("flash_attn"):
            from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

            work["flash-attn"] = stock_choice_after(lambda x, y: cross_entropy_loss(x, y)[0].sum())
    return work
