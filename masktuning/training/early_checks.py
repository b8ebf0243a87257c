"""Warnings about a training that goes wrong from the start, while there is time to stop it."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from masktuning.training.early_counts import LabelCounts, MaskedLMCounts
from masktuning.training.evaluating_trainer import EvaluatingTrainer
from masktuning.training.loss_log import means

logger = logging.getLogger(__name__)

_STEPS = 30  # that tell something, in a run that is long enough
_WINDOW = 20  # steps whose predictions are counted
_NORMS = 3  # lines of the log, the fewest whose gradient norms are averaged
# Times the smallest norm. Early in a run the norms differ more than they do on average over the
# run, to which the methods' own limits belong.
_DWARFING = 10


class CheckedTrainer(EvaluatingTrainer):
    """A Trainer that warns early, and once per training, of each of three problems.

    - The masked-LM head predicts worse than the frequencies of the tokens do: checked after 30
      steps, or after the last step of a shorter run.
    - The gradient of one term of the loss dwarfs that of another, and the method has advice for
      that: checked after a tenth of the run, and after 30 steps.
    - The classifier gives every text the same label: checked after a fifth of the run, after 30
      steps, and after twice the warm-up, since a classifier begins like this.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._early = _EarlyChecks(self)
        self.add_callback(self._early)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train, with the checks."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._early.remove_hooks()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; the checks count the labels and tokens of the step's micro-batches."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            self._early.add(batch)
        return batches, items


class _EarlyChecks(TrainerCallback):
    """Counts from the first step of a call of `train`, be it resumed, and warns when it is time."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._handles: list[RemovableHandle] = []
        self._head: MaskedLMCounts | None = None
        self._labels: LabelCounts | None = None
        self._first, self._advised = 0, True  # evaluation without training logs as well

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.remove_hooks()  # training begins again where a smaller batch is tried
        model = self.trainer.method.model
        self._first, self._advised = state.global_step, False
        steps = state.max_steps - state.global_step
        self._advice_step = max(_STEPS, steps // 10)
        self._labels_step = min(max(_STEPS, steps // 5, 2 * args.get_warmup_steps(steps)), steps)
        if steps >= _STEPS:
            self._labels = LabelCounts(model.config.num_labels, args.device)
            self._handles.append(model.register_forward_hook(self._labels.after_model))
        if model.mlm_head is not None and self.trainer.method.masks_at_random:
            self._head = MaskedLMCounts(model.config.vocab_size, args.device)
            self._handles.append(model.mlm_head.register_forward_hook(self._head.after_head))

    def add(self, batch: dict[str, Any]) -> None:
        """Counts a micro-batch that is about to be trained on."""
        for counts in (self._head, self._labels):
            if counts is not None:
                counts.add(batch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step - self._first
        if step == _STEPS:
            self._check_head(step)
        if self._labels is not None:
            self._labels.counting = step >= self._labels_step - _WINDOW
            if step == self._labels_step:
                self._check_labels(step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check_head(state.global_step - self._first)  # unless that is done already
        self.remove_hooks()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step - self._first
        if self._advised or step < self._advice_step:
            return
        logs, trainer = state.log_history, self.trainer
        names = {f"grad_norm_{term}" for term in trainer.method.terms}
        if sum(names <= log.keys() for log in logs) < _NORMS:
            return
        self._advised = True
        norms = means(logs, names).values()
        advice = trainer.method.advice(means(logs, trainer.logged_names))
        if advice and max(norms) > _DWARFING * min(norms):
            self._warn("after %d steps: %s", step, advice)

    def remove_hooks(self) -> None:
        """Ends the counting."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._head, self._labels, self._advised = [], None, None, True

    def _check_head(self, step: int) -> None:
        counts, self._head = self._head, None
        found = None if counts is None else counts.worse_than_unigram(self._sum)
        if found is not None:
            self._warn(
                "in %d steps, the masked-LM head had a loss of %.2f per masked token, and guessing "
                "by how often each token occurs in the texts would have had %.2f. The head seems "
                "to be untrained, or trained on another language, so the tokens that it "
                "substitutes are noise: start from a checkpoint with a trained masked-LM head, or "
                "use --method finetuning",
                step,
                *found,
            )

    def _check_labels(self, step: int) -> None:
        counts, self._labels = self._labels, None
        label = None if counts is None else counts.only_prediction(self._sum)
        if label is not None:
            self._warn(
                "from step %d to %d, the classifier gave every training text the label %r. If it "
                "stays like this the run learns nothing: try another --learning_rate or more "
                "steps, and compare other methods with --method finetuning",
                step - min(step, _WINDOW) + 1,
                step,
                self.trainer.method.config.id2label[label],
            )

    def _sum(self, values: Tensor) -> Tensor:
        return self.trainer.accelerator.reduce(values, "sum")

    def _warn(self, text: str, *values: Any) -> None:
        if self.trainer.is_world_process_zero():
            logger.warning(f"warning: {text}", *values)
