"""Audits that run before training, on the newly built model, its checkpoint and its rows."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
)
from tunegrid.run.probe import keep_state

SEED_DRAWS = 8  # random numbers that identify a seed
BLOCK = 64  # weights that share a scale in NF4 (Dettmers et al. 2023, section 3)
# Maximum number of rows of a packed matrix to compare; the rest of a huge layer is skipped.
ROWS = 16 * BLOCK
LAYER = re.compile(r"(.*?)\.(\d+)\.")
# Allowed relative gap between packed weights and the checkpoint's as rounded by `nf4`. Double
# quantization rounds the scales, which moves weights by at most 0.6 % on the micro backbones.
# Blocks of 128 are off by at least 8 %, FP4 by 14 %, another layer's weights by 100 %.
ROUNDED = 0.03
# From appendix E of Dettmers et al. 2023.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def drawn_from_the_seed(evidence: Evidence) -> Answer:
    """The cell's seed determines torch's random numbers and the initial trainable tensors.

    On micro backbones, the tensors are compared with a second model's. Larger backbones skip this,
    since two models may not fit in memory.
    """
    profile, device = evidence.cell.profile, evidence.device
    generator = torch.Generator(device).manual_seed(profile.seed)
    numbers = torch.rand(SEED_DRAWS, generator=generator, device=device)
    trained = evidence.trained if profile.micro else {}
    rebuilt: Mapping[str, Any] = {}
    with keep_state(evidence.trainer):
        hf.set_seed(profile.seed)
        drawn_numbers = torch.rand(SEED_DRAWS, device=device)
        if profile.micro:
            second_model = build(evidence.cell, evidence.codec.tokenizer, device)
            rebuilt = checksums(
                (name, p) for name, p in second_model.named_parameters() if name in trained
            )
    if not torch.equal(drawn_numbers, numbers):
        generator_name = f"torch's generator at seed {profile.seed}"
        return False, f"transformers' `set_seed` gives other random numbers than {generator_name}"
    differing = [name for name in trained if rebuilt.get(name) != evidence.trainer.before[name]]
    detail = f"random numbers of seed {profile.seed}, {len(trained)} tensors"
    return expect_none(differing, detail, "not as the seed initializes them")


def adapters_where_declared(evidence: Evidence) -> Answer:
    """Exactly the method's target layers have adapters, each with the declared settings."""
    method, cell = evidence.cell.method, evidence.cell
    layers = adapted_layers(evidence.model)
    targets = method.targets(cell)
    if not targets:
        kind = "has no target layers" if method.adapts else "trains in full"
        return not layers, f"{len(layers)} adapters in a model that {kind}"
    ends = tuple(f".{target}" for target in targets)
    expected = set()
    for name, _ in base_layers(evidence.model):
        # PEFT matches names like this, and never adapts a module that it trains in full.
        if f".{name}".endswith(ends) and not is_part(name, cell.head.new_modules):
            expected.add(name)
    unlike_layers = sorted(expected.symmetric_difference(layers.values()))
    if unlike_layers:
        counts = f"{len(layers)} adapters, but {len(expected)} layers are targets"
        return False, f"{counts}; the first that differs is {unlike_layers[0]}"
    faults = []
    kinds = set()
    for layer, name in layers.items():
        facts = method.layer_facts(layer)
        declared = method.declared_facts(cell, name)
        kinds.add(facts)
        if facts != declared:
            faults.append(f"{name} should have {', '.join(declared)}")
    detail = f"{len(layers)} adapters"
    described = " and ".join(", ".join(facts) for facts in sorted(kinds) if facts)
    if described:
        detail = f"{detail}: {described}"
    return expect_none(faults, detail, "differ from their declaration")


def is_adapted(module: nn.Module) -> bool:
    """Checks whether a layer has a PEFT adapter; an embedding with trained rows does not count."""
    return isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer)


def adapted_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Maps each layer that has a PEFT adapter to the layer's name."""
    return {module: name for name, module in model.named_modules() if is_adapted(module)}


