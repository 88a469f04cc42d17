"""What the stock path answers: `predict` with the guides' post-processing, `predict_with_generate`, and pipelines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from tunegrid.codecs.extract import MAX_ANSWER_TOKENS
from tunegrid.data.sources import Row
from tunegrid.grid.backbones import Layout
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.run.order import chunks
from tunegrid.run.stock.known import causal
from tunegrid.run.stock.model import quantization_of
from tunegrid.run.stock.start import Start

N_BEST = 20  # the default of run_qa.py
PIPELINES: Mapping[Problem, str] = {Problem.CLASSIFY: "text-classification", Problem.EXTRACT: "question-answering"}


def predicted(cell: Cell, trainer: Any, rows: Sequence[Row], table: Any) -> list[Any]:
    """An answer a row by `Trainer.predict`: a label or the text of a span."""
    outputs = trainer.predict(table).predictions
    if cell.task.problem is Problem.CLASSIFY:
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return [int(label) for label in logits.argmax(-1)]
    return spans(cell, rows, table, outputs[0], outputs[1])


def generated(cell: Cell, trainer: Any, table: Any) -> list[list[int]]:
    """Token ids a row by `predict_with_generate`: what the model wrote, up to the first end token."""
    search = search_of(cell)
    outputs = trainer.predict(table, **search).predictions
    end, pad = trainer.model.generation_config.eos_token_id, trainer.processing_class.pad_token_id
    ends = end if isinstance(end, list) else [end]
    prompts = _prompts(table, trainer.args.per_device_eval_batch_size)
    return [until_end(skipped(cell, ids, prompt), ends, pad) for ids, prompt in zip(outputs, prompts, strict=True)]


def _prompts(table: Any, size: int) -> list[int]:
    """Tokens of the longest prompt of each row's batch, to which prompts are padded on the left."""
    batches = chunks([len(ids) for ids in table["input_ids"]], size)
    return [max(batch) for batch in batches for _ in batch]


def skipped(cell: Cell, ids: Any, prompt: int) -> list[int]:
    """The ids without the decoder's first token, or the prompt that a causal model repeats."""
    start = 1 if cell.head.layout is Layout.ENCODER_DECODER else prompt
    return [int(one) for one in ids[start:]]


def until_end(ids: Sequence[int], ends: Sequence[int], pad: int | None) -> list[int]:
    """The ids up to the first end token, which they keep; padding behind a text that was cut off is none of it."""
    kept = [int(one) for one in ids if one >= 0]
    stop = next((i for i, one in enumerate(kept) if one in ends), None)
    if stop is not None:
        return kept[: stop + 1]
    while kept and kept[-1] == pad:
        kept.pop()
    return kept


def search_of(cell: Cell) -> dict[str, Any]:
    """The recipe's search as arguments of `generate`; a causal model counts its prompt in `min_length`."""
    assert cell.recipe.generation, "a cell that generates"
    search = asdict(cell.recipe.generation)
    if cell.head.layout is not Layout.ENCODER_DECODER:
        shortest = search.pop("min_length")
        search |= {"min_new_tokens": shortest} if shortest else {}
    return search


def spans(cell: Cell, rows: Sequence[Row], table: Any, starts: Any, ends: Any) -> list[str]:
    """The text of each row's best span, by the post-processing of transformers' guide (`postprocess_qa_predictions`)."""
    best: dict[int, tuple[float, str]] = {}
    for index, (example, offsets) in enumerate(zip(table["example"], table["offset_mapping"], strict=True)):
        text = rows[example][cell.task.text_pair[0]]
        for first in _largest(starts[index]):
            for last in _largest(ends[index]):
                if not _usable(offsets, first, last):
                    continue
                score = float(starts[index][first] + ends[index][last])
                if example not in best or score > best[example][0]:
                    best[example] = score, text[offsets[first][0] : offsets[last][1]].strip()
    return [best.get(example, (0.0, ""))[1] for example in range(len(rows))]


def _largest(scores: Any) -> list[int]:
    return [int(index) for index in np.argsort(scores)[-1 : -N_BEST - 1 : -1]]


def _usable(offsets: Sequence[Sequence[int]], first: int, last: int) -> bool:
    """Whether two tokens bound a span of the context that is not too long."""
    if first >= len(offsets) or last >= len(offsets) or offsets[first][0] < 0 or offsets[last][0] < 0:
        return False
    return first <= last < first + MAX_ANSWER_TOKENS


# From the saved folder


def pipeline_name(cell: Cell) -> str:
    """The name of the pipeline that the cell's problem is for."""
    return PIPELINES.get(cell.task.problem, "text-generation" if causal(cell) else "text2text-generation")


def has_pipeline(cell: Cell) -> bool:
    """Whether transformers knows it."""
    return bool(pipeline_name(cell) in hf.pipelines.PIPELINE_REGISTRY.supported_tasks)


def pipeline_of(start: Start, saved: Path, device: torch.device) -> Any:
    """The pipeline over what `save_model` wrote."""
    tokenizer = hf.AutoTokenizer.from_pretrained(saved, trust_remote_code=False)
    return hf.pipeline(
        pipeline_name(start.cell),
        model=str(saved),
        tokenizer=tokenizer,
        device=device,
        model_kwargs={**quantization_of(start)} or None,
    )
