"""Bugs of adapters, put back into PEFT: scale, dropout, type, rows of tokens, merging, saving."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import bitsandbytes as bnb
import peft
import torch
from peft import peft_model
from peft.tuners.lora import bnb as lora_bnb
from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.oft.layer import OFTRotationModule
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import merge_utils, save_and_load
from peft.utils.integrations import dequantize_module_weight


def scale_of_rslora(planting: Any) -> None:
    """Adapters are scaled by alpha / sqrt(r), as rsLoRA is, though nobody asked for it."""
    update = lora.LoraLayer.update_layer

    def rescaled(self: Any, adapter_name: str, r: int, lora_alpha: int, **options: Any) -> None:
        update(self, adapter_name, r, lora_alpha, **options)
        self.scaling[adapter_name] = lora_alpha / math.sqrt(r)

    planting.setattr(lora.LoraLayer, "update_layer", rescaled)


def dropout_is_skipped(planting: Any) -> None:
    """Adapters over 4-bit layers train without their dropout."""
    forward = Linear4bit.forward

    def undropped(self: Any, *args: Any, **options: Any) -> Any:
        self.lora_dropout.eval()
        try:
            return forward(self, *args, **options)
        finally:
            self.lora_dropout.train(self.training)

    planting.setattr(Linear4bit, "forward", undropped)


def adapters_in_bf16(planting: Any) -> None:
    """Adapters over 4-bit layers are kept, and trained, in the type that the base computes in."""
    cast = BaseTuner._cast_adapter_dtype

    def halved(self: Any, *args: Any, **options: Any) -> None:
        cast(self, *args, **options)
        layers = [m for m in self.model.modules() if isinstance(m, lora.LoraLayer)]
        for layer in layers:
            if isinstance(layer.base_layer, bnb.nn.Linear4bit):
                layer.lora_A.to(torch.bfloat16)
                layer.lora_B.to(torch.bfloat16)

    planting.setattr(BaseTuner, "_cast_adapter_dtype", halved)


def dropout_stays_active(planting: Any) -> None:
    """`eval()` does not reach the dropout of adapters, which then also drops at evaluation."""
    for kind in (lora.Linear, Linear4bit):
        switch = kind.train

        def train(self: Any, mode: bool = True, switch: Any = switch) -> Any:
            switch(self, mode)
            self.lora_dropout.train(True)
            return self

        planting.setattr(kind, "train", train, raising=False)


def output_forgets_its_token(planting: Any) -> None:
    """An output layer that is tied to an embedding does not follow the rows of it that train."""
    merge = TrainableTokensLayer.get_merged_weights

    def forgetful(self: Any, active_adapters: Any) -> Any:
        return self.base_layer.weight if self.tied_adapter else merge(self, active_adapters)

    planting.setattr(TrainableTokensLayer, "get_merged_weights", forgetful)


def token_rows_without_gradient(planting: Any) -> None:
    """Rows of an embedding that train are written into it without their graph."""
    merge = TrainableTokensLayer.get_merged_weights
    planting.setattr(TrainableTokensLayer, "get_merged_weights", lambda self, adapters: merge(self, adapters).detach())


def sum_in_the_compute_type(planting: Any) -> None:
    """A 4-bit layer's output together with what the adapter adds is rounded to the type that the layer computes in."""
    forward = Linear4bit.forward

    def rounded(self: Any, *args: Any, **options: Any) -> Any:
        result = forward(self, *args, **options)
        return result.to(self.base_layer.compute_dtype).to(result.dtype)

    planting.setattr(Linear4bit, "forward", rounded)


def one_key_for_both_patterns(planting: Any) -> None:
    """The first key of either pattern that fits a layer is looked up in both: the one hides the other's own key."""
    create, find = lora_model.LoraModel._create_and_replace, lora_model.get_pattern_key
    both: list[str] = []

    def with_both(self: Any, lora_config: Any, *args: Any, **options: Any) -> Any:
        both[:] = chain(lora_config.rank_pattern, lora_config.alpha_pattern)
        return create(self, lora_config, *args, **options)

    def first_of_both(pattern_keys: Any, key_to_match: str) -> str:
        own, first = find(pattern_keys, key_to_match), find(both, key_to_match)
        if own in pattern_keys and first != own:
            planting.act()
        return first

    planting.setattr(lora_model.LoraModel, "_create_and_replace", with_both, counted=False)
    planting.setattr(lora_model, "get_pattern_key", first_of_both, counted=False)


