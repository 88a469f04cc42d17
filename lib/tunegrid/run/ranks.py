"""Trains one cell in several processes (ranks), which share each update's rows and sum gradients.

A single process would make the same update, since each rank divides its summed loss by the number
of targets on all ranks; a mean over ranks would be right only if all had the same number of
targets. With DDP, every rank holds the whole model. FSDP2 is for models that do not fit on one GPU
along with their optimizer: it trains a copy that is sharded over the ranks, while the model itself
waits in host memory. The model then receives the copy's weights.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import chain
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
# The longest wait for another rank, which may be scoring alone. torchrun detects dead ranks
# immediately.
RANK_PATIENCE = timedelta(minutes=30)
LET_GO_SECONDS = 0.1
SEEDS = 2**32  # NumPy accepts only smaller seeds
SEED_STEP = 1_000_003  # between the seeds of two ranks; a prime larger than the seeds people choose
HOOKS = ("after_step", "penalty", "plan")  # these let a method change a model between updates


class Ranks:
    """The processes that train one cell, as seen by `rank` of `count`; rank 0 keeps the record."""

    def __init__(self, rank: int = 0, count: int = 1, *, fsdp: bool = False) -> None:
        """Describes ranks that `join_ranks` connected; with `fsdp`, each holds weight shards."""
        self.rank = rank
        self.count = count
        self.holds_parts = fsdp and count > 1

    def share(self, group: Sequence[Sequence[Feature]], size: int) -> Sequence[Sequence[Feature]]:
        """This rank's share of an update's micro-batches, each with at most `size` rows.

        The list, or a micro-batch, may be empty. A single rank gets `group` unchanged.
        """
        if self.count == 1:
            return group
        rows = list(chain.from_iterable(group))
        # Rows are dealt out in turn, because a micro-batch is sorted by length and every rank needs
        # long and short rows.
        batches = list(chunks(rows[self.rank :: self.count], size))
        if self.holds_parts:
            # Every rank gets the same number of micro-batches, some of them empty, because every
            # pass gathers weights from all ranks.
            batch_count = -(-len(rows) // (self.count * size))
            batches += [[]] * (batch_count - len(batches))
        return batches

    def sum_ranks(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def first(self, make: Callable[[], T]) -> T:
        """Calls `make` on the first rank; returns its value on every rank."""
        if self.count == 1:
            return make()
        box = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(box)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def sharded_model(self, model: nn.Module, cell: Cell, precision: str) -> nn.Module:
        """Creates a sharded copy of the model; raises InputError if FSDP cannot shard the model."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        sentence = fsdp_refusal(cell, model, precision)
        if sentence:
            raise InputError(f"{cell.id} cannot be sharded: {sentence}")
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (self.count,))
        # FSDP moves one layer at a time to the device, where two whole models may not fit.
        sharded_model = copy.deepcopy(model.to("cpu"))
        for block in [*blocks(sharded_model), sharded_model]:
            fully_shard(block, mesh=mesh)
        for module in sharded_model.modules():
            if isinstance(module, FSDPModule):
                # Ranks have unequal numbers of targets, so a mean would be wrong.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        model.to(device)
        return sharded_model

    def ddp_model(self, model: nn.Module) -> nn.Module:
        """Wraps a whole model for training; the backward pass sums gradients over the ranks."""
        # Some trained weights are unused, such as BERT2BERT's pooler. Buffers are the same
        # everywhere and never written. torch 2.13 warns that `broadcast_buffers` was renamed; 2.6
        # has only the old name.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            ddp_model = DistributedDataParallel(
                model,
                find_unused_parameters=True,
                broadcast_buffers=False,
            )
        ddp_model.register_comm_hook(None, _sum_bucket)
        return ddp_model

    def no_sync(self, ddp_model: nn.Module) -> AbstractContextManager[None]:
        """A context in which DDP keeps gradients local; FSDP always shards them, to save memory."""
        if isinstance(ddp_model, DistributedDataParallel):
            return ddp_model.no_sync()
        return nullcontext()

    @contextmanager
    def train_parts(self, model: nn.Module, sharded_model: nn.Module) -> Iterator[None]:
        """With FSDP, keeps the whole model on the host while the shards train, and then updates it.

        Raises InputError if the whole model does not fit on the device afterwards.
        """
        if not self.holds_parts:
            yield
            return
        device = next(model.parameters()).device
        model.to("cpu")
        yield
        try:
            model.to(device)
        except RuntimeError as error:
            if out_of_memory(error):
                fault = f"the whole model does not fit on rank {self.rank}"
                cause = f"which needs it to score and audit ({first_line(error)})"
                raise InputError(f"{fault}, {cause}; take more ranks") from None
            raise
        self.copy_weights(model, sharded_model)

    def copy_weights(
        self,
        model: nn.Module,
        sharded_model: nn.Module,
        *,
        back: bool = False,
    ) -> None:
        """With FSDP, copies trained weights from the shards to `model`, or in reverse if `back`."""
        if not self.holds_parts:
            return
        pairs = zip(model.parameters(), sharded_model.parameters(), strict=True)
        for parameter, sharded_parameter in pairs:
            weight: Tensor = parameter.detach()
            shard: Any = sharded_parameter.detach()  # a DTensor
            if parameter.requires_grad and back:
                from torch.distributed.tensor import distribute_tensor

                shard.copy_(distribute_tensor(weight, shard.device_mesh, shard.placements))
            elif parameter.requires_grad:
                weight.copy_(full_tensor(shard))

    def moments(self, saved: Mapping[str, Any], parameter: Any) -> dict[str, Any]:
        """A parameter's saved optimizer state; with FSDP, its shards become DTensors again."""
        if not self.holds_parts:
            return dict(saved)
        from torch.distributed.tensor import DTensor

        state = dict(saved)
        for name, value in saved.items():
            if isinstance(value, Tensor) and value.shape == parameter.to_local().shape:
                state[name] = DTensor.from_local(
                    value,
                    parameter.device_mesh,
                    parameter.placements,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                )
        return state


