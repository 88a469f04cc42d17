"""Settings that save and load: models, adapters, several adapters in one model, tokenizers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.equivalent.bench import Bench, Setting
from benchmarks.equivalent.compare import Fields
from tunegrid.codecs.base import Feature

FIRST = "default"  # PEFT's name for an adapter without one
SHARED = ("base_layer.weight", "vera_A", "vera_B")
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"


def disturbed(model: Any, seed: int = 0, size: float = 0.05, adapter: str | None = None) -> Any:
    """The model with noise on all that trains, so that an adapter that starts as nothing is something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mine = parameter.requires_grad if adapter is None else f".{adapter}" in name
            if mine and parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model.eval()


# A model, or its adapter


def kept() -> Setting:
    """What a model has learned and answers."""
    return lambda bench: _of(bench, disturbed(bench.model()), bench.tokenizer)


def served() -> Setting:
    """The same of the model that was saved and loaded again."""

    def ask(bench: Bench) -> Fields:
        folder, model = bench.new_folder("saved"), disturbed(bench.model())
        bench.serving.save(bench.cell, model, bench.tokenizer, folder)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        loaded, tokenizer = bench.serving.load(bench.cell, folder, bench.device)
        return _of(bench, loaded, tokenizer, trained)

    return ask


def _of(bench: Bench, model: Any, tokenizer: Any, trained: set[str] | None = None) -> Fields:
    """`trained` names what is compared; a loaded model trains nothing."""
    parameters = dict(model.named_parameters())
    names = trained or {name for name, p in parameters.items() if p.requires_grad}
    texts = [bench.codec().text(row) for row in bench.splits.test[:2]]
    return {
        "learned": {name: parameters[name].detach().clone() for name in sorted(names & parameters.keys())},
        "logits": logits_of(bench, model),
        "token ids": [tokenizer(text)["input_ids"] for text in [*texts, bench.cell.head.new_token or ""]],
    }


def logits_of(bench: Bench, model: Any, features: list[Feature] | None = None, **options: Any) -> list[Tensor]:
    """What a model answers to a training batch."""
    batch = bench.codec().collate(features or bench.features(6)[:4])
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        output = model(**inputs, **({"use_cache": False} if bench.codec().generates else {}), **options)
    names = ("logits", "start_logits", "end_logits")
    return [getattr(output, name) for name in names if getattr(output, name, None) is not None]


# Tokenizers


def tokenizer_at_hand() -> Setting:
    """A tokenizer with settings of its own: sides, a template, a length, and what its last call left behind."""
    return lambda bench: _read(_own(bench))


def tokenizer_loaded() -> Setting:
    """The same saved, and loaded again."""

    def ask(bench: Bench) -> Fields:
        folder = bench.new_folder("tokenizer")
        _own(bench).save_pretrained(folder)
        return _read(hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False))

    return ask


def _own(bench: Bench) -> Any:
    import copy

    tokenizer = copy.deepcopy(bench.tokenizer)
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.chat_template, tokenizer.model_max_length = TEMPLATE, 37
    tokenizer.add_tokens(["<mine>"], special_tokens=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer(["a b c d e f"], truncation=True, max_length=4, padding="max_length")  # the backend keeps both settings
    return tokenizer


def _read(tokenizer: Any) -> Fields:
    texts = ["one two three <mine> four", "a", "it is a long way to the end of this sentence, and then some more"]
    conversation = [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": "it is"}]
    return {
        "settings": {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side", "model_max_length")},
        "special ids": [*map(int, tokenizer.all_special_ids)],
        "whole": tokenizer(texts)["input_ids"],
        "cut": tokenizer(texts, truncation=True, max_length=6)["input_ids"],
        "padded": tokenizer(texts, padding=True)["input_ids"],
        "template": tokenizer.apply_chat_template(conversation, tokenize=False),
        "decoded": tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True),
    }


# Several adapters in one model


def two_adapters(bench: Bench, second: str = "second") -> Any:
    """A model with an adapter and another one beside it; both are something, and neither is the other."""
    model = bench.model()
    model.add_adapter(second, model.peft_config[FIRST])
    disturbed(model, 1, adapter=FIRST)
    return disturbed(model, 2, adapter=second)


def adapters_as_they_are(second: str = "second") -> Setting:
    """Each adapter's tensors, read off the model."""

    def ask(bench: Bench) -> Fields:
        model = two_adapters(bench, second)
        states = {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}
        own = {FIRST: _of_adapter(states, FIRST), second: _of_adapter(states, second)}
        return {"adapters": own}

    return ask


def adapters_in_files(second: str = "second") -> Setting:
    """Each adapter's tensors, from the file that was written for it."""

    def ask(bench: Bench) -> Fields:
        folder, model = bench.new_folder("two"), two_adapters(bench, second)
        model.save_pretrained(folder)
        return {"adapters": {FIRST: _in_file(folder), second: _in_file(folder / second)}}

    return ask


def _of_adapter(states: Mapping[str, Tensor], adapter: str) -> dict[str, Tensor]:
    """Named as PEFT names them in files: without the adapter's name, and a trained copy by the module that it replaces."""
    found = {}
    for name, tensor in states.items():
        parts = name.split(".")
        places = [i for i, part in enumerate(parts) if part == adapter and _holds_adapters(parts[i - 1])]
        if places:
            del parts[places[-1]]
            found[_short(".".join(parts))] = tensor
    return found


def _holds_adapters(part: str) -> bool:
    return part.startswith(
        ("lora_", "ia3_", "vera_", "oft_", "ln_tuning", "modules_to_save", "trainable_tokens", "token_adapter")
    )


def _in_file(folder: Path) -> dict[str, Tensor]:
    """But for what all adapters share: an embedding that was made larger, VeRA's two matrices."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {_short(name): tensor for name, tensor in tensors.items() if not name.endswith(SHARED)}


def _short(name: str) -> str:
    """As a file has it."""
    for part in (".modules_to_save", ".token_adapter"):
        name = name.replace(part, "")
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
