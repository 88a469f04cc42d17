"""Runs on different numbers of ranks are compared by quality and by their ledgers alone."""

import pytest

from tunegrid.results.alike import unlike_machines
from tunegrid.results.gate import memory
from tunegrid.results.judgements import PEAKS
from tunegrid.results.numerics import load_tolerances, not_comparable
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
MARGINS = dict.fromkeys(("ledger", *PEAKS), 0.1)


def test_a_record_of_a_run_before_there_were_ranks_is_of_one_process():
    assert complete().processes == "1"
    assert complete(ranks=None).processes == "1"
    assert complete(ranks=RANKS).processes == "2"


def test_speed_is_not_compared():
    assert unlike_machines(complete(), complete(ranks=RANKS)) == "ranks: 1 and 2"
    assert unlike_machines(complete(ranks=RANKS), complete(ranks=RANKS)) == ""


def test_numerics_are_not_compared():
    tolerances = load_tolerances()
    assert not_comparable(complete(), complete(ranks=RANKS), tolerances) == "other ranks"
    assert not_comparable(complete(ranks=RANKS), complete(ranks=RANKS), tolerances) == ""


@pytest.mark.parametrize(("ranks", "judges_peaks"), [(None, True), (RANKS, False)])
def test_peaks_are_not_compared_and_the_ledger_is(ranks, judges_peaks):
    before = complete()
    judged = {judgement.quantity for judgement in memory({0: before}, before, complete(ranks=ranks), MARGINS)}
    assert "weights_bytes" in judged
    assert bool(judged & set(PEAKS)) is judges_peaks
