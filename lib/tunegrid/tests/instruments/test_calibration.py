"""Confidence and hits: figures worked out by hand, held to scikit-learn, and a temperature that is known."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from tunegrid.instruments.calibration import BINS, ece, ece_by_chance, fitted, nll


def at(temperature, confidences, hits):
    """Forecasts of two labels whose log-odds are divided by a temperature."""
    return 1 / (1 + np.exp(-np.log(confidences / (1 - confidences)) / temperature)), hits


def calibrated(rows, seed=0):
    """Rows that are hits with just their confidence."""
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.5, 0.999, rows)
    return confidences, (rng.random(rows) < confidences).astype(float)


def test_figures_are_those_worked_out_by_hand():
    # bins of width 1/15: 0.9 and 0.92 share one (mean gap 0.91 - 0.5), 0.6 (gap -0.4) and 0.7 (gap 0.7) have their own
    confidences, hits = np.array([0.9, 0.92, 0.6, 0.7]), np.array([1.0, 0.0, 1.0, 0.0])
    assert ece(confidences, hits)[0] == pytest.approx(100 * (0.82 + 0.4 + 0.7) / 4)
    assert nll(confidences, hits) == pytest.approx([-math.log(said) for said in (0.9, 0.08, 0.6, 0.3)])
    assert nll(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx([0, 12 * math.log(10)])


def test_figures_are_scikit_learns():
    confidences, hits = calibrated(700)
    shares, means = calibration_curve(hits, confidences, n_bins=BINS)
    counts = np.histogram(confidences, bins=np.linspace(0, 1, BINS + 1))[0]
    assert ece(confidences, hits)[0] == pytest.approx(100 * (np.abs(shares - means) * counts[counts > 0]).sum() / 700)
    assert nll(confidences, hits).mean() == pytest.approx(log_loss(hits, confidences))


def test_a_calibrated_model_is_near_what_chance_gives_and_its_triple_confident_twin_is_seen():
    confidences, hits = calibrated(2000)
    value, low, high = ece(confidences, hits)
    assert low <= value <= high
    assert low <= ece_by_chance(confidences)
    assert value < 2 * ece_by_chance(confidences)
    assert ece(*at(1 / 3, confidences, hits))[1] > 2 * ece_by_chance(at(1 / 3, confidences, hits)[0])


def test_the_temperature_that_spoiled_confidences_is_found_again_and_rows_without_a_miss_fit_none():
    confidences, hits = calibrated(20_000)
    assert fitted(lambda t: at(t / 3, confidences, hits)) == pytest.approx(3, rel=0.05)  # three times too sure
    assert fitted(lambda t: at(t * 2, confidences, hits)) == pytest.approx(1 / 2, rel=0.05)
    assert fitted(lambda t: at(t, confidences, np.ones(20_000))) is None
