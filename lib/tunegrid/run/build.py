"""Builds a `Cell`'s tokenizer and model: loaded, quantized, adapted, with only the right weights to train.

Checksums of weights, and the files and keys of the checkpoint that they come from, stand here, too.
"""

import hashlib
import re
import sys
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
from tunegrid.grid.backbones import BERT, checkpoint_source, is_part
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Base
from tunegrid.grid.recipes import Profile
from tunegrid.grid.tasks import Problem
from tunegrid.record.record import ModelRecord
from tunegrid.run.device import BY_HAND, FUSED, out_of_memory, resolve_precision, resolve_quantization
from tunegrid.run.metrics import BertScorer

PERTURBATION = 1e-6  # relative: a few last bits of fp32
BASE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Checksum = tuple[int, int]
INTEGERS = {4: torch.int32, 2: torch.int16}  # by bytes an element; any other size is read byte by byte
# Parts of names that a loaded model has otherwise: old BERT checkpoints say gamma and beta, and BERT2BERT's cross-attention
# starts from the self-attention of its layer.
RENAMED = {"gamma": "weight", "beta": "bias", "crossattention": "attention"}
HUB = re.compile(r"(?:kernels|models)--(.+)--(.+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")  # a file in the hub's cache


def load_tokenizer(cell: Cell) -> Any:
    """The checkpoint's tokenizer, or only its ids if weights are random; with the head's new token."""
    if cell.profile.random_weights:
        tokenizer: Any = SyntheticTokenizer(cell.backbone)
    else:
        source, pin = checkpoint_source(cell.backbone, cell.profile)
        tokenizer = from_hub_or_folder(hf.AutoTokenizer, source, pin)
    if cell.head.new_token:
        tokenizer.add_tokens([cell.head.new_token], special_tokens=True)
    return tokenizer


def load_bert_scorer(profile: Profile) -> BertScorer:
    """BERTScore's encoder: the profile's own BERT."""
    source, pin = checkpoint_source(BERT, profile)
    tokenizer = from_hub_or_folder(hf.AutoTokenizer, source, pin)
    return BertScorer(Path(source).name, tokenizer, from_hub_or_folder(hf.BertModel, source, {"use_safetensors": True, **pin}))


def from_hub_or_folder(loader: Any, source: str | None, options: dict[str, Any]) -> Any:
    """What a checkpoint holds; its own code is not run. Raises InputError, in a sentence, for what a library raises."""
    try:
        loaded = loader.from_pretrained(source, trust_remote_code=False, **options)
        if loader is hf.AutoTokenizer:
            loaded(["a"], add_special_tokens=False, verbose=False)  # some broken settings show only here
        return loaded
    except Exception as error:
        if out_of_memory(error) or isinstance(error, InputError):
            raise
        cause = first_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {first_line(error)}"
        hint = "" if source and Path(source).is_dir() else f"; {ROOTS_HINT}"
        raise InputError(f"cannot load {source} ({cause[:LONGEST_CAUSE]}){hint}") from None


def hub_code() -> list[str]:
    """Repository and commit of each module that this process imported from the hub's cache."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return ["{}/{} at commit {}".format(*hub.groups()) for file in files if file and (hub := HUB.search(file))]


def build(cell: Cell, tokenizer: Any, device: torch.device) -> nn.Module:
    """The model that trains: loaded, quantized and adapted as the cell's method says, on `device`.

    Weights that train are fp32; frozen ones are fp32, NF4, or bf16 if the backbone says so. Raises InputError for a checkpoint,
    a precision or an option that does not fit the model, and if code without a release would compute.
    """
    if cell.backbone.dtype not in BASE_TYPES:
        names = ", ".join(BASE_TYPES)
        raise InputError(f"backbone {cell.backbone.id!r} has unknown dtype {cell.backbone.dtype!r}; known are {names}")
    precision, fallback = resolve_precision(cell, device)
    if base_type(cell) is not torch.float32 and precision == "fp32":
        cause, remedy = (fallback, "") if fallback else ("the recipe says fp32", 'the recipe precision="bf16" or ')
        raise InputError(
            f"{cell.id}: the base of {cell.backbone.name} is loaded in {cell.backbone.dtype}, over which nothing trains in "
            f'fp32 ({cause}); give {remedy}the backbone dtype="float32"'
        )
    if cell.quantization and device.type == "cpu" and (code := hub_code()):
        raise InputError(
            f"bitsandbytes would compute 4-bit layers with {code[0]}, which the package kernels took from the hub, of whatever "
            "commit is there now: `pip uninstall kernels`, so that its own code runs"
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
        try:  # transformers 5.24 gave it a new name
            enable = getattr(final_model, "activation_checkpointing_enable", None) or final_model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        except (AttributeError, ValueError) as error:
            raise InputError(f"the model lacks the recipe's gradient_checkpointing ({first_line(error)})") from None
    if cell.profile.perturbation is not None:
        perturb(final_model, cell.profile.perturbation)
    return final_model  # type: ignore[no-any-return]


def base_type(cell: Cell) -> torch.dtype:
    """The type in which a base is loaded: the backbone's if it is frozen, fp32 if it trains."""
    return BASE_TYPES[cell.backbone.dtype] if cell.method.adapts else torch.float32


