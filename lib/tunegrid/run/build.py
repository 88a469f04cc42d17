"""Builds a cell's tokenizer and its model, which is loaded, quantized and adapted for training.

Also computes checksums of weights, and finds a checkpoint's files and tensors.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import transformers as hf
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tunegrid.codecs.architectures import architecture
from tunegrid.codecs.base import SyntheticTokenizer
from tunegrid.data.sources import LONGEST_CAUSE, ROOTS_HINT
from tunegrid.errors import InputError, first_line
from tunegrid.grid.backbones import BERT, checkpoint_source, is_part, local_checkpoint
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Base
from tunegrid.grid.recipes import Profile
from tunegrid.grid.tasks import Problem
from tunegrid.libraries import SWITCH, kernels_allowed, loaded_kernels
from tunegrid.record.record import ModelRecord
from tunegrid.run.device import (
    BY_HAND,
    FUSED,
    out_of_memory,
    resolve_precision,
    resolve_quantization,
)
from tunegrid.run.metrics import BertScorer

PERTURBATION = 1e-6  # relative; changes the last few bits of fp32
BASE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Checksum = tuple[int, int]
# Integer types by bytes per element; elements of other sizes are read byte by byte.
INTEGERS = {4: torch.int32, 2: torch.int16}
# Old BERT checkpoints say gamma and beta, and BERT2BERT's cross-attention starts from the
# self-attention in the same layer.
RENAMED_WORDS = {"gamma": "weight", "beta": "bias", "crossattention": "attention"}


def load_tokenizer(cell: Cell) -> Any:
    """Loads the tokenizer (synthetic for random weights) and adds the head's new token, if any."""
    if cell.profile.random_weights:
        tokenizer: Any = SyntheticTokenizer(cell.backbone)
    else:
        source, pin = checkpoint_source(cell.backbone, cell.profile)
        tokenizer = from_hub_or_folder(hf.AutoTokenizer, source, pin)
    if cell.head.new_token:
        tokenizer.add_tokens([cell.head.new_token], special_tokens=True)
    return tokenizer


def load_bert_scorer(profile: Profile) -> BertScorer:
    """Loads BERTScore with the encoder and tokenizer of the profile's BERT checkpoint."""
    source, pin = checkpoint_source(BERT, profile)
    tokenizer = from_hub_or_folder(hf.AutoTokenizer, source, pin)
    encoder = from_hub_or_folder(hf.BertModel, source, {"use_safetensors": True, **pin})
    return BertScorer(Path(source).name, tokenizer, encoder)


def from_hub_or_folder(loader: Any, source: str | None, options: dict[str, Any]) -> Any:
    """Calls the loader's `from_pretrained` without running code from the checkpoint.

    Out-of-memory errors propagate unchanged; any other error becomes an InputError.
    """
    try:
        loaded = loader.from_pretrained(source, trust_remote_code=False, **options)
        if loader is hf.AutoTokenizer:  # some broken settings only show in use
            loaded(["a"], add_special_tokens=False, verbose=False)
        return loaded
    except Exception as error:
        if out_of_memory(error) or isinstance(error, InputError):
            raise
        cause = first_line(error)
        if not isinstance(error, OSError):
            cause = f"{type(error).__name__}: {cause}"
        hint = "" if source and Path(source).is_dir() else f"; {ROOTS_HINT}"
        raise InputError(f"cannot load {source} ({cause[:LONGEST_CAUSE]}){hint}") from None


