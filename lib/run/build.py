"""Load, quantize, adapt. In: a `Cell` and a device. Out: a tokenizer, and a model in which exactly the right things train."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import peft
import torch
import transformers as hf
from safetensors import SafetensorError
from torch import nn

from lib.codecs.architectures import architecture
from lib.codecs.synthetic import SyntheticTokenizer
from lib.data.sources import ROOTS_HINT
from lib.errors import InputError
from lib.grid.backbones import BERT, Backbone
from lib.grid.cells import Cell
from lib.grid.profiles import Profile
from lib.run.bertscore import BertScorer

ATTENTION = "sdpa"  # torch's fused attention; all three backbones have it
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")


def checkpoint_of(backbone: Backbone, profile: Profile) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is given: a local folder, or the hub's id with the pinned revision.

    Raises InputError where a local folder is missing or lacks a config, a tokenizer or safetensors weights.
    """
    if profile.checkpoint_root is None:
        return backbone.checkpoint, {"revision": backbone.revision}
    folder = profile.checkpoint_root / (backbone.micro if profile.micro else backbone.folder)
    _check_folder(folder)
    return str(folder), {}


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"no checkpoint folder {folder.name!r} below {folder.parent}; it is named as the hub's model")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; save it there with save_pretrained")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}); save it there with save_pretrained")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        reason = f"only {pickles[0]}, a pickle, which can run code when it is read" if pickles else "no weights"
        raise InputError(f"{folder} has {reason}; save model.safetensors there (save_pretrained writes it)")


def load_tokenizer(cell: Cell) -> Any:
    """The checkpoint's tokenizer, or its ids alone where weights are random; with the head's new token."""
    if cell.profile.random_weights:
        tokenizer: Any = SyntheticTokenizer(cell.backbone)
    else:
        source, pin = checkpoint_of(cell.backbone, cell.profile)
        tokenizer = _from_hub_or_folder(hf.AutoTokenizer, source, pin)
    if cell.head.new_token:
        tokenizer.add_tokens([cell.head.new_token], special_tokens=True)
    return tokenizer


def _from_hub_or_folder(loader: Any, source: str | None, options: dict[str, Any]) -> Any:
    try:
        return loader.from_pretrained(source, **options)
    except (OSError, SafetensorError) as error:
        hint = "" if source and Path(source).is_dir() else f"; {ROOTS_HINT}"
        raise InputError(f"cannot load {source} ({str(error).splitlines()[0]}){hint}") from None


def build(cell: Cell, tokenizer: Any, device: torch.device) -> nn.Module:
    """The model that trains: loaded, quantized and adapted as the cell's method says, on `device`, in fp32 but for NF4.

    Raises InputError where the checkpoint leaves pretrained tensors random.
    """
    hf.set_seed(cell.profile.seed)
    model = _loaded(cell, device)
    if model.config.pad_token_id is None:  # GPT-2 finds a row's last real token by it, as the codec pads
        model.config.pad_token_id = tokenizer.eos_token_id
    if cell.head.new_token:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if cell.method.adapts:
        model.requires_grad_(False)
        model = peft.get_peft_model(model, lora_config(cell, tokenizer, model))
    built: nn.Module = model.to(device)
    settle_packed_layers(built)
    return built


