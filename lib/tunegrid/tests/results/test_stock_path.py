"""The gate on two records of the libraries' own path: the first stage that changed is named, rounding is not."""

from dataclasses import replace

import pytest

from tunegrid.record import new_record
from tunegrid.record.checks import contradictions
from tunegrid.record.stock import StockRecord, StockStage
from tunegrid.results.answer import State, answer_of
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import load_tolerances
from tunegrid.results.outcomes import kinds_of
from tunegrid.results.stock_path import compared_paths
from tunegrid.tests.records import CELLS, complete

STAGES = {
    "windows": StockStage(digest="a" * 16),
    "start": StockStage(digest="b" * 16),
    "labels": StockStage(digest="c" * 16),
    "batch": StockStage(digest="d" * 16),
    "order": StockStage(digest="e" * 16),
    "loss": StockStage(figures=[0.7], largest=0.0, mean=0.0),
    "gradient": StockStage(figures=[2.0], largest=0.0, mean=0.0),
    "rates": StockStage(figures=[0.0, 1e-3, 5e-4], largest=0.0, mean=0.0),
    "losses": StockStage(figures=[0.7, 0.6, 0.5], largest=1e-7, mean=1e-8),
    "weights": StockStage(figures=[0.5, 0.25], largest=1e-6, mean=1e-7),
}


def path(differs=None, **changes):
    """A record of a path with these stages changed; None leaves one out."""
    measured = complete("bert_sa_lora")
    stages = {name: stage for name, stage in (STAGES | changes).items() if stage is not None}
    return replace(
        new_record(CELLS["bert_sa_lora"]),
        profile="stock",
        device=measured.device,
        data=measured.data,
        status="missed" if differs else "passed",
        missed=[differs] if differs else [],
        stock=StockRecord(stages=stages, differs=differs),
    )


def verdict(**changes):
    return compared_paths(path(), path(**changes), load_tolerances())


OTHER = StockStage(digest="0" * 16)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ({}, (Verdict.EQUAL, "all figures are equal")),
        ({"windows": OTHER}, (Verdict.CHANGED, "windows: ids, names or texts are others")),
        ({"order": OTHER}, (Verdict.CHANGED, "order: ids, names or texts are others")),
        ({"rates": StockStage(figures=[5e-4, 1e-3, 5e-4])}, (Verdict.CHANGED, "rates: figure 1 is 0.0005, it was 0")),
        ({"losses": StockStage(figures=[0.7, 0.6, 0.9])}, (Verdict.CHANGED, "losses: figure 3 is 0.9, it was 0.5")),
        ({"losses": StockStage(figures=[0.7, 0.6])}, (Verdict.CHANGED, "losses: 2 figures, there were 3")),
        ({"weights": StockStage(figures=[0.5, None])}, (Verdict.CHANGED, "weights: figure 2 is no number, it was 0.25")),
        (  # the first of the flow
            {"weights": StockStage(figures=[9.0, 9.0]), "labels": OTHER},
            (Verdict.CHANGED, "labels: ids, names or texts are others"),
        ),
        ({"losses": StockStage(figures=[0.7, 0.6, 0.5000001])}, (Verdict.ROUNDING, "figures differ by rounding")),
        (  # how far ours is from it is no change of the path
            {"losses": replace(STAGES["losses"], largest=1e-6, known=["first_label_counts"])},
            (Verdict.EQUAL, "all figures are equal"),
        ),
    ],
)
def test_the_first_stage_that_changed_is_named(stages, told):
    assert verdict(**stages) == told


def test_a_path_that_parts_from_ours_says_how_and_did_not_pass():
    differs = "labels: the collator counts 312 labels, ours 290 (batch 1)"
    gone = dict.fromkeys(("batch", "order", "loss", "gradient", "rates", "losses", "weights"))
    assert verdict(differs=differs, labels=StockStage(digest=None), **gone)[1] == (
        "labels: the collator counts 312 labels, ours 290 (batch 1); it did not differ from ours before"
    )
    other = replace(path(), seeds=replace(path().seeds, seed=1))
    assert compared_paths(path(), other, load_tolerances()) == (Verdict.NOT_COMPARABLE, "no run of the same seed")
    judgements = judged(path(order=StockStage(digest="0" * 16)))
    assert [(j.quantity, j.kind, j.verdict) for j in judgements] == [("stock", "numerics", Verdict.CHANGED)]
    answer = answer_of([path(differs="rates: the rate of update 1 is 0.5, ours is 0")])
    assert answer.sentences[0] == "Failed: the one cell differed from ours at the stage rates."
    record = replace(path(differs="rates: others"), status="passed", missed=[])
    assert list(contradictions(record)) == ["stock.differs says 'rates: others', but the status is 'passed'"]


def judged(after):
    return gate(Run.of([path()]), Run.of([after]))


@pytest.mark.parametrize(("kinds", "state"), [("quality,memory", State.PASSED), ("numerics", State.FAILED)])
def test_the_answer_names_the_first_stage_and_fails_where_numerics_count(kinds, state):
    after = path(order=StockStage(digest="0" * 16))
    answer = answer_of([after], judged(after), kinds_of(kinds))
    assert answer.state is state
    between = ". Cause: " if state is State.FAILED else ", "
    sentence = f"libraries' own path changed in the one cell{between}first at the stage order (1 cell, as in bert_sa_lora: "
    assert sentence in " ".join(answer.sentences)


@pytest.mark.parametrize("kinds", ["quality,memory", "numerics"])
def test_a_path_that_did_not_change_passes_whatever_counts(kinds):
    answer = answer_of([path()], judged(path()), kinds_of(kinds))
    assert (answer.state, answer.exit_code) == (State.PASSED, 0)
    assert "The libraries' own path did not change in the one cell." in answer.sentences
    assert "score" not in " ".join(answer.sentences)
