"""Other people's prediction beside ours. In: a model, its codec, features of test rows. Out: seconds and outputs.

Both are timed from features to labels or spans: `Trainer.predict` returns logits, of which our codec then makes the answers.
Generation is ours against plain batches of `model.generate` in the order of the rows, with the same search.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
import transformers as hf
from torch.nn.functional import cross_entropy

from lib.codecs.base import Batch, Codec, Feature
from lib.codecs.extract import best_span
from lib.run.evaluation import EVAL_BATCH, predict
from lib.run.order import chunks
from lib.run.peers import Peak, Race, as_before, settled
from lib.run.peers_train import DEFAULTS, common_arguments
from lib.run.progress import Progress


def timed_ours(race: Race, features: Sequence[Feature]) -> tuple[float, float | None, list[Any]]:
    """Seconds, the peak, and the codec's outputs by our own evaluation."""
    race.restore()
    peak, began = Peak(race.device), settled(race.device)
    outputs, _ = predict(race.model, race.codec, features, race.device, Progress("peers", lambda standing: None))
    return settled(race.device) - began, peak.gib(), outputs


def timed_trainer(race: Race, features: Sequence[Feature], **options: Any) -> tuple[float, float | None, list[Any]]:
    """The same by `Trainer.predict`: in order, padded to the longest row of a batch, in the precision of training.

    `options` are of its `TrainingArguments`: by default, it predicts 8 rows at once.
    """
    race.restore()

    def collate(rows: Sequence[Feature]) -> Batch:
        return {name: tensor for name, tensor in race.codec.collate(rows).items() if name != "labels"}

    with tempfile.TemporaryDirectory() as folder, as_before(race.model):
        arguments = hf.TrainingArguments(**common_arguments(race, folder), **options)
        trainer = hf.Trainer(model=race.model, args=arguments, data_collator=collate)
        peak, began = Peak(race.device), settled(race.device)
        outputs = as_outputs(race.codec, features, trainer.predict(list(features)).predictions)
        seconds = settled(race.device) - began
    return seconds, peak.gib(), outputs


def as_outputs(codec: Codec, features: Sequence[Feature], logits: Any) -> list[Any]:
    """What the codec makes of a Trainer's logits: a label and a loss, or a score and a span, each feature."""
    if not codec.extracts:
        scores = torch.as_tensor(logits).float()
        losses = cross_entropy(scores, torch.tensor([feature.target for feature in features]), reduction="none")
        return list(zip(scores.argmax(-1).tolist(), losses.tolist(), strict=True))
    starts, ends = (torch.as_tensor(part).float() for part in logits)
    return [best_span(start, end, feature.extra) for start, end, feature in zip(starts, ends, features, strict=True)]


def timed_generate(race: Race, features: Sequence[Feature]) -> tuple[float, float | None, list[Any]]:
    """The texts by plain batches of `model.generate`, in the order of the rows."""
    race.restore()
    race.model.eval()
    outputs: list[Any] = []
    peak, began = Peak(race.device), settled(race.device)
    for batch in chunks(features, EVAL_BATCH):
        ids = race.codec.generate(race.model, batch, race.device).tolist()  # type: ignore[attr-defined]
        outputs += [race.codec.until_end(row) for row in ids]  # type: ignore[attr-defined]
    return settled(race.device) - began, peak.gib(), outputs


PREDICTING: Mapping[str, Callable[[Race, Sequence[Feature]], tuple[float, float | None, list[Any]]]] = {
    "ours": timed_ours,
    "trainer": partial(timed_trainer, per_device_eval_batch_size=EVAL_BATCH),
    DEFAULTS: timed_trainer,
    "plain generate": timed_generate,
}


def mean_figure(codec: Codec, outputs: Sequence[Any]) -> float:
    """The mean loss of classified rows, or the mean score of spans: what two evaluations must agree on."""
    return fmean(float(output[0] if codec.extracts else output[1]) for output in outputs)


def equal_share(first: Sequence[Any], second: Sequence[Any]) -> float:
    """The share of generated texts that are the same, token by token."""
    equal: int = sum(a == b for a, b in zip(first, second, strict=True))
    return equal / len(first)
