"""The options of Mask-tuning, with their ranges."""

from __future__ import annotations

from dataclasses import dataclass, field

from masktuning.methods.alpha_schedule import CONSTANT, SCHEDULES
from masktuning.methods.masks import BY_PROBABILITY, POLICIES, RANDOM
from masktuning.methods.perturbations.options import StrategyOptions

AUTO = "auto"  # the alpha that follows the gradients


@dataclass
class TermOptions:
    """Mask-tuning's two terms and its masks."""

    alpha: float | str = field(
        default=AUTO,
        metadata={
            "help": "Weight of the masked-LM loss, 0 to 1; 1 - alpha weighs the classifier. auto "
            "keeps the masked-LM gradient a tenth as large as the classifier's."
        },
    )
    alpha_schedule: str = field(
        default=CONSTANT,
        metadata={
            "help": "How a numeric alpha changes over the run: linear and cosine let it fall to 0, "
            "warmup lets it rise from 0 over the first tenth.",
            "choices": [*SCHEDULES],
        },
    )
    mask_rate: float = field(
        default=0.05,
        metadata={"help": "Share of each example's tokens to mask; see min_per_example."},
    )
    min_per_example: int = field(
        default=0,
        metadata={
            "help": "At least so many tokens of each example are masked. With 0, short texts of "
            "which mask_rate is less than half a token stay as they are."
        },
    )
    mask_policy: str = field(
        default=RANDOM,
        metadata={
            "help": "Which tokens are masked. random: any, as in the paper; spare leaves out "
            "tokens that are associated with a label, aim masks only those, both where a text has "
            "enough of them, and else any; bernoulli masks each "
            "token with probability mask_rate; whole_word masks whole words; keywords masks only "
            "the 10 tokens most typical of each label, by tf-idf; keywords_attention finds these "
            "by the attention of a fine-tuned classifier, which is trained first; l3 masks "
            "tokens the more often the less likely the model finds them before training.",
            "choices": [*POLICIES],
        },
    )
    gate: str = field(
        default="none",
        metadata={
            "help": "label trains on a perturbed text only where the classifier still gives it its "
            "label, and on the original text elsewhere. Costs one more forward pass: of the "
            "changed texts on a CPU, of all texts on a GPU or under FSDP.",
            "choices": ["none", "label"],
        },
    )
    corruption: str = field(
        default="mask",
        metadata={
            "help": "What a masked token shows: always the mask token, or BERT's 80/10/10.",
            "choices": ["mask", "80-10-10"],
        },
    )
    top_k: int = field(
        default=1,
        metadata={"help": "1 substitutes the most likely token, k draws among the k most likely."},
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Divides the logits of that draw; used only with --top_k above 1."},
    )
    include_original: bool = field(
        default=False,
        metadata={"help": "Classify the original text too, with the weight of the perturbed one."},
    )

    def check_terms(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        if self.alpha != AUTO:
            self.alpha = _number(self.alpha)
        if isinstance(self.alpha, float) and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: give a number from 0 to 1, or auto")
        if self.alpha_schedule not in SCHEDULES:
            raise ValueError(
                f"alpha_schedule is {self.alpha_schedule}: give {' or '.join(SCHEDULES)}"
            )
        if self.alpha_schedule != CONSTANT and self.alpha == AUTO:
            raise ValueError(
                f"alpha_schedule is {self.alpha_schedule} and alpha is auto, which follows the "
                "gradients: give alpha as a number from 0 to 1"
            )
        if self.mask_policy not in POLICIES:
            raise ValueError(f"mask_policy is {self.mask_policy}: give {' or '.join(POLICIES)}")
        if self.gate not in ("none", "label"):
            raise ValueError(f"gate is {self.gate}: give none or label")
        if self.gate == "label" and self.alpha == 1 and self.alpha_schedule == CONSTANT:
            raise ValueError(
                "gate is label and alpha is 1: with that alpha the classifier is not trained, so "
                "its labels mean nothing"
            )
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate is {self.mask_rate}: give a share above 0, up to 1")
        if self.min_per_example < 0:
            raise ValueError(f"min_per_example is {self.min_per_example}: give 0 or more")
        if self.min_per_example and self.mask_policy in BY_PROBABILITY:
            raise ValueError(
                f"min_per_example is {self.min_per_example} and mask_policy is {self.mask_policy}, "
                "which masks by probability and ensures no number of tokens: give 0"
            )
        if not 1 <= self.top_k <= 64:
            raise ValueError(f"top_k is {self.top_k}: give a number from 1 to 64")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}: give a number above 0")


@dataclass
class MaskTuningOptions(StrategyOptions, TermOptions):  # fields of the last base come first
    """The options of Mask-tuning."""

    _argument_group_name = "mask_tuning"

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        self.check_terms()
        self.check_perturbation()


def _number(alpha: float | str) -> float:
    """Alpha as a number; a hyper-parameter search makes a string of it where `auto` was before."""
    try:
        if not isinstance(alpha, bool):
            return float(alpha)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"alpha is {alpha}: give a number from 0 to 1, or auto")
