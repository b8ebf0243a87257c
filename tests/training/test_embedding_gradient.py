"""The word embedding's gradient is the same, whether it is added to in place or made anew."""

import copy

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer

from masktuning import MaskTuningTrainer, arguments_for
from masktuning.ops import gradient_in_place
from masktuning.ops.masked_lm_head import masked_lm_head
from masktuning.training import embedding_gradient

SETTINGS = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
    "learning_rate": 1e-2,
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


def test_the_head_adds_what_autograd_adds():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(3, 4, generator=generator)
    start = torch.rand(9, 4, generator=generator)
    ids, targets = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([2, 0, 8])
    rows = (torch.arange(3), targets, torch.zeros(1, dtype=torch.int64), torch.tensor([0, 0]))
    found = []
    for marked in (False, True):
        weight = torch.nn.Parameter(start.clone())
        gradient_in_place.mark(weight, marked)
        weight.grad = torch.ones_like(weight)
        masked_lm_head(hidden, weight, None, ids, *rows).losses.sum().backward()
        found.append(weight.grad)
    exact = start.double().requires_grad_()
    F.cross_entropy(hidden.double() @ exact.t(), targets, reduction="sum").backward()
    for gradient in found:
        assert torch.allclose(gradient.double(), exact.grad + 1, rtol=1e-5)


CASES = [
    ("bert", {}),
    ("bert", {"gradient_accumulation_steps": 3}),
    ("bert", {"alpha": 0.0}),
    ("bert", {"method": "finetuning"}),
    ("bert", {"method": "span_cutoff"}),
    ("bert", {"backend": "reference"}),
    ("bert", {"precision": "bf16"}),
    ("roberta", {}),
    ("electra", {}),
]


@pytest.mark.parametrize(("family", "settings"), CASES, ids=[f"{f}-{s}" for f, s in CASES])
def test_a_training_ends_with_the_weights_of_one_without(tmp_path, monkeypatch, family, settings):
    kept = trainer_of(tmp_path, family, **settings)
    used = []
    begin = kept._embedding_gradient.begin
    monkeypatch.setattr(
        kept._embedding_gradient,
        "begin",
        lambda: (begin(), used.append(kept._embedding_gradient.kept_VH is not None)),
    )
    kept.train()
    assert used and all(used)
    monkeypatch.setattr(embedding_gradient, "_can_keep", lambda *_: False)
    plain = trainer_of(tmp_path, family, **settings)
    plain.train()
    expected = plain.model.state_dict()
    tolerance = 1e-2 if settings.get("precision") == "bf16" else 1e-4
    for name, value in kept.model.state_dict().items():
        assert torch.allclose(value, expected[name], atol=tolerance), name
    norms = [
        [log["grad_norm"] for log in t.state.log_history if "loss" in log] for t in (kept, plain)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_after_a_training_the_embedding_is_as_before(tmp_path):
    trainer = trainer_of(tmp_path)
    module = trainer.method.model.encoder.get_input_embeddings()
    callback = trainer._embedding_gradient
    callback.on_train_begin(trainer.args)
    twin = copy.deepcopy(module)
    assert twin.forward.__self__ is twin
    trainer.train()
    assert "forward" not in vars(module) and callback.kept_VH is None
    assert gradient_in_place.gradient_to_add_to(module.weight) is None


def test_where_it_cannot_be_kept(tmp_path):
    """Other classes of embeddings, frozen weights, and weights whose gradient somebody watches."""
    trainer = trainer_of(tmp_path)
    module = trainer.method.model.encoder.get_input_embeddings()
    can_keep = embedding_gradient._can_keep
    assert can_keep(module, trainer.args)
    handle = module.weight.register_hook(lambda gradient: gradient)
    assert not can_keep(module, trainer.args)
    handle.remove()
    handle = module.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    assert not can_keep(module, trainer.args)
    handle.remove()
    module.weight.requires_grad_(False)
    assert not can_keep(module, trainer.args)
    module.weight.requires_grad_(True)
    assert can_keep(module, trainer.args)
    assert not can_keep(torch.nn.Embedding(3, 2, max_norm=1.0), trainer.args)
    bart = tiny_model("bart").encoder.get_input_embeddings()
    assert not can_keep(bart, trainer.args)
