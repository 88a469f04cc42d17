"""Both sides' answers on the same weights: those that the libraries' plain training ended with."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tunegrid.codecs.base import Codec, Feature, on
from tunegrid.grid.tasks import Problem
from tunegrid.run.device import autocast, resolve_precision
from tunegrid.run.metrics import METRICS, Metrics
from tunegrid.run.order import chunks
from tunegrid.run.stock.answers import generated, pipeline_of, predicted, search_of
from tunegrid.run.stock.both import TEST_BATCH, Both, put
from tunegrid.run.stock.course import trainer_of
from tunegrid.run.stock.known import causal
from tunegrid.run.stock.model import quantization_of
from tunegrid.run.stock.oracle import oracle_codec
from tunegrid.run.stock.text import encoded


class Scored:
    """Answers of both sides to the test rows."""

    def __init__(self, both: Both) -> None:
        """Nothing asked yet."""
        self.both, self.cell = both, both.cell

    @property
    def _order(self) -> Mapping[str, Any]:
        """How rows are sorted for prediction: by length as in training, or as they come."""
        kept = "grouped_predictions" in self.both.known
        return {"train_sampling_strategy": "random"} if kept else {}

    # The libraries

    @cached_property
    def table(self) -> Any:
        """The test rows in tokens, as in training: with their labels."""
        return encoded(self.cell, self.both.tokenizer, self.both.test, training=True)

    def trainer(self, model: Any, **changes: Any) -> Any:
        """The libraries' trainer of a model, to evaluate it."""
        both = self.both
        changes = {"per_device_eval_batch_size": TEST_BATCH, **self._order, **changes}
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
            return self._decoded(self.texts(model)) if self.generates else self.answers(model)
        pipeline = pipeline_of(both.start, saved, both.device)
        return self._by_text_generation(pipeline) if self.generates else self._by_classification(pipeline)

    def _decoded(self, texts: Sequence[Sequence[int]]) -> list[str]:
        decoded = self.both.tokenizer.batch_decode([list(ids) for ids in texts], skip_special_tokens=True)
        return [text.strip() for text in decoded]

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
