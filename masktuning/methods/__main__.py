"""List the training methods, or write the page of the documentation that describes them.

python -m masktuning.methods
python -m masktuning.methods page --costs benchmarks/results/methods_cpu.json
"""

from __future__ import annotations

from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.config.imports import heavy_imports
from masktuning.config.parser import FlagParser, run_command, wants_help

PROGRAM = "python -m masktuning.methods"


def main(argv: list[str]) -> None:
    """Prints what the flags say; see the top of this file."""
    parser = FlagParser(PROGRAM, __doc__ or "")
    parser.add_argument("action", nargs="?", choices=["list", "page"], default="list")
    parser.add_argument("--costs", type=Path, help="times and memory that were measured, as JSON")
    if wants_help(argv):
        parser.print_help()
        return
    options = parser.parse_args(argv)
    if options.costs is not None and not options.costs.is_file():
        raise UsageError(f"{options.costs}: no such file")
    with heavy_imports():
        from masktuning.methods.page import listing, page

    print(listing() if options.action == "list" else page(options.costs), end="\n")


if __name__ == "__main__":
    run_command(main)
