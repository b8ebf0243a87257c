"""Flags, the YAML file of options and defaults; usage errors are one sentence and exit code 2."""

from __future__ import annotations

import json
import logging
import sys
from argparse import (
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    ArgumentTypeError,
    RawDescriptionHelpFormatter,
)
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.constructor import SafeConstructor

from masktuning.config.errors import UsageError, check_names, one_line
from masktuning.config.run_glue import refuse


def build_parser(
    program: str | None, description: str, dataclasses: Sequence[type], epilog: str = ""
) -> Any:
    """An HfArgumentParser for dataclasses, whose usage errors are raised as UsageError."""
    from transformers.hf_argparser import HfArgumentParser

    class Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
        pass

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(message)

    groups: Any = dataclasses
    parser = Parser(
        groups,
        prog=program,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=Formatter,
    )
    for action in parser._actions:
        if action.type is float and action.default == "auto":  # HfArgumentParser forgets `| str`
            action.type = _number_or_auto
    return parser


def _number_or_auto(text: str) -> float | str:
    """The value of a flag that takes a number or the word auto."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise ArgumentTypeError(f"give a number or auto, not {text!r}") from None


class FlagParser(ArgumentParser):
    """A parser of a few flags, whose usage errors are raised as UsageError."""

    def __init__(self, program: str | None = None, description: str = "") -> None:
        super().__init__(
            prog=program,
            description=description,
            formatter_class=RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(parser: Any, argv: Sequence[str], defaults: dict[str, Any]) -> tuple[Any, ...]:
    """The dataclasses of the flags `argv`, with `defaults` for the flags that are not given.

    Raises:
        UsageError: on an unknown flag or key, with the nearest known one; on a bad value.
    """
    known = known_names(parser)
    refuse(defaults, known)
    check_names(defaults, known, "option")
    if opposite := sorted(defaults.keys() - {action.dest for action in parser._actions}):
        name = opposite[0].removeprefix("no_")
        raise UsageError(f"{opposite[0]} is a flag only; as an option, give {name}: false")
    defaults = {name: value for name, value in defaults.items() if value is not None}
    for action in parser._actions:  # argparse checks choices and types of flags, not of defaults
        if action.dest in defaults:
            defaults[action.dest] = _as_flag(action, defaults[action.dest])
    parser.set_defaults(**defaults)
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            underscored(argv), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        raise UsageError(one_line(error)) from None  # a dataclass checked its own values
    if unknown:
        flags = [word.split("=")[0] for word in unknown if word.startswith("-")]
        if not flags:
            file = unknown[0].endswith((".json", ".yaml", ".yml"))
            hint = f"; give a file of options as --config {unknown[0]}" if file else ""
            raise UsageError(f"unexpected argument {unknown[0]!r}{hint}")
        names = [flag.lstrip("-") for flag in flags]
        refuse(names, known)
        check_names(names, known, "flag")
        raise UsageError(f"unknown flag {flags[0]}")
    return tuple(parsed)


def _as_flag(action: Any, value: Any) -> Any:
    """A YAML value in the form of the flag, so that it passes through the flag's own checks."""
    if action.choices is not None and value not in action.choices:
        raise UsageError(
            f"{action.dest}: {value!r} is none of {', '.join(map(str, action.choices))}"
        )
    if isinstance(value, dict):
        return json.dumps(value)
    several = action.nargs in ("+", "*")
    if several:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, list):
        if len(value) != 1:
            raise UsageError(f"{action.dest}: takes one value, not the list {value}")
        value = value[0]
    return str(value)


def wants_help(argv: Sequence[str]) -> bool:
    """Whether the flags ask for the help of a command."""
    return "-h" in argv or "--help" in argv


def known_names(parser: Any) -> set[str]:
    """The names of all flags of a parser, without dashes."""
    flags = {s.lstrip("-") for action in parser._actions for s in action.option_strings}
    return flags - {"h", "help"}


def underscored(argv: Sequence[str]) -> list[str]:
    """The flags with underscores, as in the dataclasses; HfArgumentParser accepts dashes too."""
    words = []
    for word in argv:
        flag, equals, value = word.partition("=")
        words.append(
            flag.replace("-", "_").replace("__", "--", 1) + equals + value
            if flag.startswith("--")
            else word
        )
    return words


def run_command(main: Any) -> NoReturn:
    """Runs a command's main(argv): usage errors are one sentence and exit code 2, Ctrl-C is 130."""
    logging.getLogger("masktuning").addHandler(logging.StreamHandler())
    try:
        main(sys.argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def compose_yaml(path: str | Path) -> yaml.Node | None:
    """The parsed content of a YAML file, with the line of everything; None if it is empty.

    Raises:
        UsageError: naming the file, and the line where it is not valid.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    with _yaml_errors(path):
        node: yaml.Node | None = yaml.compose(
            path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader
        )
    return node


def mapping_of(path: str | Path, node: yaml.Node | None) -> dict[str, Any]:
    """What a file that `compose_yaml` parsed says, as a mapping. It may alter the node.

    Raises:
        UsageError: naming the file, if it holds something other than a mapping.
    """
    if node is None:
        return {}
    with _yaml_errors(path):
        content = SafeConstructor().construct_document(node)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a mapping of names to values")
    return content


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A mapping from a YAML file; raises as `compose_yaml` and `mapping_of` do."""
    return mapping_of(path, compose_yaml(path))


def strategies_in_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with "no" instead of false for strategies: YAML reads a bare `no` as false."""
    return {
        name: "no" if value is False and name.endswith("_strategy") else value
        for name, value in options.items()
    }


@contextmanager
def _yaml_errors(path: str | Path) -> Iterator[None]:
    """Raises UsageError for what is not valid within it, naming the file and the line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', '')}") from None
