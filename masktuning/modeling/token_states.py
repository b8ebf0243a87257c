"""What an encoder makes of every token of a text, and of the text as a whole.

Shapes: B examples, L tokens, H width of the hidden states.
"""

from __future__ import annotations

from torch import Tensor

from masktuning.modeling.shared_encoder import MaskTuningModel


def token_states(
    model: MaskTuningModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The last layer's states [B, L, H] of all tokens, and a state [B, H] of each text.

    The state of a text is what the encoder's pooler makes of the first token's, as in BERT. Where
    the encoder has no pooler, as in RoBERTa's classifier and in DistilBERT, it is the first token's
    state itself.

    Args:
        model: not an encoder-decoder.
        input_ids: [B, L] int64.
        attention_mask: [B, L], or None where there is no padding.
        token_type_ids: [B, L], for families that have them.
    """
    output = model.encoder(input_ids=input_ids, **model._extras(attention_mask, token_type_ids))
    states_BLH = output[0]
    pooled_BH = getattr(output, "pooler_output", None)
    return states_BLH, states_BLH[:, 0] if pooled_BH is None else pooled_BH
