"""L3Masking: scores, probabilities and the step, against their definitions on stock twins."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import SPECIAL, config_of, examples, save_tiny, tiny_model, tiny_tokenizer
from stock_step import assert_same, stock_twins
from test_random_token_masking import MASK, RNG, expected_step, our_step
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from masktuning import MaskTuningTrainer, arguments_for
from masktuning.config.errors import UsageError
from masktuning.data.collator import PaddingCollator
from masktuning.data.word_marks import word_starts
from masktuning.methods.l3masking import L3Masking, L3MaskingOptions
from masktuning.methods.masks import l3, likelihood
from masktuning.methods.masks.l3 import COLUMN, l3_thresholds, masking_probabilities, thresholds_of
from masktuning.methods.masks.likelihood import (
    left_to_right,
    load_scorer,
    pseudo_log_likelihoods,
    word_ends,
)
from masktuning.methods.random_token_masking import RandomTokenMasking, RandomTokenMaskingOptions
from masktuning.training.method_collator import MethodCollator


def tokenizer_with(tokens):
    """One with the special tokens and then these."""
    vocab = {**SPECIAL, **{token: i + len(SPECIAL) for i, token in enumerate(tokens)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<unk>")),
        **{"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"},
        **{"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"},
    )


SUBWORDS = tokenizer_with([f"##w{i}" if i % 2 else f"w{i}" for i in range(94)])
CONTINUING = {i + len(SPECIAL) for i in range(1, 94, 2)}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "bart"])
def test_scores_are_those_of_one_text_and_one_token_at_a_time(family, monkeypatch):
    monkeypatch.setattr(likelihood, "_TOKENS", 100)  # so that there are several batches
    model = tiny_model(family).train()
    rows = examples(5, 2)
    scores = pseudo_log_likelihoods(rows, model, SUBWORDS)
    assert model.training and model.classifier.training
    _, mlm = stock_twins(model)
    mlm.eval()
    hidden = 0
    for row, ours in zip(rows, scores, strict=True):
        ids = torch.tensor([row["input_ids"]])
        for t, token in enumerate(row["input_ids"]):
            if token in SPECIAL.values():
                assert ours[t] == 0
                continue
            shown, end = ids.clone(), t + 1
            while row["input_ids"][end] in CONTINUING:
                end += 1
            shown[0, t:end] = MASK
            hidden += end - t > 1
            decoder = {}
            if model.config.is_encoder_decoder:
                start = torch.tensor([[model.config.decoder_start_token_id]])
                decoder["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], 1)
            with torch.no_grad():
                logits = mlm(shown, torch.ones_like(ids), **decoder).logits[0, t]
            assert ours[t] == pytest.approx(-float(logits.log_softmax(-1)[token]), rel=1e-4)
    assert hidden > 5


def test_words_are_what_the_marks_of_the_vocabulary_say():
    ids = np.array([0, 6, 7, 7, 8, 2, 7, 2])
    special = np.array([0, 1, 2, 3, 4])
    pieces = {
        "##": tokenizer_with(["a", "b", "##c", "d"]),  # ids 5 to 8
        "begin": tokenizer_with(["\u0120a", "\u0120b", "c", "\u0120d"]),
        "sentencepiece": tokenizer_with(["\u2581a", "\u2581b", "c", "\u2581d"]),
    }
    for tokenizer in pieces.values():
        continues = ~word_starts(tokenizer)
        assert continues.tolist() == [False] * 5 + [False, False, True, False]
        # 6 7 7 is a word, 8 another; a 7 after a special token begins one.
        assert word_ends(ids, continues, special).tolist() == [1, 4, 4, 4, 5, 6, 7, 8]
    plain = ~word_starts(tokenizer_with(["a", "b", "c", "d"]))
    assert not plain.any()
    assert word_ends(ids, plain, special).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_real_vocabulary_has_its_scheme(shared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "minilm-l6-mlm")
    ids = np.array(tokenizer("the unfathomable film , truly !")["input_ids"])
    ends = word_ends(ids, ~word_starts(tokenizer), np.array(tokenizer.all_special_ids))
    words = [tokenizer.decode(ids[t : ends[t]]) for t in range(len(ids)) if t in {0, *ends}]
    assert words == ["[CLS]", "the", "unfathomable", "film", ",", "truly", "!", "[SEP]"]


ALL = np.ones(4, dtype=bool)


@pytest.mark.parametrize(
    ("scores", "maskable", "rate", "expected"),
    [
        ([1.0, 2.0, 3.0, 2.0], ALL, 0.2, [0.1, 0.2, 0.3, 0.2]),
        # 1.44 .18 .18: .44 is shared by the two below 1.
        ([8.0, 1.0, 1.0], ALL[:3], 0.6, [1.0, 0.4, 0.4]),
        # 1.875 .75 .1875 .1875, then 1 1.0417 .4792 .4792: shared twice.
        ([10.0, 4.0, 1.0, 1.0], ALL, 0.75, [1.0, 1.0, 0.5, 0.5]),
        # Special tokens are not counted, and never masked.
        ([0.0, 1.0, 3.0, 0.0], np.array([False, True, True, False]), 0.2, [0, 0.1, 0.3, 0]),
        ([0.0, 0.0], ALL[:2], 0.15, [0.15, 0.15]),
        ([5.0, 5.0, 5.0], ALL[:3], 0.15, [0.15] * 3),
        ([3.0, 1.0], ALL[:2], 1.0, [1.0, 1.0]),
        ([0.0], ~ALL[:1], 0.15, [0.0]),
    ],
)
def test_probabilities(scores, maskable, rate, expected):
    found = masking_probabilities(np.array(scores), maskable, rate)
    assert found.tolist() == pytest.approx(expected)
    assert thresholds_of(np.array(scores), maskable, rate).tolist() == [
        round(q * 2**32) for q in found
    ]


def test_the_mean_is_the_rate_for_any_scores():
    generator = np.random.default_rng(0)
    shared = 0
    for n in range(1, 60):
        scores = generator.exponential(size=n) ** 3
        q = masking_probabilities(scores, np.ones(n, dtype=bool), 0.15)
        assert q.mean() == pytest.approx(0.15) and q.min() >= 0 and q.max() <= 1
        assert (np.diff(q[scores.argsort()]) >= 0).all()  # less likely, more often masked
        shared += q.max() == 1
    assert shared


def rows_with_thresholds(method, tmp_path, count=6):
    return method.prepare(Dataset.from_list(examples(count, 1)), tmp_path)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_loss_and_gradients(family, tmp_path):
    model = tiny_model(family)
    method = L3Masking(model, tiny_tokenizer(), L3MaskingOptions(mask_rate=0.3, mlm_weight=0.3))
    rows = [*rows_with_thresholds(method, tmp_path)]
    by_id = {row["example_id"]: row[COLUMN] for row in rows}
    assert len({t for column in by_id.values() for t in column}) > 20
    batch = MethodCollator(PaddingCollator(tiny_tokenizer()), method, RNG)(rows)
    ours = our_step(method, batch)[:2]
    assert_same(ours, expected_step(model, batch, 0.3, lambda example, t: by_id[example][t]))


def test_equal_scores_give_random_token_masking(monkeypatch, tmp_path):
    def equal(rows, model, tokenizer):
        return [np.full(len(row["input_ids"]), 2.0, dtype=np.float32) for row in rows]

    monkeypatch.setattr(l3, "pseudo_log_likelihoods", equal)
    model = tiny_model("bert")
    method = L3Masking(model, tiny_tokenizer(), L3MaskingOptions())
    rows = [*rows_with_thresholds(method, tmp_path)]
    pad = PaddingCollator(tiny_tokenizer())
    batch = MethodCollator(pad, method, RNG)(rows)
    other = RandomTokenMasking(model, tiny_tokenizer(), RandomTokenMaskingOptions())
    expected = MethodCollator(pad, other, RNG)(rows)
    assert torch.equal(batch["maskable"], expected["maskable"]) and batch["num_masked"] > 0
    assert our_step(method, batch)[0] == our_step(other, expected)[0]


def test_scores_are_kept_and_depend_on_texts_and_weights(tmp_path, monkeypatch):
    model, tokenizer = tiny_model("bert"), tiny_tokenizer()
    cache = tmp_path / "stages"

    def thresholds(rows, rate=0.15):
        return l3_thresholds(rows, tokenizer, model, rate, None, cache)

    def files():
        return sorted(path.name for path in cache.iterdir())

    rows = examples(4, 1)
    first = thresholds(rows)
    assert [len(one) for one in first] == [len(row["input_ids"]) for row in rows]
    (name,) = files()
    assert name.startswith("likelihoods-") and name.endswith(".safetensors")
    scored = l3.pseudo_log_likelihoods
    monkeypatch.setattr(l3, "pseudo_log_likelihoods", None)  # so scoring would be an error
    assert thresholds(rows) == first
    assert thresholds(rows, 0.3) != first  # the rate comes after the scores
    monkeypatch.setattr(l3, "pseudo_log_likelihoods", scored)
    thresholds(rows[:3])
    assert len(files()) == 2
    with torch.no_grad():
        model.classifier.classifier.weight.add_(1)  # has no part in it
        model.encoder.pooler.dense.weight.add_(1)
    thresholds(rows)
    assert len(files()) == 2
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight.add_(1)
    thresholds(rows)
    assert len(files()) == 3


def save_gpt2(folder, tokenizer=None):
    torch.manual_seed(0)
    config = config_of("gpt2", n_embd=16, n_layer=2, n_head=2, vocab_size=99, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


def test_a_causal_lm_scores_from_left_to_right(tmp_path, monkeypatch):
    monkeypatch.setattr(likelihood, "_LOGITS", 99 * 40)  # so that there are several batches
    scorer = load_scorer(save_gpt2(tmp_path), tiny_tokenizer())
    rows = examples(6, 2)
    scores = left_to_right(rows, scorer, tiny_tokenizer())
    for row, ours in zip(rows, scores, strict=True):
        ids = row["input_ids"]
        assert len(ours) == len(ids)
        for t, token in enumerate(ids):
            if token in SPECIAL.values():
                assert ours[t] == 0
                continue
            with torch.no_grad():
                logits = scorer(torch.tensor([ids[:t]])).logits[0, -1]
            assert ours[t] == pytest.approx(-float(logits.log_softmax(-1)[token]), rel=1e-4)


def test_a_scorer_changes_the_column(tmp_path):
    model, tokenizer = tiny_model("bert"), tiny_tokenizer()
    name = save_gpt2(tmp_path / "gpt2")
    rows = examples(3, 1)
    own = l3_thresholds(rows, tokenizer, model, 0.15, None, tmp_path / "a")
    other = l3_thresholds(rows, tokenizer, model, 0.15, name, tmp_path / "a")
    assert own != other and len([*(tmp_path / "a").iterdir()]) == 2


def test_scorers_that_cannot_be_used(tmp_path):
    tokenizer = tiny_tokenizer()
    with pytest.raises(UsageError, match="no such folder"):
        load_scorer(str(tmp_path / "nothing"), tokenizer)
    name = save_gpt2(tmp_path / "other", tokenizer_with(["a"]))
    with pytest.raises(UsageError, match="has another vocabulary than the model"):
        load_scorer(name, tokenizer)
    name = str(save_tiny(tmp_path / "bert", "bert"))
    with pytest.raises(UsageError, match="also reads the tokens that follow"):
        load_scorer(name, tokenizer)
    name = str(save_tiny(tmp_path / "distilbert", "distilbert"))
    with pytest.raises(UsageError, match="distilbert cannot be loaded"):
        load_scorer(name, tokenizer)


def test_rows_that_cannot_be_used(tmp_path):
    method = L3Masking(tiny_model("bert"), tiny_tokenizer(), L3MaskingOptions())
    with pytest.raises(UsageError, match="which a stream does not allow"):
        method.prepare(iter([]), tmp_path)
    rows = [*rows_with_thresholds(method, tmp_path, 2)]
    collate = MethodCollator(PaddingCollator(tiny_tokenizer()), method, RNG)
    with pytest.raises(ValueError, match="l3masking needs the column 'mask_thresholds'"):
        collate(examples(2, 1))
    with pytest.raises(ValueError, match="must not shorten texts"):
        collate([{**row, COLUMN: row[COLUMN][1:]} for row in rows])


@pytest.mark.parametrize("kind", [Dataset.from_list, list])
def test_a_training(tmp_path, kind):
    settings = {"max_steps": 2, "logging_steps": 1, "report_to": "none", "save_strategy": "no"}
    trainer = MaskTuningTrainer(
        model=tiny_model("roberta"),
        args=arguments_for("l3masking")(str(tmp_path), disable_tqdm=True, use_cpu=True, **settings),
        train_dataset=kind(examples(16, 1)),
        processing_class=tiny_tokenizer(),
    )
    assert len(trainer.train_dataset[0][COLUMN]) == len(trainer.train_dataset[0]["input_ids"])
    stock, judged = trainer.training_step, []

    def watched(*arguments):
        judged.append(trainer._early._head is not None)
        return stock(*arguments)

    trainer.training_step = watched
    trainer.train()
    assert judged == [False, False]  # unlikely tokens do not show how good the head is
    log = trainer.state.log_history[0]
    assert {"loss_mlm", "loss_cls", "mlm_accuracy", "grad_norm_mlm", "grad_norm_cls"} <= log.keys()
    assert log["loss"] == pytest.approx((log["loss_mlm"] + log["loss_cls"]) / 2, abs=2e-4)
    assert [path.suffix for path in (tmp_path / "stages").iterdir()] == [".safetensors"]
