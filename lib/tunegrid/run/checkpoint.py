"""Saves the state of a long training now and then, as one safetensors file.

Tensors are stored as they are, plain values as JSON beside them, each under the path of its keys. No pickle. Two sessions that
train the same cell do not share a file: the first that writes or reads it locks it, and the other keeps none.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunegrid.disk import replacing
from tunegrid.errors import first_line
from tunegrid.run.ranks import ALONE, Ranks, local_shard

if TYPE_CHECKING:
    from tunegrid.run.train import Trainer

SLASH = "/"  # between the keys of a path: names of parameters have dots


@dataclass(kw_only=True)
class Checkpoints:
    """One training's file.

    Attributes:
        path: the file; written at the first save, removed when the cell has its record.
        every_seconds: between two saves.
        resume: go on from the file if it is there; otherwise start anew.
        ranks: each keeps a file of its own, as it has random numbers of its own; all save, or go on, at the same update.
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
    _lock: FileLock | None = None

    @property
    def remarks(self) -> list[str]:
        """Sentences for the record."""
        kept = [f"no checkpoint could be kept: {self.trouble}"] if self.trouble else []
        return [*([self.started_anew] if self.started_anew else []), *kept]

    def save_if_due(self, source: "Trainer") -> None:
        """Write the file if it is time: whole, or not at all."""
        if not self.ranks.first(lambda: time.monotonic() - self.saved_at >= self.every_seconds):
            return
        leaves = dict(_leaves(source.state_dict()))
        found = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
        tensors = {name: local_shard(leaf.detach()).cpu().clone().contiguous() for name, leaf in found.items()}
        plain = {name: leaf for name, leaf in leaves.items() if name not in tensors}
        self.saved_at = time.monotonic()
        try:
            text = json.dumps(plain)
            if not self._is_ours():
                self.trouble = "another session trains this cell, and keeps its own"
                return
            with replacing(self._own) as part:
                save_file(tensors, part, {"plain": text})
            self.trouble = None
        except (OSError, SafetensorError, TypeError) as error:  # TypeError: an optimizer's value that JSON does not know
            self.trouble = first_line(error)

    @property
    def _own(self) -> Path:
        """This rank's file."""
        return self.path.with_suffix(f".rank{self.ranks.rank}{self.path.suffix}") if self.ranks.rank else self.path

    def restore(self, target: "Trainer") -> None:
        """Load the file's state into the target; without a file, or without `resume`, do nothing.

        Nor where a kill left some ranks with another update's file than others, or where the file cannot be used.
        """
        leaves = self._usable() if self.resume and self._own.is_file() else None
        updates = self.ranks.gathered(leaves and leaves.get("log/updates"))
        if leaves and len(set(updates)) == 1:
            target.load_state_dict(_tree(leaves))

    def _usable(self) -> dict[str, Any] | None:
        """What the file holds; None where another session trains from it, or it is cut off: then it is set aside."""
        try:
            if self._is_ours():
                return self._read()
            self.started_anew = "started anew: another session trains this cell, and its checkpoint is not taken"
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            aside = self._own.with_name(f"{self._own.name}.broken")
            with suppress(OSError):
                self._own.replace(aside)
            self.started_anew = f"started anew: the checkpoint cannot be read ({first_line(error)}); it is now {aside.name}"
        return None

    def _is_ours(self) -> bool:
        """Whether this session holds the file, or takes it now; raises OSError where the folder cannot be written."""
        if self._lock is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._own.with_suffix(".lock"), timeout=0, is_singleton=True)  # one a process
            try:
                lock.acquire()
            except Timeout:
                return False
            self._lock = lock
        return True

    def release(self) -> None:
        """Let another session have the file."""
        if self._lock is not None:
            self._lock.release(force=True)
            self._own.with_suffix(".lock").unlink(missing_ok=True)
            self._lock = None

    def _read(self) -> dict[str, Any]:
        with safe_open(self._own, "pt") as file:
            leaves: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no mapping
            leaves |= json.loads(file.metadata()["plain"])
        return leaves

    def clear(self) -> None:
        """Remove the file: the cell is recorded; not one that another session trains from."""
        with suppress(OSError):  # a folder that cannot be written keeps it: nothing takes it up, since the cell has its row
            if self._own.is_file() and self._is_ours():
                self._own.unlink(missing_ok=True)
        self.release()


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
