"""What a setting works with: a cell, its rows, and models and trainers of it, made anew as often as a setting needs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.equivalent.compare import Fields
from tunegrid.codecs import codec_of
from tunegrid.codecs.base import Codec, Feature
from tunegrid.data.splits import Splits
from tunegrid.grid.cells import Cell
from tunegrid.run.build import build
from tunegrid.run.meter import Meter
from tunegrid.run.order import chunks
from tunegrid.run.progress import Progress
from tunegrid.run.ranks import ALONE, Ranks
from tunegrid.run.serving import Serving
from tunegrid.run.training import Trainer

Plant = Callable[[Any], None]  # changes what is installed, by way of pytest's monkeypatch
SILENT = Progress("test", lambda line: None)


class InOrder(Trainer):
    """Takes its rows as they come, so that an update has the same rows however it is cut into micro-batches."""

    def updates(self, epoch: int) -> Iterator[Sequence[list[Feature]]]:
        """The epoch's updates, each as one group of rows, which `update` cuts."""
        yield from ([list(rows)] for rows in chunks(self.features, self.cell.recipe.rows_per_update))


@dataclass(kw_only=True)
class Bench:
    """One cell at hand.

    Attributes:
        rows: the training rows.
        ranks: the processes that run this together; one by default.
        plant: what is broken meanwhile, for a process that a setting starts; None where nothing is.
    """

    cell: Cell
    tokenizer: Any
    splits: Splits
    device: torch.device
    folder: Path
    ranks: Ranks = ALONE
    plant: Plant | None = None

    def cell_with(self, *, seed: int = 0, **recipe: Any) -> Cell:
        """The cell with another seed, or other fields of its recipe."""
        profile = replace(self.cell.profile, seed=seed)
        return replace(self.cell, profile=profile, recipe=replace(self.cell.recipe, **recipe))

    def codec(self, cell: Cell | None = None) -> Codec:
        """The cell's codec."""
        return codec_of(cell or self.cell, self.tokenizer)

    def features(self, rows: int, *, training: bool = True) -> list[Feature]:
        """The features of the first rows."""
        own = self.splits.train if training else self.splits.test
        return self.codec().encode(own[:rows], training=training)

    def model(self, cell: Cell | None = None, *, dropout: bool = True, attention: str | None = None) -> Any:
        """A model as the cell trains it; `attention` is how transformers computes it, where it is not SDPA."""
        model: Any = build(cell or self.cell, self.tokenizer, self.device)
        if attention:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            base.set_attn_implementation(attention)
        return model if dropout else still(model)

    def trainer(self, cell: Cell, rows: int, *, kind: type[Trainer] = InOrder, **options: Any) -> Trainer:
        """A training of the cell about to happen on the first rows."""
        model = options.pop("model", None)
        ranks = options.pop("ranks", ALONE)
        features = self.features(rows)[:rows]
        return kind(cell, model or self.model(cell), self.codec(cell), features, Meter(device=self.device), ranks, **options)

    @property
    def serving(self) -> Serving:
        """How users save and load."""
        return Serving()

    def new_folder(self, name: str) -> Path:
        """An empty folder."""
        for number in range(1000):
            folder = self.folder / f"{name}{number}"
            if not folder.exists():
                folder.mkdir()
                return folder
        raise AssertionError("a row makes a few folders")


Setting = Callable[[Bench], Fields]


def still(model: nn.Module) -> nn.Module:
    """The model without dropout, which cuts of a batch would draw differently."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def learned(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The weights that train, by name."""
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
