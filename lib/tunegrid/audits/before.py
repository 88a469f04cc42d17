"""Audits before training: of what was built, of the checkpoint that it came from, and of the rows that train."""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import bitsandbytes as bnb
import torch
import transformers as hf
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunegrid.audits.evidence import Evidence, copies, differing_parts, expect_none, require, sample
from tunegrid.codecs.base import IGNORED, Codec, alphanumeric
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.sources import Row, answer_span, context
from tunegrid.data.splits import Splits
from tunegrid.grid.backbones import is_part
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Answer, Measured
from tunegrid.run.build import (
    base_type,
    build,
    checksums,
    embedding_name,
    files_by_key,
    lacking_modules,
    matching_keys,
    weight_files,
)
from tunegrid.run.probe import keep_state

SEED_DRAWS = 8  # random numbers that tell a seed
BLOCK = 64  # weights that share a scale in NF4 (Dettmers et al. 2023, section 3)
ROWS = 16 * BLOCK  # of a packed matrix that are compared, whole blocks of them: all of most layers, and a part of huge ones
LAYER = re.compile(r"(.*?)\.(\d+)\.")
# Between packed weights and the checkpoint's rounded here: what double quantization rounds in the scales, at most 0.6 % on the
# micro backbones. Blocks of 128 are at least 8 % off, FP4 14 %, another layer's weights 100 %.
ROUNDED = 0.03
# Appendix E of Dettmers et al. 2023.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def drawn_from_the_seed(evidence: Evidence) -> Answer:
    """The libraries' seed is torch's generator at the cell's seed, and what trains started as that draws it.

    The second part is asked on micro backbones only, built once more: elsewhere a second model may not fit beside the first.
    """
    seed, device = evidence.cell.profile.seed, evidence.device
    numbers = torch.rand(SEED_DRAWS, generator=torch.Generator(device).manual_seed(seed), device=device)
    with keep_state(evidence.trainer):
        hf.set_seed(seed)
        drawn_numbers = torch.rand(SEED_DRAWS, device=device)
        second_model = build(evidence.cell, evidence.codec.tokenizer, device) if evidence.cell.profile.micro else nn.Module()
    if not torch.equal(drawn_numbers, numbers):
        return False, f"transformers' `set_seed` gives other random numbers than torch's generator at seed {seed}"
    trained = evidence.trained if evidence.cell.profile.micro else {}
    seed_checksums = checksums((name, p) for name, p in second_model.named_parameters() if name in trained)
    differing = [name for name in trained if seed_checksums.get(name) != evidence.trainer.before[name]]
    return expect_none(differing, f"random numbers of seed {seed}, {len(trained)} tensors", "not as the seed initializes them")


def adapters_where_declared(evidence: Evidence) -> Answer:
    """Adapters are on all of the method's target layers and nowhere else, and have the declared facts."""
    method, cell = evidence.cell.method, evidence.cell
    layers = {name: module for name, module in evidence.model.named_modules() if is_adapted(module)}
    targets = method.targets(cell)
    if not targets:
        kind = "has no target layers" if method.adapts else "trains in full"
        return not layers, f"{len(layers)} adapters in a model that {kind}"
    expected = {  # by PEFT's rule for names; it never adapts what it trains in full
        name
        for name, _ in base_layers(evidence.model)
        if f".{name}".endswith(tuple(f".{target}" for target in targets)) and not is_part(name, cell.head.new_modules)
    }
    if unlike_layers := sorted(expected ^ set(layers)):
        return (
            False,
            f"{len(layers)} adapters, but {len(expected)} layers are targets; the first that differs is {unlike_layers[0]}",
        )
    layer_facts = {name: method.layer_facts(layer) for name, layer in layers.items()}
    kinds = " and ".join(", ".join(facts) for facts in sorted(set(layer_facts.values())) if facts)
    declared_facts = {name: method.declared_facts(cell, name) for name in layers}
    faults = [f"{name} should have {', '.join(facts)}" for name, facts in declared_facts.items() if facts != layer_facts[name]]
    return expect_none(faults, f"{len(layers)} adapters{f': {kinds}' if kinds else ''}", "differ from their declaration")


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT's tuner wraps this layer. The trained rows of an embedding do not count as an adapter."""
    return isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer)


