"""CLARE (Li et al. 2021, arXiv 2009.07502): a masked LM replaces, inserts and merges words.

Shapes: n words of a text.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from masktuning.methods.perturbations.attack import (
    CANDIDATES,
    INSERT,
    MERGE,
    REPLACE,
    Action,
    Attack,
    Candidate,
)
from masktuning.methods.perturbations.part_of_speech import ADJECTIVE, DETERMINER, NOUN
from masktuning.methods.perturbations.scoring import Scorer
from masktuning.methods.perturbations.stop_words import STOP_WORDS
from masktuning.methods.perturbations.words import Text

_MERGED = {(NOUN, NOUN), (ADJECTIVE, NOUN), (DETERMINER, NOUN)}


class CLARE(Attack):
    """The edits that lower p(y) the most, at most one per word, until the label flips.

    For each word the masked LM fills a mask in its place (replace, unless it is a stop word), after
    it (insert), or in its own and the next word's place (merge, for a noun after a noun, an
    adjective or a determiner; with `pos_filter` off before any word that is no stop word). Its 50
    most likely tokens are candidates if their probability exceeds 5e-4 (replace), 0 (insert) or
    5e-3 (merge), if they are whole words and no stop words, and if the edited text has a cosine
    similarity of at least 0.7 to the original one (the authors' values; 0.6 on SST-2). Each word's
    best edit is the one that lowers p(y) the most. The best edits that lower p(y) are applied, the
    lowest p(y) first, until the victim's label flips or there are `max_edits`. A text to which the
    victim already gives another label stays as it is. Every text keeps its label.

    Deviations: the masked LM is the starting model and not a distilled RoBERTa; the similarity is
    that of its encoder's mean states and not of the Universal Sentence Encoder; candidates are
    whole words; the content words of the other text of a pair are not protected.
    """

    similarity = 0.7
    floors: ClassVar = {REPLACE: 5e-4, INSERT: 0.0, MERGE: 5e-3}

    def attack(self, text: Text, label: int, scorer: Scorer) -> Text:
        """See `Attack.attack`."""
        p = scorer.probabilities([text])[0]
        if int(p.argmax()) != label:
            return text
        best = self._best_edits(text, label, scorer)
        edited, used, edits = text, set[int](), 0
        for lowered, candidate in best:
            if lowered >= float(p[label]):
                break
            places = set(candidate.action.places)
            longer = edited.edited(candidate.action.filled(candidate.token))
            if places & used or len(longer.ids()) > self.limit:
                continue
            edited, used, edits = longer, used | places, edits + 1
            if edits == self.options.max_edits:
                break
            if int(scorer.probabilities([edited])[0].argmax()) != label:
                break
        return edited

    def cost(self, text: Text) -> tuple[int, int]:
        """See `Attack.cost`."""
        actions = len(self._actions(text))
        return 1 + actions, 1 + actions * (1 + 2 * CANDIDATES) + self.options.max_edits

    def _best_edits(self, text: Text, label: int, scorer: Scorer) -> list[tuple[float, Candidate]]:
        """The best edit of each word with the p(y) that it leads to, in the order of that."""
        found = self.candidates(text, self._actions(text), scorer)
        if found:
            found, _ = self.similar(text, found, scorer)
        if not found:
            return []
        p = scorer.probabilities([one.text for one in found])[:, label].tolist()
        best: dict[int, tuple[float, Candidate]] = {}
        for value, candidate in zip(p, found, strict=True):
            place = candidate.action.places[0]
            if place not in best or value < best[place][0]:
                best[place] = (value, candidate)
        return [best[place] for place in sorted(best, key=lambda place: (best[place][0], place))]

    def _actions(self, text: Text) -> list[Action]:
        places = self.vocabulary.places(text)
        actions = [Action(REPLACE, (place,)) for place in self.content_places(text)]
        actions += [Action(INSERT, (place,), text.pieces[place]) for place in places]
        tags = None if self.tagger is None else self.tags(text)
        for first, second in pairwise(places):
            if second != first + 1:
                continue  # a punctuation mark or a special token is between them
            if tags is None:
                allowed = self.vocabulary.word(text.pieces[second]).lower() not in STOP_WORDS
            else:
                allowed = (tags[first], tags[second]) in _MERGED
            if allowed:
                actions.append(Action(MERGE, (first, second)))
        return actions
