"""Which parts a run has (training, evaluation, prediction), and how its best model is found.

The flags are run_glue's and Trainer's own; here are the defaults that make them work together.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments

logger = logging.getLogger(__name__)

# Options whose values decide the defaults of others.
CHOICES = (
    "do_train",
    "do_eval",
    "do_predict",
    "load_best_model_at_end",
    "early_stopping_patience",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
)
_TRUE = ("true", "t", "yes", "y", "1")
_SAID = ("_strategy", "_steps", "_at_end")  # the ends of the names of defaults that are told


class Given:
    """What flags, YAML file and task say about `CHOICES`, before anything is parsed."""

    def __init__(self, settings: Mapping[str, Any], flags: Namespace) -> None:
        named = {name: getattr(flags, name) for name in CHOICES}
        self.values = {name: settings.get(name) for name in CHOICES}
        self.values |= {name: value for name, value in named.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return self.values[name] is not None

    def __getitem__(self, name: str) -> str:
        return str(self.values[name]).lower()

    def says(self, name: str, default: bool) -> bool:
        """A choice of yes or no."""
        return self[name] in _TRUE if name in self else default

    @property
    def trains(self) -> bool:
        """Whether the run trains, which it does unless told otherwise."""
        return self.says("do_train", True)

    @property
    def keeps_best(self) -> bool:
        """Whether the best model is loaded at the end; stopping early implies it."""
        return self.says("load_best_model_at_end", "early_stopping_patience" in self)


def matching_defaults(given: Given, usual: Mapping[str, Any], say: bool = True) -> dict[str, Any]:
    """The defaults that follow from what is given.

    The best model can only be one that was both evaluated and saved, so evaluations and checkpoints
    come at the same steps: those of whichever strategy is given, and else after every epoch.

    Args:
        given: what flags, file and task say.
        usual: the defaults of the command.
        say: whether to say in a line what was chosen.

    Raises:
        UsageError: for choices that exclude each other.
    """
    found: dict[str, Any] = {}
    if not given.says("do_eval", True):
        if given.keeps_best or ("eval_strategy" in given and given["eval_strategy"] != "no"):
            raise UsageError(
                "--do_eval false leaves out every evaluation: leave out --eval_strategy, "
                "--load_best_model_at_end and --early_stopping_patience too"
            )
        found["eval_strategy"] = "no"
    if "early_stopping_patience" in given:
        if given["eval_strategy"] == "no":
            raise UsageError("--early_stopping_patience needs --eval_strategy epoch or steps")
        found["restore_callback_states_from_checkpoint"] = True  # it counts on after a resume
        found.setdefault("load_best_model_at_end", given.keeps_best)
    if given.keeps_best:
        found |= _matching_steps(given, usual)
        if say:
            chosen = {name: value for name, value in found.items() if name.endswith(_SAID)}
            listed = " ".join(f"--{name} {value}" for name, value in chosen.items())
            if listed:
                logger.warning("to find the best model, chosen by default: %s", listed)
    return found


def _matching_steps(given: Given, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Strategies, and numbers of steps, of evaluation and checkpoints that match."""
    evaluation, saving = given["eval_strategy"], given["save_strategy"]
    for name, value in (("eval_strategy", evaluation), ("save_strategy", saving)):
        if value == "no":
            raise UsageError(f"--load_best_model_at_end needs --{name} epoch or steps")
    by_steps = "eval_steps" in given or "save_steps" in given
    if "eval_strategy" not in given:
        known = saving if saving in ("epoch", "steps") else "steps" if by_steps else "epoch"
        evaluation = known
    if "save_strategy" not in given:
        saving = evaluation
    found = {"eval_strategy": evaluation, "save_strategy": saving}
    if (evaluation, saving) == ("steps", "steps"):
        steps = next((given[n] for n in ("save_steps", "eval_steps") if n in given), None)
        steps = steps or str(usual["save_steps"])
        found |= {"eval_steps": steps, "save_steps": steps}
    return {name: value for name, value in found.items() if name not in given}


def take_up(given: Given, training: Any, data: DataArguments) -> None:
    """Sets do_train and do_eval as the command means them: both happen unless told otherwise.

    Raises:
        UsageError: if nothing is left to do, or a flag would have no effect.
    """
    training.do_train = given.trains
    training.do_eval = given.says("do_eval", True)
    if data.test_file and not training.do_predict:
        raise UsageError("--test_file goes with --do_predict, which predicts its labels")
    if training.do_predict and not (data.test_file or data.dataset_name):
        raise UsageError("--do_predict needs --test_file: the texts to predict labels for")
    if not (training.do_train or training.do_eval or training.do_predict):
        raise UsageError("nothing is left to do: --do_train, --do_eval and --do_predict are off")


def upload_at_the_end(training: Any, chosen: set[str]) -> None:
    """Makes `--push_to_hub` upload at the end only; raises UsageError for another strategy.

    Trainer would upload the whole folder of the run while it trains, with training texts in
    perturbations.jsonl and with this machine's paths in config.yaml.
    """
    if not training.push_to_hub:
        return
    if "hub_strategy" in chosen and training.hub_strategy != "end":
        raise UsageError(
            f"--hub_strategy {training.hub_strategy.value} does not go with this command, which "
            "uploads a run when it is complete: leave it out"
        )
    training.hub_strategy = type(training.hub_strategy)("end")
