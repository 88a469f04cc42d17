"""Where both paths start: a cell with the head that transformers' AutoModel gives, and a folder with its untrained base.

The study's heads are partly our own classes. The stock path trains the library's head, and our loop trains the same one here,
so that both have the same weights: the folder holds them as `save_pretrained` writes them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers as hf
from tokenizers.processors import TemplateProcessing

from tunegrid.codecs.architectures import architecture
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Head, Layout, checkpoint_of
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import SFT, Adapting, Method
from tunegrid.grid.recipes import TARGETS_WITHOUT_EXCEPTION, Recipe
from tunegrid.grid.tasks import Problem
from tunegrid.run.build import BASE_TYPES, base_of, load_base, load_tokenizer


def quiet() -> None:
    """For the rest of this process."""
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    datasets.disable_progress_bars()


LOOP = ("make_optimizer", "parameter_groups", "penalty", "plan", "after_step")  # what a method may add to a training loop
CPU = torch.device("cpu")
AUTO: Mapping[Problem, Any] = {
    Problem.CLASSIFY: hf.AutoModelForSequenceClassification,
    Problem.EXTRACT: hf.AutoModelForQuestionAnswering,
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What both paths start from.

    Attributes:
        cell: with the library's head, and the folder in its checkpoint's place.
        auto: the class of transformers that loads the folder.
        folder: the untrained base and the tokenizer, as transformers saved them.
    """

    cell: Cell
    auto: Any
    folder: Path


def auto_of(cell: Cell) -> Any:
    """The AutoModel class of the cell's problem."""
    if cell.task.problem is not Problem.GENERATE or cell.head.layout is Layout.CHAT:
        return AUTO.get(cell.task.problem, hf.AutoModelForCausalLM)
    return hf.AutoModelForSeq2SeqLM if cell.head.layout is Layout.ENCODER_DECODER else hf.AutoModelForCausalLM


def stock_class(cell: Cell) -> type[Any]:
    """The model that AutoModel makes of the cell's checkpoint; of an encoder's alone, for generation, a pair of two."""
    source, pin = checkpoint_of(cell.backbone, cell.profile)
    config, known = type(hf.AutoConfig.from_pretrained(source, **pin, trust_remote_code=False)), auto_of(cell)._model_mapping
    kind: type[Any] = known.get(config, hf.EncoderDecoderModel)
    return kind


def refused(cell: Cell) -> str:
    """Why the stock path cannot run a cell as it is; empty where it can."""
    method = type(cell.method)
    if cell.head.layout is Layout.CHAT:
        return "chat templates are not compared"
    if cell.recipe.optim not in {name.value for name in hf.training_args.OptimizerNames}:
        return f"TrainingArguments knows no optimizer {cell.recipe.optim!r}"
    own = [name for name in LOOP if getattr(method, name) is not getattr(Method, name)]
    if own:
        return f"method {cell.method.id!r} has a {own[0]} of its own, which Trainer knows nothing of"
    if cell.method.rewritten(cell):
        return f"method {cell.method.id!r} replaces pretrained weights, so that no folder holds what both paths start from"
    return ""


def write_start(cell: Cell, folder: Path) -> Start:
    """Save the cell's untrained base with the library's head, and its tokenizer; raises InputError for a refused cell."""
    if reason := refused(cell):
        raise InputError(f"{cell.id} has no stock path: {reason}")
    kind = stock_class(cell)
    tokenizer = load_tokenizer(cell)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as every guide for GPT-2 says
    if cell.profile.micro:
        complete(cell, tokenizer)
    head = cell.head
    if not issubclass(architecture(head.architecture), kind):
        head = Head(architecture=kind.__name__, new_modules=_new_modules(cell, kind))
    plain = replace(cell, head=head, method=SFT, recipe=replace(cell.recipe, adapter=None))
    hf.set_seed(cell.profile.seed)
    model = load_base(plain, tokenizer, CPU)
    if head.layout is Layout.ENCODER_DECODER and model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = tokenizer.cls_token_id
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.sep_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if cell.profile.micro and cell.backbone.segments:
        name_inputs(folder / "tokenizer_config.json")
    return Start(cell=_on(cell, replace(head, architecture=kind.__name__), folder), auto=auto_of(cell), folder=folder)


