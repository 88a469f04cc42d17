"""Puts numbers and names into words, one way for all sentences."""

from collections.abc import Sequence

SHOWN = 3  # names that a sentence shows


def count(number: int, noun: str) -> str:
    """As in "1 cell" and "2 cells"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def out_of(number: int, total: int, noun: str) -> str:
    """As in "3 of 27 cells"; of one in all, "the one cell"."""
    return f"the one {noun}" if number == total == 1 else f"{number} of {count(total, noun)}"


def joined(words: Sequence[str]) -> str:
    """As in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def some(names: Sequence[str], most: int = SHOWN) -> str:
    """As in "a, b, c and 4 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
