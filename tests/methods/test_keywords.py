"""The keywords that are masked: by tf-idf, and by the attention of a fine-tuned classifier."""

import math

import numpy as np
import pytest
import torch
from families import config_of, examples, tiny_model, tiny_tokenizer
from stock_step import run_step
from transformers import AutoModelForSequenceClassification

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.masks.attention import attention_by_label
from masktuning.methods.masks.keywords import Keywords, keyword_ids, tf_idf

ROWS = [[0, 7, 8, 9, 9, 2], [0, 7, 9, 2], [0, 5, 7, 2], [0, 8, 5, 5, 2], [0, 3, 3, 2]]
LABELS = [0, 0, 1, 1, -100]


def test_tf_idf_is_that_of_the_definition():
    found = tf_idf([np.array(row) for row in ROWS], np.array(LABELS), 12)
    for label in (0, 1):
        tokens = [t for row, y in zip(ROWS, LABELS, strict=True) if y == label for t in row]
        for v in range(12):
            texts = sum(v in row for row in ROWS[:4])
            want = tokens.count(v) / len(tokens) * math.log(5 / (1 + texts))
            assert found[label, v] == pytest.approx(want, abs=1e-12), (label, v)


def test_the_ten_best_of_each_label_are_keywords():
    scores = np.zeros((2, 40))
    scores[0, 5:20] = np.arange(15, 0, -1)
    scores[1, [0, 30, 31]] = [9.0, 1.0, 1.0]  # 0 is special; a token without a score is none
    assert keyword_ids(scores, [0, 1]).tolist() == [*range(5, 15), 30, 31]
    tied = np.ones((1, 40))
    assert keyword_ids(tied, [0, 1, 90]).tolist() == list(range(2, 12))


def prepared(policy, rows, cache=None, model=None):
    made = Keywords(tiny_tokenizer(), 99, None, policy).prepare(model, rows, cache)
    return [made[i] for i in range(len(rows))]


def test_only_keywords_are_masked_and_as_many_as_there_are():
    """Words 10 to 19 go with label 0 and 30 to 39 with label 1; the others are everywhere."""
    rows = [
        {"input_ids": [0, *(20 * y + 10 + (i + j) % 10 for j in range(3)), 50, 51, 52, 2],
         "labels": y, "example_id": i}
        for y in (0, 1) for i in range(20)
    ]  # fmt: skip
    rows.append({"input_ids": [0, 50, 51, 52, 53, 2], "labels": 0, "example_id": 90})
    rows.append({"input_ids": [0, 50, 51, 52, 53, 10, 2], "labels": 1, "example_id": 91})
    given = prepared("keywords", rows)
    assert given[0]["keyword"] == [False, True, True, True, False, False, False, False]
    tokenizer = tiny_tokenizer()
    options = MaskTuningOptions(mask_policy="keywords", mask_rate=0.4)
    method = MaskTuning(tiny_model("bert"), tokenizer, options)
    chosen = [given[0], given[40], given[41]]
    batch = method.collate(Batch.from_dict(PaddingCollator(tokenizer)(chosen)), chosen)
    assert batch.offsets.diff().tolist() == [2, 0, 1]  # 0.4 of 6, 4 and 5 tokens are 2
    assert batch.num_masked == 3 and batch.max_masked == 2
    assert batch.maskable[0].nonzero().flatten().tolist() == [1, 2, 3]
    assert batch.maskable[2].nonzero().flatten().tolist() == [5]
    assert not batch.maskable[1].any()
    values = batch.as_dict()
    assert np.isfinite(run_step(method.model, values, 0.3, counts=[3, 3])[0])


def save_classifier(folder, family):
    torch.manual_seed(3)
    config = config_of(family)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    ("family", "side"),  # only RoBERTa's positions do not count padding on the left
    [("bert", "right"), ("distilbert", "right"), ("roberta", "right"), ("roberta", "left")],
)
def test_attention_is_averaged_over_a_tokens_occurrences(tmp_path, family, side):
    """Text by text, without padding."""
    model = save_classifier(tmp_path, family)
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    rows = examples(24, 1)
    labels = np.array([row["labels"] for row in rows])
    labels[3] = -100
    found = attention_by_label(rows, labels, tmp_path, tokenizer, torch.device("cpu"))
    seen = {}
    for row, y in zip(rows, labels.tolist(), strict=True):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            attention = model(ids, output_attentions=True).attentions[-1][0, :, 0].sum(0)
        for token, value in zip(row["input_ids"], attention.tolist(), strict=True):
            seen.setdefault((y, token), []).append(value)
    for label in (0, 1):
        for v in range(99):
            values = seen.get((label, v), [0.0])
            want = sum(values) / len(values)
            assert found[label, v] == pytest.approx(want, abs=2e-5), (label, v)


def test_the_classifier_is_an_earlier_stage(tmp_path):
    options = MaskTuningOptions(mask_policy="keywords_attention")
    (stage,) = MaskTuning.stages(options)
    assert (stage.name, stage.method) == ("keywords", "finetuning")
    assert MaskTuning.stages(MaskTuningOptions(mask_policy="keywords")) == []
    model = save_classifier(tmp_path / "keywords", "bert")
    rows = examples(12, 1)
    given = prepared("keywords_attention", rows, tmp_path, model)
    ids = {t for row in given for t, k in zip(row["input_ids"], row["keyword"], strict=True) if k}
    assert 10 <= len(ids) <= 20 and min(ids) >= 5
    with pytest.raises(UsageError, match="no checkpoint; --mask_policy keywords_attention needs"):
        prepared("keywords_attention", rows, tmp_path / "none", model)


def test_attention_that_is_not_shown_is_told(tmp_path):
    save_classifier(tmp_path / "keywords", "bart")
    rows, labels = examples(4, 1), np.array([0, 1, 0, 1])
    with pytest.raises(UsageError, match="bart does not show the attention of its encoder"):
        attention_by_label(
            rows, labels, tmp_path / "keywords", tiny_tokenizer(), torch.device("cpu")
        )


def test_keywords_need_labels():
    with pytest.raises(UsageError, match=r"--mask_policy keywords: .* needs labels"):
        prepared("keywords", [{"input_ids": [0, 5, 2]}])
