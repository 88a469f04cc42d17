"""Runs a cell as the libraries' guides do, with AutoModel, PEFT, `Trainer` and pipelines.

Some heads of the study are tunegrid's own classes. Here both sides train transformers' head: they
start from a folder to which `save_pretrained` wrote the pretrained base with this head.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import peft
import torch
import transformers as hf
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from benchmarks.proof.stock.known import cell_kind, is_paired, is_separated
from tunegrid.codecs.architectures import architecture
from tunegrid.codecs.extract import MAX_ANSWER_TOKENS
from tunegrid.data.sources import Row, stitch
from tunegrid.grid.backbones import Head, Layout, checkpoint_source
from tunegrid.grid.cells import Cell, plain_targets
from tunegrid.grid.methods import SFT, Adapting
from tunegrid.grid.tasks import Problem
from tunegrid.run.build import BASE_TYPES, load_base, load_tokenizer, make_base
from tunegrid.run.device import random_states, resolve_precision

Columns = Mapping[str, Any]  # a block of rows, column by column
Weights = dict[str, Tensor]
# Fields that have the same names in TrainingArguments and in a recipe.
SAME = (
    "per_device_train_batch_size",
    "learning_rate",
    "weight_decay",
    "lr_scheduler_type",
    "gradient_checkpointing",
)
# The suite uses torch's fused AdamW, which is also TrainingArguments' default.
OPTIMIZERS = {"adamw_torch": "adamw_torch_fused"}
SPAN = ("start_positions", "end_positions")
TEST_BATCH = 4  # leaves the last of three batches smaller
# A search's `length_penalty` decides between texts of different lengths. After six updates, a micro
# model ends so few texts that ten rows would not tell 1.2 from 1. A bias on the end token's logit
# makes ends more likely on both sides and lets short texts win.
END_BIAS = 6.0
SEARCH = {"num_beams": 4, "length_penalty": -3.0}


def start_tokenizer(cell: Cell) -> Any:
    """The cell's tokenizer, with the special tokens that the guides set.

    t5-micro's tokenizer adds no end token; here it adds one after each text, as t5-small's does.
    """
    tokenizer = load_tokenizer(cell)
    # Every guide for GPT-2 does this.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if is_paired(cell):  # as in the guide to pairs of encoders
        tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    end = cell.backbone.wrap.after and getattr(tokenizer, cell.backbone.wrap.after)
    if not (cell.profile.micro and end):
        return tokenizer
    end_id = tokenizer.convert_tokens_to_ids(end)
    if tokenizer(["a"]).input_ids[0][-1] != end_id:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}",
            pair=f"$A {end} $B {end}",
            special_tokens=[(end, end_id)],
        )
    return tokenizer


def write_start(cell: Cell, folder: Path) -> Cell:
    """Saves the cell's pretrained base with a transformers head; returns a cell that loads both."""
    source, pin = checkpoint_source(cell.backbone, cell.profile)
    config = hf.AutoConfig.from_pretrained(source, **pin, trust_remote_code=False)
    auto_classes = KITS[cell_kind(cell)].auto._model_mapping
    kind = auto_classes.get(type(config), hf.EncoderDecoderModel)  # a lone encoder becomes a pair
    tokenizer = start_tokenizer(cell)
    head = cell.head
    # TrainingArguments has one rate for all weights.
    recipe = replace(cell.recipe, head_learning_rate=None)
    if recipe.generation:
        recipe = replace(recipe, generation=replace(recipe.generation, **SEARCH))
    if not issubclass(architecture(head.architecture), kind):
        _, report = kind.from_pretrained(
            source,
            output_loading_info=True,
            **pin,
            trust_remote_code=False,
        )
        new_modules = {name.split(".")[0] for name in report["missing_keys"]}
        head = Head(architecture=kind.__name__, new_modules=tuple(sorted(new_modules)))
    hf.set_seed(cell.profile.seed)
    base = replace(cell, head=head, method=SFT, recipe=replace(cell.recipe, adapter=None))
    model = load_base(base, tokenizer, torch.device("cpu"))
    if is_paired(cell) and model.config.decoder_start_token_id is None:
        for settings in (model.config, model.generation_config):
            settings.decoder_start_token_id = tokenizer.cls_token_id
            settings.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = replace(head, architecture=kind.__name__)
    if recipe.adapter and cell.head.copied_as and head.architecture != cell.head.architecture:
        adapter = replace(recipe.adapter, target_modules=plain_targets(cell.head))
        recipe = replace(recipe, adapter=adapter)
    backbone = replace(
        cell.backbone,
        checkpoint=folder.name,
        revision=None,
        micro=folder.name,
    )
    profile = replace(cell.profile, checkpoint_root=folder.parent)
    return replace(cell, backbone=backbone, head=head, profile=profile, recipe=recipe)


