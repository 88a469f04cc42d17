"""Audits the saved model: its files, and its output after loading and after merging."""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import PeftModel
from torch import Tensor, nn

from tunegrid.audits import saved_files
from tunegrid.audits.before import adapted_layers
from tunegrid.audits.evidence import Evidence, differing_parts, sample, worst_gap
from tunegrid.codecs.base import Feature, move_batch
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.sources import Row
from tunegrid.errors import first_line
from tunegrid.grid.methods import Answer, Lora, Measured, closest_to_limit
from tunegrid.machine import GIB, temporary_folder
from tunegrid.run.build import base_type, checksums, unpack_weight
from tunegrid.run.device import free_memory
from tunegrid.run.meter import tensor_bytes, weight_tensors
from tunegrid.run.prepare import make_codec
from tunegrid.run.probe import (
    COARSE,
    FINE,
    distance,
    get_logits,
    keep_state,
    output_logits,
    target_rows,
)

SERVED = 4  # maximum number of rows that the saved model predicts
BEYOND_ASCII = "Straße, çok güzel, 東京の天気, привет мир, naïve café 😀 €5."
PAIR = (
    "Is it a plain text, or another one?",
    "It isn't: 12.5 % of it is beyond ASCII, as in naïve.",
)
LONG = 60  # repetitions, which make the text longer than 512 tokens
LEVEL = 0.01  # relative tolerance; two 4-bit levels are farther apart
# Share of a packed layer's weights that may differ, since halfway values may round either way.
MOST_CODES = 1e-3
# The largest model, in GiB of weights, to load beside the trained one. The study's largest,
# BERT2BERT at its true size, has 0.95.
LARGEST_GIB = 4.0


def saved_is_served(evidence: Evidence) -> Answer:
    """The saved model equals the trained model in its files, after loading, and after merging.

    The files hold the trained tensors bit for bit, and the settings of the trained objects. Loaded
    again, they give the same tokens and logits, and the same answers if the logits are
    bit-identical. When PEFT merges an adapter into an NF4 layer, it packs the layer again, which
    rounds away changes of less than half a step between two levels. The merged layer is therefore
    compared with base plus adapter, and the merged model's logits are computed with the trained
    layers put back. A large model is not loaded.

    Returns None if weights are random, outputs have no logits, or the disk has no space for a full
    model.
    """
    if evidence.cell.profile.random_weights:
        return None
    try:
        quiet = warnings.catch_warnings()
        with temporary_folder() as folder, torch.no_grad(), keep_state(evidence.trainer), quiet:
            # PEFT warns of resized embeddings, and of rounding when it merges.
            warnings.simplefilter("ignore")
            return _check_saved(evidence, folder)
    finally:
        if evidence.device.type == "cuda":
            free_memory(evidence.device)