def complete(cell: Cell, tokenizer: Any) -> None:
    """Let a micro tokenizer end its texts as the true one does: t5-micro's has no template, t5-small's has."""
    after = cell.backbone.wrap.after
    token = getattr(tokenizer, after) if after else None
    if token and tokenizer(["a"])["input_ids"][0][-1] != tokenizer.convert_tokens_to_ids(token):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {token}",
            pair=f"$A {token} $B {token}",
            special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))],
        )


def name_inputs(path: Path) -> None:
    """Let a micro tokenizer tell two texts apart, as bert-base-uncased's class does; bert-micro's has no class of its own."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps(settings | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}), encoding="utf-8"
    )


def _new_modules(cell: Cell, kind: Any) -> tuple[str, ...]:
    """Modules of the library's head that the checkpoint does not hold."""
    source, pin = checkpoint_of(cell.backbone, cell.profile)
    _, report = kind.from_pretrained(source, output_loading_info=True, **pin, trust_remote_code=False)
    return tuple(sorted({name.split(".")[0] for name in report["missing_keys"]}))


def _on(cell: Cell, head: Head, folder: Path) -> Cell:
    """The cell over the folder; one rate for all weights, since TrainingArguments has no other for a head."""
    backbone = replace(cell.backbone, checkpoint=folder.name, revision=None, micro=folder.name)
    profile = replace(cell.profile, checkpoint_root=folder.parent)
    return replace(cell, backbone=backbone, head=head, profile=profile, recipe=_with_targets(cell, head))


def _with_targets(cell: Cell, head: Head) -> Recipe:
    """The recipe; an adapter of layers that only our head has adapts those that other cells of the method do."""
    recipe = replace(cell.recipe, head_learning_rate=None)
    targets = TARGETS_WITHOUT_EXCEPTION.get(cell.id)
    if recipe.adapter is None or targets is None or head.architecture == cell.head.architecture:
        return recipe
    return replace(recipe, adapter=replace(recipe.adapter, target_modules=targets))


TASK_TYPES = {Problem.CLASSIFY: peft.TaskType.SEQ_CLS, Problem.EXTRACT: peft.TaskType.QUESTION_ANS}


def quantization_of(start: Start) -> dict[str, Any]:
    """The option that `from_pretrained` and pipelines take; none where the base is not packed."""
    if start.cell.quantization is None:
        return {}
    kept = [*start.cell.head.new_modules, *start.cell.head.tied_modules] or None
    return {
        "quantization_config": hf.BitsAndBytesConfig(
            load_in_4bit=True, llm_int8_skip_modules=kept, **asdict(start.cell.quantization)
        )
    }


def base_model(start: Start, device: torch.device) -> Any:
    """The base as AutoModel loads it from the folder; one that is packed goes to its device at once."""
    placed = {"device_map": {"": device}} if start.cell.quantization else {}
    dtype = BASE_TYPES[start.cell.backbone.dtype] if start.cell.method.adapts else torch.float32
    return start.auto.from_pretrained(start.folder, dtype=dtype, **quantization_of(start), **placed, trust_remote_code=False)


def stock_model(start: Start, tokenizer: Any, device: torch.device) -> Any:
    """The model that Trainer is given: for an adapter, PEFT's over the base."""
    cell, model = start.cell, base_model(start, device)
    if not isinstance(cell.method, Adapting):
        return model
    if cell.quantization:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=cell.recipe.gradient_checkpointing)
    config = cell.method.peft_config(cell, base_of(cell, tokenizer, model))
    config.task_type = task_type(model, cell.task.problem)
    return peft.get_peft_model(model, config)


def task_type(model: Any, problem: Problem) -> Any:
    """PEFT's name of what the model does."""
    generates = peft.TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else peft.TaskType.CAUSAL_LM
    return TASK_TYPES.get(problem, generates)


KEPT = ("example", "offset_mapping")  # columns beside a model's inputs, for answers
Columns = dict[str, list[Any]]


