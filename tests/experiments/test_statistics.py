"""Means over seeds and paired bootstrap intervals, next to a slow bootstrap and closed forms."""

import numpy as np
import pytest
from made_up import outcome, share

from masktuning.config.errors import UsageError
from masktuning.experiments import statistics
from masktuning.experiments.statistics import Score, summarize


def random_runs(generator, seeds, sizes, rate):
    """One outcome per seed; the rate of correct examples differs between seeds."""
    return {
        seed: outcome(
            {
                name: generator.random(n) < rate + 0.05 * generator.standard_normal()
                for name, n in sizes.items()
            }
        )
        for seed in seeds
    }


def pair(sizes, seeds=(1, 2, 3, 4)):
    generator = np.random.default_rng(5)
    return {
        "base": random_runs(generator, seeds, sizes, 0.6),
        "other": random_runs(generator, seeds, sizes, 0.7),
    }


def slow_bootstrap(differences, resamples=4000):
    """Resampled means, from the arrays [S, n] of several sets, by indexing rows and columns."""
    generator = np.random.default_rng(11)
    S = len(differences[0])
    found = []
    for _ in range(resamples):
        rows = generator.integers(S, size=S)
        means = []
        for one in differences:
            columns = generator.integers(one.shape[1], size=one.shape[1])
            means.append(one[rows][:, columns].mean())
        found.append(np.mean(means))
    return np.array(found)


def direct(outcomes, name):
    return np.array(
        [
            outcomes["other"][seed].sets[name].correct.astype(float)
            - outcomes["base"][seed].sets[name].correct
            for seed in sorted(outcomes["base"])
        ]
    )


def check_against_slow(found, differences):
    """A 2.5 % quantile of 4,000 normal draws has a standard error of 0.042 standard deviations;
    the tolerance is five times as much."""
    drawn = slow_bootstrap(differences)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.mean == pytest.approx(np.mean([one.mean() for one in differences]))
    assert found.low == pytest.approx(low, abs=0.2 * drawn.std())
    assert found.high == pytest.approx(high, abs=0.2 * drawn.std())


def test_an_interval_is_that_of_a_direct_bootstrap_over_seeds_and_examples():
    outcomes = pair({"dev": 60, "hans": 150})
    found = summarize(outcomes, "base")["other"]
    for name in ("dev", "hans"):
        check_against_slow(found.sets[name].difference, [direct(outcomes, name)])


def test_the_mean_over_ood_sets_resamples_seeds_together_and_examples_apart():
    outcomes = pair({"dev": 10, "hans": 40, "paws": 150, "anli": 90})
    found = summarize(outcomes, "base")["other"].mean_ood
    check_against_slow(found.difference, [direct(outcomes, n) for n in ("hans", "paws", "anli")])


def test_seeds_drawn_apart_for_each_set_would_be_noticed():
    """Both sets depend on the seed alone, and alike, so their mean varies as much as each."""
    good, bad = share(10), share(0)
    outcomes = {
        "base": {seed: outcome({"dev": bad, "hans": bad, "paws": bad}) for seed in (1, 2)},
        "other": {
            1: outcome({"dev": good, "hans": good, "paws": good}),
            2: outcome({"dev": bad, "hans": bad, "paws": bad}),
        },
    }
    found = summarize(outcomes, "base")["other"].mean_ood.difference
    # A quarter of the samples draw seed 1 twice, and a quarter seed 2 twice.
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_chunks_change_nothing(monkeypatch):
    outcomes = pair({"dev": 60, "hans": 150})
    whole = summarize(outcomes, "base")
    monkeypatch.setattr(statistics, "_CHUNK", 50)
    assert summarize(outcomes, "base") == whole


def test_the_order_of_variants_seeds_and_sets_changes_nothing():
    outcomes = pair({"dev": 20, "hans": 30, "paws": 40})
    turned = {
        name: {
            seed: outcome({n: runs[seed].sets[n].correct for n in ("dev", "paws", "hans")})
            for seed in reversed(runs)
        }
        for name, runs in reversed(outcomes.items())
    }
    assert summarize(turned, "base") == summarize(outcomes, "base")


def test_identical_variants_differ_by_exactly_nothing():
    outcomes = pair({"dev": 20, "hans": 30})
    outcomes["other"] = outcomes["base"]
    found = summarize(outcomes, "base")["other"].sets["hans"].difference
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.excludes_zero


def test_sets_whose_differences_cancel_out_give_exactly_zero():
    """0.1 + 0.2 - 0.3 is not 0 in floating point, and would be marked as a difference."""
    sets = {"dev": (1, 1), "a": (0, 1), "b": (0, 2), "c": (3, 0)}
    base, other = ({n: share(both[i]) for n, both in sets.items()} for i in (0, 1))
    found = summarize({"base": {1: outcome(base)}, "other": {1: outcome(other)}}, "base")
    assert found["other"].mean_ood.difference.mean == 0

    # All examples of a are better with seed 1, of b with seed 2, and of c worse with both.
    outcomes = {"base": {}, "other": {}}
    for seed in range(10):
        sets = {"dev": (1, 1), "a": (0, seed == 1), "b": (0, seed == 2), "c": (seed in (1, 2), 0)}
        for i, name in enumerate(outcomes):
            outcomes[name][seed] = outcome({n: share(10 * both[i]) for n, both in sets.items()})
    difference = summarize(outcomes, "base")["other"].mean_ood.difference
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