ALONE = Ranks()


def fsdp_refusal(cell: Cell, model: nn.Module, precision: str) -> str | None:
    """A sentence saying why FSDP cannot shard a cell's weights, or None if it can."""
    from torch.distributed.fsdp import FSDPModule

    method = cell.method
    if method.quantization is not None:
        cause = "FSDP takes weights of one dtype, and NF4 is stored as uint8"
        return f"{cause}; leave out :fsdp: ranks then hold the base whole"
    if any(getattr(type(method), hook) is not getattr(Method, hook) for hook in HOOKS):
        return f"{method.name} changes whole weights between updates; leave out :fsdp"
    optimizer = type(method.make_optimizer(model, cell))
    if not optimizer.__module__.startswith("torch."):
        cause = f"{optimizer.__name__} cannot step parts of weights"
        return f"{cause}; leave out :fsdp, or take an optimizer of torch's"
    if precision == "fp16":
        cause = "a rank finds overflows of fp16 in its own parts only"
        return f"{cause}; leave out :fsdp, or give the recipe precision bf16"
    if not blocks(model):
        cause = "its model names no layers to gather one at a time (`_no_split_modules`)"
        return f"{cause}; leave out :fsdp"
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        return f"torch {torch.__version__} cannot sum gradients under FSDP; take 2.8 or later"
    return None


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers to gather one at a time: items of module lists that transformers never splits."""
    names: set[str] = set()
    for module in model.modules():
        names.update(getattr(module, "_no_split_modules", None) or ())
    layers: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            layers += [layer for layer in module if type(layer).__name__ in names]
    return layers


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor; if the tensor is sharded, all ranks must call this to gather it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or the whole tensor if it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _sum_bucket(
    state: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """Sums a bucket of gradients over the ranks; DDP would average them by default."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda answer: answer.value()[0])
    return future


@contextmanager
def join_ranks(count: int, device: torch.device, *, fsdp: bool = False) -> Iterator[Ranks]:
    """Connects to the other ranks that torchrun started; disconnects at the end."""
    if count == 1:
        yield ALONE
        return
    # Scores and findings are Python objects, which go over gloo even on a GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=RANK_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), fsdp=fsdp)
    finally:
        # One of gloo's threads needs the interpreter's lock to free the last tensor that it sent.
        # In torch 2.13, shutting gloo down waits for that thread while holding the lock, which is a
        # deadlock.
        time.sleep(LET_GO_SECONDS)
        dist.destroy_process_group()
