"""Asking, and what becomes of the answers: kept beside a run, reduced, shown, and held to another
run's.
"""

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
PART = {
    "question": "-",
    "figures": {
        "loss": Figure(better="lower", margin=0.1, shown=".2f"),
        "count": Figure(shown=".0f"),
    },
}


def make_lines(*numbers, weight=1.0):
    rows = [f"r{index}" for index in range(len(numbers))]
    losses = tidy("loss", list(numbers), part="a", row=rows, weight=weight)
    return pd.concat([losses, tidy("count", float(len(rows)))])


def record(frame, seed=0, losses=MEASURED["training"]["losses"]):
    file = examples.write_columns("figures", frame.assign(instrument="own"))
    training = MEASURED["training"] | {"losses": losses}
    return replace(
        complete("bert_sa_sft", seeds=make_seeds(seed), training=training),
        instruments={"own": InstrumentRecord(**PART, file=file)},
    )


class Question(Instrument):
    id = "own"
    question = "why?"
    figures = PART["figures"]

    def __init__(self, answer):
        self.answer = answer

    def measure(self, cell, before):
        assert not torch.is_grad_enabled()
        assert not cell.model.training
        torch.rand(1)
        return self.answer()


def failing(error):
    def fail():
        raise error

    return Question(fail)


@pytest.mark.parametrize(
    ("question", "objections", "note"),
    [
        (Question(lambda: make_lines(1.0)), [], ""),
        (failing(NotAskedError("no such base")), [], "no such base"),
        (
            failing(ZeroDivisionError("by 0")),
            ["own: ZeroDivisionError: by 0"],
            "ZeroDivisionError: by 0",
        ),
        (
            Question(lambda: make_lines(1.0).drop(columns="note")),
            ["own: TypeError: its frame has no column 'note'; make it of lines of tidy()"],
            None,
        ),
        (
            Question(lambda: "?"),
            ["own: TypeError: measure() gave no frame; give lines of tidy()"],
            None,
        ),
        (
            Question(lambda: tidy("guess", 1.0)),
            ["own: ValueError: it measures 'guess', which is not among its figures"],
            None,
        ),
    ],
)
def test_whatever_a_question_raises_is_kept_and_nothing_is_disturbed(question, objections, note):
    cell = asked_cell(quick_cell("bert_sa_sft"))
    cell.model.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    questions = Questions([question], cell)
    questions.before()
    answers = questions.after(Evaluation(**dict.fromkeys(Evaluation.__annotations__)))
    assert torch.equal(torch.rand(1), expected)
    assert cell.model.training
    assert answers.objections == objections
    frame = load_frame([replace(complete("bert_sa_sft"), instruments=answers.records)], None)
    assert note is None or frame.note.tolist()[0] == note


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
def test_an_instrument_whose_answers_no_record_could_hold_is_refused(figures, fault):
    question = Question(None)
    check_instrument(question)
    question.figures = figures
    with pytest.raises(InputError, match=f"instrument 'own': {re.escape(fault)}"):
        check_instrument(question)


def test_means_are_over_rows_by_weight_then_over_seeds_as_worked_out_by_hand():
    records = [
        record(make_lines(1.0, 3.0, weight=[3.0, 1.0])),
        record(make_lines(2.0, 2.0, 5.0), seed=1),
    ]
    assert [from_json(to_json(one)) for one in records] == records
    [table] = instrument_sections(records, None)
    assert table.columns == ["cell", "part", "loss", "count"]
    cell, part, loss, _ = table.cells[0]
    assert cell == "bert_sa_sft"
    assert part == "a"
    assert loss.split()[0] == f"{(1.5 + 3.0) / 2:.2f}"
    # 12.706 sd / 2**0.5
    interval = f"({2.5 - 6.353:.0f} {2.5 + 6.353:.0f})"
    assert table.cells[1] == ["bert_sa_sft", "", "-", f"{2.5:.0f} {interval}"]


def judged(old, new):
    return [one for one in gate(Run.make(old), Run.make(new)) if one.kind == "instruments"]


ROWS = [0.1 * (index % 7) for index in range(40)]
OTHER = [0.9 * loss for loss in MEASURED["training"]["losses"]]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0.0, Verdict.SAME), (0.05, Verdict.SAME), (0.3, Verdict.WORSE), (-0.3, Verdict.BETTER)],
)
def test_one_training_pairs_row_by_row_and_a_change_below_the_margin_is_the_same(change, verdict):
    changed = [value + change for value in ROWS]
    [judgement] = judged([record(make_lines(*ROWS))], [record(make_lines(*changed))])
    assert judgement.verdict == verdict
    assert judgement.quantity == "own/loss"
    assert judgement.effect == pytest.approx(change)
    assert "40 rows, paired; margin 0.1" in judgement.detail


def test_figures_of_other_trainings_of_other_rows_or_of_none_are_not_compared_and_the_gravest_is_told():
    old = [record(make_lines(*ROWS))]
    for new, reason in (
        (record(make_lines(*ROWS), losses=OTHER), "different trainings"),
        (record(make_lines(*ROWS[:30])), "lacks figures of some rows"),
        (complete("bert_sa_sft"), "lacks figures of some rows"),
        (record(make_lines(*ROWS[:39], float("nan"))), "lacks figures of some rows"),
    ):
        [judgement] = judged(old, [new])
        assert judgement.verdict == Verdict.NOT_COMPARABLE
        assert judgement.effect is None
        assert reason in judgement.detail
    before = pd.concat([tidy("loss", 1.0, part="a"), tidy("loss", 2.0, part="b")])
    after = pd.concat([tidy("loss", 0.8, part="a"), tidy("loss", 2.2, part="b")])
    [judgement] = judged([record(before)], [record(after)])
    assert judgement.verdict == Verdict.WORSE
    assert judgement.detail == "of b 2.20, it was 2.00; 1 row, paired; margin 0.1"
