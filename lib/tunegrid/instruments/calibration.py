"""Does a model know when it is right? Confidences and hits of rows, and one temperature fitted on validation rows.

A hit is a prediction that is right; its confidence is the probability that the model gives it. ECE is the mean distance of
confidence and share of hits over bins (Guo et al. 2017, "On Calibration of Modern Neural Networks"). It is never 0 on few rows,
so the one that chance alone would give stands beside it, and two runs are held to each other by NLL, which has no bins.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import optimize
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tunegrid.codecs.base import Codec
from tunegrid.codecs.extract import ExtractCodec, legal_ends
from tunegrid.gate.statistics import ALPHA, Array
from tunegrid.instruments import Figure, Instrument, NotAskedError, tidy
from tunegrid.instruments.trained import TrainedCell
from tunegrid.run.evaluate import Evaluation

HITS = ("accuracy", "exact_match")  # scores of which a row has 100 points or 0: whether its prediction is right
FITTED = 384  # validation rows that a temperature is fitted on: it is one number, and they are predicted for it alone
BINS = 15
AT_ONCE = 128  # windows whose spans are summed up together
SURE = 1e-12  # a probability is kept so far from 0 and 1: a sure miss costs 27.6 nats, not infinity
HOTTEST = 16.0  # the largest temperature that is tried, and 1 over the smallest
CLOSE = 1e-4  # how closely its logarithm is found
RESAMPLES, CHUNKS, SEED = 10_000, 20, 0  # drawn in so many parts, to bound memory
SIMULATED = 1000  # runs of a calibrated model, whose mean ECE is the one by chance
Forecasts = tuple[Array, Array]  # confidences and hits of rows, 0 to 1


class Calibration(Instrument):
    """Figures of the model as it is, and at the temperature."""

    id = "calibration"
    question = "does it know when it is right? Confidence, hits and ECE in percent, NLL in nats"
    figures = {  # noqa: RUF012
        "confidence": Figure(shown=".1f"),
        "hits": Figure(shown=".1f"),
        "ECE": Figure(shown=".1f"),
        "by chance": Figure(shown=".1f"),
        # A likelihood of 98 %. Starts that differ in their last digits move it by 1e-6 at most (bert_qa_lora, gpt2_sa_lora).
        "NLL": Figure(better="lower", margin=0.02, shown=".3f"),
        "temperature": Figure(shown=".2f"),
        "validation NLL": Figure(shown=".3f"),
    }

    def before(self, cell: TrainedCell) -> None:
        """Refuse cells whose answers are neither hits nor misses."""
        if cell.cell.recipe.generation:
            raise NotAskedError("generated texts are neither hits nor misses")

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """Of test rows, and of the validation rows that the temperature is fitted on."""
        assert cell.splits, "the cell was scored"
        assert cell.evaluation, "the same"
        test, rows = forecasts(cell, cell.evaluation), cell.splits.validation
        validation = forecasts(cell, cell.score(rows[:: math.ceil(len(rows) / FITTED)])) if rows else None
        temperature = fit_temperature(validation) if validation else None
        lines = [*_lines("", test(1.0), cell.row_names)]
        if validation and temperature:
            fitted_part = "at the temperature"
            lines += [tidy("temperature", temperature), *_lines(fitted_part, test(temperature), cell.row_names)]
            for part, divisor in (("", 1.0), (fitted_part, temperature)):
                lines.append(tidy("validation NLL", float(nll(*validation(divisor)).mean()), part=part))
        return pd.concat(lines)


def forecasts(cell: TrainedCell, evaluation: Evaluation) -> Callable[[float], Forecasts]:
    """The rows as forecasts at a temperature. Raises NotAskedError if nothing says how sure the model is."""
    examples = [feature.example for feature in evaluation.features]
    hits = next((evaluation.examples[name] for name in HITS if name in evaluation.examples), None)

    def at(temperature: float) -> Forecasts:
        chances = confidences(cell.codec, examples, evaluation.outputs, temperature) if hits and evaluation.outputs else None
        if not chances or not all(map(math.isfinite, chances)):
            raise NotAskedError("the model gives its predictions no probability")
        return np.asarray(chances, float), (np.asarray(hits) == 100).astype(float)

    return at


def confidences(codec: Codec, examples: Sequence[int], outputs: Sequence[Any], temperature: float = 1.0) -> list[float] | None:
    """The probability of each row's prediction, all scores divided by the temperature first; None: outputs are texts.

    A label's is its softmax over all labels. A span's is its softmax over all spans that the row allows, in all of its windows;
    its score is that of its first token plus that of its last, and other spans that say the same words are not counted.
    `examples` are the rows' numbers by output.
    """
    if codec.generates:
        return None
    if not isinstance(codec, ExtractCodec):
        labels = torch.tensor([label for label, *_ in outputs], dtype=torch.long)
        logits = torch.tensor([logits for *_, logits in outputs], dtype=torch.float64).reshape(len(labels), -1)
        softmax: list[float] = (logits / temperature).softmax(-1).gather(1, labels.unsqueeze(1)).flatten().tolist()
        return softmax
    best, sums = dict[int, float](), defaultdict[int, list[Tensor]](list)
    for start in range(0, len(outputs), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        padded = [scores.double().T for *_, scores in outputs[part]]
        starts, ends = (pad_sequence(padded, batch_first=True, padding_value=-math.inf) / temperature).unbind(-1)
        log_sums = (starts + legal_ends(ends, -math.inf).logsumexp(-1)).logsumexp(-1)
        for example, (score, *_), log_sum in zip(examples[part], outputs[part], log_sums, strict=True):
            best[example] = max(score, best.get(example, score))
            sums[example].append(log_sum)
    totals = torch.stack([torch.stack(sums[row]).logsumexp(0) for row in range(len(best))])
    scores = torch.tensor([best[row] for row in range(len(best))], dtype=torch.float64)
    spans: list[float] = (scores / temperature - totals).exp().tolist()
    return spans


def _lines(part: str, rows: Forecasts, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    confidences, hits = rows
    for name, values in (("confidence", 100 * confidences), ("hits", 100 * hits), ("NLL", nll(confidences, hits))):
        yield tidy(name, values.tolist(), part=part, row=names)
    value, low, high = ece(confidences, hits)
    yield tidy("ECE", value, low=low, high=high, part=part)
    yield tidy("by chance", ece_by_chance(confidences), part=part)


def nll(confidences: Array, hits: Array) -> Array:
    """Nats of each row: minus the log of what was said of its outcome."""
    chances = np.where(hits == 1, confidences, 1 - confidences)
    return -np.log(np.maximum(chances, SURE))


def ece(confidences: Array, hits: Array) -> tuple[float, float, float]:
    """ECE in points over bins of equal width, with its interval.

    Resampling adds the distance that chance adds once more, so the interval is reflected at the figure: the basic bootstrap
    (Davison and Hinkley 1997, chapter 5), widened to hold the figure itself.
    """
    by_bin = (confidences - hits)[:, None] * np.eye(BINS)[_bins(confidences)]
    value = float(_distances(by_bin.sum(0), len(hits)))
    distances = _distances(_resampled_sums(by_bin), len(hits))
    low, high = np.percentile(distances, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return value, max(0.0, min(value, 2 * value - float(high))), max(value, 2 * value - float(low))


def _resampled_sums(by_bin: Array) -> Array:
    """The sums of all resamples of rows, a column each."""
    rows, size, rng = len(by_bin), RESAMPLES // CHUNKS, np.random.default_rng(SEED)
    shifts, sums = np.arange(size)[:, None] * rows, []
    for _ in range(CHUNKS):
        draws = rng.integers(0, rows, (size, rows)) + shifts
        times = np.bincount(draws.ravel(), minlength=size * rows).reshape(size, rows)  # that each draws each row
        sums.append(times.astype(float) @ by_bin)
    return np.concatenate(sums)


def _bins(confidences: Array) -> Any:
    """The number of each row's bin."""
    return np.minimum((confidences * BINS).astype(int), BINS - 1)


