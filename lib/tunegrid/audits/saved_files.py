"""Compares saved files with the trained model: tensors bit by bit, settings field by field.

Expected values come from the cell, its checkpoint and the trained objects, never from the saved
files. Comparisons yield a sentence for each difference.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE, TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from tunegrid.audits.evidence import Evidence, differing_parts
from tunegrid.codecs.architectures import architecture
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.errors import InputError
from tunegrid.grid.backbones import checkpoint_source, is_part
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.run.build import INTEGERS, base_type, dtype_name, make_base
from tunegrid.run.probe import type_of_digits
from tunegrid.run.serving import BASE, saved_search, unwrap_base
from tunegrid.words import first_difference

Fields = dict[str, Any]
Settings = Mapping[str, Fields]  # by file name
Tensors = Mapping[str, Tensor]

# PEFT types whose files hold other tensors than the trained model, so only logits are compared.
OTHER_TENSORS: Mapping[str, str] = {
    "ADAPTION_PROMPT": "named by another rule",
    "CARTRIDGE": "what a prompt encoder computes",
    "CPT": "what a prompt encoder computes",
    "MULTITASK_PROMPT_TUNING": "what a prompt encoder computes",
    "P_TUNING": "what a prompt encoder computes",
    "PEANUT": "named by another rule",
    "PREFIX_TUNING": "what a prompt encoder computes",
    "SHADOW": "a second model",
    "SHIRA": "places of values, which no module has as a tensor",
    "VBLORA": "perhaps the largest weights alone",
    "XLORA": "other adapters, in files of their own",
}
RENAMED = {  # name suffixes that differ in PEFT's files
    # DoRA's file format predates its module.
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "prompt_encoder.embedding.weight": "prompt_embeddings",
}
# Fields that are not compared, by file, each with the reason.
NOT_COMPARED: Mapping[str, Mapping[str, str]] = {
    peft.utils.CONFIG_NAME: {"runtime_config": "of the process that trains; never saved"},
    CONFIG_NAME: {
        "_name_or_path": "the place that the halves of a pair were loaded from",
        "output_attentions": (
            "the halves of a pair are saved with it, "
            "and without it are the same (transformers to 5.14)"
        ),
    },
    GENERATION_CONFIG_NAME: {},
    TOKENIZER_CONFIG_FILE: {
        "added_tokens_decoder": "in tokenizer.json, which is compared",
        "deprecation_warnings": "which warnings were given",
        "files_loaded": "the files that it was loaded from",
        "init_inputs": "arguments of loading",
        "init_kwargs": "arguments of loading; each is a field",
        "is_local": "loaded from a folder or not",
        "local_files_only": "an option of loading",
        "name_or_path": "the place that it was loaded from",
        "verbose": "how many warnings are given",
    },
}
# Fields of a checkpoint's config.json that the cell decides, each with the reason.
DECIDED: Mapping[str, str] = {
    "_name_or_path": "the place that it was loaded from",
    "add_cross_attention": "of a pair of encoders, the second one has it",
    "architectures": "the head's class",
    "dtype": "the type in which the base is loaded",
    "id2label": "the task's labels",
    "is_decoder": "of a pair of encoders, the second one is",
    "is_encoder_decoder": "T5's encoder alone is none",
    "label2id": "the task's labels",
    "pad_token_id": "the codec's padding",
    "quantization_config": "the method's packing",
    "transformers_version": "the release that saves",
    "use_cache": "T5's encoder alone has none",
    "vocab_size": "a head's new token",
}
# Fields of PEFT's configurations that legitimately differ from the method's declaration, each with
# the reason.
CHANGED: Mapping[str, str] = {
    "inference_mode": "what is saved is to answer",
    "init_lora_weights": "a base that was rewritten must not be rewritten again",
    "modules_to_save": "PEFT adds the head of a task that it knows",
    "runtime_config": "of the process that trains",
    "deltaT": "AdaLoRA's plan counts updates",
    "tfinal": "AdaLoRA's plan counts updates",
    "tinit": "AdaLoRA's plan counts updates",
    "total_step": "AdaLoRA's plan counts updates",
}
# Tokenizer settings that the checkpoint's file decides if it names them.
FROM_CHECKPOINT = ("model_input_names", "model_max_length", "padding_side", "truncation_side")
SEARCH_DEFAULTS = {"length_penalty": 1.0}  # transformers' own default, which it does not save

# Tensors


def other_tensors(evidence: Evidence, folder: Path) -> Iterator[str]:
    """Yields a sentence for each tensor that differs between the trained model and its files."""
    model: Any = evidence.model
    if not isinstance(model, PeftModel):
        yield from other_model(model, folder)
        return
    if model.active_peft_config.peft_type not in OTHER_TENSORS:
        tensors = {}
        for name, tensor in named_tensors(model):
            tensors[adapter_key(name)] = kept_ranks(model, name, tensor)
        keys = set(map(adapter_key, evidence.cell.method.declared_names(model, evidence.cell)))
        yield from other_files(folder.glob("adapter_model*.safetensors"), tensors, keys)
    if (folder / BASE).is_dir():
        with unwrap_base(model) as base:
            yield from other_model(base, folder / BASE)


def other_model(model: nn.Module, folder: Path) -> Iterator[str]:
    """Yields a sentence for each tensor that differs between a full model and its files.

    transformers saves a tensor that has several names once; PEFT saves it under each of them.
    """
    tensors = dict(named_tensors(model))
    buffers = {name for name, _ in model.named_buffers()}
    temporary = buffers - model.state_dict().keys()
    paths = sorted(folder.glob("*.safetensors"))
    yield from other_files(paths, tensors, tensors.keys() - temporary)
    yield from saved_twice(paths, tensors)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and tensors of buffers, parameters and packed weights' quantization states.

    A tied tensor is yielded under each of its names.
    """
    yield from model.named_buffers(remove_duplicate=False)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter.detach()
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            for key, tensor in state.as_dict(packed=True).items():
                # bitsandbytes makes one of them on the CPU
                yield f"{name}.{key}", tensor.to(parameter.device)