def load_base(cell: Cell, tokenizer: Any, device: torch.device) -> Any:
    """The checkpoint's model, quantized if the method quantizes; its new head and the new token's row start from random."""
    kind, head, source = architecture(cell.head.architecture), cell.head, None
    labels = dict(enumerate(cell.task.labels)) if cell.task.problem is Problem.CLASSIFY else {}  # what is saved names them
    options: dict[str, Any] = {"id2label": labels, "label2id": {n: i for i, n in labels.items()}} if labels else {}
    if cell.profile.random_weights:  # of the checkpoint's true shape
        config = hf.AutoConfig.for_model(**cell.backbone.shape, **options)
        with device:
            options = {"config": config, "state_dict": getattr(kind, "checkpoint_class", kind)(config).state_dict()}
    else:
        source, pin = checkpoint_source(cell.backbone, cell.profile)
        options |= pin
    options |= {"dtype": base_type(cell), "attn_implementation": attention(cell), "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported below, by name
    if cell.quantization or device.type == "meta":
        options["device_map"] = {"": device}
    if cell.quantization:
        options["quantization_config"] = packing_config(cell, device)
    model, report = from_hub_or_folder(kind, source, options)
    new_modules = head.new_modules + head.adapted_modules
    missing_keys = sorted(name for name in report["missing_keys"] if not is_part(name, new_modules + head.optional_modules))
    misshapen_keys = sorted(str(name) for name, *_ in report["mismatched_keys"] if not is_part(str(name), new_modules))
    if names := missing_keys or misshapen_keys:
        raise InputError(
            f"{source} does not hold {len(names)} weights that {kind.__name__} needs, {names[0]} among them; they would start "
            "from random: this is not the checkpoint for this model"
        )
    if device.type == "meta":
        model.tie_weights()  # tensors without data are loaded one by one, tied or not
    # GPT-2 and Llama find a row's last real token by it: it must be what the codec pads with.
    model.config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if head.new_token:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def attention(cell: Cell) -> str:
    """How the cell's model computes attention: by a function of torch, or by hand as transformers to 5.14 has it for T5."""
    kind = architecture(cell.head.architecture)
    return FUSED if getattr(kind, "_supports_sdpa", True) else BY_HAND


def packing_config(cell: Cell, device: torch.device) -> Any:
    """How transformers packs the base of a quantized cell; an output tied to the embeddings is not packed."""
    skip_modules = [*cell.head.new_modules, *cell.head.tied_modules] or None
    quantization = resolve_quantization(cell, device)[0]
    assert quantization, "the cell has one"
    return hf.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip_modules, **asdict(quantization))


def make_base(cell: Cell, tokenizer: Any, model: Any) -> Base:
    """What a PEFT config must be told about the loaded model. Of a new token, its row of the embedding trains."""
    token = cell.head.new_token
    return Base(
        modules_to_save=list(cell.head.new_modules) or None,
        trainable_token_indices={embedding_name(model): [tokenizer.convert_tokens_to_ids(token)]} if token else None,
        fan_in_fan_out=any(isinstance(module, hf.pytorch_utils.Conv1D) for module in model.modules()),  # GPT-2's layers
    )


def embedding_name(model: Any) -> str:
    """The name of the module that holds the input embeddings, as "wte" in GPT-2."""
    embeddings = model.get_input_embeddings()
    return str(next(name for name, module in model.named_modules() if module is embeddings)).split(".")[-1]


def train_in_fp32(model: nn.Module) -> None:
    """Cast weights that train to fp32. Their modules then cast their inputs, which a base in another type computes."""

    def inputs_in_fp32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    for module in model.modules():
        parameters = [p for p in module.parameters(recurse=False) if p.requires_grad and p.dtype is not torch.float32]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        if parameters:
            module.register_forward_pre_hook(inputs_in_fp32)


ROUNDS_BIASES = Version(bnb.__version__) >= Version("0.50")


