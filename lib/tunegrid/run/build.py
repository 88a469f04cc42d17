"""Builds a `Cell`'s tokenizer and model: loaded, quantized, adapted, with only the right weights to train."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import transformers as hf
from torch import Tensor, nn

from tunegrid.codecs.architectures import architecture
from tunegrid.codecs.base import SyntheticTokenizer
from tunegrid.data.sources import LONGEST_CAUSE, ROOTS_HINT
from tunegrid.errors import InputError, first_line
from tunegrid.grid.backbones import BERT, checkpoint_of, within
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Base
from tunegrid.grid.profiles import Profile
from tunegrid.grid.tasks import Problem
from tunegrid.libraries import hub_code
from tunegrid.run.device import ATTENTION, out_of_memory, resolve_precision, resolve_quantization
from tunegrid.run.metrics import BertScorer

PERTURBATION = 1e-6  # relative: a few last bits of fp32
BASE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_tokenizer(cell: Cell) -> Any:
    """The checkpoint's tokenizer, or only its ids if weights are random; with the head's new token."""
    if cell.profile.random_weights:
        tokenizer: Any = SyntheticTokenizer(cell.backbone)
    else:
        source, pin = checkpoint_of(cell.backbone, cell.profile)
        tokenizer = from_hub_or_folder(hf.AutoTokenizer, source, pin)
        with loading(source):
            tokenizer(["a"], add_special_tokens=False, verbose=False)  # some broken settings show only here
    if cell.head.new_token:
        tokenizer.add_tokens([cell.head.new_token], special_tokens=True)
    return tokenizer


def load_bert_scorer(profile: Profile) -> BertScorer:
    """BERTScore's encoder: the profile's own BERT."""
    source, pin = checkpoint_of(BERT, profile)
    tokenizer = from_hub_or_folder(hf.AutoTokenizer, source, pin)
    return BertScorer(Path(source).name, tokenizer, from_hub_or_folder(hf.BertModel, source, {"use_safetensors": True, **pin}))


def from_hub_or_folder(loader: Any, source: str | None, options: dict[str, Any]) -> Any:
    """What a checkpoint holds; its own code is not run, nor asked about. Raises InputError if it cannot be read."""
    with loading(source):
        return loader.from_pretrained(source, trust_remote_code=False, **options)


@contextmanager
def loading(source: str | None) -> Iterator[None]:
    """Whatever a library raises meanwhile, of whichever file of a broken checkpoint, is an InputError of one sentence."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error) or isinstance(error, InputError):
            raise
        cause = first_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {first_line(error)}"
        hint = "" if source and Path(source).is_dir() else f"; {ROOTS_HINT}"
        raise InputError(f"cannot load {source} ({cause[:LONGEST_CAUSE]}){hint}") from None


def build(cell: Cell, tokenizer: Any, device: torch.device) -> nn.Module:
    """The model that trains: loaded, quantized and adapted as the cell's method says, on `device`.

    Weights that train are fp32. Frozen ones are fp32, NF4, or bf16 if the backbone says so.

    Raises:
        InputError: if the checkpoint leaves pretrained tensors random, if the recipe's precision does not fit the base, if the
            model cannot checkpoint activations, or if code without a release would compute.
    """
    _check_type(cell, device)
    if cell.quantization and device.type == "cpu" and (code := hub_code()):
        raise InputError(
            f"bitsandbytes would compute 4-bit layers with {code[0]}, which the package kernels took from the hub, of whatever "
            "commit is there now: `pip uninstall kernels`, so that its own code runs"
        )
    hf.set_seed(cell.profile.seed)
    model = load_base(cell, tokenizer, device)
    adapted = cell.method.adapted(model, cell, base_of(cell, tokenizer, model))
    if base_type(cell) is not torch.float32:
        train_in_fp32(adapted)
    built: Any = adapted.to(device)
    keep_packed_layers(built)
    if cell.recipe.gradient_checkpointing:
        try:  # transformers 5.24 gave it a new name
            enable = getattr(built, "activation_checkpointing_enable", None) or built.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        except (AttributeError, ValueError) as error:
            raise InputError(
                f"the recipe asks for gradient_checkpointing, which this model lacks ({first_line(error)})"
            ) from None
    if cell.profile.perturbation is not None:
        perturb(built, cell.profile.perturbation)
    return built  # type: ignore[no-any-return]


