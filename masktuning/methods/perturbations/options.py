"""The options of Mask-tuning's perturbation strategies, with their ranges."""

from __future__ import annotations

from dataclasses import dataclass, field

STRATEGIES = ("mlm", "random", "ssmba", "bae", "clare")


@dataclass
class StrategyOptions:
    """Which texts Mask-tuning classifies in place of the original ones."""

    perturbation: str = field(
        default="mlm",
        metadata={
            "help": "What replaces tokens: mlm, the masked LM's predictions, as in the paper; "
            "random, tokens drawn uniformly from the vocabulary, which is a control; "
            "ssmba, walks of the starting model's masked LM, drawn before training; "
            "bae and clare, edits of words that make a fine-tuned classifier err, before training.",
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

    max_edits: int = field(
        default=3, metadata={"help": "At most so many edits of each text with bae and clare."}
    )
    perturbed_examples: int = field(
        default=0,
        metadata={
            "help": "bae and clare edit only so many training texts, at equal distances, and "
            "leave the others as they are; 0 edits all."
        },
    )
    similarity: float | None = field(
        default=None,
        metadata={
            "help": "Least cosine similarity of an edited text to the original one; without it 0.8 "
            "with bae and 0.7 with clare."
        },
    )
    pos_filter: str = field(
        default="nltk",
        metadata={
            "help": "nltk keeps the part of speech of replaced words with bae, and merges only "
            "into nouns with clare; off does without (no package, no data).",
            "choices": ["nltk", "off"],
        },
    )
    bae_actions: str = field(
        default="both",
        metadata={
            "help": "Whether bae may replace words, insert words, or both.",
            "choices": ["replace", "insert", "both"],
        },
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
        for name, least in (("max_edits", 1), ("perturbed_examples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: give {least} or more")
        if self.similarity is not None and not -1 <= self.similarity <= 1:
            raise ValueError(f"similarity is {self.similarity}: give a number from -1 to 1")
        if self.pos_filter not in ("nltk", "off"):
            raise ValueError(f"pos_filter is {self.pos_filter}: give nltk or off")
        if self.bae_actions not in ("replace", "insert", "both"):
            raise ValueError(f"bae_actions is {self.bae_actions}: give replace, insert or both")
