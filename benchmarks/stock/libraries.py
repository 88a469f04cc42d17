"""The libraries' own path of a cell, as their guides show it: AutoModel, PEFT's helpers, collators, `Trainer`, pipelines.

The study's heads are partly our own classes. This path trains the library's head, and ours trains the same one here: a folder
holds the untrained base with it, as `save_pretrained` writes it, and both sides start from that.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from operator import itemgetter
from typing import Any, NamedTuple

import datasets
import numpy as np
import peft
import torch
import transformers as hf
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from benchmarks.stock.known import cell_kind, extracts, is_paired, is_separated
from tunegrid.codecs.architectures import architecture
from tunegrid.codecs.extract import MAX_ANSWER_TOKENS
from tunegrid.data.sources import stitch
from tunegrid.grid.backbones import Head, Layout, checkpoint_source
from tunegrid.grid.cells import plain_targets
from tunegrid.grid.methods import SFT, Adapting
from tunegrid.grid.tasks import Problem
from tunegrid.run.build import BASE_TYPES, load_base, load_tokenizer, make_base
from tunegrid.run.device import random_states, resolve_precision

SAME = ("per_device_train_batch_size", "learning_rate", "weight_decay", "lr_scheduler_type", "gradient_checkpointing")
OPTIMIZERS = {"adamw_torch": "adamw_torch_fused"}  # ours is torch's fused one, and so is TrainingArguments' default
SPAN = ("start_positions", "end_positions")
N_BEST = 20  # the default of run_qa.py
TEST_BATCH = 4  # so that the last of three is smaller
# A search's `length_penalty` decides between texts of several lengths, and after six updates a micro model ends few texts, so
# that ten rows would not show 1.2 beside 1. On both sides ends are likelier by a bias of their logit, and short texts win.
END_BIAS, SEARCH = 6.0, {"num_beams": 4, "length_penalty": -3.0}


def start_tokenizer(cell):
    """The cell's, with the tokens that guides set; t5-micro's puts no end token behind a text, as t5-small's does."""
    tokenizer = load_tokenizer(cell)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # as every guide for GPT-2 says
    if is_paired(cell):
        tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token  # as the guide to pairs of encoders says
    end = cell.backbone.wrap.after and getattr(tokenizer, cell.backbone.wrap.after)
    if cell.profile.micro and end and tokenizer(["a"]).input_ids[0][-1] != (end_id := tokenizer.convert_tokens_to_ids(end)):
        template = {"single": f"$A {end}", "pair": f"$A {end} $B {end}"}
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**template, special_tokens=[(end, end_id)])
    return tokenizer


def write_start(cell, folder):
    """Save the cell's untrained base with the library's head, and its tokenizer; return the cell over this folder."""
    source, pin = checkpoint_source(cell.backbone, cell.profile)
    config = hf.AutoConfig.from_pretrained(source, **pin, trust_remote_code=False)
    kind = KITS[cell_kind(cell)].auto._model_mapping.get(type(config), hf.EncoderDecoderModel)  # a pair of an encoder alone
    tokenizer = start_tokenizer(cell)
    head, recipe = cell.head, replace(cell.recipe, head_learning_rate=None)  # TrainingArguments has one rate for all weights
    if recipe.generation:
        recipe = replace(recipe, generation=replace(recipe.generation, **SEARCH))
    if not issubclass(architecture(head.architecture), kind):
        _, report = kind.from_pretrained(source, output_loading_info=True, **pin, trust_remote_code=False)
        new_modules = tuple(sorted({name.split(".")[0] for name in report["missing_keys"]}))
        head = Head(architecture=kind.__name__, new_modules=new_modules)
    hf.set_seed(cell.profile.seed)
    base = replace(cell, head=head, method=SFT, recipe=replace(cell.recipe, adapter=None))
    model = load_base(base, tokenizer, torch.device("cpu"))
    if is_paired(cell) and model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = tokenizer.cls_token_id
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = replace(head, architecture=kind.__name__)
    if recipe.adapter and cell.head.copied_as and head.architecture != cell.head.architecture:
        adapter = replace(recipe.adapter, target_modules=plain_targets(cell.head))
        recipe = replace(recipe, adapter=adapter)
    backbone = replace(cell.backbone, checkpoint=folder.name, revision=None, micro=folder.name)
    profile = replace(cell.profile, checkpoint_root=folder.parent)
    return replace(cell, backbone=backbone, head=head, profile=profile, recipe=recipe)


