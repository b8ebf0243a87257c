"""Tiny random models of the encoder families, and a word-level tokenizer to go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from masktuning.modeling.shared_encoder import MaskTuningModel

VOCAB = 99
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}

EIGHT = ("bert", "roberta", "distilbert", "electra", "albert", "mpnet", "modernbert", "bart")
# Set wherever a family's configuration has it, and what few of them need besides.
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "d_model", "dim", "emb_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 37),
    "head_dim": 8,
    "max_position_embeddings": 64,
    "embedding_size": 16,
    **{"bos_token_id": 0, "cls_token_id": 0, "pad_token_id": 1},
    **dict.fromkeys(("eos_token_id", "sep_token_id", "decoder_start_token_id"), 2),
    "mask_token_id": 4,
    "forced_eos_token_id": 2,
}
_DEBERTA = {
    "pooler_hidden_size": 32,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}
_OWN: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "convbert": {"conv_kernel_size": 3},
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
    "longformer": {"attention_window": 8},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 8},
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16},
    "modernbert": {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8},
    "mvp": {"prompt_length": 4, "prompt_mid_dim": 8},
    "nystromformer": {"segment_means_seq_len": 16, "num_landmarks": 16, "conv_kernel_size": 5},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roc_bert": dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 8)
    | dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 30),
    "squeezebert": {"embedding_size": 32, "intermediate_size": 48},
    "ultrabert": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
    "xmod": {"default_language": "en_XX"},
}


def config_of(family: str, dropout: bool = False, **settings: Any) -> Any:
    make = CONFIG_MAPPING[family]
    usual = make()
    small = {name: value for name, value in _SMALL.items() if hasattr(usual, name)}
    config = make(**{**small, **_OWN.get(family, {})})
    for name, value in () if dropout else config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def tiny_model(family: str, seed: int = 0, **settings: Any) -> MaskTuningModel:
    """A random model without dropout; biases are random too, so that a lost one shows."""
    torch.manual_seed(seed)
    config = config_of(family, **settings)
    classifier = AutoModelForSequenceClassification.from_config(config)
    mlm = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for model in (classifier, mlm):
            noised = set()  # tied tensors appear twice in a state
            for tensor in model.state_dict().values():
                if tensor.is_floating_point() and tensor.data_ptr() not in noised:
                    noised.add(tensor.data_ptr())
                    tensor.add_(0.05 * torch.randn_like(tensor))
    return MaskTuningModel(classifier, mlm)


def tiny_tokenizer(words: int = VOCAB - len(SPECIAL)) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... with RoBERTa's special tokens."""
    vocab = {**SPECIAL, **{f"w{i}": i + len(SPECIAL) for i in range(words)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=60,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def save_tiny(folder: Path, family: str, seed: int = 0, **settings: Any) -> Path:
    """A checkpoint folder with a random masked LM of the family and the tokenizer."""
    torch.manual_seed(seed)
    AutoModelForMaskedLM.from_config(config_of(family, **settings)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def examples(count: int, seed: int, pair: bool = False, classes: int = 2) -> list[dict[str, Any]]:
    """Tokenised rows of uneven length with labels and example ids."""
    generator = torch.Generator().manual_seed(seed)

    def words() -> str:
        length = int(torch.randint(2, 20, (), generator=generator))
        return " ".join(f"w{int(i)}" for i in torch.randint(0, 90, (length,), generator=generator))

    tokenizer = tiny_tokenizer()
    rows = []
    for i in range(count):
        encoded = tokenizer(words(), words()) if pair else tokenizer(words())
        label = int(torch.randint(0, classes, (), generator=generator))
        rows.append(
            {
                "input_ids": encoded["input_ids"],
                "attention_mask": encoded["attention_mask"],
                "labels": label,
                "example_id": 100 + i,
            }
        )
    return rows
