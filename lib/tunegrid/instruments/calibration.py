"""Measures how well a model's confidence matches its share of hits, and fits a temperature.

A hit is a correct prediction. The confidence of a prediction is the probability that the model
gives it. The expected calibration error (ECE) is the weighted mean, over bins, of the difference
between mean confidence and share of hits (Guo et al. 2017, "On Calibration of Modern Neural
Networks"). With few rows, chance alone keeps it above 0, so the ECE expected by chance is measured
as well. Runs are compared by negative log-likelihood (NLL), which needs no bins. The temperature is
fitted on validation rows.
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

HITS = ("accuracy", "exact_match")  # scores that are 100 for each correct row and 0 for others
FITTED = 384  # maximum number of validation rows for fitting the temperature
BINS = 15
WINDOWS_AT_ONCE = 128  # windows whose spans are summed in one batch
SURE = 1e-12  # the smallest probability, so that a sure miss costs 27.6 nats, not infinity
HOTTEST = 16.0  # the largest temperature tried; the smallest is its reciprocal
CLOSE = 1e-4  # the tolerance of the temperature's logarithm
RESAMPLES = 10_000
CHUNKS = 20  # resamples are drawn in chunks to bound memory
RESAMPLING_SEED = 0
SIMULATED = 1000  # simulated runs of a calibrated model; their mean ECE is the ECE by chance
Forecasts = tuple[Array, Array]  # confidences and hits by row, from 0 to 1


class ModelCalibration(Instrument):
    """Calibration of the model as it is and at the fitted temperature."""

    id = "calibration"
    question = "does it know when it is right? Confidence, hits and ECE in percent, NLL in nats"
    figures = {  # noqa: RUF012
        "confidence": Figure(shown=".1f"),
        "hits": Figure(shown=".1f"),
        "ECE": Figure(shown=".1f"),
        "by chance": Figure(shown=".1f"),
        # The margin is a likelihood ratio of 98 %. Starts that differ in their last digits move the
        # NLL by at most 1e-6 (bert_qa_lora, gpt2_sa_lora).
        "NLL": Figure(better="lower", margin=0.02, shown=".3f"),
        "temperature": Figure(shown=".2f"),
        "validation NLL": Figure(shown=".3f"),
    }

    def before(self, cell: TrainedCell) -> None:
        """Raises NotAskedError if the cell generates text, which is neither a hit nor a miss."""
        if cell.cell.recipe.generation:
            raise NotAskedError("generated texts are neither hits nor misses")

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """Measures calibration on test rows, also at the fitted temperature if there is one."""
        assert cell.splits, "the cell was scored"
        assert cell.evaluation, "the same"
        test = forecasts(cell, cell.evaluation)
        rows = cell.splits.validation
        validation = None
        temperature = None
        if rows:
            validation = forecasts(cell, cell.score(rows[:: math.ceil(len(rows) / FITTED)]))
            temperature = fit_temperature(validation)
        lines = list(_lines("", test(1.0), cell.row_names))
        if validation and temperature:
            fitted_part = "at the temperature"
            lines.append(tidy("temperature", temperature))
            lines += _lines(fitted_part, test(temperature), cell.row_names)
            for name, divisor in {"": 1.0, fitted_part: temperature}.items():
                loss = float(nll(*validation(divisor)).mean())
                lines.append(tidy("validation NLL", loss, part=name))
        return pd.concat(lines)


def forecasts(cell: TrainedCell, evaluation: Evaluation) -> Callable[[float], Forecasts]:
    """Returns a function that maps a temperature to the rows' confidences and hits.

    The function raises NotAskedError if rows are neither hits nor misses, or if a prediction has no
    finite probability.
    """
    examples = [feature.example for feature in evaluation.features]
    hits = next((evaluation.examples[name] for name in HITS if name in evaluation.examples), None)

    def at(temperature: float) -> Forecasts:
        chances = None
        if hits and evaluation.outputs:
            chances = confidences(cell.codec, examples, evaluation.outputs, temperature)
        if not chances or not all(map(math.isfinite, chances)):
            raise NotAskedError("the model gives its predictions no probability")
        return np.asarray(chances, float), (np.asarray(hits) == 100).astype(float)

    return at


def confidences(
    codec: Codec,
    examples: Sequence[int],
    outputs: Sequence[Any],
    temperature: float = 1.0,
) -> list[float] | None:
    """The probability of each row's prediction at a temperature; None if outputs are texts.

    A label's probability is its softmax over all labels; a span's is its softmax over all legal
    spans in all windows of the row. A span's score is its start logit plus its end logit. Other
    spans with the same words do not add to its probability. `examples` holds the row number of each
    output.
    """
    if codec.generates:
        return None
    if not isinstance(codec, ExtractCodec):
        labels = torch.tensor([label for label, *_ in outputs], dtype=torch.long)
        scores = torch.tensor([logits for *_, logits in outputs], dtype=torch.float64)
        softmax = (scores.reshape(len(labels), -1) / temperature).softmax(-1)
        chances: list[float] = softmax.gather(1, labels.unsqueeze(1)).flatten().tolist()
        return chances
    best = dict[int, float]()
    sums = defaultdict[int, list[Tensor]](list)
    for start in range(0, len(outputs), WINDOWS_AT_ONCE):
        batch = slice(start, start + WINDOWS_AT_ONCE)
        windows = [scores.double().T for *_, scores in outputs[batch]]
        padded = pad_sequence(windows, batch_first=True, padding_value=-math.inf)
        starts, ends = (padded / temperature).unbind(-1)
        log_sums = (starts + legal_ends(ends, -math.inf).logsumexp(-1)).logsumexp(-1)
        for example, output, log_sum in zip(examples[batch], outputs[batch], log_sums, strict=True):
            score = output[0]
            best[example] = max(score, best.get(example, score))
            sums[example].append(log_sum)
    totals = torch.stack([torch.stack(sums[row]).logsumexp(0) for row in range(len(best))])
    scores = torch.tensor([best[row] for row in range(len(best))], dtype=torch.float64)
    spans: list[float] = (scores / temperature - totals).exp().tolist()
    return spans


def _lines(part: str, rows: Forecasts, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    confidences, hits = rows
    figures = {
        "confidence": 100 * confidences,
        "hits": 100 * hits,
        "NLL": nll(confidences, hits),
    }
    for name, values in figures.items():
        yield tidy(name, values.tolist(), part=part, row=names)
    value, low, high = ece(confidences, hits)
    yield tidy("ECE", value, low=low, high=high, part=part)
    yield tidy("by chance", ece_by_chance(confidences), part=part)


def nll(confidences: Array, hits: Array) -> Array:
    """Each row's NLL in nats: -log(confidence) for a hit, -log(1 - confidence) for a miss."""
    chances = np.where(hits == 1, confidences, 1 - confidences)
    return -np.log(np.maximum(chances, SURE))


