"""How faults break what is built, encoded and computed."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunegrid.codecs.base import IGNORED, Codec
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Quantization
from tunegrid.grid.profiles import QUICK_PROFILE

# What is built


def frozen_head(cell: Cell, folder: Path) -> Cell:
    """Nobody says that the classifier is new, so it stays as it was drawn."""
    return replace(cell, head=replace(cell.head, new_modules=(), optional_modules=cell.head.new_modules))


def unquantized(cell: Cell, folder: Path) -> Cell:
    """The quantization does not reach the model."""
    return replace(cell, method=replace(cell.method, quantization=None))


def fp4(cell: Cell, folder: Path) -> Cell:
    """Bitsandbytes' default type in place of NF4."""
    default = Quantization(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")
    return replace(cell, method=replace(cell.method, quantization=default))


def copied_checkpoint(cell: Cell, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A copy of the cell's micro backbone in `folder`: its file of weights, and the tensors in it."""
    target = shutil.copytree(QUICK_PROFILE.checkpoint_root / cell.backbone.micro, folder / cell.backbone.micro)
    return target / "model.safetensors", load_file(target / "model.safetensors")


def names_that_do_not_match(cell: Cell, folder: Path) -> Cell:
    """A checkpoint whose tensors have other names, and a loader that lets them start from random."""
    weights, tensors = copied_checkpoint(cell, folder)
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})
    loose = replace(cell.head, optional_modules=("transformer",))
    return replace(cell, head=loose, profile=replace(cell.profile, checkpoint_root=folder))


def layers_swapped(cell: Cell, folder: Path) -> Cell:
    """A checkpoint in which the first two layers have traded their weights."""
    weights, tensors = copied_checkpoint(cell, folder)
    other = {".h.0.": ".h.1.", ".h.1.": ".h.0."}
    renamed = {re.sub(r"\.h\.[01]\.", lambda match: other[match.group()], name): tensor for name, tensor in tensors.items()}
    save_file(renamed, weights, {"format": "pt"})
    return replace(cell, profile=replace(cell.profile, checkpoint_root=folder))


def still(cell: Cell, folder: Path) -> Cell:
    """A learning rate that is some orders of magnitude too low, in the recipe itself."""
    return replace(cell, recipe=replace(cell.recipe, learning_rate=1e-8))


# Text and tensors


def labels_are_the_input(codec: Codec, folder: Path) -> Codec:
    """A collator for language models writes its own labels: every token, the article's too."""

    class Overwritten(type(codec)):
        def collate(self, features: Any) -> Any:
            batch = super().collate(features)
            return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}

    return Overwritten(codec.cell, codec.tokenizer)


def padding_counts(codec: Codec, folder: Path) -> Codec:
    """Labels are padded with the padding token, which the loss then counts."""

    class Padded(type(codec)):
        def collate(self, features: Any) -> Any:
            batch = super().collate(features)
            return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == IGNORED, self.pad_id)}

    return Padded(codec.cell, codec.tokenizer)


def separator_cut_off(codec: Codec, folder: Path) -> Codec:
    """At inference the prompt is cut behind the article, and <sum> with it."""

    class Cut(type(codec)):
        def encode(self, rows: Any, *, training: bool) -> Any:
            features = super().encode(rows, training=training)
            return features if training else [replace(f, input_ids=f.input_ids[:-1]) for f in features]

    return Cut(codec.cell, codec.tokenizer)


def windows_taken_for_rows(codec: Codec, folder: Path) -> Codec:
    """Window i answers row i, though some rows have several windows."""

    class Shifted(type(codec)):
        def encode(self, rows: Any, *, training: bool) -> Any:
            features = super().encode(rows, training=training)
            return features if training else [replace(f, example=min(i, len(rows) - 1)) for i, f in enumerate(features)]

    return Shifted(codec.cell, codec.tokenizer)


def first_occurrence(codec: Codec, folder: Path) -> Codec:
    """The answer is labelled where its text first occurs."""

    class First(type(codec)):
        def encode(self, rows: Any, *, training: bool) -> Any:
            return super().encode([moved(row) for row in rows] if training else rows, training=training)

    def moved(row: Any) -> Any:
        texts = row["answers"]["text"]
        return row | {"answers": {"text": texts, "answer_start": [row["context"].find(text) for text in texts]}}

    return First(codec.cell, codec.tokenizer)


def answers_unlabelled(codec: Codec, folder: Path) -> Codec:
    """One answer in three is labelled as in none of its row's windows, though one holds it."""

    class Unlabelled(type(codec)):
        def encode(self, rows: Any, *, training: bool) -> Any:
            features = super().encode(rows, training=training)
            return [replace(f, target=(0, 0)) if training and f.example % 3 == 0 else f for f in features]

    return Unlabelled(codec.cell, codec.tokenizer)


def spans_collated_away(codec: Codec, folder: Path) -> Codec:
    """The collator labels every window as one without its answer."""

    class Collated(type(codec)):
        def collate(self, features: Any) -> Any:
            batch = super().collate(features)
            return {**batch, "labels": torch.zeros_like(batch["labels"])}

    return Collated(codec.cell, codec.tokenizer)


