"""Intermediate parsing: the encoder learns dependency parsing first, and then the task.

Glavas and Vulic 2021 (arXiv 2008.06788), the variant that they call standard.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.methods.base import Stage
from masktuning.methods.dependency_parsing import DependencyParsing, DependencyParsingOptions
from masktuning.methods.finetuning import Finetuning

PARSING = "parsing"  # the stage
_MOST_EPOCHS = 100  # where the dev treebank ends the stage earlier


@dataclass
class IntermediateParsingOptions(DependencyParsingOptions):
    """The options of intermediate parsing: those of its stage, and how long the stage trains."""

    _argument_group_name = "intermediate_parsing"

    parsing_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Epochs of parsing; at most 100 by default, where --dev_treebank ends it early."
        },
    )
    parsing_eval_steps: int = field(
        default=100,
        metadata={"help": "Measure the parser on --dev_treebank every so many optimizer steps."},
    )
    parsing_patience: int = field(
        default=10,
        metadata={"help": "End parsing after so many measurements in a row without a better UAS."},
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        super().check()
        if self.parsing_epochs is not None and not self.parsing_epochs > 0:
            raise ValueError(f"parsing_epochs is {self.parsing_epochs}: give a number above 0")
        for name in ("parsing_eval_steps", "parsing_patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")


class IntermediateParsing(Finetuning):
    """L = CE(f(x), y), where the encoder of f was trained on dependency parsing before.

    f(x) [B, C] are the classifier's logits and y [B] the labels. A stage trains the whole encoder
    with a biaffine parser on the sentences of `treebank` (see `dependency_parsing`). The parser is
    then dropped, and the encoder is fine-tuned on the task like any other, with a classification
    head that parsing did not train. This is what the paper calls standard intermediate parsing
    training. The stage takes the learning rate, the batch size and the other training arguments of
    the run; the authors search learning rates of 5e-6, 1e-5 and 2e-5 and batches of 16 and 32 for
    both parts. With --dev_treebank the stage is measured every 100 steps, ends after 10
    measurements without a better UAS, or after 100 epochs, and keeps its best model, as in the
    authors' code. Without it, the stage trains for --parsing_epochs and keeps its last model. The
    paper's treebank is the English EWT of Universal Dependencies 2.5.

    Deviations: the authors measure every 100 steps of 32 sentences, and so every 200 steps with a
    batch of 16; here --parsing_eval_steps does not depend on the batch. Their variant with adapters
    is not implemented. The classification head is new if --model_name_or_path is an encoder; if it
    is a classifier, its head is kept, as in plain fine-tuning.

    Equivalent to::

        encoder = train(DependencyParsing(encoder), treebank)
        logits_BC = classification_head(encoder(**batch))
        return F.cross_entropy(logits_BC, batch.labels)
    """

    Options = IntermediateParsingOptions
    paper = DependencyParsing.paper
    when = (
        "When you want to know whether explicit syntactic training helps on your task; the paper "
        "finds that it hardly does."
    )

    needs = "a treebank in CoNLL-U format"

    @classmethod
    def check_task(cls, options: Any, pairs: bool, labels: Sequence[str]) -> None:
        """Raises UsageError for a treebank that is missing; see `Method.check_task`."""
        _check_files(options)

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """One stage, which trains the encoder on dependency parsing."""
        arguments: dict[str, Any] = {
            "treebank": options.treebank,
            "dev_treebank": options.dev_treebank,
            "parsing_dropout": options.parsing_dropout,
            "num_train_epochs": options.parsing_epochs or _MOST_EPOCHS,
            "max_steps": -1,
            "class_weights": None,  # of labels that sentences do not have
            "load_best_model_at_end": False,
            "metric_for_best_model": None,
            "greater_is_better": None,
            "eval_strategy": "no",
            "save_total_limit": 1,
        }
        if options.dev_treebank is None:
            return [Stage(PARSING, "dependency_parsing", arguments)]
        arguments |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "uas",
            "greater_is_better": True,
            "eval_strategy": "steps",
            "eval_steps": options.parsing_eval_steps,
            "save_strategy": "steps",
            "save_steps": options.parsing_eval_steps,
            "restore_callback_states_from_checkpoint": True,  # the patience, after a resume
        }
        patience = options.parsing_patience
        return [Stage(PARSING, "dependency_parsing", arguments, early_stopping_patience=patience)]

    @classmethod
    def starts_from(cls, options: Any) -> str | None:
        """The stage, whose encoder has learned parsing."""
        return PARSING


def _check_files(options: Any) -> None:
    """Raises UsageError, before anything is loaded, for a treebank that is missing."""
    if options.treebank is None:
        raise UsageError(
            "--treebank is missing: intermediate_parsing learns parsing first, from the sentences "
            "of a CoNLL-U file such as en_ewt-ud-train.conllu of Universal Dependencies"
        )
    if options.dev_treebank is None and options.parsing_epochs is None:
        raise UsageError(
            "--dev_treebank is missing, which decides when parsing ends: give a CoNLL-U file, or "
            "--parsing_epochs to train for a fixed number of epochs"
        )
    for name in ("treebank", "dev_treebank"):
        path = getattr(options, name)
        if path is not None and not Path(path).is_file():
            raise UsageError(f"--{name}: {path}: no such file; give a CoNLL-U file")
