"""The corpus of a pretraining run: its tokenizer, packed windows, and the closed-form start."""

import gzip
from random import Random
from types import SimpleNamespace

import numpy as np
import torch

from masktuning.demo.pretrain.corpus import (
    SPECIAL,
    Shuffled,
    Windows,
    documents,
    pack,
    packed_file,
    train_tokenizer,
)
from masktuning.demo.pretrain.masked_lm import give_a_start, new_model
from masktuning.demo.pretrain.start import word_vectors

SHARE = 0.1


def write_corpus(path, count=300):
    """Sentences in which a word foretells the next; every document has a number of its own."""
    random = Random(1)
    lines = []
    for i in range(count):
        start = random.randrange(10)
        words = [f"word{chr(97 + (start + j) % 10)}" for j in range(20)]
        lines.append(" ".join([f"doc{i}", *words]))
    text = "\n\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_batches_are_a_function_of_seed_and_step(tmp_path):
    corpus = write_corpus(tmp_path / "text.txt")
    tokenizer = train_tokenizer(lambda: documents([str(corpus)], False, SHARE), 90, 32)
    pack([str(corpus)], tokenizer, tmp_path, SHARE)
    windows = Windows(packed_file(tmp_path, "train"), 32)
    one, two = Shuffled(windows, 16, 5), Shuffled(windows, 16, 5)
    steps = one.steps_per_epoch
    assert steps > 3
    epochs = []
    for epoch in range(2):
        rows = [one.batch(epoch * steps + i) for i in range(steps)]
        ids = np.concatenate([ids for ids, _, _ in rows])
        assert len(set(ids.tolist())) == len(ids)  # each window once
        assert all(seen == epoch for _, _, seen in rows)
        epochs.append(ids.tolist())
    assert epochs[0] != epochs[1]
    for step in (steps + 1, 0, steps + 1):  # in any order, as after a resume
        for a, b in zip(one.batch(step), two.batch(step), strict=True):
            assert np.array_equal(a, b)
    assert not np.array_equal(one.batch(1)[1], Shuffled(windows, 16, 6).batch(1)[1])
    row = one.batch(0)[1]
    assert row.shape == (16, 32)
    assert (row[:, 0] == SPECIAL.index("[CLS]")).all() and (row[:, -1] == 3).all()


def test_the_tokenizer_is_bert_s_and_the_same_twice(tmp_path):
    corpus = write_corpus(tmp_path / "text.txt.gz")
    made = [
        train_tokenizer(lambda: documents([str(corpus)], False, SHARE), 90, 32) for _ in range(2)
    ]
    assert made[0].get_vocab() == made[1].get_vocab() and len(made[0]) == 90
    assert made[0].convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4]
    assert made[0].tokenize("WORDA wordé") == ["worda", *made[0].tokenize("worde")]


def test_a_vocabulary_below_the_number_of_letters_is_kept_to(tmp_path):
    corpus = str(write_corpus(tmp_path / "text.txt"))
    tokenizer = train_tokenizer(lambda: documents([corpus], False, SHARE), 16, 32)
    assert len(tokenizer) <= 16


def test_like_words_start_with_like_vectors():
    """Two kinds of word in turn, and each kind's words are interchangeable."""
    random = np.random.default_rng(0)
    tokens = np.stack([random.integers(5, 15, 4000), random.integers(15, 25, 4000)], 1)
    tokens = tokens.astype(np.uint16).ravel()
    counts = np.bincount(tokens, minlength=30)
    vectors = word_vectors(tokens, counts, 8, seed=1)
    assert torch.equal(vectors, word_vectors(tokens, counts, 8, seed=1))
    units = torch.nn.functional.normalize(vectors[5:25], dim=1)
    cosines = units @ units.T
    assert cosines[:10, :10].mean() > 0.5 > cosines[:10, 10:].abs().max() + 0.1
    assert vectors.isfinite().all() and (vectors[5:25].norm(dim=1) <= 8**0.5 + 1e-4).all()


OFFSETS = (0, -1, 1, -2, 2)  # from a token to the one that each head of the first layer looks at


def started_attention(tokens, vocabulary, **inputs):
    """[5, 64, 64] first-layer attention of a model with the closed-form start, a mean over rows."""
    settings = SimpleNamespace(
        hidden_size=160, num_layers=1, num_heads=5, max_length=64, seed=0, corruption="mask"
    )
    model = new_model(settings, vocabulary, torch.device("cpu")).eval()
    give_a_start(model, tokens, np.bincount(tokens, minlength=vocabulary), 0)
    with torch.no_grad():
        return model.bert(**inputs, output_attentions=True).attentions[0].mean(0)


def chain(vocabulary, count):
    """Tokens each of which is one of the four that follow its predecessor, with falling chances."""
    random = np.random.default_rng(0)
    followers = random.integers(5, vocabulary, (vocabulary, 4))
    ranks = random.choice(4, count, p=(0.5, 0.25, 0.15, 0.1))
    tokens = np.full(count, 5, np.uint16)
    for i in range(1, count):
        tokens[i] = followers[tokens[i - 1], ranks[i]]
    return tokens


def test_each_head_s_positions_match_at_its_offset():
    """Without words, a head attends to its own offset over twice as much as to any other."""
    attention_hLL = started_attention(chain(300, 20000), 300, inputs_embeds=torch.zeros(1, 64, 160))
    for h, offset in enumerate(OFFSETS):
        means = {d: float(attention_hLL[h].diagonal(d).mean()) for d in range(-63, 64)}
        there = means.pop(offset)
        assert there > 2 * max(means.values()), (h, there, means)


def test_the_first_layer_starts_on_neighbours():
    """With words, each head attends within one token of its offset; random weights give 0.05.

    About half of the attention or more falls there, and the rest mostly on the token itself.
    Rounding decides the signs of singular vectors, which moves these shares by some hundredths.
    """
    tokens = chain(300, 20000)
    windows = torch.from_numpy(tokens[: 16 * 64].astype(np.int64)).view(16, 64)
    attention_hLL = started_attention(tokens, 300, input_ids=windows)
    for h, offset in enumerate(OFFSETS):
        shares = [attention_hLL[h].diagonal(d).mean().item() for d in range(-4, 5)]
        assert sum(shares[3 + offset : 6 + offset]) > 0.3, (h, shares)