# Rows in tokens


def encoded(cell, tokenizer, rows, *, training=True):
    """The rows in tokens, with the labels of training; `example` is the number of the row."""
    columns = {
        "example": [*range(len(rows))],
        "first": [cell.recipe.prefix + stitch(row, cell.text) for row in rows],
        "second": [stitch(row, cell.task.text_pair) for row in rows],
        "target": [row[cell.task.target] for row in rows],
    }
    encode = partial(KITS[cell_kind(cell)].encode, cell, tokenizer, training=training)
    return datasets.Dataset.from_dict(columns).map(encode, batched=True, remove_columns=[*columns], load_from_cache_file=False)


def encode_labelled(cell, tokenizer, block, training):
    texts = (block["first"], block["second"]) if cell.task.text_pair else (block["first"],)
    encoding, labels = tokenizer(*texts, truncation=True, max_length=cell.recipe.max_length), block["target"]
    if is_paired(cell):
        labels = tokenizer(text_target=labels, truncation=True, max_length=cell.recipe.max_target_length)["input_ids"]
    return {**encoding, "labels": labels, "example": block["example"]}


def encode_windows(cell, tokenizer, block, training):
    """As transformers' guide and run_qa.py: windows by `stride`, a window without the answer points at its first token."""
    stride = cell.recipe.doc_stride
    windows = {"stride": stride or 0, "return_overflowing_tokens": stride is not None, "return_offsets_mapping": True}
    limits = {"truncation": "only_second", "max_length": cell.recipe.max_length}
    encoding = tokenizer(block["first"], block["second"], **limits, **windows)
    sources, spans = encoding.pop("overflow_to_sample_mapping", range(len(block["first"]))), []
    for index, source in enumerate(sources):
        answer, offsets = block["target"][source], encoding["offset_mapping"][index]
        begin = answer["answer_start"][0]
        end = begin + len(answer["text"][0])
        context = [i for i, sequence in enumerate(encoding.sequence_ids(index)) if sequence == 1]
        encoding["offset_mapping"][index] = [offset if i in context else (-1, -1) for i, offset in enumerate(offsets)]
        if not context or offsets[context[0]][0] > begin or offsets[context[-1]][1] < end:
            spans.append((0, 0))
            continue
        first = next(i for i in reversed(context) if offsets[i][0] <= begin)
        spans.append((first, next(i for i in context if offsets[i][1] >= end)))
    columns = {name: [span[end] for span in spans] for end, name in enumerate(SPAN)}
    return {**encoding, **columns, "example": [block["example"][source] for source in sources]}


def encode_continued(cell, tokenizer, block, training):
    """Source, separator and target as one text; the source is cut so that the longest target fits behind it."""
    longest = cell.recipe.max_target_length or 0
    separator = tokenizer.convert_tokens_to_ids(cell.head.new_token or tokenizer.eos_token)
    sources = tokenizer(block["first"], truncation=True, max_length=cell.recipe.max_length - longest - 1)["input_ids"]
    ids = [[*source, separator] for source in sources]
    if training:
        targets = tokenizer([" " + text for text in block["target"]], truncation=True, max_length=longest - 1)["input_ids"]
        ids = [[*prompt, *target, tokenizer.eos_token_id] for prompt, target in zip(ids, targets, strict=True)]
    return {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids], "example": block["example"]}


class Kit(NamedTuple):
    """What the guides to a kind of problem use."""

    auto: type
    task_type: peft.TaskType
    pipeline: str
    encode: Callable[..., Any]
    collator: Callable[..., Any]