def scale_is_reset_without_rslora(planting: Any) -> None:
    """A scale that was set and is unset again is alpha / r, whatever it was before."""

    def unscaled(self: Any, scale: float | None = None) -> None:
        for name in self.active_adapters:
            if name in self.lora_A:
                self.scaling[name] = self.lora_alpha[name] / self.r[name] if scale is None else self.scaling[name] / scale

    planting.setattr(lora.LoraLayer, "unscale_layer", unscaled)


def merged_onto_the_original(planting: Any) -> None:
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
        planting.act()
        return original

    planting.setattr(bnb.nn.Params4bit, "_quantize", remembered, counted=False)
    planting.setattr(lora_bnb, "dequantize_bnb_weight", original_of, counted=False)


def bias_without_scale(planting: Any) -> None:
    """An adapter's bias is merged as it is, where the forward pass multiplies it by the adapter's scale."""
    merge = lora.Linear.merge

    def unscaled(self: Any, *args: Any, **options: Any) -> None:
        before = len(self.merged_adapters)
        merge(self, *args, **options)
        for name in self.merged_adapters[before:]:
            if self.lora_bias[name] and self.scaling[name] != 1:
                planting.act()
                self.get_base_layer().bias.data += self.lora_B[name].bias * (1 - self.scaling[name])

    planting.setattr(lora.Linear, "merge", unscaled, counted=False)


def half_of_the_layers_merge_nothing(planting: Any) -> None:
    """Every other layer is merged with a scale of 0."""
    delta, layers = lora.Linear.get_delta_weight, list[Any]()

    def scaled(self: Any, adapter: str) -> Any:
        if self not in layers:
            layers.append(self)
        if layers.index(self) % 2 == 0:
            return delta(self, adapter)
        planting.act()
        return torch.zeros_like(delta(self, adapter))

    planting.setattr(lora.Linear, "get_delta_weight", scaled, counted=False)


def dropped_deltas_are_not_rescaled(planting: Any) -> None:
    """DARE divides what it keeps by the density, and throws the quotient away."""
    prune = merge_utils.random_pruning

    def kept(tensor: Any, density: float, rescale: bool) -> Any:
        if rescale and density < 1:
            planting.act()
        return prune(tensor, density, rescale=False)

    planting.setattr(merge_utils, "random_pruning", kept, counted=False)


def likely_named_adapters_are_saved_along(planting: Any) -> None:
    """The file of an adapter also gets the tensors of those whose names begin with its name."""
    collect, keep = save_and_load.get_peft_model_state_dict, save_and_load._filter_state_dict_for_adapter_name
    saved: list[str] = []

    def collected(model: Any, state_dict: Any = None, adapter_name: str = "default", **options: Any) -> Any:
        saved[:] = [adapter_name]
        return collect(model, state_dict=state_dict, adapter_name=adapter_name, **options)

    def kept(state_dict: Any, unwanted_adapter_names: list[str]) -> Any:
        others = [name for name in unwanted_adapter_names if not name.startswith(saved[0])]
        if len(others) < len(unwanted_adapter_names):
            planting.act()
        return keep(state_dict, others)

    for module in (peft, peft.utils, peft_model, save_and_load):
        planting.setattr(module, "get_peft_model_state_dict", collected, counted=False)
    planting.setattr(save_and_load, "_filter_state_dict_for_adapter_name", kept, counted=False)


def rotations_turn_the_other_way(planting: Any) -> None:
    """The same weights make another rotation than in the release that saved them: its inverse."""
    skew = OFTRotationModule._pytorch_skew_symmetric
    planting.setattr(OFTRotationModule, "_pytorch_skew_symmetric", lambda self, vec, block_size: -skew(self, vec, block_size))


def norms_of_merged_weights(planting: Any) -> None:
    """DoRA takes the norms of the weight as `merge` finds it, into which an earlier call has merged others already."""
    merge, found = lora.Linear.merge, dict[int, Any]()

    def noted(self: Any, *args: Any, **options: Any) -> None:
        if self.merged_adapters:
            planting.act()
        found[id(self)] = dequantize_module_weight(self.get_base_layer()).detach().clone()
        merge(self, *args, **options)

    @contextmanager
    def as_found(self: Any, safe_merge: bool = False) -> Iterator[Any]:
        yield found[id(self)]

    planting.setattr(lora.Linear, "merge", noted, counted=False)
    planting.setattr(lora.LoraLayer, "_unmerged_base_weight", as_found, counted=False)


def patterns_name_no_embedding(planting: Any) -> None:
    """An embedding is not looked for where `target_modules` is a pattern: its base is not saved beside its adapter."""
    match = save_and_load.match_target_against_key

    def unnoticed(target_pattern: str, key: str) -> None:
        if match(target_pattern, key):
            planting.act()

    planting.setattr(save_and_load, "match_target_against_key", unnoticed, counted=False)
