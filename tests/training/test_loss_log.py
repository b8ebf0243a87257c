"""The log of a method's values: means over the steps, without those that have none."""

from types import SimpleNamespace

import pytest
import torch

from masktuning.methods.step import Step
from masktuning.training.loss_log import LossLog

ALONE = SimpleNamespace(reduce=lambda values, how: values)
RNG = torch.tensor([1, 0])


def add_step(log, masked, parts):
    """A step with a number of masked tokens; `parts` are (loss, masked-LM loss) of its parts."""
    for i, (loss, mlm) in enumerate(parts, 1):
        step = Step(RNG, {"labels": torch.tensor(4.0), "masked": torch.tensor(float(masked))})
        step.log(loss_cls=torch.tensor(loss))
        step.log(over="masked", loss_mlm=torch.tensor(mlm))
        log.add(step.logged, i == len(parts), step.without_mean())


def test_steps_without_a_mean_are_left_out_of_the_average():
    log = LossLog()
    add_step(log, 3, [(1.0, 2.0), (0.5, 4.0)])
    add_step(log, 0, [(2.0, 0.0)])
    add_step(log, 1, [(4.0, 3.0)])
    assert log.pop(ALONE) == pytest.approx({"loss_cls": 7.5 / 3, "loss_mlm": 9.0 / 2})


def test_a_name_that_no_step_has_a_mean_for_is_left_out():
    log = LossLog()
    add_step(log, 0, [(2.0, 0.0), (1.0, 0.0)])
    assert log.pop(ALONE) == pytest.approx({"loss_cls": 3.0})
    add_step(log, 2, [(1.0, 5.0)])  # nothing is left of the line before
    assert log.pop(ALONE) == pytest.approx({"loss_cls": 1.0, "loss_mlm": 5.0})
    assert log.all_names == {"loss_cls", "loss_mlm"}
