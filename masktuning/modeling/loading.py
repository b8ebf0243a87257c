"""Stock classes from checkpoints: in float32, with one line about what a checkpoint lacked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from masktuning.config.errors import UsageError

logger = logging.getLogger(__name__)

# Parts of a classifier that no encoder's checkpoint is expected to bring.
EXPECTED_NEW = ("classif", "score", "pooler", "sequence_summary")

# What from_pretrained raises: no such name, no such class, weights of other shapes, a broken file,
# a tokenizer that wants a package of its own.
LOADING_ERRORS = (ImportError, OSError, ValueError, RuntimeError, SafetensorError)


def check_folder(name: str) -> None:
    """Raises UsageError for a path that is no folder: the hub would call it a malformed id."""
    if (name.startswith(("/", ".", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise UsageError(f"{name}: no such folder")


# Families whose masked LM and classifier cannot share what they encode.
UNSUPPORTED = {
    "funnel": "its classifier has an encoder of pooled states, its masked LM one of every token",
    "perceiver": "its masked LM predicts by a decoder of its own, not from a state for each token",
    "reformer": "in training it takes texts of one length only, that of its position table",
    "tapas": "it reads tables, not texts",
    "layoutlm": "it reads pages with a place for each word, not texts",
    "modernvbert": "it reads images beside texts",
    "ultravbert": "it reads images beside texts",
}


def check_language(name: str | Path, config: Any) -> None:
    """Raises ValueError for an X-MOD whose configuration does not say which language it reads."""
    if config.model_type == "xmod" and config.default_language is None:
        raise ValueError(
            f"{name}: its config.json must name a default_language, one of "
            f"{', '.join(config.languages)}"
        )


def check_masked_lm(name: str | Path, config: Any) -> None:
    """Raises ValueError if the family of `config` has no masked LM that we can use, with why."""
    if config.model_type in UNSUPPORTED:
        raise ValueError(
            f"{name}: {config.model_type} is not supported: {UNSUPPORTED[config.model_type]}; "
            "use an encoder such as BERT or RoBERTa, or --method finetuning"
        )
    if type(config) not in AutoModelForMaskedLM._model_mapping:
        raise ValueError(
            f"{name}: {config.model_type} has no masked-LM class, which mask-tuning needs; "
            "use an encoder such as BERT or RoBERTa, or --method finetuning"
        )


def load_float32(
    auto: Any, name: str | Path, expected_new: tuple[str, ...], **config: Any
) -> PreTrainedModel:
    """`auto.from_pretrained(name)` in float32, whatever the checkpoint's own dtype.

    Weights that the checkpoint lacks are newly initialised and named in one warning, but for
    those whose name holds one of `expected_new`.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report is a page; ours is a line
    try:
        model, report = auto.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **config
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    new = sorted(k for k in report["missing_keys"] if not any(word in k for word in expected_new))
    if new:
        logger.warning(
            "%s: newly initialised in %s, since the checkpoint lacks them: %s",
            name,
            type(model).__name__,
            ", ".join(new),
        )
        if model.config.model_type in ("deberta", "deberta-v2"):
            # transformers#22790, #15673: the published weights have other names there.
            logger.warning(
                "%s: transformers finds no masked-LM head in DeBERTa's published checkpoints; "
                "train one first, or Mask-tuning starts from a random one",
                name,
            )
    return model


def load_classifier(name: str) -> tuple[PreTrainedModel, Any]:
    """A trained sequence classifier in float32, and its tokenizer; `name` is a folder or a hub id.

    Raises:
        UsageError: if they cannot be loaded, or the checkpoint holds no trained classifier.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from masktuning.config.errors import one_line

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # its report is a page; ours is a line
    check_folder(name)
    try:
        check_language(name, AutoConfig.from_pretrained(name))
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        raise UsageError(f"{name}: cannot be loaded: {one_line(error)}") from None
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise UsageError(f"{name}: has no trained classifier (no {missing}): train one first")
    return model, tokenizer