# fmt: off
KITS = {
    Problem.CLASSIFY: Kit(hf.AutoModelForSequenceClassification, peft.TaskType.SEQ_CLS, "text-classification",
                          encode_labelled, hf.DataCollatorWithPadding),
    Problem.EXTRACT: Kit(hf.AutoModelForQuestionAnswering, peft.TaskType.QUESTION_ANS, "question-answering",
                         encode_windows, hf.DataCollatorWithPadding),
    Layout.ENCODER_DECODER: Kit(hf.AutoModelForSeq2SeqLM, peft.TaskType.SEQ_2_SEQ_LM, "text2text-generation",
                                encode_labelled, hf.DataCollatorForSeq2Seq),
    Layout.SEPARATED: Kit(hf.AutoModelForCausalLM, peft.TaskType.CAUSAL_LM, "text-generation",
                          encode_continued, partial(hf.DataCollatorForLanguageModeling, mlm=False)),
}
# fmt: on


# Model and training


def quant_option(cell):
    """The option that `from_pretrained` and pipelines take; none if the base is not packed."""
    if cell.quantization is None:
        return {}
    modules = [*cell.head.new_modules, *cell.head.tied_modules] or None
    settings = asdict(cell.quantization)
    return {"quantization_config": hf.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=modules, **settings)}


def make_model(cell, tokenizer, device):
    """The model that Trainer is given, over the folder of `write_start`; for an adapter PEFT's over the base."""
    placement = {"device_map": {"": device}} if cell.quantization else {}  # a packed base goes to its device at once
    dtype = BASE_TYPES[cell.backbone.dtype] if cell.method.adapts else torch.float32
    source, _ = checkpoint_source(cell.backbone, cell.profile)
    kit = KITS[cell_kind(cell)]
    model = kit.auto.from_pretrained(source, dtype=dtype, **quant_option(cell), **placement, trust_remote_code=False)
    if not isinstance(cell.method, Adapting):
        return model
    if cell.quantization:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=cell.recipe.gradient_checkpointing)
    config = cell.method.peft_config(cell, make_base(cell, tokenizer, model))
    config.task_type = kit.task_type
    return peft.get_peft_model(model, config)


def make_collator(cell, tokenizer, model):
    return KITS[cell_kind(cell)].collator(tokenizer, **({"model": model} if is_paired(cell) else {}))


