"""Random Token Masking against its equation, on stock float64 twins; and its learned weights."""

import math

import masktuning_C
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from families import SPECIAL, examples, tiny_model, tiny_tokenizer
from stock_step import EPOCH, SEED, assert_same, stock_twins

from masktuning import MaskTuningTrainer, arguments_for
from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.methods.multi_task.meta_weights import HeldOut, MetaWeights, trained_head
from masktuning.methods.random_token_masking import RandomTokenMasking, RandomTokenMaskingOptions
from masktuning.methods.step import Step
from masktuning.training.backward import backward_each
from masktuning.training.method_collator import MethodCollator

PLAIN = [i for i in range(99) if i not in SPECIAL.values()]
MASK = SPECIAL["<mask>"]
RATE = round(0.3 * 2**32)
RNG = torch.tensor([SEED, EPOCH])


def masked_by(batch, thresholds_of, epoch=EPOCH):
    """The definition: the masked texts, the masked places (row, position) and their tokens."""
    shown, places = batch["input_ids"].clone(), []
    for b, ids in enumerate(batch["input_ids"].tolist()):
        example = int(batch["example_ids"][b])
        for t, token in enumerate(ids):
            draw = masktuning_C.philox4x32_10(t, example, epoch, 0, SEED, 0)[0]
            if token in SPECIAL.values() or draw >= thresholds_of(example, t):
                continue
            kind, which = masktuning_C.philox4x32_10(t, example, epoch, 2, SEED, 0)[:2]
            if kind < round(0.8 * 2**32):
                shown[b, t] = MASK
            elif kind < round(0.9 * 2**32):
                shown[b, t] = PLAIN[(which * len(PLAIN)) >> 32]
            places.append((b, t, token))
    return shown, places


