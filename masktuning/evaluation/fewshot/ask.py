"""Asks a language model for what is not answered yet, after showing what that will cost."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from masktuning.evaluation.fewshot.answers import AnswerFile
from masktuning.evaluation.tables import aligned

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """A language model that answers prompts; an answer is what JSON can hold."""

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on apart from the prompt: the model and its version."""

    @property
    def token_count(self) -> str:
        """How `count_tokens` counts: the words that end the sentence "Its tokens are ..."."""

    def count_tokens(self, prompts: Sequence[str], answers: Sequence[str]) -> int:
        """The tokens of some prompts. UsageError if one is too long for the model."""

    def ask(self, prompts: Sequence[str], answers: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """The place of each prompt and its answer, in the order in which they are known."""

    def logits(self, answer: Any, answers: Sequence[str]) -> list[float]:
        """The log-probability of each label by an answer; all are -inf if it is no label."""


@dataclass(frozen=True)
class Request:
    """The prompts of one set."""

    name: str
    prompts: list[str]
    answers: list[str]
    """The possible answers: one per label."""

    def keys(self, scorer: Scorer) -> list[str]:
        """The key of each prompt in a file of answers."""
        start = sha256(json.dumps([scorer.identity, self.answers], sort_keys=True).encode())
        keys = []
        for prompt in self.prompts:
            digest = start.copy()
            digest.update(b"\0" + prompt.encode("utf-8", "surrogatepass"))
            keys.append(digest.hexdigest())
        return keys

    def missing(self, scorer: Scorer, known: AnswerFile) -> dict[str, str]:
        """The different prompts that have no answer yet, by their keys."""
        pairs = zip(self.keys(scorer), self.prompts, strict=True)
        return {key: prompt for key, prompt in pairs if key not in known}


def cost(requests: Sequence[Request], scorer: Scorer, known: AnswerFile) -> str:
    """A table of what has to be asked for each set.

    Raises:
        UsageError: if a prompt is too long for the model.
    """
    rows: list[tuple[str, ...]]
    rows = [("set", "prompts", "answered before", "to ask", "their tokens")]
    total = np.zeros(4, int)
    seen: set[str] = set()  # a set may have rows of an earlier one
    for request in requests:
        missing = request.missing(scorer, known)
        before = sum(key in known for key in request.keys(scorer))
        to_ask = [prompt for key, prompt in missing.items() if key not in seen]
        seen |= missing.keys()
        tokens = scorer.count_tokens(to_ask, request.answers)
        counts = np.array([len(request.prompts), before, len(to_ask), tokens])
        rows.append((request.name, *(f"{count:,}" for count in counts)))
        total += counts
    if len(requests) > 1:
        rows.append(("total", *(f"{count:,}" for count in total)))
    return f"{aligned(rows)}\nEach prompt is asked once. Its tokens are {scorer.token_count}."


def answered(
    request: Request, scorer: Scorer, known: AnswerFile, progress: bool
) -> NDArray[np.float64]:
    """Logits [n, C] of the n prompts, over the C possible answers; asks for what is not known.

    Raises:
        UsageError: if the model cannot be asked; the answers up to then are kept.
    """
    missing = request.missing(scorer, known)
    keys, prompts = [*missing], [*missing.values()]
    with tqdm(total=len(keys), desc=request.name, disable=not progress) as bar:
        for i, answer in scorer.ask(prompts, request.answers):
            known.add(keys[i], answer)
            bar.update()
    found = [known[key] for key in request.keys(scorer)]
    logits_nC = np.array([scorer.logits(answer, request.answers) for answer in found])
    if unknown := [a for a, row in zip(found, logits_nC, strict=True) if np.isneginf(row).all()]:
        logger.warning(
            "%s: %d of %d answers are no label, such as %.60r, and count as wrong",
            request.name,
            len(unknown),
            len(found),
            unknown[0],
        )
    return logits_nC