def base_type(cell: Cell) -> torch.dtype:
    """The type in which a base is loaded: the backbone's if it is frozen, fp32 if it trains."""
    return BASE_TYPES[cell.backbone.dtype] if cell.method.adapts else torch.float32


def _check_type(cell: Cell, device: torch.device) -> None:
    """Raises InputError for a dtype that we do not know, and for training in fp32 over a base in bf16."""
    if cell.backbone.dtype not in BASE_TYPES:
        known = ", ".join(BASE_TYPES)
        raise InputError(f"backbone {cell.backbone.id!r} has unknown dtype {cell.backbone.dtype!r}; known are {known}")
    precision, fallback = resolve_precision(cell, device)
    if base_type(cell) is not torch.float32 and precision == "fp32":
        cause, way_out = (fallback, "") if fallback else ("the recipe says fp32", 'the recipe precision="bf16" or ')
        raise InputError(
            f"{cell.id}: the base of {cell.backbone.name} is loaded in {cell.backbone.dtype}, over which nothing trains in "
            f'fp32 ({cause}); give {way_out}the backbone dtype="float32"'
        )


def load_base(cell: Cell, tokenizer: Any, device: torch.device) -> Any:
    """The checkpoint's model, quantized if the method quantizes; its new head and the new token's row start from random."""
    source, options = _weights(cell, device)
    options |= {"dtype": base_type(cell), "attn_implementation": ATTENTION, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported below, by name
    if cell.quantization or device.type == "meta":
        options["device_map"] = {"": device}
    if cell.quantization:
        options["quantization_config"] = quantization_config(cell, device)
    kind, head = architecture(cell.head.architecture), cell.head
    model, report = from_hub_or_folder(kind, source, options)
    new = head.new_modules + head.adapted_modules
    missing = sorted(name for name in report["missing_keys"] if not within(name, new + head.optional_modules))
    misshapen = sorted(str(name) for name, *_ in report["mismatched_keys"] if not within(str(name), new))
    if names := missing or misshapen:
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


def _weights(cell: Cell, device: torch.device) -> tuple[str | None, dict[str, Any]]:
    """The source and options for `from_pretrained`: a checkpoint, or random weights of its true shape on `device`."""
    labels = {"num_labels": len(cell.task.labels)} if cell.task.problem is Problem.CLASSIFY else {}
    if not cell.profile.random_weights:
        source, options = checkpoint_of(cell.backbone, cell.profile)
        return source, options | labels
    config = hf.AutoConfig.for_model(**cell.backbone.shape, **labels)
    kind = architecture(cell.head.architecture)
    with device:
        return None, {"config": config, "state_dict": getattr(kind, "checkpoint_class", kind)(config).state_dict()}


def quantization_config(cell: Cell, device: torch.device) -> Any:
    """Bitsandbytes' 4-bit config. New modules, and output layers tied to the embeddings, are not quantized."""
    quantization, _ = resolve_quantization(cell, device)
    assert quantization, "only for methods that quantize"
    skipped = [*cell.head.new_modules, *cell.head.tied_modules] or None
    return hf.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped, **asdict(quantization))


def base_of(cell: Cell, tokenizer: Any, model: Any) -> Base:
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
    name: str = next(name for name, module in model.named_modules() if module is embeddings)
    return name.split(".")[-1]


def train_in_fp32(model: nn.Module) -> None:
    """Cast weights that train to fp32. Their modules then cast their inputs, which a base in another type computes."""

    def inputs_in_fp32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and p.dtype is not torch.float32]
        for parameter in own:
            parameter.data = parameter.data.float()
        if own:
            module.register_forward_pre_hook(inputs_in_fp32)


def keep_packed_layers(model: nn.Module) -> None:
    """Keep bitsandbytes (0.50) from changing 4-bit layers in mid-training.

    At the first forward pass it rounds their frozen biases to the type it computes in. This is done here, so that frozen
    weights stay bit-identical. At the first evaluation on a CPU with bf16 units it repacks their weights, which then cannot
    be trained: a run that validates between epochs fails, or goes on with wrong gradients. This is switched off; evaluation
    then also computes alike on every CPU.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if module.bias is not None:
                module.bias.data = module.bias.data.to(module.compute_dtype)


def perturb(model: nn.Module, draw: int) -> None:
    """Multiply all weights by 1 + `PERTURBATION` x normal noise: another start for the computer, the same one for a reader.

    Packed weights stay: a last digit less would move some of them by a whole level.
    """
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.mul_(1 + PERTURBATION * noise)
