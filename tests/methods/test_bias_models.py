"""Bias-only models: the texts of a pair, their features, the fitted regressions and their cache."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import SPECIAL, tiny_model
from pair_tokenizers import TEMPLATES, pair_rows, pair_tokenizer

from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.methods.bias import method as bias_method
from masktuning.methods.bias.kept import plain_rows
from masktuning.methods.bias.logistic import held_out_regression, two_class_regression
from masktuning.methods.bias.method import COLUMN
from masktuning.methods.bias.models import fitted_bias
from masktuning.methods.bias.overlap import NAMES, Words, overlap_features
from masktuning.methods.bias.segments import Segments, Splitter
from masktuning.methods.bias_product import BiasProduct, BiasProductOptions
from masktuning.training.job import read_job

WITH_SKLEARN = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="needs the extra `bias`"
)
NLI = ["entailment", "neutral", "contradiction"]


def ids(words):
    return [len(SPECIAL) + int(word[1:]) for word in words.split()]


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_texts_of_a_pair_are_found(family):
    tokenizer = pair_tokenizer(family)
    splitter = Splitter(tokenizer)
    row = dict(tokenizer("w1 other w3", "w4 w5"))
    assert ("token_type_ids" in row) == (family == "bert")
    assert splitter.pair(row) == ([*ids("w1"), SPECIAL["<unk>"], *ids("w3")], ids("w4 w5"))
    assert splitter.pair(dict(tokenizer("", "w4"))) == ([], ids("w4"))
    batch = tokenizer(["w4"], [""])  # called without lists, the tokenizer drops an empty text
    assert splitter.pair({name: column[0] for name, column in batch.items()}) == (ids("w4"), [])
    assert splitter.pair(dict(tokenizer("w1 w2"))) is None
    assert splitter.text(row) == [*ids("w1"), SPECIAL["<unk>"], *ids("w3 w4 w5")]


def test_a_special_token_may_have_a_type_of_its_own():
    """As in XLNet: A <sep> B <sep> <cls>, with the types 0, 0, 1, 1 and 2, and padding with 3."""
    splitter = Splitter(pair_tokenizer("bert"))
    end, start, pad = (SPECIAL[name] for name in ("</s>", "<s>", "<pad>"))
    row = {
        "input_ids": [pad, *ids("w1 w2"), end, *ids("w3"), end, start],
        "token_type_ids": [3, 0, 0, 0, 1, 1, 2],
    }
    assert splitter.pair(row) == (ids("w1 w2"), ids("w3"))
    single = {"input_ids": [*ids("w1 w2"), end, start], "token_type_ids": [0, 0, 0, 2]}
    assert splitter.pair(single) is None


def test_texts_without_separators_are_no_pair():
    assert Splitter(pair_tokenizer("bert")).pair({"input_ids": ids("w1 w2")}) is None


def test_the_features_are_those_of_the_equations():
    """Three pairs in an embedding of two dimensions, by hand."""
    embeddings = torch.zeros(99, 2)
    for word, vector in {"w1": (2, 0), "w2": (0, 3), "w3": (1, 1), "w4": (-1, 0)}.items():
        embeddings[ids(word)[0]] = torch.tensor(vector, dtype=torch.float32)
    half = math.sqrt(0.5)
    pairs = [
        Segments(ids("w1 w2 w3"), ids("w2 w3")),  # a contiguous part
        Segments(ids("w2 w1"), ids("w1 w2 w4")),  # w4 is most like w2, with 0
        Segments(ids("w1 w2 w2 w1 w2"), ids("w3")),  # one word, which is not in the premise
        Segments(ids("w1"), []),
        Segments([], ids("w1")),
    ]
    words = Words(pair_tokenizer("bert"))
    expected = [
        [1, 1, 1, 0, 1, 1, 1],
        [0, 0, 2 / 3, 0, 2 / 3, 0, 1],
        [0, 0, 0, math.log(4), half, half, 0],
        [0] * 7,
        [0] * 7,
    ]
    found = overlap_features(pairs, words, embeddings, both_orders=False)
    assert found.shape == (5, len(NAMES))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    both = overlap_features(pairs[:1], words, embeddings, both_orders=True)
    # The other way round w1 is most like w3, and two of three words are shared.
    other = [0, 0, 2 / 3, 0, (half + 2) / 3, half, 1]
    np.testing.assert_allclose(both, [np.mean([expected[0], other], 0)], atol=1e-6)
    swapped = [Segments(pair.second, pair.first) for pair in pairs]
    np.testing.assert_array_equal(
        overlap_features(swapped, words, embeddings, both_orders=True),
        overlap_features(pairs, words, embeddings, both_orders=True),
    )


def test_capitals_do_not_matter():
    tokenizer = pair_tokenizer("roberta")
    pair = Splitter(tokenizer).pair(dict(tokenizer("w1 w2", "W1")))
    exact = overlap_features([pair], Words(tokenizer), torch.eye(99), both_orders=False)[0, :3]
    assert exact.tolist() == [1, 1, 1]


@WITH_SKLEARN
def test_the_two_class_regression_is_at_its_minimum():
    """The gradient of |w|^2 / 2 + b^2 / 2 + C * sum of weighted losses is zero there."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 3))
    positive = features[:, 0] + generator.normal(size=60) > 0.8
    labelled = np.arange(60) != 5
    logs = two_class_regression(features, positive, labelled)
    np.testing.assert_allclose(np.exp(logs).sum(1), 1)
    extended = np.c_[features, np.ones(60)]
    w = np.linalg.lstsq(extended, logs[:, 1] - logs[:, 0], rcond=None)[0]
    np.testing.assert_allclose(extended @ w, logs[:, 1] - logs[:, 0], atol=1e-9)
    seen, y = extended[labelled], positive[labelled]
    balanced = np.where(y, len(y) / (2 * y.sum()), len(y) / (2 * (~y).sum()))
    pulls = 100 * balanced * (np.exp(logs[labelled, 1]) - y)
    gradient = w + pulls @ seen
    assert np.abs(gradient).max() < 1e-3 * np.abs(pulls).sum()


