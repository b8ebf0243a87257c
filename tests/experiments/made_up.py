"""Made-up outcomes and comparisons for the tests of the statistics and the report."""

import numpy as np

from masktuning.experiments.comparison_result import Comparison
from masktuning.experiments.outcome import Outcome, SetOutcome
from masktuning.experiments.plan import Plan, Variant


def outcome(sets, seconds=10.0, memory_mb=100.0, more=None, machine="one", warnings=()):
    """An outcome from {set: correct}; the first set is in distribution, the others are not."""
    found = {
        name: SetOutcome("ood" if i else "dev", np.array(correct, bool), (more or {}).get(name, {}))
        for i, (name, correct) in enumerate(sets.items())
    }
    return Outcome(found, seconds, memory_mb, machine, "runs/one", tuple(warnings))


def share(correct, of=10):
    """That many correct examples, the first ones."""
    return [i < correct for i in range(of)]


def comparison(**changed):
    """Three variants, of which one was searched; two seeds, and two out-of-distribution sets."""
    plain, tuned, fixed = (
        Variant("finetuning"),
        Variant("mask_tuning"),
        Variant("poe", (("bias_model", "overlap_100%"),)),
    )
    points = ((("alpha", "0.1"),), (("alpha", "0.3"),))
    plan = Plan(
        (plain, tuned, fixed),
        {plain.name: ((),), tuned.name: points, fixed.name: ((),)},
        (1001, 1002),
        (1, 2),
    )
    sizes = {plain.name: (8, 5, 4), tuned.name: (8, 9, 9), fixed.name: (7, 6, 4)}
    costs = {plain.name: (10.0, 100.0), tuned.name: (20.0, 150.0), fixed.name: (11.0, 100.0)}
    content = {
        "task": "demo",
        "baseline": plain.name,
        "plan": plan,
        "choices": {plain.name: (), tuned.name: points[1], fixed.name: ()},
        "search": {tuned.name: {points[0]: [0.7, 0.8], points[1]: [0.8, 0.9]}},
        "outcomes": {
            name: {
                seed: outcome(
                    {"dev": share(dev + seed - 1), "hans": share(one), "paws": share(two)},
                    *costs[name],
                    more={"paws": {"f1": 0.1 * two + 0.01 * seed, "f1_low": 0.0, "f1_high": 1.0}},
                )
                for seed in (1, 2)
            }
            for name, (dev, one, two) in sizes.items()
        },
        "failures": {},
        "identity": {"torch": "2.13.0"},
    }
    return Comparison(**{**content, **changed})
