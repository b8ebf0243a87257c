"""The options of Mask-tuning's perturbation strategies, with their ranges."""

from __future__ import annotations

from dataclasses import dataclass, field

STRATEGIES = ("mlm", "random", "ssmba")


@dataclass
class PerturbationOptions:
    """Which texts Mask-tuning classifies in place of the original ones."""

    perturbation: str = field(
        default="mlm",
        metadata={
            "help": "What replaces tokens: mlm, the masked LM's predictions, as in the paper; "
            "random, tokens drawn uniformly from the vocabulary, which is a control; "
            "ssmba, walks of the starting model's masked LM, drawn before training.",
            "choices": [*STRATEGIES],
        },
    )

    ssmba_samples: int = field(
        default=4,
        metadata={"help": "Versions of each text with ssmba; epoch e uses version e mod n."},
    )
    ssmba_rate: float = field(
        default=0.15, metadata={"help": "Share of a text's tokens that each try of ssmba corrupts."}
    )
    ssmba_top_k: int = field(
        default=10,
        metadata={"help": "ssmba draws among the k most likely tokens; 0 draws among all."},
    )

    def check_perturbation(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        if self.perturbation not in STRATEGIES:
            raise ValueError(f"perturbation is {self.perturbation}: give {' or '.join(STRATEGIES)}")
        if self.ssmba_samples < 1:
            raise ValueError(f"ssmba_samples is {self.ssmba_samples}: give 1 or more")
        if not 0 < self.ssmba_rate <= 1:
            raise ValueError(f"ssmba_rate is {self.ssmba_rate}: give a share above 0, up to 1")
        if not 0 <= self.ssmba_top_k <= 64:
            raise ValueError(f"ssmba_top_k is {self.ssmba_top_k}: give a number from 0 to 64")
