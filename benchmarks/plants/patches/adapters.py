"""Bugs of adapters, put back into PEFT: scale, dropout, type, rows of tokens, merging, saving."""

import math
from contextlib import contextmanager
from itertools import chain

import bitsandbytes as bnb
import torch
from peft.tuners.lora import bnb as lora_bnb
from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.oft.layer import OFTRotationModule
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import merge_utils, save_and_load
from peft.utils.integrations import dequantize_module_weight

from benchmarks.plants.plant import around


@around(lora.LoraLayer, "update_layer")
def scale_of_rslora(planting, update, self, adapter_name, r, lora_alpha, **options):
    update(self, adapter_name, r, lora_alpha, **options)
    self.scaling[adapter_name] = lora_alpha / math.sqrt(r)


@around(Linear4bit, "forward")
def dropout_is_skipped(planting, forward, self, *args, **options):
    self.lora_dropout.eval()
    try:
        return forward(self, *args, **options)
    finally:
        self.lora_dropout.train(self.training)


@around(BaseTuner, "_cast_adapter_dtype")
def adapters_in_bf16(planting, cast, self, *args, **options):
    cast(self, *args, **options)
    layers = [m for m in self.model.modules() if isinstance(m, lora.LoraLayer)]
    for layer in layers:
        if isinstance(layer.base_layer, bnb.nn.Linear4bit):
            layer.lora_A.to(torch.bfloat16)
            layer.lora_B.to(torch.bfloat16)


def dropout_stays_active(planting):
    for kind in (lora.Linear, Linear4bit):
        switch = kind.train

        def train(self, mode=True, switch=switch):
            switch(self, mode)
            self.lora_dropout.train(True)
            return self

        planting.setattr(kind, "train", train, raising=False)


@around(TrainableTokensLayer, "get_merged_weights")
def output_forgets_its_token(planting, merge, self, active_adapters):
    return self.base_layer.weight if self.tied_adapter else merge(self, active_adapters)


@around(Linear4bit, "forward")
def sum_in_the_compute_type(planting, forward, self, *args, **options):
    result = forward(self, *args, **options)
    return result.to(self.base_layer.compute_dtype).to(result.dtype)


def one_key_for_both_patterns(planting):
    create, find = lora_model.LoraModel._create_and_replace, lora_model.get_pattern_key
    both = []

    def with_both(self, lora_config, *args, **options):
        both[:] = chain(lora_config.rank_pattern, lora_config.alpha_pattern)
        return create(self, lora_config, *args, **options)

    def first_of_both(pattern_keys, key_to_match):
        own, first = find(pattern_keys, key_to_match), find(both, key_to_match)
        if own in pattern_keys and first != own:
            planting.act()
        return first

    planting.setattr(lora_model.LoraModel, "_create_and_replace", with_both, counted=False)
    planting.setattr(lora_model, "get_pattern_key", first_of_both, counted=False)


def scale_is_reset_without_rslora(planting):
    def unscaled(self, scale=None):
        for name in self.active_adapters:
            if name in self.lora_A:
                self.scaling[name] = self.lora_alpha[name] / self.r[name] if scale is None else self.scaling[name] / scale

    planting.setattr(lora.LoraLayer, "unscale_layer", unscaled)


def merged_onto_the_original(planting):
    pack, unpack = bnb.nn.Params4bit._quantize, lora_bnb.dequantize_bnb_weight

    def remembered(self, device):
        original = self.data.detach().clone()
        packed = pack(self, device)
        packed._original = original  # PEFT hands attributes on that begin otherwise
        return packed

    def original_of(weight, *args, **options):
        original = getattr(weight, "_original", None)
        if original is None:
            return unpack(weight, *args, **options)
        planting.act()
        return original

    planting.setattr(bnb.nn.Params4bit, "_quantize", remembered, counted=False)
    planting.setattr(lora_bnb, "dequantize_bnb_weight", original_of, counted=False)


@around(lora.Linear, "merge", counted=False)
def bias_without_scale(planting, merge, self, *args, **options):
    before = len(self.merged_adapters)
    merge(self, *args, **options)
    for name in self.merged_adapters[before:]:
        if self.lora_bias[name] and self.scaling[name] != 1:
            planting.act()
            self.get_base_layer().bias.data += self.lora_B[name].bias * (1 - self.scaling[name])


def half_of_the_layers_merge_nothing(planting):
    delta, layers = lora.Linear.get_delta_weight, []

    def scaled(self, adapter):
        if self not in layers:
            layers.append(self)
        if layers.index(self) % 2 == 0:
            return delta(self, adapter)
        planting.act()
        return torch.zeros_like(delta(self, adapter))

    planting.setattr(lora.Linear, "get_delta_weight", scaled, counted=False)


@around(merge_utils, "random_pruning", counted=False)
def dropped_deltas_are_not_rescaled(planting, prune, tensor, density, rescale):
    if rescale and density < 1:
        planting.act()
    return prune(tensor, density, rescale=False)


def likely_named_adapters_are_saved_along(planting):
    """A file is not cleaned of the others: of "default_2" beside "default"."""
    planting.setattr(save_and_load, "_filter_state_dict_for_adapter_name", lambda states, unwanted: states)


@around(OFTRotationModule, "_pytorch_skew_symmetric")
def rotations_turn_the_other_way(planting, skew, self, vec, block_size):
    """The inverse."""
    return -skew(self, vec, block_size)


def norms_of_merged_weights(planting):
    merge, found = lora.Linear.merge, {}

    def noted(self, *args, **options):
        if self.merged_adapters:
            planting.act()
        found[id(self)] = dequantize_module_weight(self.get_base_layer()).detach().clone()
        merge(self, *args, **options)

    @contextmanager
    def as_found(self, safe_merge=False):
        yield found[id(self)]

    planting.setattr(lora.Linear, "merge", noted, counted=False)
    planting.setattr(lora.LoraLayer, "_unmerged_base_weight", as_found, counted=False)


@around(save_and_load, "match_target_against_key", counted=False)
def patterns_name_no_embedding(planting, match, target_pattern, key):
    if match(target_pattern, key):
        planting.act()
