"""Which runs a comparison has, and which grid point is chosen."""

import pytest

from masktuning.config.errors import UsageError
from masktuning.experiments.choice import choices, search_scores
from masktuning.experiments.plan import FINAL, SEARCH, Cell, Plan, Variant, grid_points

LOW, HIGH = (("lr", "1e-5"),), (("lr", "1e-4"),)
TWO = Plan(
    (Variant("plain"), Variant("mask_tuning", (("alpha", "0.1"),))),
    {"plain": ((),), "mask_tuning:alpha=0.1": (LOW, HIGH)},
    (1001, 1002),
    (1, 2, 3),
)


def test_a_variant_is_a_method_with_options():
    assert Variant.parse("poe") == Variant("poe")
    found = Variant.parse("mask_tuning:alpha=0.1,mask-policy=spare")
    assert found == Variant("mask_tuning", (("alpha", "0.1"), ("mask_policy", "spare")))
    assert Variant.parse(found.name) == found


@pytest.mark.parametrize("text", ["", ":a=1", "poe:", "poe:alpha", "poe:alpha=", "poe:=1"])
def test_a_variant_without_a_value_is_told(text):
    with pytest.raises(UsageError, match="write a method, or METHOD:option=value"):
        Variant.parse(text)


def test_a_grid_has_all_combinations_of_the_options_that_a_variant_leaves_open():
    grid = {"lr": ("1", "2"), "alpha": ("0", "1"), "other": ("x", "y")}
    has = {"lr", "alpha"}
    assert grid_points(grid, Variant("m"), has) == [
        (("lr", "1"), ("alpha", "0")),
        (("lr", "1"), ("alpha", "1")),
        (("lr", "2"), ("alpha", "0")),
        (("lr", "2"), ("alpha", "1")),
    ]
    fixed = Variant("m", (("alpha", "0.5"),))
    assert grid_points(grid, fixed, has) == [(("lr", "1"),), (("lr", "2"),)]
    assert grid_points(grid, fixed, {"alpha"}) == [()]


def test_a_plan_searches_where_there_is_a_choice_and_reports_other_seeds():
    search = TWO.search_cells()
    name = "mask_tuning:alpha=0.1"
    assert [(one.variant, one.point, one.seed, one.stage) for one in search] == [
        (name, LOW, 1001, SEARCH),
        (name, HIGH, 1001, SEARCH),
        (name, LOW, 1002, SEARCH),
        (name, HIGH, 1002, SEARCH),
    ]
    final = TWO.final_cells({name: HIGH})
    assert [(one.variant, one.point, one.seed, one.stage) for one in final] == [
        (name, HIGH, seed, FINAL) for seed in (1, 2, 3)
    ]
    assert TWO.count() == 4 + 6
    assert len({one.key for one in [*search, *TWO.final_cells({"plain": (), name: LOW})]}) == 10
    assert not set(TWO.search_seeds) & set(TWO.final_seeds)


def dev_of(low, high):
    """The dev accuracies of the search runs, by the keys of their cells."""
    values = {LOW: low, HIGH: high}
    return {
        one.key: values[one.point][one.seed - 1001]
        for one in TWO.search_cells()
        if values[one.point][one.seed - 1001] is not None
    }


@pytest.mark.parametrize(
    ("low", "high", "chosen"),
    [
        ((0.7, 0.9), (0.75, 0.8), LOW),  # the mean decides, not the best run
        ((0.7, 0.7), (0.9, 0.8), HIGH),
        ((0.8, 0.8), (0.8, 0.8), LOW),  # the first of equals
    ],
)
def test_the_best_mean_on_dev_is_chosen(low, high, chosen):
    dev = dev_of(low, high)
    assert choices(TWO, dev, set()) == {"plain": (), "mask_tuning:alpha=0.1": chosen}
    scores = search_scores(TWO, dev)
    assert scores == {"mask_tuning:alpha=0.1": {LOW: [*low], HIGH: [*high]}}


def test_nothing_is_chosen_before_a_search_has_ended():
    dev = dev_of((0.7, 0.9), (0.8, None))
    missing = Cell("mask_tuning:alpha=0.1", HIGH, 1002, SEARCH).key
    assert choices(TWO, dev, set()) == {"plain": ()}
    # A point with a failed run is compared with no other, however good its other run was.
    dev[Cell("mask_tuning:alpha=0.1", HIGH, 1001, SEARCH).key] = 1.0
    assert choices(TWO, dev, {missing})["mask_tuning:alpha=0.1"] == LOW
    failed = {one.key for one in TWO.search_cells()}
    assert choices(TWO, {}, failed) == {"plain": ()}
