"""Mask policies that draw their masks in the collator: by probability, and by whole words.

What is expected follows from the definitions and masktuning_C's random numbers, in plain Python.
"""

import masktuning_C
import numpy as np
import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from stock_step import EPOCH, SEED
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.data.word_marks import word_starts
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.masks import policy_class
from masktuning.methods.masks.thresholds import COLUMN
from masktuning.methods.masks.whole_word import WholeWords, masked_words
from masktuning.methods.perturbation import sample_masks

RNG = torch.tensor([SEED, EPOCH])


def draw(t, example_id):
    return masktuning_C.philox4x32_10(t, example_id, EPOCH, 0, SEED, 0)[0]


def collated(policy, rows, side="right", **options):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    method = MaskTuning(
        tiny_model("bert"), tokenizer, MaskTuningOptions(0.3, mask_policy=policy, **options)
    )
    batch = Batch.from_dict(PaddingCollator(tokenizer)(rows))
    batch.rng = RNG
    return method.collate(batch, rows)


def masked_of(batch):
    """The masked positions [(row, t), ...] of the step, and the numbers that the batch names."""
    masked = sample_masks(
        batch.input_ids,
        batch.maskable,
        batch.example_ids,
        batch.offsets,
        RNG,
        batch.num_masked,
        4,
    )
    L = batch.input_ids.shape[1]
    found = [divmod(p, L) for p in masked.positions.tolist()]
    counts = [sum(b == i for b, _ in found) for i in range(len(batch.labels))]
    assert batch.offsets.diff().tolist() == counts
    assert batch.num_masked == len(found) and batch.max_masked == max(counts)
    return found


def is_word(batch, b, t):
    return int(batch.input_ids[b, t]) >= 5  # the special tokens are 0 to 4


@pytest.mark.parametrize("side", ["right", "left"])
def test_bernoulli_masks_each_token_whose_draw_is_below_the_rate(side):
    batch = collated("bernoulli", examples(20, 1), side, mask_rate=0.3)
    expected = [
        (b, t)
        for b in range(20)
        for t in range(batch.input_ids.shape[1])
        if is_word(batch, b, t) and draw(t, 100 + b) < round(0.3 * 2**32)
    ]
    assert masked_of(batch) == expected and len(expected) > 20


def test_a_batch_may_be_left_as_it_is():
    batch = collated("bernoulli", examples(3, 1), mask_rate=1e-9)
    assert batch.num_masked == 0 and masked_of(batch) == []


def test_the_share_of_a_certain_probability_is_all():
    batch = collated("bernoulli", examples(3, 1), mask_rate=1.0)
    assert batch.num_masked == int((batch.input_ids >= 5).sum())


def test_l3_takes_the_thresholds_of_the_column():
    rows = examples(6, 1)
    thresholds = [[(i * 7 + j) % 5 * 2**30 for j in range(len(r["input_ids"]))] for i, r in
                  enumerate(rows)]  # fmt: skip
    given = [{**row, COLUMN: one} for row, one in zip(rows, thresholds, strict=True)]
    batch = collated("l3", given)
    expected = [
        (b, t)
        for b, row in enumerate(thresholds)
        for t, threshold in enumerate(row)
        if is_word(batch, b, t) and draw(t, 100 + b) < threshold
    ]
    assert masked_of(batch) == expected and len(expected) > 10
    with pytest.raises(ValueError, match="mask_policy l3 needs the column 'mask_thresholds'"):
        collated("l3", rows)
    with pytest.raises(ValueError, match="the column 'mask_thresholds' has 6 values for"):
        collated("l3", [{**row, COLUMN: [0]} for row in rows])


def test_l3_computes_its_column_unless_it_is_there(tmp_path):
    """The mean probability over the maskable tokens of a text is the mask rate."""
    options = MaskTuningOptions(mask_policy="l3", mask_rate=0.3, min_per_example=0)
    policy = policy_class("l3")(tiny_tokenizer(), 99, options, "l3")
    row = {"input_ids": [0, 5, 2], COLUMN: [0, 2**32, 0]}
    assert policy.prepare(None, [row], None) == [row]
    rows = examples(3, 1)
    found = policy.prepare(tiny_model("bert"), rows, tmp_path)
    special = set(tiny_tokenizer().all_special_ids)
    for before, after in zip(rows, found, strict=True):
        shares = [
            threshold / 2**32
            for token, threshold in zip(before["input_ids"], after[COLUMN], strict=True)
            if token not in special
        ]
        assert sum(shares) / len(shares) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("policy", ["bernoulli", "whole_word"])
