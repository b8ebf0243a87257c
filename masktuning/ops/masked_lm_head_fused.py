"""The kernels' part of `masked_lm_head`: one matrix product, one pass over its rows, two products.

torch.compile sees it as a registered op. Eager PyTorch calls the same two functions through an
autograd Function, because a registered op costs the host more time per call.

Shapes: B examples, L tokens, M masked positions, H width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.ops import token_substitution_kernels as row_kernels
from masktuning.ops.backends import select
from masktuning.ops.checks import check_once_differentiable, runs_directly
from masktuning.ops.gradient_in_place import gradient_to_add_to
from masktuning.ops.masked_rows import MaskedRows, TokenChoice

FEW_ROWS = 64
"""Up to so many rows, the product of the weight and the rows was faster than the reverse on x86."""


class HeadInputs(NamedTuple):
    """The inputs of the fused head."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    rows: MaskedRows
    choice: TokenChoice
    train: bool
    """Whether the gradient is stored in the place of the logits."""
    kernels: str
    """The back end."""

    def flat(self) -> tuple[Any, ...]:
        """In the order of the registered op: PyTorch looks for tensors in single arguments."""
        return (*self[:3], *self.rows, *self.choice, *self[5:])


def _from_flat(flat: tuple[Any, ...]) -> HeadInputs:
    hidden, weight, bias, *_, train, kernels = flat
    rows, choice = MaskedRows(*flat[3:8]), TokenChoice(*flat[8:12])
    return HeadInputs(hidden, weight, bias, rows, choice, train, kernels)


def gradient_scale(dtype: torch.dtype) -> float:
    """What p - onehot is multiplied by when it is stored.

    Small probabilities would vanish in float16. 2^10 keeps them and leaves room for the products.
    """
    return 1024.0 if dtype == torch.float16 else 1.0


def _bias_in_the_product(
    logits_MV: Tensor, inputs: HeadInputs, scale: float
) -> row_kernels.Outputs:
    """On the CPU the matrix product adds the bias; for a few rows it is computed transposed."""
    hidden, weight, bias, rows, choice, *_ = inputs
    if hidden.dtype == torch.float32 and len(hidden) <= FEW_ROWS:
        logits_VM = torch.mm(weight, hidden.t())
        if bias is None:
            logits_MV.copy_(logits_VM.t())
        else:
            torch.add(logits_VM.t(), bias, out=logits_MV)
    elif bias is None:
        torch.mm(hidden, weight.t(), out=logits_MV)
    else:
        torch.addmm(bias, hidden, weight.t(), out=logits_MV)
    return row_kernels.run(inputs.kernels, logits_MV, None, rows, choice, scale)


def _bias_in_the_rows(logits_MV: Tensor, inputs: HeadInputs, scale: float) -> row_kernels.Outputs:
    """On a GPU the row kernel adds the bias: the product would need a pass to lay it out."""
    hidden, weight, bias, rows, choice, *_ = inputs
    torch.mm(hidden, weight.t(), out=logits_MV)
    return row_kernels.run(inputs.kernels, logits_MV, bias, rows, choice, scale)


KERNELS = select.register(
    "masked_lm_head",
    cpu={"cpp": _bias_in_the_product},
    cuda={"cuda": _bias_in_the_rows, "triton": _bias_in_the_rows},
)


