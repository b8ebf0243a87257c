"""The perturbation strategies `mlm` and `random`, against float64 twins and hand-drawn tokens."""

import masktuning_C
import pytest
import torch
import torch.nn.functional as F
from families import SPECIAL, VOCAB, examples, tiny_model, tiny_tokenizer
from oracles import counts_of, expected_masks
from stock_step import EPOCH, SEED, assert_same, make_batch, run_step, stock_twins

from masktuning import MaskTuningTrainer
from masktuning.data.batch import Batch
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.step import Step
from masktuning.training.arguments import MaskTuningArguments

STREAM = 60
PLAIN = range(len(SPECIAL), VOCAB)


def random_texts(batch, positions):
    """Each masked token replaced by the draw of its own counter, one token at a time."""
    perturbed = batch["input_ids"].clone()
    L = perturbed.shape[1]
    for place in positions:
        b, t = divmod(place, L)
        example = int(batch["example_ids"][b])
        word = masktuning_C.philox4x32_10(t, example, EPOCH, STREAM, SEED, 0)[0]
        perturbed[b, t] = PLAIN[(word * len(PLAIN)) >> 32]
    return perturbed


def masks_by_hand(batch):
    maskable = ~torch.isin(batch["input_ids"], torch.tensor(list(SPECIAL.values())))
    counts = counts_of(maskable, 0.2, 0)
    return expected_masks(batch["input_ids"], maskable, batch["example_ids"], counts, SEED, EPOCH)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_loss_and_gradients_with_random_tokens(family, alpha):
    """L = alpha * CE(masked LM) + (1 - alpha) * CE(f(x with random tokens), y)."""
    model, batch = tiny_model(family), make_batch()
    ours = run_step(model, batch, alpha, perturbation="random")

    classifier, mlm = stock_twins(model)
    shown, positions, targets = masks_by_hand(batch)
    perturbed = random_texts(batch, positions)
    assert int((perturbed != batch["input_ids"]).sum()) > 6
    mask = batch["attention_mask"]
    logits = mlm(input_ids=shown, attention_mask=mask).logits.flatten(0, 1)[positions]
    mlm_loss = F.cross_entropy(logits, torch.tensor(targets))
    class_loss = F.cross_entropy(
        classifier(input_ids=perturbed, attention_mask=mask).logits, batch["labels"]
    )
    loss = alpha * mlm_loss + (1 - alpha) * class_loss
    loss.backward()
    gradients = {f"classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    head, prefix = model.mlm_head.mlm, f"{mlm.base_model_prefix}."
    for name, p in mlm.named_parameters():  # tied parameters have their encoder's name only
        if name.startswith(prefix) and p.grad is not None:
            gradients[f"classifier.{classifier.base_model_prefix}.{name[len(prefix) :]}"] += p.grad
        elif p.grad is not None and name in dict(head.named_parameters()):
            gradients[f"mlm_head.mlm.{name}"] = p.grad
    assert_same(ours, (float(loss.detach()), {k: v for k, v in gradients.items() if v is not None}))


def losses_of(alpha, monkeypatch, joint=False):
    """How often the masked LM was evaluated in a step with random tokens, and what was logged."""
    model = tiny_model("bert")
    calls = []
    encode = type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
    batch = make_batch()
    method = MaskTuning(model, tiny_tokenizer(), MaskTuningOptions(alpha, perturbation="random"))
    counts = {"masked": torch.tensor(float(batch["num_masked"])), "labels": torch.tensor(6.0)}
    step = Step(torch.tensor([SEED, EPOCH]), counts, joint=joint)
    losses = list(method.losses(Batch.from_dict(batch), step))
    return len(calls), losses, step.logged


def test_with_alpha_0_no_masked_lm_is_evaluated(monkeypatch):
    calls, (mlm, _), logged = losses_of(0.0, monkeypatch)
    assert calls == 0 and float(mlm) == 0 and "mlm_accuracy" not in logged
    assert losses_of(0.5, monkeypatch)[0] == 1
    calls, (mlm, _), _ = losses_of(0.0, monkeypatch, joint=True)  # the head needs a gradient of 0
    assert calls == 1 and mlm.requires_grad


def test_every_plain_token_may_be_drawn_and_no_special_one():
    """600 draws of 4 tokens: each comes about 150 times, with a standard deviation of 11."""
    tokenizer = tiny_tokenizer(4)
    method = MaskTuning(
        tiny_model("bert"),
        tokenizer,
        MaskTuningOptions(0.0, mask_rate=1.0, perturbation="random"),
    )
    rows = [
        {"input_ids": [0, 5, 6, 7, 8, 5, 6, 2], "labels": 0, "example_id": i} for i in range(100)
    ]
    batch = Batch(
        torch.tensor([row["input_ids"] for row in rows]),
        torch.zeros(100, dtype=torch.int64),
        torch.arange(100),
    )
    drawn = method.perturb(method.collate(batch, rows), torch.tensor([SEED, EPOCH]))
    assert (drawn[:, 0] == 0).all() and (drawn[:, -1] == 2).all()
    tokens, counts = drawn[:, 1:-1].unique(return_counts=True)
    assert tokens.tolist() == [5, 6, 7, 8]
    assert all(abs(int(n) - 150) < 50 for n in counts)


def trained(folder, rows, **options):
    args = MaskTuningArguments(
        str(folder),
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        **options,
    )
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"), args=args, train_dataset=rows, processing_class=tiny_tokenizer()
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("alpha", ["auto", 0.0])
def test_random_tokens_train(tmp_path, alpha):
    log = trained(tmp_path, examples(8, 1), perturbation="random", alpha=alpha).state.log_history[0]
    assert log["loss_cls"] > 0 and (log["loss_mlm"] == 0) == (alpha == 0.0)


def test_an_unknown_strategy_is_told():
    with pytest.raises(ValueError, match="perturbation is typo: give mlm or random or ssmba"):
        MaskTuningOptions(perturbation="typo").check()
