"""Saves, reloads and merges a trained model, as transformers and PEFT document it.

An adapter is loaded over a fresh base. Where no checkpoint holds that base, since the method, a random start or a perturbation
made it, it is saved beside the adapter: PEFT's documentation says so of PiSSA and OLoRA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from tunegrid.codecs.architectures import architecture
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.run.build import base_type, keep_packed_layers, load_base
from tunegrid.run.device import ATTENTION
from tunegrid.run.weights import lacking_modules

BASE = "base"  # the folder, beside the adapter, of a base that no checkpoint holds


class Serving:
    """How a cell's result is saved and served. The fault table puts others in its place."""

    def save(self, cell: Cell, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write tokenizer and model, or adapter, to `folder`; the model stays as it is."""
        tokenizer.save_pretrained(folder)
        cell.method.save(model, cell, folder)
        if isinstance(model, peft.PeftModel) and not _checkpoint_holds_base(cell):
            with unwrapped(model) as base:
                base.save_pretrained(folder / BASE)

    def load(self, cell: Cell, folder: Path, device: torch.device) -> tuple[Any, Any]:
        """The model and the tokenizer that `save` wrote. Raises InputError where a full model lacks tensors."""
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        if not (folder / peft.utils.CONFIG_NAME).is_file():
            return _load_saved(cell, folder, device), tokenizer
        own = folder / BASE
        base = _load_saved(cell, own, device) if own.is_dir() else _prepared(load_base(cell, tokenizer, device), device)
        return peft.PeftModel.from_pretrained(base, folder, torch_device=str(device)).eval(), tokenizer

    def merge(self, model: Any) -> Any:
        """The base of a loaded adapter with the adapter merged into its weights; the loaded model is used up."""
        return model.merge_and_unload()


def _checkpoint_holds_base(cell: Cell) -> bool:
    """Whether the frozen base is the checkpoint's, but for what is saved with the adapter."""
    made = cell.method.rewritten(cell) or cell.head.adapted_modules or lacking_modules(cell)
    return not made and cell.profile.perturbation is None


def _load_saved(cell: Cell, folder: Path, device: torch.device) -> Any:
    """A model that was saved whole; raises InputError for one that lacks tensors, which would start from random."""
    kind = architecture(cell.head.architecture)
    options = {"dtype": base_type(cell), "attn_implementation": ATTENTION, "use_safetensors": True}
    device_options = {"device_map": {"": device}} if cell.quantization else {}
    load = getattr(kind, "from_saved", kind.from_pretrained)
    model, report = load(folder, output_loading_info=True, **options, **device_options)
    lost = sorted({*report["missing_keys"], *(str(name) for name, *_ in report["mismatched_keys"])})
    if lost:
        raise InputError(f"the saved model lacks {len(lost)} tensors, {lost[0]} among them")
    return _prepared(model, device)


def _prepared(model: Any, device: torch.device) -> Any:
    """The model for evaluation; its packed layers compute as those of the trained model do."""
    keep_packed_layers(model)
    return model.to(device).eval()


@contextmanager
def unwrapped(model: Any) -> Iterator[Any]:
    """The base below an adapter, its layers taken out of PEFT's; afterwards all is as it was."""
    base = model.get_base_model()
    wrappers = {name: module for name, module in base.named_modules() if _base_of(module) is not None}
    outer = {name: m for name, m in wrappers.items() if not any(name.startswith(f"{other}.") for other in wrappers)}
    try:
        for name, module in outer.items():
            base.set_submodule(name, _base_of(module))
        yield base
    finally:
        for name, module in outer.items():
            base.set_submodule(name, module)


def _base_of(module: nn.Module) -> Any:
    """The module that PEFT put another one around; None for any other module."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else None
