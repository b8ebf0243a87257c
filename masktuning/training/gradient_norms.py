"""Norms of the gradient of each term of a loss: for the log, and for methods that weigh terms.

In few steps at a large alpha the masked-LM term's gradient dwarfs the classifier's and the model
underfits; these numbers in the log show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from masktuning.methods.base import Method


class GradientNorms:
    """Splits the gradient of one optimiser step into the parts of its terms.

    Costs one more set of gradients of `parameters` for every term but the last, so the trainer
    gives it all parameters only in the steps that it logs. It is made before the first backward
    pass of the step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], terms: tuple[str, ...]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.last = terms[-1]
        self._first = True  # of the step's backward passes
        self.parts: dict[str, list[Tensor | None]] = {
            term: [None] * len(self.parameters) for term in terms[:-1]
        }

    def backward(self, term: str, backward: Callable[[Tensor], None], loss: Tensor) -> None:
        """Calls `backward(loss)` and keeps a copy of what it adds to each gradient.

        The last term is not copied: it is what the gradient holds besides the others.
        """
        first, self._first = self._first, False
        if term == self.last:
            return backward(loss)
        if first:  # there is no other gradient yet, or one of zeros
            backward(loss)
            gradients = [p.grad for p in self.parameters]
            self.parts[term] = [None if one is None else one.clone() for one in gradients]
            return
        before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        backward(loss)
        part = self.parts[term]
        for i, (p, old) in enumerate(zip(self.parameters, before, strict=True)):
            new = p.grad
            if new is not None:
                sum_so_far = part[i]
                part[i] = new.clone() if sum_so_far is None else sum_so_far.add_(new)
            p.grad = new if old is None else old if new is None else old.add_(new)

    @torch.no_grad()
    def finish(self) -> None:
        """Completes the parts of all terms, after the step's last backward pass.

        In several processes the parts are averaged first, as the whole gradient was.
        """
        rest = [p.grad for p in self.parameters]
        for term, part in self.parts.items():
            self.parts[term] = self._averaged(part)
            rest = [
                whole if whole is None or one is None else whole - one
                for whole, one in zip(rest, self.parts[term], strict=True)
            ]
        self.parts[self.last] = rest

    def norms(self, scale: float, among: Iterable[nn.Parameter] | None = None) -> dict[str, Tensor]:
        """The norm of each term's gradient; `finish` must have been called.

        Args:
            scale: what the gradients were multiplied by (a GradScaler's scale).
            among: the parameters to count, by default all.
        """
        wanted = {id(p) for p in (self.parameters if among is None else among)}
        counted = [id(p) in wanted for p in self.parameters]
        found = {}
        for term, part in self.parts.items():
            kept = [one for one, is_in in zip(part, counted, strict=True) if is_in]
            norm = torch.nn.utils.get_total_norm([one for one in kept if one is not None])
            found[term] = norm / scale
        return found

    def gradients(self, among: Iterable[nn.Parameter]) -> dict[str, list[Tensor | None]]:
        """Each term's gradient of the parameters `among`; `finish` must have been called."""
        index = {id(p): i for i, p in enumerate(self.parameters)}
        return {term: [part[index[id(p)]] for p in among] for term, part in self.parts.items()}

    def _averaged(self, part: list[Tensor | None]) -> list[Tensor | None]:
        if not dist.is_initialized():
            return part
        averaged: list[Tensor | None] = []
        for p, one in zip(self.parameters, part, strict=True):
            # Every process must take part, also where it has no gradient.
            one = torch.zeros_like(p) if one is None else one
            dist.all_reduce(one)
            averaged.append(one / dist.get_world_size())
        return averaged


def begin_norms(model: nn.Module, method: Method, logged: bool) -> GradientNorms | None:
    """What measures the norms of one step: of all gradients if it is logged, or of watched ones."""
    watched = method.watched_parameters()
    if logged:
        return GradientNorms(model.parameters(), method.terms)
    return GradientNorms(watched, method.terms) if watched else None


def end_norms(
    norms: GradientNorms, method: Method, scale: float, logged: bool
) -> dict[str, Tensor]:
    """Passes a step's gradients and their norms to the method; returns the norms for the log if
    the step is logged.
    """
    norms.finish()
    if watched := method.watched_parameters():
        method.after_gradients(norms.gradients(watched))
        method.after_step(norms.norms(scale, watched))
    return norms.norms(scale) if logged else {}


def logs_step(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether Trainer will write a line of the log after the optimiser step that is under way."""
    step = state.global_step + 1
    if args.logging_strategy != IntervalStrategy.STEPS:
        return False
    return step % state.logging_steps == 0 or (step == 1 and args.logging_first_step)