def base_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields (name, module) pairs, with each adapted layer replaced by its base layer."""
    adapter: str | None = None
    for name, module in model.named_modules():
        if adapter is not None and name.startswith(adapter):
            continue
        adapter = f"{name}." if is_adapted(module) else None
        yield name, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def quantized_as_declared(evidence: Evidence) -> Answer:
    """All linear layers of a quantized base are packed as declared, with a few exceptions.

    The head's new and tied modules, and the modules that transformers keeps in fp32, are not
    packed. Without quantization, a cell has no quantized layers.
    """
    modules = list(evidence.model.modules())
    packed_layers = [module for module in modules if isinstance(module, bnb.nn.Linear4bit)]
    int8_count = sum(isinstance(module, bnb.nn.Linear8bitLt) for module in modules)
    config = evidence.cell.quantization
    head = evidence.cell.head
    if config is None:
        count = len(packed_layers) + int8_count
        return not count, f"{count} quantized layers"
    exempt_modules = {*head.new_modules, *head.tied_modules}
    for module in modules:
        # For example, T5's wo.
        exempt_modules.update(getattr(module, "_keep_in_fp32_modules", None) or ())
    wrong_layers = []
    for name, layer in base_layers(evidence.model):
        is_packed = isinstance(layer, bnb.nn.Linear4bit)
        if isinstance(layer, nn.Linear | Conv1D) and is_part(name, exempt_modules) == is_packed:
            wrong_layers.append(name)
    declared = (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant, 0.5, BLOCK)
    kinds = {packing(layer) for layer in packed_layers}
    if int8_count or wrong_layers or kinds != {declared}:
        layers = f"{len(packed_layers)} layers packed to 4 bits as {kinds}, {int8_count} to 8 bits"
        wrong = f"{len(wrong_layers)} wrongly packed or not packed {wrong_layers[:2]}"
        return False, f"{layers}, {wrong}"
    kind = config.bnb_4bit_quant_type.upper()
    if config.bnb_4bit_use_double_quant:
        kind += " with double quantization"
    return True, f"{len(packed_layers)} layers, {kind}, half a byte a weight, blocks of {BLOCK}"


def packing(layer: Any) -> tuple[str, bool, float, int] | None:
    """A 4-bit layer's number type, use of double quantization, bytes per weight and block size.

    Returns None if the layer's weight has not been packed yet.
    """
    state = layer.weight.quant_state
    if not state:
        return None
    size = layer.weight.numel() / math.prod(state.shape)
    return state.quant_type, bool(state.nested), size, state.blocksize


# The checkpoint


def checkpoint_loaded(evidence: Evidence) -> Answer:
    """Pretrained tensors start bit-identical to the checkpoint's unless packed or rewritten.

    Every stack that the model uses has all of the checkpoint's layers; loading would drop layers
    that the config omits. An embedding that grew by a token begins with the checkpoint's rows.
    """
    cell, trainer = evidence.cell, evidence.trainer
    if cell.profile.random_weights or cell.profile.perturbation is not None:
        return None
    extras = lacking_modules(cell)
    exceptions = (*rewritten_modules(cell), *extras)
    grown_shape = (len(evidence.codec.tokenizer),) if cell.head.new_token else None
    grown_names = [name for name, p in trainer.parameters.items() if p.shape[:1] == grown_shape]
    pretrained = []
    for name, parameter in trainer.parameters.items():
        is_new = name in evidence.own or name in grown_names or is_part(name, exceptions)
        if parameter.dtype is base_type(cell) and not is_new:
            pretrained.append(name)
    differing = sorted(evidence.not_from_checkpoint.intersection(pretrained))
    if differing or not pretrained:
        counts = f"{len(differing)} of {len(pretrained)} pretrained tensors"
        names = ", ".join(differing[:3])
        return False, f"{counts} differ from the checkpoint's tensors of the same name: {names}"
    layer_names = missing_layers(evidence)
    if layer_names:
        names = ", ".join(layer_names)
        return False, f"the checkpoint has {names}, which the model lacks: check its config"
    changed_rows = overwritten_rows(evidence, grown_names)
    if changed_rows:
        detail = f"{len(changed_rows)} rows of the embedding, which grew by a token"
        return False, f"{detail}, differ from the checkpoint's: row {changed_rows[0]} first"
    detail = f"{len(pretrained)} tensors equal the checkpoint's"
    if extras:
        detail += f"; it lacks {', '.join(extras)}"
    return True, detail


def rewritten_modules(cell: Cell) -> tuple[str, ...]:
    """Names of modules whose weights may differ from the checkpoint's before training."""
    return (*cell.head.new_modules, *cell.head.adapted_modules, *cell.method.rewrites(cell))


