"""Flags of run_glue.py and of earlier Trainers in the names that the commands know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.parser import FlagParser
from masktuning.config.run_glue import ALWAYS_TRUE

_RATIO, _STEPS = "warmup_ratio", "warmup_steps"
_BOOLEANS = dict.fromkeys(("true", "t", "yes", "y", "1"), True)
_BOOLEANS |= dict.fromkeys(("false", "f", "no", "n", "0"), False)


def translated(
    argv: Sequence[str], file: Mapping[str, Any], known: set[str]
) -> tuple[list[str], dict[str, Any]]:
    """The flags and the file of options, both in the names that the command knows.

    Args:
        argv: the words of the command line, with underscores in the flags.
        file: the options of the YAML file.
        known: the names of the command's flags.

    Raises:
        UsageError: where an option asks for what is not possible.
    """
    parser = FlagParser()
    for name in ALWAYS_TRUE.keys() - known:
        parser.add_argument(f"--{name}", nargs="?", const="true")
        parser.add_argument(f"--no_{name}", dest=name, action="store_const", const="false")
    ratio_is_old = _STEPS in known and _RATIO not in known
    if ratio_is_old:
        parser.add_argument(f"--{_RATIO}")
    found, rest = parser.parse_known_args(argv)
    flags = {name: value for name, value in vars(found).items() if value is not None}
    rest_of_file = {name: v for name, v in file.items() if not hasattr(found, str(name))}
    for name, value in {**file, **flags}.items():
        if name in ALWAYS_TRUE and name not in known:
            _check_true(name, value)
    if ratio_is_old and _RATIO in flags:
        _check_alone(any(word.split("=")[0] == f"--{_STEPS}" for word in rest))
        rest += [f"--{_STEPS}", _ratio(flags[_RATIO])]
    elif ratio_is_old and file.get(_RATIO) is not None:
        _check_alone(_STEPS in file)
        rest_of_file[_STEPS] = _ratio(file[_RATIO])
    return rest, rest_of_file


def _check_true(name: str, value: Any) -> None:
    wanted = _BOOLEANS.get(str(value).lower())
    if wanted is None:
        raise UsageError(f"--{name}: {value!r} is neither true nor false")
    if not wanted:
        raise UsageError(f"--{name} cannot be false: {ALWAYS_TRUE[name]}")


def _check_alone(has_steps: bool) -> None:
    if has_steps:
        raise UsageError(f"--{_RATIO} and --{_STEPS} exclude each other: give one")


def _ratio(value: Any) -> str:
    """The ratio as a value of --warmup_steps, where a number below 1 is a share of the steps."""
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"--{_RATIO} is {value}: give 0 or more, below 1")
    return str(share)
