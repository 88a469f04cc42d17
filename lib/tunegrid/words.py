"""Words of sentences: counts and lists of names."""

from collections.abc import Sequence

NAMED = 3  # names that a sentence shows
CONTEXT = 20  # characters before and behind a difference


def count(number: int, noun: str) -> str:
    """As in "1 cell" and "2 cells"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def count_text(number: int, total: int, noun: str) -> str:
    """As in "3 of 27 cells", "all 27 cells", "both cells" and "the one cell"."""
    if number == total == 1:
        return f"the one {noun}"
    if number == total == 2:
        return f"both {noun}s"
    if number == total:
        return f"all {count(total, noun)}"
    return f"{number} of {count(total, noun)}"


def phrase(words: Sequence[str]) -> str:
    """As in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def some(names: Sequence[str], most: int = NAMED) -> str:
    """As in "a, b, c and 4 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def contrast(text: str, expected: str) -> str:
    """Two texts where they first differ, as in "'... a cat' in place of '... a car'"."""
    shared = 0
    while shared < min(len(text), len(expected)) and text[shared] == expected[shared]:
        shared += 1
    start = max(0, shared - CONTEXT)
    end = shared + CONTEXT
    lead = "..." if start else ""
    excerpts = []
    for whole in (text, expected):
        excerpts.append(repr(lead + whole[start:end] + ("..." if len(whole) > end else "")))
    return f"{excerpts[0]} in place of {excerpts[1]}"