def build(cell: Cell, tokenizer: Any, device: torch.device) -> nn.Module:
    """Builds the model to train on `device`, quantized and adapted as the cell's method says.

    Trained weights are fp32; frozen weights are fp32, 4-bit, or bf16 if the backbone says so.
    Raises InputError if a checkpoint, a precision or an option does not fit the model, or if
    compiled code from the hub takes part that the user did not allow.
    """
    backbone = cell.backbone
    if backbone.dtype not in BASE_TYPES:
        names = ", ".join(BASE_TYPES)
        fault = f"backbone {backbone.id!r} has unknown dtype {backbone.dtype!r}"
        raise InputError(f"{fault}; known are {names}")
    precision, fallback = resolve_precision(cell, device)
    if base_type(cell) is not torch.float32 and precision == "fp32":
        cause = fallback or "the recipe says fp32"
        remedy = "" if fallback else 'the recipe precision="bf16" or '
        raise InputError(
            f"{cell.id}: the base of {backbone.name} is loaded in {backbone.dtype}, "
            f"over which nothing trains in fp32 ({cause}); "
            f'give {remedy}the backbone dtype="float32"'
        )
    hf.set_seed(cell.profile.seed)
    model = load_base(cell, tokenizer, device)
    adapted_model = cell.method.adapt(model, cell, make_base(cell, tokenizer, model))
    if base_type(cell) is not torch.float32:
        train_in_fp32(adapted_model)
    final_model: Any = adapted_model.to(device)
    if cell.quantization:
        keep_packed_layers(final_model)
    if cell.recipe.gradient_checkpointing:
        try:
            # The method's name since transformers 5.24.
            enable = getattr(final_model, "activation_checkpointing_enable", None)
            enable = enable or final_model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        except (AttributeError, ValueError) as error:
            fault = "the model lacks the recipe's gradient_checkpointing"
            raise InputError(f"{fault} ({first_line(error)})") from None
    if cell.profile.perturbation is not None:
        perturb(final_model, cell.profile.perturbation)
    refuse_kernels()
    return final_model  # type: ignore[no-any-return]


def refuse_kernels() -> None:
    """Raises InputError if the process holds compiled code from the hub that no one allowed."""
    from_hub = [name for name, kernel in loaded_kernels().items() if kernel.commit]
    if from_hub and not kernels_allowed():
        raise InputError(
            f"a library loaded compiled code from the hub, {from_hub[0]}, whatever is there now; "
            f"to allow that set {SWITCH}=1, or else start the suite by `tunegrid` or pytest"
        )


def base_type(cell: Cell) -> torch.dtype:
    """The dtype in which the base is loaded: the backbone's dtype for adapters, otherwise fp32."""
    return BASE_TYPES[cell.backbone.dtype] if cell.method.adapts else torch.float32


def load_base(cell: Cell, tokenizer: Any, device: torch.device) -> Any:
    """Loads the base model, quantized if the method says so; initializes new modules randomly.

    If the profile asks for random weights, this includes all modules. Raises InputError if the
    checkpoint lacks other weights.
    """
    head = cell.head
    kind = architecture(head.architecture)
    source = None
    options: dict[str, Any] = {}
    # These options name the labels in the saved model.
    if cell.task.problem is Problem.CLASSIFY and cell.task.labels:
        options["id2label"] = dict(enumerate(cell.task.labels))
        options["label2id"] = {label: i for i, label in enumerate(cell.task.labels)}
    if cell.profile.random_weights:  # in the checkpoint's real shape
        config = hf.AutoConfig.for_model(**cell.backbone.shape, **options)
        make_model = getattr(kind, "checkpoint_class", kind)
        with device:
            options = {"config": config, "state_dict": make_model(config).state_dict()}
    else:
        source, pin = checkpoint_source(cell.backbone, cell.profile)
        options |= pin
    options["dtype"] = base_type(cell)
    options["attn_implementation"] = attention(cell)
    options["use_safetensors"] = True
    options["output_loading_info"] = True
    options["ignore_mismatched_sizes"] = True  # reported by name below
    if cell.quantization or device.type == "meta":
        options["device_map"] = {"": device}
    if cell.quantization:
        options["quantization_config"] = packing_config(cell, device)
    model, report = from_hub_or_folder(kind, source, options)
    new_modules = head.new_modules + head.adapted_modules
    may_miss = new_modules + head.optional_modules
    names = sorted(name for name in report["missing_keys"] if not is_part(name, may_miss))
    if not names:
        misshapen_names = [str(name) for name, *_ in report["mismatched_keys"]]
        names = sorted(name for name in misshapen_names if not is_part(name, new_modules))
    if names:
        raise InputError(
            f"{source} does not hold {len(names)} weights that {kind.__name__} needs, "
            f"{names[0]} among them; they would start from random: "
            "this is not the checkpoint for this model"
        )
    if device.type == "meta":
        model.tie_weights()  # tensors without data are loaded one by one, tied or not
    # GPT-2 and Llama find a row's last real token by the pad id, so it must be the codec's.
    pad_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.eos_token_id if pad_id is None else pad_id
    if head.new_token:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def attention(cell: Cell) -> str:
    """The attention implementation: "sdpa", or "eager" for T5 up to transformers 5.14."""
    kind = architecture(cell.head.architecture)
    return FUSED if getattr(kind, "_supports_sdpa", True) else BY_HAND