def _forward(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, tokens and text, and (p - onehot) [M, V] in the place of the logits."""
    inputs = _from_flat(flat)
    hidden = inputs.hidden
    M, V = hidden.shape[0], inputs.weight.shape[0]
    # Rows start at multiples of 64 elements: aligned loads whatever the size of the vocabulary.
    buffer = hidden.new_empty(M, -(-V // 64) * 64)
    logits_MV = buffer[:, :V]
    if hidden.device.type == "cpu":
        # oneDNN's 16-bit products read a row to the end of its last block and multiply what lies
        # there by 0, which is NaN if the memory held one.
        buffer[:, V:] = 0
    scale = gradient_scale(hidden.dtype) if inputs.train else 0.0
    losses_M, tokens_M, substituted_BL, _ = KERNELS[inputs.kernels](logits_MV, inputs, scale)
    stored_MV = logits_MV if inputs.train else hidden.new_empty(0, V)
    return losses_M, tokens_M, substituted_BL, stored_MV


_LIBRARY = torch.library.Library("masktuning", "FRAGMENT")
_LIBRARY.define(
    "masked_lm_head(Tensor hidden, Tensor weight, Tensor? bias, Tensor input_ids, "
    "Tensor positions, Tensor targets, Tensor example_ids, Tensor rng, Tensor? banned_ids, "
    "int top_k, float temperature, int? tokenizer_size, bool train, str kernels) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("masked_lm_head", _forward, _device)


@torch.library.register_fake("masktuning::masked_lm_head", lib=_LIBRARY)
def _fake(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, _, rows, _, train, _ = _from_flat(flat)
    M, V = hidden.shape[0], weight.shape[0]
    stride = (V + 63) // 64 * 64
    logits_MV = hidden.new_empty_strided((M, V), (stride, 1))
    return (
        hidden.new_empty(M, dtype=torch.float32),
        rows.positions.new_empty(M),
        torch.empty_like(rows.input_ids, memory_format=torch.contiguous_format),
        logits_MV if train else hidden.new_empty(0, V),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = inputs[:3]
    ctx.has_bias = bias is not None
    ctx.save_for_backward(hidden, weight, output[3])


def _backward(ctx: Any, grad_losses: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Two products with the stored (p - onehot); all scaling is applied to the smaller operand.

    Rounding the scale itself to 16 bits would bias the whole gradient, so it stays in float32 until
    it has been multiplied by something that is rounded anyway.
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
        total_VH = gradient_to_add_to(weight)
        if total_VH is not None and unit is None:
            total_VH.addmm_(stored_MV.t(), small_MH)
        else:
            grad_weight = stored_MV.t() @ small_MH
            grad_weight = grad_weight if unit is None else grad_weight * unit
    if ctx.has_bias and ctx.needs_input_grad[2]:
        if hidden.dtype == torch.float32:
            grad_bias = stored_MV.t() @ share_M
        else:
            grad_bias = _bias_gradient(stored_MV, share_M, unit)
    return (grad_hidden, grad_weight, grad_bias, *[None] * 11)


def _bias_gradient(stored_MV: Tensor, share_M: Tensor, unit: Tensor | None) -> Tensor:
    """The weighted sum of the rows, in 16 bits.

    The weights are split into their rounded values and what the rounding left out.
    """
    rounded_M = share_M.to(stored_MV.dtype)
    columns_M2 = torch.stack([rounded_M, (share_M - rounded_M).to(stored_MV.dtype)], 1)
    sums_V = (stored_MV.t() @ columns_M2).float().sum(1)
    return (sums_V if unit is None else sums_V * unit).to(stored_MV.dtype)


def _unit(upstream_M: Tensor) -> Tensor:
    """The power of two that, as a divisor, brings the largest weight to about 2^-10.

    float16 holds that with room on both sides. alpha / M without a GradScaler would be among its
    smallest numbers.
    """
    largest = F.pad(upstream_M.abs(), (0, 1)).amax()  # 0 if there are no rows
    exponent = largest.clamp(min=torch.finfo(torch.float32).tiny).log2().floor()
    return (exponent + 10).exp2()


torch.library.register_autograd(
    "masktuning::masked_lm_head", _backward, setup_context=_save, lib=_LIBRARY
)


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
        output = _forward(*flat)
        _save(ctx, flat, output)
        ctx.mark_non_differentiable(*output[1:3])
        ctx.set_materialize_grads(False)
        return output[:3]

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        check_once_differentiable("masked_lm_head")
        return (None,) * 14 if grad_losses is None else _backward(ctx, grad_losses)


def fused_masked_lm_head(*flat: Any) -> tuple[Tensor, ...]:
    """Losses [M], tokens [M] and the text [B, L]; the arguments are those of the registered op."""
    if runs_directly(*flat[:9]):
        return _FusedHead.apply(*flat)
    return torch.ops.masktuning.masked_lm_head(*flat)[:3]
