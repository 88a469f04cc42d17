"""Rows to token ids as the libraries' guides do it: `Dataset.map` with the tokenizer's own truncation, stride and pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from tunegrid.data.sources import Row
from tunegrid.grid.backbones import Layout
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem

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
