"""Shifts, one by one and by hand, and that a model which ignores its input is caught.

No cell is trained.
"""

from random import Random

import pytest

from tunegrid.codecs.base import Prediction
from tunegrid.grid.cells import STUDY
from tunegrid.grid.tasks import QA, SA, SUM
from tunegrid.instruments.robustness import (
    INSTRUMENT,
    SHIFTS,
    contracted,
    distracted,
    negated,
    shifted_rows,
)
from tunegrid.record.record import EvaluationRecord
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.metrics import METRICS, Metrics
from tunegrid.tests.instruments.asking import asked_cell, values
from tunegrid.tests.small import quick_cell, read_rows

FILES = {"sa": "amazon_polarity/train", "qa": "squad/validation", "sum": "cnn_dailymail/test"}
REVIEWS = read_rows(FILES["sa"])[:60]


def review(content, label=1):
    return {"label": label, "title": "my lamp", "content": content}


def question(context, asked, answer):
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"id": "1", "title": "t", "context": context, "question": asked, "answers": answers}


# What shifts change


@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.id)
def test_the_target_of_every_quick_row_is_right_afterwards(shift):
    """`shifted_rows` checks each row as data is checked: an answer stands at its start, a label
    exists.
    """
    for task in (SA, QA, SUM):
        rows = read_rows(FILES[task.id])[:80] if task.problem in shift.problems else []
        new = shifted_rows(task, rows, shift)
        assert shifted_rows(task, rows[:20], shift) == new[:20]  # a row is always changed alike
        for old_row, new_row in zip(rows, new, strict=True):
            old_target = old_row[task.target]
            new_target = new_row[task.target]
            if task is QA:
                old_target = old_target["text"]
                new_target = new_target["text"]
            assert (old_target != new_target) == (shift.turns and old_row != new_row)


BUY = review("overall i would buy it again .", 1)
NOT_BUY = review("overall i would not buy it again .", 0)
LONG = "in short it is not , i must say , a weak watch ."
SHORT = "in short it is , i must say , a weak watch ."
LOWER = "the old mill opened in 1931 ."
UPPER = "The old mill opened in 1931."


def mill(context):
    return question(context, "when did the old mill open ?", "1931")


@pytest.mark.parametrize(
    ("task", "change", "row", "after"),
    [
        (
            SA,
            contracted,
            review("i would not , really , buy it"),
            review("i wouldn't , really , buy it"),
        ),
        (SA, contracted, review("It Can not be"), review("It Can't be")),
        (SA, contracted, review("I WILL NOT GO"), review("I WON'T GO")),
        (SA, contracted, review("i can not tie a knot"), review("i can't tie a knot")),
        # a sentence about another, and the answer follows
        (QA, distracted, mill(LOWER), mill(f"{LOWER} when did the new mill open : may 1951 .")),
        (QA, distracted, mill(UPPER), mill(f"{UPPER} When did the new mill open : may 1951.")),
        # a verdict turns, and its label
        (SA, negated, BUY, NOT_BUY),
        (SA, negated, NOT_BUY, BUY),
        (SA, negated, review(LONG, 1), review(SHORT, 0)),
        (
            SA,
            negated,
            review("IN SHORT IT DID NOT LET ME DOWN .", 1),
            review("IN SHORT IT DID LET ME DOWN .", 0),
        ),
        (SA, negated, review("it is not good ."), review("it is not good .")),  # no known verdict
    ],
)
def test_a_shift_by_hand(task, change, row, after):
    assert change(task, row, Random(0)) == after


# What models score on them


def measured(cell_id, rows, answer, grid=STUDY):
    """Figures of a model that answers by a function of the row, and how many rows it was asked each
    time.
    """
    counts = []

    def evaluate(model, rows):
        counts.append(len(rows))
        answers = [answer(row) for row in rows]
        cell = quick_cell(cell_id)
        scored = METRICS[cell.task.problem](Metrics(), cell.task, rows, answers)
        part = EvaluationRecord(seconds=None, loss=None, batch=None, metric_sources={})
        known = {"part": part, "rows": rows, "features": [], "outputs": []}
        predictions = [Prediction(value=one) for one in answers]
        return Evaluation(
            **known, scores=scored.scores, examples=scored.examples, predictions=predictions
        )

    asked = asked_cell(quick_cell(cell_id), grid, evaluate=evaluate)
    vars(asked)["test_rows"] = rows
    return INSTRUMENT.measure(asked, None), counts


def test_a_model_that_ignores_its_input_loses_nothing_and_is_caught_by_the_rows_that_turn():
    """Of 60 reviews n are positive: always "positive" is right on these, on none of their twins,
    and alike on every shift.
    """
    positive = sum(row["label"] for row in REVIEWS)
    figures, _ = measured("bert_sa_sft", REVIEWS, lambda row: 1)
    assert set(values(figures, "change", "typos5")) == {0.0}
    assert values(figures, "right", "negated").count(100.0) == positive
    assert values(figures, "turned", "negated") == [0.0] * positive
    [sentence] = INSTRUMENT.objections(figures)
    assert sentence.startswith(
        f"shift negated changes the right answer, but only 0 % of the twins of {positive} "
    )
    figures.loc[figures.figure == "cut short", "value"] = 1.0
    assert list(INSTRUMENT.objections(figures)) == []
