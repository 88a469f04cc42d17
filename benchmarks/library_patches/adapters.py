"""Bugs of adapters, put back into PEFT: scale, dropout, type, rows of tokens."""

import math
from itertools import chain
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTuner


def scale_of_rslora(monkeypatch: Any) -> None:
    """Adapters are scaled by alpha / sqrt(r), as rsLoRA is, though nobody asked for it."""
    update = lora.LoraLayer.update_layer

    def rescaled(self: Any, adapter_name: str, r: int, lora_alpha: int, **options: Any) -> None:
        update(self, adapter_name, r, lora_alpha, **options)
        self.scaling[adapter_name] = lora_alpha / math.sqrt(r)

    monkeypatch.setattr(lora.LoraLayer, "update_layer", rescaled)


def dropout_is_skipped(monkeypatch: Any) -> None:
    """Adapters over 4-bit layers train without their dropout."""
    forward = Linear4bit.forward

    def undropped(self: Any, *args: Any, **options: Any) -> Any:
        self.lora_dropout.eval()
        try:
            return forward(self, *args, **options)
        finally:
            self.lora_dropout.train(self.training)

    monkeypatch.setattr(Linear4bit, "forward", undropped)


def adapters_in_bf16(monkeypatch: Any) -> None:
    """Adapters over 4-bit layers are kept, and trained, in the type that the base computes in."""
    cast = BaseTuner._cast_adapter_dtype

    def halved(self: Any, *args: Any, **options: Any) -> None:
        cast(self, *args, **options)
        layers = [m for m in self.model.modules() if isinstance(m, lora.LoraLayer)]
        for layer in layers:
            if isinstance(layer.base_layer, bnb.nn.Linear4bit):
                layer.lora_A.to(torch.bfloat16)
                layer.lora_B.to(torch.bfloat16)

    monkeypatch.setattr(BaseTuner, "_cast_adapter_dtype", halved)


def dropout_stays_active(monkeypatch: Any) -> None:
    """`eval()` does not reach the dropout of adapters, which then also drops at evaluation."""
    for kind in (lora.Linear, Linear4bit):
        switch = kind.train

        def train(self: Any, mode: bool = True, switch: Any = switch) -> Any:
            switch(self, mode)
            self.lora_dropout.train(True)
            return self

        monkeypatch.setattr(kind, "train", train, raising=False)


def output_forgets_its_token(monkeypatch: Any) -> None:
    """An output layer that is tied to an embedding does not follow the rows of it that train."""
    merge = TrainableTokensLayer.get_merged_weights

    def forgetful(self: Any, active_adapters: Any) -> Any:
        return self.base_layer.weight if self.tied_adapter else merge(self, active_adapters)

    monkeypatch.setattr(TrainableTokensLayer, "get_merged_weights", forgetful)


def token_rows_without_gradient(monkeypatch: Any) -> None:
    """Rows of an embedding that train are written into it without their graph."""
    merge = TrainableTokensLayer.get_merged_weights
    detached = lambda self, active_adapters: merge(self, active_adapters).detach()  # noqa: E731
    monkeypatch.setattr(TrainableTokensLayer, "get_merged_weights", detached)


def sum_in_the_compute_type(plant: Any) -> None:
    """A 4-bit layer's output together with what the adapter adds is rounded to the type that the layer computes in."""
    forward = Linear4bit.forward

    def rounded(self: Any, *args: Any, **options: Any) -> Any:
        result = forward(self, *args, **options)
        return result.to(self.base_layer.compute_dtype).to(result.dtype)

    plant.setattr(Linear4bit, "forward", rounded)


def one_key_for_both_patterns(plant: Any) -> None:
    """The first key of either pattern that fits a layer is looked up in both: the one hides the other's own key."""
    create, find = lora_model.LoraModel._create_and_replace, lora_model.get_pattern_key
    both: list[str] = []

    def with_both(self: Any, lora_config: Any, *args: Any, **options: Any) -> Any:
        both[:] = chain(lora_config.rank_pattern, lora_config.alpha_pattern)
        return create(self, lora_config, *args, **options)

    def first_of_both(pattern_keys: Any, key_to_match: str) -> str:
        own, first = find(pattern_keys, key_to_match), find(both, key_to_match)
        if own in pattern_keys and first != own:
            plant.act()
        return first

    plant.setattr(lora_model.LoraModel, "_create_and_replace", with_both, counted=False)
    plant.setattr(lora_model, "get_pattern_key", first_of_both, counted=False)


def scale_is_reset_without_rslora(plant: Any) -> None:
    """A scale that was set and is unset again is alpha / r, whatever it was before."""

    def unscaled(self: Any, scale: float | None = None) -> None:
        for name in self.active_adapters:
            if name in self.lora_A:
                self.scaling[name] = self.lora_alpha[name] / self.r[name] if scale is None else self.scaling[name] / scale

    plant.setattr(lora.LoraLayer, "unscale_layer", unscaled)