def _distances(sums: Array, rows: int) -> Any:
    return 100 * np.abs(sums).sum(-1) / rows


def ece_by_chance(confidences: Array) -> float:
    """The mean ECE of rows that are hits with just their confidence: what few rows show by chance."""
    rng, rows = np.random.default_rng(SEED), len(confidences)
    bins = np.eye(BINS)[_bins(confidences)]
    draws = ((confidences - (rng.random((SIMULATED // CHUNKS, rows)) < confidences)) @ bins for _ in range(CHUNKS))
    return float(np.mean([_distances(sums, rows).mean() for sums in draws]))


def fit_temperature(forecast: Callable[[float], Forecasts]) -> float | None:
    """The temperature at which rows have the least NLL; None if all are hits, or all misses: then none is the best one.

    The search is Brent's, on the logarithm. Where it finds nothing better than 1, it is 1.
    """
    confidences, hits = forecast(1.0)
    if len(set(hits)) < 2:
        return None
    edge = float(np.log(HOTTEST))
    options = {"bounds": (-edge, edge), "method": "bounded", "options": {"xatol": CLOSE}}
    best = optimize.minimize_scalar(lambda log: nll(*forecast(float(np.exp(log)))).mean(), **options)
    return float(np.exp(best.x)) if best.fun < nll(confidences, hits).mean() else 1.0


INSTRUMENT = Calibration()
