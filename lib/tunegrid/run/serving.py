"""Saves, reloads and merges a trained model, as transformers and PEFT document it.

An adapter is loaded over a fresh base. Where no checkpoint holds that base, since the method, a random start or a perturbation
made it, it is saved beside the adapter: PEFT's documentation says so of PiSSA and OLoRA. An adapter of a packed base can be
loaded onto that base unpacked, or onto the checkpoint, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from tunegrid.record.parts import BaseKind
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
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not (folder / peft.utils.CONFIG_NAME).is_file():
            return _prepared(_load_saved(cell, folder, device), device), tokenizer
        base = _prepared(_base(cell, folder, tokenizer, device), device)
        return peft.PeftModel.from_pretrained(base, folder, torch_device=str(device)).eval(), tokenizer

    def load_onto(self, base: BaseKind, cell: Cell, folder: Path, device: torch.device) -> Any:
        """The adapter that `save` wrote, over its base as it was packed, over that base unpacked, or over the checkpoint.

        Raises InputError where no checkpoint holds the base.
        """
        if base == "packed":
            return self.load(cell, folder, device)[0]
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if base == "original":
            if (folder / BASE).is_dir():
                raise InputError("no checkpoint holds the base: it was saved packed, beside the adapter")
            cell = replace(cell, method=replace(cell.method, quantization=None))
        loaded = _base(cell, folder, tokenizer, device)
        loaded = loaded.dequantize() if base == "unpacked" else loaded
        return peft.PeftModel.from_pretrained(loaded.to(device).eval(), folder, torch_device=str(device)).eval()

    def merge(self, model: Any) -> Any:
        """The base of a loaded adapter with the adapter merged into its weights; the loaded model is used up."""
        return model.merge_and_unload()


def _checkpoint_holds_base(cell: Cell) -> bool:
    """Whether the frozen base is the checkpoint's, but for what is saved with the adapter."""
    made = cell.method.rewritten(cell) or cell.head.adapted_modules or lacking_modules(cell)
    return not made and cell.profile.perturbation is None


def _base(cell: Cell, folder: Path, tokenizer: Any, device: torch.device) -> Any:
    """What an adapter was trained over: it was saved beside the adapter where no checkpoint holds it."""
    own = folder / BASE
    return _load_saved(cell, own, device) if own.is_dir() else load_base(cell, tokenizer, device)


def _load_saved(cell: Cell, folder: Path, device: torch.device) -> Any:
    """A model that was saved whole; raises InputError for one that lacks tensors, which would start from random."""
    kind = architecture(cell.head.architecture)
    options = {"dtype": base_type(cell), "attn_implementation": ATTENTION, "use_safetensors": True, "trust_remote_code": False}
    device_options = {"device_map": {"": device}} if cell.quantization else {}
    load = getattr(kind, "from_saved", kind.from_pretrained)
    model, report = load(folder, output_loading_info=True, **options, **device_options)
    lost = sorted({*report["missing_keys"], *(str(name) for name, *_ in report["mismatched_keys"])})
    if lost:
        raise InputError(f"the saved model lacks {len(lost)} tensors, {lost[0]} among them")
    return model


def _prepared(model: Any, device: torch.device) -> Any:
    """The model for evaluation; its packed layers compute as those of the trained model do."""
    keep_packed_layers(model)
    return model.to(device).eval()


@contextmanager
def unwrapped(model: Any) -> Iterator[Any]:
    """The base below an adapter, its layers taken out of PEFT's; afterwards all is as it was."""
    base, outer = model.get_base_model(), wrappers(model)
    try:
        for name, module in outer.items():
            base.set_submodule(name, _base_of(module))
        yield base
    finally:
        for name, module in outer.items():
            base.set_submodule(name, module)


def wrappers(model: Any) -> dict[str, nn.Module]:
    """What PEFT put around modules of the base, by their names in it; of one inside another, the outer one."""
    inside = {name: module for name, module in model.get_base_model().named_modules() if _base_of(module) is not None}
    return {name: module for name, module in inside.items() if not any(name.startswith(f"{other}.") for other in inside)}


def _base_of(module: nn.Module) -> Any:
    """The module that PEFT put another one around; None for any other module."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else None