def adapter_key(name: str) -> str:
    """A tensor's key in an adapter file; PEFT drops the adapter's name and renames suffixes."""
    key = name.replace(".modules_to_save.default.", ".").replace(".default", "")
    for end, saved_end in RENAMED.items():
        if key.endswith(end):
            return key.removesuffix(end) + saved_end
    return key


def kept_ranks(model: Any, name: str, tensor: Tensor) -> Tensor:
    """The part of a tensor that is saved: for AdaLoRA, the remaining ranks; otherwise all of it."""
    config = getattr(model, "active_peft_config", None)
    patterns = getattr(config, "rank_pattern", None) or {}
    layer, _, matrix = name.removeprefix("base_model.model.").partition(".lora_")
    pattern = patterns.get(f"{layer}.lora_E", patterns.get(f"{layer}.lora_E.default"))
    if not matrix or not isinstance(pattern, list):
        return tensor
    mask = torch.tensor(pattern, device=tensor.device)
    return tensor[:, mask] if matrix.startswith("B") else tensor[mask]


def other_files(paths: Iterable[Path], tensors: Tensors, names: Collection[str]) -> Iterator[str]:
    """Compares saved tensors with `tensors` by name and yields a sentence for each mismatch.

    Reads one tensor at a time. Every tensor in `names`, or one tied to it, must be in a file.
    """
    saved = set[Any]()
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 # not a mapping
                if name not in tensors:
                    yield f"{path.name} holds {name}, which the trained model lacks"
                    continue
                saved.add(storage(tensors[name]))
                fault = tensor_difference(tensors[name], file.get_tensor(name))
                if fault:
                    yield f"{name} was saved {fault}"
    for name, tensor in tensors.items():
        if name in names and storage(tensor) not in saved:
            saved.add(storage(tensor))
            yield f"{name} is in no file, nor is a tensor that is tied to it"


def saved_twice(paths: Iterable[Path], tensors: Tensors) -> Iterator[str]:
    """Yields a sentence for each name in the files whose tensor they hold under another name."""
    names: dict[Any, str] = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in sorted(tensors.keys() & file.keys()):
                other = names.setdefault(storage(tensors[name]), name)
                if other != name:
                    yield f"{name} was saved twice: {other} is the same tensor"


