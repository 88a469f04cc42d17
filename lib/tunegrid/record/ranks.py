"""The part of a record that says which processes shared its cell."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tunegrid.grid.recipes import Amount, Count
from tunegrid.record.parts import Part


@dataclass(kw_only=True)
class RankRecord(Part):
    """What one rank did and needed."""

    rss_peak_gib: Annotated[Amount | None, Field(description="the highest of the rank's own phases; so are the next two")]
    allocated_peak_gib: Amount | None
    reserved_peak_gib: Amount | None
    train_samples: Annotated[Count, Field(description="rows that it trained on, over all updates")]
    train_samples_per_second: Annotated[Amount | None, Field(description="of its own rows, after warm-up")]
    train_tokens_per_second: Annotated[Amount | None, Field(description="real tokens, without padding")]


@dataclass(kw_only=True)
class RanksRecord(Part):
    """The processes that shared a cell; all other figures of time and memory are the first one's, rates are of all together."""

    count: Annotated[int, Field(ge=2)]
    backend: Annotated[Literal["gloo", "nccl"], Field(description="what they talk over")]
    fsdp: Annotated[bool, Field(description="each held a part of all weights; bytes are the first one's")] = False
    each: Annotated[list[RankRecord], Field(description="in the order of ranks")]
