"""torch_compile: the same training with every method, and no graph for each length of a batch."""

import copy

import pytest
import torch
from datasets import Dataset
from families import EIGHT, examples, save_tiny, tiny_model, tiny_tokenizer
from torch._dynamo.utils import counters
from transformers import AutoModelForSequenceClassification, TrainerCallback

from masktuning import MaskTuningTrainer
from masktuning.data.collator import PaddingCollator
from masktuning.methods import METHODS, method_class
from masktuning.training.arguments import arguments_for
from masktuning.training.compile import CompiledLayers

# Without those that refuse it, and those that need a treebank or pairs of texts.
NEEDING = ("dependency_parsing", "poe", "debiased_focal", "rubi")
COMPILED = [name for name in METHODS if method_class(name).compiles and name not in NEEDING]
BIASED = ("bias_product", "reweight", "learned_mixin", "confidence_regularization")
# A first pass without gradient has graphs of its own.
GRAPHS = {"no_integrated_loss": 4}

# torch.compile looks at the gradients of its inputs, and keeps their warning from being shown.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def no_graphs():
    """Counts from zero, and leaves no graph to other tests."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trainer_of(folder, method="mask_tuning", model_init=None, **options):
    rows = examples(240, 3)
    rows += [{**rows[0], "example_id": 1000 + i} for i in range(8)]  # a batch without padding
    if method in BIASED:
        rows = [
            {
                **row,
                "bias_log_probabilities": [-0.5, -1.0],
                "teacher_log_probabilities": [-0.2, -1.7],
            }
            for row in rows
        ]
    settings = {
        "per_device_train_batch_size": 8,
        "max_steps": 31,
        "train_sampling_strategy": "sequential",
        "optim": "sgd",  # shows a gradient of the wrong size, and no rounding noise
        "learning_rate": 0.05,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return MaskTuningTrainer(
        model=None if model_init else tiny_model("bert"),
        model_init=model_init,
        args=arguments_for(method)(str(folder), **{**settings, **options}),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:20]),
        processing_class=tiny_tokenizer(),
    )


def losses(trainer):
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("method", COMPILED)
def test_the_same_training_with_two_graphs(tmp_path, method):
    """31 batches of many lengths; only one without an attention mask needs another graph."""
    plain = trainer_of(tmp_path / "run", method)
    expected = losses(plain)
    assert len(expected) == 31 and not counters["stats"]
    compiled = trainer_of(tmp_path / "run", method, torch_compile_backend="aot_eager")
    assert losses(compiled) == pytest.approx(expected, rel=1e-5)
    graphs = counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= GRAPHS.get(method, 2) and not counters["graph_break"]
    evaluated = compiled.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs
    for trainer, name in ((plain, "plain"), (compiled, "compiled")):
        trainer.save_model(str(tmp_path / name))
    assert files(tmp_path / "plain") == files(tmp_path / "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("method", COMPILED)
def test_the_default_backend(tmp_path, method):
    """Inductor's code, under bf16 as well."""
    for precision in ({}, {"bf16": True}):
        expected = losses(trainer_of(tmp_path, method, **precision))
        found = losses(trainer_of(tmp_path, method, torch_compile=True, **precision))
        assert found == pytest.approx(expected, rel=1e-2 if precision else 1e-4)
        assert 1 <= counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize("family", EIGHT)
def test_few_graphs_in_every_family(family):
    model = tiny_model(family).train()
    collate, rows = PaddingCollator(tiny_tokenizer()), examples(60, 3)
    batches = [collate(rows[i : i + 6]) for i in range(0, 60, 6)]
    assert len({batch["input_ids"].shape[1] for batch in batches}) >= 5

    def run():
        ids = [batch.pop("input_ids") for batch in copy.deepcopy(batches)]
        masks = [batch["attention_mask"] for batch in batches]
        return [model(*one).logits for one in zip(ids, masks, strict=True)]

    expected = run()
    compiled = CompiledLayers(lambda: model.encoder, {"backend": "eager", "dynamic": True})
    compiled.on_train_begin()
    torch.testing.assert_close(run(), expected)
    assert counters["stats"]["unique_graphs"] <= 3 and not counters["graph_break"]


