"""How each fault breaks its noun. In: the sound value that a fixture gives, and a folder for files. Out: the broken one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.codecs.base import IGNORED, Codec
from lib.data.splits import Splits, load_splits
from lib.grid.cells import Cell
from lib.grid.methods import Quantization
from lib.grid.profiles import QUICK_PROFILE
from lib.grid.tasks import SA
from lib.record import Record
from lib.run.metrics import Metrics
from lib.run.schedule import make_schedule
from lib.run.training import Trainer

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


def names_that_do_not_match(cell: Cell, folder: Path) -> Cell:
    """A checkpoint whose tensors have other names, and a loader that lets them start from random."""
    source = QUICK_PROFILE.checkpoint_root / cell.backbone.micro
    target = folder / cell.backbone.micro
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    loose = replace(cell.head, optional_modules=("transformer",))
    return replace(cell, head=loose, profile=replace(cell.profile, checkpoint_root=folder))


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


# Rows


def chosen_on_test(rows: list[Any], splits: Splits) -> list[Any]:
    """The epoch is chosen on the rows it is then scored on."""
    return splits.test


def shuffled_labels(splits: Splits, folder: Path) -> Splits:
    """Labels are dealt out again among the training rows."""
    labels = [row["label"] for row in splits.train]
    Random(0).shuffle(labels)
    return replace(splits, train=[row | {"label": label} for row, label in zip(splits.train, labels, strict=True)])


def tested_rows_trained_on(splits: Splits, folder: Path) -> Splits:
    """Some test rows are in train, too."""
    return replace(splits, train=[*splits.train, *splits.test[:5]])


# Training and scoring


def summed(trainer: Trainer, folder: Path) -> Trainer:
    """Each micro-batch's mean counts in full, so that the update's loss is their sum."""
    trainer.divisors = lambda batches: [trainer.codec.targets(batch) for batch in batches]
    return trainer


def stretched(trainer: Trainer, folder: Path) -> Trainer:
    """The schedule is made for as many steps as there are micro-batches."""
    steps = trainer.total * trainer.cell.recipe.gradient_accumulation_steps
    trainer.schedule = make_schedule(trainer.optimizer.optimizer, trainer.cell, steps)
    return trainer


def hardly_clipped(trainer: Trainer, folder: Path) -> Trainer:
    """Gradients are clipped at a bound that they hardly reach."""
    trainer.cell = replace(trainer.cell, recipe=replace(trainer.cell.recipe, max_grad_norm=100.0))
    return trainer


def one_group_scheduled(trainer: Trainer, folder: Path) -> Trainer:
    """The schedule moves the first group of parameters; the second one keeps its rate."""
    trainer.schedule.lr_lambdas[1] = lambda update: 1.0
    return trainer


def impossible_numbers(metrics: Metrics, folder: Path) -> Metrics:
    """A metric in which more answers match exactly than match at all."""

    class Impossible:
        def compute(self, **_: Any) -> dict[str, float]:
            return {"exact_match": 62.6, "f1": 62.1}

    return replace(metrics, loaded={"squad": Impossible()})


# Saved records


def fewer_rows(first: Record, second: Record) -> None:
    """The second method of a triple trains on fewer rows."""
    splits = load_splits(SA, QUICK_PROFILE)
    second.data.fingerprint = replace(splits, train=splits.train[:500]).fingerprint


def copied_row(first: Record, second: Record) -> None:
    """The second cell's row has the first cell's results."""
    second.scores, second.training, second.evaluation = first.scores, first.training, first.evaluation