def keep_packed_layers(model: nn.Module) -> None:
    """Keep bitsandbytes from changing 4-bit layers in mid-training."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # At the first evaluation on a CPU with bf16 units it would repack weights, over which training then fails or has
            # wrong gradients. Without, every CPU evaluates alike, too.
            module.support_avx512bf16_for_cpu = False
            # Which 0.50 rounds at the first forward pass, and earlier ones do not: frozen ones stay bit-identical.
            if module.bias is not None and ROUNDS_BIASES:
                module.bias.data = module.bias.data.to(module.compute_dtype)


def perturb(model: nn.Module, draw: int) -> None:
    """Multiply all weights by 1 + `PERTURBATION` x normal noise: another start for the computer, the same one for a reader."""
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():  # a last digit less would move some packed ones by a whole level
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.mul_(1 + PERTURBATION * noise)


def unpack_weight(parameter: Any) -> Tensor:
    """A weight as numbers, if it is packed to 4 bits, too."""
    state = getattr(parameter, "quant_state", None)
    numbers: Tensor = parameter.detach() if state is None else bnb.functional.dequantize_4bit(parameter.data, state)
    return numbers


def checksums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Checksum]:
    """Of each tensor, by name, sums of all its bits taken as integers, and of every other one; equal bits, equal sums."""
    # No cryptographic hash: it tells trained weights from unchanged ones, in place.
    vectors = {name: tensor.detach().reshape(-1) for name, tensor in tensors}
    bits = [one.view(INTEGERS.get(one.element_size(), torch.uint8)) for one in vectors.values()]
    sums = [torch.stack([one.sum(dtype=torch.int64), one[::2].sum(dtype=torch.int64)]) for one in bits]
    pairs = [(first, second) for first, second in torch.stack(sums).tolist()] if sums else []
    return dict(zip(vectors, pairs, strict=True))


def dtype_name(dtype: torch.dtype) -> str:
    """A type as files name it: float32."""
    return str(dtype).removeprefix("torch.")


def weight_files(cell: Cell) -> list[Path]:
    """The safetensors that transformers loads: one file, or else all that the index names; none if weights are random."""
    if cell.profile.random_weights:
        return []
    source, pin = checkpoint_source(cell.backbone, cell.profile)
    optional = {**pin, "_raise_exceptions_for_missing_entries": False}
    if path := hf.utils.cached_file(source, hf.utils.SAFE_WEIGHTS_NAME, **optional):
        return [Path(path)]
    index = hf.utils.cached_file(source, hf.utils.SAFE_WEIGHTS_INDEX_NAME, **optional)
    return [Path(name) for name in hf.utils.hub.get_checkpoint_shard_files(source, index, **pin)[0]] if index else []


@cache
def files_by_key(files: tuple[Path, ...]) -> Mapping[str, Path]:
    """In which file each tensor of a checkpoint is."""
    file_of: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            file_of |= dict.fromkeys(file.keys(), path)
    return file_of


def lacking_modules(cell: Cell) -> list[str]:
    """The head's optional modules that the checkpoint does not hold; they start from random."""
    if not cell.head.optional_modules:
        return []
    names = files_by_key(tuple(weight_files(cell)))
    return [module for module in cell.head.optional_modules if not any(is_part(name, [module]) for name in names)]


def model_record(cell: Cell) -> ModelRecord:
    """Which weights the cell started from, by the hub's commit or a hash of a local folder's, and the class they went into."""
    checkpoint, fingerprint = f"random weights, shape of {cell.backbone.checkpoint}", None
    if not cell.profile.random_weights:
        source, _ = checkpoint_source(cell.backbone, cell.profile)
        checkpoint = Path(source).name if Path(source).is_dir() else source
        if cell.profile.checkpoint_root is None:
            find = hf.utils.hub.extract_commit_hash
            fingerprint = cell.backbone.revision or next(filter(None, (find(str(p), None) for p in weight_files(cell))), None)
        else:
            digest = hashlib.sha256()
            for path in weight_files(cell):
                digest.update(path.read_bytes())
            fingerprint = digest.hexdigest()[:16]
    return ModelRecord(
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        architecture=getattr(cell.head.architecture, "__name__", str(cell.head.architecture)),  # a class or a name
        adapted_modules=list(cell.head.adapted_modules),
    )


@cache
def checkpoint_checksums(files: tuple[Path, ...], dtype: torch.dtype) -> Mapping[str, Checksum]:
    """Checksums of all tensors of a checkpoint by name, in the type that the model loads them in."""
    tensors = {name: tensor.to(dtype) for path in files for name, tensor in load_file(path).items()}
    return checksums(tensors.items())


@cache
def matching_keys(name: str, files: tuple[Path, ...]) -> list[str]:
    """The checkpoint's tensors whose names have the longest end in common with this one, of two parts at least."""
    # A model and its checkpoint name one tensor differently: PEFT and heads put parts in front, and PEFT some in between.
    keys = files_by_key(files)
    ends = {
        dotted: [RENAMED.get(part, part) for part in reversed(dotted.split(".")) if part != "base_layer"]
        for dotted in (name, *keys)
    }
    common = {key: len([*takewhile(lambda pair: pair[0] == pair[1], zip(ends[name], ends[key], strict=False))]) for key in keys}
    longest = max([2, *common.values()])
    return [key for key, length in common.items() if length == longest]
