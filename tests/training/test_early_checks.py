"""The warnings of a training's first part: one for each problem, and none for a healthy run."""

import math
import random
from collections import Counter

import pytest
import torch
from datasets import Dataset
from families import tiny_model, tiny_tokenizer
from test_host_reads import HostReads
from transformers import AutoModelForMaskedLM, AutoTokenizer

from masktuning import MaskTuningArguments, MaskTuningTrainer, train
from masktuning.demo import EMBEDDED
from masktuning.ops import MaskedLMOutput
from masktuning.training.early_counts import LabelCounts, MaskedLMCounts

CPU = torch.device("cpu")
COMMON = [5, 6]  # nine of ten tokens are the one of these that the label has
HEAD, ADVICE, LABELS = (
    "masked-LM head had a loss",
    "smaller --alpha may serve",
    "the label 'LABEL_0'",
)


def rows(count):
    random_ = random.Random(0)
    found = []
    for i in range(count):
        own = COMMON[i % 2]
        words = [own if random_.random() < 0.9 else random_.randrange(7, 95) for _ in range(8)]
        found.append({"input_ids": [0, *words, 2], "labels": i % 2})
    return found


def trainer_of(folder, healthy, **settings):
    """What was wrong at first stays so at a learning rate of 0; the healthy one learns."""
    model = tiny_model("bert")
    with torch.no_grad():
        head = model.mlm_head
        model.classifier.classifier.bias.copy_(torch.tensor([0.0, 0.0] if healthy else [9.0, 0.0]))
        if healthy:  # the frequencies of the tokens, as a head knows them that has learned little
            head.bias[:] = math.log(0.1 / 88)
            head.bias[COMMON] = math.log(0.45)
            head.weight.mul_(0.1)
    args = MaskTuningArguments(
        str(folder),
        **{
            "alpha": 0.01 if healthy else 0.99,
            "min_per_example": 1,
            "learning_rate": 5e-3 if healthy else 0.0,
            "max_steps": 40,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **settings,
        },
    )
    return MaskTuningTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows(64)),
        processing_class=tiny_tokenizer(),
    )


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("warning: ")]


def test_each_problem_is_named_once_and_early(tmp_path, caplog, monkeypatch):
    trainer = trainer_of(tmp_path, healthy=False)
    checks, steps = trainer._early, []
    stock = checks._warn
    monkeypatch.setattr(
        checks, "_warn", lambda *words: (steps.append(trainer.state.global_step), stock(*words))
    )
    trainer.train()
    found = warnings_of(caplog)
    assert len(found) == 3 and steps == [30, 30, 30]
    for text in (HEAD, ADVICE, LABELS):
        assert sum(text in one for one in found) == 1
    model = trainer.method.model
    assert not model._forward_hooks and not model.mlm_head._forward_hooks


def test_nothing_is_said_of_a_healthy_training(tmp_path, caplog):
    trainer_of(tmp_path, healthy=True).train()
    assert warnings_of(caplog) == []


def test_a_short_training_is_told_of_its_head_at_its_end(tmp_path, caplog):
    """And not of what its few steps cannot tell."""
    trainer_of(tmp_path, healthy=False, max_steps=8).train()
    (found,) = warnings_of(caplog)
    assert HEAD in found and "in 8 steps" in found


def test_a_long_warm_up_is_waited_for(tmp_path, caplog):
    trainer_of(tmp_path, healthy=False, max_steps=50, warmup_steps=22).train()
    assert "from step 25 to 44, " in next(one for one in warnings_of(caplog) if LABELS in one)


def test_counting_asks_the_device_for_no_value(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, healthy=False, max_steps=31)
    stock, found = trainer.get_batch_samples, []

    def watched(*arguments):
        trainer._early._labels.counting = True
        # The data loader has values to read; the counting comes after it.
        monkeypatch.setattr(type(trainer._early), "add", add)
        return stock(*arguments)

    def add(self, batch):
        with HostReads() as reads:
            counting(self, batch)
        found.append(reads.found)

    counting = type(trainer._early).add
    monkeypatch.setattr(trainer, "get_batch_samples", watched)
    with pytest.raises(AttributeError):  # once the checks are made there is nothing to set
        trainer.train()
    assert len(found) == 60 and not any(found)
    model = trainer.method.model
    assert not model._forward_hooks and not model.mlm_head._forward_hooks  # although it broke off


def test_the_unigram_loss_is_that_of_the_other_occurrences():
    texts = [3, 3, 3, 3, 4, 4, 5, 6]
    targets = 10 * [3, 4, 6]
    total, kinds = len(texts), len(set(texts))
    share = {
        token: (count - 1 + kinds / 9) / (total - 1 + kinds)
        for token, count in Counter(texts).items()
    }
    want = sum(-math.log(share[token]) for token in targets) / len(targets)
    assert counts(texts, targets, 30 * [want]).worse_than_unigram(same) is None
    found = counts(texts, targets, 15 * [want, want + 2]).worse_than_unigram(same)
    assert found == pytest.approx((want + 1, want), rel=1e-6)
    assert counts(texts, targets[:27], 27 * [want + 5]).worse_than_unigram(same) is None
    assert counts(texts, targets, 30 * [math.nan]).worse_than_unigram(same) is None


def same(values):
    return values


def counts(texts, targets, losses):
    """Counts of one text, after a head that has a surplus row, and was evaluated besides."""
    made = MaskedLMCounts(9, CPU)
    ids = torch.tensor([[0, *texts, 2]])
    made.add({"input_ids": ids, "maskable": (ids != 0) & (ids != 2)})
    head = torch.nn.Identity()
    targets_M = torch.tensor([*targets, -100])
    output = MaskedLMOutput(torch.tensor([*losses, 0.0]), targets_M, ids)
    made.after_head(head, (None, ids, None, targets_M), output)
    made.after_head(head.eval(), (None, ids, None, targets_M), output)
    return made


@pytest.mark.parametrize(
    ("predicted", "labels", "want"),
    [
        (60 * [1], 30 * [0, 1], 1),
        ([0] + 59 * [1], 30 * [0, 1], None),  # another prediction
        (60 * [1], 50 * [1] + 10 * [0], None),  # nearly all of the texts have that label
        (60 * [1], 20 * [0, 1] + 20 * [-100], None),  # few labels
    ],
)
def test_one_label_for_all_texts(predicted, labels, want):
    made = LabelCounts(2, CPU)
    made.counting = True
    made.add({"labels": torch.tensor(labels)})
    output = type("Output", (), {"logits": torch.eye(2)[predicted]})
    made.after_model(torch.nn.Identity(), (), output)
    made.after_model(torch.nn.Identity().eval(), (), type("O", (), {"logits": torch.eye(2)}))
    assert made.only_prediction(same) == want


@pytest.mark.parametrize("trained", [False, True])
def test_a_dry_run_tells_an_untrained_head(tmp_path, caplog, trained):
    words = ["--dry_run", "--method", "mask_tuning", "--max_eval_samples", "8"]
    if not trained:
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_pretrained(EMBEDDED)
        type(model)(model.config).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(tmp_path)
        words += ["--model_name_or_path", str(tmp_path)]
    train.main([*words, "--disable_tqdm", "true"])
    found = warnings_of(caplog)
    assert found == [] if trained else HEAD in found[0] and "in 4 steps" in found[0]