def packing_config(cell: Cell, device: torch.device) -> Any:
    """The BitsAndBytesConfig that quantizes the base except for the head's new and tied modules."""
    quantization = resolve_quantization(cell, device)[0]
    assert quantization, "the cell has one"
    return hf.BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=[*cell.head.new_modules, *cell.head.tied_modules] or None,
        **asdict(quantization),
    )


def make_base(cell: Cell, tokenizer: Any, model: Any) -> Base:
    """Facts about the loaded model for PEFT's config, such as a new token's embedding row."""
    token = cell.head.new_token
    token_indices = None
    if token:
        token_indices = {embedding_name(model): [tokenizer.convert_tokens_to_ids(token)]}
    conv1d = hf.pytorch_utils.Conv1D  # GPT-2's layers
    return Base(
        modules_to_save=list(cell.head.new_modules) or None,
        trainable_token_indices=token_indices,
        fan_in_fan_out=any(isinstance(module, conv1d) for module in model.modules()),
    )


def embedding_name(model: Any) -> str:
    """The last part of the input embeddings' module name, such as "wte" in GPT-2."""
    embeddings = model.get_input_embeddings()
    names = (name for name, module in model.named_modules() if module is embeddings)
    return str(next(names)).split(".")[-1]


def train_in_fp32(model: nn.Module) -> None:
    """Casts trainable weights to fp32, and makes the modules that own them cast their inputs too.

    Modules whose trainable weights are already in fp32 stay as they are.
    """

    def inputs_in_fp32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        values = list(inputs)
        for i, value in enumerate(inputs):
            if isinstance(value, Tensor) and value.is_floating_point():
                values[i] = value.float()
        return tuple(values)

    for module in model.modules():
        trained = [p for p in module.parameters(recurse=False) if p.requires_grad]
        other_types = [p for p in trained if p.dtype is not torch.float32]
        for parameter in other_types:
            parameter.data = parameter.data.float()
        if other_types:
            module.register_forward_pre_hook(inputs_in_fp32)


ROUNDS_BIASES = Version(bnb.__version__) >= Version("0.50")


def keep_packed_layers(model: nn.Module) -> None:
    """Keeps bitsandbytes from changing 4-bit layers in the middle of training."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On a CPU with bf16 units, the first evaluation would repack weights, and training
            # would then fail or compute wrong gradients. Without repacking, all CPUs also evaluate
            # alike.
            module.support_avx512bf16_for_cpu = False
            # Version 0.50 rounds biases at the first forward pass. If they are rounded now, frozen
            # biases do not change later.
            if module.bias is not None and ROUNDS_BIASES:
                module.bias.data = module.bias.data.to(module.compute_dtype)


def perturb(model: nn.Module, draw: int) -> None:
    """Multiplies all but 4-bit weights by 1 + `PERTURBATION` x normal noise; `draw` is the seed."""
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():  # a 4-bit code cannot change by so little
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.mul_(1 + PERTURBATION * noise)


def unpack_weight(parameter: Any) -> Tensor:
    """A weight's values, dequantized if it is stored in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    numbers: Tensor = parameter.detach()
    if state is not None:
        numbers = bnb.functional.dequantize_4bit(parameter.data, state)
    return numbers


