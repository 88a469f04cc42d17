"""Both sides' answers on the same weights: those that the libraries' plain training ended with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import bitsandbytes as bnb
import numpy as np
import torch
import transformers as hf
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tunegrid.codecs.base import Codec, Feature, on
from tunegrid.codecs.extract import MAX_ANSWER_TOKENS
from tunegrid.codecs.features import chunks
from tunegrid.data.sources import Row
from tunegrid.grid.backbones import Layout
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.run.device import autocast, resolve_precision
from tunegrid.run.metrics import METRICS, Metrics
from tunegrid.run.stock.both import TEST_BATCH, Both, put
from tunegrid.run.stock.course import trainer_of
from tunegrid.run.stock.known import causal
from tunegrid.run.stock.oracle import oracle_codec
from tunegrid.run.stock.start import Start, encoded, quantization_of

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
    batches = chunks([len(ids) for ids in table["input_ids"]], trainer.args.per_device_eval_batch_size)
    prompts = [max(batch) for batch in batches for _ in batch]  # the longest of each row's batch, to which all are padded
    return [until_end(skipped(cell, ids, prompt), ends, pad) for ids, prompt in zip(outputs, prompts, strict=True)]


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


class Scored:
    """Answers of both sides to the test rows."""

    def __init__(self, both: Both) -> None:
        """Nothing asked yet."""
        self.both, self.cell = both, both.cell

    # The libraries

    @cached_property
    def table(self) -> Any:
        """The test rows in tokens, as in training: with their labels."""
        return encoded(self.cell, self.both.tokenizer, self.both.test, training=True)

    def trainer(self, model: Any, **changes: Any) -> Any:
        """The libraries' trainer of a model, to evaluate it."""
        both = self.both
        order = {"train_sampling_strategy": "random"} if "grouped_predictions" in self.both.known else {}
        changes = {"per_device_eval_batch_size": TEST_BATCH, **order, **changes}
        return trainer_of(both.start, model, both.tokenizer, both.table, both.folder / "scored", both.device, **changes)

    def loss(self, model: Any) -> float:
        """`Trainer.evaluate`."""
        return float(self.trainer(model).evaluate(self.table)["eval_loss"])

    def answers(self, model: Any) -> list[Any]:
        """`Trainer.predict` and the guides' post-processing: a label or a text a row."""
        return predicted(self.cell, self.trainer(model), self.both.test, self.table)

    def texts(self, model: Any) -> list[list[int]]:
        """`predict_with_generate`: ids a row. A causal model's prompts are padded on the left, as guides say."""
        table = encoded(self.cell, self.both.tokenizer, self.both.test, training=not causal(self.cell))
        trainer = self.trainer(model, predict_with_generate=True)
        side, self.both.tokenizer.padding_side = self.both.tokenizer.padding_side, "left" if causal(self.cell) else "right"
        try:
            return generated(self.cell, trainer, table)
        finally:
            self.both.tokenizer.padding_side = side

    @property
    def generates(self) -> bool:
        """Whether the cell's answers are texts that are generated."""
        return self.cell.task.problem is Problem.GENERATE

    # Ours

    @cached_property
    def model(self) -> nn.Module:
        """Our model with the weights that the libraries' training ended with."""
        return self._trained()

    def _trained(self) -> nn.Module:
        model = self.both.ours()
        put(model, dict(self.both.plain[1].weights))
        if "repacked_for_evaluation" in self.both.known:
            for module in model.modules():
                if isinstance(module, bnb.nn.Linear4bit):
                    module.support_avx512bf16_for_cpu = True  # as it is unless `keep_packed_layers` switches it off
        return model.eval()

    @cached_property
    def features(self) -> Sequence[Feature]:
        """The test rows by our codec, as in training."""
        return self.both.codec.encode(self.both.test, training=True)

    def our_loss(self) -> float:
        """The loss of the test rows: a mean over all targets, or of the batches' means as `Seq2SeqTrainer` takes it."""
        codec, device = self.both.codec, self.both.device
        losses, counts = list[float](), list[int]()
        with torch.no_grad(), autocast(resolve_precision(self.cell, device)[0], device):
            for some in chunks(self.features, TEST_BATCH):
                batch = codec.collate(some)
                losses.append(float(codec.loss(self.model, on(device, batch))))
                counts.append(codec.targets(batch))
        if "batches_evaluated_alike" in self.both.known:
            return fmean(loss / count for loss, count in zip(losses, counts, strict=True))
        return sum(losses) / sum(counts)

    @cached_property
    def served_model(self) -> nn.Module:
        """The same as it is served from a saved folder."""
        model = self._trained()
        if "adapter_rounded_when_loaded" in self.both.known:
            round_adapters(model)
        return model

    def _outputs(self, model: nn.Module, codec: Codec, size: int = TEST_BATCH) -> list[Any]:
        """Predictions before decoding, a window or row each, so many at once."""
        device, outputs = self.both.device, list[Any]()
        precision = "fp32" if self.generates else resolve_precision(self.cell, device)[0]
        with torch.inference_mode(), autocast(precision, device):
            for some in chunks(codec.encode(self.both.test, training=False), size):
                outputs += codec.predict(model, some, device)
        return outputs

    def our_texts(self) -> list[list[int]]:
        """The ids that ours generates, a row each."""
        return [list(ids) for ids in self._outputs(self.model, self.both.codec)]

    def our_answers(self) -> list[Any]:
        """Our answers: a label or a text a row."""
        return self._answers(self.model, self.both.codec, TEST_BATCH)

    def our_served_answers(self) -> list[Any]:
        """The same as the model is served from a saved folder; a pipeline takes one row at a time."""
        size = TEST_BATCH if "no_pipeline" in self.both.known else 1
        reads_segments = self.both.known - ({"segments_lost"} if "segments_served" in self.both.known else frozenset())
        codec = oracle_codec(self.cell, self.both.codec.tokenizer, reads_segments)
        return self._answers(self.served_model, codec, size)

    def _answers(self, model: nn.Module, codec: Codec, size: int) -> list[Any]:
        features = codec.encode(self.both.test, training=False)
        outputs = self._outputs(model, codec, size)
        return [prediction.value for prediction in codec.decode(self.both.test, features, outputs)]

    def points(self, answers: Sequence[Any]) -> float:
        """The main score of answers, in points."""
        task = self.cell.task
        return METRICS[task.problem](Metrics(), task, self.both.test, answers).scores[task.main_score]

    # From the saved folder

    def saved_answers(self) -> list[Any]:
        """Answers of what `save_model` wrote: by a pipeline, or by AutoModel where there is no pipeline."""
        both, saved = self.both, self.both.folder / "saved"
        both.plain[0].save_model(str(saved))
        if "no_pipeline" in both.known:
            model = both.start.auto.from_pretrained(saved, **quantization_of(both.start), trust_remote_code=False).to(
                both.device
            )
            if not self.generates:
                return self.answers(model)
            texts = self.both.tokenizer.batch_decode([list(ids) for ids in self.texts(model)], skip_special_tokens=True)
            return [text.strip() for text in texts]
        pipeline = pipeline_of(both.start, saved, both.device)
        return self._by_text_generation(pipeline) if self.generates else self._by_classification(pipeline)

    def _by_classification(self, pipeline: Any) -> list[int]:
        labels = pipeline.model.config.label2id
        texts = ["\n".join(row[name] for name in self.cell.text if row[name]) for row in self.both.test]
        return [labels[one["label"]] for one in pipeline(texts, truncation=True, max_length=self.cell.recipe.max_length)]

    def _by_text_generation(self, pipeline: Any) -> list[str]:
        """Prompts go in as text; the pipeline puts them into tokens again."""
        table = encoded(self.cell, self.both.tokenizer, self.both.test, training=False)
        prompts = [self.both.tokenizer.decode(ids) for ids in table["input_ids"]]
        greedy = {"do_sample": False} if "pipeline_samples" in self.both.known else {}
        answers = pipeline(prompts, return_full_text=False, **search_of(self.cell), **greedy)
        return [answer[0]["generated_text"].strip() for answer in answers]


def round_adapters(model: nn.Module) -> None:
    """Round to bf16 what PEFT added to packed layers."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), bnb.nn.Linear4bit):
            for name, parameter in module.named_parameters():
                if not name.startswith("base_layer."):
                    parameter.data = parameter.data.to(torch.bfloat16)
