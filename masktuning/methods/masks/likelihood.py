"""How unlikely each token of a text is, in nats, to a masked LM or to a causal LM.

Nothing here trains: the models run without dropout and without gradients. Special tokens have the
score 0.

Shapes: R rows of one batch, L tokens, H width of the hidden states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from masktuning.config.errors import UsageError, one_line
from masktuning.data.word_marks import word_starts
from masktuning.methods.perturbation import Perturbation, perturbation_from, predict_masked
from masktuning.modeling.loading import LOADING_ERRORS, check_folder, load_float32, load_tokenizer
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import MaskedTokens

Row = dict[str, Sequence[int]]
"""A tokenised text: `input_ids`, and `token_type_ids` if the family has them."""
Scores = list[NDArray[np.float32]]
"""For each text -log P of each of its tokens."""
_TOKENS = 8192  # of one batch with their padding, about
_LOGITS = 2**25  # of one batch of a causal LM, about: 128 MiB


def word_ends(
    ids: NDArray[np.int64], continues: NDArray[np.bool_], special: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each token of a text the position after the last token of its word."""
    n = len(ids)
    inside = continues[ids]
    # What follows a special token begins a word, with or without a mark.
    inside[1:] &= ~np.isin(ids[:-1], special)
    inside[:1] = False
    starts = np.append(np.flatnonzero(~inside), n)
    return starts[np.searchsorted(starts, np.arange(n), side="right")]


@torch.no_grad()
def pseudo_log_likelihoods(
    rows: Sequence[Row], model: MaskTuningModel, tokenizer: PreTrainedTokenizerBase
) -> Scores:
    """-log P(t_i | all other tokens but the later ones of its word), for each token of each text.

    For each token the text is read once with the mask in the places of this token and of the later
    tokens of its word ("within_word_l2r": Kauf and Ivanova, 2023, arXiv 2305.10588). Only the
    masked position itself is computed in the last layer and in the masked-LM head.

    Args:
        rows: the tokenised texts.
        model: with its masked-LM head. It is left in the mode that it was in.
        tokenizer: that of the texts.
    """
    special = np.array(sorted(set(tokenizer.all_special_ids)))
    continues = ~word_starts(tokenizer)
    ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
    ends = [word_ends(one, continues, special) for one in ids]
    wanted = [np.flatnonzero(~np.isin(one, special)) for one in ids]
    scores = [np.zeros(len(one), dtype=np.float32) for one in ids]
    device = next(model.parameters()).device
    perturbation = perturbation_from(tokenizer, model.config.vocab_size).to(device)
    training = model.training
    model.eval()
    for places in _batches(ids, wanted):
        losses = _masked_losses(places, rows, ids, ends, model, tokenizer, perturbation)
        for (text, t), loss in zip(places, losses.tolist(), strict=True):
            scores[text][t] = loss
    model.train(training)
    return scores


def _batches(
    ids: Sequence[NDArray[np.int64]], wanted: Sequence[NDArray[np.int64]]
) -> Iterator[list[tuple[int, int]]]:
    """All (text, position) pairs, in batches of texts of similar length."""
    found: list[tuple[int, int]] = []
    for text in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        for t in wanted[text].tolist():
            if found and (len(found) + 1) * len(ids[text]) > _TOKENS:
                yield found
                found = []
            found.append((text, t))
    if found:
        yield found


