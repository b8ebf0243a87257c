"""What all contenders of a benchmark start from: a model with two heads, a tokenizer, and rows.

The model is a checkpoint's or one of random weights, whose shape is in its name: "bert-4x256" has
4 layers of width 256. The texts are random tokens.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    set_seed,
)

ROBERTA_TOKENS = {"bos": 0, "pad": 1, "eos": 2, "cls": 0, "sep": 2, "unk": 3, "mask": 50264}
SPECIAL = {
    "bert": {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103},
    "roberta": ROBERTA_TOKENS,
    "bart": ROBERTA_TOKENS,
}
"""The ids of the special tokens of each family's published checkpoints."""
VOCABULARY = {"bert": 30522, "roberta": 50265, "bart": 50265}


class StartingPoint(NamedTuple):
    """A classifier and a masked LM, each with an encoder of its own, and their tokenizer."""

    classifier: PreTrainedModel
    mlm: PreTrainedModel
    tokenizer: Any


def starting_point(name: str, num_labels: int = 2) -> StartingPoint:
    """The models and the tokenizer of a checkpoint folder, or random ones such as "bert-4x256"."""
    set_seed(0)
    if Path(name).is_dir():
        return StartingPoint(
            AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=num_labels, dtype=torch.float32
            ),
            AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float32),
            AutoTokenizer.from_pretrained(name),
        )
    family, _, size = name.partition("-")
    layers, _, width = size.partition("x")
    if family not in VOCABULARY or not (layers.isdecimal() and width.isdecimal()):
        raise SystemExit(f"{name}: neither a folder nor a name such as bert-4x256")
    config = _config(family, int(layers), int(width), num_labels)
    return StartingPoint(
        AutoModelForSequenceClassification.from_config(config),
        AutoModelForMaskedLM.from_config(config),
        _tokenizer(family),
    )


def _config(family: str, layers: int, width: int, num_labels: int) -> Any:
    """The family's usual configuration in another size; half of BART's layers are its decoder's."""
    heads, inner = max(1, width // 64), 4 * width
    if family == "bart":
        sides = {}
        for side in ("encoder", "decoder"):
            sides[f"{side}_layers"] = layers // 2
            sides[f"{side}_attention_heads"] = heads
            sides[f"{side}_ffn_dim"] = inner
        return BartConfig(d_model=width, num_labels=num_labels, **sides)
    size = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": VOCABULARY[family],
        "num_labels": num_labels,
    }
    if family == "roberta":  # the first two positions are those of padding
        return RobertaConfig(max_position_embeddings=514, type_vocab_size=1, **size)
    return BertConfig(**size)


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A vocabulary of the family's size, for padding; it reads no texts."""
    special = SPECIAL[family]
    names = {i: f"[{name}]" for name, i in special.items()}
    vocabulary = {names.get(i, f"token{i}"): i for i in range(VOCABULARY[family])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=names[special["unk"]]))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=inputs if family == "bert" else [inputs[0], inputs[2]],
        **{f"{name}_token": names[i] for name, i in special.items()},
    )


def random_rows(
    tokenizer: Any, lengths: list[int], num_labels: int = 2, seed: int = 0
) -> list[dict[str, Any]]:
    """Tokenised rows of random ordinary tokens between the special ones, with random labels."""
    generator = torch.Generator().manual_seed(seed)
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    columns = set(tokenizer.model_input_names)
    rows = []
    for length in lengths:
        places = torch.randint(len(ordinary), (length - 2,), generator=generator)
        row: dict[str, Any] = {
            "input_ids": [first, *ordinary[places].tolist(), last],
            "token_type_ids": [0] * length,
            "attention_mask": [1] * length,
        }
        row = {name: values for name, values in row.items() if name in columns}
        label = int(torch.randint(num_labels, (), generator=generator))
        rows.append({**row, "labels": label})
    return rows


def padded_rows(tokenizer: Any, rows: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """The rows, each padded to the same length, as run_glue makes them by default."""
    # `pad` changes the row that it is given.
    settings = {"padding": "max_length", "max_length": length}
    return [dict(tokenizer.pad(dict(row), **settings)) for row in rows]


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    """A table of `datasets`, which users train on; the rows themselves where that is missing."""
    if not find_spec("datasets"):
        return rows
    from datasets import Dataset

    return Dataset.from_list(rows)