# Rows in tokens


def encoded(
    cell: Cell,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    training: bool = True,
) -> datasets.Dataset:
    """The encoded rows; the column `example` holds the number of the original row.

    Unless `training`, a row with source and target in one sequence ends before the target.
    """
    columns = {
        "example": [*range(len(rows))],
        "first": [cell.recipe.prefix + stitch(row, cell.text) for row in rows],
        "second": [stitch(row, cell.task.text_pair) for row in rows],
        "target": [row[cell.task.target] for row in rows],
    }
    encode = partial(KITS[cell_kind(cell)].encode, cell, tokenizer, training=training)
    return datasets.Dataset.from_dict(columns).map(
        encode,
        batched=True,
        remove_columns=[*columns],
        load_from_cache_file=False,
    )


def encode_labelled(cell: Cell, tokenizer: Any, block: Columns, training: bool) -> Columns:
    """Encodes texts or pairs of texts; labels are class numbers or token ids of target texts."""
    texts = [block["first"]]
    if cell.task.text_pair:
        texts.append(block["second"])
    encoding = tokenizer(*texts, truncation=True, max_length=cell.recipe.max_length)
    labels = block["target"]
    if is_paired(cell):
        labels = tokenizer(
            text_target=labels,
            truncation=True,
            max_length=cell.recipe.max_target_length,
        )["input_ids"]
    return {**encoding, "labels": labels, "example": block["example"]}


def encode_windows(cell: Cell, tokenizer: Any, block: Columns, training: bool) -> Columns:
    """Encodes questions with windows of passages, as in transformers' guide and run_qa.py.

    If a window does not contain the whole answer, its labels point at the window's first token.
    """
    stride = cell.recipe.doc_stride
    encoding = tokenizer(
        block["first"],
        block["second"],
        truncation="only_second",
        max_length=cell.recipe.max_length,
        stride=stride or 0,
        return_overflowing_tokens=stride is not None,
        return_offsets_mapping=True,
    )
    one_window_each = range(len(block["first"]))
    sources = encoding.pop("overflow_to_sample_mapping", one_window_each)
    starts = []
    ends = []
    for index, source in enumerate(sources):
        offsets = encoding["offset_mapping"][index]
        sequence_ids = encoding.sequence_ids(index)
        context = [i for i, sequence in enumerate(sequence_ids) if sequence == 1]
        context_offsets = [(-1, -1)] * len(offsets)
        for i in context:
            context_offsets[i] = offsets[i]
        encoding["offset_mapping"][index] = context_offsets
        start, end = find_span(block["target"][source], context, offsets)
        starts.append(start)
        ends.append(end)
    return {
        **encoding,
        "start_positions": starts,
        "end_positions": ends,
        "example": [block["example"][source] for source in sources],
    }


def find_span(
    answer: Mapping[str, Any],
    context: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> tuple[int, int]:
    """Positions of an answer's first and last token; (0, 0) unless the window holds all of it."""
    begin = answer["answer_start"][0]
    end = begin + len(answer["text"][0])
    if not context or offsets[context[0]][0] > begin or offsets[context[-1]][1] < end:
        return 0, 0
    first = next(i for i in reversed(context) if offsets[i][0] <= begin)
    last = next(i for i in context if offsets[i][1] >= end)
    return first, last


def encode_continued(cell: Cell, tokenizer: Any, block: Columns, training: bool) -> Columns:
    """Encodes source, separator and, for training, target as one sequence.

    The source is cut so that the longest permitted target fits after it.
    """
    longest = cell.recipe.max_target_length or 0
    separator = tokenizer.convert_tokens_to_ids(cell.head.new_token or tokenizer.eos_token)
    longest_source = cell.recipe.max_length - longest - 1
    sources = tokenizer(block["first"], truncation=True, max_length=longest_source)["input_ids"]
    rows = [[*source, separator] for source in sources]
    if training:
        texts = [" " + text for text in block["target"]]
        targets = tokenizer(texts, truncation=True, max_length=longest - 1)["input_ids"]
        for row, target in zip(rows, targets, strict=True):
            row += [*target, tokenizer.eos_token_id]
    return {
        "input_ids": rows,
        "attention_mask": [[1] * len(row) for row in rows],
        "example": block["example"],
    }


class Kit(NamedTuple):
    """The classes and functions of the libraries' path for one kind of problem."""

    auto: Any
    task_type: peft.TaskType
    pipeline: str
    encode: Callable[..., Any]
    collator: Callable[..., Any]


KITS: Mapping[Problem | Layout | None, Kit] = {
    Problem.CLASSIFY: Kit(
        hf.AutoModelForSequenceClassification,
        peft.TaskType.SEQ_CLS,
        "text-classification",
        encode_labelled,
        hf.DataCollatorWithPadding,
    ),
    Problem.EXTRACT: Kit(
        hf.AutoModelForQuestionAnswering,
        peft.TaskType.QUESTION_ANS,
        "question-answering",
        encode_windows,
        hf.DataCollatorWithPadding,
    ),
    Layout.ENCODER_DECODER: Kit(
        hf.AutoModelForSeq2SeqLM,
        peft.TaskType.SEQ_2_SEQ_LM,
        "text2text-generation",
        encode_labelled,
        hf.DataCollatorForSeq2Seq,
    ),
    Layout.SEPARATED: Kit(
        hf.AutoModelForCausalLM,
        peft.TaskType.CAUSAL_LM,
        "text-generation",
        encode_continued,
        partial(hf.DataCollatorForLanguageModeling, mlm=False),
    ),
}


# Model and training


def quant_option(cell: Cell) -> dict[str, Any]:
    """The `from_pretrained` option that quantizes to 4 bits; empty if the cell is not quantized."""
    if cell.quantization is None:
        return {}
    config = hf.BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=[*cell.head.new_modules, *cell.head.tied_modules] or None,
        **asdict(cell.quantization),
    )
    return {"quantization_config": config}


