"""Changes of libraries that leave training as it is, but for rounding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from peft.tuners.lora import layer as lora
from peft.tuners.lora.bnb import Linear4bit
from torch.nn.functional import linear

from tunegrid.data.sources import tables
from tunegrid.grid.profiles import Profile
from tunegrid.grid.tasks import TASKS


def product_in_another_order(monkeypatch: Any) -> None:
    """An adapter multiplies its two matrices, and then the input: x (s B A) in place of s ((x A) B)."""

    def reordered(self: Any, x: Any, *args: Any, **options: Any) -> Any:
        result = self.base_layer(x, *args, **options).clone()
        for name in [] if self.disable_adapters or self.merged else self.active_adapters:
            matrix = self.scaling[name] * self.lora_B[name].weight @ self.lora_A[name].weight
            result = result + linear(self.lora_dropout[name](x.to(matrix.dtype)), matrix).to(result.dtype)
        return result

    for kind in (lora.Linear, Linear4bit):
        monkeypatch.setattr(kind, "forward", reordered)


def operation_without_effect(monkeypatch: Any) -> None:
    """Linear layers add 0 to their output, and copy it."""
    forward = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, inputs: (forward(self, inputs) + 0).clone())


def two_threads(profile: Profile, folder: Path) -> Profile:
    """Sums are cut into other pieces."""
    return replace(profile, threads=2)


def moved_in_the_last_digits(profile: Profile, folder: Path) -> Profile:
    """Weights are multiplied by 1 + 1e-6 x normal noise."""
    return replace(profile, perturbation=1)


def rows_in_parquet(profile: Profile, folder: Path) -> Profile:
    """The same rows in Parquet files, which `datasets` reads; the rows that ship are JSON lines, which we read ourselves."""
    for task in TASKS:
        target = folder / "data" / task.folder
        target.mkdir(parents=True)
        for split, table in tables(task, profile.data_root).items():
            datasets.Dataset.from_list(table.take(range(len(table)))).to_parquet(target / f"{split}.parquet")
    return replace(profile, data_root=folder / "data")
