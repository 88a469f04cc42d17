"""Bugs of merging and saving, put back into PEFT: deltas, scales, biases, names of adapters, older releases."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import peft
import torch
from peft import peft_model
from peft.tuners.lora import bnb as lora_bnb
from peft.tuners.lora import layer as lora
from peft.tuners.oft.layer import OFTRotationModule
from peft.utils import merge_utils, save_and_load
from peft.utils.integrations import dequantize_module_weight


def merged_onto_the_original(plant: Any) -> None:
    """A 4-bit layer's adapter is merged onto the weight before packing, not onto the packed one, over which it trained."""
    pack, unpack = bnb.nn.Params4bit._quantize, lora_bnb.dequantize_bnb_weight

    def remembered(self: Any, device: Any) -> Any:
        original = self.data.detach().clone()
        packed = pack(self, device)
        packed._original = original  # PEFT hands attributes on that begin otherwise
        return packed

    def original_of(weight: Any, *args: Any, **options: Any) -> Any:
        original = getattr(weight, "_original", None)
        if original is None:
            return unpack(weight, *args, **options)
        plant.act()
        return original

    plant.setattr(bnb.nn.Params4bit, "_quantize", remembered, counted=False)
    plant.setattr(lora_bnb, "dequantize_bnb_weight", original_of, counted=False)


def bias_without_scale(plant: Any) -> None:
    """An adapter's bias is merged as it is, where the forward pass multiplies it by the adapter's scale."""
    merge = lora.Linear.merge

    def unscaled(self: Any, *args: Any, **options: Any) -> None:
        before = len(self.merged_adapters)
        merge(self, *args, **options)
        for name in self.merged_adapters[before:]:
            if self.lora_bias[name] and self.scaling[name] != 1:
                plant.act()
                self.get_base_layer().bias.data += self.lora_B[name].bias * (1 - self.scaling[name])

    plant.setattr(lora.Linear, "merge", unscaled, counted=False)


def half_of_the_layers_merge_nothing(plant: Any) -> None:
    """Every other layer is merged with a scale of 0."""
    delta, layers = lora.Linear.get_delta_weight, list[Any]()

    def scaled(self: Any, adapter: str) -> Any:
        if self not in layers:
            layers.append(self)
        if layers.index(self) % 2 == 0:
            return delta(self, adapter)
        plant.act()
        return torch.zeros_like(delta(self, adapter))

    plant.setattr(lora.Linear, "get_delta_weight", scaled, counted=False)


def dropped_deltas_are_not_rescaled(plant: Any) -> None:
    """DARE divides what it keeps by the density, and throws the quotient away."""
    prune = merge_utils.random_pruning

    def kept(tensor: Any, density: float, rescale: bool) -> Any:
        if rescale and density < 1:
            plant.act()
        return prune(tensor, density, rescale=False)

    plant.setattr(merge_utils, "random_pruning", kept, counted=False)


def likely_named_adapters_are_saved_along(plant: Any) -> None:
    """The file of an adapter also gets the tensors of those whose names begin with its name."""
    collect, keep = save_and_load.get_peft_model_state_dict, save_and_load._filter_state_dict_for_adapter_name
    saved: list[str] = []

    def collected(model: Any, state_dict: Any = None, adapter_name: str = "default", **options: Any) -> Any:
        saved[:] = [adapter_name]
        return collect(model, state_dict=state_dict, adapter_name=adapter_name, **options)

    def kept(state_dict: Any, unwanted_adapter_names: list[str]) -> Any:
        others = [name for name in unwanted_adapter_names if not name.startswith(saved[0])]
        if len(others) < len(unwanted_adapter_names):
            plant.act()
        return keep(state_dict, others)

    for module in (peft, peft.utils, peft_model, save_and_load):
        plant.setattr(module, "get_peft_model_state_dict", collected, counted=False)
    plant.setattr(save_and_load, "_filter_state_dict_for_adapter_name", kept, counted=False)


def rotations_turn_the_other_way(plant: Any) -> None:
    """The same weights make another rotation than in the release that saved them: its inverse."""
    skew = OFTRotationModule._pytorch_skew_symmetric
    plant.setattr(OFTRotationModule, "_pytorch_skew_symmetric", lambda self, vec, block_size: -skew(self, vec, block_size))


def norms_of_merged_weights(plant: Any) -> None:
    """DoRA takes the norms of the weight as `merge` finds it, into which an earlier call has merged others already."""
    merge, found = lora.Linear.merge, dict[int, Any]()

    def noted(self: Any, *args: Any, **options: Any) -> None:
        if self.merged_adapters:
            plant.act()
        found[id(self)] = dequantize_module_weight(self.get_base_layer()).detach().clone()
        merge(self, *args, **options)

    @contextmanager
    def as_found(self: Any, safe_merge: bool = False) -> Iterator[Any]:
        yield found[id(self)]

    plant.setattr(lora.Linear, "merge", noted, counted=False)
    plant.setattr(lora.LoraLayer, "_unmerged_base_weight", as_found, counted=False)


def patterns_name_no_embedding(plant: Any) -> None:
    """An embedding is not looked for where `target_modules` is a pattern: its base is not saved beside its adapter."""
    match = save_and_load.match_target_against_key

    def unnoticed(target_pattern: str, key: str) -> None:
        if match(target_pattern, key):
            plant.act()

    plant.setattr(save_and_load, "match_target_against_key", unnoticed, counted=False)