def expected_step(model, batch, w, thresholds_of=lambda example, t: RATE):
    """(loss, {name: gradient}) of w * L_MLM + (1 - w) * L_CLS, from the stock twins."""
    classifier, mlm = stock_twins(model)
    extras = {"attention_mask": batch["attention_mask"]}
    shown, places = masked_by(batch, thresholds_of)
    rows, positions, targets = map(list, zip(*places, strict=True))
    logits = mlm(input_ids=shown, **extras).logits[rows, positions]
    mlm_loss = F.cross_entropy(logits, torch.tensor(targets))
    clean = classifier(input_ids=batch["input_ids"], **extras).logits
    loss = w * mlm_loss + (1 - w) * F.cross_entropy(clean, batch["labels"])
    loss.backward()
    prefix, body = f"{mlm.base_model_prefix}.", f"classifier.{classifier.base_model_prefix}."
    found = {f"classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    names = mlm.named_parameters(remove_duplicate=False)
    seen = set()
    for name, p in sorted(names, key=lambda item: not item[0].startswith(prefix)):
        if p.grad is None or p in seen:
            continue
        seen.add(p)  # a tied parameter has several names; the encoder's comes first
        ours = (
            body + name.removeprefix(prefix) if name.startswith(prefix) else f"mlm_head.mlm.{name}"
        )
        known = found.get(ours)
        found[ours] = p.grad if known is None else known + p.grad
    return float(loss.detach()), {n: g for n, g in found.items() if g is not None}


def our_step(method, batch):
    method.model.zero_grad()
    method.train()
    made = Batch.from_dict(batch)
    counts = method.counts(made)
    step = Step(RNG, {name: torch.as_tensor(value).float() for name, value in counts.items()})
    values = backward_each(method, method, method.losses(made, step), lambda x, _: x.backward())
    named = method.model.named_parameters()
    loss = float(sum(values.values()))
    return loss, {name: p.grad for name, p in named if p.grad is not None}, step.logged


def made(model, **options):
    options = RandomTokenMaskingOptions(mask_rate=0.3, **options)
    return RandomTokenMasking(model, tiny_tokenizer(), options)


def batch_of(method, count=6):
    return MethodCollator(PaddingCollator(tiny_tokenizer()), method, RNG)(examples(count, 1))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_loss_and_gradients(family):
    method = made(tiny_model(family), mlm_weight=0.3)
    batch = batch_of(method)
    loss, gradients, logged = our_step(method, batch)
    assert_same((loss, gradients), expected_step(method.model, batch, 0.3))
    parts = 0.3 * float(logged["loss_mlm"]) + 0.7 * float(logged["loss_cls"])
    assert parts == pytest.approx(loss, rel=1e-6)
    _, places = masked_by(batch, lambda example, t: RATE)
    assert method.counts(Batch.from_dict(batch))["masked"] == len(places)


def test_without_the_masked_lm_it_is_plain_fine_tuning():
    method = made(tiny_model("bert"), mlm_weight=0.0)
    batch = batch_of(method)
    classifier, _ = stock_twins(method.model)
    logits = classifier(batch["input_ids"], batch["attention_mask"]).logits
    plain = float(F.cross_entropy(logits, batch["labels"]).detach())
    assert our_step(method, batch)[0] == pytest.approx(plain, rel=1e-6)


def test_a_batch_in_which_nothing_is_masked_has_no_masked_lm_loss():
    method = RandomTokenMasking(
        tiny_model("bert"), tiny_tokenizer(), RandomTokenMaskingOptions(mask_rate=1e-9)
    )
    loss, gradients, logged = our_step(method, batch_of(method))
    assert float(logged["loss_mlm"]) == 0 and math.isfinite(loss)
    assert all(g.isfinite().all() for g in gradients.values())


def test_micro_batches_have_the_mean_of_the_whole_step(tmp_path):
    """Though each has another number of masked tokens, which only the draws tell."""

    def weights(name, **sizes):
        settings = {"max_steps": 2, "learning_rate": 0.1, "optim": "sgd", "seed": SEED, **sizes}
        trainer = trainer_of(tmp_path / name, examples(16, 1), **settings)
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    whole = weights("whole", per_device_train_batch_size=8)
    parts = weights("parts", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def trainer_of(folder, rows, **settings):
    fixed = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return MaskTuningTrainer(
        model=tiny_model("bert"),
        args=arguments_for("random_token_masking")(str(folder), **fixed, **settings),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=tiny_tokenizer(),
    )


def test_a_weight_follows_the_cosine_of_its_gradient():
    meta = MetaWeights()
    assert meta.weights().tolist() == [0.5, 0.5]
    dev = [torch.tensor([3.0, 0.0]), None, torch.tensor([4.0])]
    mlm = [torch.tensor([0.0, 2.0]), torch.tensor([1.0]), None]  # at a right angle
    cls = [torch.tensor([6.0, 0.0]), None, torch.tensor([-8.0])]  # cosine (18 - 32) / (5 * 10)
    meta.update([mlm, cls], dev)
    v = [0.0, 0.01 * (18 - 32) / 50]
    assert meta.logits.tolist() == pytest.approx(v)
    share = math.exp(v[0]) / (math.exp(v[0]) + math.exp(v[1]))
    assert meta.weights()[0].item() == pytest.approx(share)
    nothing = [torch.tensor([math.inf, 1.0]), None, torch.tensor([0.0])]
    meta.update([nothing, [torch.zeros(2), None, torch.zeros(1)]], dev)
    assert meta.logits.tolist() == pytest.approx(v)  # overflow, and a gradient of zeros


def test_the_held_out_classifier_is_adamw_from_zero():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(32, 5, generator=generator)
    labels = torch.randint(0, 3, (32,), generator=generator)
    weight, bias = trained_head(states, labels, 3)
    head = torch.nn.Linear(5, 3).double()
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    for _ in range(10):
        loss = F.cross_entropy(head(states.double()), labels)
        losses.append(float(loss.detach()))
        if len(losses) > 1 and abs(losses[-2] - losses[-1]) < 1e-3:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(weight, head.weight.detach().float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bias, head.bias.detach().float(), rtol=1e-4, atol=1e-6)


def test_the_held_out_gradient_is_that_of_the_stock_encoder():
    model = tiny_model("bert").train()
    held = HeldOut.of([dict(row) for row in examples(200, 3)], tiny_tokenizer())
    assert len(set(held.example_ids.tolist())) == 96
    parameters = [*model.encoder.encoder.parameters()]
    ours = held.gradient(model, parameters)
    assert model.training and model.classifier.training

    classifier, _ = stock_twins(model)
    encoder = classifier.base_model.eval()

    def states(batch):
        mask = batch.attention_mask
        mask = torch.ones_like(batch.input_ids) if mask is None else mask
        return encoder(batch.input_ids, mask)[0][:, 0]

    with torch.no_grad():
        weight, bias = trained_head(states(held.head_batch), held.head_batch.labels, 2)
    second = states(held.gradient_batch)
    loss = F.cross_entropy(second @ weight.double().T + bias.double(), held.gradient_batch.labels)
    wanted = torch.autograd.grad(loss, [*encoder.encoder.parameters()])
    scale = max(float(g.norm()) for g in wanted)
    for have, want in zip(ours, wanted, strict=True):
        assert float((have.double() - want).norm()) < 1e-4 * scale


def test_learned_weights_in_a_training(tmp_path):
    """The weights move, held-out labels are not trained on, and the weights are saved."""
    settings = {"task_weights": "meta", "max_steps": 3, "logging_steps": 1}
    trainer = trainer_of(tmp_path, examples(200, 1), **settings)
    seen = []
    step = trainer.training_step

    def watched(model, inputs, *rest):
        seen.append((inputs["example_ids"], inputs["labels"]))
        return step(model, inputs, *rest)

    trainer.training_step = watched
    trainer.train()
    held = set(trainer.method.held_out.example_ids.tolist())
    pairs = [p for ids, labels in seen for p in zip(ids.tolist(), labels.tolist(), strict=True)]
    assert any(example in held for example, _ in pairs)
    assert all((label == -100) == (example in held) for example, label in pairs)
    logs = [log["mlm_weight"] for log in trainer.state.log_history if "mlm_weight" in log]
    assert logs[0] == pytest.approx(0.5) and len(set(logs)) == 3
    v = trainer.method.meta.logits.clone()
    assert 0 < float(v.abs().max()) <= 0.03
    trainer.save_model(str(tmp_path / "saved"))
    trainer.method.meta.logits.zero_()
    trainer.method.load_weights(tmp_path / "saved")
    assert torch.equal(trainer.method.meta.logits, v)


def test_too_few_rows_and_streams_cannot_be_held_out():
    with pytest.raises(UsageError, match="has only 100: give 192 or more"):
        HeldOut.of([dict(row) for row in examples(100, 1)], tiny_tokenizer())
    with pytest.raises(UsageError, match="which a stream does not allow"):
        HeldOut.of(iter([]), tiny_tokenizer())


def test_one_joint_backward_pass_keeps_the_weights(caplog):
    method = made(tiny_model("bert"), task_weights="meta")
    step = Step(torch.tensor([0, 0]), {}, joint=True)
    assert [float(method._mlm_weight(step)) for _ in range(2)] == [0.5, 0.5]
    assert caplog.text.count("both losses keep the weight 0.5") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_rate": 0.0}, "mask_rate is 0.0"),
        ({"task_weights": "learned"}, "task_weights is learned: give fixed or meta"),
        ({"mlm_weight": 1.5}, "mlm_weight is 1.5"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RandomTokenMaskingOptions(**options).check()