def trainer_settings(cell, folder, device):
    recipe, precision = cell.recipe, resolve_precision(cell, device)[0]
    return {
        **{name: getattr(recipe, name) for name in SAME},
        **{"output_dir": str(folder), "seed": cell.profile.seed, "train_sampling_strategy": "group_by_length"},
        "per_device_eval_batch_size": TEST_BATCH,
        "warmup_steps": recipe.warmup_steps or recipe.warmup_ratio,  # below 1 it is a share
        "max_grad_norm": recipe.max_grad_norm or 0.0,
        "optim": OPTIMIZERS.get(recipe.optim, recipe.optim),
        **{"bf16": precision == "bf16", "fp16": precision == "fp16"},
        **{"use_cpu": device.type == "cpu", "dataloader_pin_memory": device.type != "cpu"},
        **{"logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True},
    }


def get_trainer(cell, model, tokenizer, table, folder, device, **changes):
    """The library's trainer of a model on rows in tokens; `changes` are fields of TrainingArguments."""
    kind, arguments = hf.Trainer, hf.TrainingArguments
    if cell.task.problem is Problem.GENERATE:
        kind, arguments = hf.Seq2SeqTrainer, hf.Seq2SeqTrainingArguments
    parts = {"train_dataset": table, "data_collator": make_collator(cell, tokenizer, model), "processing_class": tokenizer}
    trainer = kind(model, arguments(**trainer_settings(cell, folder, device) | changes), **parts)
    trainer.remove_callback(hf.PrinterCallback)
    return trainer


def train(trainer, resume_from=None):
    """Train, and keep the course. A hook looks on, and nothing of ours is in the way.

    Returns the batch, weights and random generators' states of each forward pass; each update's loss, grad_norm and
    learning_rate, as Trainer logs them; the weights at the end.
    """
    passes, model = [], trainer.model

    def look(module, inputs, keywords):
        if module.training:
            passes.append((make_batch(keywords), trained(model), random_states(trainer.args.device)))

    with model.register_forward_pre_hook(look, with_kwargs=True):
        trainer.train(resume_from_checkpoint=resume_from)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    figures = {name: [float(entry.get(name, 0.0)) for entry in logs] for name in ("loss", "grad_norm", "learning_rate")}
    return {"passes": passes, **figures, "weights": trained(model)}


def make_batch(named):
    batch = {name: value.clone() for name, value in named.items() if isinstance(value, Tensor) and value.ndim}
    return batch | ({"labels": torch.stack([batch.pop(name) for name in SPAN], 1)} if SPAN[0] in batch else {})


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


# Answers


def predictions(cell, trainer, rows, table):
    """A label, or the text of a span, a row: `Trainer.predict`, and transformers' guide (`postprocess_qa_predictions`)."""
    outputs = trainer.predict(table).predictions
    if not extracts(cell):
        return [int(label) for label in (outputs[0] if isinstance(outputs, tuple) else outputs).argmax(-1)]
    answers = [[] for _ in rows]
    for example, offsets, starts, ends in zip(table["example"], table["offset_mapping"], *outputs[:2], strict=True):
        for first, last in product(*(np.argsort(scores)[: -N_BEST - 1 : -1].tolist() for scores in (starts, ends))):
            is_inside = max(first, last) < len(offsets) and offsets[first][0] >= 0 and offsets[last][0] >= 0
            if is_inside and first <= last < first + MAX_ANSWER_TOKENS:
                text = rows[example][cell.task.text_pair[0]][offsets[first][0] : offsets[last][1]]
                answers[example].append((float(starts[first] + ends[last]), text.strip()))
    return [max(spans, key=itemgetter(0), default=(0.0, ""))[1] for spans in answers]


def search_options(cell, tokenizer):
    """The recipe's search as arguments of `generate`; a causal model counts its prompt in `min_length`."""
    search = {name: value for name, value in asdict(cell.recipe.generation).items() if value is not None}
    if is_separated(cell):
        search["min_new_tokens"] = search.pop("min_length") or None
    return search | {"sequence_bias": {(tokenizer.eos_token_id,): END_BIAS}}


def texts(cell, trainer, table):
    """A text a row by `predict_with_generate`, of all rows in one batch."""
    tokenizer = trainer.processing_class
    tokenizer.padding_side = "left" if is_separated(cell) else "right"  # as guides to causal models say
    ids = trainer.predict(table, **search_options(cell, tokenizer)).predictions
    if is_separated(cell):  # prompts are padded to the longest
        ids = ids[:, max(map(len, table["input_ids"])) :]
    return [text.strip() for text in tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), True)]


def piped(cell, tokenizer, saved, rows, device, **search):
    """Answers of the pipeline over what `save_model` wrote; prompts go in as text, and are put into tokens again."""
    options = {"tokenizer": hf.AutoTokenizer.from_pretrained(saved, trust_remote_code=False), "device": device}
    pipeline = hf.pipeline(KITS[cell_kind(cell)].pipeline, str(saved), model_kwargs=quant_option(cell) or None, **options)
    if is_separated(cell):
        prompts = map(tokenizer.decode, encoded(cell, tokenizer, rows, training=False)["input_ids"])
        answers = pipeline(list(prompts), return_full_text=False, **search_options(cell, tokenizer), **search)
        return [answer[0]["generated_text"].strip() for answer in answers]
    answers = pipeline([stitch(row, cell.text) for row in rows], truncation=True, max_length=cell.recipe.max_length)
    return [pipeline.model.config.label2id[answer["label"]] for answer in answers]
