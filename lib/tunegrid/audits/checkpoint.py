"""Audits of where weights come from: whether those of a built model are its checkpoint's."""

import math
import re
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors import safe_open
from torch import Tensor

from tunegrid.audits.built import BLOCK, base_layers
from tunegrid.audits.evidence import Evidence
from tunegrid.grid.backbones import within
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Answer
from tunegrid.run.build import base_type, embedding_name
from tunegrid.run.weights import files_by_key, lacking_modules, matching_keys, weight_files

ROWS = 16 * BLOCK  # of a packed matrix that are compared, whole blocks of them: all of most layers, and a part of huge ones
# Between packed weights and the checkpoint's rounded here: what double quantization rounds in the scales, at most 0.6 % on the
# micro backbones. Blocks of 128 are at least 8 % off, FP4 14 %, another layer's weights 100 %.
ROUNDED = 0.03
LAYER = re.compile(r"(.*?)\.(\d+)\.")
# Appendix E of Dettmers et al. 2023.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def checkpoint_loaded(evidence: Evidence) -> Answer:
    """Every pretrained tensor that is neither packed nor rewritten started as the checkpoint has it, bit for bit.

    And the model has every layer that the checkpoint has: where a config says fewer, loading leaves the others out. An
    embedding that grew by a token has the checkpoint's rows before it.
    """
    if evidence.cell.profile.random_weights or evidence.cell.profile.perturbation is not None:
        return None
    lacking = lacking_modules(evidence.cell)
    started = [name for name in evidence.trainer.before if _pretrained(evidence, name) and not within(name, lacking)]
    others = sorted(evidence.not_from_checkpoint.intersection(started))
    if others or not started:
        return False, (
            f"{len(others)} of {len(started)} pretrained tensors are not the checkpoint's of their name: "
            f"{', '.join(others[:3])}"
        )
    if missing := left_out(evidence):
        return False, f"the checkpoint has {', '.join(missing)}, which the model leaves out: what does its config say?"
    if rows := overwritten_rows(evidence):
        return False, f"{len(rows)} rows of the embedding, which grew by a token, are not the checkpoint's: row {rows[0]} first"
    return True, f"{len(started)} tensors are the checkpoint's" + (f"; it lacks {', '.join(lacking)}" if lacking else "")


def overwritten_rows(evidence: Evidence) -> list[int]:
    """Rows before the new token's that are not the checkpoint's; where training has begun, nobody can tell any more."""
    token, trainer = evidence.cell.head.new_token, evidence.trainer
    if token is None or trainer.log.updates:
        return []
    embedding, files = embedding_name(evidence.model), files_by_key(tuple(weight_files(evidence.cell)))
    own = [p for name, p in trainer.parameters.items() if embedding in name.split(".") and _grew(evidence, p)]
    keys = [key for key in files if key.split(".")[-2:] == [embedding, "weight"]]
    pairs = [(ours, _read(files[key], key).to(ours.dtype)) for ours in own for key in keys]
    new: int = evidence.codec.tokenizer.convert_tokens_to_ids(token)
    return [row for ours, stored in pairs for row in _other_rows(ours.detach().cpu()[:new], stored[:new])]


def _other_rows(ours: Tensor, stored: Tensor) -> list[int]:
    rows = min(len(ours), len(stored))
    return (ours[:rows] != stored[:rows]).any(1).nonzero().flatten().tolist()


def left_out(evidence: Evidence) -> list[str]:
    """Layers of the checkpoint that are nowhere in the model, though others of their stack are; a decoder may be left out."""
    files = tuple(weight_files(evidence.cell))
    found = {key for name in evidence.trainer.before for key in matching_keys(name, files)}
    layers, used = ({layer for key in keys if (layer := _layer_of(key))} for keys in (files_by_key(files), found))
    stacks = {stack for stack, _ in used}
    return [f"{stack}.{number}" for stack, number in sorted(layers - used) if stack in stacks]


def _layer_of(key: str) -> tuple[str, int] | None:
    """The stack and the number of a tensor's layer, as in encoder.layer and 2; None outside of all layers."""
    match = LAYER.match(key)
    return (match[1], int(match[2])) if match else None


def _pretrained(evidence: Evidence, name: str) -> bool:
    """Whether a parameter should be a tensor of the checkpoint: not new, packed, rewritten or grown by a token."""
    head, parameter = evidence.cell.head, evidence.trainer.parameters[name]
    if parameter.dtype is not base_type(evidence.cell) or name in evidence.own:
        return False
    if within(name, head.new_modules + head.adapted_modules) or within(name, evidence.cell.method.rewritten(evidence.cell)):
        return False
    return not _grew(evidence, parameter)


def _grew(evidence: Evidence, parameter: Tensor) -> bool:
    """Whether a parameter has a row for every token of a vocabulary that grew by one."""
    return bool(evidence.cell.head.new_token) and parameter.shape[0] == len(evidence.codec.tokenizer)


def packed_from_checkpoint(evidence: Evidence) -> Answer:
    """All packed weights, unpacked again, are the tensors of their keys in the checkpoint as rounded to NF4."""
    cell = evidence.cell
    declared = cell.quantization and cell.quantization.bnb_4bit_quant_type == "nf4"
    if not declared or cell.profile.random_weights:
        return None
    new = (*cell.head.new_modules, *cell.head.adapted_modules, *cell.method.rewritten(cell))
    packed = {name: m for name, m in base_layers(evidence.model) if isinstance(m, bnb.nn.Linear4bit) and not within(name, new)}
    whole = {name: layer for name, layer in packed.items() if layer.in_features % BLOCK == 0}  # rows of whole blocks
    gaps = {name: _rounding_gap(layer.weight, name, cell) for name, layer in whole.items()}
    if not gaps:
        return None
    odd = [f"{name} ({gap:.1%})" for name, gap in gaps.items() if gap > ROUNDED]
    return not odd, f"{len(gaps)} of {len(packed)} layers" + (
        f"; {len(odd)} have other weights than the checkpoint's of their name: {', '.join(odd[:2])}" if odd else ""
    )


def _rounding_gap(weight: Any, name: str, cell: Cell) -> float:
    """How far a packed weight (out, in) is from its checkpoint's tensor, rounded here, in units of the tensor's norm."""
    ours = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float().cpu()
    files = tuple(weight_files(cell))
    stored = [_read(files_by_key(files)[other], other) for other in matching_keys(f"{name}.weight", files)]
    matrices = [one for tensor in stored if tensor.ndim == 2 for one in (tensor, tensor.T) if one.shape == ours.shape]
    least = math.inf
    for matrix in matrices:
        least = min(least, _gap(ours[:ROWS], matrix[:ROWS].to(base_type(cell)).float()))
        if least <= ROUNDED:
            break  # the other way round it is another matrix
    return least


def _gap(ours: Tensor, stored: Tensor) -> float:
    return float((ours - nf4(stored)).norm() / stored.norm())


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor


def nf4(weight: Tensor) -> Tensor:
    """A weight rounded to NF4: in blocks, to the nearest of 16 levels times the block's largest absolute value."""
    blocks = weight.reshape(-1, BLOCK)  # row by row
    largest = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = torch.tensor(NF4_LEVELS)
    return (levels[torch.bucketize(blocks / largest, (levels[1:] + levels[:-1]) / 2)] * largest).reshape(weight.shape)