def missing_layers(evidence: Evidence) -> list[str]:
    """Checkpoint layers that the model lacks although it has others from the same stack.

    A stack that the model lacks entirely, such as a decoder, is not reported.
    """
    files = evidence.checkpoint_files
    used_keys = chain.from_iterable(matching_keys(name, files) for name in evidence.trainer.before)
    used_layers = numbered_layers(used_keys)
    stacks = {stack for stack, _ in used_layers}
    missing = sorted(numbered_layers(files_by_key(files)) - used_layers)
    return [f"{stack}.{number}" for stack, number in missing if stack in stacks]


def numbered_layers(keys: Iterable[str]) -> set[tuple[str, int]]:
    """The stack and number of each layer that the keys name, such as ("encoder.layer", 2)."""
    return {(match[1], int(match[2])) for match in map(LAYER.match, keys) if match}


def overwritten_rows(evidence: Evidence, grown_names: Sequence[str]) -> list[int]:
    """Indices of the rows in a grown input embedding that differ from the checkpoint's rows.

    Empty once training has made an update.
    """
    if evidence.trainer.log.updates:
        return []
    embedding = embedding_name(evidence.model)
    rows: list[int] = []
    for name in grown_names:
        if embedding not in name.split("."):
            continue
        weight = evidence.trainer.parameters[name].detach().cpu()
        for key in files_by_key(evidence.checkpoint_files):
            if key.split(".")[-2:] != [embedding, "weight"]:
                continue
            source = stored_tensor(evidence, key)
            token = evidence.codec.tokenizer.convert_tokens_to_ids(evidence.cell.head.new_token)
            count = min(token, len(source))
            differs = weight[:count] != source[:count].to(weight.dtype)
            rows += differs.any(1).nonzero().flatten().tolist()
    return rows


def packed_from_checkpoint(evidence: Evidence) -> Answer:
    """Packed weights, once unpacked, are close to the checkpoint's weights rounded to NF4.

    Layers that the head or method rewrites, or whose rows are not whole blocks, are skipped.
    """
    cell = evidence.cell
    config = cell.quantization
    if cell.profile.random_weights or config is None or config.bnb_4bit_quant_type != "nf4":
        return None
    count = 0
    gaps: dict[str, float] = {}
    for name, layer in base_layers(evidence.model):
        if not isinstance(layer, bnb.nn.Linear4bit) or is_part(name, rewritten_modules(cell)):
            continue
        count += 1
        if layer.in_features % BLOCK == 0:  # every row consists of whole blocks
            gaps[name] = rounding_gap(evidence, name, layer.weight)
    if not gaps:
        return None
    largest_gap = Measured(max(gaps.values()), ROUNDED)
    detail = f"{len(gaps)} of {count} layers"
    if largest_gap:
        return largest_gap, f"{detail}, rounded as here but for {largest_gap.value:.1%}"
    faults = [f"{name} ({gap:.1%})" for name, gap in gaps.items() if not gap <= ROUNDED]
    return expect_none(faults, detail, "differ from the checkpoint's weights of the same name")


def rounding_gap(evidence: Evidence, name: str, weight: Any) -> float:
    """The relative distance of a packed weight (out, in) from its checkpoint tensor after `nf4`.

    At most `ROWS` rows are compared, relative to their norm in the checkpoint. If several tensors
    match the name, the first within `ROUNDED` counts, or else the closest. The distance is infinite
    if none matches.
    """
    unpacked = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float().cpu()
    gap = math.inf
    for key in matching_keys(f"{name}.weight", evidence.checkpoint_files):
        tensor = stored_tensor(evidence, key)
        if tensor.ndim != 2:
            continue
        for matrix in (tensor, tensor.T):  # Conv1D stores its weight transposed
            if matrix.shape != unpacked.shape:
                continue
            expected = matrix[:ROWS].to(base_type(evidence.cell)).float()
            gap = min(gap, float((unpacked[:ROWS] - nf4(expected)).norm() / expected.norm()))
            if gap <= ROUNDED:
                return gap
    return gap


