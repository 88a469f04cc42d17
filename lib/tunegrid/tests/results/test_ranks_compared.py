"""Runs on different numbers of ranks are compared by quality and by their ledgers alone."""

import pytest

from tunegrid.results.alike import unlike_machines
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import PEAKS
from tunegrid.results.numerics import not_comparable
from tunegrid.results.thresholds import load_tolerances
from tunegrid.tests.records import complete

RANK = {
    "rss_peak_gib": 0.5,
    "allocated_peak_gib": None,
    "reserved_peak_gib": None,
    "train_samples": 24,
    "train_samples_per_second": 90.0,
    "train_tokens_per_second": None,
}
RANKS = {"count": 2, "backend": "gloo", "each": [RANK, RANK]}


def test_neither_speed_nor_numerics_are_compared():
    alone, two, tolerances = complete(ranks=None), complete(ranks=RANKS), load_tolerances()
    assert (complete().processes, alone.processes, two.processes) == ("1", "1", "2")
    assert (unlike_machines(alone, two), unlike_machines(two, two)) == ("ranks: 1 and 2", "")
    assert [not_comparable(one, two, tolerances) for one in (alone, two)] == ["other ranks", ""]


@pytest.mark.parametrize(("ranks", "judges_peaks"), [(None, True), (RANKS, False)])
def test_peaks_are_not_compared_and_the_ledger_is(ranks, judges_peaks):
    before = complete()
    judged = {judgement.quantity for judgement in gate(Run.of([before]), Run.of([complete(ranks=ranks)]))}
    assert "weights_bytes" in judged
    assert bool(judged & set(PEAKS)) is judges_peaks
