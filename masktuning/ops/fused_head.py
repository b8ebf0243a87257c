"""The op behind `masked_lm_head`: one product, one pass over its rows, two products.

torch.compile sees it as a registered op. Eager PyTorch calls the same two functions through an
autograd Function, since a registered op costs the host more in each call.

Shapes: B examples, L tokens, M masked positions, H width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.ops import backend
from masktuning.ops.checks import check_once_differentiable, runs_directly


def gradient_scale(dtype: torch.dtype) -> float:
    """What p - onehot is multiplied by where it is stored.

    Small probabilities would vanish in float16; 2^10 keeps them and leaves room for the products.
    """
    return 1024.0 if dtype == torch.float16 else 1.0


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None,
    top_k: int,
    temperature: float,
    tokenizer_size: int | None,
    train: bool,
    kernels: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One product into a buffer, then one pass that leaves (p - onehot) in the logits' place."""
    M, V = hidden.shape[0], weight.shape[0]
    # Rows start at multiples of 64 elements: aligned loads whatever the vocabulary's size.
    buffer = hidden.new_empty(M, -(-V // 64) * 64)
    logits_MV = buffer[:, :V]
    if hidden.device.type == "cpu":
        # oneDNN's 16-bit products read a row to the end of its last block and multiply what lies
        # there by 0, which is NaN where the memory held one.
        buffer[:, V:] = 0
    module = backend.module(kernels)
    late = {"bias": bias} if bias is not None and module.ADDS_BIAS else {}
    if bias is None or late:
        torch.mm(hidden, weight.t(), out=logits_MV)
    else:
        torch.addmm(bias, hidden, weight.t(), out=logits_MV)
    rows = (input_ids, positions, targets, example_ids, rng, banned_ids)
    scale = gradient_scale(hidden.dtype) if train else 0.0
    outputs = module.substitute_tokens(
        logits_MV, *rows, top_k, temperature, scale, tokenizer_size=tokenizer_size, **late
    )
    return *outputs, logits_MV if train else hidden.new_empty(0, V)


_LIBRARY = torch.library.Library("masktuning", "FRAGMENT")
_LIBRARY.define(
    "masked_lm_head(Tensor hidden, Tensor weight, Tensor? bias, Tensor input_ids, "
    "Tensor positions, Tensor targets, Tensor example_ids, Tensor rng, Tensor? banned_ids, "
    "int top_k, float temperature, int? tokenizer_size, bool train, str kernels) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("masked_lm_head", _forward, _device)


@torch.library.register_fake("masktuning::masked_lm_head", lib=_LIBRARY)
def _fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None,
    top_k: int,
    temperature: float,
    tokenizer_size: int | None,
    train: bool,
    kernels: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    M, V = hidden.shape[0], weight.shape[0]
    stride = (V + 63) // 64 * 64
    logits_MV = hidden.new_empty_strided((M, V), (stride, 1))
    return (
        hidden.new_empty(M, dtype=torch.float32),
        positions.new_empty(M),
        torch.empty_like(input_ids, memory_format=torch.contiguous_format),
        hidden.new_empty(M, dtype=torch.float32),
        logits_MV if train else hidden.new_empty(0, V),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = inputs[:3]
    ctx.has_bias = bias is not None
    ctx.save_for_backward(hidden, weight, output[4])


def _backward(ctx: Any, grad_losses: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Two products with the stored (p - onehot); all scaling is applied to the smaller operand.

    Rounding the scale itself to 16 bits would bias the whole gradient, so it stays in float32 until
    it has been multiplied by what is rounded anyway.
    """
    hidden, weight, stored_MV = ctx.saved_tensors
    upstream_M = grad_losses.float()
    if (scale := gradient_scale(hidden.dtype)) != 1.0:
        upstream_M = upstream_M / scale
    grad_hidden = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_hidden = ((stored_MV @ weight) * upstream_M[:, None]).to(hidden.dtype)
    unit = _unit(upstream_M) if hidden.dtype == torch.float16 else None
    share_M = upstream_M if unit is None else upstream_M / unit
    if ctx.needs_input_grad[1]:
        small_MH = (hidden * share_M[:, None]).to(hidden.dtype)
        grad_weight = stored_MV.t() @ small_MH
        grad_weight = grad_weight if unit is None else grad_weight * unit
    if ctx.has_bias and ctx.needs_input_grad[2]:
        if hidden.dtype == torch.float32:
            grad_bias = stored_MV.t() @ share_M
        else:
            grad_bias = _bias_gradient(stored_MV, share_M, unit)
    return (grad_hidden, grad_weight, grad_bias, *[None] * 11)


def _bias_gradient(stored_MV: Tensor, share_M: Tensor, unit: Tensor | None) -> Tensor:
    """The rows weighted and added up, in 16 bits: the weights and what their rounding left out."""
    rounded_M = share_M.to(stored_MV.dtype)
    columns_M2 = torch.stack([rounded_M, (share_M - rounded_M).to(stored_MV.dtype)], 1)
    sums_V = (stored_MV.t() @ columns_M2).float().sum(1)
    return (sums_V if unit is None else sums_V * unit).to(stored_MV.dtype)


def _unit(upstream_M: Tensor) -> Tensor:
    """The power of two that brings the largest scale to 2^-10, which float16 holds with room.

    alpha / M without a GradScaler would be among float16's last bits.
    """
    largest = F.pad(upstream_M.abs(), (0, 1)).amax()  # of no rows: 0
    exponent = largest.clamp(min=torch.finfo(torch.float32).tiny).log2().floor()
    return (exponent + 10).exp2()


torch.library.register_autograd(
    "masktuning::masked_lm_head", _backward, setup_context=_save, lib=_LIBRARY
)


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[1:4])
        ctx.set_materialize_grads(False)
        return output[:4]

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        check_once_differentiable("masked_lm_head")
        return (None,) * 14 if grad_losses is None else _backward(ctx, grad_losses)


def fused_masked_lm_head(*inputs: Any) -> tuple[Tensor, ...]:
    """Losses [M], tokens [M], filled ids [B, L] and log-sum-exps [M]; inputs as in the schema."""
    if runs_directly(*inputs[:9]):
        return _FusedHead.apply(*inputs)
    losses_M, tokens_M, filled_BL, lse_M, _ = torch.ops.masktuning.masked_lm_head(*inputs)
    return losses_M, tokens_M, filled_BL, lse_M.detach()
