"""Faults in fine-tuning, each with the check that must object.

F1 to F14 occurred in the study's own notebooks or reports; F46 and F51 occur in PEFT. The others
are classics: one-line mistakes in a model, collator or loop, most of which hardly lower a score.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import bitsandbytes as bnb
import peft
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import load_file, save_file

from benchmarks.proof.plants.plant import FEW, Plant, around, with_other
from tunegrid.codecs.base import IGNORED, Codec
from tunegrid.data.sources import Row
from tunegrid.data.splits import Splits, load_splits
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Quantization
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.grid.tasks import SA
from tunegrid.grid.zoo import AdaLora
from tunegrid.record.record import Record
from tunegrid.run.train import Trainer, make_schedule

# What is built


def frozen_head(cell: Cell, folder: Path) -> Cell:
    head = replace(cell.head, new_modules=(), optional_modules=cell.head.new_modules)
    return replace(cell, head=head)


FP4 = Quantization(
    bnb_4bit_quant_type="fp4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="bfloat16",
)


def names_that_do_not_match(cell: Cell, folder: Path) -> Cell:
    """Renames the checkpoint's tensors, so that none is loaded and the weights stay random."""
    name = cell.backbone.micro
    weights = shutil.copytree(QUICK_PROFILE.checkpoint_root / name, folder / name)
    file = weights / "model.safetensors"
    tensors = {f"module.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    profile = replace(cell.profile, checkpoint_root=folder)
    head = replace(cell.head, optional_modules=("transformer",))
    return replace(cell, profile=profile, head=head)


KASA = with_other(
    "method",
    id="qkasa",
    name="KaSA over NF4",
    options={"kasa_config": asdict(peft.KasaConfig())},
)

# Text and tensors


def codec_whose(method: str, change: Callable[..., Any]) -> Callable[[Codec, Path], Codec]:
    """Creates a plant that replaces a codec method's result with `change(codec, result, ...)`."""

    def broken(codec: Codec, folder: Path) -> Codec:
        kind = type(codec)

        def call(self: Codec, *args: Any, **options: Any) -> Any:
            result = getattr(kind, method)(self, *args, **options)
            return change(self, result, *args, **options)

        return type("Broken", (kind,), {method: call})(codec.cell, codec.tokenizer)

    return broken


def labels_are_the_input(codec, batch, features):
    """Labels all tokens except padding, as a language-modelling collator does."""
    is_padding = batch["attention_mask"] == 0
    return {**batch, "labels": batch["input_ids"].masked_fill(is_padding, IGNORED)}


def padding_counts(codec, batch, features):
    """Pads labels with the padding token, which the loss then counts."""
    labels = batch["labels"]
    return {**batch, "labels": labels.masked_fill(labels == IGNORED, codec.pad_id)}


def separator_cut_off(codec, features, rows, *, training):
    """Removes the prompt's last token, <sum>, at inference."""
    if training:
        return features
    return [replace(feature, input_ids=feature.input_ids[:-1]) for feature in features]


def windows_taken_for_rows(codec, features, rows, *, training):
    """Assigns window i to row i, though some rows have several windows."""
    if training:
        return features
    last = len(rows) - 1
    return [replace(feature, example=min(i, last)) for i, feature in enumerate(features)]


def penalty_in_the_loss(codec, loss, model, batch):
    """Adds AdaLoRA's penalty to the reported loss, as PEFT's own forward pass with labels does."""
    return loss + AdaLora.penalty(codec.cell.method, model) * codec.targets(batch)


def first_occurrence(codec: Codec, folder: Path) -> Codec:
    class First(type(codec)):
        def encode(self, rows, *, training):
            if training:
                rows = [moved(row) for row in rows]
            return super().encode(rows, training=training)

    def moved(row: Row) -> Row:
        texts = row["answers"]["text"]
        starts = [row["context"].find(text) for text in texts]
        return row | {"answers": {"text": texts, "answer_start": starts}}

    return First(codec.cell, codec.tokenizer)


def cut_summaries(codec: Codec, folder: Path) -> Codec:
    codec.generation = replace(codec.generation, max_new_tokens=7)
    return codec


# What the model computes


def computed_in_fp32(model, folder):
    for layer in model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.compute_dtype = torch.float32
    return model


def drawn_before_the_seed(model, folder):
    generator = torch.Generator()
    generator.seed()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    return model


@around(TrainableTokensLayer, "get_merged_weights")
def output_forgets_its_token(planting, merge, self, active_adapters):
    return self.base_layer.weight if self.tied_adapter else merge(self, active_adapters)


def a_frozen_weight_moves(model, start):
    for p in model.parameters():
        if not p.requires_grad and p.is_floating_point():
            p.data.add_(1e-3)
            return


def always_the_first_class(model, start):
    for name, p in model.named_parameters():
        if p.requires_grad and name.endswith("bias"):
            p.data[0] += 30
            return


def one_rank_strays(model, start):
    if torch.distributed.get_rank() == 1:
        first_trained = next(p for p in model.parameters() if p.requires_grad)
        first_trained.data.add_(1e-3)


# Rows


def targets_dealt_out(splits: Splits, folder: Path) -> Splits:
    """Shuffles the targets of training rows; for questions, draws a random word of the passage."""
    rng = Random(0)
    rows = splits.train
    if "answers" in rows[0]:
        train = [row | {"answers": any_word(row["context"].split(), rng)} for row in rows]
        return replace(splits, train=train)
    column = "label" if "label" in rows[0] else "highlights"
    values = rng.sample([row[column] for row in rows], len(rows))
    train = [row | {column: value} for row, value in zip(rows, values, strict=True)]
    return replace(splits, train=train)


def any_word(words: list[str], rng: Random) -> Row:
    """Draws a random word as the answer and locates it in the words joined by spaces."""
    index = rng.randrange(len(words))
    return {"text": [words[index]], "answer_start": [len(" ".join(words[:index])) + bool(index)]}


# Training and scoring


def summed(trainer: Trainer, folder: Path) -> Trainer:
    trainer.divisors = lambda batches: [trainer.codec.targets(batch) for batch in batches]
    return trainer


def mean_of_each_rank(trainer: Trainer, folder: Path) -> Trainer:
    """Divides each rank's loss by its own number of targets and averages over ranks, like DDP."""

    def divisors(batches: Sequence[Any]) -> list[int]:
        own_targets = sum(map(trainer.codec.targets, batches))
        return [trainer.ranks.count * own_targets] * len(batches)

    trainer.divisors = divisors
    return trainer


def stretched(trainer: Trainer, folder: Path) -> Trainer:
    steps = trainer.total * trainer.cell.recipe.gradient_accumulation_steps
    trainer.stepper.schedule = make_schedule(trainer.optimizer.optimizer, trainer.cell, steps)
    return trainer


def joined(trainer: Trainer, folder: Path) -> Trainer:
    """Joins the micro-batches of each update into one."""
    updates = trainer.updates
    trainer.log.micro_batch *= trainer.cell.recipe.gradient_accumulation_steps
    trainer.updates = lambda epoch: ([[*chain.from_iterable(group)]] for group in updates(epoch))
    return trainer


def impossible_numbers(score, folder):
    return lambda rows: replace(score(rows), scores={"exact_match": 62.6, "f1": 62.1})


def head_is_not_saved(serving, folder):
    """Leaves the new head out of the saved adapter's weights and configuration."""

    class Lossy(type(serving)):
        def save(self, cell, model, tokenizer, folder):
            super().save(cell, model, tokenizer, folder)
            weights = folder / "adapter_model.safetensors"
            kept = {}
            for name, tensor in load_file(weights).items():
                if not set(cell.head.new_modules) & set(name.split(".")):
                    kept[name] = tensor
            save_file(kept, weights)
            config = folder / "adapter_config.json"
            fields = json.loads(config.read_text(encoding="utf-8"))
            config.write_text(json.dumps(fields | {"modules_to_save": None}), encoding="utf-8")

    return Lossy()


# Saved records


def fewer_rows(first: Record, second: Record) -> Record:
    splits = load_splits(SA, QUICK_PROFILE)
    fingerprint = replace(splits, train=splits.train[:500]).fingerprint
    return replace(second, data=replace(second.data, fingerprint=fingerprint))


def copied_row(first: Record, second: Record) -> Record:
    return replace(
        second,
        scores=first.scores,
        training=first.training,
        evaluation=first.evaluation,
    )


SHORT = {"max_steps": 12}
PEFT = "peft 0.21.2"


def _study(number, what, source, cell, breaks, broken_by, caught_by, **more):
    return Plant(f"F{number}", what, source, cell, broken_by, caught_by, breaks=breaks, **more)


def _classic(number, what, cell, breaks, broken_by, caught_by, **more):
    return _study(number, what, "classic", cell, breaks, broken_by, caught_by, **more)


STUDY = (
    _study(
        1,
        "the new head stays frozen at its random start",
        "gpt2_sa, gpt2_qa (lora, qlora), bert_qa_lora",
        "gpt2_sa_lora",
        "built_cell",
        frozen_head,
        "trains_as_declared",
    ),
    _study(
        2,
        "QLoRA on a base that was never quantized",
        "bert_sum_qlora",
        "bert_sum_qlora",
        "built_cell",
        with_other("method", quantization=None),
        "quantized_as_declared",
        settings=FEW,
    ),
    _study(
        3,
        "FP4, the library's default, in place of NF4",
        "gpt2_sum_qlora, t5_sa_qlora",
        "gpt2_sum_qlora",
        "built_cell",
        with_other("method", quantization=FP4),
        "quantized_as_declared",
        settings=FEW,
    ),
    _study(
        4,
        "labels overwritten: the loss is on the article",
        "gpt2_sum_lora, gpt2_sum_qlora",
        "gpt2_sum_lora",
        "codec",
        codec_whose("collate", labels_are_the_input),
        "labels_are_targets",
        settings=FEW,
    ),
    _study(
        5,
        "every summary cut at a default length",
        "t5_sum x3",
        "t5_sum_lora",
        "codec",
        cut_summaries,
        "generation_not_truncated",
    ),
    _study(
        6,
        "separator cut off at inference",
        "gpt2_sum_sft",
        "gpt2_sum_sft",
        "codec",
        codec_whose("encode", separator_cut_off),
        "prompt_intact_at_inference",
        settings=FEW,
    ),
    _study(
        7,
        "windows scored against another row",
        "bert_qa x3",
        "bert_qa_sft",
        "codec",
        codec_whose("encode", windows_taken_for_rows),
        "windows_map_to_examples",
        settings={"max_steps": 60},
    ),
    _study(
        8,
        "answers labelled at their first occurrence",
        "gpt2_qa, t5_qa",
        "gpt2_qa_lora",
        "codec",
        first_occurrence,
        "answers_at_annotated_start",
        settings=FEW,
    ),
    _study(
        9,
        "epoch chosen on the rows it is scored on",
        "gpt2_sa, gpt2_qa_sft, t5_sa, t5_qa",
        "gpt2_sa_sft",
        "validation_rows",
        lambda rows, splits: splits.test,
        "selection_apart_from_test",
        settings={"num_train_epochs": 2},
    ),
    _study(
        10,
        "micro-batch losses summed, not averaged",
        "gpt2_sa, gpt2_qa (lora, qlora)",
        "gpt2_qa_lora",
        "trainer",
        summed,
        "loss_is_mean_over_accumulation",
        settings=FEW,
    ),
    _study(
        11,
        "schedule sized in micro-batches",
        "t5_qa_qlora",
        "gpt2_sa_qlora",
        "trainer",
        stretched,
        "schedule_counts_updates",
    ),
    _study(
        12,
        "methods of one triple on different rows",
        "bert_sum, gpt2_qa, gpt2_sum",
        "gpt2_sa_sft,gpt2_sa_lora",
        "records",
        fewer_rows,
        "same_rows_in_triple",
    ),
    _study(
        13,
        "impossible numbers, such as EM above F1",
        "bert_qa, bert_sum",
        "gpt2_qa_lora",
        "score",
        impossible_numbers,
        "metric_invariants",
        settings=FEW,
    ),
    _study(
        14,
        "two cells with identical results: a copied row",
        "bert_qa_lora = bert_qa_sft, t5_sum_lora = t5_sum_sft",
        "gpt2_sa_sft,gpt2_sa_lora",
        "records",
        copied_row,
        "distinct_results",
    ),
    _classic(
        15,
        "learning rate far off: training that never moves",
        "gpt2_sa_lora",
        "cell",
        with_other("recipe", learning_rate=1e-8),
        "bound",
    ),
    _classic(
        16,
        "training labels shuffled against inputs",
        "gpt2_sa_lora",
        "splits",
        targets_dealt_out,
        "learned_something",
    ),
    _classic(
        17,
        "padding counted in the loss",
        "t5_sum_sft",
        "codec",
        codec_whose("collate", padding_counts),
        "labels_are_targets",
    ),
    _classic(
        18,
        "test rows in train",
        "gpt2_sa_lora",
        "splits",
        lambda splits, folder: replace(splits, train=[*splits.train, *splits.test[:5]]),
        "no_leakage",
    ),
    _classic(
        19,
        "the checkpoint's weights silently not loaded",
        "gpt2_sa_lora",
        "built_cell",
        names_that_do_not_match,
        "checkpoint_loaded",
    ),
    _classic(
        43,
        "a new head that is not saved with its adapter",
        "gpt2_sa_lora",
        "serving",
        head_is_not_saved,
        "saved_is_served",
    ),
    _study(
        46,
        "KaSA over NF4, which trains as plain LoRA",
        PEFT,
        "gpt2_sa_qlora",
        "cell",
        KASA,
        "variant_applied",
        profile="zoo",
        settings=SHORT,
    ),
    _classic(
        50,
        "an adapter drawn before the seed is set",
        "gpt2_sa_lora",
        "model",
        drawn_before_the_seed,
        "drawn_from_the_seed",
        profile="zoo",
        settings=SHORT,
    ),
    _study(
        51,
        "AdaLoRA's penalty inside the loss that is reported",
        PEFT,
        "gpt2_sa_adalora",
        "codec",
        codec_whose("loss", penalty_in_the_loss),
        "loss_is_the_tasks",
        profile="zoo",
        settings=SHORT,
    ),
    _classic(
        53,
        "a mean on each rank in place of one over all targets",
        "t5_sum_lora",
        "trainer",
        mean_of_each_rank,
        "ranks_train_as_one",
        settings=SHORT,
        ranks=2,
    ),
    _classic(
        61,
        "a trained token that the output layer does not follow",
        "gpt2_sum_qlora",
        "libraries",
        output_forgets_its_token,
        "output_follows_trained_tokens",
        settings=FEW,
    ),
    _classic(
        65,
        "a frozen weight that moves",
        "gpt2_sa_lora",
        "trained",
        a_frozen_weight_moves,
        "base_frozen",
        settings=SHORT,
    ),
    _classic(
        66,
        "4-bit layers that compute in another type",
        "gpt2_sa_qlora",
        "model",
        computed_in_fp32,
        "packed_layers_compute_as_declared",
        settings=SHORT,
    ),
    _classic(
        67,
        "updates that move nothing",
        "gpt2_sa_lora",
        "cell",
        with_other("recipe", learning_rate=0.0, head_learning_rate=None),
        "weights_moved",
        settings=SHORT,
    ),
    _classic(
        68,
        "a rank that ends with other weights",
        "t5_sum_lora",
        "trained",
        one_rank_strays,
        "ranks_end_alike",
        settings=SHORT,
        ranks=2,
    ),
    _classic(
        69,
        "a head that says the same of nearly all rows",
        "bert_sa_qlora",
        "trained",
        always_the_first_class,
        "predictions_not_collapsed",
        settings=FEW,
    ),
    _classic(
        70,
        "micro-batches of an update joined to one",
        "gpt2_sa_sft",
        "trainer",
        joined,
        "updates_run_as_labelled",
        settings=SHORT,
    ),
)