def _check_saved(evidence: Evidence, folder: Path) -> Answer:
    cell, model = evidence.cell, evidence.model
    size = tensor_bytes(weight_tensors(model))
    if not isinstance(model, PeftModel) and shutil.disk_usage(folder).free < 2 * size:
        return None
    features = evidence.evaluation.features if evidence.evaluation else evidence.trainer.features
    rows = sample(features, min(SERVED, evidence.trainer.log.micro_batch))
    logits = _logits(evidence, model, rows)
    if not len(logits):
        return None
    settings = saved_files.expected_settings(evidence)
    tokenizer_file = saved_files.tokenizer_json(evidence.codec.tokenizer)
    bits = checksums(saved_files.named_tensors(model))
    evidence.serving.save(cell, model, evidence.codec.tokenizer, folder)
    if checksums(saved_files.named_tensors(model)) != bits:
        return False, "saving changes the tensors of the trained model"
    faults = list(saved_files.other_tensors(evidence, folder))
    if faults:
        return False, _several("tensors", faults)
    try:
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        faults = list(saved_files.other_settings(settings, tokenizer, folder))
    except Exception as error:  # whatever transformers and PEFT raise for unfit files
        return (
            False,
            f"the saved files cannot be read again: {type(error).__name__}: {first_line(error)}",
        )
    faults += saved_files.other_tokenizer(tokenizer_file, folder)
    faults += saved_files.other_tokens(evidence.codec.tokenizer, tokenizer, _texts(evidence))
    if faults:
        return False, _several("settings", faults)
    if size > LARGEST_GIB * GIB:
        return (
            True,
            "saved as trained, by tensors and settings; "
            "too large to be loaded beside the trained model",
        )
    try:
        served = evidence.serving.load(cell, folder, evidence.device)[0]
    except Exception as error:
        return (
            False,
            f"the saved model cannot be loaded again: {type(error).__name__}: {first_line(error)}",
        )
    modes = [name or "the model" for name, module in served.named_modules() if module.training]
    if modes:
        counts = f"{len(modes)} modules, {modes[0]} among them"
        return False, f"the saved model is loaded in training mode: {counts}"
    # On the quick cells, the gap is 0 after loading and 1e-6 after merging. A bf16 base rounds the
    # head, and merging rounds again.
    limit = FINE if base_type(cell) is torch.float32 else COARSE
    gap = Measured(distance(logits, _logits(evidence, served, rows)), limit)
    detail = f"{len(rows)} rows: loaded again, logits differ by {gap.value:.1e} of the largest"
    if not gap:
        return gap, detail
    faults = list(saved_files.other_loaded(evidence, served))
    if faults:
        return False, _several("tensors", faults)
    faults = list(other_pair(evidence, served, tokenizer, limit))
    if evidence.evaluation and not gap.value and not faults:
        faults += other_answers(evidence, served, tokenizer)
    if faults:
        return False, faults[0]
    if not isinstance(model, PeftModel):
        return gap, detail
    if model.active_peft_config.is_prompt_learning:
        return gap, f"{detail}; not merged: prompts belong to no layer"
    merged, merge_detail = _check_merge(evidence, served, rows, logits, limit)
    detail = f"{detail}; {merge_detail}"
    if isinstance(merged, Measured):
        return closest_to_limit([gap, merged]), detail
    return merged and gap, detail


def _several(kind: str, faults: Sequence[str]) -> str:
    """Sums up faults by their number and the first two, but returns a single fault unchanged."""
    if len(faults) == 1:
        return faults[0]
    return f"{len(faults)} {kind} differ: {faults[0]}; {faults[1]}"


def _texts(evidence: Evidence) -> list[str]:
    """Texts for both tokenizers: sampled rows, the new token and a long text, partly non-ASCII."""
    texts = [evidence.codec.text(row) for row in served_rows(evidence)]
    long_text = " ".join([BEYOND_ASCII] * LONG + texts)
    return [*texts, evidence.cell.head.new_token or "", long_text]


def served_rows(evidence: Evidence) -> list[Row]:
    """A small sample of the scored rows; empty if no rows were scored."""
    return sample(evidence.evaluation.rows, SERVED) if evidence.evaluation else []


def other_pair(evidence: Evidence, served: Any, tokenizer: Any, limit: float) -> Iterator[str]:
    """Yields a sentence if the saved tokenizer or model handles a pair of texts differently.

    The trained tokenizer and model are the reference. Both models get every key that the tokenizer
    returns.
    """
    codec, device = evidence.codec, evidence.device
    inputs = dict(codec.tokenizer(*PAIR))
    saved_inputs = dict(tokenizer(*PAIR))
    for key in sorted(inputs.keys() | saved_inputs.keys()):
        ids, saved_ids = inputs.get(key), saved_inputs.get(key)
        if ids != saved_ids:
            yield f"of a pair of texts the saved tokenizer gives {key} {saved_ids}, and not {ids}"
            return
    batch = {key: torch.tensor([ids], device=device) for key, ids in inputs.items()}
    if isinstance(codec, GenerateCodec) and codec.start_id is not None:
        batch["decoder_input_ids"] = torch.tensor([[codec.start_id]], device=device)
    try:
        answers = [output_logits(model(**batch)) for model in (evidence.model, served)]
    except TypeError:  # a user's class may not accept all keys
        return
    gap = worst_gap(map(distance, *answers))
    if not gap <= limit:
        keys = ", ".join(inputs)
        yield f"loaded again, logits of a pair of texts ({keys}) differ by {gap:.1e} of the largest"


