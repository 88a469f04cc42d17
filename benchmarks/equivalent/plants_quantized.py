"""Plants of packed weights and moments: each breaks the row of the table that names it."""

from typing import Any

import bitsandbytes as bnb
import torch


def zero_is_no_level(monkeypatch: Any) -> None:
    """The levels are symmetric, and zero is none of them: NF4 without its extra value."""
    usual = bnb.functional.get_4bit_type

    def symmetric(typename: str, *args: Any, **options: Any) -> Any:
        levels = usual(typename, *args, **options)
        return torch.where(levels == 0, levels[8] / 2, levels)

    monkeypatch.setattr(bnb.functional, "get_4bit_type", symmetric)


def last_block_takes_the_scale_before(monkeypatch: Any) -> None:
    """What is left behind whole blocks is divided by the scale of the block before."""
    quantize = bnb.functional.quantize_4bit

    def short(weight: Any, *args: Any, blocksize: int = 64, **options: Any) -> Any:
        rest = weight.numel() % blocksize
        if rest and weight.numel() > blocksize:
            flat = weight.clone().flatten()
            size = flat[-rest - blocksize : -rest].abs().max()
            flat[-1] = size * flat[-1].sign()
            weight = flat.reshape(weight.shape)
        return quantize(weight, *args, blocksize=blocksize, **options)

    monkeypatch.setattr(bnb.functional, "quantize_4bit", short)


def levels_are_fp4(monkeypatch: Any) -> None:
    """Weights are packed to the levels of FP4, bitsandbytes' default, whatever was asked for."""
    quantize = torch.ops.bitsandbytes.quantize_4bit.default

    class Fp4:
        default = staticmethod(lambda weight, size, kind, storage: quantize(weight, size, "fp4", storage))

    monkeypatch.setattr(torch.ops.bitsandbytes, "quantize_4bit", Fp4, raising=False)


def scales_lose_their_mean(monkeypatch: Any) -> None:
    """Unpacking forgets the mean that was taken off the scales: they come back around zero."""
    dequantize = bnb.functional.dequantize_4bit

    def without(weight: Any, state: Any = None, *args: Any, **options: Any) -> Any:
        offset, state.offset = state.offset, state.offset * 0
        try:
            return dequantize(weight, state, *args, **options)
        finally:
            state.offset = offset

    monkeypatch.setattr(bnb.functional, "dequantize_4bit", without)
