"""One cell on several processes that share its weights: FSDP2, for a model that does not fit beside its optimizer on one GPU.

A sharded copy of the model trains: every rank holds a part of each weight, its gradient and its moments. The model
itself waits in the host's memory meanwhile, and takes over what the sharded one has learned when it is asked.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunegrid.codecs.base import Feature
from tunegrid.errors import InputError, first_line
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Method
from tunegrid.run.device import out_of_memory
from tunegrid.run.ranks import Ranks, full_tensor

HOOKS = ("after_step", "penalty", "plan")  # with which a method reaches into a model between updates


def fsdp_refusal(cell: Cell, model: nn.Module, precision: str) -> str | None:
    """Why FSDP cannot share a cell's weights out, in a sentence; None where it can."""
    method = cell.method
    if method.quantization is not None:
        return (
            "FSDP takes packed weights only where bnb_4bit_quant_storage is the dtype of all other weights (float32), and "
            "NF4 is stored as uint8 here; leave out --fsdp: each rank then holds the packed base whole"
        )
    if any(getattr(type(method), hook) is not getattr(Method, hook) for hook in HOOKS):
        return f"{method.name} changes whole weights between updates; leave out --fsdp"
    optimizer = type(method.make_optimizer(model, cell))
    if not optimizer.__module__.startswith("torch."):
        return f"{optimizer.__name__} cannot step parts of weights; leave out --fsdp, or take an optimizer of torch's"
    if precision == "fp16":
        return "a rank finds overflows of fp16 in its own parts only; leave out --fsdp, or give the recipe precision bf16"
    if not blocks(model):
        return "its model names no layers to gather one at a time (`_no_split_modules`); leave out --fsdp"
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        return f"torch {torch.__version__} cannot sum gradients under FSDP; take 2.8 or later"
    return None


class Sharded(Ranks):
    """Ranks that hold a part of each weight."""

    holds_parts = True

    def share(self, group: Sequence[Sequence[Feature]], size: int) -> Sequence[Sequence[Feature]]:
        """As under DDP, but each has as many micro-batches, some of them empty: every pass gathers weights of all ranks."""
        own, most = super().share(group, size), -(-sum(map(len, group)) // (self.count * size))
        return [*own, *[[]] * (most - len(own))]

    def sharded_model(self, model: nn.Module, cell: Cell, precision: str) -> nn.Module:
        """A copy of the model, each of its layers shared out among the ranks; gradients are summed over them.

        Raises InputError where FSDP cannot share the cell's weights out.
        """
        if sentence := fsdp_refusal(cell, model, precision):
            raise InputError(f"{cell.id} cannot be shared out: {sentence}")
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (self.count,))
        # FSDP takes a layer at a time to the device: two whole models may not fit there.
        sharded_model = copy.deepcopy(model.to("cpu"))
        for block in blocks(sharded_model):
            fully_shard(block, mesh=mesh)
        fully_shard(sharded_model, mesh=mesh)
        for module in sharded_model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(
                    1.0
                )  # see `tunegrid.run.ranks`: a mean would be of unequal numbers of targets
                module.set_force_sum_reduction_for_comms(True)
        model.to(device)
        return sharded_model

    def ddp_model(self, model: nn.Module) -> nn.Module:
        """The sharded model itself sums its gradients."""
        return model

    def no_sync(self, ddp_model: nn.Module) -> AbstractContextManager[None]:
        """Nothing waits: gradients are shared out with every micro-batch, since whole ones would take the room of weights."""
        return nullcontext()

    @contextmanager
    def training(self, model: nn.Module, sharded_model: nn.Module) -> Iterator[None]:
        """Inside, the sharded model trains and the model makes room for it; afterwards the model has its weights.

        Raises InputError where the whole model does not fit beside the sharded one.
        """
        device = next(model.parameters()).device
        model.to("cpu")
        yield
        try:
            model.to(device)
        except RuntimeError as error:
            if out_of_memory(error):
                sentence = f"the whole model does not fit on rank {self.rank}, where it is scored and audited"
                raise InputError(f"{sentence} ({first_line(error)}); take more ranks") from None
            raise
        self.copy_from_sharded(model, sharded_model)

    def copy_from_sharded(self, model: nn.Module, sharded_model: nn.Module) -> None:
        """Give the model the weights of the sharded one, a tensor at a time."""
        with torch.no_grad():
            for own, learned in zip(model.parameters(), sharded_model.parameters(), strict=True):
                if own.requires_grad:
                    own.copy_(full_tensor(learned))

    def copy_to_sharded(self, model: nn.Module, sharded_model: nn.Module) -> None:
        """Give the sharded model its parts of the model's weights."""
        with torch.no_grad():
            for own, part in zip(model.parameters(), sharded_model.parameters(), strict=True):
                if own.requires_grad and isinstance(part, DTensor):
                    part.copy_(distribute_tensor(own.detach(), part.device_mesh, part.placements))

    def moments(self, kept: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
        """Moments are parts of a whole, as the parameter is."""
        return {name: _part(value, parameter) for name, value in kept.items()}


def _part(value: Any, parameter: Any) -> Any:
    """This rank's values as a part of a whole, where there is one for each of its values of the parameter."""
    if not isinstance(value, Tensor) or value.shape != parameter.to_local().shape:
        return value
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(value, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one at a time: those of a list that transformers itself never splits over devices.

    An embedding is none of them: where it is tied to the output, both belong to the whole.
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [layer for layers in lists for layer in layers if type(layer).__name__ in names]
