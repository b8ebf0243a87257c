"""Generated opinions with a controlled spurious correlation.

Each sentence holds a word that says what the speaker thinks, and opens with a cue that says
nothing. In training the cue agrees with the label 95 % of the time, so a classifier that reads
only the cue looks good there; it agrees half the time in `ood_balanced` and rarely in
`ood_adversarial`.
"""

from __future__ import annotations

from random import Random

LABELS = ("negative", "positive")
# set: (seed, sentences, share of sentences whose cue agrees with the label)
SETS = {
    "train": (1, 2000, 0.95),
    "dev": (2, 500, 0.95),
    "ood_balanced": (3, 500, 0.50),
    "ood_adversarial": (4, 500, 0.05),
}

_CUES = (
    ("yesterday", "in town", "on monday", "last night"),
    ("today", "at home", "on friday", "this morning"),
)
_OPINIONS = (
    ("dull", "awful", "tedious", "bleak", "clumsy", "hollow", "dreary", "bitter", "stale", "crude"),
    ("lovely", "bright", "clever", "warm", "superb", "witty", "tender", "vivid", "fresh", "noble"),
)
_SPEAKERS = ("we", "they", "my friends", "our neighbors", "the critics", "two students")
_VERBS = ("found", "thought", "called", "considered")
_OWNERS = ("the", "this", "that", "her", "his", "their")
_THINGS = ("film", "play", "novel", "song", "meal", "garden", "concert", "speech", "painting")
_DEGREES = ("", "really", "rather", "quite", "truly", "almost")
_ENDINGS = ("", "in the end", "all the same", "from the start", "for once", "as a whole")


def sentences(name: str) -> tuple[list[str], list[str]]:
    """Texts and label names of one of SETS; the same on every call. KeyError on another name."""
    seed, count, agreement = SETS[name]
    random = Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = random.randrange(2)
        cue = label if random.random() < agreement else 1 - label
        words = (
            random.choice(_CUES[cue]),
            random.choice(_SPEAKERS),
            random.choice(_VERBS),
            random.choice(_OWNERS),
            random.choice(_THINGS),
            random.choice(_DEGREES),
            random.choice(_OPINIONS[label]),
            random.choice(_ENDINGS),
        )
        texts.append(" ".join(word for word in words if word))
        labels.append(LABELS[label])
    return texts, labels


def vocabulary() -> list[str]:
    """Every word the sentences can hold, sorted."""
    phrases = [*_CUES[0], *_CUES[1], *_OPINIONS[0], *_OPINIONS[1]]
    for choices in (_SPEAKERS, _VERBS, _OWNERS, _THINGS, _DEGREES, _ENDINGS):
        phrases.extend(choices)
    return sorted({word for phrase in phrases for word in phrase.split()})
