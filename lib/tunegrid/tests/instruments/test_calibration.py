"""Confidence and hits: figures worked out by hand, held to scikit-learn, and a temperature that is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from tunegrid.instruments.calibration import BINS, confidences, ece, fitted, nll
from tunegrid.tests.small import CPU, codec_for

TOWN = {"context": "dover is old .", "question": "what is old ?", "answers": {"text": ["dover"], "answer_start": [0]}}


class Rising(torch.nn.Module):
    """Scores grow with the place: if nothing forbids it, the best span is the last token, padding or not."""

    def forward(self, input_ids, **rest):
        scores = torch.arange(input_ids.shape[1]).expand(input_ids.shape).float()
        return SimpleNamespace(start_logits=scores, end_logits=scores)


def at(temperature, confidences, hits):
    """Forecasts of two labels whose log-odds are divided by a temperature."""
    return 1 / (1 + np.exp(-np.log(confidences / (1 - confidences)) / temperature)), hits


def calibrated(rows, seed=0):
    """Rows that are hits with just their confidence."""
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.5, 0.999, rows)
    return confidences, (rng.random(rows) < confidences).astype(float)


def test_figures_are_scikit_learns():
    confidences, hits = calibrated(700)
    shares, means = calibration_curve(hits, confidences, n_bins=BINS)
    counts = np.histogram(confidences, bins=np.linspace(0, 1, BINS + 1))[0]
    assert ece(confidences, hits)[0] == pytest.approx(100 * (np.abs(shares - means) * counts[counts > 0]).sum() / 700)
    assert nll(confidences, hits).mean() == pytest.approx(log_loss(hits, confidences))


def test_the_temperature_that_spoiled_confidences_is_found_again_and_rows_without_a_miss_fit_none():
    confidences, hits = calibrated(20_000)
    assert fitted(lambda t: at(t / 3, confidences, hits)) == pytest.approx(3, rel=0.05)  # three times too sure
    assert fitted(lambda t: at(t * 2, confidences, hits)) == pytest.approx(1 / 2, rel=0.05)
    assert fitted(lambda t: at(t, confidences, np.ones(20_000))) is None


# Confidences of outputs


def test_a_labels_confidence_is_its_softmax_and_no_temperature_changes_the_label():
    codec = codec_for("bert_sa_sft")
    outputs = [(0, 0.1, [2.0, 0.0]), (1, 0.1, [-1.0, 1.0]), (1, 0.7, [0.5, math.nextafter(0.5, 1)])]
    assert confidences(codec, range(3), outputs) == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-2)), 0.5])
    assert confidences(codec, range(3), outputs, 2.0)[0] == pytest.approx(1 / (1 + math.exp(-1)))
    for temperature in (1 / 16, 0.5, 2.0, 16.0):
        scaled = torch.tensor([logits for *_, logits in outputs], dtype=torch.float64) / temperature
        assert scaled.argmax(-1).tolist() == [label for label, *_ in outputs]
        assert min(confidences(codec, range(3), outputs, temperature)) >= 0.5
    assert confidences(codec_for("t5_sum_sft"), [0], [[3, 1]]) is None  # texts have none


def test_a_spans_confidence_is_its_share_of_all_spans_that_the_row_allows():
    codec = codec_for("bert_qa_sft")
    features = codec.encode([TOWN], training=False)
    [output] = codec.predict(Rising(), features, CPU)
    # The context's four tokens stand at 6 to 9, and each scores its place as first and as last: ten pairs.
    pairs = [first + last for first in range(6, 10) for last in range(first, 10)]
    for temperature in (1.0, 3.0):
        shares = [math.exp((pair - 18) / temperature) for pair in pairs]
        assert confidences(codec, [0], [output], temperature) == [pytest.approx(1 / sum(shares))]
