"""What a training step knows of the run around it: the seed and the epoch, and its progress."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback


class RunClock(TrainerCallback):
    """The seed and the epoch that random numbers are drawn from, and how far the run is.

    All of it follows from the arguments and Trainer's state, so it is the same in every process, in
    every micro-batch of an optimiser step, and after a resume.

    Args:
        trainer: whose state is read.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._begun: int | None = None
        """The epoch that training is in, once its first epoch has begun."""
        self.for_collator = torch.tensor([trainer.args.seed, self.epoch]).share_memory_()
        """[2] int64 on the CPU, the seed and the epoch. The processes of a data loader see it
        change, because the memory is shared, and an epoch's first batch is asked for after that."""
        self._of_step: tuple[tuple[int, int], Tensor] | None = None

    @property
    def epoch(self) -> int:
        """How many passes over the training set are over.

        During training, passes are counted where they begin: a stream has no known length, so
        Trainer's own count does not reach 1 when its first pass ends.
        """
        return int(self.trainer.state.epoch or 0) if self._begun is None else self._begun

    @property
    def rng(self) -> Tensor:
        """[2] int64 on the device, the seed and the epoch; copied there once per epoch."""
        key = (self.trainer.args.seed, self.epoch)
        if self._of_step is None or self._of_step[0] != key:
            self._of_step = key, torch.tensor(key).to(self.trainer.args.device)
        return self._of_step[1]

    @property
    def progress(self) -> float:
        """The share of the run's optimiser steps that are done, from 0 to below 1."""
        state = self.trainer.state
        return state.global_step / max(state.max_steps, 1)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = None

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = self.epoch if self._begun is None else self._begun + 1
        self.for_collator.copy_(torch.tensor([self.trainer.args.seed, self.epoch]))

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._begun = None
