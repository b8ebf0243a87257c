"""BAE (Garg and Ramakrishnan 2020, arXiv 2004.01970): words that a masked LM replaces or adds.

Shapes: n words of a text.
"""

from __future__ import annotations

from typing import ClassVar

from masktuning.methods.perturbations.attack import (
    CANDIDATES,
    INSERT,
    REPLACE,
    Action,
    Attack,
    Candidate,
)
from masktuning.methods.perturbations.part_of_speech import NOUN, VERB
from masktuning.methods.perturbations.scoring import Scorer
from masktuning.methods.perturbations.words import Text


class BAE(Attack):
    """Edits the words whose deletion lowers p(y) the most, in that order, until the label flips.

    For each word that is no stop word the masked LM fills a mask in its place (replace), or next
    to it on either side (insert), with its 50 most likely tokens. A candidate must be a whole word
    and no stop word; a replacement must have the same part of speech (a noun may replace a verb and
    the other way round); and the edited text must have a cosine similarity of at least 0.8 to the
    original one. Of the candidates that flip the victim's label the most similar one is taken; if
    there is none, the one that lowers p(y) the most, if any does. Each word is edited once at most,
    and a text has at most `max_edits` edits. A text to which the victim already gives another label
    stays as it is. Every text keeps its label.

    Deviations: the similarity is that of the encoder's mean states of the starting model over 15
    words around the edit, and not of the Universal Sentence Encoder; its cosines are larger, so
    0.8 lets more through. The number of edits is capped, which the attack itself does not do.
    """

    similarity = 0.8
    floors: ClassVar = {REPLACE: 0.0, INSERT: 0.0}

    def attack(self, text: Text, label: int, scorer: Scorer) -> Text:
        """See `Attack.attack`."""
        p = scorer.probabilities([text])[0]
        places = self.content_places(text)
        if int(p.argmax()) != label or not places:
            return text
        without = scorer.probabilities([text.edited({place: ()}) for place in places])[:, label]
        by_importance = [place for _, place in sorted(zip(without.tolist(), places, strict=True))]
        edited, lowest, edits = text, float(p[label]), 0
        for place in by_importance:
            best = self._best(text, edited, place, label, scorer)
            if best is None or (best[1] >= lowest and not best[2]):
                continue
            edited, lowest, flips = best
            edits += 1
            if flips or edits == self.options.max_edits:
                break
        return edited

    def cost(self, text: Text) -> tuple[int, int]:
        """See `Attack.cost`."""
        n = len(self.content_places(text))
        if not n:
            return 1, 1
        return 1 + n, 1 + n + n * len(self._actions(text, 0)) * (1 + 2 * CANDIDATES)

    def _best(
        self, original: Text, edited: Text, place: int, label: int, scorer: Scorer
    ) -> tuple[Text, float, bool] | None:
        """The best edit in a place: the text, p(y) and whether the label flips; None if none."""
        found = self.candidates(edited, self._actions(edited, place), scorer)
        found = [one for one in found if self._same_part_of_speech(original, one)]
        if found:
            found, similarity = self.similar(original, found, scorer)
        if not found:
            return None
        p = scorer.probabilities([one.text for one in found])
        flips = p.argmax(1) != label
        i = int(similarity.where(flips, -2).argmax() if flips.any() else p[:, label].argmin())
        return found[i].text, float(p[i, label]), bool(flips[i])

    def _actions(self, text: Text, place: int) -> list[Action]:
        piece, kinds = text.pieces[place], self.options.bae_actions
        replace = [Action(REPLACE, (place,))]
        insert = [Action(INSERT, (place,), piece, ()), Action(INSERT, (place,), (), piece)]
        return {REPLACE: replace, INSERT: insert}.get(kinds, replace + insert)

    def _same_part_of_speech(self, original: Text, candidate: Candidate) -> bool:
        action = candidate.action
        if self.tagger is None or action.kind == INSERT:
            return True
        place = action.places[0]
        before = self.tags(original)[place]
        after = self.tags(original.edited({place: (candidate.token,)}))[place]
        return before == after or {before, after} == {NOUN, VERB}