def other_loaded(evidence: Evidence, served: Any) -> Iterator[str]:
    """Yields a sentence for each parameter that differs between the loaded and the trained model.

    Skips parameters that the method adds but does not train, since they may be redrawn, and the
    unused original modules that PEFT keeps beside a new head.
    """
    cell, model = evidence.cell, evidence.model
    loaded = dict(served.named_parameters())
    untrained = evidence.own - cell.method.declared_names(model, cell)
    for name, parameter in model.named_parameters():
        if name in untrained or ".original_module." in name:
            continue
        if name not in loaded:
            yield f"{name} is not loaded again"
            continue
        trained = kept_ranks(model, name, parameter.detach())
        if is_part(name, cell.head.new_modules):  # these take the loaded base's type
            trained = trained.to(base_type(cell))
        fault = tensor_difference(trained, loaded[name].detach())
        if fault:
            yield f"{name} was loaded {fault}"


def storage(tensor: Tensor) -> Any:
    """A key for a tensor's memory, which tied tensors share; empty tensors have their own keys."""
    return (tensor.data_ptr(), tensor.shape) if tensor.numel() else id(tensor)


def tensor_difference(trained: Tensor, other: Tensor) -> str:
    """The end of a sentence about how `other` differs from `trained`; empty if the bits agree."""
    kind, other_kind = (
        f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}" for tensor in (trained, other)
    )
    if kind != other_kind:
        return f"as {other_kind}, and trained as {kind}"
    integers = INTEGERS.get(other.element_size(), torch.uint8)
    trained_bits = trained.reshape(-1).view(integers)
    other_bits = other.to(trained.device).reshape(-1).view(integers)
    if torch.equal(trained_bits, other_bits):
        return ""
    indices = (trained_bits != other_bits).nonzero().flatten()
    first = int(indices[0]) * other.numel() // len(other_bits)
    counts = f"{len(indices)} of {len(other_bits)} values"
    value, trained_value = other.reshape(-1)[first].item(), trained.reshape(-1)[first].item()
    changed = f"with {counts} changed: {value:.9g} for {trained_value:.9g}"
    digits = type_of_digits(other)
    if not other.is_floating_point() or digits == dtype_name(other.dtype):
        return changed
    return f"{changed}, as {digits} rounds"


# Settings


def expected_settings(evidence: Evidence) -> dict[str, Fields]:
    """The expected fields of each settings file, from trained objects, cell and checkpoint."""
    model, tokenizer = evidence.model, evidence.codec.tokenizer
    fields = plain(tokenizer.init_kwargs) | tokenizer_fields(tokenizer)
    original = checkpoint_fields(evidence.cell, TOKENIZER_CONFIG_FILE)
    for name in original.keys() & set(FROM_CHECKPOINT):
        fields[name] = original[name]
    settings = {TOKENIZER_CONFIG_FILE: fields}
    if isinstance(model, PeftModel):
        base = model.get_base_model()
        settings[peft.utils.CONFIG_NAME] = adapter_fields(evidence, model, base)
        settings[f"{BASE}/{CONFIG_NAME}"] = config_fields(evidence, base)
    else:
        settings[CONFIG_NAME] = config_fields(evidence, model)
    if isinstance(evidence.codec, GenerateCodec):
        search = saved_search(evidence.codec) | {"transformers_version": hf.__version__}
        settings[GENERATION_CONFIG_NAME] = drop_none(search)
    return settings


def other_settings(settings: Settings, tokenizer: Any, folder: Path) -> Iterator[str]:
    """Yields a sentence for each missing file and each field that was saved or loaded wrongly."""
    for name, expected in settings.items():
        path = folder / name
        if not path.parent.is_dir():  # no base was saved
            continue
        if not path.is_file():
            yield f"{name} is not saved"
            continue
        reasons = NOT_COMPARED[path.name]
        expected_fields = flat(expected)
        file = flat(read_fields(path))
        loaded = flat(loaded_fields(path, tokenizer))
        for field in sorted(file.keys() | expected_fields.keys()):
            if field.split(".")[0] in reasons or field.split(".")[-1] in reasons:
                continue
            if path.name == TOKENIZER_CONFIG_FILE and field not in file.keys() | loaded.keys():
                continue  # a loading argument, such as a vocabulary's path
            fault = field_difference(field, expected_fields, file, loaded)
            if fault:
                yield f"{name}: {field} {fault}"


