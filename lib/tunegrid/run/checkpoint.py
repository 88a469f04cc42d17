"""Saves the state of a long training now and then, as one file that torch reads without running code (`weights_only`).

Sessions that train the same cell, at the same settings, write the same file: each takes the place of the one before, whole.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint
from torch.utils._pytree import tree_map_only

from tunegrid.disk import replacing
from tunegrid.errors import first_line
from tunegrid.run.ranks import ALONE, Ranks, local_shard

if TYPE_CHECKING:
    from tunegrid.run.train import Trainer


@dataclass(kw_only=True)
class Checkpoints:
    """One training's file.

    Attributes:
        path: the file; written at the first save, removed when the cell has its record.
        every_seconds: between two saves.
        resume: go on from the file if it is there; otherwise start anew.
        ranks: each has a file of its own, as it has random numbers of its own; all save, or go on, at the same update.
        trouble: why the last save failed, or None; training goes on.
        started_anew: why a file that is there was not taken up, or None.
    """

    path: Path
    every_seconds: float = 600.0
    resume: bool = False
    ranks: Ranks = ALONE
    saved_at: float = field(default_factory=time.monotonic)
    trouble: str | None = None
    started_anew: str | None = None

    def __post_init__(self) -> None:
        """Each rank's own file."""
        if self.ranks.rank:
            self.path = self.path.with_suffix(f".rank{self.ranks.rank}{self.path.suffix}")

    @property
    def remarks(self) -> list[str]:
        """Sentences for the record."""
        lost = f"no checkpoint could be kept: {self.trouble}" if self.trouble else None
        return [sentence for sentence in (self.started_anew, lost) if sentence]

    def save_if_due(self, source: "Trainer") -> None:
        """Write the file if it is time: whole, or not at all."""
        if not self.ranks.first(lambda: time.monotonic() - self.saved_at >= self.every_seconds):
            return
        # A copy: a view would bring along all that it is a view of.
        state = tree_map_only(Tensor, lambda tensor: local_shard(tensor.detach()).cpu().clone(), source.state_dict())
        self.saved_at = time.monotonic()
        try:
            with replacing(self.path) as part:
                torch.save(state, part)
                if foreign := get_unsafe_globals_in_checkpoint(part):  # as an optimizer's value that is no plain one
                    raise TypeError(f"{foreign[0]} could not be read again")
            self.trouble = None
        except (OSError, RuntimeError, TypeError, AttributeError, PickleError) as error:  # the last three: it cannot be written
            self.trouble = first_line(error)

    def restore(self, target: "Trainer") -> None:
        """Load the file's state into the target; without a file, or without `resume`, do nothing.

        Nor if a kill left some ranks with another update's file than others, or if the file cannot be used.
        """
        state = self._usable() if self.resume and self.path.is_file() else None
        updates = self.ranks.gathered(state and state["log"]["updates"])
        if state and len(set(updates)) == 1:
            target.load_state_dict(state)

    def _usable(self) -> dict[str, Any] | None:
        """What the file holds; None if it cannot be read, as one that was cut off: then it is set aside."""
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
            return state
        except (OSError, EOFError, RuntimeError, ValueError, PickleError) as error:
            aside = self.path.with_name(f"{self.path.name}.broken")
            with suppress(OSError):
                self.path.replace(aside)
            self.started_anew = f"started anew: the checkpoint cannot be read ({first_line(error)}); it is now {aside.name}"
            return None

    def clear(self) -> None:
        """Remove the file: the cell is recorded."""
        with suppress(OSError):  # a folder that cannot be written keeps it: nothing takes it up, since the cell has its row
            self.path.unlink(missing_ok=True)
