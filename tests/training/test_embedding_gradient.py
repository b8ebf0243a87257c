"""The word embedding's gradient is the same, whether it is added to in place or made anew."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from masktuning import MaskTuningTrainer, arguments_for
from masktuning.ops import gradient_in_place
from masktuning.ops.masked_lm_head import masked_lm_head
from masktuning.training import embedding_gradient

SETTINGS = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "logging_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def trainer_of(folder, family="bert", method="mask_tuning", **settings):
    return MaskTuningTrainer(
        model=tiny_model(family),
        args=arguments_for(method)(str(folder), **{**SETTINGS, **settings}),
        train_dataset=Dataset.from_list(examples(12, 1)),
        processing_class=tiny_tokenizer(),
    )


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_the_embedding_adds_what_autograd_adds(padding_idx):
    weight = torch.nn.Parameter(torch.rand(7, 3, dtype=torch.float64))
    ids = torch.tensor([[1, 2, 2], [6, 1, 0]])
    upstream = torch.rand(2, 3, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(
        (F.embedding(ids, weight, padding_idx) * upstream).sum(), weight
    )
    for marked, grad in ((False, None), (False, 0), (True, None), (True, 0)):
        gradient_in_place.mark(weight, marked)
        weight.grad = None if grad is None else torch.ones(7, 3, dtype=torch.float64)
        before = weight.grad
        output = gradient_in_place.embedding(ids, weight, padding_idx)
        assert torch.equal(output, weight[ids])
        (output * upstream).sum().backward()
        assert torch.allclose(weight.grad, expected + (0 if grad is None else 1), rtol=1e-12)
        assert before is None or weight.grad is before


@pytest.mark.parametrize("rows", [3, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("biased", [True, False])
def test_the_head_adds_what_autograd_adds(rows, dtype, biased):
    """With few rows, with many, and in float16, whose gradient is computed in another unit."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(rows, 4, generator=generator).to(dtype)
    start = torch.rand(90, 4, generator=generator).to(dtype)
    bias = torch.rand(90, generator=generator).to(dtype) if biased else None
    ids = torch.zeros(1, rows, dtype=torch.int64)
    targets = torch.randint(90, (rows,), generator=generator)
    example, rng = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 0])
    exact = start.double().requires_grad_()
    logits = F.linear(hidden.double(), exact, None if bias is None else bias.double())
    expected = F.cross_entropy(logits, targets, reduction="none")
    expected.sum().backward()
    for marked in (False, True):
        weight = torch.nn.Parameter(start.clone())
        gradient_in_place.mark(weight, marked)
        weight.grad = torch.ones_like(weight)
        output = masked_lm_head(
            hidden, weight, bias, ids, torch.arange(rows), targets, example, rng
        )
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(output.losses.double(), expected, rtol=tolerance, atol=tolerance)
        assert torch.equal(output.tokens, logits.argmax(1)) or dtype == torch.float16
        seen = []
        weight.register_hook(seen.append)  # autograd hands it what it is given, which may be None
        output.losses.sum().backward()
        in_place = marked and dtype == torch.float32
        assert all(gradient is None for gradient in seen) == in_place
        torch.testing.assert_close(
            weight.grad.double(), exact.grad + 1, rtol=tolerance, atol=tolerance
        )


CASES = [
    ("bert", {}),
    ("bert", {"gradient_accumulation_steps": 3}),
    ("bert", {"alpha": 0.0}),
    ("bert", {"method": "finetuning"}),
    ("bert", {"method": "cutoff"}),
    ("bert", {"backend": "reference"}),
    ("bert", {"precision": "bf16"}),
    ("roberta", {}),
    ("electra", {}),
]


def gradients_by_step(trainer, monkeypatch):
    """A training's gradients before clipping, by step and name."""
    found, clip = [], trainer._clip_grad_norm

    def watched(model):
        named = trainer.model.named_parameters()
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        return clip(model)

    monkeypatch.setattr(trainer, "_clip_grad_norm", watched)
    trainer.train()
    return found


