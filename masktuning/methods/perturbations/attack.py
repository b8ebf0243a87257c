"""Attacks on words as perturbations: edits of a text that make a trained classifier err.

Shapes: V vocabulary.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from transformers.utils.logging import tqdm

from masktuning.data.tokenize import length_limit
from masktuning.methods.base import Stage
from masktuning.methods.perturbations.part_of_speech import Tagger, nltk_tagger
from masktuning.methods.perturbations.scoring import BATCH, VICTIM, Scorer, load_victim
from masktuning.methods.perturbations.static import Rows, StaticStrategy, Version
from masktuning.methods.perturbations.stop_words import STOP_WORDS
from masktuning.methods.perturbations.words import Text, Vocabulary
from masktuning.modeling.shared_encoder import MaskTuningModel

logger = logging.getLogger(__name__)

CANDIDATES = 50  # of the masked LM for each mask

REPLACE, INSERT, MERGE = "replace", "insert", "merge"


class Action(NamedTuple):
    """An edit with a gap that the masked LM fills."""

    kind: str
    """REPLACE, INSERT or MERGE."""
    places: tuple[int, ...]
    """The places that it changes; the first is that of the edit."""
    before: tuple[int, ...] = ()
    """What stands before the gap in the first place."""
    after: tuple[int, ...] = ()
    """What stands after it."""

    def filled(self, token: int) -> dict[int, tuple[int, ...]]:
        """The pieces of its places with a token in the gap."""
        filled = {self.places[0]: (*self.before, token, *self.after)}
        return {**dict.fromkeys(self.places, ()), **filled}


class Candidate(NamedTuple):
    """An action with a token, and the text that it makes."""

    action: Action
    token: int
    text: Text


class Attack(StaticStrategy):
    """What BAE and CLARE share: the victim, the candidates and their filters.

    The victim is a classifier that the stage `victim` trains by plain fine-tuning.
    """

    similarity: ClassVar[float]
    """The least similarity of an edited text to the original one, by default."""
    floors: ClassVar[Mapping[str, float]]
    """The probability that a candidate must exceed, by the kind of its action."""

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """The training of the victim. Whether the tagger is installed is checked before it."""
        if options.pos_filter == "nltk":
            nltk_tagger()
        return [Stage(VICTIM, "finetuning")]

    def reads(self, model: MaskTuningModel, cache: Path) -> list[nn.Module]:
        """See `StaticStrategy.reads`."""
        return [*super().reads(model, cache), load_victim(cache)]

    def generate(
        self, model: MaskTuningModel, rows: Rows, cache: Path
    ) -> Iterable[Sequence[Version]]:
        """See `StaticStrategy.generate`; there is one version of each text."""
        device = next(model.parameters()).device
        victim = load_victim(cache).to(device).eval()
        typed = rows.token_type_ids is not None
        scorer = Scorer(model, victim, self.tokenizer, typed)
        attacker = copy.copy(self)  # a strategy itself keeps nothing, since it is pickled
        attacker.begin(length_limit(model.encoder, model.config, self.tokenizer))
        pairs = zip(rows.input_ids, rows.types(), strict=True)
        texts = [attacker.vocabulary.split(ids, kinds) for ids, kinds in pairs]
        mask = self.tokenizer.mask_token_id
        chosen = [
            i
            for i in chosen_rows(len(texts), self.options.perturbed_examples)
            if rows.labels[i] >= 0 and mask not in rows.input_ids[i]
        ]
        attacker.say_cost([texts[i] for i in chosen], len(texts))
        for i in tqdm(chosen, desc=self.name, unit="texts"):
            texts[i] = attacker.attack(texts[i], rows.labels[i], scorer)
        return [[Version(t.ids(), t.token_types() if typed else None)] for t in texts]

    def begin(self, limit: int) -> None:
        """Makes what attacks need; no text may get longer than `limit` tokens."""
        self.limit = limit
        self.vocabulary = Vocabulary(self.tokenizer, self.vocab_size)
        self.tagger: Tagger | None = nltk_tagger() if self.options.pos_filter == "nltk" else None

    def attack(self, text: Text, label: int, scorer: Scorer) -> Text:
        """The text with the edits that lower the probability of its label the most."""
        raise NotImplementedError

    def cost(self, text: Text) -> tuple[int, int]:
        """How many texts are evaluated for the attack on one text, at least and at most."""
        raise NotImplementedError

    def content_places(self, text: Text) -> list[int]:
        """The places of the words that are no stop words."""
        places = self.vocabulary.places(text)
        return [i for i in places if self.vocabulary.word(text.pieces[i]).lower() not in STOP_WORDS]

    def candidates(self, text: Text, actions: Sequence[Action], scorer: Scorer) -> list[Candidate]:
        """The words that the masked LM fills the actions' gaps with.

        They are among its 50 most likely tokens, more likely than the floor of their kind, whole
        words, no stop words, and not the word that they replace.
        """
        fitting = [a for a in actions if len(text.edited(a.filled(0)).ids()) <= self.limit]
        if not fitting:
            return []
        mask = self.tokenizer.mask_token_id
        predicted_AV = scorer.predicted([text.edited(a.filled(mask)) for a in fitting])
        best = predicted_AV.topk(min(CANDIDATES, predicted_AV.shape[1]))
        found = []
        for action, values, tokens in zip(
            fitting, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            for p, token in zip(values, tokens, strict=True):
                if p > self.floors[action.kind] and self._fits(text, action, token):
                    found.append(Candidate(action, token, text.edited(action.filled(token))))
        return found

    def similar(
        self, original: Text, candidates: Sequence[Candidate], scorer: Scorer
    ) -> tuple[list[Candidate], Tensor]:
        """The candidates whose text is similar enough to the original one, and how similar."""
        least = self.options.similarity
        least = self.similarity if least is None else least
        places = [candidate.action.places[0] for candidate in candidates]
        before = [original.window(place) for place in places]
        pairs = zip(candidates, places, strict=True)
        cosines = scorer.similarity(before, [c.text.window(place) for c, place in pairs])
        kept = (cosines >= least).nonzero().flatten()
        return [candidates[i] for i in kept.tolist()], cosines[kept]

    def tags(self, text: Text) -> dict[int, str]:
        """The part of speech of the piece in each place; the pieces must be single words."""
        assert self.tagger is not None
        places = [i for i, segment in enumerate(text.segments) if segment >= 0]
        found = self.tagger([self.vocabulary.word(text.pieces[i]) for i in places])
        return dict(zip(places, found, strict=True))

    def _fits(self, text: Text, action: Action, token: int) -> bool:
        if not bool(self.vocabulary.whole[token]):
            return False
        word = self.vocabulary.word([token]).lower()
        old = [self.vocabulary.word(text.pieces[place]).lower() for place in action.places]
        return word not in STOP_WORDS and (action.kind == INSERT or word not in old)

    def say_cost(self, texts: Sequence[Text], count: int) -> None:
        """Says how many texts will be evaluated, before the first one is."""
        costs = [self.cost(text) for text in texts]
        least, most = (sum(column) for column in zip(*costs, strict=True)) if costs else (0, 0)
        logger.warning(
            "--perturbation %s: %d of %d training texts are attacked, for which %d to %d texts go "
            "through the encoder, %d at a time at most; --perturbed_examples attacks fewer",
            self.name,
            len(texts),
            count,
            least,
            most,
            BATCH,
        )


def chosen_rows(count: int, wanted: int) -> list[int]:
    """All rows, or `wanted` of them at equal distances."""
    if not 0 < wanted < count:
        return [*range(count)]
    return [i * count // wanted for i in range(wanted)]
