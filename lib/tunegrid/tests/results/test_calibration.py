"""Confidence and hits: figures worked out by hand, held to scikit-learn, and a temperature that is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from tunegrid.errors import InputError
from tunegrid.record import from_json, to_json
from tunegrid.results import examples
from tunegrid.results.calibration import (
    BINS,
    Forecasts,
    calibration,
    calibration_lines,
    equal_masses,
    expected_ece,
    figures_of,
    fitted,
    forecasts_of,
    reliability,
)
from tunegrid.results.examples import Examples, read
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import compared, load_tolerances
from tunegrid.tests.records import complete, record_of

pytestmark = pytest.mark.usefixtures("store")


def at(temperature, confidences, hits):
    """Forecasts of two labels whose log-odds are divided by a temperature."""
    odds = np.log(confidences / (1 - confidences)) / temperature
    return Forecasts(confidences=1 / (1 + np.exp(-odds)), hits=hits)


def calibrated(rows, seed=0):
    """Rows that are hits with just their confidence."""
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.5, 0.999, rows)
    return confidences, (rng.random(rows) < confidences).astype(float)


def test_figures_and_bins_are_those_worked_out_by_hand():
    # bins of width 1/15: 0.9 and 0.92 share one (mean gap 0.91 - 0.5), 0.6 (gap -0.4) and 0.7 (gap 0.7) have their own
    figures = figures_of(Forecasts(confidences=np.array([0.9, 0.92, 0.6, 0.7]), hits=np.array([1.0, 0.0, 1.0, 0.0])))
    assert figures.confidence == pytest.approx(78.0)
    assert figures.ece.value == pytest.approx(100 * (0.82 + 0.4 + 0.7) / 4)
    assert figures.adaptive_ece.value == pytest.approx(100 * (0.1 + 0.92 + 0.4 + 0.7) / 4)  # fewer rows than bins: one in each
    assert figures.brier.value == pytest.approx((0.01 + 0.8464 + 0.16 + 0.49) / 4)
    assert figures.nll.value == pytest.approx(-(math.log(0.9) + math.log(0.08) + math.log(0.6) + math.log(0.3)) / 4)
    confidences = np.array([0.5] * 20 + [0.99] * 10)
    assert equal_masses(confidences).tolist() == [n // 2 for n in range(30)]
    assert Forecasts(confidences=np.array([1.0, 1.0]), hits=np.array([1.0, 0.0])).nll == pytest.approx([0, 12 * math.log(10)])


def test_figures_are_scikit_learns():
    confidences, hits = calibrated(700)
    figures = figures_of(Forecasts(confidences=confidences, hits=hits))
    shares, means = calibration_curve(hits, confidences, n_bins=BINS)
    counts = np.histogram(confidences, bins=np.linspace(0, 1, BINS + 1))[0]
    assert figures.ece.value == pytest.approx(100 * (np.abs(shares - means) * counts[counts > 0]).sum() / 700)
    assert figures.brier.value == pytest.approx(brier_score_loss(hits, confidences))
    assert figures.nll.value == pytest.approx(log_loss(hits, confidences))
    shares, means = calibration_curve(hits, confidences, n_bins=14, strategy="quantile")
    by_mass = np.bincount(equal_masses(confidences))
    assert set(by_mass) == {46, 47}  # 700 rows in 15 bins


def test_a_calibrated_model_is_near_0_and_its_triple_confident_twin_is_seen():
    confidences, hits = calibrated(2000)
    calm, wild = figures_of(Forecasts(confidences=confidences, hits=hits)), figures_of(at(1 / 3, confidences, hits))
    assert calm.ece.low <= calm.expected_ece
    assert calm.ece.low < 1.5  # points
    assert calm.ece.value < 2 * calm.expected_ece
    assert wild.ece.low > 2 * wild.expected_ece
    assert wild.nll.low > calm.nll.high
    assert wild.confidence > calm.confidence + 10


@pytest.mark.slow
def test_calibrated_models_are_seldom_called_anything_else_and_show_the_ece_that_chance_gives():
    shown = [figures_of(Forecasts(confidences=c, hits=h)).ece for c, h in (calibrated(400, seed) for seed in range(60))]
    expected = expected_ece(calibrated(400)[0])
    assert sum(ece.low > expected for ece in shown) <= 6  # 2.5 % of each side
    assert expected == pytest.approx(np.mean([ece.value for ece in shown]), rel=0.1)
    assert expected_ece(calibrated(4 * 400)[0]) == pytest.approx(expected / 2, rel=0.15)  # it shrinks with rows


def test_intervals_of_many_rows_are_those_of_few():
    """From 2,500 rows on, sums by bin are drawn as normal ones."""
    few, many = (figures_of(at(1 / 2, *calibrated(rows))) for rows in (2500, 2501))
    for name in ("ece", "adaptive_ece", "brier", "nll"):
        ours, theirs = getattr(few, name), getattr(many, name)
        assert (theirs.low, theirs.high) == pytest.approx((ours.low, ours.high), rel=0.05)


def test_the_temperature_that_spoiled_confidences_is_found_again_and_rows_without_a_miss_fit_none():
    confidences, hits = calibrated(20_000)
    assert fitted(lambda t: at(t / 3, confidences, hits)) == pytest.approx(3, rel=0.05)  # three times too sure
    assert fitted(lambda t: at(t * 2, confidences, hits)) == pytest.approx(1 / 2, rel=0.05)
    confidences, hits = calibrated(300)
    part = calibration("accuracy", lambda t: at(t, confidences, hits), lambda t: at(t, confidences, np.ones(300)))
    assert (part.temperature, part.scaled, part.validation_nll) == (None, None, None)
    assert calibration("accuracy", lambda t: at(t, confidences, hits), None).validation_rows == 0


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_scaling_never_makes_validation_rows_less_likely(factor):
    part = calibration("accuracy", *[lambda t: at(t * factor, *calibrated(300))] * 2)
    assert part.scaled_validation_nll <= part.validation_nll
    assert part.validation_rows == 300
    assert part.scaled.nll.value == pytest.approx(part.scaled_validation_nll)


# A record, and the rows beside it


def sure(cell, confidences, hits, seed=0, training=None):
    """A record with its rows, as a session leaves it."""
    ids, points = [f"r{n}" for n in range(len(hits))], {"accuracy": (100 * hits).tolist()}
    record = record_of(cell, points, seed=seed, ids=ids)
    rows = Examples(ids=ids, points=points, predictions=["0"] * len(hits), confidences=confidences.tolist())
    part = calibration("accuracy", lambda t: at(t, confidences, hits), None)
    record = replace(record, examples=examples.write(rows), calibration=part)
    return replace(record, training=replace(record.training, **training)) if training else record


def test_confidences_are_kept_to_the_last_digit_and_one_that_is_no_probability_is_refused():
    confidences, hits = calibrated(40)
    record = sure("bert_sa_lora", confidences, hits)
    rows = read(record, None)
    assert rows.confidences == confidences.tolist()
    assert [*rows.points] == ["accuracy"]
    assert forecasts_of(rows).hits.tolist() == hits.tolist()
    record = sure("bert_sa_lora", np.array([0.5, 0.6]), np.array([1.0, 0.0]))
    rows = Examples(ids=["r0", "r1"], points={"accuracy": [100.0, 0.0]}, predictions=["0"] * 2, confidences=[0.5, 1.5])
    with pytest.raises(InputError, match="a confidence that is no probability"):
        read(replace(record, examples=examples.write(rows)), None)


def test_an_older_run_has_no_confidences_and_no_calibration():
    rows = read(record_of("bert_sa_lora", {"accuracy": [100.0, 0.0]}), None)
    assert (rows.confidences, forecasts_of(rows)) == (None, None)
    record, older = sure("bert_sa_lora", *calibrated(40)), to_json(complete())
    del older["calibration"]
    assert [from_json(data).calibration for data in (to_json(record), older)] == [record.calibration, None]


@pytest.mark.parametrize("confidence", [None, 0.6])
def test_numerics_do_not_rest_on_confidences(confidence):
    new = sure("bert_sa_lora", np.array([0.5, 0.7]), np.array([1.0, 0.0]))
    rows = replace(read(new, None), confidences=confidence and [confidence, 0.7])
    old = replace(new, examples=examples.write(rows))
    assert old.examples.file != new.examples.file
    equal = (Verdict.EQUAL, "all losses, predictions and points are equal, confidences are not")
    assert compared(old, new, load_tolerances()) == equal
    other = replace(new, examples=examples.write(replace(rows, predictions=["0", "1"])))
    assert compared(other, new, load_tolerances())[0] is Verdict.CHANGED


def test_lines_are_means_over_seeds():
    records = [sure("bert_sa_lora", *calibrated(40, seed), seed=seed) for seed in (0, 1)]
    [line] = calibration_lines([*records, complete("t5_sum_sft")])
    assert line.cell == "bert_sa_lora"
    assert line.ece == pytest.approx(np.mean([record.calibration.unscaled.ece.value for record in records]))
    assert line.hits == pytest.approx(np.mean([record.scores["accuracy"] for record in records]))
    assert line.temperature is None


def test_a_diagram_has_the_bins_that_hold_rows_of_any_run():
    runs = [Forecasts.of([0.99, 0.99], [100.0, 0.0]), Forecasts.of([0.5, 0.98], [100.0, 100.0])]
    low, high = reliability(runs)
    assert (low.rows, low.confidence, low.hits, high.rows) == (1, 0.5, 1.0, 3)
    assert (high.confidence, high.hits) == pytest.approx((2.96 / 3, 2 / 3))
    assert high.low == pytest.approx(0.2077, abs=1e-4)  # Wilson, of 2 in 3
    assert high.high == pytest.approx(0.9385, abs=1e-4)


def of_nll(old, new):
    return [judgement for judgement in gate(Run.of(old), Run.of(new)) if judgement.quantity == "nll"]


def test_the_gate_says_where_a_model_of_the_same_training_is_more_sure_than_it_may_be():
    confidences, hits = calibrated(400)
    old = sure("bert_sa_lora", confidences, hits)
    [same] = of_nll([old], [old])
    assert (same.verdict, same.effect, same.low, same.high) == (Verdict.SAME, 0.0, 0.0, 0.0)
    twin = sure("bert_sa_lora", at(1 / 3, confidences, hits).confidences, hits)
    [worse] = of_nll([old], [twin])
    assert worse.verdict is Verdict.WORSE
    assert worse.kind == "calibration"
    assert worse.effect == pytest.approx(twin.calibration.unscaled.nll.value - old.calibration.unscaled.nll.value)
    assert worse.low > 0
    [better] = of_nll([twin], [old])
    assert better.verdict is Verdict.BETTER


def test_another_training_of_one_seed_is_not_compared_and_of_several_seeds_held_to_their_noise():
    old = [sure("bert_sa_lora", *calibrated(400, seed), seed=seed) for seed in range(3)]
    other = {"losses": [0.9, 0.6]}
    [alone] = of_nll(old[:1], [sure("bert_sa_lora", *calibrated(400, 7), training=other)])
    assert alone.verdict is Verdict.NOT_COMPARABLE
    wild = [
        sure("bert_sa_lora", at(1 / 4, *calibrated(400, n)).confidences, calibrated(400, n)[1], n, other) for n in (5, 6, 7)
    ]
    [worse] = of_nll(old, wild)
    assert worse.verdict is Verdict.WORSE
    assert "seeds" in worse.detail
