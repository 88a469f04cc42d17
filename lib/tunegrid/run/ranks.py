"""One cell on several processes, its ranks: each takes a share of an update's rows, and their gradients are summed.

The update is that of one process: each rank divides its summed loss by the targets of all; a mean would be right only if every
rank had as many. Every rank holds the model whole (DDP). With FSDP2, for a model that does not fit beside its optimizer on one
GPU, a sharded copy trains, of which every rank holds parts; the model itself waits in the host's memory, and takes over what
the copy has learned.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tunegrid.codecs.base import Feature
from tunegrid.codecs.features import chunks
from tunegrid.errors import InputError, first_line
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Method
from tunegrid.run.device import out_of_memory

T = TypeVar("T")
# How long a rank waits for another, which may be scoring alone. A rank that dies is torchrun's to notice, at once.
PATIENCE = timedelta(minutes=30)
LET_GO_SECONDS = 0.1
SEEDS = 2**32  # NumPy takes smaller ones
SEED_STEP = 1_000_003  # between the seeds of two ranks: a prime beyond the seeds that people give
HOOKS = ("after_step", "penalty", "plan")  # with which a method reaches into a model between updates


class Ranks:
    """The processes that train one cell, as one of them sees them: number `rank` of `count`, of which 0 keeps the record."""

    def __init__(self, rank: int = 0, count: int = 1, *, fsdp: bool = False) -> None:
        """Several have met already, see `join_ranks`; under FSDP2, whose imports take half a second, each holds parts."""
        self.rank, self.count, self.holds_parts = rank, count, fsdp and count > 1

    def share(self, group: Sequence[Sequence[Feature]], size: int) -> Sequence[Sequence[Feature]]:
        """This rank's micro-batches of an update, each of at most `size` rows; none if there are fewer rows than ranks."""
        if self.count == 1:
            return group
        rows = [feature for features in group for feature in features]
        # Dealt out in turn: those of a micro-batch are sorted by length, so that all ranks have long and short ones. With FSDP
        # each rank has as many micro-batches, some of them empty: every pass gathers weights of all ranks.
        batches = list(chunks(rows[self.rank :: self.count], size))
        batch_count = -(-len(rows) // (self.count * size))
        return [*batches, *[[]] * (batch_count - len(batches))] if self.holds_parts else batches

    def sum_ranks(self, tensor: Tensor) -> Tensor:
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

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def sharded_model(self, model: nn.Module, cell: Cell, precision: str) -> nn.Module:
        """With FSDP: the copy that trains, its layers shared out. Raises InputError if FSDP cannot share the weights out."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if sentence := fsdp_refusal(cell, model, precision):
            raise InputError(f"{cell.id} cannot be sharded: {sentence}")
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (self.count,))
        # FSDP takes a layer at a time to the device: two whole models may not fit there.
        sharded_model = copy.deepcopy(model.to("cpu"))
        for block in [*blocks(sharded_model), sharded_model]:
            fully_shard(block, mesh=mesh)
        for module in sharded_model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a mean would be of unequal numbers of targets
                module.set_force_sum_reduction_for_comms(True)
        model.to(device)
        return sharded_model

    def ddp_model(self, model: nn.Module) -> nn.Module:
        """The model to call in training if each rank holds a whole one: its backward pass sums gradients over the ranks."""
        # What trains is not always used, as BERT2BERT's pooler. Buffers are the same everywhere, and nothing writes to them;
        # torch 2.13 has another name for leaving them alone, which torch 2.6 does not know.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            ddp_model = DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)
        ddp_model.register_comm_hook(None, _sum_bucket)
        return ddp_model

    def no_sync(self, ddp_model: nn.Module) -> AbstractContextManager[None]:
        """Inside, gradients stay with this rank; under FSDP they do not: whole ones would take the room of weights."""
        return ddp_model.no_sync() if isinstance(ddp_model, DistributedDataParallel) else nullcontext()

    @contextmanager
    def train_parts(self, model: nn.Module, sharded_model: nn.Module) -> Iterator[None]:
        """With FSDP: inside, the sharded model trains, and the model makes room for it; afterwards it has its weights."""
        device = next(model.parameters()).device
        model.to("cpu")
        yield
        try:
            model.to(device)
        except RuntimeError as error:
            if out_of_memory(error):
                sentence = f"the whole model does not fit on rank {self.rank}, which needs it to score and audit"
                raise InputError(f"{sentence} ({first_line(error)}); take more ranks") from None
            raise
        self.copy_weights(model, sharded_model)

    def copy_weights(self, model: nn.Module, sharded_model: nn.Module, *, back: bool = False) -> None:
        """Give the model the weights of the sharded one, a tensor at a time; or `back`, if they are two."""
        if not self.holds_parts:
            return
        for parameter, part in zip(model.parameters(), sharded_model.parameters(), strict=True):
            weight: Tensor = parameter.detach()
            shard: Any = part.detach()  # a DTensor
            if parameter.requires_grad and back:
                from torch.distributed.tensor import distribute_tensor

                shard.copy_(distribute_tensor(weight, shard.device_mesh, shard.placements))
            elif parameter.requires_grad:
                weight.copy_(full_tensor(shard))

    def moments(self, saved: Mapping[str, Any], parameter: Any) -> dict[str, Any]:
        """An optimizer's saved state of a parameter; with FSDP, what has its shape is a part, as the parameter is."""
        if not self.holds_parts:
            return dict(saved)
        from torch.distributed.tensor import DTensor

        place, shape = (parameter.device_mesh, parameter.placements), parameter.to_local().shape
        layout = {"shape": parameter.shape, "stride": parameter.stride()}
        parts = {name: one for name, one in saved.items() if isinstance(one, Tensor) and one.shape == shape}
        return {**saved, **{name: DTensor.from_local(one, *place, **layout) for name, one in parts.items()}}


ALONE = Ranks()


def fsdp_refusal(cell: Cell, model: nn.Module, precision: str) -> str | None:
    """Why FSDP cannot share a cell's weights out, in a sentence; None if it can."""
    from torch.distributed.fsdp import FSDPModule

    method = cell.method
    if method.quantization is not None:
        return "FSDP takes weights of one dtype, and NF4 is stored as uint8; leave out :fsdp: ranks then hold the base whole"
    if any(getattr(type(method), hook) is not getattr(Method, hook) for hook in HOOKS):
        return f"{method.name} changes whole weights between updates; leave out :fsdp"
    optimizer = type(method.make_optimizer(model, cell))
    if not optimizer.__module__.startswith("torch."):
        return f"{optimizer.__name__} cannot step parts of weights; leave out :fsdp, or take an optimizer of torch's"
    if precision == "fp16":
        return "a rank finds overflows of fp16 in its own parts only; leave out :fsdp, or give the recipe precision bf16"
    if not blocks(model):
        return "its model names no layers to gather one at a time (`_no_split_modules`); leave out :fsdp"
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        return f"torch {torch.__version__} cannot sum gradients under FSDP; take 2.8 or later"
    return None


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one at a time: those of a list that transformers itself never splits over devices."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [layer for layers in lists for layer in layers if type(layer).__name__ in names]


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor; gathered from all ranks if each holds a shard of it, so all of them must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or all of it if it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _sum_bucket(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sum a bucket of gradients over the ranks, of which DDP by itself takes the mean; DDP waits for the answer."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda answer: answer.value()[0])
    return future


@contextmanager
def join_ranks(count: int, device: torch.device, *, fsdp: bool = False) -> Iterator[Ranks]:
    """Meet the other ranks, which torchrun started with this one, and part from them at the end; one process meets nobody."""
    if count == 1:
        yield ALONE
        return
    # Scores and findings are Python objects: they go over gloo on a GPU, too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), fsdp=fsdp)
    finally:
        # A thread of gloo's needs the interpreter's lock to let go of the last tensor that it sent. What ends gloo waits for
        # that thread with the lock held, as torch 2.13 has it, and neither would ever go on.
        time.sleep(LET_GO_SECONDS)
        dist.destroy_process_group()
