"""How far apart two results are: nested mappings and lists of tensors, numbers, texts."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Fields = Mapping[str, Any]  # what a setting leaves, by field
MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far apart a field may be: the norm of the difference, in units of the norm.

    Attributes:
        most: of each tensor, or list of numbers; 0 asks for equal bits.
        whole: the unit is the norm of all tensors of the field together: of a gradient, or of a step, some parts are nothing
            but rounding, as the gradient of a bias that is added to all keys, which no softmax sees.
        least: something must differ by more than this; None where nothing has to differ.
        drift: the mean difference with its sign, in units of the mean size; None where it may be anything.
    """

    most: float = 0.0
    least: float | None = None
    drift: float | None = None
    whole: bool = False


SAME_BITS = Tolerance()
OTHER = Tolerance(most=math.inf, least=0.0)


def within(most: float, *, drift: float | None = None, least: float | None = None) -> Tolerance:
    """At most so far apart."""
    return Tolerance(most=most, drift=drift, least=least)


def of_whole(most: float, *, least: float | None = None) -> Tolerance:
    """Each part at most so far apart, in units of the whole."""
    return Tolerance(most=most, least=least, whole=True)


def differences(one: Fields, other: Fields, tolerances: Mapping[str, Tolerance]) -> list[str]:
    """A sentence for each field that is not as it should be."""
    return [
        sentence
        for name, tolerance in tolerances.items()
        if (sentence := _difference(name, leaves(one[name]), leaves(other[name]), tolerance))
    ]


def gaps(one: Fields, other: Fields, tolerances: Mapping[str, Tolerance]) -> dict[str, float | None]:
    """How far apart each field is; None where its values cannot be compared."""
    found = {
        name: max(_gaps(leaves(one[name]), leaves(other[name]), tolerance).values(), default=math.inf)
        for name, tolerance in tolerances.items()
    }
    return {name: gap if math.isfinite(gap) else None for name, gap in found.items()}


def _gaps(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: Tolerance) -> dict[str, float]:
    """By path to a leaf."""
    size = _norm(leaf for leaf in one.values() if isinstance(leaf, Tensor)) if tolerance.whole else None
    places = dict.fromkeys([*one, *other])
    return {place: apart(one.get(place, MISSING), other.get(place, MISSING), size) for place in places}


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def _difference(name: str, one: Mapping[str, Any], other: Mapping[str, Any], tolerance: Tolerance) -> str | None:
    if not one or not other:
        return f"{name}: there is nothing to compare"
    found = _gaps(one, other, tolerance)
    worst = max(found, key=lambda place: found[place])
    where = f"{name}{worst}"
    if not found[worst] <= tolerance.most:
        return f"{where}: {_told(one.get(worst), other.get(worst), found[worst])}, allowed {tolerance.most:.0e}"
    if tolerance.least is not None and found[worst] <= tolerance.least:
        return f"{name}: nothing differs by more than {tolerance.least:.0e}, and something should"
    drifts = {place: abs(drift(one[place], other[place])) for place in found} if tolerance.drift is not None else {}
    if drifts and max(drifts.values()) > (tolerance.drift or 0.0):
        return f"{name}: the mean difference is {max(drifts.values()):.1e} of the mean size, allowed {tolerance.drift:.0e}"
    return None


def _told(one: Any, other: Any, gap: float) -> str:
    """What differs, short enough for a sentence."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return f"{gap:.1e} apart"
    return f"{_short(one)} is not {_short(other)}"


def _short(value: Any) -> str:
    text = f"a tensor of {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor, list of numbers, or plain value, by the path to it."""
    return dict(_leaves(value, path))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}[{key}]")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if value and all(isinstance(one, float) for one in value):
            yield path, torch.tensor(value, dtype=torch.float64)
        elif value and any(isinstance(one, Mapping | Sequence | Tensor) and not isinstance(one, str) for one in value):
            for index, inner in enumerate(value):
                yield from _leaves(inner, f"{path}[{index}]")
        else:
            yield path, list(value)
    else:
        yield path, torch.tensor([value], dtype=torch.float64) if isinstance(value, float) else value


def apart(one: Any, other: Any, size: float | None = None) -> float:
    """0 for equal bits, infinity for values that cannot be compared or are no numbers; in units of the norm, or of `size`."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return 0.0 if type(one) is type(other) and one == other else math.inf
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    if torch.equal(one, other):
        return 0.0
    if not one.is_floating_point():
        return math.inf
    ours, theirs = one.detach().double(), other.detach().double()
    gap = float((ours - theirs).norm())
    unit = size or max(float(ours.norm()), float(theirs.norm()))
    return gap / unit if math.isfinite(gap) else math.inf


def drift(one: Tensor, other: Tensor) -> float:
    """The mean difference with its sign, in units of the mean size."""
    size = float(one.detach().double().abs().mean())
    return float((other.detach().double() - one.detach().double()).mean()) / size if size else 0.0
