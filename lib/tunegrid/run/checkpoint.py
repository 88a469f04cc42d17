"""Saves the state of a long training now and then, as one file of torch's, which is read without running what it holds.

Sessions that train the same cell, at the same settings, write the same file: each takes the place of the one before, whole.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tunegrid.errors import first_line
from tunegrid.machine import replacing
from tunegrid.run.ranks import ALONE, Ranks, local_shard

if TYPE_CHECKING:
    from tunegrid.run.train import Trainer

# How torch says that a file is none of its own, was cut off, or holds more than tensors and plain values.
UNREADABLE = (OSError, EOFError, RuntimeError, UnpicklingError, ValueError, KeyError)


@dataclass(kw_only=True)
class Checkpoints:
    """One training's file: written at the first save, removed when the cell has its record."""

    path: Path
    every_seconds: float = 600.0  # between two saves
    resume: bool = False  # go on from the file if it is there; otherwise start anew
    ranks: Ranks = ALONE
    saved_at: float = field(default_factory=time.monotonic)
    trouble: str | None = None  # why the last save failed; training goes on
    started_anew: str | None = None  # why a file that is there was not taken up

    def __post_init__(self) -> None:
        """Each rank's own file, as it has random numbers of its own; all save, or go on, at the same update."""
        if self.ranks.rank:
            self.path = self.path.with_suffix(f".rank{self.ranks.rank}{self.path.suffix}")

    @property
    def remarks(self) -> list[str]:
        """Sentences for the record."""
        lost = self.trouble and f"no checkpoint could be kept: {self.trouble}"
        return [sentence for sentence in (self.started_anew, lost) if sentence]

    def save_if_due(self, source: "Trainer") -> None:
        """Write the file if it is time: whole, or not at all."""
        if not self.ranks.first(lambda: time.monotonic() - self.saved_at >= self.every_seconds):
            return
        state, self.saved_at = source.state_dict(), time.monotonic()
        try:
            with replacing(self.path) as part:
                torch.save(tree_map(storable, state), part)
            self.trouble = None
        except (OSError, RuntimeError, TypeError) as error:
            self.trouble = first_line(error)

    def restore(self, target: "Trainer") -> None:
        """Load the file's state into the target; do nothing without `resume`, without a file, or if it cannot be used."""
        state: dict[str, Any] | None = None
        if self.resume and self.path.is_file():
            try:
                state = torch.load(self.path, map_location="cpu", weights_only=True)
            except UNREADABLE as error:
                aside = self.path.with_name(f"{self.path.name}.broken")
                with suppress(OSError):
                    self.path.replace(aside)
                why = f"the checkpoint cannot be read ({first_line(error)}); it is now {aside.name}"
                self.started_anew = f"started anew: {why}"
        updates = self.ranks.gathered(state and state["log"]["updates"])
        if state and len(set(updates)) == 1:  # a kill may leave some ranks with another update's file than others
            target.load_state_dict(state)

    def clear(self) -> None:
        """Remove the file: the cell is recorded."""
        with suppress(OSError):  # a folder that cannot be written keeps it: nothing takes it up, since the cell has its row
            self.path.unlink(missing_ok=True)


def storable(leaf: Any) -> Any:
    """A value as `torch.load` takes it without running code; a tensor as this rank holds it. Raises TypeError for any other."""
    if isinstance(leaf, Tensor):
        return local_shard(leaf.detach()).cpu().clone().contiguous()
    if isinstance(leaf, float):
        return float(leaf)  # NumPy's floats are floats, too
    if leaf is None or isinstance(leaf, bool | int | str):
        return leaf
    raise TypeError(f"a state of type {type(leaf).__name__} cannot be kept")
