"""From how unlikely tokens are to the probabilities that they are masked, as in L3Masking.

Any method may use `l3_thresholds`, whose result is a column of the training set.

Shapes: n tokens of one text.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from masktuning.config.errors import UsageError
from masktuning.config.files import make, replaced_when_complete
from masktuning.data.example_ids import column
from masktuning.methods.masks.likelihood import (
    Row,
    Scores,
    left_to_right,
    load_scorer,
    pseudo_log_likelihoods,
)
from masktuning.modeling.shared_encoder import MaskTuningModel

logger = logging.getLogger(__name__)

COLUMN = "mask_thresholds"
"""The column of the training set with a threshold per token, from 0 to 2^32, all int64."""
_VERSION = "1"  # of how scores are computed; a file of another one is not read


def l3_thresholds(
    train: Any,
    tokenizer: PreTrainedTokenizerBase,
    model: MaskTuningModel,
    rate: float,
    scorer: str | None,
    cache: Path,
) -> list[list[int]]:
    """The thresholds of each row's tokens: round(q * 2^32) with q of `masking_probabilities`.

    The scores are kept in a file in `cache`, under a name that depends on all that they depend on:
    the texts, the tokenizer, and the weights of the model or of the scorer.

    Args:
        train: rows with input_ids.
        tokenizer: that of the texts.
        model: as it is now, that is before its training; with its masked-LM head unless there is a
            scorer.
        rate: the mean of the probabilities over the tokens of each text.
        scorer: a causal LM that scores the texts instead; None for the model itself.
        cache: a folder, which may not exist.

    Raises:
        UsageError: for a stream, and for a scorer that cannot be used.
    """
    if not hasattr(train, "__len__"):
        raise UsageError(
            "L3Masking scores every token before training, which a stream does not allow: use "
            "--method random_token_masking, or --mask_policy random with Mask-tuning"
        )
    rows = _rows(train)
    special = np.array(sorted(set(tokenizer.all_special_ids)))
    scores = _cached_scores(rows, tokenizer, model, scorer, cache)
    found = []
    for row, one in zip(rows, scores, strict=True):
        maskable = ~np.isin(np.asarray(row["input_ids"]), special)
        found.append(thresholds_of(one, maskable, rate).tolist())
    return found


def masking_probabilities(
    scores: NDArray[Any], maskable: NDArray[np.bool_], rate: float
) -> NDArray[np.float64]:
    """[n] the probability that each token is masked; their mean over maskable tokens is `rate`.

    With a_i = (s_i - min s) / (max s - min s) they are q_i = a_i * rate / mean(a). What exceeds 1
    is shared equally among the tokens below 1, until none exceeds it. min s is the score of special
    tokens, 0; they have q = 0 and are not counted. Where all scores are 0 every q_i is `rate`.

    Args:
        scores: [n] not negative.
        maskable: [n] false for special tokens.
        rate: from 0 to 1.
    """
    probabilities = np.zeros(len(scores))
    s = np.asarray(scores, dtype=np.float64)[maskable]
    if not len(s):
        return probabilities
    total = s.sum()
    q = s * (rate * len(s) / total) if total > 0 else np.full(len(s), float(rate))
    while (q > 1).any():
        excess = (q - 1).clip(min=0).sum()
        q = q.clip(max=1)
        below = q < 1
        if not below.any():  # only rounding is left over: rate is 1
            break
        q[below] += excess / below.sum()
    probabilities[maskable] = q
    return probabilities


def thresholds_of(
    scores: NDArray[Any], maskable: NDArray[np.bool_], rate: float
) -> NDArray[np.int64]:
    """[n] round(q * 2^32) of the masking probabilities q, for `ops.sample_masks_threshold`."""
    return np.rint(masking_probabilities(scores, maskable, rate) * 2**32).astype(np.int64)


def _rows(train: Any) -> list[Row]:
    names = [name for name in ("input_ids", "token_type_ids") if len(train) and name in train[0]]
    columns = [column(train, name) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _cached_scores(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    model: MaskTuningModel,
    scorer: str | None,
    cache: Path,
) -> Scores:
    causal = None if scorer is None else load_scorer(scorer, tokenizer)
    weights: Any = model if causal is None else causal
    path = cache / f"likelihoods-{_key(rows, tokenizer, weights)}.safetensors"
    lengths = [len(row["input_ids"]) for row in rows]
    if not path.is_file():
        logger.info("scoring the tokens of %d texts once, for %s", len(rows), path)
        device = PartialState().device  # where the training will run; the model is not there yet
        before = next(weights.parameters()).device
        weights.to(device)
        if causal is None:
            scores = pseudo_log_likelihoods(rows, model, tokenizer)
        else:
            scores = left_to_right(rows, causal, tokenizer)
        weights.to(before)
        make(cache)
        with replaced_when_complete(path) as partial:
            flat = np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32)
            save_file({"scores": flat}, partial)
    return np.split(load_file(path)["scores"], np.cumsum(lengths)[:-1])


def _key(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, weights: Any) -> str:
    """A hash of all that the scores depend on."""
    digest = hashlib.sha256(f"{_VERSION} {type(weights).__name__}".encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(repr((sorted(tokenizer.all_special_ids), tokenizer.mask_token_id)).encode())
    for row in rows:
        for name, values in row.items():
            digest.update(f"{name} {len(values)} ".encode())
            digest.update(np.asarray(values, dtype=np.int64).tobytes())
    # The classifier's head and pooler, which may be new in each run, have no part in the scores.
    whole = isinstance(weights, MaskTuningModel)
    for module in (weights.encoder, weights.mlm_head) if whole else (weights,):
        for name, tensor in module.state_dict().items():
            if "pooler" in name:
                continue
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()[:16]
