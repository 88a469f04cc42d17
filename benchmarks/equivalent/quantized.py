"""Packed weights and moments, by bitsandbytes and by their definition, which is written out here and shares no code with it.

NF4 (Dettmers et al. 2023, QLoRA): 16 levels, quantiles of a normal distribution, zero among them. A weight is the level nearest
to weight / absmax of its block of 64; two of them are a byte, the first one in the high half. Double quantization: the absmax
of blocks, less their mean, in blocks of 256 of 8-bit codes. Those codes (Dettmers et al. 2022, 8-bit optimizers) have a sign,
seven powers of ten, and as many steps within a power as bits are left.
"""

from dataclasses import replace
from typing import Any

import bitsandbytes as bnb
import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from benchmarks.equivalent.bench import Bench, Setting
from benchmarks.equivalent.compare import Fields
from tunegrid.grid.methods import LORA

BLOCK, BLOCK_OF_SCALES, BLOCK_OF_MOMENTS = 64, 256, 256
OUTERMOST = 0.9677083  # the quantile of the largest level: the mean of those that 15 and 16 levels would have
TIE = 1e-6  # a value so near to the middle of two levels may be either, in units of itself
# On a CPU bitsandbytes looks 8-bit codes up in a table of so many steps from -1 to 1: `KNOWN` has what that costs.
STEP = 2.0**-15
# Rows and columns: whole blocks, a block and a bit, less than a block, an odd count, and one scale more than a block of scales.
SHAPES = ((64, 64), (5, 26), (3, 6), (33, 65), (257, 64))


def nf4_levels() -> np.ndarray:
    """The 16 levels, from the quantiles: 8 above zero, zero, 7 below."""
    above = norm.ppf(np.linspace(OUTERMOST, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(OUTERMOST, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], below]))
    return levels / levels.max()


