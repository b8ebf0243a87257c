"""SSMBA: walks with a masked LM whose predictions are known, the cache, and what is classified."""

import math
from types import SimpleNamespace

import masktuning_C
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from families import SPECIAL, VOCAB, examples, tiny_model, tiny_tokenizer
from stock_step import assert_same, stock_twins
from test_perturbations import trained

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.perturbations import ssmba as module
from masktuning.methods.perturbations.ssmba import SSMBA, draw_tokens
from masktuning.methods.perturbations.static import COLUMN, TYPES, Rows
from masktuning.methods.step import Step


class KnownLM(torch.nn.Module):
    """A masked LM that predicts the original token plus `shift` in every place."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.mlm_head = SimpleNamespace(logits=lambda hidden: hidden)
        self.shown = []

    def encode(self, shown, ids, mask, types):
        self.shown.append(shown)
        plain = VOCAB - len(SPECIAL)
        return 100.0 * F.one_hot((ids - len(SPECIAL) + self.shift) % plain + len(SPECIAL), VOCAB)


def strategy_of(**options):
    made = MaskTuningOptions(perturbation="ssmba", **options)
    return SSMBA(tiny_tokenizer(), VOCAB, made, "ssmba")


def rows_of(texts):
    return Rows(texts, None, [0] * len(texts), [100 + i for i in range(len(texts))])


def words(t, example, number, stream):
    return masktuning_C.philox4x32_10(t, example, number, stream, 0, 0)


def walk_by_hand(text, example, rate, n):
    """The new texts of a walk where the masked LM says "one id higher", a token at a time."""
    seen, found, failures = [text], [], 0
    for number in range(10 * n):
        places = [t for t, token in enumerate(text) if token >= len(SPECIAL)]
        amount = words(0, example, number, 62)[0] / 2**32
        count = math.floor(rate * len(places) + amount)
        chosen = sorted(places, key=lambda t: words(t, example, number, 61)[0])[:count]
        new = list(text)
        for t in chosen:
            if words(t, example, number, 61)[1] < 0.9 * 2**32:  # the others keep their own token
                new[t] = (text[t] - len(SPECIAL) + 1) % (VOCAB - len(SPECIAL)) + len(SPECIAL)
        if new in seen:
            failures += 1
        else:
            seen, found, failures, text = [*seen, new], [*found, new], 0, new
        if len(found) == n or failures == 10:
            return found
    return found


def test_walks_go_on_from_what_they_found():
    texts = [row["input_ids"] for row in examples(5, 1)]
    made = strategy_of(ssmba_top_k=1, ssmba_rate=0.3, ssmba_samples=3)
    found = made.generate(KnownLM(1), rows_of(texts), None)
    for i, (text, versions) in enumerate(zip(texts, found, strict=True)):
        expected = walk_by_hand(text, 100 + i, 0.3, 3)
        assert [v.input_ids for v in versions] == expected and len(expected) == 3


def test_a_walk_gives_up_after_ten_tries_without_a_new_text():
    text, lm = [0, 10, 11, 12, 2], KnownLM(0)
    versions = strategy_of(ssmba_top_k=1).generate(lm, rows_of([text]), None)
    assert len(lm.shown) == 10
    assert [v.input_ids for v in versions[0]] == [text] * 4


def test_80_per_cent_show_the_mask_and_10_a_random_token():
    """900 tokens, all corrupted: standard deviations of 12 and 9."""
    ids = torch.full((10, 90), 50)
    shown, resampled, _ = strategy_of(ssmba_rate=1.0).corrupt(ids, torch.arange(10), 0)
    assert abs(int((shown == SPECIAL["<mask>"]).sum()) - 720) < 48
    assert abs(int((~resampled).sum()) - 90) < 36
    assert (shown[~resampled] == 50).all()
    random = shown[resampled & (shown != SPECIAL["<mask>"])]
    assert int(random.min()) >= len(SPECIAL) and len(random.unique()) > 30


def test_the_draw_inverts_the_distribution():
    logits = torch.tensor([[0.1, 0.2, 0.7, 0.0]]).log().expand(5, 4)
    draws = torch.tensor([0.0, 0.099, 0.101, 0.31, 0.999999]) * 2**32
    assert draw_tokens(logits, 0, draws.long()).tolist() == [0, 0, 1, 2, 2]
    assert draw_tokens(logits, 1, draws.long()).tolist() == [2] * 5


def test_special_and_unused_ids_are_never_drawn():
    made = strategy_of()
    tokens = ["[unused7]" if i == 20 else f"w{i}" for i in made.plain_ids.tolist()]
    made.tokenizer.convert_ids_to_tokens = lambda ids: tokens
    banned = (~made.drawable()).nonzero().flatten().tolist()
    assert banned == [*range(len(SPECIAL)), 20]


def method_of(family="bert", alpha=0.0, tokenizer=None, **options):
    made = MaskTuningOptions(alpha, perturbation="ssmba", ssmba_rate=0.5, **options)
    return MaskTuning(tiny_model(family), tokenizer or tiny_tokenizer(), made)


def columns_of(train):
    return [train[i][COLUMN] for i in range(len(train))]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "bart"])
def test_versions_differ_and_depend_on_no_batch(family, tmp_path, monkeypatch):
    rows, method = examples(6, 2), method_of(family)
    first = columns_of(method.prepare(rows, tmp_path / "a"))
    for row, versions in zip(rows, first, strict=True):
        assert len({tuple(v) for v in versions} | {tuple(row["input_ids"])}) == 5
        assert all(len(v) == len(row["input_ids"]) for v in versions)
    monkeypatch.setattr(module, "_BATCH", 2)
    backwards = method.prepare(Dataset.from_list(rows[::-1]), tmp_path / "b")
    assert columns_of(backwards)[::-1] == first


def test_another_seed_gives_other_versions(tmp_path):
    """In the same folder, where those of the first seed are kept."""
    rows, method = examples(4, 2), method_of()
    first = columns_of(method.prepare(rows, tmp_path))
    method.seed = 1
    second = columns_of(method.prepare(rows, tmp_path))
    assert all(one != other for one, other in zip(first, second, strict=True))
    method.seed = 0
    assert columns_of(method.prepare(rows, tmp_path)) == first


def test_versions_are_made_once(tmp_path, monkeypatch):
    rows, method = examples(3, 2), method_of()
    first = columns_of(method.prepare(rows, tmp_path))
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("perturbation-ssmba-") and kept.suffix == ".safetensors"
    asked = []
    monkeypatch.setattr(SSMBA, "generate", lambda *a: asked.append(a) or 1 / 0)
    assert columns_of(method.prepare(rows, tmp_path)) == first and not asked
    given = [{**row, COLUMN: [[0, 9, 2]]} for row in rows]
    assert method.prepare(given, tmp_path) is given
    for other, those in (
        (method_of(ssmba_samples=2), rows),
        (method, rows[:2]),
        (method_of(), rows),
    ):
        if those is rows and other.options == method.options:
            other.model.encoder.embeddings.word_embeddings.weight.data[7] += 1
        with pytest.raises(ZeroDivisionError):
            other.prepare(those, tmp_path)
    assert [*tmp_path.iterdir()] == [kept] and method.model.training  # as it was


HAND = [
    {"input_ids": [0, 10, 11, 2], COLUMN: [[0, 10, 12, 2], [0, 9, 10, 11, 13, 2]]},
    {"input_ids": [0, 20, 2], COLUMN: [[0, 21, 2], [0, 22, 2]]},
]


def hand_batch(method, types=False):
    rows = [{**row, "labels": i, "example_id": i} for i, row in enumerate(HAND)]
    if types:
        for row in rows:
            row["token_type_ids"] = [0] * len(row["input_ids"])
            row[TYPES] = [[0] * (len(v) - 2) + [1, 1] for v in row[COLUMN]]
    return method.collate(Batch.from_dict(PaddingCollator(method.tokenizer)(rows)), rows)


@pytest.mark.parametrize("side", ["right", "left"])
def test_epoch_e_classifies_version_e_mod_n(side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    method = method_of(tokenizer=tokenizer, mask_rate=0.5)
    batch = hand_batch(method, types=True)
    assert batch.input_ids.shape == batch.maskable.shape == batch.token_type_ids.shape == (2, 6)
    assert batch.maskable.sum(1).tolist() == [2, 1]
    for epoch in range(4):
        texts = method.strategy.perturb(batch, torch.tensor([7, epoch]), None)
        for i, row in enumerate(HAND):
            version, pads = row[COLUMN][epoch % 2], [1] * (6 - len(row[COLUMN][epoch % 2]))
            right = [version + pads, [1] * len(version) + [0] * len(pads)]
            left = [pads + version, [0] * len(pads) + [1] * len(version)]
            ids, mask = right if side == "right" else left
            assert texts.input_ids[i].tolist() == ids and texts.attention_mask[i].tolist() == mask
            types = texts.token_type_ids[i][texts.attention_mask[i].bool()].tolist()
            assert types == [0] * (len(version) - 2) + [1, 1]


def test_texts_of_one_length_need_no_mask():
    method = method_of()
    row = {**HAND[1], "labels": 0, "example_id": 1}
    batch = method.collate(Batch.from_dict(PaddingCollator(method.tokenizer)([row])), [row])
    assert batch.attention_mask is None
    assert method.strategy.perturb(batch, torch.tensor([7, 0]), None).attention_mask is None


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_loss_and_gradients(family, original):
    """With alpha = 0: the cross-entropy of the versions, of their own lengths, in float64."""
    method = method_of(family, include_original=original)
    method.model.double().train()
    batch = hand_batch(method)
    step = Step(torch.tensor([7, 1]), {"masked": torch.tensor(0.0), "labels": torch.tensor(2.0)})
    for loss in method.losses(batch, step):
        if loss.requires_grad:
            loss.backward()
    ours = {n: p.grad for n, p in method.model.named_parameters() if p.grad is not None}
    classifier, _ = stock_twins(method.model)
    texts = [row[COLUMN][1] for row in HAND] + [row["input_ids"] for row in HAND] * original
    each = [
        F.cross_entropy(classifier(input_ids=torch.tensor([t])).logits, torch.tensor([i % 2]))
        for i, t in enumerate(texts)
    ]
    expected = torch.stack(each).mean()
    expected.backward()
    named = {f"classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    gradients = {n: g for n, g in named.items() if g is not None}
    assert_same((float(loss.detach()), ours), (float(expected.detach()), gradients))


def test_the_gate_puts_the_whole_original_back(monkeypatch):
    method = method_of(gate="label")
    batch = hand_batch(method)
    with torch.no_grad():
        given = method.model.eval()(
            batch.columns[COLUMN][:, 1], batch.columns["perturbed_attention_mask"][:, 1]
        ).logits.argmax(1)
    batch.labels = torch.stack([1 - given[0], given[1]])  # the first one is not kept
    step = Step(torch.tensor([7, 1]), {"masked": torch.tensor(0.0), "labels": torch.tensor(2.0)})
    perturbed = method.strategy.perturb(batch, step.rng, None)
    texts = method._gated(perturbed, batch, step)
    assert texts.input_ids.tolist() == [[0, 10, 11, 2, 1, 1], [0, 22, 2, 1, 1, 1]]
    assert texts.attention_mask.sum(1).tolist() == [4, 3]


@pytest.mark.parametrize("alpha", ["auto", 0.0])
def test_it_trains_and_shows_its_texts(tmp_path, alpha):
    rows = examples(8, 1)
    trainer = trained(tmp_path, rows, perturbation="ssmba", ssmba_samples=2, alpha=alpha)
    assert trainer.state.log_history[0]["loss_cls"] > 0
    assert len(trainer.train_dataset[0][COLUMN]) == 2
    assert len([*(tmp_path / "stages").iterdir()]) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ssmba_samples": 0}, "ssmba_samples is 0: give 1 or more"),
        ({"ssmba_rate": 0.0}, "ssmba_rate is 0.0: give a share above 0"),
        ({"ssmba_top_k": 65}, "ssmba_top_k is 65: give a number from 0 to 64"),
    ],
)
def test_what_is_out_of_range_is_told(options, told):
    with pytest.raises(ValueError, match=told):
        MaskTuningOptions(**options).check()


def test_what_cannot_be_perturbed_is_told(tmp_path):
    method, rows = method_of(), examples(2, 1)
    with pytest.raises(UsageError, match="a stream does not allow: use --perturbation mlm"):
        method.prepare(Dataset.from_list(rows).to_iterable_dataset(), tmp_path)
    with pytest.raises(ValueError, match=f"needs the column '{COLUMN}'"):
        method.collate(Batch.from_dict(PaddingCollator(method.tokenizer)(rows)), rows)
    typed = [
        {**row, COLUMN: [[0, 2]], "token_type_ids": [0] * len(row["input_ids"])} for row in rows
    ]
    with pytest.raises(ValueError, match=f"needs the column '{TYPES}'"):
        method.collate(Batch.from_dict(PaddingCollator(method.tokenizer)(typed)), typed)
