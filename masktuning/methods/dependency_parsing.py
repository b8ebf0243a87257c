"""Dependency parsing: the training of an encoder that comes before intermediate_parsing's own.

Glavas and Vulic 2021 (arXiv 2008.06788): a biaffine parser on top of the encoder's last layer.

Shapes: B sentences, L tokens, W words of the longest sentence, S = W + 1 possible heads (the root
first), R relations, H width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.data.conllu import read_conllu
from masktuning.data.tokenize import length_limit
from masktuning.data.treebank import treebank_rows
from masktuning.methods.base import Method
from masktuning.methods.step import Step
from masktuning.modeling.biaffine import BiaffineParser, chosen, cross_entropies, means_of_words
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.modeling.token_states import token_states
from masktuning.ops.checks import IGNORE_INDEX
from masktuning.ops.philox import draw_words

STREAM_PARSING_DROPOUT = 45  # of random numbers, for the dropout of the states that are parsed


@dataclass
class DependencyParsingOptions:
    """The options of dependency parsing."""

    _argument_group_name = "dependency_parsing"

    treebank: str | None = field(
        default=None,
        metadata={"help": "Sentences to learn parsing from, a CoNLL-U file such as UD EWT's."},
    )
    dev_treebank: str | None = field(
        default=None,
        metadata={"help": "Sentences to measure the parser on, a CoNLL-U file."},
    )
    parsing_dropout: float = field(
        default=0.1, metadata={"help": "Dropout of the encoder's states before they are parsed."}
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        if not 0 <= self.parsing_dropout < 1:
            raise ValueError(f"parsing_dropout is {self.parsing_dropout}: give 0 or more, below 1")


class DependencyParsing(Method):
    """L = CE(s(d, .), h_d) + CE(r(d, h_d, .), l_d), over all words d of the treebank's sentences.

    h_d is the head of word d in the treebank and l_d its relation to that head. A word's vector x_d
    [H] is the mean of the encoder's last-layer states of its tokens, after dropout. The possible
    heads are all words of the sentence and the root, whose vector is the pooled state of the text.
    The score of the head h is s(d, h) = [x_d; 1] W x_h, and that of the relation l is r(d, h, l) =
    [x_d; 1] W_l [x_h; 1], with W [H + 1, H] and W_l [H + 1, H + 1], which begin at zero. Both
    cross-entropies are means over all words of the optimizer step. When the parser is measured,
    each word gets the head with the largest score and then the relation with the largest score for
    this head.

    It is the first part of `intermediate_parsing`, which runs it as a stage. It trains on the
    sentences of `treebank`, not on the task's texts, and ignores the options of the classifier's
    cross-entropy (--label_smoothing_factor, --class_weights). The dropout of 0.1 and the limits of
    128 tokens and 105 words per sentence are those of the authors' code, which searches dropout
    over 0.1 and 0.2. --dev_treebank gives eval_uas, the share of words with the correct head, and
    eval_las, with the correct head and relation, over all words, punctuation included.

    Deviations: the root's vector is the pooler's output in BERT, as in the authors' code, but the
    first token's state for encoders whose classifier has no pooler (RoBERTa, DistilBERT); the
    authors use an untrained pooler with RoBERTa. Sentences of more than 128 tokens or 105 words are
    skipped. The relations are those of the training treebank, with their subtypes.

    Equivalent to::

        x, root = mean_by_word(dropout(encoder(ids).last_hidden_state)), encoder(ids).pooler_output
        heads, one = torch.cat([root, x]), torch.ones(len(x), 1)  # for one sentence
        arcs = F.cross_entropy(torch.cat([x, one], 1) @ W @ heads.T, h)
        pairs = torch.cat([x, one], 1), torch.cat([heads[h], one], 1)
        return arcs + F.cross_entropy(torch.einsum("di,lij,dj->dl", pairs[0], W_l, pairs[1]), l)
    """

    Options = DependencyParsingOptions
    terms = ("parsing",)
    measures = ("uas", "las")
    paper = (
        'Glavas and Vulic, "Is Supervised Syntactic Parsing Beneficial for Language Understanding '
        'Tasks? An Empirical Investigation", EACL 2021, arXiv 2008.06788'
    )
    needs = "a treebank in CoNLL-U format"
    when = (
        "As the stage of intermediate_parsing, or alone for an encoder that was trained on "
        "syntactic trees and not yet on a task."
    )

    def __init__(
        self, model: MaskTuningModel, tokenizer: PreTrainedTokenizerBase, options: Any
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.check_task(options, pairs=False, labels=[])
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"{model.config.model_type} is an encoder-decoder, which dependency_parsing cannot "
                "train: use an encoder such as BERT or RoBERTa"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                "dependency_parsing needs a fast tokenizer, which tells where in a text its tokens "
                "are: give --tokenizer_name"
            )
        names = {name for one in read_conllu(options.treebank) for name in one.relations}
        self.relations = {name: i for i, name in enumerate(sorted(names))}
        self.parser = BiaffineParser(model.config.hidden_size, len(self.relations))
        dev = options.dev_treebank
        self.dev_rows = [] if dev is None else self._rows(dev)

    @classmethod
    def check_task(cls, options: Any, pairs: bool, labels: Sequence[str]) -> None:
        """Raises UsageError for a treebank that is missing; see `Method.check_task`."""
        if options.treebank is None:
            raise UsageError("--treebank is missing: sentences to learn parsing from, in CoNLL-U")

    def prepare(self, train: Any, cache: Path) -> list[dict[str, Any]]:
        """The sentences of the treebank in place of the task's training set."""
        return self._rows(self.options.treebank)

    def _rows(self, path: str) -> list[dict[str, Any]]:
        limit = length_limit(self.model.encoder, self.model.config, self.tokenizer)
        return treebank_rows(path, read_conllu(path), self.tokenizer, self.relations, limit)

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds `words` [B, L] (0 for special tokens and padding), `heads` and `relations` [B, W].

        Places beyond a sentence's last word hold -100.
        """
        words_BL = torch.zeros_like(batch.input_ids)
        mask_BL = batch.attention_mask
        attended_BL = torch.ones_like(words_BL) if mask_BL is None else mask_BL
        words_BL[attended_BL.bool()] = torch.tensor([i for row in rows for i in row["words"]])
        batch.columns["words"] = words_BL
        for name in ("heads", "relations"):
            values = [torch.tensor(row[name]) for row in rows]
            batch.columns[name] = nn.utils.rnn.pad_sequence(values, True, IGNORE_INDEX)
        return batch

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """The number of words."""
        return {"words": (batch.columns["heads"] != IGNORE_INDEX).sum()}

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss: both cross-entropies share the graph of the encoder."""
        heads_BW = batch.columns["heads"]
        words_BWH, heads_BSH = self.vectors(batch, step.rng)
        arcs_BWS = self.parser.arc_scores(words_BWH, heads_BSH, heads_BW != IGNORE_INDEX)
        relations_BWR = self.parser.relation_scores(words_BWH, chosen(heads_BSH, heads_BW))
        arcs = step.mean(cross_entropies(arcs_BWS, heads_BW), over="words")
        labelled = cross_entropies(relations_BWR, batch.columns["relations"])
        relations = step.mean(labelled, over="words")
        step.log(loss_arcs=arcs, loss_relations=relations)
        yield arcs + relations

    def vectors(self, batch: Batch, rng: Tensor | None) -> tuple[Tensor, Tensor]:
        """The vectors of the words [B, W, H] and of the possible heads [B, S, H].

        Dropout needs `rng`, which is None when the parser is measured.
        """
        states_BLH, root_BH = token_states(self.model, batch.input_ids, **batch.texts())
        if rng is not None and self.options.parsing_dropout:
            mask_BL = batch.attention_mask
            mask_BL = torch.ones_like(batch.input_ids) if mask_BL is None else mask_BL
            rate = self.options.parsing_dropout
            kept_BLH = kept_states(mask_BL, states_BLH.shape[-1], rate, batch.example_ids, rng)
            states_BLH = states_BLH * kept_BLH / (1 - rate)
        count = batch.columns["heads"].shape[1]
        words_BWH = means_of_words(states_BLH, batch.columns["words"], count)
        return words_BWH, torch.cat([root_BH[:, None], words_BWH], 1)

    @torch.no_grad()
    def measure(self, batch_size: int) -> dict[str, float]:
        """UAS and LAS on the dev treebank, as shares from 0 to 1; nothing if there is none."""
        if not self.dev_rows:
            return {}
        pad, device = PaddingCollator(self.tokenizer), self.parser.arcs.device
        rows = sorted(self.dev_rows, key=lambda row: -len(row["input_ids"]))
        totals = torch.zeros(3, device=device)
        for i in range(0, len(rows), batch_size):
            some = rows[i : i + batch_size]
            values = self.collate(Batch.from_dict(pad(some)), some).as_dict().items()
            tensors = {k: v.to(device) for k, v in values if isinstance(v, Tensor)}
            totals += self._correct(Batch.from_dict(tensors))
        words, heads, labelled = totals.tolist()
        return {"uas": heads / words, "las": labelled / words}

    def _correct(self, batch: Batch) -> Tensor:
        """[3]: how many words there are, how many get their head, and how many both."""
        heads_BW, relations_BW = batch.columns["heads"], batch.columns["relations"]
        words_BWH, heads_BSH = self.vectors(batch, None)
        arcs_BWS = self.parser.arc_scores(words_BWH, heads_BSH, heads_BW != IGNORE_INDEX)
        found_BW = arcs_BWS.argmax(-1)
        relations_BWR = self.parser.relation_scores(words_BWH, chosen(heads_BSH, found_BW))
        attached_BW = found_BW == heads_BW
        labelled_BW = attached_BW & (relations_BWR.argmax(-1) == relations_BW)
        known_BW = heads_BW != IGNORE_INDEX
        return torch.stack([known_BW.sum(), attached_BW.sum(), labelled_BW.sum()])

    def advice(self, metrics: Mapping[str, float]) -> str:
        """How well the parser does on the dev treebank."""
        if "eval_uas" not in metrics:
            return ""
        uas, las = (100 * metrics[f"eval_{name}"] for name in self.measures)
        return f"{self.options.dev_treebank}: UAS {uas:.2f} %, LAS {las:.2f} %"


def kept_states(
    attended_BL: Tensor, width: int, rate: float, example_ids: Tensor, rng: Tensor
) -> Tensor:
    """[B, L, H] bool, false for the share `rate` of each token's H = `width` numbers.

    A function of (seed, epoch, example, place of the token in its text) alone, wherever the padding
    is. Each random draw has four words, and decides about four numbers.
    """
    rank_BL1 = (attended_BL.cumsum(1) - 1).clamp(min=0)[..., None]
    quarters = -(-width // 4)
    places_BLQ = rank_BL1 * quarters + torch.arange(quarters, device=rank_BL1.device)
    draws = draw_words(rng, places_BLQ, example_ids[:, None, None], STREAM_PARSING_DROPOUT)
    draws_BLH = torch.stack(draws, -1).flatten(2)[..., :width]
    return draws_BLH >= round(rate * 2**32)
