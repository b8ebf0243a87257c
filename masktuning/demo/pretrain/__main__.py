"""Pretrain a small BERT as a masked LM on your own text, as the demo's checkpoint was.

    python -m masktuning.demo.pretrain --corpus reviews.txt wikipedia.txt.gz --output_dir out
    python -m masktuning.demo.pretrain --corpus FILE... --output_dir out --max_steps 20000
    torchrun --nproc_per_node 2 -m masktuning.demo.pretrain --corpus FILE... --output_dir out

A corpus file holds one document per line, and is gzipped if its name ends in .gz. A run that was
stopped is resumed by the same command; only --max_steps and the intervals of logging, evaluation
and saving may then differ. The learning rate rises over --warmup_steps, stays constant, and falls
to 0 over the last --decay_share of the steps. Masked tokens are shown as [MASK] (or by BERT's
80/10/10 rule), and every epoch masks other tokens. With torchrun the processes share each batch,
and each has a GPU or a core of its own.

In the end --output_dir holds an ordinary BertForMaskedLM with its tokenizer, and metrics.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.config.parser import build_parser, parse, run_command, wants_help

PROGRAM = "python -m masktuning.demo.pretrain"


@dataclass
class PretrainingArguments:
    """The data, the size of the model, and the length of the training."""

    _argument_group_name = "pretraining"

    corpus: list[str] = field(
        default_factory=list, metadata={"help": "Text files with one document per line."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for everything that is written.", "aliases": ["--output"]},
    )
    overwrite: bool = field(default=False, metadata={"help": "Start again instead of resuming."})
    held_out_share: float = field(
        default=0.01, metadata={"help": "Share of the documents kept for evaluation."}
    )
    vocab_size: int = field(
        default=8192, metadata={"help": "Size of the WordPiece vocabulary, at most 65536."}
    )
    hidden_size: int = field(default=160, metadata={"help": "Width of the layers."})
    num_layers: int = field(default=4, metadata={"help": "Number of layers."})
    num_heads: int = field(default=5, metadata={"help": "Attention heads per layer."})
    max_length: int = field(default=128, metadata={"help": "Tokens per window, and positions."})
    batch_size: int = field(default=32, metadata={"help": "Windows per step."})
    max_steps: int = field(default=14000, metadata={"help": "Optimiser steps."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate of AdamW."})
    warmup_steps: int = field(
        default=200, metadata={"help": "Steps until the learning rate is reached."}
    )
    decay_share: float = field(
        default=0.4, metadata={"help": "Share of the steps in which the learning rate falls."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of matrices."})
    mask_rate: float = field(default=0.15, metadata={"help": "Share of a window's tokens masked."})
    corruption: str = field(
        default="mask",
        metadata={
            "help": "How training shows masked tokens: as [MASK], or by BERT's 80/10/10 rule.",
            "choices": ["mask", "80-10-10"],
        },
    )
    precision: str = field(
        default="bf16",
        metadata={"help": "bf16 autocast, or float32 everywhere.", "choices": ["bf16", "fp32"]},
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and masks."})
    logging_steps: int = field(default=100, metadata={"help": "Steps between lines of the log."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between evaluations."})
    save_steps: int = field(default=500, metadata={"help": "Steps between states to resume from."})

    def check(self) -> None:
        """Raises UsageError on an option out of range, naming it."""
        if not self.corpus:
            raise UsageError(
                "--corpus is missing: one or more text files with one document per line"
            )
        if not self.output_dir:
            raise UsageError("--output_dir is missing: the folder for everything that is written")
        if Path(self.output_dir).is_file():
            raise UsageError(f"{self.output_dir}: is a file; give a folder")
        for name in ("mask_rate", "held_out_share", "decay_share"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"--{name} must lie between 0 and 1, not {getattr(self, name)}")
        whole = "num_layers batch_size max_steps warmup_steps logging_steps eval_steps save_steps"
        for name in whole.split():
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("seed", "weight_decay"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} must be 0 or more, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise UsageError(f"--learning_rate must be above 0, not {self.learning_rate}")
        if not 8 <= self.vocab_size <= 2**16:
            raise UsageError(f"--vocab_size must be 8 to 65536, not {self.vocab_size}")
        if self.max_length < 8:
            raise UsageError(f"--max_length must be 8 or more, not {self.max_length}")
        if self.num_heads < 1 or self.hidden_size < 1 or self.hidden_size % self.num_heads:
            raise UsageError(
                f"--hidden_size {self.hidden_size} must be a multiple of --num_heads "
                f"{self.num_heads}"
            )


def main(argv: list[str]) -> None:
    parser = build_parser(PROGRAM, __doc__ or "", [PretrainingArguments])
    if wants_help(argv):
        parser.print_help()
        return
    (arguments,) = parse(parser, argv, {})
    arguments.check()
    from masktuning.demo.pretrain.corpus import check_files
    from masktuning.demo.pretrain.loop import pretrain

    check_files(arguments.corpus)
    pretrain(arguments)


if __name__ == "__main__":
    run_command(main)