def ece(confidences: Array, hits: Array) -> tuple[float, float, float]:
    """The ECE in points over bins of equal width, and the ends of its 95 % interval.

    Resampling adds the difference due to chance a second time, so the interval is reflected about
    the ECE. This is the basic bootstrap (Davison and Hinkley 1997, chapter 5), widened if necessary
    to contain the ECE, and cut off at 0.
    """
    by_bin = (confidences - hits)[:, None] * np.eye(BINS)[_bins(confidences)]
    value = float(_distances(by_bin.sum(0), len(hits)))
    distances = _distances(_resampled_sums(by_bin), len(hits))
    least, most = np.percentile(distances, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    low = min(value, 2 * value - float(most))
    high = max(value, 2 * value - float(least))
    return value, max(0.0, low), high


def _resampled_sums(by_bin: Array) -> Array:
    """Sums the rows of each bootstrap resample by bin; the shape is (resamples, bins)."""
    rows = len(by_bin)
    size = RESAMPLES // CHUNKS
    rng = np.random.default_rng(RESAMPLING_SEED)
    shifts = np.arange(size)[:, None] * rows
    sums = []
    for _ in range(CHUNKS):
        draws = rng.integers(0, rows, (size, rows)) + shifts
        counts = np.bincount(draws.ravel(), minlength=size * rows)  # by resample and row
        sums.append(counts.reshape(size, rows).astype(float) @ by_bin)
    return np.concatenate(sums)


def _bins(confidences: Array) -> Any:
    """The index of each row's bin."""
    return np.minimum((confidences * BINS).astype(int), BINS - 1)


def _distances(sums: Array, rows: int) -> Any:
    return 100 * np.abs(sums).sum(-1) / rows


def ece_by_chance(confidences: Array) -> float:
    """The mean ECE in points if each row's confidence is its true probability of a hit."""
    rows = len(confidences)
    rng = np.random.default_rng(RESAMPLING_SEED)
    bins = np.eye(BINS)[_bins(confidences)]
    means = []
    for _ in range(CHUNKS):
        hits = rng.random((SIMULATED // CHUNKS, rows)) < confidences
        means.append(_distances((confidences - hits) @ bins, rows).mean())
    return float(np.mean(means))


def fit_temperature(forecast: Callable[[float], Forecasts]) -> float | None:
    """Finds the temperature with the lowest NLL; None if all rows are hits or all are misses.

    In those cases no temperature is best. Brent's method searches the temperature's logarithm. The
    result is 1 if the search finds nothing better.
    """
    confidences, hits = forecast(1.0)
    if len(set(hits)) < 2:
        return None
    edge = float(np.log(HOTTEST))

    def loss(log: float) -> Any:
        return nll(*forecast(float(np.exp(log)))).mean()

    options = {"xatol": CLOSE}
    best = optimize.minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options=options)
    return float(np.exp(best.x)) if best.fun < nll(confidences, hits).mean() else 1.0


INSTRUMENT = ModelCalibration()
