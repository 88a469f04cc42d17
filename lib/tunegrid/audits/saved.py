"""Audits of what was saved: its tensors, its settings, its answers once loaded, and merged."""

import json
import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import PeftModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE
from transformers.utils import CONFIG_NAME

from tunegrid.audits.before import is_adapted
from tunegrid.audits.evidence import Evidence, sample
from tunegrid.codecs.base import Feature, move_batch
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.errors import first_line
from tunegrid.grid.methods import Answer, Lora
from tunegrid.run.build import base_type, unpack_weight
from tunegrid.run.device import free_memory
from tunegrid.run.meter import GIB, tensor_bytes, weight_tensors
from tunegrid.run.prepare import make_codec
from tunegrid.run.probe import COARSE, FINE, distance, get_logits, keep_state, target_rows
from tunegrid.run.serving import BASE

SERVED = 4  # test rows that a saved model is asked about, in one batch
# Fields of configurations that loading or saving sets; PEFT names a classifier's head anew each time, and logits tell of it.
LOADING = {"inference_mode", "auto_mapping", "base_model_name_or_path", "init_lora_weights", "modules_to_save"}
LOADING |= {"_name_or_path", "architectures", "transformers_version", "dtype"}
TOKENIZER_SETTINGS = ("padding_side", "model_max_length", "chat_template", "special_tokens_map")  # what its users set
BEYOND_ASCII = "Straße, çok güzel, 東京の天気, привет мир, naïve café 😀 €5."
LONG = 60  # times: hundreds of tokens, longer than any cut
LEVEL = 0.01  # two levels of 4 bits are farther apart
MOST_CODES = 1e-3  # of a packed layer's bytes: where a number lies between two levels, its last digit decides
# Of weights that are copied, in the room that gradients had; the largest of the study, BERT2BERT at its true size, has 0.95.
LARGEST_GIB = 4.0


def saved_is_served(evidence: Evidence) -> Answer:
    """What was saved is what was trained: loaded again in the documented way, and merged into its base, too.

    The files say what the trained model says of itself, read texts as its tokenizer does, and lead to its answers by
    themselves; logits are the same. PEFT packs a merged NF4 layer anew, which rounds away what is less than half a step between
    two levels: such a layer is held to its definition, and all else that was merged by the logits that the trained layers give.
    """
    is_large = tensor_bytes(weight_tensors(evidence.model)) > LARGEST_GIB * GIB  # a second copy may not fit
    if evidence.cell.profile.random_weights or is_large:
        return None
    try:
        with TemporaryDirectory() as folder, torch.no_grad(), keep_state(evidence.trainer), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's on resized embeddings, and on rounding where it merges
            return _check_saved(evidence, Path(folder))
    finally:
        if evidence.device.type == "cuda":
            free_memory(evidence.device)


def _check_saved(evidence: Evidence, folder: Path) -> Answer:
    cell, model = evidence.cell, evidence.model
    features = evidence.evaluation.features if evidence.evaluation else evidence.trainer.features
    rows = sample(features, min(SERVED, evidence.trainer.log.micro_batch))
    logits = _logits(evidence, model, rows)
    if not len(logits):
        return None
    try:
        evidence.serving.save(cell, model, evidence.codec.tokenizer, folder)
        served, tokenizer = evidence.serving.load(cell, folder, evidence.device)
    except Exception as error:  # whatever transformers and PEFT raise for files that do not fit
        return False, f"the saved model cannot be loaded again: {type(error).__name__}: {first_line(error)}"
    if modes := [name for name, module in served.named_modules() if module.training]:
        return False, f"the saved model is loaded in training mode: {len(modes)} modules, {modes[0] or 'the model'} among them"
    # On the quick cells 0 when loaded, 1e-6 when merged; a bf16 base rounds head and merger.
    gap, limit = distance(logits, _logits(evidence, served, rows)), FINE if base_type(cell) is torch.float32 else COARSE
    detail = f"{len(rows)} rows: loaded again, logits differ by {gap:.1e} of the largest"
    if not gap <= limit:
        return False, detail
    answers = other_answers(evidence, served, tokenizer) if evidence.evaluation and not gap else ()
    if fault := next(chain(other_settings(evidence, served, folder), other_tokens(evidence, tokenizer, folder), answers), None):
        return False, fault
    if not isinstance(model, PeftModel):
        return True, detail
    if model.active_peft_config.is_prompt_learning:
        return True, f"{detail}; not merged: prompts belong to no layer"
    passed, merge_detail = _check_merge(evidence, served, rows, logits, limit)
    return passed, f"{detail}; {merge_detail}"