def make_model(cell: Cell, tokenizer: Any, device: torch.device) -> Any:
    """Loads the model that `write_start` saved; if the cell trains an adapter, PEFT adds it."""
    options = quant_option(cell)
    if cell.quantization:
        options["device_map"] = {"": device}  # a 4-bit base is loaded directly onto its device
    dtype = BASE_TYPES[cell.backbone.dtype] if cell.method.adapts else torch.float32
    source, _ = checkpoint_source(cell.backbone, cell.profile)
    kit = KITS[cell_kind(cell)]
    model = kit.auto.from_pretrained(source, dtype=dtype, **options, trust_remote_code=False)
    if not isinstance(cell.method, Adapting):
        return model
    if cell.quantization:
        model = peft.prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=cell.recipe.gradient_checkpointing,
        )
    config = cell.method.peft_config(cell, make_base(cell, tokenizer, model))
    config.task_type = kit.task_type
    return peft.get_peft_model(model, config)


def make_collator(cell: Cell, tokenizer: Any, model: Any) -> Any:
    """The guides' collator; for an encoder-decoder, it makes decoder inputs with `model`."""
    collator = KITS[cell_kind(cell)].collator
    if is_paired(cell):
        return collator(tokenizer, model=model)
    return collator(tokenizer)


def trainer_settings(cell: Cell, folder: Path, device: torch.device) -> dict[str, Any]:
    """The recipe as keyword arguments for TrainingArguments."""
    recipe = cell.recipe
    precision = resolve_precision(cell, device)[0]
    settings = {name: getattr(recipe, name) for name in SAME}
    settings |= {
        "output_dir": str(folder),
        "seed": cell.profile.seed,
        "train_sampling_strategy": "group_by_length",
        "per_device_eval_batch_size": TEST_BATCH,
        "warmup_steps": recipe.warmup_steps or recipe.warmup_ratio,  # a number below 1 is a share
        "max_grad_norm": recipe.max_grad_norm or 0.0,
        "optim": OPTIMIZERS.get(recipe.optim, recipe.optim),
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type != "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return settings


def get_trainer(
    cell: Cell,
    model: Any,
    tokenizer: Any,
    table: datasets.Dataset,
    folder: Path,
    device: torch.device,
    **changes: Any,
) -> Any:
    """The libraries' trainer for encoded rows; `changes` override fields of TrainingArguments."""
    kind = hf.Trainer
    arguments = hf.TrainingArguments
    if cell.task.problem is Problem.GENERATE:
        kind = hf.Seq2SeqTrainer
        arguments = hf.Seq2SeqTrainingArguments
    trainer = kind(
        model,
        arguments(**trainer_settings(cell, folder, device) | changes),
        train_dataset=table,
        data_collator=make_collator(cell, tokenizer, model),
        processing_class=tokenizer,
    )
    trainer.remove_callback(hf.PrinterCallback)
    return trainer


class Pass(NamedTuple):
    """The inputs of a forward pass in training, with the trainable weights and random states."""

    batch: Weights
    weights: Weights
    states: Any


class Course(NamedTuple):
    """A training run's forward passes, logged figures per update, and final trainable weights."""

    passes: list[Pass]
    loss: list[float]
    grad_norm: list[float]
    learning_rate: list[float]
    weights: Weights


def train(trainer: Any, resume_from: str | None = None) -> Course:
    """Trains while a hook records each forward pass; returns the run's history."""
    passes: list[Pass] = []
    model = trainer.model

    def look(module: nn.Module, inputs: Any, keywords: Mapping[str, Any]) -> None:
        if module.training:
            states = random_states(trainer.args.device)
            passes.append(Pass(make_batch(keywords), trained(model), states))

    with model.register_forward_pre_hook(look, with_kwargs=True):
        trainer.train(resume_from_checkpoint=resume_from)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]

    def logged(name: str) -> list[float]:
        return [float(entry.get(name, 0.0)) for entry in logs]

    return Course(
        passes,
        logged("loss"),
        logged("grad_norm"),
        logged("learning_rate"),
        trained(model),
    )


