"""Finds Pareto fronts, and the letters of groups that cannot be told apart. Knows no record."""

from collections.abc import Callable, Collection, Iterable, Sequence
from string import ascii_letters
from typing import TypeVar

Item = TypeVar("Item")
NamePair = frozenset[str]  # two names


def front(items: Iterable[Item], figures: Callable[[Item], Sequence[float]]) -> list[Item]:
    """The Pareto front: the items that no other one beats in a figure without losing in another; less is better."""
    rated = [(item, tuple(figures(item))) for item in items]
    return [item for item, own in rated if not any(dominates(other, own) for _, other in rated)]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is as good in every figure and better in some."""
    return tuple(one) != tuple(other) and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def compact_letters(names: Sequence[str], apart: Collection[NamePair]) -> dict[str, str]:
    """A compact letter display (Piepho 2004): two names share a letter unless they are told apart; `a` has the first name."""
    groups = {frozenset(names)}
    for pair in apart:
        split = {part for group in groups for part in ([group - {name} for name in pair] if pair <= group else [group])}
        groups = {group for group in split if not any(group < other for other in split)}
    ordered = sorted(groups, key=lambda group: sorted(map(names.index, group)))
    return {name: "".join(a for a, group in zip(ascii_letters, ordered, strict=False) if name in group) for name in names}
