"""Tiny random models of the encoder families, and a word-level tokenizer to go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from masktuning.model import MaskTuningModel

VOCAB = 99
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}

_BERT_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_IDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**_BERT_LIKE),
    "roberta": lambda: RobertaConfig(**_BERT_LIKE),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCAB,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=37,
        max_position_embeddings=64,
        pad_token_id=1,
    ),
    "electra": lambda: ElectraConfig(**_BERT_LIKE, embedding_size=16),
    "albert": lambda: AlbertConfig(**_BERT_LIKE, embedding_size=16),
    "mpnet": lambda: MPNetConfig(**_BERT_LIKE),
    "modernbert": lambda: ModernBertConfig(
        **_BERT_LIKE,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
        local_attention=8,
    ),
    "bart": lambda: BartConfig(
        vocab_size=VOCAB,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
        **_IDS,
    ),
}
_NO_DROPOUT = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "classifier_dropout_prob",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "activation_dropout",
    "summary_last_dropout",
)


def config_of(family: str, dropout: bool = False, **settings: Any) -> Any:
    config = CONFIGS[family]()
    for name in () if dropout else _NO_DROPOUT:
        if hasattr(config, name):
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
