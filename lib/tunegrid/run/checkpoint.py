"""Saves the state of a long training now and then, as one safetensors file.

Tensors are stored as they are, plain values as JSON beside them, each under the path of its keys. No pickle.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunegrid.errors import first_line
from tunegrid.run.ranks import ALONE, Ranks, local_shard

SLASH = "/"  # between the keys of a path: names of parameters have dots


class Stateful(Protocol):
    """What can be saved and taken up again, as torch names it."""

    def state_dict(self) -> dict[str, Any]:
        """Nested mappings of tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from this state."""


@dataclass(kw_only=True)
class Checkpoints:
    """One training's file.

    Attributes:
        path: the file; written at the first save, removed when the cell has its record.
        every_seconds: between two saves.
        resume: go on from the file if it is there; otherwise start anew.
        ranks: each keeps a file of its own, as it has random numbers of its own; all save, or go on, at the same update.
        trouble: why the last save failed, or None; training goes on.
    """

    path: Path
    every_seconds: float
    resume: bool = False
    ranks: Ranks = ALONE
    saved_at: float = field(default_factory=time.monotonic)
    trouble: str | None = None

    def save_if_due(self, source: Stateful) -> None:
        """Write the file if it is time: whole, or not at all."""
        if not self.ranks.first(lambda: time.monotonic() - self.saved_at >= self.every_seconds):
            return
        leaves = dict(_leaves(source.state_dict()))
        found = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
        tensors = {name: local_shard(leaf.detach()).cpu().clone().contiguous() for name, leaf in found.items()}
        plain = {name: leaf for name, leaf in leaves.items() if name not in tensors}
        self.saved_at = time.monotonic()
        part = self._own.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, {"plain": json.dumps(plain)})
            part.replace(self._own)
            self.trouble = None
        except (OSError, SafetensorError, TypeError) as error:  # TypeError: an optimizer's value that JSON does not know
            self.trouble = first_line(error)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    @property
    def _own(self) -> Path:
        """This rank's file."""
        return self.path.with_suffix(f".rank{self.ranks.rank}{self.path.suffix}") if self.ranks.rank else self.path

    def restore(self, target: Stateful) -> None:
        """Load the file's state into the target; without a file, or without `resume`, do nothing.

        Nor where a kill left some ranks with another update's file than others.
        """
        leaves = self._read() if self.resume and self._own.is_file() else None
        updates = self.ranks.gathered(leaves and leaves.get("log/updates"))
        if leaves and len(set(updates)) == 1:
            target.load_state_dict(_tree(leaves))

    def _read(self) -> dict[str, Any]:
        with safe_open(self._own, "pt") as file:
            leaves: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no mapping
            leaves |= json.loads(file.metadata()["plain"])
        return leaves

    def clear(self) -> None:
        """Remove the file: the cell is recorded."""
        self._own.unlink(missing_ok=True)


def _leaves(tree: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with the path of its keys, as in optimizer/0/step; an empty mapping is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}{SLASH}")
        else:
            yield f"{path}{key}", value


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mappings that `_leaves` took apart; keys are strings."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *keys, last = path.split(SLASH)
        branch = tree
        for key in keys:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return tree
