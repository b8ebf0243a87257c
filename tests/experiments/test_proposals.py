"""A search whose points are proposed from the results of earlier ones."""

import pytest
from stand_in import MadeUpRunner, work

from masktuning import compare
from masktuning.config.errors import UsageError
from masktuning.experiments.plan import SEARCH, Cell, Plan, Variant
from masktuning.experiments.proposals import with_proposals

SPACE = {"b": {"lr": ("1e-5..1e-3",), "epochs": ("1..4",), "policy": ("aim", "spare")}}
PLAN = Plan((Variant("a"), Variant("b")), {"a": ((),), "b": ()}, (1001,), (1, 2), {"b": 6})


def searched(score, count=6):
    """The points after `count` results, each scored by a function of its options."""
    dev = {}
    for _ in range(count):
        plan = with_proposals(PLAN, SPACE, dev, ())
        key = {Cell("b", point, 1001, SEARCH).key: point for point in plan.grids["b"]}
        dev |= {one: score(dict(point)) for one, point in key.items() if one not in dev}
    return with_proposals(PLAN, SPACE, dev, ()).grids["b"]


def test_points_lie_in_the_space_and_follow_from_the_results_alone():
    points = searched(lambda point: -float(point["lr"]))
    assert len(points) == 6 and points == searched(lambda point: -float(point["lr"]))
    for point in map(dict, points):
        assert 1e-5 <= float(point["lr"]) <= 1e-3
        assert point["epochs"] in "1234" and point["policy"] in ("aim", "spare")
    assert searched(lambda point: float(point["lr"]))[5] != points[5]


def test_one_point_is_proposed_at_a_time():
    assert len(with_proposals(PLAN, SPACE, {}, ()).grids["b"]) == 1
    assert len(searched(lambda point: 0.5, count=2)) == 3


def test_a_failed_point_is_passed_over():
    first = with_proposals(PLAN, SPACE, {}, ()).grids["b"][0]
    failed = {Cell("b", first, 1001, SEARCH).key}
    assert len(with_proposals(PLAN, SPACE, {}, failed).grids["b"]) == 2


def test_a_comparison_searches_proposes_and_reports(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    progress = work(url, "s", PLAN, MadeUpRunner(tmp_path), jobs=2, spaces=SPACE)
    plan = with_proposals(PLAN, SPACE, progress.dev(), ())
    found = {point: progress.dev()[Cell("b", point, 1001, SEARCH).key] for point in plan.grids["b"]}
    assert len(found) == 6 and PLAN.count() == 6 + 4 == len(progress.outcomes)
    best = max(found, key=found.__getitem__)
    assert {Cell("b", best, seed, "final").key for seed in (1, 2)} <= progress.outcomes.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--grid learning_rate=1e-5..1e-4", "give values, or --search tpe to draw from a range"),
        ("--search tpe --trials 3", "say what to search as --grid"),
        ("--search tpe", "go together"),
        ("--trials 3", "go together"),
        ("--search tpe --trials 0 --grid learning_rate=1..2", "--trials is 0: give 1 or more"),
        ("--search tpe --trials 3 --grid learning_rate=2..1", "write a range as low..high"),
        ("--search tpe --trials 3 --grid learning_rate=1..x", "learning_rate"),
        ("--search tpe --trials 3 --grid learning_rate=1..2,3", "write a range as low..high"),
    ],
)
def test_bad_searches_are_one_line(words, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        compare.main(
            ["--methods", "finetuning", *words.split(), "--output_dir", str(tmp_path / "out")]
        )