def dynamic_levels(signed: bool) -> np.ndarray:
    """The 256 levels of 8 bits: middles of even steps from 0.1 to 1 in each power of ten, zero and one."""
    levels = [0.0, 1.0]
    for power in range(7):
        edges = np.linspace(0.1, 1.0, 2**power * (1 if signed else 2) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (power - 6)
        levels += [*middles, *(-middles if signed else [])]
    return np.sort(np.array(levels))


def blocks_of(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Values divided by the largest size in their block, and that size, block by block; a block of zeros stays zeros."""
    starts = range(0, values.size, size)
    scales = np.array([np.abs(values[i : i + size]).max() for i in starts])
    divided = values / np.repeat(np.where(scales == 0, 1, scales), size)[: values.size]
    return divided, scales


def nearest(values: np.ndarray, levels: np.ndarray, given: np.ndarray, step: float = 0.0) -> np.ndarray:
    """The code of the nearest level; of two that are as near, but for a tie and a step, the one that is given."""
    codes = np.abs(values[:, None] - levels[None, :]).argmin(1)
    worse = np.abs(values - levels[given]) - np.abs(values - levels[codes])
    return np.where(worse <= TIE * np.abs(values) + step, given, codes)


# Tables


def tables(by_definition: bool) -> Setting:
    """The levels of NF4 and of both 8-bit types."""

    def ask(bench: Bench) -> Fields:
        if by_definition:
            found = [nf4_levels(), dynamic_levels(True), dynamic_levels(False)]
            return {"levels": [torch.from_numpy(one).float() for one in found]}
        maps = bnb.functional
        codes = (
            maps.get_4bit_type("nf4", device="cpu"),
            maps.create_dynamic_map(signed=True),
            maps.create_dynamic_map(signed=False),
        )
        return {"levels": [code.cpu() for code in codes]}

    return ask


# Weights


def packed(by_definition: bool) -> Setting:
    """Made-up weights of even and odd sizes, a block of zeros among them, packed with double quantization, and unpacked."""

    def ask(bench: Bench) -> Fields:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=generator) * 0.02 for shape in SHAPES]
        weights[0][1] = 0.0
        return _collected([_pack(weight, by_definition) for weight in weights])

    return ask


def packed_layers(by_definition: bool) -> Setting:
    """The packed layers of the cell's model; by definition, those of the checkpoint's weights."""

    def ask(bench: Bench) -> Fields:
        layers = {name: m for name, m in bench.model().named_modules() if isinstance(m, bnb.nn.Linear4bit)}
        plain = dict(bench.model(replace(bench.cell, method=replace(LORA, id=bench.cell.method.id))).named_modules())
        chosen = [*layers][:4]
        if not by_definition:
            return _collected([_stored(layers[name].weight.data, layers[name].weight.quant_state) for name in chosen])
        transposed = [plain[name].weight.T if "Conv1D" in type(plain[name]).__name__ else plain[name].weight for name in chosen]
        return _collected([_pack(weight.detach().contiguous(), True) for weight in transposed])

    return ask


def _collected(states: list[dict[str, Tensor]]) -> Fields:
    return {name: [state[name] for state in states] for name in states[0]}


def _pack(weight: Tensor, by_definition: bool) -> dict[str, Tensor]:
    packed, state = bnb.functional.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    return _defined(weight, packed, state) if by_definition else _stored(packed, state)


def _stored(packed: Tensor, state: Any) -> dict[str, Tensor]:
    """What bitsandbytes stores, and what it makes of it."""
    return {
        "codes": _halves(packed)[: state.shape.numel()],
        "scales": state.absmax,
        "scales of scales": state.state2.absmax,
        "mean scale": state.offset.reshape(1),
        "unpacked": bnb.functional.dequantize_4bit(packed, state).float(),
        "unpacked in bf16": bnb.functional.dequantize_4bit(packed, _as_bf16(state)).float(),
    }


def _as_bf16(state: Any) -> Any:
    facts = ("absmax", "shape", "code", "blocksize", "quant_type", "offset", "state2")
    return bnb.functional.QuantState(dtype=torch.bfloat16, **{name: getattr(state, name) for name in facts})


def _halves(packed: Tensor) -> Tensor:
    """One code of four bits each, the high half of a byte first."""
    flat = packed.flatten().view(torch.uint8)
    return torch.stack([flat >> 4, flat & 15], dim=1).flatten()


def _defined(weight: Tensor, packed: Tensor, state: Any) -> dict[str, Tensor]:
    """The same by definition, in double precision up to what is stored in single."""
    values, levels = weight.double().numpy().ravel(), nf4_levels()
    divided, scales = blocks_of(values, BLOCK)
    codes = nearest(divided, levels, _halves(packed)[: values.size].numpy())
    around = (scales.astype(np.float32) - state.offset.numpy()).astype(np.float64)  # as summed by bitsandbytes; held to below
    eight, (divided, outer) = dynamic_levels(True), blocks_of(around, BLOCK_OF_SCALES)
    of_scales = nearest(divided, eight, state.absmax.numpy(), STEP)
    of_scales = np.where(np.repeat(outer, BLOCK_OF_SCALES)[: scales.size] == 0, state.absmax.numpy(), of_scales)  # any will do
    found = (
        eight.astype(np.float32)[of_scales] * np.repeat(outer.astype(np.float32), BLOCK_OF_SCALES)[: scales.size]
        + state.offset.numpy()
    )
    unpacked = levels.astype(np.float32)[codes] * np.repeat(found, BLOCK)[: values.size]
    result = torch.from_numpy(unpacked).reshape(weight.shape)
    return {
        "codes": torch.from_numpy(codes).to(torch.uint8),
        "scales": torch.from_numpy(of_scales).to(torch.uint8),
        "scales of scales": torch.from_numpy(outer).float(),
        "mean scale": torch.tensor([scales.mean()]).float(),
        "unpacked": result,
        "unpacked in bf16": result.bfloat16().float(),
    }


# Moments


def stepped(by_definition: bool, step: float = STEP) -> Setting:
    """Two steps of AdamW with 8-bit moments on a weight of an odd size, whose last block is short.

    By definition, a code is that of the nearest level, but for a `step`.
    """

    def ask(bench: Bench) -> Fields:
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4096 + 37, generator=generator) * 0.02)
        start = weight.detach().clone()
        gradients = [torch.randn(weight.shape, generator=generator) * 1e-3 for _ in range(2)]
        optimizer = bnb.optim.AdamW8bit([weight], lr=1e-3, weight_decay=0.1)
        states = []
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
            states.append({name: value.clone() for name, value in optimizer.state[weight].items() if isinstance(value, Tensor)})
        if by_definition:
            return _adamw(start, gradients, states, step)
        return {
            "first moments": [state["state1"] for state in states],
            "second moments": [state["state2"] for state in states],
            "scales": [state[name] for state in states for name in ("absmax1", "absmax2")],
            "weights": weight.detach(),
        }

    return ask


def _adamw(weight: Tensor, gradients: list[Tensor], given: list[dict[str, Tensor]], slack: float) -> Fields:
    """AdamW with decoupled decay, in double precision over moments as they are stored."""
    values, rate, decay, (beta1, beta2), eps = weight.double().numpy(), 1e-3, 0.1, (0.9, 0.999), 1e-8
    levels = dynamic_levels(True), dynamic_levels(False)
    moments = [np.zeros(values.size), np.zeros(values.size)]
    codes: list[list[Tensor]] = [[], []]
    scales = []
    for step, gradient in enumerate(gradients, 1):
        g = gradient.double().numpy()
        moments = [beta1 * moments[0] + (1 - beta1) * g, beta2 * moments[1] + (1 - beta2) * g * g]
        first, second = moments[0] / (1 - beta1**step), moments[1] / (1 - beta2**step)
        values = values * (1 - rate * decay) - rate * first / (np.sqrt(second) + eps)
        for index in range(2):
            divided, sizes = blocks_of(moments[index], BLOCK_OF_MOMENTS)
            own = nearest(divided, levels[index], given[step - 1][f"state{index + 1}"].numpy(), slack)
            moments[index] = levels[index][own] * np.repeat(sizes, BLOCK_OF_MOMENTS)[: values.size]
            codes[index].append(torch.from_numpy(own).to(torch.uint8))
            scales.append(torch.from_numpy(sizes).float())
    return {
        "first moments": codes[0],
        "second moments": codes[1],
        "scales": scales,
        "weights": torch.from_numpy(values).float(),
    }