@WITH_SKLEARN
def test_an_example_is_predicted_without_its_own_label():
    texts = [[i % 7, 10 + i % 3, i] for i in range(80)]
    labels = [int(i % 7 > 3) for i in range(80)]
    example_ids = [7 * i for i in range(80)]
    logs = held_out_regression(texts, labels, example_ids, 3)
    np.testing.assert_allclose(np.exp(logs).sum(1), 1)
    assert (logs[:, :2].argmax(1) == labels).mean() > 0.9 and (logs[:, 2] < -15).all()
    for flipped in (0, 33):
        changed = [1 - one if i == flipped else one for i, one in enumerate(labels)]
        again = held_out_regression(texts, changed, example_ids, 3)
        np.testing.assert_array_equal(again[flipped], logs[flipped])
        assert (again != logs).any()
    order = np.random.default_rng(1).permutation(80)
    moved = held_out_regression(
        *([one[i] for i in order] for one in (texts, labels, example_ids)), 3
    )
    np.testing.assert_allclose(moved, logs[order], atol=1e-3)


def overlapping(count, tokenizer, classes):
    """Label 0 where the hypothesis is a part of the premise; the others where a word is new."""
    generator = np.random.default_rng(3)
    pairs, labels = [], []
    for i in range(count):
        premise = [f"w{j}" for j in generator.choice(50, 6, replace=False)]
        label = int(generator.integers(classes))
        hypothesis = premise[1:4] if label == 0 else [premise[1], f"w{60 + label}"]
        pairs.append((" ".join(premise), " ".join(hypothesis if i % 9 else premise[:2])))
        labels.append(label)
    return pair_rows(tokenizer, pairs, labels)


@WITH_SKLEARN
def test_entailment_is_told_from_the_rest_which_is_split():
    tokenizer = pair_tokenizer("roberta")
    rows = overlapping(60, tokenizer, 3)
    table = torch.eye(99)
    logs = fitted_bias("overlap", rows, ["Entailment", *NLI[1:]], tokenizer, table)
    np.testing.assert_allclose(np.exp(logs).sum(1), 1)
    np.testing.assert_array_equal(logs[:, 1], logs[:, 2])
    gold = np.exp(logs)[np.arange(60), [row["labels"] for row in rows]]
    assert gold[[row["labels"] == 0 for row in rows]].mean() > 0.7
    assert gold[[row["labels"] != 0 for row in rows]].max() <= 0.5
    moved = fitted_bias("overlap", rows, [NLI[1], NLI[0], NLI[2]], tokenizer, table)
    assert (moved[:, 0] == moved[:, 2]).all()


@WITH_SKLEARN
@pytest.mark.parametrize("name", ["overlap", "hypothesis", "shallow"])
def test_two_classes(name):
    """Where no label is entailment, the order of the texts does not matter to the overlap."""
    tokenizer = pair_tokenizer("bert")
    rows = overlapping(60, tokenizer, 2)
    logs = fitted_bias(name, rows, ["different", "duplicate"], tokenizer, torch.eye(99))
    assert (logs.argmax(1) == [row["labels"] for row in rows]).mean() > 0.8


@WITH_SKLEARN
def test_the_words_of_the_second_text_alone():
    tokenizer = pair_tokenizer("roberta")
    rows = overlapping(60, tokenizer, 2)
    names = ["different", "duplicate"]
    logs = fitted_bias("hypothesis", rows, names, tokenizer, torch.eye(99))
    splitter = Splitter(tokenizer)
    second = [splitter.pair(row).second for row in rows]
    premises = [dict(row, input_ids=[0, 2, 2, *s, 2]) for row, s in zip(rows, second, strict=True)]
    again = fitted_bias("hypothesis", premises, names, tokenizer, torch.eye(99))
    np.testing.assert_array_equal(logs, again)
    assert (fitted_bias("shallow", rows, names, tokenizer, torch.eye(99)) != logs).any()


def method_of(family="bert", labels=("different", "duplicate"), **options):
    model = tiny_model(family, num_labels=len(labels), id2label=dict(enumerate(labels)))
    return BiasProduct(model, pair_tokenizer(family), BiasProductOptions(**options))


