"""Saves the state of a long training run periodically, in a safetensors file with JSON metadata.

Sessions that train the same cell with the same settings write the same file, and each save
replaces the previous file as a whole.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tunegrid.errors import first_line
from tunegrid.machine import replace_file
from tunegrid.run.ranks import ALONE, Ranks, local_shard

if TYPE_CHECKING:
    from tunegrid.run.train import Trainer

# A JSON object with only this key stands for a tensor; the value is the tensor's name.
TENSOR = "<tensor>"


@dataclass(kw_only=True)
class Checkpoints:
    """Manages a training run's checkpoint file, which is removed once the cell is recorded."""

    path: Path
    every_seconds: float = 600.0  # time between two saves
    resume: bool = False  # continue from the file if it exists; otherwise start anew
    ranks: Ranks = ALONE
    saved_at: float = field(default_factory=time.monotonic)
    save_error: str | None = None  # why the last save failed; training goes on
    started_anew: str | None = None  # why an existing file could not be read

    def __post_init__(self) -> None:
        """Gives each rank its own file; all ranks save at the same update."""
        if self.ranks.rank:
            self.path = self.path.with_suffix(f".rank{self.ranks.rank}{self.path.suffix}")

    @property
    def remarks(self) -> list[str]:
        """Sentences for the record about a checkpoint that could not be read or saved."""
        sentences = []
        if self.started_anew:
            sentences.append(self.started_anew)
        if self.save_error:
            sentences.append(f"no checkpoint could be saved: {self.save_error}")
        return sentences

    def save_if_due(self, source: "Trainer") -> None:
        """Writes the file atomically if a save is due; if that fails, sets `save_error`."""
        if not self.ranks.first(lambda: time.monotonic() - self.saved_at >= self.every_seconds):
            return
        tensors: dict[str, Tensor] = {}

        def store_tensor(tensor: Tensor) -> dict[str, str]:
            name = str(len(tensors))
            tensors[name] = local_shard(tensor.detach()).cpu().clone().contiguous()
            return {TENSOR: name}

        tree = tree_map_only(Tensor, store_tensor, source.state_dict())
        self.saved_at = time.monotonic()
        try:
            text = json.dumps(tree)
            with replace_file(self.path) as path:
                save_file(tensors, path, {"tree": text})
            self.save_error = None
        # JSON raises TypeError if it does not know the type of an optimizer's value.
        except (OSError, SafetensorError, TypeError) as error:
            self.save_error = first_line(error)

    def restore(self, target: "Trainer") -> None:
        """Restores `target` if `resume` is set and all ranks can read files of the same update."""
        state = self._read_state() if self.resume and self.path.is_file() else None
        updates = self.ranks.gather(state and state["log"]["updates"])
        # A kill may leave ranks with files from different updates.
        if state and len(set(updates)) == 1:
            target.load_state_dict(state)

    def _read_state(self) -> dict[str, Any] | None:
        """Reads the state from the file; if the file is unreadable, renames it and returns None."""
        try:
            with safe_open(self.path, "pt") as file:

                def load_value(node: dict[str, Any]) -> Any:
                    return file.get_tensor(node[TENSOR]) if [*node] == [TENSOR] else node

                state: dict[str, Any] = json.loads(file.metadata()["tree"], object_hook=load_value)
            return state
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            backup = self.path.with_name(f"{self.path.name}.broken")
            with suppress(OSError):
                self.path.replace(backup)
            fault = f"the checkpoint cannot be read ({first_line(error)})"
            self.started_anew = f"started over: {fault}; renamed to {backup.name}"
            return None

    def clear(self) -> None:
        """Removes the file once the cell is recorded."""
        with suppress(OSError):  # a leftover file is not used, since the cell has its row
            self.path.unlink(missing_ok=True)
