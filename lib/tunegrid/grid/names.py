"""Tells where a dotted name of a module or parameter belongs, as "bert.encoder.layer.0.attention"."""

from collections.abc import Iterable


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter or layer belongs to one of these modules: "score.weight" is within "score", "my_score" is not."""
    return any(f".{module}." in f".{name}." for module in modules)