@pytest.mark.parametrize(("family", "settings"), CASES, ids=[f"{f}-{s}" for f, s in CASES])
def test_a_training_has_the_gradients_of_one_without(tmp_path, monkeypatch, family, settings):
    used = []
    kept = trainer_of(tmp_path, family, **settings)
    begin = kept._speedups.embedding.begin
    monkeypatch.setattr(
        kept._speedups.embedding,
        "begin",
        lambda: (begin(), used.append(kept._speedups.embedding.kept_VH is not None)),
    )
    found = gradients_by_step(kept, monkeypatch)
    assert used and all(used)
    monkeypatch.setattr(embedding_gradient, "_can_keep", lambda *_: False)
    expected = gradients_by_step(trainer_of(tmp_path, family, **settings), monkeypatch)
    tolerance = 2e-2 if settings.get("precision") == "bf16" else 1e-4
    assert len(found) == len(expected) > 1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            error = float((ours[name] - gradient).norm())
            assert error <= tolerance * (float(gradient.norm()) + 1e-3), name


def test_after_a_training_the_embedding_is_as_before(tmp_path):
    trainer = trainer_of(tmp_path)
    module = trainer.method.model.encoder.get_input_embeddings()
    callback = trainer._speedups.embedding
    callback.on_train_begin(trainer.args)
    twin = copy.deepcopy(module)
    assert twin.forward.__self__ is twin
    trainer.train()
    assert "forward" not in vars(module) and callback.kept_VH is None
    assert gradient_in_place.gradient_to_add_to(module.weight) is None


class Stop(TrainerCallback):
    """Breaks a training off, after a look at it."""

    def __init__(self, look):
        self.look = look

    def on_step_end(self, *args, **kwargs):
        self.look()
        raise KeyboardInterrupt


def test_a_training_that_is_broken_off_leaves_nothing_behind(tmp_path):
    trainer = trainer_of(tmp_path)
    module = trainer.method.model.encoder.get_input_embeddings()
    seen = []

    def look():
        seen.append("forward" in vars(module))
        twin = pickle.loads(pickle.dumps(trainer.method.model))
        ids = torch.tensor([[0, 5, 2]])
        twin.eval(), trainer.method.model.eval()
        seen.append(torch.equal(twin(ids).logits, trainer.method.model(ids).logits))

    trainer.add_callback(Stop(look))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert seen == [True, True] and "forward" not in vars(module)
    assert gradient_in_place.gradient_to_add_to(module.weight) is None
    assert not any("forward" in vars(one) for one in trainer.method.modules())


class Freeze(TrainerCallback):
    """Freezes a weight after the first step, and keeps what it was then."""

    def __init__(self, weight):
        self.weight = weight

    def on_step_end(self, args, state, *rest, **kwargs):
        if state.global_step == 1:
            self.weight.requires_grad_(False)
            self.kept = self.weight.detach().clone()


def test_an_embedding_that_is_frozen_in_training_stays(tmp_path):
    trainer = trainer_of(tmp_path, method="finetuning", optim="adamw_torch", weight_decay=0.1)
    weight = trainer.method.model.encoder.get_input_embeddings().weight
    freeze = Freeze(weight)
    trainer.add_callback(freeze)
    trainer.train()
    assert torch.equal(weight, freeze.kept)


def test_where_it_cannot_be_kept(tmp_path, monkeypatch):
    """Other classes of embeddings, frozen weights, and weights whose gradient somebody watches."""
    trainer = trainer_of(tmp_path)
    module = trainer.method.model.encoder.get_input_embeddings()
    can_keep = embedding_gradient._can_keep
    assert can_keep(module)
    handle = module.weight.register_hook(lambda gradient: gradient)
    assert not can_keep(module)
    handle.remove()
    handle = module.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    assert not can_keep(module)
    handle.remove()
    module.weight.requires_grad_(False)
    assert not can_keep(module)
    module.weight.requires_grad_(True)
    assert can_keep(module)
    assert not can_keep(torch.nn.Embedding(3, 2, max_norm=1.0))
    assert not can_keep(tiny_model("bart").encoder.get_input_embeddings())

    def missing():
        raise NotImplementedError

    monkeypatch.setattr(trainer.method.model.encoder, "get_input_embeddings", missing)
    trainer.train()


def test_a_hook_that_comes_later_sees_the_whole_gradient(tmp_path):
    trainer = trainer_of(tmp_path)
    weight = trainer.method.model.encoder.get_input_embeddings().weight
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, *rest, **kwargs):
            if state.global_step == 1:
                weight.register_hook(lambda gradient: seen.append(gradient))

    trainer.add_callback(Watch())
    trainer.train()
    assert len(seen) >= 5 and all(gradient.shape == weight.shape for gradient in seen)
