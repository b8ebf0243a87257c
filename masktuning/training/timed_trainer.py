"""A Trainer that knows where its time goes: hooks and callbacks that keep its TimeLog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback

from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import MaskedLMOutput
from masktuning.ops import token_substitution_kernels as row_kernels
from masktuning.training.time_log import TimeLog, time_table


class TimedTrainer(Trainer):
    """A Trainer with a `time_log` of the last call of `train`, and of what was evaluated since.

    A subclass that overrides `training_step` must call `time_log.enter("head")` once the batch is
    on the device and after each backward pass, and at its end `time_log.enter("optimizer")`, or
    `enter("data")` if another micro-batch follows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.time_log = TimeLog(self.args.device)
        self._laps = _Laps(self.time_log)
        self.add_callback(self._laps)

    def time_report(self) -> str:
        """A table of where the time went, one line for each part."""
        args: Any = self.args
        return time_table({args.method: self.time_log.seconds()})

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train, whose every moment belongs to a part of the time log."""
        with self._laps.kept():
            return super().train(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; the time until the first micro-batch is on the device is that of the data."""
        self.time_log.enter("data")
        return super().get_batch_samples(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer.evaluate."""
        with self.time_log.during("evaluation"):
            return super().evaluate(*args, **kwargs)


class _Laps(TrainerCallback):
    """Tells a time log when a training step passes from one part to the next.

    Hooks on the encoder and on the gradients of what it returned do so in the model. They interrupt
    no graph of torch.compile, which compiles the layers within the encoder.
    """

    def __init__(self, log: TimeLog) -> None:
        self.log = log
        self._handles: list[RemovableHandle] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The log is kept from the beginning of the block to its end, and only there."""
        self.log.enter("rest")
        self.log.restart()
        try:
            with row_kernels.surrounded(self._row_kernel):
                yield
        finally:
            self.log.enter(None)
            self._remove_hooks()

    def on_train_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        self.log.begin_training(state.max_steps - state.global_step)
        self._remove_hooks()  # training begins again where a smaller batch is tried
        self._add_hooks(kwargs["model"])

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.log.enter("data")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.log.end_step()

    def _add_hooks(self, wrapped: nn.Module) -> None:
        model = next(m for m in wrapped.modules() if isinstance(m, MaskTuningModel))
        self._handles = [
            model.encoder.register_forward_pre_hook(self._encoder_begins),
            model.encoder.register_forward_hook(self._encoder_ends),
        ]
        if model.mlm_head is not None:
            self._handles.append(model.mlm_head.register_forward_hook(self._masked_lm_head_ends))

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _encoder_begins(self, *_: Any) -> None:
        if self.log.in_model:
            self.log.enter("encoder")

    def _encoder_ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self.log.in_model:
            return
        self.log.enter("head")
        for value in output if isinstance(output, tuple) else output.values():
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(self._backward_through("encoder"))

    def _masked_lm_head_ends(self, module: nn.Module, inputs: Any, output: MaskedLMOutput) -> None:
        # In one joint backward pass this head follows the encoder's second pass.
        if self.log.in_model and output.losses.requires_grad:
            output.losses.register_hook(self._backward_through("head"))

    def _backward_through(self, part: str) -> Any:
        def hook(gradient: Tensor) -> None:
            self.log.enter(part)

        return hook

    @contextmanager
    def _row_kernel(self) -> Iterator[None]:
        if self.log.in_model:
            with self.log.during("row_kernel"):
                yield
        else:
            yield
