"""What a method may require of a model and of its tokenizer, and the checks of it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from masktuning.modeling.attention_received import gives_attentions
from masktuning.modeling.embedding_mask import embedding_layer
from masktuning.modeling.pooled_state import has_pooled_state
from masktuning.modeling.shared_encoder import MaskTuningModel

FEATURES = {
    "mlm_head": "a masked-LM head",
    "embeddings": "one embedding layer",
    "pooled": "one state per text that the classifier reads",
    "attentions": "layers whose attention probabilities and feed-forward output can be reached",
}
"""What a method may require of a model, with the words for it."""


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, requires: frozenset[str]) -> None:
    """Raises ValueError if the tokenizer cannot mask tokens, and that is required."""
    if "mlm_head" in requires and tokenizer.mask_token_id is None:
        raise ValueError(
            "the tokenizer has no mask token, which this method needs: use an encoder such as "
            "BERT or RoBERTa"
        )


def check_model(model: MaskTuningModel, requires: frozenset[str]) -> None:
    """Raises ValueError for the first of `requires` that the model does not provide."""
    family = model.config.model_type
    if "mlm_head" in requires and model.mlm_head is None:
        raise ValueError("this method needs the masked-LM head: load the model with mlm_head=True")
    if "embeddings" in requires and embedding_layer(model.encoder) is None:
        raise ValueError(
            f"{family} has no single embedding layer, which this method changes: use an encoder "
            "such as BERT or RoBERTa"
        )
    if "pooled" in requires and not has_pooled_state(model.classifier):
        raise ValueError(
            f"the classifier of {family} reads more than one state of a text, and this method "
            "needs a single one: use an encoder such as BERT or RoBERTa"
        )
    if "attentions" in requires and not gives_attentions(model.classifier):
        raise ValueError(
            f"the layers of {family} do not have the attention and the feed-forward output that "
            "this method reads: use BERT, RoBERTa, DistilBERT or ELECTRA, without "
            "chunk_size_feed_forward"
        )