def base_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The base's modules by name, taken out of the adapters around them; what an adapter adds is left out."""
    adapter: str | None = None
    for name, module in model.named_modules():
        if adapter is not None and name.startswith(adapter):
            continue
        adapter = f"{name}." if is_adapted(module) else None
        yield name, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def quantized_as_declared(evidence: Evidence) -> Answer:
    """A quantized base is packed as the method declares, exactly the linear layers that may be; no other model has any."""
    packed_layers = [m for m in evidence.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    int8_count = sum(isinstance(m, bnb.nn.Linear8bitLt) for m in evidence.model.modules())
    config = evidence.cell.quantization
    if config is None:
        return not packed_layers and not int8_count, f"{len(packed_layers) + int8_count} quantized layers"
    fp32_modules = [getattr(module, "_keep_in_fp32_modules", None) or () for module in evidence.model.modules()]  # as T5's wo
    exempt_modules = {*evidence.cell.head.new_modules, *evidence.cell.head.tied_modules, *chain.from_iterable(fp32_modules)}
    linear = [(name, layer) for name, layer in base_layers(evidence.model) if isinstance(layer, nn.Linear | Conv1D)]
    wrong_layers = [name for name, layer in linear if is_part(name, exempt_modules) == isinstance(layer, bnb.nn.Linear4bit)]
    states = [(layer.weight.numel(), layer.weight.quant_state) for layer in packed_layers]
    kinds = {(q.quant_type, bool(q.nested), size / math.prod(q.shape), q.blocksize) if q else None for size, q in states}
    if int8_count or wrong_layers or kinds != {(config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant, 0.5, BLOCK)}:
        layers = f"{len(packed_layers)} layers packed to 4 bits as {kinds}, {int8_count} to 8 bits"
        return False, f"{layers}, {len(wrong_layers)} wrongly packed or not packed {wrong_layers[:2]}"
    kind = f"{config.bnb_4bit_quant_type.upper()}{' with double quantization' if config.bnb_4bit_use_double_quant else ''}"
    return True, f"{len(packed_layers)} layers, {kind}, half a byte a weight, blocks of {BLOCK}"


# Where weights come from


def checkpoint_loaded(evidence: Evidence) -> Answer:
    """Every pretrained tensor that is neither packed nor rewritten started as the checkpoint has it, bit for bit.

    And the model has every layer that the checkpoint has: if a config says fewer, loading leaves the others out. An embedding
    that grew by a token has the checkpoint's rows before it.
    """
    cell, trainer = evidence.cell, evidence.trainer
    if cell.profile.random_weights or cell.profile.perturbation is not None:
        return None
    extras = lacking_modules(cell)
    exceptions = (*cell.head.new_modules, *cell.head.adapted_modules, *cell.method.rewrites(cell), *extras)
    rows = (len(evidence.codec.tokenizer),) if cell.head.new_token else None
    grown_names = [name for name, p in trainer.parameters.items() if p.shape[:1] == rows]
    pretrained = [
        name
        for name, p in trainer.parameters.items()
        if p.dtype is base_type(cell) and name not in evidence.own and name not in grown_names and not is_part(name, exceptions)
    ]
    differing = sorted(evidence.not_from_checkpoint.intersection(pretrained))
    if differing or not pretrained:
        counts = f"{len(differing)} of {len(pretrained)} pretrained tensors"
        return False, f"{counts} differ from the checkpoint's tensors of the same name: {', '.join(differing[:3])}"
    if layer_names := missing_layers(evidence):
        return False, f"the checkpoint has {', '.join(layer_names)}, which the model lacks: check its config"
    # Once training has begun, nobody can tell any more.
    if changed_rows := [] if trainer.log.updates else overwritten_rows(evidence, grown_names):
        detail = f"{len(changed_rows)} rows of the embedding, which grew by a token"
        return False, f"{detail}, differ from the checkpoint's: row {changed_rows[0]} first"
    return True, f"{len(pretrained)} tensors equal the checkpoint's" + (f"; it lacks {', '.join(extras)}" if extras else "")


def missing_layers(evidence: Evidence) -> list[str]:
    """Layers of the checkpoint that are nowhere in the model, though others of their stack are; a decoder may be left out."""
    files = tuple(weight_files(evidence.cell))
    used_keys = {key for name in evidence.trainer.before for key in matching_keys(name, files)}
    # The stack and the number of a tensor's layer, as in encoder.layer and 2.
    layers, used_layers = (
        {(match[1], int(match[2])) for key in keys if (match := LAYER.match(key))} for keys in (files_by_key(files), used_keys)
    )
    stacks = {stack for stack, _ in used_layers}
    return [f"{stack}.{number}" for stack, number in sorted(layers - used_layers) if stack in stacks]


def overwritten_rows(evidence: Evidence, grown: Sequence[str]) -> list[int]:
    """Rows of the input embedding, one of the parameters that grew by a token, that are not the checkpoint's."""
    embedding, rows = embedding_name(evidence.model), list[int]()
    weights = [evidence.trainer.parameters[name] for name in grown if embedding in name.split(".")]
    for key in files_by_key(tuple(weight_files(evidence.cell))) if weights else ():
        if key.split(".")[-2:] == [embedding, "weight"]:
            source = _stored_tensor(evidence.cell, key)
            count = min(evidence.codec.tokenizer.convert_tokens_to_ids(evidence.cell.head.new_token), len(source))
            for weight in weights:
                rows += (weight.detach().cpu()[:count] != source[:count].to(weight.dtype)).any(1).nonzero().flatten().tolist()
    return rows


def packed_from_checkpoint(evidence: Evidence) -> Answer:
    """All packed weights, unpacked again, are the tensors of their keys in the checkpoint as rounded to NF4."""
    cell = evidence.cell
    if cell.profile.random_weights or cell.quantization is None or cell.quantization.bnb_4bit_quant_type != "nf4":
        return None
    new = (*cell.head.new_modules, *cell.head.adapted_modules, *cell.method.rewrites(cell))
    layers = {name: m for name, m in base_layers(evidence.model) if isinstance(m, bnb.nn.Linear4bit) and not is_part(name, new)}
    aligned_layers = {name: layer for name, layer in layers.items() if layer.in_features % BLOCK == 0}  # rows of whole blocks
    gaps = {name: _rounding_gap(layer.weight, name, cell) for name, layer in aligned_layers.items()}
    if not gaps:
        return None
    largest_gap = Measured(max(gaps.values()), ROUNDED)
    detail = f"{len(gaps)} of {len(layers)} layers"
    if largest_gap:
        return largest_gap, f"{detail}, rounded as here but for {largest_gap.value:.1%}"
    faults = [f"{name} ({gap:.1%})" for name, gap in gaps.items() if not gap <= ROUNDED]
    return expect_none(faults, detail, "differ from the checkpoint's weights of the same name")


def _rounding_gap(weight: Any, name: str, cell: Cell) -> float:
    """How far a packed weight (out, in) is from its checkpoint's tensor, rounded here, in units of the tensor's norm."""
    weights = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float().cpu()
    tensors = [_stored_tensor(cell, key) for key in matching_keys(f"{name}.weight", tuple(weight_files(cell)))]
    gap = math.inf
    for matrix in (one for tensor in tensors if tensor.ndim == 2 for one in (tensor, tensor.T) if one.shape == weights.shape):
        part = matrix[:ROWS].to(base_type(cell)).float()
        gap = min(gap, float((weights[:ROWS] - nf4(part)).norm() / part.norm()))
        if gap <= ROUNDED:
            break  # the other way round it is another matrix
    return gap


def _stored_tensor(cell: Cell, key: str) -> Tensor:
    """A tensor of the cell's checkpoint."""
    with safe_open(files_by_key(tuple(weight_files(cell)))[key], "pt") as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor


def nf4(weight: Tensor) -> Tensor:
    """A weight rounded to NF4: in blocks, to the nearest of 16 levels times the block's largest absolute value."""
    blocks = weight.reshape(-1, BLOCK)  # row by row
    largest = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = torch.tensor(NF4_LEVELS)
    return (levels[torch.bucketize(blocks / largest, (levels[1:] + levels[:-1]) / 2)] * largest).reshape(weight.shape)


# Rows and labels


def labels_are_targets(evidence: Evidence) -> Answer:
    """What the loss counts, decoded again, is the target of its row, and nothing of the prompt or the padding."""
    rows = require(evidence.splits, Splits).train
    codec, features = evidence.codec, sample(evidence.trainer.features)
    wrong_rows, decoding_faults = list[int](), list[str]()
    for feature, label in zip(features, codec.collate(features)["labels"], strict=True):
        row = rows[feature.example]
        if not codec.label_is_target(row, feature, label):
            wrong_rows.append(feature.example)
            decoding_faults += decoding_fault(codec, row, label)
    if wrong_rows and len(decoding_faults) == len(wrong_rows):
        detail = f"the tokenizer's decode() does not write what tokens say: {decoding_faults[0]}"
        return False, f"{len(features)} sampled rows; of {len(wrong_rows)}, {detail}"
    return expect_none(wrong_rows, f"{len(features)} sampled rows", "train on labels that are not their targets")


def decoding_fault(codec: Codec, row: Row, label: Tensor) -> list[str]:
    """A phrase on right labels that the tokenizer decodes otherwise than its backend; none for wrong labels."""
    tokenizer = codec.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(codec, GenerateCodec):
        return []
    ids = label[label != IGNORED].tolist()
    text = backend.decode(ids, skip_special_tokens=True)
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    is_target = alphanumeric(codec.target_text(row)).startswith(alphanumeric(text))
    if decoded == text or not is_target or tokenizer.clean_up_tokenization_spaces:
        return []
    parts = differing_parts(text, decoded)
    return [f"{parts[1]!r} for {parts[0]!r}"]


def answers_at_annotated_start(evidence: Evidence) -> Answer:
    """Labelled spans begin and end where the annotation does, and every window that holds its answer has one."""
    codec, rows = require(evidence.codec, ExtractCodec), require(evidence.splits, Splits).train
    span_count, wrong_rows = 0, list[int]()
    for feature in evidence.trainer.features:
        row, tokens = rows[feature.example], codec.labelled_tokens(feature)
        if tokens:
            (first, last), (begin, end) = tokens, answer_span(codec.task, row)
            matches = first[0] <= begin < first[1] and last[0] < end <= last[1]
        else:
            matches = not codec.holds_answer(row, feature)
        span_count += tokens is not None
        wrong_rows += [] if matches else [feature.example]
    passed, detail = expect_none(wrong_rows, f"{span_count} labelled spans", "windows have a wrong label or none, in rows")  # type: ignore[misc]
    return passed and span_count > 0, detail


def offsets_show_their_tokens(evidence: Evidence) -> Answer:
    """The characters from which a token is said to come are its own."""
    codec, rows = require(evidence.codec, ExtractCodec), require(evidence.splits, Splits).train
    mismatches = count = 0
    for feature in sample(evidence.trainer.features):
        text, extra = context(codec.task, rows[feature.example]), feature.extra
        tokens = feature.input_ids[extra.shift : extra.shift + len(extra.offsets)]
        for token, (start, end) in zip(tokens, extra.offsets, strict=True):
            letters = alphanumeric(codec.tokenizer.decode([token]))  # nothing: a space before an unknown token
            if letters and token != codec.tokenizer.unk_token_id and text[start:end].isascii():  # it may be a part of a letter
                mismatches += letters != alphanumeric(text[start:end])
                count += 1
    return not mismatches, f"{count - mismatches} of {count} tokens match their text"


def no_leakage(evidence: Evidence) -> Answer:
    """No test row's text is among the training rows."""
    splits = require(evidence.splits, Splits)
    return expect_none(copies(evidence.cell, splits.test, splits.train), f"{len(splits.test)} test rows", "also train")
