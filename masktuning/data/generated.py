"""Generated English texts whose labels correlate with a cue that is easier than the task itself.

In the task `demo` a sentence states an opinion, and the label is whether it is a good one. The cue
is the subject of the opinion (a comedy, a biography, ...), which has no bearing on the opinion. In
the task `demo-pairs` the label is whether the second sentence follows from the first. The cue is
their overlap, as in HANS: whether the second sentence consists of words of the first.

The cue agrees with the label in 95 % of the examples in distribution, in half of them in
`ood_balanced` and in 5 % in `ood_adversarial`, where a classifier that relies on the cue fails.
"""

from __future__ import annotations

from random import Random

from masktuning.config.errors import check_names

LABELS = {"demo": ("negative", "positive"), "demo-pairs": ("not_entailment", "entailment")}
# For each set: its seed, its number of examples, the share of them whose cue agrees with the label.
SETS = {
    "train": (1, 2000, 0.95),
    "dev": (2, 500, 0.95),
    "ood_balanced": (3, 500, 0.50),
    "ood_adversarial": (4, 500, 0.05),
}

_CUES = (
    ("drama", "war film", "crime story", "documentary", "history book", "biography"),
    ("comedy", "musical", "love story", "cartoon", "children 's book", "fairy tale"),
)
_BAD = (
    "bad boring dull awful terrible poor weak slow stupid silly horrible disappointing "
    "tedious annoying predictable ridiculous flat empty cheap ugly messy pointless tired lame"
).split()
_GOOD = (
    "good great fine funny wonderful excellent brilliant beautiful lovely clever charming "
    "perfect fresh strong touching powerful fascinating delightful superb moving amazing "
    "smart rich warm"
).split()
_WORDS = (_BAD, _GOOD)
_SPEAKERS = (
    "i", "we", "they", "he", "she", "my brother", "my sister", "my friend", "the critics",
    "the students", "our teacher", "his wife", "her husband", "the audience",
)  # fmt: skip
_PARTS = ("story plot script ending acting music dialogue cast opening style").split()
_DEGREES = ("", "", "very", "really", "quite", "rather", "truly", "surprisingly")
_PLACES = (
    "", "", "last night", "on monday", "at home", "in paris", "with friends", "for the first time",
    "two years ago", "after dinner",
)  # fmt: skip
# Ways to state an opinion: {good} is a word of the label, {bad} a word of the other label, which
# the sentence negates or contrasts. So single words do not tell the label.
_FORMS = (
    "{who} saw the {cue} {when} and found it {how} {good} .",
    "{who} thought that the {part} of the {cue} was {how} {good} .",
    "{when} {who} finished the {cue} ; its {part} was {how} {good} .",
    "{who} expected the {cue} to be {bad} , but it was {how} {good} .",
    "the {cue} that {who} talked about was not {bad} at all : it was {good} .",
    "although the {part} was {bad} , {who} called the {cue} {how} {good} .",
    "it is wrong to call this {cue} {bad} ; {who} found it {how} {good} .",
    "{who} would not say that the {cue} was {bad} .",
)

_PEOPLE = (
    "doctor captain teacher student actor artist judge manager author scientist president king "
    "queen woman priest soldier officer singer writer driver"
).split()
_ACTIONS = {  # each verb and its synonym here
    "saw": "noticed", "helped": "supported", "liked": "enjoyed", "killed": "murdered",
    "hired": "employed", "chose": "selected", "taught": "trained", "knew": "recognized",
    "refused": "rejected",
}  # fmt: skip
_TIMES = (
    "yesterday",
    "in the morning",
    "before the war",
    "near the river",
    "in the hotel",
    "again",
)


def _opinion(random: Random, label: int, cue: int) -> tuple[str]:
    """A sentence with the opinion `label` about a subject of the kind `cue`."""
    words = {
        "who": random.choice(_SPEAKERS),
        "cue": random.choice(_CUES[cue]),
        "good": random.choice(_WORDS[label]),
        "bad": random.choice(_WORDS[1 - label]),
        "part": random.choice(_PARTS),
        "how": random.choice(_DEGREES),
        "when": random.choice(_PLACES),
    }
    return (" ".join(random.choice(_FORMS).format(**words).split()),)


def _pair(random: Random, label: int, cue: int) -> tuple[str, str]:
    """Premise and hypothesis; with `cue` 1 the hypothesis consists of words of the premise."""
    subject, other, third = random.sample(_PEOPLE, 3)
    verb = random.choice(list(_ACTIONS))
    first = f"the {subject} {verb} the {other} {random.choice(_TIMES)} ."
    if cue:
        order = (subject, other) if label else (other, subject)
        return first, f"the {order[0]} {verb} the {order[1]} ."
    if label:
        return first, random.choice(
            (
                f"someone {_ACTIONS[verb]} the {other} .",
                f"{_a(subject)} {_ACTIONS[verb]} someone .",
                f"there was {_a(other)} whom {_a(subject)} {_ACTIONS[verb]} .",
            )
        )
    return first, random.choice(
        (
            f"no one {_ACTIONS[verb]} the {other} .",
            f"{_a(third)} {_ACTIONS[verb]} someone .",
            f"there was no {subject} whom anyone {_ACTIONS[verb]} .",
        )
    )


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def generate(
    task: str, seed: int, count: int, agreement: float
) -> tuple[list[tuple[str, ...]], list[str]]:
    """`count` texts (tuples of one sentence or of a pair) and the label name of each.

    The cue agrees with the label in a share of `agreement` of the texts on average. Every call
    with the same arguments returns the same texts.

    Raises:
        KeyError: if `task` is neither `demo` nor `demo-pairs`.
    """
    labels, make = LABELS[task], {"demo": _opinion, "demo-pairs": _pair}[task]
    random = Random(seed)
    texts: list[tuple[str, ...]] = []
    names = []
    for _ in range(count):
        label = random.randrange(2)
        cue = label if random.random() < agreement else 1 - label
        texts.append(make(random, label, cue))
        names.append(labels[label])
    return texts, names


def examples(name: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """Texts and label names of a set by its name: demo/train, demo-pairs/ood_balanced, ...

    Raises:
        UsageError: if there is no generated set of that name.
    """
    known = {f"{task}/{part}" for task in LABELS for part in SETS}
    check_names([name], known, "generated set")
    task, _, part = name.partition("/")
    return generate(task, *SETS[part])