def field_difference(name: str, expected: Fields, file: Fields, loaded: Fields) -> str:
    """The end of a sentence about how a field differs in its file or after loading.

    Empty if it does not differ. A file may omit a field if loading restores its value.
    """
    if name not in expected:
        return f"is saved as {file[name]!r}, but the trained model has no such field"
    value = expected[name]
    if name in file and file[name] != value:
        return f"is saved as {file[name]!r}, but was {value!r}"
    lost = "" if name in file else "not saved, and "
    if name in loaded and loaded[name] != value:
        return f"is {lost}loaded as {loaded[name]!r}, but was {value!r}"
    if lost and name not in loaded:
        return f"is not saved, but was {value!r}"
    return ""


def loaded_fields(path: Path, tokenizer: Any) -> Fields:
    """The fields of a settings file as its library loads them; `tokenizer` is already loaded."""
    if path.name == TOKENIZER_CONFIG_FILE:
        return tokenizer_fields(tokenizer)
    if path.name == CONFIG_NAME:
        return plain(hf.AutoConfig.from_pretrained(path.parent, trust_remote_code=False))
    if path.name == GENERATION_CONFIG_NAME:
        config = hf.GenerationConfig.from_pretrained(path.parent)
        return SEARCH_DEFAULTS | drop_none(plain(config))
    return peft_fields(peft.PeftConfig.from_pretrained(path.parent))


def adapter_fields(evidence: Evidence, model: Any, base: Any) -> Fields:
    """The expected fields of PEFT's config, from the method's declaration or the trained model."""
    cell, config = evidence.cell, model.active_peft_config
    fields = peft_fields(config)
    method: Any = cell.method
    try:
        declared = method.peft_config(cell, make_base(cell, evidence.codec.tokenizer, base))
    except (AttributeError, InputError):  # the method adapts the model in its own way
        declared = config
    for name, value in drop_none(peft_fields(declared)).items():
        if name not in CHANGED:
            fields[name] = value
    kind = type(base)
    library = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    fields["auto_mapping"] = None if config.task_type else library
    fields["inference_mode"] = True
    if "peft_version" in fields:  # from 0.18 on
        fields["peft_version"] = peft.__version__
    source, pin = checkpoint_source(cell.backbone, cell.profile)
    fields["base_model_name_or_path"] = source
    fields["revision"] = pin.get("revision")
    if cell.method.rewrites(cell):
        fields["init_lora_weights"] = True
    if fields.get("rank_pattern"):  # AdaLoRA's pattern is keyed by tensor names
        patterns = fields["rank_pattern"].items()
        fields["rank_pattern"] = {adapter_key(name): pattern for name, pattern in patterns}
    return fields


def config_fields(evidence: Evidence, model: Any) -> Fields:
    """The model config's expected fields, from the cell, the checkpoint or the trained model."""
    cell = evidence.cell
    fields = plain(model.config)
    original = checkpoint_fields(cell, CONFIG_NAME)
    values = [value for value in fields.values() if isinstance(value, dict)]
    halves = [value for value in values if "model_type" in value]  # the two halves of a pair
    for config in halves:
        config.pop("transformers_version", None)  # only the pair names it
    for config in halves or [fields]:
        for name in config.keys() & original.keys() - DECIDED.keys():
            config[name] = original[name]
    kind = architecture(cell.head.architecture)
    known = isinstance(model, kind)  # an Auto class chooses another class
    fields["architectures"] = [kind.__name__ if known else type(model).__name__]
    fields["transformers_version"] = hf.__version__
    fields["dtype"] = dtype_name(base_type(cell))
    fields["pad_token_id"] = evidence.codec.pad_id
    if cell.head.new_token:
        fields["vocab_size"] = len(evidence.codec.tokenizer)
    if cell.task.problem is Problem.CLASSIFY:
        labels = enumerate(cell.task.labels)
        fields["id2label"] = {str(index): label for index, label in labels}
        fields["label2id"] = {label: int(index) for index, label in fields["id2label"].items()}
    return fields


def tokenizer_fields(tokenizer: Any) -> Fields:
    """A tokenizer's public attributes and special tokens."""
    fields = plain(public(tokenizer))
    special_tokens = plain(tokenizer.special_tokens_map)
    fields["special_tokens_map"] = sorted(special_tokens.items())
    fields["extra_special_tokens"] = plain(tokenizer.extra_special_tokens)
    fields["tokenizer_class"] = type(tokenizer).__name__
    return fields | special_tokens