def settle_packed_layers(model: nn.Module) -> None:
    """Do to 4-bit layers before training what bitsandbytes (0.50) would do to them in the middle of it, or keep it from that.

    At the first forward pass it rounds their frozen biases to the type it computes in: done here, frozen stays frozen. At the
    first evaluation on a CPU with bf16 units it repacks their weights, after which they can no longer be trained: a run that
    validates between epochs fails, or goes on with wrong gradients. Without that, evaluation also computes alike on every CPU.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if module.bias is not None:
                module.bias.data = module.bias.data.to(module.compute_dtype)


def _loaded(cell: Cell, device: torch.device) -> Any:
    source, options = _weights(cell, device)
    options |= {"dtype": torch.float32, "attn_implementation": ATTENTION, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported below, by name
    if cell.quantization or device.type == "meta":
        options["device_map"] = {"": device}
    if cell.quantization:
        options["quantization_config"] = quantization_config(cell)
    model, report = _from_hub_or_folder(architecture(cell.head.architecture), source, options)
    expected = cell.head.new_modules + cell.head.adapted_modules + cell.head.optional_modules
    random = sorted(name for name in report["missing_keys"] if not _within(name, expected))
    if random or report["mismatched_keys"]:
        names = random or sorted(str(name) for name, *_ in report["mismatched_keys"])
        raise InputError(
            f"{source} does not hold {len(names)} weights that {cell.head.architecture} needs, {names[0]} among them; "
            "they would start from random: this is not the checkpoint for this model"
        )
    if device.type == "meta":
        model.tie_weights()  # tensors without data are loaded one by one, tied or not
    return model


def _weights(cell: Cell, device: torch.device) -> tuple[str | None, dict[str, Any]]:
    """What `from_pretrained` reads: a checkpoint, or random weights of its true shape, on `device`."""
    if not cell.profile.random_weights:
        return checkpoint_of(cell.backbone, cell.profile)
    config = hf.AutoConfig.for_model(**cell.backbone.shape)
    kind = architecture(cell.head.architecture)
    with device:
        return None, {"config": config, "state_dict": getattr(kind, "checkpoint_class", kind)(config).state_dict()}


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(f".{module}." in f".{name}." for module in modules)


def quantization_config(cell: Cell) -> Any:
    """Bitsandbytes' 4-bit config; new modules, and output layers tied to the embeddings, stay as they are."""
    assert cell.quantization, "only for methods that quantize"
    return hf.BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=[*cell.head.new_modules, *cell.head.tied_modules] or None,
        **asdict(cell.quantization),
    )


def lora_config(cell: Cell, tokenizer: Any, model: nn.Module) -> Any:
    """PEFT's config of the recipe's adapter; new modules train in full, a new token by its embedding row."""
    assert cell.recipe.adapter, "only for methods that adapt"
    adapter = asdict(cell.recipe.adapter) | {"target_modules": list(cell.recipe.adapter.target_modules)}
    rows = {embedding_name(model): [tokenizer.convert_tokens_to_ids(cell.head.new_token)]} if cell.head.new_token else None
    return peft.LoraConfig(
        **adapter,
        modules_to_save=list(cell.head.new_modules) or None,
        trainable_token_indices=rows,
        fan_in_fan_out=any(isinstance(module, hf.pytorch_utils.Conv1D) for module in model.modules()),  # GPT-2's layers
    )


def weight_files(cell: Cell) -> list[Path]:
    """The checkpoint's safetensors on this machine, after it was loaded."""
    source, pin = checkpoint_of(cell.backbone, cell.profile)
    if not pin:
        return sorted(Path(source).glob("*.safetensors"))
    return [Path(hf.utils.cached_file(source, "model.safetensors", **pin))]  # all three are of one file


def checkpoint_fingerprint(cell: Cell) -> str | None:
    """Sixteen hex digits over the weight files of a local folder, or the hub's pinned revision; None for random weights."""
    if cell.profile.random_weights:
        return None
    source, pin = checkpoint_of(cell.backbone, cell.profile)
    if pin:
        return cell.backbone.revision
    digest = hashlib.sha256()
    for path in sorted(Path(source).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def embedding_name(model: nn.Module) -> str:
    """The name of the module that holds the input embeddings, as "wte" in GPT-2."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator] # transformers' models have it
    name: str = next(name for name, module in model.named_modules() if module is embeddings)
    return name.split(".")[-1]


def load_bert_scorer(profile: Profile) -> BertScorer:
    """BERTScore's encoder: the profile's own BERT."""
    source, pin = checkpoint_of(BERT, profile)
    tokenizer = _from_hub_or_folder(hf.AutoTokenizer, source, pin)
    return BertScorer(Path(source).name, tokenizer, _from_hub_or_folder(hf.BertModel, source, {"use_safetensors": True, **pin}))