def encoded(cell: Cell, tokenizer: Any, rows: Sequence[Row], *, training: bool) -> datasets.Dataset:
    """The rows in tokens, with the labels of training; `example` is the number of the row."""
    table = datasets.Dataset.from_list([{"example": index, **_columns(cell, row)} for index, row in enumerate(rows)])
    encode = {Problem.CLASSIFY: _classify, Problem.EXTRACT: _extract, Problem.GENERATE: _generate}[cell.task.problem]
    return table.map(
        lambda block: encode(cell, tokenizer, block, training),
        batched=True,
        remove_columns=table.column_names,
        load_from_cache_file=False,
    )


def _columns(cell: Cell, row: Row) -> Row:
    """What a row is read by, under fixed names."""
    first = cell.recipe.prefix + "\n".join(row[name] for name in cell.text if row[name])
    second = "\n".join(row[name] for name in cell.task.text_pair if row[name])
    return {"first": first, "second": second, "target": row[cell.task.target]}


def _classify(cell: Cell, tokenizer: Any, block: Columns, training: bool) -> Mapping[str, Any]:
    pair = (block["second"],) if cell.task.text_pair else ()
    encoding = tokenizer(block["first"], *pair, truncation=True, max_length=cell.recipe.max_length)
    return {**encoding, "labels": block["target"], "example": block["example"]}


def _extract(cell: Cell, tokenizer: Any, block: Columns, training: bool) -> Mapping[str, Any]:
    """As transformers' guide and run_qa.py: windows by `stride`, a window without the answer points at its first token."""
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
    sources = encoding.pop("overflow_to_sample_mapping", range(len(block["first"])))
    spans = [_span(encoding, i, block["target"][source]) for i, source in enumerate(sources)]
    offsets = [_of_context(encoding, i) for i in range(len(spans))]
    return {
        **encoding,
        "offset_mapping": offsets,
        "start_positions": [start for start, _ in spans],
        "end_positions": [end for _, end in spans],
        "example": [block["example"][source] for source in sources],
    }


def _of_context(encoding: Any, index: int) -> list[list[int]]:
    """Offsets of a window; [-1, -1] for what is not of the context."""
    pairs = zip(encoding["offset_mapping"][index], encoding.sequence_ids(index), strict=True)
    return [list(offset) if sequence == 1 else [-1, -1] for offset, sequence in pairs]


def _span(encoding: Any, index: int, answers: Mapping[str, Any]) -> tuple[int, int]:
    """First and last token of the annotated answer, or (0, 0)."""
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    offsets, sequences = encoding["offset_mapping"][index], encoding.sequence_ids(index)
    context = [i for i, sequence in enumerate(sequences) if sequence == 1]
    if not context or offsets[context[0]][0] > begin or offsets[context[-1]][1] < end:
        return 0, 0
    first = next(i for i in reversed(context) if offsets[i][0] <= begin)
    last = next(i for i in context if offsets[i][1] >= end)
    return first, last


def _generate(cell: Cell, tokenizer: Any, block: Columns, training: bool) -> Mapping[str, Any]:
    if cell.head.layout is not Layout.ENCODER_DECODER:
        return _continue(cell, tokenizer, block, training)
    encoding = tokenizer(block["first"], truncation=True, max_length=cell.recipe.max_length)
    labels = tokenizer(text_target=block["target"], truncation=True, max_length=cell.recipe.max_target_length)
    return {**encoding, "labels": labels["input_ids"], "example": block["example"]}


def _continue(cell: Cell, tokenizer: Any, block: Columns, training: bool) -> Mapping[str, Any]:
    """Source, separator and target as one text; the source is cut so that the longest target fits behind it."""
    room = cell.recipe.max_length - (cell.recipe.max_target_length or 0)
    separator = cell.head.new_token or tokenizer.eos_token
    sources = tokenizer(block["first"], truncation=True, max_length=room - 1)["input_ids"]
    prompts = [[*ids, tokenizer.convert_tokens_to_ids(separator)] for ids in sources]
    if not training:
        return {"input_ids": prompts, "attention_mask": [[1] * len(ids) for ids in prompts], "example": block["example"]}
    targets = tokenizer(
        [" " + text for text in block["target"]], truncation=True, max_length=(cell.recipe.max_target_length or 0) - 1
    )["input_ids"]
    ids = [[*prompt, *target, tokenizer.eos_token_id] for prompt, target in zip(prompts, targets, strict=True)]
    return {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids], "example": block["example"]}