def other_settings(evidence: Evidence, served: Any, folder: Path) -> Iterator[str]:
    """A sentence for each setting of the adapter, the model or its search that is saved otherwise than it was trained."""
    model: Any = evidence.model
    pairs = [("adapter", model.active_peft_config, served.active_peft_config)] if isinstance(model, PeftModel) else []
    root = folder / BASE if (folder / BASE).is_dir() else folder
    if (root / CONFIG_NAME).is_file():  # beside an adapter alone there is none
        pairs.append(("model", model.config, AutoConfig.from_pretrained(root, trust_remote_code=False)))
    if isinstance(evidence.codec, GenerateCodec):
        pairs.append(("search", GenerationConfig(**evidence.codec.search), GenerationConfig.from_pretrained(folder)))
    for part, *configs in pairs:
        settings, saved_settings = (json.loads(json.dumps(one.to_dict(), default=sorted)) for one in configs)  # sets as lists
        for name in sorted(settings.keys() - LOADING):
            if settings[name] != saved_settings.get(name):
                yield f"the {part}'s {name} is saved as {saved_settings.get(name)!r}, but was {settings[name]!r}"


def other_tokens(evidence: Evidence, tokenizer: Any, folder: Path) -> Iterator[str]:
    """A sentence for each setting of the saved tokenizer that differs, and each text that it, or its file, reads otherwise."""
    for name in TOKENIZER_SETTINGS:
        value, saved_value = (getattr(one, name) for one in (evidence.codec.tokenizer, tokenizer))
        if saved_value != value:
            yield f"the tokenizer's {name} is saved as {saved_value!r}, but was {value!r}"
    path, evaluation = folder / FULL_TOKENIZER_FILE, evidence.evaluation
    file = Tokenizer.from_file(str(path)) if path.is_file() else None
    texts = [evidence.codec.text(row) for row in sample(evaluation.rows if evaluation else [], SERVED)]
    for text in (*texts, evidence.cell.head.new_token or "", " ".join([BEYOND_ASCII] * LONG + texts)):
        expected, saved_ids = (encode(text, verbose=False)["input_ids"] for encode in (evidence.codec.tokenizer, tokenizer))
        for reader, ids in (("the saved tokenizer", saved_ids), (path.name, file.encode(text).ids if file else expected)):
            if ids != expected:
                yield f"{reader} reads {text[-60:]!r} as {len(ids)} tokens, training as {len(expected)} others"


def other_answers(evidence: Evidence, served: Any, tokenizer: Any) -> Iterator[str]:
    """A sentence for each of a few scored rows that what was saved answers otherwise, by its own tokenizer and settings.

    The same batch gives the same bits, so a text that the saved search finds and the saved name of a label must be the same.
    """
    rows, device, cell = sample(evidence.evaluation.rows, SERVED), evidence.device, evidence.cell  # type: ignore[union-attr]
    answers: list[list[Any]] = []
    for codec, model in ((evidence.codec, evidence.model), (make_codec(cell, tokenizer), served)):
        features = codec.encode(rows, training=False)
        if codec is not evidence.codec and isinstance(codec, GenerateCodec):
            prompt = move_batch(device, codec.prompt(features))
            start = prompt["input_ids"].shape[1] if codec.start_id is None else 1
            outputs = [codec.cut_at_end(ids) for ids in served.generate(**prompt)[:, start:].tolist()]
        else:
            outputs = codec.predict(model, features, device)
        answers.append([prediction.value for prediction in codec.decode(rows, features, outputs)])
    if cell.task.labels:
        answers = [
            [names[i] for i in ids] for names, ids in zip((cell.task.labels, served.config.id2label), answers, strict=True)
        ]
    for expected, answer in zip(*answers, strict=True):
        if expected != answer:
            yield f"loaded from its own files it answers {answer!r}, but the trained model {expected!r}"


