"""In a training on the CPU, dropout layers use the dropout op, and nothing of it remains."""

import copy
import pickle

import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from torch import nn
from transformers import TrainerCallback

from masktuning import MaskTuningArguments, MaskTuningTrainer
from masktuning.ops.dropout import dropout
from masktuning.training import fast_dropout

ARGS = MaskTuningArguments("none", use_cpu=True)


class Subclass(nn.Dropout):
    pass


def dropping_model():
    model = tiny_model("bert")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    return model


class Look(TrainerCallback):
    """Which dropout layers had another forward pass in the last step, and two copies of one."""

    def on_step_end(self, *args, model=None, **kwargs):
        layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Dropout)}
        self.replaced = {name: "forward" in vars(layer) for name, layer in layers.items()}
        layer = next(iter(layers.values()))
        self.copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))


def trainer_of(folder, model=None, **options):
    look = Look()
    settings = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = MaskTuningTrainer(
        model=model or dropping_model(),
        args=MaskTuningArguments(str(folder), **{**settings, **options}),
        train_dataset=Dataset.from_list(examples(16, 3)),
        processing_class=tiny_tokenizer(),
        callbacks=[look],
    )
    return trainer, look


def losses(trainer):
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.fixture
def calls(monkeypatch):
    """The probabilities that the op is called with."""
    seen = []

    def counting(x, p):
        seen.append(p)
        return dropout(x, p)

    monkeypatch.setattr(fast_dropout, "dropout", counting)
    return seen


def test_a_training_uses_the_op_and_leaves_the_model_as_it_was(tmp_path, calls):
    trainer, look = trainer_of(tmp_path)
    model = trainer.model.model
    printed, names = repr(model), list(model.state_dict())
    attributes = [vars(layer).keys() for layer in model.modules()]
    trainer.train()
    assert len(look.replaced) >= 5 and all(look.replaced.values())
    assert len(calls) >= 2 * len(look.replaced) and set(calls) == {0.1}
    assert repr(model) == printed and list(model.state_dict()) == names
    assert [vars(layer).keys() for layer in model.modules()] == attributes
    count = len(calls)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any("forward" in vars(layer) for layer in one.modules())
        one.train()(torch.tensor([[0, 9, 8, 2]]))
    trainer.evaluate(trainer.train_dataset)
    assert len(calls) == count


def test_copies_made_in_training_work(tmp_path):
    trainer, look = trainer_of(tmp_path)
    trainer.train()
    x = torch.ones(10_000)
    for layer in look.copies:
        assert abs(float((layer.train()(x) == 0).float().mean()) - 0.1) < 0.02
        assert layer.eval()(x) is x


def test_the_same_seed_gives_the_same_losses(tmp_path):
    found = [losses(trainer_of(tmp_path, seed=seed)[0]) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_gives_the_same_losses(tmp_path):
    plain, _ = trainer_of(tmp_path)
    plain.model.model._last_layer = None  # for fewer positions it would draw fewer numbers
    expected = losses(plain)
    trainer, look = trainer_of(tmp_path)
    trainer.model.model._last_layer = None
    trainer.model.model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    assert losses(trainer) == pytest.approx(expected, rel=1e-6)
    assert all(look.replaced.values())
    assert all(layer.gradient_checkpointing for layer in trainer.model.model.encoder.encoder.layer)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("options", [{"backend": "reference"}, {"torch_compile_backend": "eager"}])
def test_elsewhere_the_layers_are_left_alone(tmp_path, calls, options):
    trainer, look = trainer_of(tmp_path, **options)
    trainer.train()
    assert look.replaced and not any(look.replaced.values()) and not calls
    torch._dynamo.reset()


def test_other_layers_are_left_alone():
    hooked = nn.Dropout(0.1)
    hooked.forward = hooked.forward
    layers = nn.Sequential(Subclass(0.1), nn.Dropout(0.1, inplace=True), nn.Dropout1d(0.1), hooked)
    callback = fast_dropout.FastDropout()
    callback.on_train_begin(ARGS, None, None, model=layers)
    assert not callback.layers and "forward" in vars(hooked)


def test_a_training_that_was_broken_off_is_cleared_up_by_the_next():
    first, second = nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Dropout(0.1))
    callback = fast_dropout.FastDropout()
    callback.on_train_begin(ARGS, None, None, model=first)
    callback.on_train_begin(ARGS, None, None, model=second)
    assert "forward" not in vars(first[0]) and "forward" in vars(second[0])
    callback.on_train_end()
    assert "forward" not in vars(second[0])
