"""The commands of masktuning, by name; without a name they are listed.

    masktuning train --task sst2 --model_name_or_path roberta-base
    python -m masktuning train --task sst2 --model_name_or_path roberta-base
    python -m masktuning.train --task sst2 --model_name_or_path roberta-base

The three lines do the same. `masktuning COMMAND --help` shows the flags of a command.
"""

from __future__ import annotations

import runpy
import sys

from masktuning.config.errors import UsageError, check_names
from masktuning.config.parser import wants_help
from masktuning.config.version import __version__

COMMANDS = {
    "train": "train a classifier and measure it in and out of distribution",
    "compare": "compare methods over seeds: which holds up, by how much, at what cost",
    "evaluate": "measure any classifier checkpoint on a task's sets or on files of your own",
    "predict": "predict the labels of a file of texts of any size",
    "reproduce": "rebuild the tables of two papers next to the papers' figures",
    "export": "write a classifier as an ONNX file",
    "tasks": "list the tasks, check their files, count their texts",
    "methods": "list the training methods, and when to choose which",
    "info": "show versions, GPUs and back ends",
}


def main(argv: list[str]) -> None:
    """Runs the command that the first word names, with the other words as its flags."""
    if not argv or (argv[0].startswith("-") and wants_help(argv)):
        print(f"masktuning {__version__}: fine-tune text classifiers with Mask-tuning\n")
        for name, purpose in COMMANDS.items():
            print(f"  masktuning {name:10}{purpose}")
        print("\nmasktuning COMMAND --help shows the flags of a command.")
        return
    name, *flags = argv
    if name.startswith("-"):
        raise UsageError(f"a command comes first, then its flags: masktuning train {name} ...")
    check_names([name], set(COMMANDS), "command")
    sys.argv = [f"masktuning {name}", *flags]
    runpy.run_module(f"masktuning.{name}", run_name="__main__", alter_sys=False)


def console_script() -> None:
    """What the installed program `masktuning` runs; usage errors have exit code 2."""
    # Not run_command: the command that is run calls it, and would print each warning twice.
    try:
        main(sys.argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    console_script()
