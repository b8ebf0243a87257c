"""The exception for errors that a user can fix, and helpers that word them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_FEW = 8  # names that a message can list


class UsageError(Exception):
    """Something the user gave cannot be used; the message says what and how to fix it."""


def one_line(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_names(names: Iterable[str], known: set[str], kind: str) -> None:
    """Raises UsageError for the first of `names` that is not in `known`.

    The message has the nearest known name, or all of them if none is near and they are few.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=1)
            few = f"; give one of {', '.join(sorted(known))}" if 0 < len(known) <= _FEW else ""
            hint = f"; did you mean {near[0]!r}?" if near else few
            raise UsageError(f"unknown {kind} {name!r}{hint}")