def make_batch(inputs: Mapping[str, Any]) -> Weights:
    """Copies of the tensors in a model's inputs; for spans, `labels` holds starts and ends."""
    batch = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.ndim:
            batch[name] = value.clone()
    if SPAN[0] in batch:
        batch["labels"] = torch.stack([batch.pop(name) for name in SPAN], 1)
    return batch


def trained(model: nn.Module) -> Weights:
    """Copies of the trainable weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


# Answers


def predicted_labels(trainer: Any, table: datasets.Dataset) -> list[int]:
    """The label that `Trainer.predict` gives each row."""
    outputs = trainer.predict(table).predictions
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return [int(label) for label in logits.argmax(-1)]


def predicted_spans(
    cell: Cell,
    trainer: Any,
    rows: Sequence[Row],
    table: datasets.Dataset,
) -> list[str]:
    """The text of each row's best span, by the score of run_qa.py's `postprocess_qa_predictions`.

    That script ranks only pairs of the 20 best starts and the 20 best ends. The best span of an
    unsure model may be none of these pairs, as in 2 of 90 answers at true size after four updates,
    so all pairs are ranked here.
    """
    start_logits, end_logits = trainer.predict(table).predictions[:2]
    best_scores = [-math.inf] * len(rows)
    answers = [""] * len(rows)
    windows = zip(table["example"], table["offset_mapping"], start_logits, end_logits, strict=True)
    for example, offsets, starts, ends in windows:
        passage = rows[example][cell.task.text_pair[0]]
        places = [place for place, (begin, _) in enumerate(offsets) if begin >= 0]
        for first, last in combinations_with_replacement(places, 2):
            if last >= first + MAX_ANSWER_TOKENS:
                continue
            score = float(starts[first] + ends[last])
            if score > best_scores[example]:
                best_scores[example] = score
                answers[example] = passage[offsets[first][0] : offsets[last][1]].strip()
    return answers


def search_options(cell: Cell, tokenizer: Any) -> dict[str, Any]:
    """The recipe's search as arguments for `generate`, with a bias toward the end token.

    A causal model gets `min_new_tokens` in place of `min_length`, which would count its prompt.
    """
    fields = asdict(cell.recipe.generation)
    search = {name: value for name, value in fields.items() if value is not None}
    if is_separated(cell):
        search["min_new_tokens"] = search.pop("min_length") or None
    return search | {"sequence_bias": {(tokenizer.eos_token_id,): END_BIAS}}


def predicted_texts(cell: Cell, trainer: Any, table: datasets.Dataset) -> list[str]:
    """The text that Trainer generates for each row; all rows must fit into one batch."""
    tokenizer = trainer.processing_class
    # Guides to causal models pad on the left.
    tokenizer.padding_side = "left" if is_separated(cell) else "right"
    ids = trainer.predict(table, **search_options(cell, tokenizer)).predictions
    if is_separated(cell):  # outputs begin with the prompts, padded to the longest
        ids = ids[:, max(map(len, table["input_ids"])) :]
    padded_ids = np.where(ids < 0, tokenizer.pad_token_id, ids)
    return [text.strip() for text in tokenizer.batch_decode(padded_ids, True)]


def piped(
    cell: Cell,
    tokenizer: Any,
    saved: Path,
    rows: Sequence[Row],
    device: torch.device,
    **search: Any,
) -> list[Any]:
    """The answers of a pipeline that loads the model from `saved`: texts or label numbers."""
    pipeline = hf.pipeline(
        KITS[cell_kind(cell)].pipeline,
        str(saved),
        model_kwargs=quant_option(cell) or None,
        tokenizer=hf.AutoTokenizer.from_pretrained(saved, trust_remote_code=False),
        device=device,
    )
    if is_separated(cell):
        table = encoded(cell, tokenizer, rows, training=False)
        prompts = [tokenizer.decode(ids) for ids in table["input_ids"]]
        options = search_options(cell, tokenizer)
        answers = pipeline(prompts, return_full_text=False, **options, **search)
        return [answer[0]["generated_text"].strip() for answer in answers]
    texts = [stitch(row, cell.text) for row in rows]
    answers = pipeline(texts, truncation=True, max_length=cell.recipe.max_length)
    return [pipeline.model.config.label2id[answer["label"]] for answer in answers]
