"""The joint loss of Mask-tuning from the masked LM's row losses and the classifier's logits.

torch.compile sees the kernels as a registered op. Eager PyTorch calls them through an autograd
Function, because a registered op costs the host more time per call.

Shapes: B examples, C classes, M masked positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.ops.backends import launch, select, triton
from masktuning.ops.backends.extension import address, contiguous, module
from masktuning.ops.checks import (
    FLOATS,
    IGNORE_INDEX,
    check_dtype,
    check_once_differentiable,
    check_tensor,
    runs_directly,
)

_CUDA_NAMES = {dtype: f"dual_cross_entropy_{name}" for dtype, name in launch.DTYPE_NAMES.items()}
_CUDA = launch.declare("dual_cross_entropy", "6P4q2d", list(_CUDA_NAMES.values()))


class DualLoss(NamedTuple):
    """What `dual_cross_entropy` returns: three scalars."""

    loss: Tensor
    """alpha * mlm + (1 - alpha) * classification."""
    mlm: Tensor
    classification: Tensor


class DualInputs(NamedTuple):
    """The arguments of `dual_cross_entropy`, in its order."""

    losses: Tensor
    logits: Tensor
    labels: Tensor
    denominators: Tensor
    alpha: float
    label_smoothing: float
    ignore_index: int


def dual_cross_entropy(
    losses: Tensor,
    logits: Tensor,
    labels: Tensor,
    denominators: Tensor,
    alpha: float,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> DualLoss:
    """alpha * L_MLM + (1 - alpha) * L_FT, Eq. (1) of Mask-tuning (arXiv 2307.10457).

    Differentiable in losses and logits.

    Args:
        losses: [M] float32 or float64, the masked LM's row losses.
        logits: [B, C] float, the classifier's.
        labels: [B] int64. An example whose label is `ignore_index` does not count.
        denominators: [2] float, what the two sums are divided by: the number of masked tokens and
            of labels in the whole optimiser step (over micro-batches and processes, divided by
            the number of processes), so that the terms are means of that step, not of the batch.
            A denominator of 0 makes its term 0.
        alpha: the weight of the masked-LM term, in [0, 1].
        label_smoothing: that of the classifier's cross-entropy, in [0, 1).
        ignore_index: the label of examples that do not count.

    Returns:
        DualLoss(loss, mlm, classification), three scalars.

    Raises:
        ValueError: on a wrong dtype, shape or device, a label outside the classes (checked on the
            CPU), or alpha or label_smoothing out of range, naming the argument.

    Equivalent to::

        mlm = losses_M.sum() / denominators[0]
        classification = F.cross_entropy(logits_BC, labels_B, reduction="sum") / denominators[1]
        return alpha * mlm + (1 - alpha) * classification
    """
    inputs = DualInputs(losses, logits, labels, denominators, alpha, label_smoothing, ignore_index)
    _check(inputs)
    kernels = select.kernels_for("dual_cross_entropy", logits)
    if kernels and losses.dtype == torch.float32:
        if runs_directly(losses, logits, labels, denominators):
            if kernels != "cpp":  # which checks them itself
                _check_labels(labels, logits.shape[1], ignore_index)
            return DualLoss(*_Dual.apply(*inputs, kernels))
        terms, _ = torch.ops.masktuning.dual_cross_entropy(*inputs, kernels)
        return DualLoss(*terms[:3].unbind())
    _check_labels(labels, logits.shape[1], ignore_index)
    return dual_cross_entropy_ref(inputs)


def dual_cross_entropy_ref(inputs: DualInputs) -> DualLoss:
    """`dual_cross_entropy` in plain PyTorch."""
    losses, logits, labels, denominators, alpha, label_smoothing, ignore_index = inputs
    # float64 costs nothing for B x C numbers, and rounds to the result of the C++ kernel.
    rows_B = F.cross_entropy(
        logits.double(),
        labels,
        reduction="none",
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    mlm = mean_over(losses.double().sum(), denominators[0])
    classification = mean_over(rows_B.sum(), denominators[1])
    loss = alpha * mlm + (1 - alpha) * classification
    double = torch.float64 in (losses.dtype, logits.dtype)
    dtype = torch.float64 if double else torch.float32
    return DualLoss(*(term.to(dtype) for term in (loss, mlm, classification)))


def mean_over(total: Tensor, denominator: Tensor) -> Tensor:
    """total / denominator for scalars on one device, and 0 (not NaN) if the denominator is 0."""
    # Both branches of where() are differentiated, so the unused one must not divide by zero.
    some = denominator > 0
    return torch.where(some, total / torch.where(some, denominator, 1.0), total * 0.0)


def _check(inputs: DualInputs) -> None:
    losses, logits, labels, denominators, alpha, label_smoothing, _ = inputs
    device = logits.device
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [B, C] with C > 0, not {list(logits.shape)}")
    check_tensor("losses", losses, (torch.float32, torch.float64), (-1,), device)
    check_dtype("logits", logits, FLOATS)
    check_tensor("labels", labels, torch.int64, logits.shape[:1], device)
    check_tensor("denominators", denominators, (torch.float32, torch.float64), (2,), device)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")


def _check_labels(labels: Tensor, C: int, ignore_index: int) -> None:
    if labels.device.type != "cpu" or not runs_directly(labels):  # a GPU would be waited for
        return
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= C))
    if bool(outside.any()):
        raise ValueError(f"labels holds {int(labels[outside][0])}, outside the {C} classes")


# The kernels return {loss, mlm, classification, d mlm / d losses} [4] in float32, and
# d classification / d logits [B, C] in float32.


def _cpp(inputs: DualInputs) -> tuple[Tensor, Tensor]:
    losses, logits, labels, denominators, alpha, label_smoothing, ignore_index = inputs
    terms = torch.empty(4, dtype=torch.float32)
    held = contiguous(losses, logits.float(), labels, denominators.float())
    gradient_BC = torch.empty(logits.shape, dtype=torch.float32)
    module().dual_cross_entropy(
        *map(address, held),
        losses.shape[0],
        *logits.shape,
        alpha,
        label_smoothing,
        ignore_index,
        address(terms),
        address(gradient_BC),
    )
    return terms, gradient_BC


def _cuda(inputs: DualInputs) -> tuple[Tensor, Tensor]:
    losses, logits, labels, denominators, alpha, label_smoothing, ignore_index = inputs
    outputs = losses.new_empty(4), logits.new_empty(logits.shape, dtype=torch.float32)
    held = contiguous(losses, logits, labels, denominators.float())
    addresses = (*map(address, held), *map(address, outputs))
    sizes = (losses.shape[0], *logits.shape, ignore_index)
    arguments = launch.pack(_CUDA, *addresses, *sizes, alpha, label_smoothing)
    launch.start(logits.device, _CUDA_NAMES[logits.dtype], (1, 1), 256, arguments)
    return outputs


def _triton(inputs: DualInputs) -> tuple[Tensor, Tensor]:
    losses, logits = inputs.losses, inputs.logits
    outputs = losses.new_empty(4), logits.new_empty(logits.shape, dtype=torch.float32)
    triton.start(triton_launch(inputs, outputs), logits.device)
    return outputs


def triton_launch(inputs: DualInputs, outputs: tuple[Tensor, Tensor]) -> triton.Launch:
    """How Triton's kernel is started; `outputs` are what a kernel returns."""
    losses, logits, labels, denominators, alpha, label_smoothing, ignore_index = inputs
    B, C = logits.shape
    classes = triton.power_of_two(C)
    held = contiguous(losses, logits, labels, denominators.float())
    sizes = (losses.shape[0], B, C, ignore_index)
    options = {
        "ROWS": max(1, min(128, 8192 // classes)),
        "CLASSES": classes,
        "num_warps": 4,
    }
    kernel = triton.kernels("dual_cross_entropy").dual_cross_entropy
    return triton.Launch(kernel, 1, (*held, *outputs, *sizes, alpha, label_smoothing), options)


KERNELS = select.register(
    "dual_cross_entropy", cpu={"cpp": _cpp}, cuda={"cuda": _cuda, "triton": _triton}
)

_LIBRARY = torch.library.Library("masktuning", "FRAGMENT")
_LIBRARY.define(
    "dual_cross_entropy(Tensor losses, Tensor logits, Tensor labels, Tensor denominators, "
    "float alpha, float label_smoothing, int ignore_index, str kernels) -> (Tensor, Tensor)"
)


def _registered(*flat: Any) -> tuple[Tensor, Tensor]:
    return KERNELS[flat[7]](DualInputs._make(flat[:7]))


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("dual_cross_entropy", _registered, _device)


@torch.library.register_fake("masktuning::dual_cross_entropy", lib=_LIBRARY)
def _fake(losses: Tensor, logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return losses.new_empty(4), logits.new_empty(logits.shape, dtype=torch.float32)


def _save(ctx: Any, flat: tuple[Any, ...], weight: Tensor, gradient_BC: Tensor) -> None:
    losses, logits, alpha = flat[0], flat[1], flat[4]
    ctx.alpha, ctx.rows, ctx.dtype = alpha, losses.shape, logits.dtype
    ctx.save_for_backward(weight, gradient_BC)


def _gradients(
    ctx: Any, joint: Tensor | None, mlm: Tensor | None, classification: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of losses [M] and logits [B, C] from those of the three terms."""
    weight, gradient_BC = ctx.saved_tensors
    of_losses = of_logits = None
    if ctx.needs_input_grad[0] and (each := _total(ctx.alpha, joint, mlm)) is not None:
        of_losses = (each * weight).expand(ctx.rows)
    if ctx.needs_input_grad[1]:
        share = _total(1 - ctx.alpha, joint, classification)
        of_logits = None if share is None else (share * gradient_BC).to(ctx.dtype)
    return of_losses, of_logits, *[None] * 6


def _total(weight: float, joint: Tensor | None, own: Tensor | None) -> Tensor | None:
    """The gradient of one term: its weight times that of the joint loss, plus its own."""
    if joint is None:
        return own
    return weight * joint if own is None else weight * joint + own


class _Dual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
        terms, gradient_BC = KERNELS[flat[7]](DualInputs._make(flat[:7]))
        joint, mlm, classification, weight = terms.unbind()
        _save(ctx, flat, weight, gradient_BC)
        ctx.set_materialize_grads(False)
        return joint, mlm, classification

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        check_once_differentiable("dual_cross_entropy")
        return _gradients(ctx, *grads)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output[0].unbind()[3], output[1])


def _backward(ctx: Any, grad_terms: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, *grad_terms[:3].unbind())


torch.library.register_autograd(
    "masktuning::dual_cross_entropy", _backward, setup_context=_setup_context, lib=_LIBRARY
)