def other_answers(evidence: Evidence, served: Any, tokenizer: Any) -> Iterator[str]:
    """Yields a sentence for each sampled scored row that the saved model answers differently.

    The saved model uses its saved tokenizer and search settings. Its logits must be bit-identical
    to the trained model's, so that rounding cannot explain another answer.
    """
    rows, device = served_rows(evidence), evidence.device
    answers: list[list[Any]] = []
    saved_codec = make_codec(evidence.cell, tokenizer)
    for codec, model in ((evidence.codec, evidence.model), (saved_codec, served)):
        features = codec.encode(rows, training=False)
        if codec is saved_codec and isinstance(codec, GenerateCodec):
            prompt = move_batch(device, codec.prompt(features))
            start = prompt["input_ids"].shape[1] if codec.start_id is None else 1
            texts = served.generate(**prompt)[:, start:].tolist()
            outputs = [codec.cut_at_end(ids) for ids in texts]
        else:
            outputs = codec.predict(model, features, device)
        answers.append([prediction.value for prediction in codec.decode(rows, features, outputs)])
    for expected, answer in zip(*answers, strict=True):
        if expected != answer:
            trained_part, saved_part = differing_parts(str(expected), str(answer))
            answers_differ = f"it answers {saved_part!r}, but the trained model {trained_part!r}"
            yield f"loaded from its own files {answers_differ}"


def _check_merge(
    evidence: Evidence, served: Any, rows: Sequence[Feature], logits: Tensor, limit: float
) -> tuple[bool | Measured, str]:
    """Merges the loaded adapter into its base and compares the logits with the trained model's.

    Merged layers over a packed base are compared by weights, then replaced by the trained layers.
    """
    is_packed = evidence.cell.quantization is not None
    try:
        merged = evidence.serving.merge(served)
    except (
        Exception
    ) as error:  # whatever PEFT raises, since it cannot merge some methods over packed layers
        method = evidence.cell.method
        is_excused = is_packed and not isinstance(method, Lora)
        return is_excused, f"not merged: PEFT cannot merge {method.id!r} ({first_line(error)})"
    model: Any = evidence.model
    layers = adapted_layers(model.get_base_model()) if is_packed else {}
    shares = {}
    for layer, name in layers.items():
        shares[name] = wrong_share(evidence, layer, merged.get_submodule(name))
    faults = [name for name, share in shares.items() if not share <= MOST_CODES]
    if faults:
        counts = f"{len(faults)} of {len(layers)} packed layers"
        return False, f"merged, {counts} are not base + what is declared, {faults[0]} among them"
    codes = Measured(max(shares.values(), default=0.0), MOST_CODES)
    for layer, name in layers.items():
        merged.set_submodule(name, layer)
    gap = distance(logits, _logits(evidence, merged, rows))
    detail = f"merged, by {gap:.1e}"
    if is_packed:
        detail += f" apart from {len(layers)} packed layers"
    return closest_to_limit([Measured(gap, limit), codes]), detail


def wrong_share(evidence: Evidence, layer: Any, merged: nn.Module) -> float:
    """The share of a merged layer's weights that differ from base plus the method's contribution.

    The base is unpacked first. The share is 0 if the method defines no contribution to the layer.
    """
    base = layer.get_base_layer()
    if not hasattr(base, "in_features"):
        return 0.0
    weight = unpack_weight(base.weight).float()
    unpacked = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    unpacked.weight = nn.Parameter(weight, requires_grad=False)
    exact_layer = copy(layer)  # over the unpacked base, so that no product is rounded
    exact_layer._modules = layer._modules | {"base_layer": unpacked}
    units = torch.eye(base.in_features, device=weight.device)
    delta = evidence.cell.method.contribution(exact_layer, evidence.cell, units)
    if delta is None:
        return 0.0
    expected = weight + delta.T
    if isinstance(merged, Linear4bit):
        expected = unpack_weight(pack_weight(expected, base)).float()
    merged_weight = unpack_weight(merged.weight).float()
    matches = torch.isclose(merged_weight, expected, rtol=LEVEL, atol=0.0)
    return float((~matches).float().mean())


def pack_weight(weight: Tensor, like: Any) -> Any:
    """Packs a weight (out, in) into a parameter with the settings of the 4-bit layer `like`."""
    names = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
    settings = {name: getattr(like.weight, name) for name in names}
    return Params4bit(weight.contiguous(), requires_grad=False, **settings).to(weight.device)


def _logits(evidence: Evidence, model: nn.Module, rows: Sequence[Feature]) -> Tensor:
    """A model's flattened logits for some rows, without autocast; empty if it returns no logits.

    If the cell generates text, only logits that predict target tokens are returned.
    """
    logits, batch = get_logits(evidence.trainer, rows, model)
    if evidence.codec.generates and logits:
        logits = target_rows(logits[0], batch)
    if not logits:
        return torch.zeros(0)
    return torch.cat([row_logits.float().flatten() for row_logits in logits])
