"""SSMBA (Ng et al. 2020, EMNLP): walks on the manifold of texts that a masked LM has learned.

Shapes: B texts of a batch, L tokens, M positions that are resampled, V vocabulary.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from masktuning.methods.perturbation import plain_ids
from masktuning.methods.perturbations.static import Rows, StaticStrategy, Version
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops.philox import draw_words
from masktuning.ops.topk_sampling import draw_among

logger = logging.getLogger(__name__)

STREAM_WALK = 61  # of random numbers: which tokens are corrupted, how, and what replaces them
STREAM_AMOUNT = 62  # how many tokens of a text are corrupted

_TRIES = 10  # in a row without a text that is new, after which a walk ends
_BATCH = 64
_ROWS = 1024  # of logits at a time
_SHOW_MASK_BELOW = round(0.8 * 2**32)
_SHOW_RANDOM_BELOW = round(0.9 * 2**32)
_UNUSED = re.compile(r"\[unused\d+\]|madeupword\d+")


class Walk:
    """The texts that one example's walk has come to.

    Attributes:
        text: where it is now; it goes on from there.
        found: the texts that were new, in their order.
    """

    def __init__(self, text: list[int], types: list[int] | None, example_id: int) -> None:
        self.text, self.types, self.example_id = text, types, example_id
        self.found: list[list[int]] = []
        self.failures = 0
        self._seen = {tuple(text)}

    def take(self, text: list[int]) -> None:
        """Goes on to a text, unless the walk has been there before."""
        if tuple(text) in self._seen:
            self.failures += 1
            return
        self._seen.add(tuple(text))
        self.found.append(text)
        self.text, self.failures = text, 0

    def ended(self, n: int) -> bool:
        """Whether it has n texts, or has given up."""
        return len(self.found) == n or self.failures == _TRIES

    def versions(self, n: int) -> list[Version]:
        """n texts: those that were found, repeated if they are fewer; if none was, the original."""
        texts = self.found or [self.text]
        return [Version(texts[i % len(texts)], self.types) for i in range(n)]


class Corruption(NamedTuple):
    """What a try shows the masked LM."""

    shown_BL: Tensor
    """[B, L] int64, the corrupted texts."""
    resampled_BL: Tensor
    """[B, L] bool, the tokens that show the mask or a random token."""
    draws_BL: Tensor
    """[B, L] int64, the random 32-bit numbers that the new tokens are drawn by."""


class SSMBA(StaticStrategy):
    """L_FT on texts that are drawn from p(x' | corrupted x) of the frozen masked LM.

    A try corrupts int(rate * n + U[0, 1)) of a text's n plain tokens, chosen uniformly: 80 % show
    the mask, 10 % a random token, 10 % their own. Those that show the mask or a random token are
    drawn from the masked LM's `ssmba_top_k` most likely tokens, or from all with 0; special and
    unused ids are never drawn. A text that is new is one of the `ssmba_samples` versions, and the
    walk goes on from there; after 10 tries in a row without a new one it ends. The rate 0.15 and
    top-k 10 are the authors' defaults; 4 samples is the lower end of the 4 to 8 of the paper. The
    masked LM is the starting checkpoint in evaluation mode.

    Deviations: labels are copied and not predicted by a teacher; a try starts from the newest text.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plain_ids = torch.tensor(plain_ids(self.tokenizer, self.vocab_size))
        self.special_ids = torch.tensor(sorted(set(self.tokenizer.all_special_ids)))

    def generate(
        self, model: MaskTuningModel, rows: Rows, cache: Path
    ) -> Iterable[Sequence[Version]]:
        """See `StaticStrategy.generate`."""
        n = self.options.ssmba_samples
        each = zip(rows.input_ids, rows.types(), rows.example_ids, strict=True)
        walks = [Walk(*row) for row in each]
        least = n * -(-len(walks) // _BATCH)
        logger.warning(
            "--perturbation ssmba: %d versions of each of %d texts take at least %d forward passes "
            "of the masked LM with up to %d texts each, and more where a try finds nothing new",
            n,
            len(walks),
            least,
            _BATCH,
        )
        device = next(model.parameters()).device
        drawable = self.drawable().to(device)
        with tqdm(total=n * len(walks), desc="ssmba", unit="texts") as progress:
            for number in range(n * _TRIES):  # of the try, which all walks count alike
                active = [walk for walk in walks if not walk.ended(n)]
                if not active:
                    break
                for batch in _batches(active):
                    before = sum(len(walk.found) for walk in batch)
                    texts = self._resampled(model, batch, number, drawable)
                    for walk, text in zip(batch, texts, strict=True):
                        walk.take(text)
                    progress.update(sum(len(walk.found) for walk in batch) - before)
        return [walk.versions(n) for walk in walks]

    def drawable(self) -> Tensor:
        """[V] bool, the ids that may be drawn: neither special nor unused."""
        tokens = self.tokenizer.convert_ids_to_tokens(self.plain_ids.tolist())
        used = [not _UNUSED.fullmatch(token) for token in tokens]
        flags = torch.zeros(self.vocab_size, dtype=torch.bool)
        flags[self.plain_ids[torch.tensor(used)]] = True
        return flags

    def corrupt(self, ids_BL: Tensor, example_ids: Tensor, number: int) -> Corruption:
        """The corrupted texts of try `number`; the random numbers are counted as in `ops`."""
        device = ids_BL.device
        rng = torch.tensor([self.seed, number], device=device)
        t_L = torch.arange(ids_BL.shape[1], device=device)
        draws = draw_words(rng, t_L, example_ids[:, None], STREAM_WALK)
        order_BL, kind_BL, which_BL, pick_BL = draws
        plain_BL = ~torch.isin(ids_BL, self.special_ids.to(device))  # nor padding, which is special
        amount_B = draw_words(rng, torch.zeros_like(example_ids), example_ids, STREAM_AMOUNT)[0]
        share_B = plain_BL.sum(1).double() * self.options.ssmba_rate
        count_B = (share_B + amount_B.double() / 2**32).long()
        keys_BL = torch.where(plain_BL, (order_BL << 31) + t_L, torch.iinfo(torch.int64).max)
        ranks_BL = keys_BL.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        resampled_BL = (ranks_BL < count_B[:, None]) & plain_BL & (kind_BL < _SHOW_RANDOM_BELOW)
        replacements = self.plain_ids.to(device)
        random_BL = replacements[(which_BL * len(replacements)) >> 32]
        shown_BL = torch.where(kind_BL < _SHOW_MASK_BELOW, self.tokenizer.mask_token_id, random_BL)
        return Corruption(torch.where(resampled_BL, shown_BL, ids_BL), resampled_BL, pick_BL)

    def _resampled(
        self, model: MaskTuningModel, batch: list[Walk], number: int, drawable: Tensor
    ) -> list[list[int]]:
        """The texts that the next try of each walk comes to."""
        assert model.mlm_head is not None
        device = drawable.device
        lengths = [len(walk.text) for walk in batch]
        width = max(lengths)

        def padded(texts: list[list[int]], value: int) -> Tensor:
            rows = [text + [value] * (width - len(text)) for text in texts]
            return torch.tensor(rows, device=device)

        ids_BL = padded([walk.text for walk in batch], self.tokenizer.pad_token_id)
        attended_BL = (ids_BL != self.tokenizer.pad_token_id).long()
        types = [walk.types for walk in batch if walk.types is not None]
        types_BL = padded(types, self.tokenizer.pad_token_type_id) if types else None
        example_ids = torch.tensor([walk.example_id for walk in batch], device=device)
        shown_BL, resampled_BL, draws_BL = self.corrupt(ids_BL, example_ids, number)
        hidden_MH = model.encode(shown_BL, ids_BL, attended_BL, types_BL)[resampled_BL]
        parts = zip(hidden_MH.split(_ROWS), draws_BL[resampled_BL].split(_ROWS), strict=True)
        k = self.options.ssmba_top_k
        tokens = [
            draw_tokens(model.mlm_head.logits(hidden).masked_fill(~drawable, -torch.inf), k, draws)
            for hidden, draws in parts
            if len(hidden)
        ]
        if tokens:
            ids_BL[resampled_BL] = torch.cat(tokens)
        return [ids[:length] for ids, length in zip(ids_BL.tolist(), lengths, strict=True)]


def draw_tokens(logits_MV: Tensor, k: int, draws_M: Tensor) -> Tensor:
    """[M], tokens drawn from the softmax of the k largest logits, or of all of them with k = 0."""
    if k:
        return draw_among(logits_MV, min(k, logits_MV.shape[1]), 1.0, draws_M)
    cumulative_MV = logits_MV.double().softmax(1).cumsum(1)
    point_M1 = draws_M.double()[:, None] / 2**32 * cumulative_MV[:, -1:]
    found_M = torch.searchsorted(cumulative_MV, point_M1, right=True).squeeze(1)
    return found_M.clamp(max=logits_MV.shape[1] - 1)


def _batches(walks: list[Walk]) -> Iterator[list[Walk]]:
    """The walks in batches of texts of similar length."""
    by_length = sorted(walks, key=lambda walk: -len(walk.text))
    for i in range(0, len(by_length), _BATCH):
        yield by_length[i : i + _BATCH]
