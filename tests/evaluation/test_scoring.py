"""Results from logits, against the definitions written out, and several seeds combined."""

import json

import numpy as np
import pytest

from masktuning import evaluate
from masktuning.config.errors import UsageError
from masktuning.data.load import LabelledTexts
from masktuning.evaluation.metrics import (
    SetResult,
    accuracy_with_interval,
    collapse_argmax,
    collapse_sum,
    f1,
)
from masktuning.evaluation.scoring import Scored, only_label, score_sets
from masktuning.evaluation.tables import comparison_table
from masktuning.tasks import SetSpec, Task

LABELS = ["entailment", "neutral", "contradiction"]


def nli_task(*sets):
    return Task("nli", "", LABELS, list(sets))


def by_hand_f1(predictions, labels, label):
    hits = sum(p == label == y for p, y in zip(predictions, labels, strict=True))
    wrong = sum((p == label) != (y == label) for p, y in zip(predictions, labels, strict=True))
    return None if hits + wrong == 0 else 2 * hits / (2 * hits + wrong)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("K", [2, 4])
def test_f1_by_its_definition(seed, K):
    random = np.random.default_rng(seed)
    labels, predictions = random.integers(0, K, 40), random.integers(0, K, 40)
    assert f1(predictions, labels, 1)[0] == pytest.approx(by_hand_f1(predictions, labels, 1))
    each = [by_hand_f1(predictions, labels, k) for k in range(K)]
    expected = np.mean([score for score in each if score is not None])
    assert f1(predictions, labels, None)[0] == pytest.approx(expected)


def test_a_label_that_neither_occurs_nor_is_predicted_is_no_part_of_macro_f1():
    labels = np.array([0, 0, 2, 2])
    assert f1(labels, labels, None)[0] == 1.0
    assert f1(np.array([0, 0]), np.array([0, 0]), 1)[0] == 0.0