def _masked_losses(
    places: list[tuple[int, int]],
    rows: Sequence[Row],
    ids: Sequence[NDArray[np.int64]],
    ends: Sequence[NDArray[np.int64]],
    model: MaskTuningModel,
    tokenizer: PreTrainedTokenizerBase,
    perturbation: Perturbation,
) -> Tensor:
    """[R], -log P of the token at each of `places`."""
    device = perturbation.device
    texts = [rows[text] for text, _ in places]
    ids_RL, mask_RL, extras = _padded(texts, tokenizer, device)
    t_R = torch.tensor([t for _, t in places], device=device)
    end_R = torch.tensor([int(ends[text][t]) for text, t in places], device=device)
    r_R, t_L = (torch.arange(n, device=device) for n in ids_RL.shape)
    hidden_RL = (t_L >= t_R[:, None]) & (t_L < end_R[:, None])
    masked = MaskedTokens(
        ids_RL.masked_fill(hidden_RL, perturbation.mask_token_id),
        r_R * ids_RL.shape[1] + t_R,
        ids_RL[r_R, t_R],
    )
    assert model.mlm_head is not None
    offsets = torch.arange(len(places) + 1, device=device)  # one position of each row
    return predict_masked(
        lambda one: model.encode_masked(one, ids_RL, offsets, 1, mask_RL, **extras),
        model.mlm_head,
        ids_RL,
        masked,
        r_R,
        torch.zeros(2, dtype=torch.int64, device=device),
        perturbation,
    ).losses


def _padded(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Token ids and the attention mask [R, L], and the token types if the rows have them."""
    lengths = [len(row["input_ids"]) for row in rows]
    mask_RL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padding = tokenizer.pad_token_id or 0

    def filled(name: str, fill: int) -> Tensor:
        values = torch.full(mask_RL.shape, fill)
        values[mask_RL] = torch.tensor([value for row in rows for value in row[name]])
        return values.to(device)

    types = "token_type_ids"
    extras = {types: filled(types, 0)} if types in rows[0] else {}
    mask = None if bool(mask_RL.all()) else mask_RL.long().to(device)
    return filled("input_ids", padding), mask, extras


@torch.no_grad()
def left_to_right(
    rows: Sequence[Row], scorer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Scores:
    """-log P(t_i | t_1 ... t_(i-1)) of each token by a causal LM, one reading for each text."""
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    scores: Scores = [np.zeros(0, dtype=np.float32)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    start = 0
    while start < len(order):
        longest = len(rows[order[start]]["input_ids"])
        size = max(1, _LOGITS // (max(longest, 1) * scorer.config.vocab_size))
        chosen = order[start : start + size]
        start += size
        texts = [{"input_ids": rows[i]["input_ids"]} for i in chosen]
        ids_RL, mask_RL, _ = _padded(texts, tokenizer, scorer.device)
        logits_RLV = scorer(input_ids=ids_RL, attention_mask=mask_RL).logits[:, :-1].float()
        losses_RL = F.cross_entropy(logits_RLV.transpose(1, 2), ids_RL[:, 1:], reduction="none")
        losses_RL = F.pad(losses_RL, (1, 0)).cpu()  # the first token follows no other
        losses_RL = losses_RL.masked_fill(torch.isin(ids_RL.cpu(), special), 0)
        for i, losses_L in zip(chosen, losses_RL, strict=True):
            scores[i] = losses_L[: len(rows[i]["input_ids"])].numpy()
    return scores


def load_scorer(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal LM with the vocabulary of `tokenizer`, in float32, for `left_to_right`.

    Args:
        name: a folder or a hub id.
        tokenizer: that of the texts.

    Raises:
        UsageError: if it cannot be loaded, has another vocabulary, or reads what follows a token.
    """
    check_folder(name)
    if load_tokenizer(name, None, None).get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"--scorer {name} has another vocabulary than the model that is trained: give a causal "
            "LM with the same tokenizer, or leave the flag out"
        )
    try:
        scorer = load_float32(AutoModelForCausalLM, name, ()).eval()
    except LOADING_ERRORS as error:
        raise UsageError(f"--scorer {name} cannot be loaded: {one_line(error)}") from None
    if not _is_causal(scorer):
        raise UsageError(
            f"--scorer {name} also reads the tokens that follow the one it scores: give a causal LM"
        )
    return scorer


@torch.no_grad()
def _is_causal(scorer: Any) -> bool:
    """Whether the last token of a text changes no prediction before it."""
    ids = torch.arange(4, 12)[None] % scorer.config.vocab_size
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % scorer.config.vocab_size
    first, second = (scorer(input_ids=one).logits[:, :-1] for one in (ids, changed))
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)
