"""The YAML or JSON file of options that a command reads with `--config`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments, ModelArguments, RunArguments
from masktuning.config.parser import read_yaml, strategies_in_words

_ALIASES = {
    alias.removeprefix("--"): option.name
    for group in (ModelArguments, DataArguments, RunArguments)
    for option in fields(group)
    for alias in option.metadata.get("aliases", ())
}


def read_options(path: str | Path) -> dict[str, Any]:
    """The options in a file by their names here: run_glue's `task_name` is `task`.

    Raises:
        UsageError: for a file that cannot be read, and for an option that is in it twice.
    """
    options: dict[str, Any] = {}
    for key, value in strategies_in_words(read_yaml(path)).items():
        name = _ALIASES.get(key, key)
        if name in options:
            raise UsageError(f"{path}: {key} and {name} are the same option: give one of them")
        options[name] = value
    return options
