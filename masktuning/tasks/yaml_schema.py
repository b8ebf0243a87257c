"""YAML files checked against dataclasses; every error names the line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from masktuning.config.errors import UsageError, check_names
from masktuning.config.parser import compose_yaml, mapping_of

_NAMES: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a mapping",
    list: "a list",
}
_SCALARS: dict[Any, tuple[type, ...]] = {
    # YAML reads `no` as false and `010` as 8, so labels that look like these need quotes.
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (int, float),
}


class Document:
    """A YAML file's content, and the line of each key.

    Raises:
        UsageError: if the file is missing or not valid YAML, or gives a key twice.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        node = compose_yaml(path)  # raises for a missing file and for broken YAML
        self._lines = {} if node is None else dict(_lines(node, ()))
        self.content = mapping_of(path, node)  # after the lines, since it merges `<<` keys
        duplicates = [path for path, line in self._lines.items() if line < 0]
        if duplicates:
            raise self.error(duplicates[0], f"{duplicates[0][-1]!r} is given twice")

    def error(self, path: tuple[str, ...], message: str) -> UsageError:
        """A UsageError about the key at `path`, with its line or that of the nearest key above."""
        known = next((path[:i] for i in range(len(path), 0, -1) if path[:i] in self._lines), ())
        line = abs(self._lines.get(known, 1))
        return UsageError(f"{self.name}, line {line}: {message}")

    def fit(self, path: tuple[str, ...], content: Any, shape: type, **given: Any) -> Any:
        """An instance of the dataclass `shape`: the mapping `content` at `path`, and `given`.

        Raises:
            UsageError: on an unknown key, a missing key, or a value of another type.
        """
        if not isinstance(content, dict):
            raise self.error(
                path, f"{path[-1] if path else 'the file'} must be a mapping of names to values"
            )
        hints = get_type_hints(shape)
        wanted = {f.name: f for f in fields(shape) if f.name not in given}
        for key in content:
            try:
                check_names([key], set(wanted), "key")
            except UsageError as error:
                raise self.error((*path, str(key)), str(error)) from None
        for name, field in wanted.items():
            needed = field.default is MISSING and field.default_factory is MISSING
            if needed and content.get(name) in (None, "", [], {}):
                raise self.error(path, f"{name!r} is missing")
        values = {
            key: self._value((*path, key), value, hints[key])
            for key, value in content.items()
            if value is not None
        }
        return shape(**given, **values)

    def _value(self, path: tuple[str, ...], value: Any, hint: Any) -> Any:
        """`value` checked against a type hint: a list or a mapping of scalars, or a scalar."""
        kind, parts = get_origin(hint) or hint, get_args(hint)
        if kind is Any:
            return value
        if kind is list:
            self._check_kind(path, value, list)
            return [self._value(path, item, parts[0]) for item in value]
        if kind is dict:
            self._check_kind(path, value, dict)
            return {
                self._value((*path, str(k)), k, str): self._value((*path, str(k)), v, parts[1])
                for k, v in value.items()
            }
        wrong = not isinstance(value, _SCALARS[kind])
        if wrong or (isinstance(value, bool) and kind is not bool):
            quotes = kind is str and not isinstance(value, list | dict)
            hint = "; put it in quotes" if quotes else ""
            raise self.error(path, f"{path[-1]} must be {_NAMES[kind]}, not {value!r}{hint}")
        return kind(value)

    def _check_kind(self, path: tuple[str, ...], value: Any, kind: type) -> None:
        if not isinstance(value, kind):
            raise self.error(path, f"{path[-1]} must be {_NAMES[kind]}, not {value!r}")


def _lines(node: yaml.Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Each key's path and its line, from 1; the line is negative if the mapping repeats the key."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        place = (*path, str(key.value))
        line = key.start_mark.line + 1
        yield place, -line if place in seen else line
        seen.add(place)
        yield from _lines(value, place)
