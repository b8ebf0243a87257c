"""Loads stock classes from checkpoints in float32, with one line about what a checkpoint lacks."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, is_peft_available
from transformers.utils import logging as transformers_logging

from masktuning.config.errors import UsageError, one_line

logger = logging.getLogger(__name__)

# Parts of a classifier that the checkpoint of an encoder is not expected to have.
EXPECTED_NEW = ("classif", "score", "pooler", "sequence_summary")

# What from_pretrained raises for an unknown name or class, weights of other shapes, a broken file,
# or a tokenizer that needs a package of its own.
LOADING_ERRORS = (ImportError, OSError, ValueError, RuntimeError, SafetensorError)


def check_folder(name: str, revision: str | None = None) -> None:
    """Raises UsageError for a name that is meant to be a folder and is none.

    The hub would be asked for it, and would call it a malformed id after a minute of trying. A name
    with one slash is taken for a folder if its first part is one here. A folder has no `revision`
    but the latest one, which the hub calls "main".
    """
    path = Path(name)
    if path.is_dir():
        if revision not in (None, "main"):
            raise UsageError(
                f"--model_revision {revision} is for models on the hub, and {name} is a folder: "
                "leave that flag out"
            )
        return
    written_as_path = name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1
    if written_as_path or (name.count("/") == 1 and path.parent.is_dir()):
        there = sorted(one.name for one in path.parent.iterdir()) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UsageError(f"{name}: no such folder{hint}")


# Families whose masked LM and classifier cannot share one encoder, and why.
UNSUPPORTED = {
    "funnel": "its classifier has an encoder of pooled states, its masked LM one of every token",
    "perceiver": "its masked LM predicts by a decoder of its own, not from a state for each token",
    "reformer": "in training it takes texts of one length only, that of its position table",
    "tapas": "it reads tables, not texts",
    "layoutlm": "it reads pages with a place for each word, not texts",
    "modernvbert": "it reads images alongside texts",
    "ultravbert": "it reads images alongside texts",
}


def check_language(name: str | Path, config: Any) -> None:
    """Raises ValueError for an X-MOD whose configuration does not say which language it reads."""
    if config.model_type == "xmod" and config.default_language is None:
        raise ValueError(
            f"{name}: its config.json must name a default_language, one of "
            f"{', '.join(config.languages)}"
        )


def check_masked_lm(name: str | Path, config: Any) -> None:
    """Raises ValueError, with the reason, if no masked LM of the family can be used."""
    if config.model_type in UNSUPPORTED:
        raise ValueError(
            f"{name}: {config.model_type} is not supported: {UNSUPPORTED[config.model_type]}; "
            "use an encoder such as BERT or RoBERTa, or --method finetuning"
        )
    if type(config) not in AutoModelForMaskedLM._model_mapping:
        raise ValueError(
            f"{name}: {config.model_type} has no masked-LM class, which this method needs; "
            "use an encoder such as BERT or RoBERTa, or --method finetuning"
        )


def at(revision: str | None) -> dict[str, str]:
    """The argument of `from_pretrained` for a version on the hub; None is the latest one."""
    return {} if revision is None else {"revision": revision}


def load_tokenizer(model: str, name: str | None, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, at its revision, or another one by its name.

    Raises:
        UsageError: if it cannot be loaded.
    """
    if name is not None:
        check_folder(name)
    try:
        return AutoTokenizer.from_pretrained(name or model, **at(None if name else revision))
    except LOADING_ERRORS as error:
        reason = one_line(error)
        source = name or model
        raise UsageError(reason if source in reason else f"{source}: {reason}") from None


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Raises UsageError if the tokenizer has tokens that the model has no embeddings for."""
    if len(tokenizer) > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model has {config.vocab_size}: "
            "give the tokenizer that the model was trained with"
        )


def read_weights(
    name: str | Path, settings: Any, revision: str | None = None
) -> dict[str, Tensor] | None:
    """The tensors of a checkpoint for `load_float32`, so that two models need one reading.

    None where a checkpoint is not just one safetensors file (several files, a pickle, an adapter):
    transformers then reads it for each model.

    Args:
        name: a folder or a hub id.
        settings: the checkpoint's configuration.
        revision: the version of it on the hub; None for the latest.
    """
    if is_peft_available() or getattr(settings, "transformers_weights", None):
        return None
    try:
        path = cached_file(name, SAFE_WEIGHTS_NAME, **at(revision))
    except OSError:  # from_pretrained looks for the other layouts, and says what is missing
        return None
    assert path is not None  # which takes an option that is not given here
    halves = (torch.float16, torch.bfloat16)
    tensors = load_file(path)
    return {key: t.float() if t.dtype in halves else t for key, t in tensors.items()}


def load_float32(
    auto: Any,
    name: str | Path,
    expected_new: tuple[str, ...],
    weights: dict[str, Tensor] | None = None,
    **config: Any,
) -> PreTrainedModel:
    """`auto.from_pretrained(name)` in float32, whatever the checkpoint's own dtype.

    Weights that the checkpoint lacks are newly initialised. One warning names them, except those
    whose name contains one of `expected_new`. If the checkpoint's tensors are given as `weights`,
    no file is read, and the model keeps them as its own memory. `config` holds values of the
    configuration, and `revision` and `ignore_mismatched_sizes` as `from_pretrained` takes them.
    """
    model, missing = _from_pretrained(auto, name, weights, **config)
    new = [key for key in missing if not any(word in key for word in expected_new)]
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


def load_classifier(
    name: str, tokenizer_name: str | None = None, revision: str | None = None
) -> tuple[PreTrainedModel, Any]:
    """A trained sequence classifier in float32, and its tokenizer.

    Args:
        name: a folder or a hub id.
        tokenizer_name: that of another tokenizer than the checkpoint's own.
        revision: the version on the hub; None for the latest.

    Raises:
        UsageError: if they cannot be loaded, or the checkpoint holds no trained classifier.
    """
    transformers_logging.disable_progress_bar()  # of loading; that of predicting stays
    check_folder(name, revision)
    try:
        check_language(name, AutoConfig.from_pretrained(name, **at(revision)))
        auto = AutoModelForSequenceClassification
        model, missing = _from_pretrained(auto, name, None, **at(revision))
    except LOADING_ERRORS as error:
        raise UsageError(f"{name}: cannot be loaded: {one_line(error)}") from None
    if missing:
        listed = ", ".join(missing)
        raise UsageError(f"{name}: has no trained classifier (no {listed}): train one first")
    tokenizer = load_tokenizer(name, tokenizer_name, revision)
    if tokenizer.pad_token_id is None:
        raise UsageError(f"{name}: its tokenizer has no padding token to batch texts with")
    return model, tokenizer


def _from_pretrained(
    auto: Any, name: str | Path, weights: dict[str, Tensor] | None = None, **config: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model in float32, and the names of the weights that its checkpoint lacks."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its own report is a page long
    source: str | Path | None = name
    if weights is not None:  # a stock class takes weights, though not together with a name
        settings = AutoConfig.from_pretrained(name, **config)
        auto = auto._model_mapping[type(settings)]
        sizes = {key: config[key] for key in config.keys() & {"ignore_mismatched_sizes"}}
        source, config = None, {"config": settings, "state_dict": weights, **sizes}
    try:
        model, report = auto.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **config
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    model.name_or_path = model.config.name_or_path = str(name)
    return model, sorted(report["missing_keys"])
