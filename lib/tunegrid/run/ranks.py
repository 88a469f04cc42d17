"""One cell on several processes, its ranks: each takes a share of an update's rows, and their results are summed.

Every rank holds the model whole (DDP; `tunegrid.run.sharded` shares its weights out), and takes a share of each update's rows.
The update is that of one process: each rank divides its summed loss by the targets of all ranks, and gradients are summed.
DDP's own mean would be right only where every rank has as many targets as the others, which padding and an epoch's last rows
prevent.

`ALONE` is a cell on one process: it shares nothing, and its arithmetic is what it would be without this module.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tunegrid.codecs.base import Feature
from tunegrid.codecs.features import chunks
from tunegrid.grid.cells import Cell
from tunegrid.record.parts import RankRecord, RanksRecord

T = TypeVar("T")
# How long a rank waits for another, which may be scoring alone. A rank that dies is torchrun's to notice, at once.
PATIENCE = timedelta(minutes=30)
LET_GO_SECONDS = 0.1
SEEDS = 2**32  # NumPy takes smaller ones
APART = 1_000_003  # between the seeds of two ranks: a prime beyond the seeds that people give


class Ranks:
    """The processes that train one cell, as one of them sees them.

    Attributes:
        rank: this process's number; 0 keeps the record.
        count: how many there are.
        holds_parts: whether each holds a part of all weights while the cell trains.
    """

    holds_parts: ClassVar[bool] = False

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        """Rank number `rank` of `count`; several have met already, see `joined`."""
        self.rank, self.count = rank, count

    def part(self, device: torch.device, each: Sequence[RankRecord] = ()) -> RanksRecord | None:
        """The record's part on the processes, with what each did; None for one process."""
        if self.count == 1:
            return None
        return RanksRecord(count=self.count, backend=backend_of(device), fsdp=self.holds_parts, each=list(each))

    def share(self, group: Sequence[Sequence[Feature]], size: int) -> Sequence[Sequence[Feature]]:
        """This rank's micro-batches of an update, each of at most `size` rows; none where there are fewer rows than ranks.

        Rows are dealt out in turn: those of a micro-batch are sorted by length, so that all ranks have long and short ones.
        """
        if self.count == 1:
            return group
        rows = [feature for features in group for feature in features]
        return list(chunks(rows[self.rank :: self.count], size))

    def seed(self, seed: int) -> int:
        """The seed of this rank's dropout: others drop others."""
        return (seed + self.rank * APART) % SEEDS

    def sharded_model(self, model: nn.Module, cell: Cell, precision: str) -> nn.Module:
        """The model whose parameters the optimizer steps. Here it is the model itself."""
        return model

    def ddp_model(self, model: nn.Module) -> nn.Module:
        """The model to call in training: where there are several ranks, its backward pass sums gradients over them."""
        if self.count == 1:
            return model
        # What trains is not always used, as BERT2BERT's pooler. Buffers are the same everywhere, and nothing writes to them;
        # torch 2.13 has another name for leaving them alone, which torch 2.6 does not know.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            ddp_model = DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)
        ddp_model.register_comm_hook(None, summed)
        return ddp_model

    def training(self, model: nn.Module, sharded_model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the sharded model trains; afterwards the model has its weights. Here they are one."""
        return nullcontext()

    def copy_from_sharded(self, model: nn.Module, sharded_model: nn.Module) -> None:
        """Give the model the weights that the sharded model has got. Here they are one."""

    def copy_to_sharded(self, model: nn.Module, sharded_model: nn.Module) -> None:
        """Give the sharded model the weights that the model has got. Here they are one."""

    def moments(self, kept: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
        """An optimizer's state of a parameter, as a checkpoint kept it, in the optimizer's own types."""
        return dict(kept)

    def no_sync(self, ddp_model: nn.Module) -> AbstractContextManager[None]:
        """Inside, gradients stay with this rank: they are summed over the ranks with the update's last micro-batch."""
        return ddp_model.no_sync() if isinstance(ddp_model, DistributedDataParallel) else nullcontext()

    def total(self, count: int, device: torch.device) -> int | Tensor:
        """A count summed over the ranks, on the device: the host does not wait for it."""
        return count if self.count == 1 else self.summed(torch.full((), count, device=device))

    def summed(self, tensor: Tensor) -> Tensor:
        """A tensor summed over the ranks, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on every rank."""
        if self.count == 1:
            return make()
        box = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(box)
        return box[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor; gathered from all ranks where each holds a shard of it, so all of them must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or all of it where it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def summed(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sum a bucket of gradients over the ranks, where DDP by itself takes their mean; DDP waits for the answer."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def backend_of(device: torch.device) -> Literal["gloo", "nccl"]:
    """What ranks on such a device talk over."""
    return "nccl" if device.type == "cuda" else "gloo"


@contextmanager
def joined(count: int, device: torch.device, kind: type[Ranks] = Ranks) -> Iterator[Ranks]:
    """Meet the other ranks, which torchrun started with this one, and part from them at the end; one process meets nobody."""
    if count == 1:
        yield ALONE
        return
    # Scores and findings are Python objects: they go over gloo on a GPU, too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield kind(dist.get_rank(), dist.get_world_size())
    finally:
        # A thread of gloo's needs the interpreter's lock to let go of the last tensor that it sent. What ends gloo waits for
        # that thread with the lock held, as torch 2.13 has it, and neither would ever go on.
        time.sleep(LET_GO_SECONDS)
        dist.destroy_process_group()
