"""The 2-D attention mask in the 4-D form that stock encoders use without reading its values.

Given a 2-D mask, transformers' attention reads mask.all() on the host once per forward pass, and on
a GPU the host waits there. A 4-D mask is used as it is.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def full_mask(attention_mask: Tensor) -> Tensor:
    """[B, 1, L, L] bool, true where a token may be attended to, from the [B, L] mask; no copy."""
    B, L = attention_mask.shape
    return attention_mask.bool()[:, None, None, :].expand(B, 1, L, L)


def probe_batch(classifier: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Token ids and a 2-D attention mask, [2, 8] each, to try a model out; the second is padded."""
    config = classifier.config
    device = next(classifier.parameters()).device
    ids_BL = torch.arange(4, 20, device=device).view(2, 8) % config.vocab_size
    if config.is_encoder_decoder:  # the last one of a text is what it pools
        ids_BL[:, -1] = config.eos_token_id
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 5:] = 0
    return ids_BL, mask_BL


@torch.no_grad()
def takes_4d_mask(classifier: PreTrainedModel) -> bool:
    """Whether states and logits are the same for a 2-D mask and its 4-D form."""
    config = classifier.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation != "sdpa" or kinds != {"full_attention"}:
        return False  # a 4-D mask is used as it is, so local attention would lose its window
    training = classifier.training
    classifier.eval()
    ids_BL, mask_BL = probe_batch(classifier)
    found: list[Tensor] = []

    def keep_states(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0][mask_BL.bool()])

    handle = classifier.base_model.register_forward_hook(keep_states)
    try:
        for mask in (mask_BL, full_mask(mask_BL)):
            found.append(classifier(input_ids=ids_BL, attention_mask=mask).logits)
    except (ValueError, RuntimeError):  # the family needs a mask of two dimensions
        return False
    finally:
        handle.remove()
        classifier.train(training)
    if len(found) != 4:
        return False  # the classifier does not call its encoder as a module
    pairs = zip(found[:2], found[2:], strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)
