"""Numbers and durations in words."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """A number with its noun, as "1 run" or "3 runs"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def in_words(seconds: float | None) -> str:
    """Seconds as "40 s", "12 min" or "3 h 05 min"; None is an unknown time."""
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