def answers_from_elsewhere(codec: Codec, folder: Path) -> Codec:
    """An answer is cut out of its own row's context, at the place of the next row's span."""

    class Elsewhere(type(codec)):
        def decode(self, rows: Any, features: Any, outputs: Any) -> Any:
            moved = [*outputs[1:], outputs[0]]
            return super().decode(rows, features, [within(f.extra, *output) for f, output in zip(features, moved, strict=True)])

    def within(window: Any, score: float, first: int, last: int, scores: Any) -> tuple[float, int, int]:
        end = window.shift + len(window.offsets) - 1
        return score, min(first, end), min(last, end)

    return Elsewhere(codec.cell, codec.tokenizer)


def padding_attended(codec: Codec, folder: Path) -> Codec:
    """Every place of a batch is attended to, padding too."""

    class Attended(type(codec)):
        def inputs(self, *rows: Any, **options: Any) -> Any:
            batch = super().inputs(*rows, **options)
            return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    return Attended(codec.cell, codec.tokenizer)


def unshifted(codec: Codec, folder: Path) -> Codec:
    """The decoder's inputs are the labels, not the labels shifted right."""

    class Unshifted(type(codec)):
        def collate(self, features: Any) -> Any:
            batch = super().collate(features)
            labels = batch["labels"]
            return {**batch, "decoder_input_ids": labels.masked_fill(labels == IGNORED, self.pad_id)}

    return Unshifted(codec.cell, codec.tokenizer)


def repetition_punished(codec: Codec, folder: Path) -> Codec:
    """The search takes a setting from the checkpoint's files that the recipe does not have."""

    class Punished(type(codec)):
        def generate(self, *inputs: Any, **options: Any) -> Any:
            return super().generate(*inputs, **options | {"repetition_penalty": 2.0})

    return Punished(codec.cell, codec.tokenizer)


def late_offsets(codec: Codec, folder: Path) -> Codec:
    """The first token of a context is said to begin one character late, as if a space stood before it."""

    class Late(type(codec)):
        def encode(self, rows: Any, *, training: bool) -> Any:
            features = super().encode(rows, training=training)
            return [replace(f, extra=replace(f.extra, offsets=late(f.extra.offsets))) for f in features]

    def late(offsets: Any) -> Any:
        return [(start + (start == 0), end) for start, end in offsets]

    return Late(codec.cell, codec.tokenizer)


def cut_summaries(codec: Codec, folder: Path) -> Codec:
    """Generation stops at a default number of tokens, in the middle of the summary."""
    codec.recipe = replace(codec.recipe, generation=replace(codec.recipe.generation, max_new_tokens=7))
    return codec


# What the model computes


def never_in_evaluation(model: nn.Module, folder: Path) -> nn.Module:
    """Adapters drop in evaluation as in training."""
    for dropout in adapter_dropouts(model):
        dropout.forward = partial(nn.functional.dropout, p=dropout.p)
    return model


def dropout_skipped(model: nn.Module, folder: Path) -> nn.Module:
    """Adapters have a dropout, and do without it."""
    for dropout in adapter_dropouts(model):
        dropout.forward = lambda states: states
    return model


def adapter_dropouts(model: nn.Module) -> list[nn.Dropout]:
    """The dropouts of LoRA's layers."""
    return [module for name, module in model.named_modules() if "lora_dropout" in name and isinstance(module, nn.Dropout)]


def positions_from_zero(model: nn.Module, folder: Path) -> nn.Module:
    """A token behind a cache gets the position of a first one."""

    def restarted(positions: nn.Embedding, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.zeros_like(inputs[0]),) if inputs[0].shape[1] == 1 else inputs

    model.get_base_model().transformer.wpe.register_forward_pre_hook(restarted)
    return model


def scaled_twice(model: nn.Module, folder: Path) -> nn.Module:
    """B is scaled, and so is the product that it is in: its scale stays as declared."""
    for name, module in model.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def detached_positions(model: nn.Module, folder: Path) -> nn.Module:
    """T5's relative biases take part in the forward pass alone."""
    for name, module in model.named_modules():
        if name.endswith("relative_attention_bias"):
            module.register_forward_hook(lambda module, inputs, output: output.detach())
    return model


def adapters_in_bf16(model: nn.Module, folder: Path) -> nn.Module:
    """What trains has the type that a quantized base computes in."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


def packed_twice(model: nn.Module, folder: Path) -> nn.Module:
    """Packed layers come from a copy of the checkpoint that was saved in FP4."""
    return repacked(model, lambda weight: bnb.functional.dequantize_fp4(*bnb.functional.quantize_fp4(weight)), blocksize=64)


def large_blocks(model: nn.Module, folder: Path) -> nn.Module:
    """Twice as many weights share a scale."""
    return repacked(model, lambda weight: weight, blocksize=128)


def repacked(model: nn.Module, altered: Callable[[Tensor], Tensor], blocksize: int) -> nn.Module:
    """The model with its packed layers unpacked, altered and packed again."""
    for layer in model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            plain = altered(bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state))
            layer.weight.data, layer.weight.quant_state = bnb.functional.quantize_4bit(
                plain, blocksize=blocksize, compress_statistics=True, quant_type="nf4"
            )
            layer.quant_state = layer.weight.quant_state
    return model
