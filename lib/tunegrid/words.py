"""Formats counts, lists of names and differing texts for use in sentences."""

from collections.abc import Sequence
from typing import Any

NAMED = 3  # names that a sentence shows
CONTEXT = 20  # characters shown before and after a difference


def count(number: int, noun: str) -> str:
    """Format a count, as in "1 cell" or "2 cells"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def count_text(number: int, total: int, noun: str) -> str:
    """Format a part of a total: "3 of 27 cells", "all 27 cells", "both cells" or "the one cell"."""
    if number == total == 1:
        return f"the one {noun}"
    if number == total == 2:
        return f"both {noun}s"
    if number == total:
        return f"all {count(total, noun)}"
    return f"{number} of {count(total, noun)}"


def phrase(words: Sequence[str]) -> str:
    """Join words, as in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def some(names: Sequence[str], most: int = NAMED) -> str:
    """Name the first few and count the rest, as in "a, b, c and 4 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shorten(line: str, width: int) -> str:
    """Cut a line that is longer than `width`; the result ends with three dots."""
    return line if len(line) <= width else f"{line[: max(0, width - 3)]}..."


def contrast(text: str, expected: str) -> str:
    """Show where two texts first differ, as in "'... a cat' in place of '... a car'"."""
    shared = first_difference(text, expected)
    start = max(0, shared - CONTEXT)
    end = shared + CONTEXT
    lead = "..." if start else ""
    excerpts = []
    for whole in (text, expected):
        excerpts.append(repr(lead + whole[start:end] + ("..." if len(whole) > end else "")))
    return f"{excerpts[0]} in place of {excerpts[1]}"


def first_difference(items: Sequence[Any], others: Sequence[Any]) -> int:
    """The first index at which two sequences differ, or the length of the shorter sequence."""
    for i in range(min(len(items), len(others))):
        if items[i] != others[i]:
            return i
    return min(len(items), len(others))