def test_a_compiled_training_resumes(tmp_path):
    """From its own checkpoint, and with the same result as without torch_compile."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    expected = losses(trainer_of(tmp_path / "plain", **options))
    options["torch_compile_backend"] = "eager"
    losses(trainer_of(tmp_path / "compiled", **options))
    resumed = trainer_of(tmp_path / "compiled", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "compiled" / "checkpoint-2"))
    found = [log["loss"] for log in resumed.state.log_history if "loss" in log]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_compiles(tmp_path):
    expected = losses(trainer_of(tmp_path, max_steps=3))
    trainer = trainer_of(tmp_path, max_steps=3, torch_compile_backend="aot_eager")
    trainer.model.gradient_checkpointing_enable()
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_copy_made_in_training_has_weights_of_its_own(tmp_path):
    """As callbacks that average weights make one."""

    class Copy(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.copy = copy.deepcopy(model.model).train()

    keeper = Copy()
    trainer = trainer_of(tmp_path, max_steps=1, torch_compile_backend="eager")
    trainer.add_callback(keeper)
    trainer.train()
    ids = torch.tensor([[0, 9, 8, 2]])
    before = keeper.copy(ids).logits
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    torch.testing.assert_close(keeper.copy(ids).logits, before)
    assert float(before.detach().abs().sum()) > 0


def test_the_launcher_s_wish_counts(tmp_path, monkeypatch):
    """`accelerate launch --dynamo_backend` reaches the processes as an environment variable."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    losses(trainer_of(tmp_path, max_steps=2))
    assert counters["stats"]["unique_graphs"] == 1


def test_a_second_trainer_with_the_same_arguments_compiles_too(tmp_path):
    first = trainer_of(tmp_path, max_steps=1, torch_compile_backend="eager")
    second = MaskTuningTrainer(
        model=tiny_model("roberta"),
        args=first.args,
        train_dataset=first.train_dataset,
        processing_class=tiny_tokenizer(),
    )
    second.train()
    assert counters["stats"]["unique_graphs"] == 1


def test_an_encoder_without_layers_is_an_error():
    compiled = CompiledLayers(lambda: torch.nn.Linear(2, 2), {"dynamic": True})
    with pytest.raises(ValueError, match="torch_compile finds no layers in Linear"):
        compiled.on_train_begin()


def test_a_sweep_compiles_each_model(tmp_path):
    """`model_init` makes a model anew for each training."""
    name = save_tiny(tmp_path / "model", "bert")
    compiled = []

    class Look(TrainerCallback):
        def on_step_end(self, *args, model=None, **kwargs):
            layers = model.model.encoder.encoder.layer
            compiled.append((model, all("forward" in vars(layer) for layer in layers)))

    def make():
        return AutoModelForSequenceClassification.from_pretrained(name)

    trainer = trainer_of(
        tmp_path / "run", model_init=make, max_steps=1, torch_compile_backend="eager"
    )
    trainer.add_callback(Look())
    trainer.train()
    trainer.train()
    (first, here), (second, there) = compiled
    assert first is not second and here and there
    layers = [layer for model, _ in compiled for layer in model.model.encoder.encoder.layer]
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_padding_multiple_changes_lengths_only(tmp_path):
    lengths = []

    def train(**options):
        trainer = trainer_of(tmp_path, **options)
        collate = trainer.data_collator
        lengths.append({collate(rows)["input_ids"].shape[1] for rows in batches(trainer)})
        return losses(trainer)

    def batches(trainer):
        rows = list(trainer.train_dataset)
        return [rows[i : i + 8] for i in range(0, len(rows), 8)]

    expected = train()
    assert train(pad_to_multiple_of=8) == pytest.approx(expected, rel=1e-5)
    assert len(lengths[0]) > 5 and lengths[1] == {8, 16, 24}


def test_a_padding_multiple_for_a_collator_of_the_user_s_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="pad_to_multiple_of has no effect on a data_collator"):
        MaskTuningTrainer(
            model=tiny_model("bert"),
            args=arguments_for("mask_tuning")(str(tmp_path), pad_to_multiple_of=8),
            data_collator=PaddingCollator(tiny_tokenizer()),
        )
    with pytest.raises(ValueError, match="pad_to_multiple_of is 0: give 1 or more"):
        arguments_for("mask_tuning")(str(tmp_path), pad_to_multiple_of=0)