@pytest.mark.parametrize(("ours", "difference"), [(10, 1), (0, -1)])
def test_where_every_example_differs_there_is_no_doubt(ours, difference):
    outcomes = {
        "base": {s: outcome({"dev": share(10 - ours)}) for s in (1, 2, 3)},
        "other": {s: outcome({"dev": share(ours)}) for s in (1, 2, 3)},
    }
    found = summarize(outcomes, "base")["other"].sets["dev"].difference
    assert (found.mean, found.low, found.high) == (difference, difference, difference)
    assert found.excludes_zero


def test_one_seed_gives_the_interval_of_a_binomial_and_says_so():
    """The baseline is always wrong, so the resampled difference is a binomial share."""
    n, p = 400, 0.3
    outcomes = {
        "base": {7: outcome({"dev": share(0, n)})},
        "other": {7: outcome({"dev": share(round(p * n), n)})},
    }
    found = summarize(outcomes, "base")["other"].sets["dev"]
    sd = np.sqrt(p * (1 - p) / n)
    # The sd of a quantile of 10,000 draws is 0.03 sd, and a step of the binomial is 0.11 sd.
    assert found.difference.low == pytest.approx(p - 1.96 * sd, abs=0.25 * sd)
    assert found.difference.high == pytest.approx(p + 1.96 * sd, abs=0.25 * sd)
    assert found.difference.examples_only and found.difference.seeds == (7,)
    assert found.accuracy == Score({7: p}, p, None)


def test_only_common_seeds_are_paired_but_every_seed_counts_in_the_means():
    outcomes = {
        "base": {s: outcome({"dev": share(5)}, seconds=10.0) for s in (3, 1)},
        "other": {s: outcome({"dev": share(5 + s)}, seconds=10.0 * s) for s in (4, 3, 2)},
    }
    found = summarize(outcomes, "base")
    other = found["other"].sets["dev"]
    assert list(other.accuracy.by_seed) == [2, 3, 4] == list(found["other"].seeds)
    assert other.accuracy.mean == pytest.approx(0.8)
    assert other.accuracy.sd == pytest.approx(0.1)
    assert other.difference.seeds == (3,) and other.difference.mean == pytest.approx(0.3)
    assert found["other"].time_ratio == pytest.approx(3.0)
    assert found["other"].seconds == 30.0
    assert found["base"].sets["dev"].difference is None


def test_without_a_common_seed_there_is_no_difference():
    outcomes = {
        "base": {1: outcome({"dev": share(5), "hans": share(5)})},
        "other": {2: outcome({"dev": share(5), "hans": share(5)})},
        "none": {},
    }
    found = summarize(outcomes, "base")
    assert list(found) == ["base", "other"]
    other = found["other"]
    assert other.sets["dev"].difference is other.mean_ood.difference is None
    assert other.time_ratio is other.memory_ratio is None
    without = summarize({"other": outcomes["other"]}, "base")
    assert without["other"].sets["dev"].difference is None


def test_no_out_of_distribution_set():
    found = summarize({"base": {1: outcome({"dev": share(5)})}}, "base")["base"]
    assert found.mean_ood is None and found.dev.accuracy.mean == 0.5


def test_time_and_memory_are_medians_of_ratios():
    """The ratio of medians would be 2 and not 3."""
    outcomes = {
        "base": {s: outcome({"dev": share(5)}, t, 10.0 * t) for s, t in enumerate((1, 2, 4))},
        "other": {s: outcome({"dev": share(5)}, t, 10.0 * t) for s, t in enumerate((4, 6, 4))},
    }
    found = summarize(outcomes, "base")
    assert found["other"].time_ratio == found["other"].memory_ratio == 3.0
    assert found["base"].time_ratio == 1.0


def test_further_scores_have_a_mean_and_a_deviation():
    runs = {
        s: outcome(
            {"dev": share(5), "hans": share(5)},
            more={"hans": {"f1": 0.4 + 0.1 * s, "f1_low": 0.0, "f1_high": 1.0}},
        )
        for s in (1, 2, 3)
    }
    runs[4] = outcome({"dev": share(5), "hans": share(5)}, more={"hans": {"f1": 0.8, "odd": 1.0}})
    found = summarize({"base": runs}, "base")["base"].sets["hans"].more
    assert list(found) == ["f1"]
    assert found["f1"].mean == pytest.approx(0.65)
    assert found["f1"].sd == pytest.approx(np.std([0.5, 0.6, 0.7, 0.8], ddof=1))


def test_runs_on_other_examples_are_refused():
    outcomes = {
        "base": {1: outcome({"dev": share(5)})},
        "other": {1: outcome({"dev": share(5, of=11)})},
    }
    with pytest.raises(UsageError, match=r"other seed=1 \(runs/one on one\) .* dev of 11"):
        summarize(outcomes, "base")


def test_thirty_thousand_examples_make_a_narrow_interval():
    found = summarize(pair({"dev": 30_000}, seeds=range(5)), "base")["other"].sets["dev"]
    difference = found.difference
    assert difference.low < difference.mean < difference.high < difference.low + 0.15
