"""Generated English with a controlled spurious correlation: a cue that is easier than the task.

Task `demo`: what someone thinks of something, from how they say it. The cue is lexical: what the
opinion is about (a comedy, a biography ...) says nothing of it, yet agrees with the label in most
of the training sentences. Task `demo-pairs`: does the second sentence follow from the first? The
cue is their overlap, as in HANS: a second sentence made of the first one's words mostly follows.

The cue agrees with the label 95 % of the time in distribution, half the time in `ood_balanced` and
5 % of the time in `ood_adversarial`, so a classifier that reads only the cue is found out there.
"""

from __future__ import annotations

from random import Random

from masktuning.config.errors import check_names

LABELS = {"demo": ("negative", "positive"), "demo-pairs": ("not_entailment", "entailment")}
# set: (seed, examples, share of examples whose cue agrees with the label)
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
# How an opinion is put: {good} is the label's own word, {bad} one of the other label, which the
# sentence takes back. Reading single words does not do.
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
_ACTIONS = {  # a verb and one that is taken to say the same
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
    """Premise and hypothesis: `cue` 1 repeats the premise's words, 0 says it in other words."""
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
    """Texts (one, or a pair) and label names; the cue agrees with the label in `agreement` of them.

    The same on every call. KeyError on another task than `demo` and `demo-pairs`.
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
    """One set of a task, named as in its YAML file: demo/train, demo-pairs/ood_balanced, ...

    Raises:
        UsageError: if there is none of that name.
    """
    known = {f"{task}/{part}" for task in LABELS for part in SETS}
    check_names([name], known, "generated set")
    task, _, part = name.partition("/")
    return generate(task, *SETS[part])
