"""Words of sentences that are written from numbers."""

from __future__ import annotations

from collections.abc import Iterable


def count(number: int | None, noun: str) -> str:
    """`1 image`, `1,200 images`, or a word for an unknown number."""
    if number is None:
        return f"an unknown number of {noun}s"
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listing(items: Iterable[object]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
