"""Asking, and what becomes of the answers: kept beside a run, reduced, shown, and compared with
another run's.
"""

import math
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from tunegrid.errors import InputError
from tunegrid.gate.figures import load_frame
from tunegrid.gate.gate import Run, gate
from tunegrid.gate.judgements import Verdict
from tunegrid.instruments import Figure, Instrument, NotAskedError, check_instrument, tidy
from tunegrid.instruments.trained import Questions
from tunegrid.record import from_json, to_json
from tunegrid.record.record import InstrumentRecord
from tunegrid.report.instruments import instrument_sections
from tunegrid.run.evaluate import Evaluation
from tunegrid.runs import examples
from tunegrid.tests.instruments.asking import asked_cell
from tunegrid.tests.records import MEASURED, complete, make_seeds
from tunegrid.tests.small import quick_cell

pytestmark = pytest.mark.usefixtures("store")
FIGURES = {
    "loss": Figure(better="lower", margin=0.1, shown=".2f"),
    "count": Figure(shown=".0f"),
}


def make_lines(*losses, weight=1.0):
    rows = [f"r{index}" for index in range(len(losses))]
    lines = tidy("loss", list(losses), part="a", row=rows, weight=weight)
    return pd.concat([lines, tidy("count", float(len(rows)))])


def make_record(lines, seed=0, losses=MEASURED["training"]["losses"]):
    file = examples.write_columns("figures", lines.assign(instrument="own"))
    training = MEASURED["training"] | {"losses": losses}
    record = complete("bert_sa_sft", seeds=make_seeds(seed), training=training)
    instrument = InstrumentRecord(question="-", figures=FIGURES, file=file)
    return replace(record, instruments={"own": instrument})


class Question(Instrument):
    id = "own"
    question = "why?"
    figures = FIGURES

    def __init__(self, answer=None):
        self.answer = answer

    def measure(self, cell, before):
        assert not torch.is_grad_enabled()
        assert not cell.model.training
        torch.rand(1)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "note", "fails"),
    [
        (make_lines(1.0), "", False),
        (NotAskedError("no such base"), "no such base", False),
        (ZeroDivisionError("by 0"), "ZeroDivisionError: by 0", True),
        (
            make_lines(1.0).drop(columns="note"),
            "TypeError: its frame has no column 'note'; make it of lines of tidy()",
            True,
        ),
        ("?", "TypeError: measure() gave no frame; give lines of tidy()", True),
        (
            tidy("guess", 1.0),
            "ValueError: it measures 'guess', which is not among its figures",
            True,
        ),
    ],
)
def test_whatever_a_question_raises_is_kept_and_nothing_is_disturbed(answer, note, fails):
    cell = asked_cell(quick_cell("bert_sa_sft"))
    cell.model.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    questions = Questions([Question(answer)], cell)
    questions.before()
    answers = questions.after(Evaluation(**dict.fromkeys(Evaluation.__annotations__)))
    assert torch.equal(torch.rand(1), expected)
    assert cell.model.training
    objections = [f"own: {note}"] if fails else []
    assert answers.objections == objections
    frame = load_frame([replace(complete("bert_sa_sft"), instruments=answers.records)], None)
    assert frame.note.tolist()[0] == note


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        ({"loss": Figure(shown="%.1f")}, "figures.loss.shown is '%.1f'"),
        ({"loss": Figure(better="up")}, "figures.loss.better is 'up'"),
        ({"loss": Figure(margin=-1.0)}, "figures.loss.margin is -1.0"),
        ({"loss": "lower"}, "figures.loss is 'lower'"),
        (3, "its question is a text, its figures are Figures by name"),
    ],
)
def test_an_instrument_whose_answers_no_record_could_hold_is_rejected(figures, fault):
    question = Question()
    check_instrument(question)
    question.figures = figures
    with pytest.raises(InputError, match=f"instrument 'own': {re.escape(fault)}"):
        check_instrument(question)


def test_means_are_over_rows_by_weight_then_over_seeds_as_worked_out_by_hand():
    records = [
        make_record(make_lines(1.0, 3.0, weight=[3.0, 1.0])),
        make_record(make_lines(2.0, 2.0, 5.0), seed=1),
    ]
    assert [from_json(to_json(record)) for record in records] == records
    [table] = instrument_sections(records, None)
    assert table.columns == ["cell", "part", "loss", "count"]
    cell, part, loss, _ = table.cells[0]
    assert cell == "bert_sa_sft"
    assert part == "a"
    assert loss.split()[0] == f"{(1.5 + 3.0) / 2:.2f}"
    # 12.706 sd / 2**0.5
    interval = f"({2.5 - 6.353:.0f} {2.5 + 6.353:.0f})"
    assert table.cells[1] == ["bert_sa_sft", "", "-", f"{2.5:.0f} {interval}"]


def judge(old, new):
    """The judgement of the only figure that two records have."""
    judgements = gate(Run.make([old]), Run.make([new]))
    [judgement] = [judgement for judgement in judgements if judgement.kind == "instruments"]
    return judgement


ROWS = [0.1 * (index % 7) for index in range(40)]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0.0, Verdict.SAME), (0.05, Verdict.SAME), (0.3, Verdict.WORSE), (-0.3, Verdict.BETTER)],
)
def test_one_training_pairs_row_by_row_and_a_change_below_the_margin_is_the_same(change, verdict):
    changed = [value + change for value in ROWS]
    judgement = judge(make_record(make_lines(*ROWS)), make_record(make_lines(*changed)))
    assert judgement.verdict == verdict
    assert judgement.quantity == "own/loss"
    assert judgement.effect == pytest.approx(change)
    assert "40 rows, paired; margin 0.1" in judgement.detail


def test_figures_of_different_trainings_or_rows_or_of_none_are_not_compared():
    lines = make_lines(*ROWS)
    losses = [0.9 * loss for loss in MEASURED["training"]["losses"]]
    for new, reason in (
        (make_record(lines, losses=losses), "different trainings"),
        (make_record(make_lines(*ROWS[:30])), "lacks figures of some rows"),
        (complete("bert_sa_sft"), "lacks figures of some rows"),
        (make_record(make_lines(*ROWS[:39], math.nan)), "lacks figures of some rows"),
    ):
        judgement = judge(make_record(lines), new)
        assert judgement.verdict == Verdict.NOT_COMPARABLE
        assert judgement.effect is None
        assert reason in judgement.detail


def test_the_gravest_change_of_a_figures_parts_is_reported():
    old = pd.concat([tidy("loss", 1.0, part="a"), tidy("loss", 2.0, part="b")])
    new = pd.concat([tidy("loss", 0.8, part="a"), tidy("loss", 2.2, part="b")])
    judgement = judge(make_record(old), make_record(new))
    assert judgement.verdict == Verdict.WORSE
    assert judgement.detail == "of b 2.20, it was 2.00; 1 row, paired; margin 0.1"
