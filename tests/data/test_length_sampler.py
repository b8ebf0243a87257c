"""Batches of similar length hold every text once an epoch, little padding, in a fixed order."""

import numpy as np
import pytest
from datasets import Dataset

from masktuning.data.length_sampler import SimilarLengthSampler, text_lengths


def lengths_of(n, seed=0):
    """Lengths such as those of SST-2: most texts are short, a few are ten times as long."""
    return np.clip(np.random.default_rng(seed).geometric(0.08, n) + 2, 3, 64)


def order_of(lengths, step_size=16, seed=1, epoch=0):
    return list(SimilarLengthSampler(lengths, step_size, seed, lambda: epoch))


def padded_tokens(lengths, order, batch):
    """How many tokens the batches hold that are each padded to their longest text."""
    batches = [lengths[order[i : i + batch]] for i in range(0, len(order), batch)]
    return sum(len(one) * max(one) for one in batches)


@pytest.mark.parametrize("n", [0, 1, 5, 16, 17, 63, 1000])
def test_every_text_comes_once_an_epoch(n):
    sampler = SimilarLengthSampler(lengths_of(n), 16, 1, lambda: 0)
    assert sorted(sampler) == list(range(n)) and len(sampler) == n


def test_the_order_is_a_function_of_seed_and_epoch():
    lengths = lengths_of(400)
    assert order_of(lengths) == order_of(lengths)
    # Seed 1 in epoch 1 is not seed 2 in epoch 0, as it would be if the two were added.
    orders = [order_of(lengths, seed=s, epoch=e) for s in (1, 2) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_batches_hold_little_padding():
    lengths = lengths_of(4000)
    shuffled = np.random.default_rng(3).permutation(4000)
    assert padded_tokens(lengths, order_of(lengths), 16) < 1.1 * lengths.sum()
    assert padded_tokens(lengths, shuffled, 16) > 2 * lengths.sum()


def test_the_longest_text_comes_first_and_an_incomplete_step_last():
    lengths = np.r_[lengths_of(100), 99]
    order = order_of(lengths)
    assert lengths[order[0]] == 99
    # The last 101 - 6 * 16 texts are drawn at random, so they are not the shortest ones.
    assert lengths[order[-5:]].sum() > np.sort(lengths)[:5].sum()
    assert list(lengths[order[-5:]]) == sorted(lengths[order[-5:]], reverse=True)


def test_steps_do_not_ascend_or_descend():
    """Lengths that fall within an epoch would give short texts the last word in every epoch."""
    lengths = lengths_of(4000)
    first = lengths[order_of(lengths)].reshape(-1, 16)[1:].mean(1)
    steps = np.arange(len(first))
    assert abs(np.corrcoef(steps, first)[0, 1]) < 0.25


def test_the_texts_of_a_step_are_similar_in_all_its_micro_batches():
    lengths = lengths_of(4000)
    steps = lengths[order_of(lengths, step_size=32)].reshape(-1, 32)
    assert np.mean(steps[:, 0] - steps[:, -1]) < 3
    assert (np.diff(steps, axis=1) <= 0).all()


def rows_of(lengths):
    return [{"input_ids": [7] * int(n), "labels": 0} for n in lengths]


def test_lengths_are_counted_or_read():
    lengths = lengths_of(50)
    table = Dataset.from_list(rows_of(lengths))
    for dataset in (table, rows_of(lengths), table.with_format("torch")):
        assert text_lengths(dataset).tolist() == lengths.tolist()
    # A selection or permutation of a table has rows of its own order.
    chosen = table.select([7, 3, 3, 49])
    assert text_lengths(chosen).tolist() == lengths[[7, 3, 3, 49]].tolist()
    assert text_lengths(table.select([])).tolist() == []
    named = table.add_column("length", list(range(50))).add_column("words", [5] * 50)
    assert text_lengths(named).tolist() == list(range(50))
    assert text_lengths(named, "words").tolist() == [5] * 50
    assert text_lengths([{"length": 4}, {"length": 9}]).tolist() == [4, 9]


def test_lengths_of_rows_that_are_made_on_access():
    table = Dataset.from_dict({"text": ["a", "bcd"]})
    table.set_transform(lambda rows: {"input_ids": [[1] * len(text) for text in rows["text"]]})
    assert text_lengths(table).tolist() == [1, 3]


def test_rows_without_tokens_have_no_lengths():
    assert text_lengths([{"text": "a"}]) is None
    assert text_lengths(Dataset.from_dict({"text": ["a"]})) is None
    assert text_lengths([(1, 2)]) is None
