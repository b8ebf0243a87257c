"""No training step waits for the device: nothing in it asks a tensor for a value.

On a GPU such a question makes the host wait until the device has come to its answer. There is no
GPU here, but two stand-ins: on the CPU the questions of a step are counted, and on the device
"meta", whose tensors have no values, each of them is an error.
"""

import functools
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from masktuning import MaskTuningTrainer, arguments_for
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.methods import method_class
from masktuning.methods.bias.method import COLUMN
from masktuning.methods.step import Step
from masktuning.training.backward import backward_each, backward_joint
from masktuning.training.gradient_norms import logs_step
from masktuning.training.method_collator import MethodCollator

METHODS = (
    *("mask_tuning", "finetuning", "cutoff", "hiddencut", "bias_product"),
    *("random_token_masking", "no_integrated_loss"),
)
# Ops whose result, or the size of it, depends on values.
READING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}
READING |= {"_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# On the CPU these read memory without any op.
METHODS_OF_TENSORS = ("tolist", "numpy", "cpu", "__array__")


def asking_file():
    """The name of the nearest file up the stack that is neither PyTorch's nor this one."""
    frame = sys._getframe()
    while "torch" in Path(frame.f_code.co_filename).parts or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return Path(frame.f_code.co_filename).name


class HostReads(TorchDispatchMode):
    """The questions for a value within a block, and the files that asked them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in INDEXING and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if name in READING or by_mask:
            self.found.append((name, asking_file()))
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self.stock = {name: getattr(torch.Tensor, name) for name in METHODS_OF_TENSORS}
        for name, stock in self.stock.items():
            setattr(torch.Tensor, name, self.counting(name, stock))
        return super().__enter__()

    def __exit__(self, *error):
        for name, stock in self.stock.items():
            setattr(torch.Tensor, name, stock)
        return super().__exit__(*error)

    def counting(self, name, stock):
        @functools.wraps(stock)
        def counted(*args, **kwargs):
            self.found.append((name, asking_file()))
            return stock(*args, **kwargs)

        return counted


QUESTIONS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "int": lambda x: int(x[0]),
    "range": lambda x: range(x.long().amax()),
    "if": lambda x: 1 if (x > 0).all() else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "by a mask": lambda x: x[x > 0],
    "to a mask": lambda x: x.clone().__setitem__(x > 0, torch.zeros(2)),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_is_counted(name):
    x = torch.tensor([0.0, 1.0, 2.0])
    with HostReads() as reads:
        torch.where(x > 0, x, 0).sum().add_(x[torch.tensor([1])].sum())
    assert reads.found == []
    with HostReads() as reads:
        QUESTIONS[name](x)
    assert reads.found
    if name != "to a mask":  # the size of what is written there does not depend on values
        with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
            QUESTIONS[name](x.to("meta"))


def rows_of(count):
    return [{**row, COLUMN: [-0.7, -0.7]} for row in examples(count, 1)]


# transformers asks whether BART's decoder and ModernBERT's local attention have padding.
ASKING = {"bart": {"masking_utils.py"}, "modernbert": {"masking_utils.py"}}


@pytest.mark.parametrize(
    ("method", "family", "backend"),
    [(method, "bert", "cpp") for method in METHODS]
    + [("mask_tuning", "bert", "reference")]
    + [("mask_tuning", "bart", "cpp"), ("finetuning", "modernbert", "cpp")],
)
def test_a_step_asks_for_no_value(tmp_path, monkeypatch, method, family, backend):
    """But for the steps that are logged."""
    # On the CPU the reference checks its arguments' values, which it does not do on a GPU.
    monkeypatch.setattr(sys.modules["masktuning.ops.masked_lm_head"], "check_values", no_check)
    settings = {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "logging_steps": 3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "backend": backend,
    }
    trainer = MaskTuningTrainer(
        model=tiny_model(family),
        args=arguments_for(method)(str(tmp_path), **settings),
        train_dataset=Dataset.from_list(rows_of(16)),
        processing_class=tiny_tokenizer(),
    )
    stock, steps = trainer.training_step, []

    def watched(*arguments):
        logged = logs_step(trainer.args, trainer.state)
        with HostReads() as reads:
            loss = stock(*arguments)
        steps.append((logged, reads.found))
        return loss

    monkeypatch.setattr(trainer, "training_step", watched)
    trainer.train()
    assert [logged for logged, _ in steps] == 4 * [False] + 2 * [True] + 2 * [False]
    unlogged = [found for logged, found in steps if not logged]
    assert {file for found in unlogged for _, file in found} == ASKING.get(family, set())


def no_check(*arguments):
    pass


OPTIONS = {
    "mask_tuning": [
        {},
        {"corruption": "80-10-10", "top_k": 4, "include_original": True},
        {"alpha": 0.0},
    ],
    "cutoff": [{}, {"divergence": "swapped"}, {"cutoff_type": "token"}, {"cutoff_type": "feature"}],
}


@pytest.mark.parametrize("joint", [False, True], ids=["apart", "joint"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_works_on_tensors_without_values(monkeypatch, method, family, joint):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # unknown on this device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    for options in OPTIONS.get(method, [{}]):
        made, batch = without_values(method, family, **options)
        names = ("masked", "labels", "class_weights")
        counts = {name: torch.ones((), device="meta") for name in names}
        weights = torch.ones(2, dtype=torch.float64, device="meta") if joint else None
        step = Step(torch.zeros(2, dtype=torch.int64, device="meta"), counts, 0.1, joint, weights)
        backward = backward_joint if joint else backward_each
        values = backward(made, made, made.losses(batch, step), lambda loss, _: loss.backward())
        assert {value.device.type for value in [*values.values(), *step.logged.values()]} == {
            "meta"
        }
        assert made.model.encoder.get_input_embeddings().weight.grad.device.type == "meta"


def without_values(method, family, **options):
    """A method and a padded batch of its own, both on the device "meta"."""
    cls = method_class(method)
    made = cls(tiny_model(family), tiny_tokenizer(), cls.Options(**options))
    collate = MethodCollator(PaddingCollator(tiny_tokenizer()), made, torch.tensor([1, 0]))
    batch = {
        k: v.to("meta") if isinstance(v, torch.Tensor) else v
        for k, v in collate(rows_of(4)).items()
    }
    return made.to("meta").train(), Batch.from_dict(batch)
