"""Weights of losses that are learned from how far their gradients agree with held-out rows'.

Dery et al. (META-TARTAN, "Should We Be Pre-training? An Argument for End-task Aware Training as an
Alternative", arXiv 2109.07437), whose code that of L3Masking is derived from.

Shapes: B examples, L tokens, H width of the hidden states, C classes, K losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.data.example_ids import column
from masktuning.modeling.encoder_decoder import states_at_end
from masktuning.modeling.encoder_layers import encoder_layers
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops.philox import draw_words

STREAM_HELD_OUT = 5  # of random numbers, for which rows are held out
HEAD_ROWS, GRADIENT_ROWS = 32, 64
_STEP = 0.01  # of a weight's logit, times the cosine
_HEAD_STEPS, _HEAD_RATE, _HEAD_DECAY, _HEAD_STOP = 10, 1e-3, 0.1, 1e-3


class MetaWeights(nn.Module):
    """w = softmax(v); after each optimiser step v_k grows by 0.01 * cos(g_dev, g_k).

    g_k is the gradient of the loss k over the whole optimiser step and g_dev that of the held-out
    rows' loss, both on the encoder's layers. v is saved with the checkpoint.
    """

    logits: Tensor
    """[K] float32, v; zeros at the start."""

    def __init__(self, losses: int = 2) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(losses))

    def weights(self) -> Tensor:
        """[K], on the device."""
        return self.logits.softmax(0)

    @torch.no_grad()
    def update(
        self, gradients: Sequence[Sequence[Tensor | None]], held_out: Sequence[Tensor | None]
    ) -> None:
        """Updates the weights by a step's gradients: a list per loss, and the held-out rows' list.

        A gradient of zeros, or one with an overflow, changes nothing.
        """
        cosines_K = torch.stack([_cosine(one, held_out) for one in gradients]).to(self.logits)
        self.logits += _STEP * torch.where(cosines_K.isfinite(), cosines_K, 0)


def _cosine(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
    """The cosine of two gradients; NaN if one of them is zero."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    product = sum((x.double() * y.double()).sum() for x, y in pairs)
    return torch.as_tensor(product / (_norm(a) * _norm(b)))


def _norm(gradient: Sequence[Tensor | None]) -> Tensor:
    squares = [x.double().square().sum() for x in gradient if x is not None]
    return torch.stack(squares).sum().sqrt()


class HeldOut:
    """Rows of the training set whose labels are used for the weights of the losses alone.

    Args:
        head: the batch on which a classifier is trained anew in every step.
        gradient: the batch whose loss that classifier then gives.
    """

    def __init__(self, head: Batch, gradient: Batch) -> None:
        self.head_batch = head
        self.gradient_batch = gradient
        self.example_ids = torch.cat([head.example_ids, gradient.example_ids])

    @classmethod
    def of(cls, train: Any, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
        """Those of a training set: the labelled rows with the smallest draws.

        Raises:
            UsageError: for a stream, and if they would be more than half of the labelled rows.
        """
        if not hasattr(train, "__len__"):
            raise UsageError(
                "--task_weights meta holds rows out of the training set, which a stream does not "
                "allow: use --task_weights fixed"
            )
        name = "labels" if "labels" in train[0] else "label"
        ids_N = torch.tensor(column(train, "example_id"))
        labels_N = torch.tensor(column(train, name))
        rng = torch.zeros(2, dtype=torch.int64)
        draws_N = draw_words(rng, torch.zeros_like(ids_N), ids_N, STREAM_HELD_OUT)[0]
        order = [i for i in draws_N.argsort(stable=True).tolist() if labels_N[i] >= 0]
        wanted = HEAD_ROWS + GRADIENT_ROWS
        if len(order) < 2 * wanted:
            raise UsageError(
                f"--task_weights meta holds {wanted} labelled rows out of the training set, which "
                f"has only {len(order)}: give {2 * wanted} or more, or use --task_weights fixed"
            )
        pad = PaddingCollator(tokenizer)
        rows = [train[i] for i in order[:wanted]]
        parts = (rows[:HEAD_ROWS], rows[HEAD_ROWS:])
        return cls(*(Batch.from_dict(pad(part)) for part in parts))

    def gradient(self, model: MaskTuningModel, parameters: list[nn.Parameter]) -> list[Any]:
        """The gradient of the held-out rows' loss on `parameters`, without dropout.

        A linear classifier of the text's representation is first trained from zero, for at most ten
        steps of AdamW.
        """
        training = model.training
        model.eval()
        with torch.no_grad():
            states_BH, labels_B = _representation(model, self.head_batch)
        weight, bias = trained_head(states_BH, labels_B, model.config.num_labels)
        with torch.enable_grad():
            states_BH, labels_B = _representation(model, self.gradient_batch)
            loss = F.cross_entropy(F.linear(states_BH.float(), weight, bias), labels_B)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        model.train(training)
        return list(found)


def trained_head(states_BH: Tensor, labels_B: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """A linear classifier's weight [C, H] and bias [C], trained from zero on fixed states.

    It stops after ten steps, or where a step changes the loss by less than 0.001. A start at zero
    needs no random numbers: the loss is convex.
    """
    weight = states_BH.new_zeros(classes, states_BH.shape[1], dtype=torch.float32)
    bias = weight.new_zeros(classes)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.AdamW(parameters, lr=_HEAD_RATE, weight_decay=_HEAD_DECAY)
    before = float("inf")
    with torch.enable_grad():
        for _ in range(_HEAD_STEPS):
            loss = F.cross_entropy(F.linear(states_BH.float(), weight, bias), labels_B)
            if abs(before - loss.item()) < _HEAD_STOP:
                break
            before = loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach(), bias.detach()


def _representation(model: MaskTuningModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """What a classifier reads of each text [B, H], and the labels [B], on the model's device."""
    device = next(model.parameters()).device
    ids_BL, labels_B = batch.input_ids.to(device), batch.labels.to(device)
    texts = {k: None if v is None else v.to(device) for k, v in batch.texts().items()}
    states_BLH = model.encode(ids_BL, ids_BL, **texts)
    if model.config.is_encoder_decoder:
        return states_at_end(states_BLH, ids_BL, model.config), labels_B
    return states_BLH[:, 0], labels_B


def layer_parameters(encoder: nn.Module) -> list[nn.Parameter]:
    """The parameters of the encoder's layers that are trained."""
    parameters = (p for layer in encoder_layers(encoder) for p in layer.parameters())
    return [p for p in dict.fromkeys(parameters) if p.requires_grad]