@WITH_SKLEARN
@pytest.mark.parametrize("as_table", [True, False], ids=["datasets", "list"])
def test_a_fitted_model_is_kept(as_table, tmp_path, monkeypatch):
    method = method_of(bias_model="overlap")
    rows = overlapping(40, method.tokenizer, 2)
    train = Dataset.from_list(rows) if as_table else rows
    prepared = method.prepare(train, tmp_path / "stages")
    (path,) = (tmp_path / "stages").iterdir()
    assert path.name.startswith("bias-overlap-")
    expected = [prepared[i][COLUMN] for i in range(40)]
    names = ["different", "duplicate"]
    embeddings = method.model.encoder.get_input_embeddings().weight
    again = fitted_bias("overlap", rows, names, method.tokenizer, embeddings)
    np.testing.assert_array_equal(expected, again)

    def refuse(*arguments):
        raise AssertionError("fitted again")

    monkeypatch.setattr(bias_method, "fitted_bias", refuse)
    kept = method.prepare(train, tmp_path / "stages")
    assert [kept[i][COLUMN] for i in range(40)] == expected
    changed = [dict(row, labels=1 - row["labels"]) for row in rows]
    for other, found in ((method, changed), (method_of("bert", bias_model="shallow"), rows)):
        with pytest.raises(AssertionError, match="fitted again"):
            other.prepare(found, tmp_path / "stages")
    with torch.no_grad():
        embeddings[5] += 1  # another checkpoint
    with pytest.raises(AssertionError, match="fitted again"):
        method.prepare(train, tmp_path / "stages")
    assert [*(tmp_path / "stages").iterdir()] == [path]


def test_rows_may_name_their_label_in_the_singular():
    row = {"input_ids": [0, 5, 2], "label": 1, "example_id": 3, "attention_mask": [1, 1, 1]}
    assert plain_rows([row]) == [{"input_ids": [0, 5, 2], "labels": 1, "example_id": 3}]


ONE_TEXT = "needs sentence pairs, and the training example with example_id 100 is one text"
ERRORS = [
    ({"bias_model": "overlap"}, ["w1", "w2"], [0, 1], f"--bias_model overlap {ONE_TEXT}"),
    ({"bias_model": "hypothesis"}, ["w1", "w2"], [0, 1], f"--bias_model hypothesis {ONE_TEXT}"),
    ({"bias_model": "overlap"}, [("w1", "w2")] * 2, [0, 0], "needs examples with the label 'dup"),
    ({"bias_model": "shallow"}, ["w1", "w2"], [0, 0], "2 training examples are too few"),
    ({}, ["w1", "w2"], [0, 1], "--bias_file is missing"),
]


@WITH_SKLEARN
@pytest.mark.parametrize(("options", "pairs", "labels", "message"), ERRORS)
def test_rows_that_a_model_cannot_be_fitted_to(options, pairs, labels, message):
    method = method_of(**options)
    with pytest.raises(UsageError, match=message) as told:
        method.prepare(pair_rows(method.tokenizer, pairs, labels), None)
    assert "\n" not in str(told.value)


@WITH_SKLEARN
def test_labels_of_which_none_is_entailment():
    method = method_of(labels=("a", "b", "c"), bias_model="overlap")
    rows = pair_rows(method.tokenizer, [("w1", "w2")] * 3, [0, 1, 2])
    with pytest.raises(UsageError, match="one must be called 'entailment'; these are a, b, c"):
        method.prepare(rows, None)


def test_options_out_of_range():
    with pytest.raises(ValueError, match="bias_model is 'words': give one of file, overlap"):
        BiasProductOptions(bias_model="words").check()
    with pytest.raises(ValueError, match="bias_file goes with bias_model 'file', not with 'shal"):
        BiasProductOptions(bias_model="shallow", bias_file="b.jsonl").check()
    BiasProductOptions(bias_file="b.jsonl").check()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--task demo --bias_model overlap", r"overlap .* and the task is one of single texts"),
        ("--task demo --bias_model hypothesis", "hypothesis .* the task is one of single texts"),
        ("--task demo --bias_model file", "--bias_file is missing: .*; or give --bias_model over"),
    ],
)
def test_the_command_says_so_before_it_loads_anything(flags, message):
    with pytest.raises(UsageError, match=message) as told:
        read_job([*flags.split(), "--method", "bias_product"], EMBEDDED)
    assert "\n" not in str(told.value)


def test_scikit_learn_is_asked_for_where_it_is_missing(monkeypatch):
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == "sklearn" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    flags = ["--task", "demo", "--method", "bias_product", "--bias_model", "shallow"]
    with pytest.raises(UsageError, match=r"pip install 'masktuning\[bias\]'$"):
        read_job(flags, EMBEDDED)
    method = method_of(bias_model="shallow")
    with pytest.raises(UsageError, match=r"pip install 'masktuning\[bias\]'$"):
        method.prepare(pair_rows(method.tokenizer, ["w1", "w2"], [0, 1]), None)