def checksums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Checksum]:
    """Sums each tensor's bits, read as integers, over all elements and over every second one.

    These checksums are not cryptographic, but they distinguish trained from unchanged weights and
    are computed on the device.
    """
    names = []
    sums = []
    for name, tensor in tensors:
        vector = tensor.detach().reshape(-1)
        bits = vector.view(INTEGERS.get(vector.element_size(), torch.uint8))
        names.append(name)
        sums += [bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)]
    values = torch.stack(sums).tolist() if sums else []  # one transfer to the host
    return dict(zip(names, zip(values[::2], values[1::2], strict=True), strict=True))


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name without its prefix, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def weight_files(cell: Cell) -> list[Path]:
    """The safetensors files that transformers loads: one file, or all files that an index lists.

    Empty if the profile asks for random weights or the checkpoint has no such files.
    """
    if cell.profile.random_weights:
        return []
    source, pin = checkpoint_source(cell.backbone, cell.profile)
    optional = {**pin, "_raise_exceptions_for_missing_entries": False}
    path = hf.utils.cached_file(source, hf.utils.SAFE_WEIGHTS_NAME, **optional)
    if path:
        return [Path(path)]
    index = hf.utils.cached_file(source, hf.utils.SAFE_WEIGHTS_INDEX_NAME, **optional)
    if not index:
        return []
    names, _ = hf.utils.hub.get_checkpoint_shard_files(source, index, **pin)
    return [Path(name) for name in names]


@cache
def files_by_key(files: tuple[Path, ...]) -> Mapping[str, Path]:
    """Maps the name of each tensor in a checkpoint to the file that contains it."""
    file_of: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            file_of |= dict.fromkeys(file.keys(), path)
    return file_of


def lacking_modules(cell: Cell) -> list[str]:
    """Optional modules of the head that the checkpoint lacks, so their weights start random."""
    if not cell.head.optional_modules:
        return []
    names = files_by_key(tuple(weight_files(cell)))
    lacking = []
    for module in cell.head.optional_modules:
        if not any(is_part(name, [module]) for name in names):
            lacking.append(module)
    return lacking


def model_record(cell: Cell) -> ModelRecord:
    """The record of the cell's model, with a fingerprint unless its weights are random.

    The fingerprint is the model's revision on the hub, or a hash of a local checkpoint's files.
    """
    checkpoint = f"random weights, shape of {cell.backbone.checkpoint}"
    fingerprint = None
    if not cell.profile.random_weights:
        source, _ = checkpoint_source(cell.backbone, cell.profile)
        checkpoint = Path(source).name if Path(source).is_dir() else source
        if local_checkpoint(cell.backbone, cell.profile):
            digest = hashlib.sha256()
            for path in weight_files(cell):
                digest.update(path.read_bytes())
            fingerprint = digest.hexdigest()[:16]
        elif cell.backbone.revision:
            fingerprint = cell.backbone.revision
        else:
            find = hf.utils.hub.extract_commit_hash
            commits = (find(str(path), None) for path in weight_files(cell))
            fingerprint = next(filter(None, commits), None)
    kind = cell.head.architecture  # a class or a name
    return ModelRecord(
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        architecture=getattr(kind, "__name__", str(kind)),
        adapted_modules=list(cell.head.adapted_modules),
    )


@cache
def checkpoint_checksums(files: tuple[Path, ...], dtype: torch.dtype) -> Mapping[str, Checksum]:
    """Checksums of a checkpoint's tensors, by name, after casting each tensor to `dtype`."""
    sums: dict[str, Checksum] = {}
    for path in files:
        tensors = load_file(path).items()
        sums |= checksums((name, tensor.to(dtype)) for name, tensor in tensors)
    return sums


@cache
def matching_keys(name: str, files: tuple[Path, ...]) -> list[str]:
    """The tensor names in a checkpoint that share the longest ending with `name`.

    The ending has at least two words. A model and its checkpoint may name a tensor differently:
    PEFT and heads prepend words, and PEFT also inserts words.
    """
    end = reversed_words(name)
    lengths = {}
    for key in files_by_key(files):
        pairs = zip(end, reversed_words(key), strict=False)
        lengths[key] = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    longest = max([2, *lengths.values()])
    return [key for key, length in lengths.items() if length == longest]


def reversed_words(name: str) -> list[str]:
    """The words of a tensor's name in reverse order, without base_layer.

    They are spelled so that the names in a model and its checkpoint match.
    """
    words = reversed(name.split("."))
    return [RENAMED_WORDS.get(word, word) for word in words if word != "base_layer"]
