"""Prompts made of solved examples, in the format of Si et al. (ICLR 2023, arXiv 2210.09150).

Each solved example of a prompt reads

    <sentence 1>
    <sentence 2>
    <question>
    Answer: <answer>

with a blank line after it. The text to label follows in the same form and ends in "Answer: ".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from masktuning.config.errors import UsageError
from masktuning.data.labels import LabelNames
from masktuning.data.load import LabelledTexts

STOP = "\n\n"  # what ends an answer
# The questions about pairs of texts, with the answer for each label, of MNLI and ANLI, of QQP and
# PAWS, and of HANS.
_QUESTIONS: dict[str, dict[str, str]] = {
    "What is the relationship between these two sentences?": {
        "entailment": "entailment",
        "neutral": "neutral",
        "contradiction": "contradiction",
    },
    "Are these two questions asking the same thing?": {"duplicate": "yes", "not_duplicate": "no"},
    "Can the second sentence be inferred from the first sentence?": {
        "entailment": "yes",
        "non-entailment": "no",
    },
}


@dataclass(frozen=True)
class Template:
    """The question about each text or pair, and the possible answers."""

    question: str
    answers: list[str]
    """The answer for each label, in the order of the label ids."""

    def unsolved(self, texts: Sequence[str]) -> str:
        """The text or pair of one example, up to its answer."""
        # A line break within a text would look like the end of the text.
        lines = [" ".join(text.split()) for text in texts]
        return "\n".join([*lines, self.question, "Answer: "])

    def solved(self, texts: Sequence[str], label: int) -> str:
        """The text or pair of one example, with the answer for its label id."""
        return f"{self.unsolved(texts)}{self.answers[label]}{STOP}"


def template_of(labels: list[str], columns: int) -> Template:
    """The template for labels of these names, and for texts of one or two columns.

    Pairs whose labels are those of MNLI, of QQP or of HANS have the questions of the paper. For
    all others the question lists the labels, and the answers are their names.
    """
    for question, answer_of in _QUESTIONS.items() if columns == 2 else ():
        names = LabelNames([*answer_of])
        found = [names.find(label) for label in labels]
        if len(labels) == len(answer_of) and set(found) == set(range(len(labels))):
            answers = [*answer_of.values()]
            return Template(question, [answers[i] for i in found if i is not None])
    listed = f"{', '.join(labels[:-1])} or {labels[-1]}"
    subject = "these two texts" if columns == 2 else "this text"
    return Template(f"Which label fits {subject}: {listed}?", labels)


def demonstrations(label_ids: Sequence[int], labels: list[str], shots: int, seed: int) -> list[int]:
    """The rows of a training set to show: `shots` of each label, in an order that mixes labels.

    The rows are ranked by a hash of the seed and the row number, and the first ones of each label
    are taken, so the choice is the same on every machine.

    Args:
        label_ids: the label id of each training row.
        labels: the label names.
        shots: how many rows of each label.
        seed: another seed gives other rows.

    Raises:
        UsageError: if a label has fewer rows.
    """
    hashes = [
        blake2b(f"{seed} {i}".encode(), digest_size=16).digest() for i in range(len(label_ids))
    ]
    chosen: list[int] = []
    taken = [0] * len(labels)
    for i in sorted(range(len(hashes)), key=hashes.__getitem__):
        if taken[label_ids[i]] < shots:
            taken[label_ids[i]] += 1
            chosen.append(i)
    fewest = min(taken)
    if fewest < shots:
        label = labels[taken.index(fewest)]
        raise UsageError(
            f"--shots {shots}: the training set has only {fewest} examples of {label!r}; give "
            "fewer shots"
            if fewest
            else f"the training set has no example of {label!r}, so none can be shown"
        )
    return chosen


def prompts(
    template: Template, train: LabelledTexts, rows: Sequence[int], texts: LabelledTexts
) -> list[str]:
    """A prompt for each row of `texts`: the training examples `rows`, solved, and then that row.

    The label ids of `train` are those of the template.
    """
    shown = "".join(
        template.solved([column[i] for column in train.texts], train.labels[i]) for i in rows
    )
    return [shown + template.unsolved(row) for row in zip(*texts.texts, strict=True)]
