"""Durations in words."""

from __future__ import annotations


def in_words(seconds: float | None) -> str:
    """Seconds as "40 s", "12 min" or "3 h 05 min"; None is an unknown time."""
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
