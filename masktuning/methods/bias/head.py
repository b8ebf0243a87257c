"""Bias heads that are trained together with the model, and teach the encoder nothing.

Karimi Mahabadi et al. 2020 (arXiv 1909.06321), section 3 and appendix.

Shapes: B examples, P and Q tokens of the first and the second text with their special tokens,
C classes, F features, H width of the states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from masktuning.data.batch import Batch
from masktuning.methods.base import Method
from masktuning.methods.bias.method import label_names
from masktuning.methods.bias.models import entailment_of
from masktuning.methods.bias.overlap import Words, is_contiguous_part
from masktuning.methods.bias.segments import Segments, Splitter, refuse_single_texts
from masktuning.methods.requirements import check_model
from masktuning.methods.step import Step
from masktuning.modeling.shared_encoder import MaskTuningModel

OVERLAP, HYPOTHESIS = "overlap", "hypothesis"
FEATURES = 6
_PUNCTUATION = (".", "?", "!")
_LONGEST = 64  # tokens of one text alone, its special tokens included
_EXACT = "overlap_features"
_WEIGHTS = "bias_weights"  # the count that the bias head's cross-entropy is divided by


@dataclass
class BiasHeadOptions:
    """What the trained bias head sees."""

    bias_head: str = field(
        default=OVERLAP,
        metadata={
            "help": "What the bias head sees: overlap, what the two texts have in common, or "
            "hypothesis, the second text alone.",
            "choices": [OVERLAP, HYPOTHESIS],
        },
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        if self.bias_head not in (OVERLAP, HYPOTHESIS):
            raise ValueError(f"bias_head is {self.bias_head!r}: give {OVERLAP!r} or {HYPOTHESIS!r}")


class BiasHeadMethod(Method):
    """A method with a bias head, of which the classifier alone is used after training.

    The head gets the texts of a pair apart, as the columns `first_ids` [B, P] and `second_ids`
    [B, Q] of a batch with their attention masks, and computes `bias_logits` [B, C]. What it reads
    of the encoder is computed without gradient and without dropout.
    """

    Options = BiasHeadOptions
    needs = "pairs of texts"

    def __init__(
        self, model: MaskTuningModel, tokenizer: PreTrainedTokenizerBase, options: Any
    ) -> None:
        super().__init__(model, tokenizer, options)
        width, classes = model.config.hidden_size, model.config.num_labels
        hidden = [FEATURES, FEATURES, FEATURES]
        if options.bias_head == HYPOTHESIS:
            check_model(model, frozenset({"pooled"}))
            hidden = [width, width, width // 2, width // 4]
        self.bias_head = perceptron([*hidden, classes])
        self.splitter = Splitter(tokenizer)
        self.words = Words(tokenizer)

    @classmethod
    def check_task(cls, options: Any, pairs: bool, labels: Sequence[str]) -> None:
        """Raises UsageError for a task of single texts."""
        refuse_single_texts(pairs, f"--bias_head {options.bias_head}")

    def prepare(self, train: Any, cache: Any) -> Any:
        """Checks that the rows are pairs, by the first one; adds nothing."""
        self._pairs([next(iter(train))])  # a stream has no row 0
        return train

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds the texts apart and, for the head that sees overlap, its exact features [B, 3]."""
        pairs = self._pairs(rows)
        sides = {"second": [pair.second for pair in pairs]}
        if self.options.bias_head == OVERLAP:
            sides["first"] = [pair.first for pair in pairs]
            exact = [exact_features(self.words(p), self.words(h)) for p, h in pairs]
            batch.columns[_EXACT] = torch.tensor(exact)
        for side, texts in sides.items():
            ids, mask = self._alone(texts)
            batch.columns |= {f"{side}_ids": ids, f"{side}_mask": mask}
        return batch

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Labels, and the sum of the labels' weights in the bias head's cross-entropy."""
        weights_B = self._label_weights(batch.labels)
        return {**super().counts(batch), _WEIGHTS: weights_B.sum()}

    def bias_logits(self, batch: Batch) -> Tensor:
        """[B, C], the bias head's logits, through which no gradient reaches the encoder."""
        model, columns = self.model, batch.columns
        training = model.training
        model.eval()  # without dropout: what the head sees belongs to the texts alone
        try:
            with torch.no_grad():
                seen = (
                    self._hypothesis(columns) if _EXACT not in columns else self._overlap(columns)
                )
        finally:
            model.train(training)
        return self.bias_head(seen)

    def bias_loss(self, logits_BC: Tensor, batch: Batch, step: Step) -> Tensor:
        """The bias head's own cross-entropy, in which entailment weighs as much as the rest.

        Where a label is called entailment, the other labels have the weight 1 / (C - 1) each if the
        head sees the overlap, which cannot tell them apart. Otherwise all weights are 1.
        """
        losses_B = F.cross_entropy(logits_BC.float(), batch.labels, reduction="none")
        return step.mean(self._label_weights(batch.labels) * losses_B, over=_WEIGHTS)

    def _pairs(self, rows: Sequence[Mapping[str, Any]]) -> list[Segments]:
        return self.splitter.pairs(rows, f"--bias_head {self.options.bias_head}")

    def _label_weights(self, labels_B: Tensor) -> Tensor:
        """[B], the weights of the labels; 0 for -100."""
        labels = label_names(self)
        entailment = entailment_of(labels)
        weights_B = (labels_B != -100).float()
        if entailment is None or self.options.bias_head == HYPOTHESIS:
            return weights_B
        return weights_B.where(labels_B == entailment, weights_B / (len(labels) - 1))

    def _alone(self, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask [B, L] of texts with special tokens of their own."""
        tokenizer = self.tokenizer
        before = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
        ends = (tokenizer.sep_token_id, tokenizer.eos_token_id)
        after = [one for one in ends if one is not None][:1]
        most = _LONGEST - len(before) - len(after)
        rows = [torch.tensor([*before, *text[:most], *after]) for text in texts]
        pad = tokenizer.pad_token_id
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()

    def _hypothesis(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[B, H], the pooled state of the second text alone."""
        return self.model(columns["second_ids"], columns["second_mask"], pooled=True).pooled

    def _overlap(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[B, 6], the exact features and the statistics of the similarities."""
        states, masks = [], []
        for side in ("first", "second"):
            ids, mask = columns[f"{side}_ids"], columns[f"{side}_mask"]
            states.append(F.normalize(self.model.encode(ids, ids, mask).float(), dim=-1))
            masks.append(mask.bool())
        similar_BQP = states[1] @ states[0].transpose(1, 2)
        statistics_B3 = similarity_statistics(similar_BQP, *masks)
        return torch.cat([columns[_EXACT], statistics_B3], 1)


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers between the `widths`, with tanh between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def exact_features(premise: Sequence[str], hypothesis: Sequence[str]) -> list[float]:
    """Whether all word pieces of the hypothesis are in the premise, whether they are a contiguous
    part of it, and the share of its different word pieces that are in the premise.

    Full stops, question marks and exclamation marks do not count.
    """
    p, h = ([w for w in text if w not in _PUNCTUATION] for text in (premise, hypothesis))
    if not h:
        return [0.0, 0.0, 0.0]
    common = len(set(h) & set(p)) / len(set(h))
    return [float(common == 1), float(is_contiguous_part(h, p)), common]


def similarity_statistics(similar_BQP: Tensor, first_BP: Tensor, second_BQ: Tensor) -> Tensor:
    """[B, 3], the smallest, the mean and the largest of s_i = max_j cos(h_i, p_j) over the tokens i
    of the second text.

    Args:
        similar_BQP: the cosine of each token of the second text with each one of the first.
        first_BP, second_BQ: bool, false for padding.
    """
    best_BQ = similar_BQP.masked_fill(~first_BP[:, None], -torch.inf).amax(2)
    lowest = best_BQ.masked_fill(~second_BQ, torch.inf).amin(1)
    highest = best_BQ.masked_fill(~second_BQ, -torch.inf).amax(1)
    mean = best_BQ.masked_fill(~second_BQ, 0.0).sum(1) / second_BQ.sum(1)
    return torch.stack([lowest, mean, highest], 1)
