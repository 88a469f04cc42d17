"""Shifts, one by one and by hand, and that a model which ignores its input is caught.

No cell is trained.
"""

from random import Random

import pytest

from tunegrid.grid.tasks import QA, SA, SUM
from tunegrid.instruments.robustness import (
    INSTRUMENT,
    SHIFTS,
    contracted,
    distracted,
    negated,
    shifted_rows,
)
from tunegrid.tests.instruments.asking import asked_cell, values
from tunegrid.tests.small import evaluate_answers, quick_cell, read_rows

FILES = {"sa": "amazon_polarity/train", "qa": "squad/validation", "sum": "cnn_dailymail/test"}


def review(content, label=1):
    return {"label": label, "title": "my lamp", "content": content}


# Changes of rows


@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.id)
def test_the_target_of_every_quick_row_is_right_afterwards(shift):
    """`shifted_rows` checks each row as data is checked: an answer stands at its start, a label
    exists.
    """
    for task in (SA, QA, SUM):
        if task.problem not in shift.problems:
            continue
        rows = read_rows(FILES[task.id])[:80]
        new = shifted_rows(task, rows, shift)
        assert shifted_rows(task, rows[:20], shift) == new[:20]  # a row is always changed alike
        for old_row, new_row in zip(rows, new, strict=True):
            old_target = old_row[task.target]
            new_target = new_row[task.target]
            if task is QA:
                old_target = old_target["text"]
                new_target = new_target["text"]
            assert (old_target != new_target) == (shift.turns and old_row != new_row)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("i would not , really , buy it", "i wouldn't , really , buy it"),
        ("It Can not be", "It Can't be"),
        ("I WILL NOT GO", "I WON'T GO"),
        ("i can not tie a knot", "i can't tie a knot"),
    ],
)
def test_a_verb_and_its_not_are_contracted_in_their_case(content, expected):
    assert contracted(SA, review(content), Random(0)) == review(expected)


@pytest.mark.parametrize(
    ("context", "distraction"),
    [
        ("the old mill opened in 1931 .", " when did the new mill open : may 1951 ."),
        ("The old mill opened in 1931.", " When did the new mill open : may 1951."),
    ],
)
def test_a_distraction_is_a_sentence_about_another_with_its_answer(context, distraction):
    answers = {"text": ["1931"], "answer_start": [context.index("1931")]}
    row = {"context": context, "question": "when did the old mill open ?", "answers": answers}
    assert distracted(QA, row, Random(0)) == row | {"context": context + distraction}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            review("overall i would buy it again .", 1),
            review("overall i would not buy it again .", 0),
        ),
        (
            review("overall i would not buy it again .", 0),
            review("overall i would buy it again .", 1),
        ),
        (
            review("in short it is not , i must say , a weak watch .", 1),
            review("in short it is , i must say , a weak watch .", 0),
        ),
        (
            review("IN SHORT IT DID NOT LET ME DOWN .", 1),
            review("IN SHORT IT DID LET ME DOWN .", 0),
        ),
        (review("it is not good ."), review("it is not good .")),  # no known verdict
    ],
)
def test_a_verdict_turns_and_its_label(row, expected):
    assert negated(SA, row, Random(0)) == expected


# Scores of changed rows


def test_a_model_that_ignores_its_input_loses_nothing_and_is_caught_by_the_rows_that_turn():
    """Of 60 reviews n are positive: always "positive" is right on these, on none of their twins,
    and alike on every shift.
    """
    rows = read_rows(FILES["sa"])[:60]
    positive = sum(row["label"] for row in rows)

    def score(model, rows):
        return evaluate_answers("bert_sa_sft", rows, [1] * len(rows))

    figures = INSTRUMENT.measure(asked_cell(quick_cell("bert_sa_sft"), rows, score), None)
    assert set(values(figures, "change", "typos5")) == {0.0}
    assert values(figures, "right", "negated").count(100.0) == positive
    assert values(figures, "turned", "negated") == [0.0] * positive
    [sentence] = INSTRUMENT.objections(figures)
    assert sentence.startswith(
        f"shift negated changes the right answer, but only 0 % of the twins of {positive} "
    )
    figures.loc[figures.figure == "cut short", "value"] = 1.0
    assert list(INSTRUMENT.objections(figures)) == []