def checkpoint_fields(cell: Cell, name: str) -> Fields:
    """The fields of a settings file in the cell's checkpoint; empty if it has no such file."""
    source, pin = checkpoint_source(cell.backbone, cell.profile)
    optional = {**pin, "_raise_exceptions_for_missing_entries": False}
    path = hf.utils.cached_file(source, name, **optional)
    return read_fields(Path(path)) if path else {}


def read_fields(path: Path) -> Fields:
    """Reads the fields of a JSON file; sorts the lists in a PEFT config."""
    fields: Fields = json.loads(path.read_text(encoding="utf-8"))
    return ordered(fields) if path.name == peft.utils.CONFIG_NAME else fields


def peft_fields(config: Any) -> Fields:
    """The fields of a PEFT config, with lists sorted, since their order does not matter."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return ordered(plain(fields))


def ordered(fields: Fields) -> Fields:
    """Replaces each list among the fields with a sorted list, and returns the fields."""
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = sorted(value, key=str)
    return fields


def flat(fields: Fields) -> Fields:
    """Flattens nested fields and joins their names with dots, as in decoder.hidden_size."""
    flat_fields: Fields = {}
    for name, value in fields.items():
        if not isinstance(value, dict) or not value:
            flat_fields[name] = value
            continue
        for inner_name, inner_value in flat(value).items():
            flat_fields[f"{name}.{inner_name}"] = inner_value
    return flat_fields


def drop_none(fields: Fields) -> Fields:
    """The fields whose values are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def plain(value: Any) -> Fields:
    """Converts a value to JSON types: objects to their fields, dtypes to names, tokens to text."""
    fields: Fields = json.loads(json.dumps(value, default=plain_object))
    return fields


def public(value: Any) -> Fields:
    """The public attributes of an object."""
    return {name: field for name, field in vars(value).items() if not name.startswith("_")}


def plain_object(value: Any) -> Any:
    """Converts an object that JSON cannot represent into a simpler value."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, hf.BitsAndBytesConfig):
        return value.to_dict()  # this includes private fields, too
    if not hasattr(value, "__dict__"):  # for example a token or a path
        return str(value)
    fields = public(value)
    if isinstance(value, hf.PreTrainedConfig):
        fields["model_type"] = value.model_type
    return fields


# Texts


def tokenizer_json(tokenizer: Any) -> Fields:
    """The expected content of tokenizer.json; empty for a tokenizer without such a file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: Fields = json.loads(backend.to_str()) if backend else {}
    return content


def other_tokenizer(expected: Fields, folder: Path) -> Iterator[str]:
    """Yields a sentence for each field of tokenizer.json that differs from the expected one."""
    path = folder / FULL_TOKENIZER_FILE
    if not expected or not path.is_file():
        return
    saved = read_fields(path)
    for name in sorted(expected.keys() | saved.keys()):
        text = json.dumps(expected.get(name), ensure_ascii=False)
        saved_text = json.dumps(saved.get(name), ensure_ascii=False)
        if text != saved_text:
            expected_part, saved_part = differing_parts(text, saved_text)
            yield f"{path.name}: {name} is saved as {saved_part!r}, but was {expected_part!r}"


def other_tokens(trained: Any, saved: Any, texts: Iterable[str]) -> Iterator[str]:
    """Yields a sentence for each text that the two tokenizers split differently."""
    for text in texts:
        ids = trained(text, verbose=False)["input_ids"]
        saved_ids = saved(text, verbose=False)["input_ids"]
        if saved_ids != ids:
            yield f"the saved tokenizer reads {tokens_difference(trained, ids, saved_ids)}"


def tokens_difference(tokenizer: Any, ids: Sequence[int], saved_ids: Sequence[int]) -> str:
    """Describes where two tokenizations of a text first differ, with the text before that point."""
    start = first_difference(ids, saved_ids)
    context = tokenizer.decode(ids[max(0, start - 5) : start])
    tokens = tokenizer.convert_ids_to_tokens(list(ids[start : start + 3]))
    saved_tokens = tokenizer.convert_ids_to_tokens(list(saved_ids[start : start + 3]))
    counts = f"{len(saved_ids)} tokens, and not {len(ids)}"
    return f"a text as {counts}; behind {context!r} come {saved_tokens}, and not {tokens}"
