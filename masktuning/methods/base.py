"""The interface of a training method: a module that wraps the model and yields its losses.

docs/extending.md has a whole method to copy.

Shapes: B examples, L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from masktuning.data.batch import Batch
from masktuning.methods.requirements import check_model, check_tokenizer
from masktuning.methods.step import Step
from masktuning.modeling.checkpoint import (
    METHOD,
    load_part,
    part_file,
    starting_with,
    with_shared_tensors,
)
from masktuning.modeling.encoder_layers import encoder_layers
from masktuning.modeling.shared_encoder import MaskTuningModel


@dataclass
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Stage:
    """An earlier training of a method, whose result is a checkpoint in `stages/<name>/`."""

    name: str
    method: str
    """The method of the earlier training."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its training arguments where they differ from those of the run, such as num_train_epochs."""
    starts_from: str | None = None
    """The earlier stage whose checkpoint it starts from; None for the model of the run."""
    early_stopping_patience: int | None = None
    """It ends after so many measurements in a row without a better metric_for_best_model."""


class Method(nn.Module):
    """Base class of training methods; a subclass defines losses, options and columns.

    `losses` is the only member that every method must write. A method is registered by a line in
    methods/__init__.py, or by an entry point of another package.

    DDP and the optimizer see the method, so parameters of its own are trained, and are saved in
    the checkpoint's folder `method/`.
    """

    Options: ClassVar[type] = NoOptions
    """A dataclass whose fields are flags, keys of config.yaml and rows of the model card. If it
    has a method `check`, that raises ValueError for an option out of range."""
    requires: ClassVar[frozenset[str]] = frozenset()
    """The members of `requirements.FEATURES` that the model must provide."""
    terms: ClassVar[tuple[str, ...]] = ("cls",)
    """The names of the losses that `losses` yields, in their order."""
    masks_at_random: bool = True
    """Whether masked tokens are a fair sample of the texts, as the early warning about a masked-LM
    head that predicts badly takes for granted."""
    compiles: ClassVar[bool] = True
    """Whether it can train with `torch_compile`."""
    paper: ClassVar[str] = ""
    """What the model card cites."""
    measures: ClassVar[tuple[str, ...]] = ()
    """The names of what `measure` returns; empty where the classifier's accuracy is measured."""
    needs: ClassVar[str] = ""
    """What it needs besides the members of `requires`, such as pairs of texts, in a few words."""
    when: ClassVar[str] = ""
    """One sentence that tells a user when to choose the method, for docs/methods.md."""
    seed: int = 0
    """The seed of the run, for what `prepare` draws; the trainer sets it before `prepare`."""

    def __init__(
        self, model: MaskTuningModel, tokenizer: PreTrainedTokenizerBase, options: Any
    ) -> None:
        super().__init__()
        check_tokenizer(tokenizer, self.requires)
        check_model(model, self.requires)
        self.model = model
        self.tokenizer = tokenizer
        self.configure(options)

    def configure(self, options: Any) -> None:
        """Applies the options: called when the method is made, and again as a training begins."""
        self.options = options

    @classmethod
    def check_task(cls, options: Any, pairs: bool, labels: Sequence[str]) -> None:
        """Raises UsageError for a task that the method cannot train on with these options.

        Only the commands call it, before anything is loaded. Training from Python does not, so
        `prepare` must check again what it can see in the training set. `pairs` says whether the
        training set holds pairs of texts; `labels` are the label names.
        """

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """The earlier trainings it needs; results are kept, and a stopped training is resumed."""
        return []

    @classmethod
    def starts_from(cls, options: Any) -> str | None:
        """The stage whose checkpoint the run starts from, or None for the model that was named."""
        return None

    def prepare(self, train: Any, cache: Path) -> Any:
        """The training set with what the method adds: columns or rows.

        Called once before training, in the first process and then in the others. It must store
        nothing on `self`: each run of a hyper-parameter search makes a new method, for which
        `prepare` is not called again. `cache` is the folder of the stages' results (it may not
        exist), where the method may keep what takes long to compute.
        """
        return train

    def begin(self, train: Any) -> None:
        """Called with the prepared training set as a training begins, after `configure`."""

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The padded batch with what the method adds; `rows` are its examples with all columns."""
        return batch

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """What means are divided by. Sums over the whole optimiser step reach `Step.counts`."""
        return {"labels": (batch.labels != -100).sum()}

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """Yields one loss per term; the step minimises their sum.

        Each loss is back-propagated and its graph freed before the next is asked for, except where
        the sum of the losses is back-propagated at once, as under FSDP (`Step.joint`). A loss
        without gradient is only logged.
        """
        raise NotImplementedError

    def watched_parameters(self) -> list[nn.Parameter]:
        """Parameters on which the norm of each term's gradient is measured, in every step.

        The trainer passes the norms to `after_step`. It costs a copy of their gradients.
        """
        return []

    def after_gradients(self, gradients: Mapping[str, Sequence[Tensor | None]]) -> None:
        """Receives the gradients of the terms, before `after_step` receives their norms.

        There is a list for each term, in the order of the watched parameters, with None for a
        parameter that the term does not reach. The tensors must be neither changed nor kept; with
        a GradScaler they are multiplied by its scale.
        """

    def after_step(self, norms: Mapping[str, Tensor]) -> None:
        """Receives the norms of the terms' gradients on the watched parameters.

        Called after the last backward pass of each optimiser step, before the gradients are
        clipped. The norms are tensors on the device; they are of the whole step, over all of its
        micro-batches and processes. Not called where all terms share one backward pass.
        """

    def perturb(self, batch: Batch, rng: Tensor) -> Tensor | None:
        """The token ids [B, L] that are classified in training; None if they are the original ones.

        Shown to the user in perturbations.jsonl.
        """
        return None

    def measure(self, batch_size: int) -> dict[str, float]:
        """Measures what was trained, where that is something other than the classifier.

        A method with `measures` is measured by it in place of the classification of dev, during
        training and at its end. The names of `measures` are logged as eval_<name>, and
        metric_for_best_model may be one of them. It is called in evaluation mode and without
        gradients, in every process, and must return the same in each. An empty result says that
        there is nothing to measure on.
        """
        return {}

    def advice(self, metrics: Mapping[str, float]) -> str:
        """A sentence for the user about how training went, from all_results.json, or ""."""
        return ""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        losses: Iterator[Tensor] | None = None,
        **columns: Any,
    ) -> Any:
        """Classifies texts; given the generator that `losses` returned, its next loss.

        The trainer calls the method through its wrapper (DDP, FSDP), which has to see each forward
        pass; so the generator is resumed in here.

        Raises:
            ValueError: if the generator yields fewer losses than the method has terms.
        """
        if losses is None:
            return self.model(input_ids, attention_mask, token_type_ids)
        return self.next_loss(losses)

    def next_loss(self, losses: Iterator[Tensor]) -> Tensor:
        """The next of the losses; ValueError if there are fewer of them than terms."""
        loss = next(losses, None)
        if loss is None:
            name = type(self).__name__
            raise ValueError(f"{name} yields fewer losses than its terms {', '.join(self.terms)}")
        return loss

    @property
    def config(self) -> Any:
        """The classifier's configuration, for Trainer's callbacks."""
        return self.model.config

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes that FSDP shards one by one, unless the user names others.

        These are the layers. What transformers lists for a family may hold the embeddings too,
        which cannot be sharded apart from the masked-LM head that shares their weights.
        """
        return sorted({type(layer).__name__ for layer in encoder_layers(self.model.encoder)})

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Trades time for memory in the encoder, as on the stock classes."""
        self.model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The older name of `activation_checkpointing_enable`, for older transformers."""
        self.model.gradient_checkpointing_enable(**kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Undoes what the two methods above do."""
        self.model.gradient_checkpointing_disable()

    def save_pretrained(
        self, folder: str | Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Writes the model's checkpoint, and this method's own weights if it has any."""
        state = self.state_dict() if state_dict is None else with_shared_tensors(state_dict, self)
        own = {name: tensor for name, tensor in state.items() if not name.startswith("model.")}
        self.model.save_pretrained(folder, starting_with("model.", state), method=own)

    def load_weights(self, folder: str | Path) -> None:
        """Loads in place what `save_pretrained` wrote.

        Raises:
            ValueError: if the folder's weights are not those of this model and method.
        """
        self.model.load_weights(folder)
        own = [name for name in self.state_dict() if not name.startswith("model.")]
        if own and not part_file(folder, METHOD).is_file():
            raise ValueError(f"{folder} holds no weights of the method {type(self).__name__}")
        if own:
            load_part(folder, METHOD, self, own)