def stored_tensor(evidence: Evidence, key: str) -> Tensor:
    """Reads a tensor from the cell's checkpoint."""
    with safe_open(files_by_key(evidence.checkpoint_files)[key], "pt") as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor


def nf4(weight: Tensor) -> Tensor:
    """Rounds a weight to NF4, block by block.

    Each value becomes the nearest of 16 levels times the block's largest absolute value.
    """
    blocks = weight.reshape(-1, BLOCK)  # row by row
    largest = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = torch.tensor(NF4_LEVELS)
    borders = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize(blocks / largest, borders)] * largest).reshape(weight.shape)


# Rows and labels


def labels_are_targets(evidence: Evidence) -> Answer:
    """In sampled rows, the labels that count in the loss are exactly the row's target."""
    rows = evidence.train_rows
    codec = evidence.codec
    features = sample(evidence.trainer.features)
    wrong_rows = []
    decoding_faults: list[str] = []
    for feature, label in zip(features, codec.collate(features)["labels"], strict=True):
        row = rows[feature.example]
        if not codec.label_is_target(row, feature, label):
            wrong_rows.append(feature.example)
            decoding_faults += decoding_fault(codec, row, label)
    detail = f"{len(features)} sampled rows"
    if wrong_rows and len(decoding_faults) == len(wrong_rows):
        fault = f"the tokenizer's decode() does not write what tokens say: {decoding_faults[0]}"
        return False, f"{detail}; of {len(wrong_rows)}, {fault}"
    return expect_none(wrong_rows, detail, "train on labels that are not their targets")


def decoding_fault(codec: Codec, row: Row, label: Tensor) -> list[str]:
    """Describes how the tokenizer decodes correct labels differently from its backend.

    Returns a list with one phrase; empty if they agree or the labels are wrong.
    """
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
    expected_part, decoded_part = differing_parts(text, decoded)
    return [f"{decoded_part!r} for {expected_part!r}"]


def answers_at_annotated_start(evidence: Evidence) -> Answer:
    """Labelled spans cover the annotated answers; windows that hold a whole answer are labelled."""
    codec, rows = require(evidence.codec, ExtractCodec), evidence.train_rows
    span_count = 0
    wrong_rows = []
    for feature in evidence.trainer.features:
        row = rows[feature.example]
        tokens = codec.labelled_tokens(feature)
        if tokens:
            span_count += 1
            first, last = tokens
            begin, end = answer_span(codec.task, row)
            matches = first[0] <= begin < first[1] and last[0] < end <= last[1]
        else:
            matches = not codec.holds_answer(row, feature)
        if not matches:
            wrong_rows.append(feature.example)
    detail = f"{span_count} labelled spans"
    passed, detail = expect_none(wrong_rows, detail, "windows have a wrong label or none, in rows")
    return passed and span_count > 0, detail


def offsets_show_their_tokens(evidence: Evidence) -> Answer:
    """In sampled windows, the text at a token's offsets has the token's letters and digits.

    Unknown tokens and non-ASCII text are skipped.
    """
    codec, rows = require(evidence.codec, ExtractCodec), evidence.train_rows
    matches = count = 0
    for feature in sample(evidence.trainer.features):
        text = context(codec.task, rows[feature.example])
        extra = feature.extra
        tokens = feature.input_ids[extra.shift : extra.shift + len(extra.offsets)]
        for token, (start, end) in zip(tokens, extra.offsets, strict=True):
            # Punctuation has no letters, and an unknown token decodes to a placeholder.
            letters = alphanumeric(codec.tokenizer.decode([token]))
            if not letters or token == codec.tokenizer.unk_token_id:
                continue
            if text[start:end].isascii():  # a token may be only part of a non-ASCII letter
                matches += letters == alphanumeric(text[start:end])
                count += 1
    return matches == count, f"{matches} of {count} tokens match their text"


def no_leakage(evidence: Evidence) -> Answer:
    """No test row has the same text as a training row."""
    splits = require(evidence.splits, Splits)
    leaked_rows = copies(evidence.cell, splits.test, splits.train)
    return expect_none(leaked_rows, f"{len(splits.test)} test rows", "also train")
