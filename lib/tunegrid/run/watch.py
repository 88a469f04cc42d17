"""Records how one update ran: passes through the model, and layers that were recomputed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from tunegrid.run.build import dtype_name


@contextmanager
def watch_update(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yields a mapping that is filled at the end of the context with facts about the update.

    `rows` lists the number of rows in each forward pass. `types` counts the outputs of linear
    layers with fp32 weights by dtype, and `devices` lists the device types of these outputs.
    `layers` lists the repeated layers whose output needs a gradient. `recomputed` lists the
    repeated layers in which a module is called outside a forward pass of the model.
    """
    layers = repeated_layers(model)
    layer_of: dict[nn.Module, str] = {}
    for layer, name in layers.items():
        layer_of |= dict.fromkeys(layer.modules(), name)
    rows: list[int] = []
    types: Counter[str] = Counter()
    devices: set[str] = set()
    differentiated: set[str] = set()
    recomputed: set[str] = set()
    open_passes: list[nn.Module] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        tensors = [leaf for leaf in tree_leaves([inputs, options]) if isinstance(leaf, Tensor)]
        rows.append(len(tensors[0]) if tensors else 0)
        open_passes.append(module)

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        open_passes.pop()

    def note_call(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not open_passes:
            recomputed.add(layer_of[module])

    def note_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if open_passes and any(tensor.requires_grad for tensor in tensors):
            differentiated.add(layers[module])

    def note_type(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        types[dtype_name(output.dtype)] += 1
        devices.add(output.device.type)

    facts: dict[str, Any] = {}
    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.enter_context(model.register_forward_hook(leave))
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(note_output))
        for part in layer_of:
            hooks.enter_context(part.register_forward_pre_hook(note_call))
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module.weight.dtype is torch.float32:
                hooks.enter_context(module.register_forward_hook(note_type))
        yield facts
    facts |= {"rows": rows, "types": dict(types), "devices": sorted(devices)}
    facts |= {"layers": sorted(differentiated), "recomputed": sorted(recomputed)}


def repeated_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Maps each member of the model's module lists to its name; skips lists inside other lists."""
    layers: dict[nn.Module, str] = {}
    inner: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or name.startswith(inner):
            continue
        inner = (*inner, f"{name}.")
        for key, layer in module.named_children():
            layers[layer] = f"{name}.{key}"
    return layers