def test_intervals_are_the_bootstrap_s():
    """Against resampling the examples one by one, with other draws."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, 150)
    predictions = np.where(random.random(150) < 0.8, labels, 1 - labels)
    rows = np.random.default_rng(4).integers(0, 150, (4000, 150))
    accuracies = (predictions == labels)[rows].mean(1)
    scores = [by_hand_f1(predictions[r], labels[r], 1) for r in rows[:1500]]
    expected = np.percentile(accuracies, [2.5, 97.5])
    assert accuracy_with_interval(predictions == labels)[1:] == pytest.approx(expected, abs=0.01)
    assert f1(predictions, labels, 1)[1:] == pytest.approx(
        np.percentile(scores, [2.5, 97.5]), abs=0.015
    )


def test_both_rules_of_collapsing():
    """0.4 entailment and 0.3 + 0.3: entailment is the largest alone, but not against the sum."""
    logits = np.log(np.array([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1]]))
    to = np.array([0, 1, 1])
    assert collapse_argmax(logits, to).tolist() == [0, 0, 1]
    assert collapse_sum(logits + 900, to).tolist() == [1, 0, 1]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_hans_by_heuristic_and_label_whatever_the_model_s_order(order):
    hans = SetSpec(
        "hans",
        "ood",
        labels=["entailment", "non-entailment"],
        label_map={"neutral": "non-entailment", "contradiction": "non-entailment"},
    )
    gold = [0, 1, 0, 1, 1]
    groups = ["lexical_overlap"] * 3 + ["constituent"] * 2
    texts = LabelledTexts("hans", "ood", [], gold, groups)
    p = np.array(
        [[0.4, 0.3, 0.3], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.2, 0.1, 0.7], [0.45, 0.3, 0.25]]
    )
    names = [LABELS[i].upper() for i in order]
    scored = score_sets(nli_task(hans), [texts], {"hans": np.log(p[:, order])}, names)["hans"]
    # By argmax: 0 0 1 1 0, so rows 0 and 3 are correct; by the sum: 1 0 1 1 1.
    assert scored.predictions.tolist() == [0, 0, 1, 1, 0] and scored.result.accuracy == 2 / 5
    more = scored.result.more
    assert more["lexical_overlap_entailment_accuracy"] == 1 / 2
    assert more["lexical_overlap_non-entailment_accuracy"] == 0.0
    assert more["constituent_non-entailment_accuracy"] == 1 / 2
    assert "constituent_entailment_accuracy" not in more
    summed = [0 if row[0] > row[1] + row[2] else 1 for row in p]
    correct = np.array(summed) == gold
    assert more["accuracy_sum"] == correct.mean()
    assert more["lexical_overlap_non-entailment_accuracy_sum"] == correct[1]
    assert more["constituent_non-entailment_accuracy_sum"] == correct[3:].mean()


def test_unions_and_consistency():
    far = SetSpec("far", "ood", original="near")
    sets = [far, SetSpec("near", "ood"), SetSpec("both", "ood", union_of=["far", "near"])]
    pairs = SetSpec("pairs", "ood")
    task = Task("t", "", ["a", "b"], [*sets, pairs])
    texts = [
        LabelledTexts("far", "ood", [], [0, 1, 1]),
        LabelledTexts("near", "ood", [], [1, 0, 0]),
        LabelledTexts("pairs", "ood", [], [0, 1, 1, 0], pairs=["x", "y", "x", "y"]),
    ]
    pick = {"far": [0, 1, 0], "near": [1, 1, 0], "pairs": [0, 1, 1, 1]}
    logits = {name: np.eye(2)[ids] for name, ids in pick.items()}
    scored = score_sets(task, texts, logits, ["a", "b"])
    assert list(scored) == ["far", "near", "both", "pairs"]
    assert scored["both"].result.accuracy == 4 / 6 and scored["both"].result.n == 6
    # Row 0 is correct on both sides; row 1 on one, row 2 on the other.
    assert scored["far"].result.more["consistency"] == 1 / 3
    assert scored["pairs"].result.more["consistency"] == 1 / 2
    texts[1] = texts[1].first(2)
    logits["near"] = logits["near"][:2]
    with pytest.raises(
        UsageError,
        match="row i of far should be an edited version of row i of near, but they have 3 and 2",
    ):
        score_sets(task, texts, logits, ["a", "b"])


def write_results(folder, file="results.json", **metrics):
    folder.mkdir()
    (folder / file).write_text(json.dumps(metrics))
    return str(folder)


def test_seeds_are_combined_and_compared_pair_by_pair(tmp_path, capsys):
    tuned = [0.80, 0.84, 0.91]
    plain = [0.70, 0.80, 0.75]
    a = [
        write_results(tmp_path / f"a{i}", eval_x_accuracy=v, eval_x_samples=9)
        for i, v in enumerate(tuned)
    ]
    b = [
        write_results(tmp_path / f"b{i}", "all_results.json", eval_x_accuracy=v, train_loss=1.0)
        for i, v in enumerate(plain)
    ]
    out = tmp_path / "out"
    evaluate.main(["--combine", *a, "--baseline", *b, "--output_dir", str(out)])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "x_accuracy" in line]
    differences = np.array(tuned) - plain
    expected = [np.mean(tuned), np.std(tuned, ddof=1), np.mean(plain)]
    expected += [differences.mean(), differences.std(ddof=1)]
    assert [float(cell) for cell in row.split()[1:]] == pytest.approx(
        [100 * value for value in expected], abs=0.006
    )
    saved = json.loads((out / "combined.json").read_text())
    assert saved["combine"] == a and saved["baseline"] == b
    assert list(saved["metrics"]) == ["eval_x_accuracy"]
    assert list(saved["metrics"]["eval_x_accuracy"]) == [
        "values", "mean", "sd", "baseline", "difference",
    ]  # fmt: skip


def test_scores_that_only_some_runs_have_are_listed(tmp_path, capsys):
    both = {"eval_x_accuracy": 0.5}
    a = write_results(tmp_path / "a", **both, eval_y_f1=0.1, train_mlm_accuracy=0.3)
    evaluate.main(["--combine", a, write_results(tmp_path / "b", **both)])
    printed = capsys.readouterr().out
    assert "skipped, since not all of these have them: y_f1" in printed
    assert "mlm_accuracy" not in printed  # a metric of training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--combine", "a"], "two folders or more"),
        (["--combine", "a", "a", "--baseline", "a"], "--baseline must name as many folders"),
        (["--combine", "a", "nowhere"], "nowhere: holds neither results.json nor all_results.json"),
        (["--combine", "a", "other"], "no set was measured in all of these"),
        (["--combine", "a", "broken"], "broken/results.json: not JSON"),
        (["--baseline", "a"], "two folders or more"),
    ],
)
def test_what_cannot_be_combined(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "a", eval_x_accuracy=0.5)
    write_results(tmp_path / "other", eval_y_accuracy=0.5)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    with pytest.raises(UsageError, match=message):
        evaluate.main(words)


def test_a_set_that_one_run_lacks_is_a_dash():
    one, two = (SetResult(name, "dev", 0.5, 0.4, 0.6, 10) for name in ("x", "y"))
    lines = comparison_table({"a": [one, two], "b": [two]}).splitlines()
    assert [line.split()[1:] for line in lines[2:]] == [["50.00", "50.00"], ["-", "50.00"]]


@pytest.mark.parametrize(
    ("predictions", "gold", "expected"),
    [
        ([1, 1, 1], [0, 1, 1], "good"),
        ([1, 1, 1], [0, 0, 0], "good"),
        ([1, 0, 1], [0, 1, 1], None),
        ([1, 1, 1], [1, 1, 1], None),
        ([0], [1], "bad"),
        ([1], [1], None),
    ],
)
def test_one_label_for_every_text(predictions, gold, expected):
    predictions, gold = np.array(predictions), np.array(gold)
    result = SetResult("dev", "dev", 0.0, 0.0, 0.0, len(gold))
    names, texts = ["bad", "good"], LabelledTexts("dev", "dev", [], gold.tolist())
    logits = np.eye(2)[predictions]
    scored = Scored(result, predictions, predictions == gold, names, texts, logits, names)
    assert only_label(scored) == expected
