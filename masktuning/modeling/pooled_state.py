"""The state that a classification head reads first: one vector per text, before any dropout.

Shapes: B examples, L tokens, C classes, H width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from masktuning.modeling.attention_mask import probe_batch


@dataclass
class PooledOutput(SequenceClassifierOutput):
    """The logits [B, C] of a classifier, and the pooled state [B, H] that they were made of."""

    pooled: Tensor | None = None


def pooled_of(output: Any) -> Tensor:
    """[B, H], an encoder's pooled state: its pooler's, or else that of each text's first token."""
    pooled = getattr(output, "pooler_output", None)
    return output[0][:, 0] if pooled is None else pooled


@contextmanager
def keeps_pooled(encoder: nn.Module, found: list[Tensor] | None) -> Iterator[None]:
    """Within it each pass of the encoder appends its pooled state to `found`, unless that is None.

    The last layer may have been computed at the first token only: that is the one which is read.
    """
    if found is None:
        yield
        return

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(pooled_of(output))

    handle = encoder.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def has_pooled_state(classifier: PreTrainedModel) -> bool:
    """Whether the head reads the pooled state and nothing else.

    It is tried out: without the encoder's other states the logits must be the same. The classifiers
    of BART and its relatives read the state at the end of a text.
    """
    if classifier.config.is_encoder_decoder:
        return hasattr(classifier, "classification_head")
    ids_BL = probe_batch(classifier)[0]
    calls: list[Tensor] = []

    def only_pooled(module: nn.Module, inputs: Any, output: Any) -> Any:
        calls.append(pooled_of(output))
        states_BLH = output[0].clone()
        # A head that reads a pooler's output reads no state of the last layer itself.
        states_BLH[:, int(getattr(output, "pooler_output", None) is None) :] = 0
        output["last_hidden_state"] = states_BLH
        return output

    training = classifier.training
    classifier.eval()
    try:
        whole_BC = classifier(input_ids=ids_BL).logits
        handle = classifier.base_model.register_forward_hook(only_pooled)
        try:
            reduced_BC = classifier(input_ids=ids_BL).logits
        finally:
            handle.remove()
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # the encoder returns another type of result
    finally:
        classifier.train(training)
    return len(calls) == 1 and torch.allclose(whole_BC, reduced_BC, 1e-4, 1e-5)