def test_masks_cannot_be_drawn_without_seed_and_epoch(policy):
    rows = [{**row, "word_starts": [True] * len(row["input_ids"])} for row in examples(3, 1)]
    method = MaskTuning(tiny_model("bert"), tiny_tokenizer(), MaskTuningOptions(mask_policy=policy))
    batch = Batch.from_dict(PaddingCollator(tiny_tokenizer())(rows))
    with pytest.raises(ValueError, match="draws its masks in the collator: set batch"):
        method.collate(batch, rows)


def words_by_the_definition(maskable, starts, draws, count):
    """The masked positions of one text."""
    words = []
    for t, can in enumerate(maskable):
        if can and (starts[t] or t == 0 or not maskable[t - 1]):
            words.append([])
        if can:
            words[-1].append(t)
    taken = []
    for word in sorted(words, key=lambda word: (draws[word[0]], word[0])):
        if len(taken) < count:
            taken += word
    return sorted(taken)


def test_whole_words_follow_the_definition():
    random = np.random.default_rng(0)
    for _ in range(200):
        B, L = int(random.integers(1, 5)), int(random.integers(1, 30))
        maskable = random.random((B, L)) < 0.8
        starts = random.random((B, L)) < random.random()
        draws = random.integers(0, 2**32, (B, L))
        draws[:, ::3] = 7  # ties go to the earlier word
        counts = [int(random.integers(0, n + 1)) for n in maskable.sum(1)]
        tensors = (torch.from_numpy(one) for one in (maskable, starts, draws))
        found = masked_words(*tensors, torch.tensor(counts))
        for b in range(B):
            want = words_by_the_definition(maskable[b], starts[b], draws[b], counts[b])
            assert found[b].nonzero().flatten().tolist() == want


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_words_of_a_batch(side):
    rows = examples(8, 1)
    ids = [[0, *(3 * i + j for j in range(len(r["input_ids"]) - 2)), 9] for i, r in enumerate(rows)]
    words = [[None, *(n // 3 for n in row[1:-1]), None] for row in ids]
    made = WholeWords(tiny_tokenizer(), 99, None, "whole_word").prepare(
        None, [{**row, "word_ids": w} for row, w in zip(rows, words, strict=True)], None
    )
    given = [made[i] for i in range(8)]
    batch = collated("whole_word", given, side, mask_rate=0.3)
    plain = collated("random", rows, side, mask_rate=0.3)
    expected, L = [], batch.input_ids.shape[1]
    for b, row in enumerate(words):
        pad = 0 if side == "right" else L - len(row)
        starts = [False] * pad + [row[t] != row[t - 1] for t in range(len(row))]
        starts += [False] * (L - len(starts))
        maskable = [is_word(batch, b, t) for t in range(L)]
        draws = [draw(t, 100 + b) for t in range(L)]
        wanted = int(plain.offsets.diff()[b])
        found = words_by_the_definition(maskable, starts, draws, wanted)
        assert wanted <= len(found) <= wanted + 2
        expected += [(b, t) for t in found]
    assert masked_of(batch) == expected and len(expected) > plain.num_masked


def tokenizer_of(*tokens):
    vocabulary = {token: i for i, token in enumerate(("[UNK]", *tokens))}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        unk_token="[UNK]",
    )


@pytest.mark.parametrize(
    ("tokens", "starts"),
    [
        (("play", "##ing", "##s", "Ġ"), [True, True, False, False, True]),
        (("Ġplay", "ing", "Ġthe", "##"), [True, True, False, True, False]),
        (("▁play", "ing", "▁the"), [True, True, False, True]),
        (("play", "ing"), [True, True, True]),
    ],
    ids=["wordpiece", "byte-level", "sentencepiece", "words"],
)
def test_marks_tell_which_tokens_start_a_word(tokens, starts):
    """The first token is the unknown one; special tokens are words of their own."""
    tokenizer = tokenizer_of(*tokens)
    assert word_starts(tokenizer).tolist() == starts
    rows = Dataset.from_list([{"input_ids": [1, 2, 1], "labels": 0}])
    made = WholeWords(tokenizer, len(starts), None, "whole_word").prepare(None, rows, None)
    assert made[0]["word_starts"] == [starts[1], starts[2], starts[1]]
    with pytest.raises(UsageError, match="which a stream does not allow"):
        WholeWords(tokenizer, 9, None, "whole_word").prepare(None, rows.to_iterable_dataset(), None)


@pytest.mark.parametrize("policy", ["bernoulli", "l3"])
def test_a_number_of_tokens_cannot_be_ensured_by_probabilities(policy):
    with pytest.raises(ValueError, match=f"min_per_example is 1 and mask_policy is {policy}"):
        MaskTuningOptions(mask_policy=policy, min_per_example=1).check()
