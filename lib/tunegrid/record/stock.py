"""What the libraries' own path says beside ours: a part of a record."""

from dataclasses import field
from typing import Annotated

from pydantic import Field

from tunegrid.grid.recipes import Amount
from tunegrid.record.parts import Hash, Part

# In the order of the flow: the first that differs is the one to look at.
STOCK_STAGES = (
    *("windows", "start", "labels", "batch", "order", "loss", "gradient", "rates", "losses", "weights"),
    *("accumulation", "resume", "scores", "generation", "pipeline"),
)


class StockStage(Part):
    """What the libraries' path did at one stage, and how far ours is from it."""

    digest: Annotated[Hash | None, Field(description="hash of ids, names or texts; null: the stage has figures alone")] = None
    figures: Annotated[
        list[float | None], Field(description="of the libraries' path, as a loss for each update; null: not a number")
    ] = field(default_factory=list)
    largest: Annotated[
        Amount | None, Field(description="largest difference from ours, as a share of ours where that is above 1")
    ] = None
    mean: Annotated[float | None, Field(description="mean of the differences, with their signs")] = None
    known: Annotated[list[str], Field(description="ids of the known differences that ours reckons with")] = field(
        default_factory=list
    )


class StockRecord(Part, frozen=False):
    """The libraries' own path beside ours: `Trainer`, collators, the models' losses, PEFT's helpers, pipelines."""

    stages: Annotated[dict[str, StockStage], Field(description="those that were compared, in the order of the flow")]
    differs: Annotated[str | None, Field(description="the first stage that differs from ours, and how; null: none does")]
    refused: Annotated[str | None, Field(description="why the cell has no such path; null: it has")] = None