def _check_merge(evidence: Evidence, served: Any, rows: Sequence[Feature], logits: Tensor, limit: float) -> tuple[bool, str]:
    """Whether the loaded adapter, merged into its base, still gives our logits; with the trained layers over a packed base."""
    is_packed = evidence.cell.quantization is not None
    try:
        merged = evidence.serving.merge(served)
    except Exception as error:  # whatever PEFT raises if it cannot merge: for some methods, over packed layers it does
        is_excused = is_packed and not isinstance(evidence.cell.method, Lora)
        return is_excused, f"not merged: PEFT cannot merge {evidence.cell.method.id!r} ({first_line(error)})"
    modules = evidence.model.get_base_model().named_modules() if is_packed else ()  # type: ignore[operator] # it is PEFT's
    layers: dict[str, Any] = {name: layer for name, layer in modules if is_adapted(layer)}
    if faults := [name for name, layer in layers.items() if not merged_as_defined(evidence, layer, merged.get_submodule(name))]:
        packed = f"{len(faults)} of {len(layers)} packed layers"
        return False, f"merged, {packed} are not base + what is declared, {faults[0]} among them"
    for name, layer in layers.items():
        merged.set_submodule(name, layer)
    gap = distance(logits, _logits(evidence, merged, rows))
    return gap <= limit, f"merged, by {gap:.1e}{f' apart from {len(layers)} packed layers' if is_packed else ''}"


def merged_as_defined(evidence: Evidence, layer: Any, merged: nn.Module) -> bool:
    """Whether a merged layer has the unpacked base's numbers and what the method says is added; True if it does not say."""
    base = layer.get_base_layer()
    if not hasattr(base, "in_features"):
        return True
    weight = unpack_weight(base.weight).float()
    unpacked = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    unpacked.weight = nn.Parameter(weight, requires_grad=False)
    exact_layer = copy(layer)  # over the unpacked base, which rounds no product
    exact_layer._modules = layer._modules | {"base_layer": unpacked}
    delta = evidence.cell.method.contribution(exact_layer, evidence.cell, torch.eye(base.in_features, device=weight.device))
    if delta is None:
        return True
    expected = weight + delta.T
    if isinstance(merged, Linear4bit):
        expected = unpack_weight(pack_weight(expected, base)).float()
    matches = torch.isclose(unpack_weight(merged.weight).float(), expected, rtol=LEVEL, atol=0.0)
    return float(matches.float().mean()) >= 1 - MOST_CODES


def pack_weight(weight: Tensor, like: Any) -> Any:
    """A weight (out, in), packed with the settings of a 4-bit layer: the parameter that such a layer holds."""
    names = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
    settings = {name: getattr(like.weight, name) for name in names}
    return Params4bit(weight.contiguous(), requires_grad=False, **settings).to(weight.device)


def _logits(evidence: Evidence, model: nn.Module, rows: Sequence[Feature]) -> Tensor:
    """What a model answers to some rows, in one row: without autocast, as in evaluation; of a text what predicts its target."""
    logits, batch = get_logits(evidence.trainer, rows, model)
    parts = target_rows(logits[0], batch) if evidence.codec.generates and logits else logits
    return torch.cat([one.float().flatten() for one in parts]) if parts else torch.zeros(0)
