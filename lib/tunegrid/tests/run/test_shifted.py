"""Scores on changed rows: which are asked anew, and that a model which ignores its input is caught. No cell is trained."""

from dataclasses import replace

import pytest
from tunegrid.data.shifts import SHIFTS
from tunegrid.results.shifted import objections, shifted_record
from tunegrid.run.shifted import ROWS, follows, sampled, shifted

from tunegrid.codecs.base import Prediction
from tunegrid.grid.tasks import QA, SA, SUM, Shift
from tunegrid.record.parts import EvaluationRecord
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.metrics import METRICS, Metrics
from tunegrid.tests.small import codec_for, rows_of

METRIC = Metrics()
PART = EvaluationRecord(seconds=None, loss=None, batch=None, metric_sources={})
TURNING = [shift for shift in SHIFTS if shift.turns]
REVIEWS = rows_of("amazon_polarity/train")[:60]


class Model:
    """Answers by a function of the row, and notes how many rows it was asked each time."""

    def __init__(self, task, answer):
        self.task, self.answer, self.asked = task, answer, []

    def __call__(self, rows):
        self.asked.append(len(rows))
        answers = [self.answer(row) for row in rows]
        scored = METRICS[self.task.problem](METRIC, self.task, rows, answers)
        given = {"part": PART, "rows": rows, "features": [], "outputs": []}
        predictions = [Prediction(value=answer) for answer in answers]
        return Evaluation(**given, scores=scored.scores, examples=scored.examples, predictions=predictions)


def told(cell, task, rows, answer, shifts=SHIFTS):
    return shifted(codec_for(cell), rows, Model(task, answer), shifts)


def test_a_model_that_ignores_its_input_loses_nothing_and_is_caught_by_the_rows_that_turn():
    """Of 60 reviews n are positive: always "positive" is right on these, on none of their twins, and alike on every shift."""
    positive = sum(row["label"] for row in REVIEWS)
    points = told("bert_sa_sft", SA, REVIEWS, lambda row: 1)
    part = shifted_record(points, None)
    assert {shift.change.value for shift in part.shifts.values()} == {0.0}
    negated = part.contrasts["negated"]
    assert (negated.pairs, negated.right, negated.both) == (60, positive, 0)
    [said] = objections(part)
    assert said.startswith(
        f"shift negated turns the right answer, and of {positive} rows that are answered rightly, only 0 twins"
    )


@pytest.mark.parametrize(
    ("cell", "task", "file", "constant"),
    [
        ("gpt2_qa_sft", QA, "squad/validation", lambda row: "september 1924"),
        ("t5_sum_sft", SUM, "cnn_dailymail/test", lambda row: "irene gibson saves pony ."),
    ],
)
def test_so_is_one_that_answers_or_summarizes_without_its_input(cell, task, file, constant):
    points = told(cell, task, rows_of(file)[:40], constant, TURNING)
    [contrast] = points.contrasts.values()
    assert len(contrast.twin) > 10
    assert not any(right and twin for right, twin in zip(contrast.right, contrast.twin, strict=True))


@pytest.mark.parametrize(
    ("cell", "task", "file"),
    [
        ("bert_sa_sft", SA, "amazon_polarity/train"),
        ("gpt2_qa_sft", QA, "squad/validation"),
        ("t5_sum_sft", SUM, "cnn_dailymail/test"),
    ],
)
def test_one_that_is_always_right_follows_every_turn_and_meets_no_objection(cell, task, file):
    def right(row):
        target = row[task.target]
        return target["text"][0] if isinstance(target, dict) else target

    points = told(cell, task, rows_of(file)[:40], right)
    assert all(all(contrast.right) and all(contrast.twin) for contrast in points.contrasts.values())
    assert len(points.contrasts) == 1
    assert list(objections(shifted_record(points, None))) == []


def test_what_a_tokenizer_ignores_must_cost_nothing():
    """BERT's tokenizer knows no case: all rows are asked again, and one that answers otherwise is named."""
    loud = next(shift for shift in SHIFTS if shift.id == "upper")
    points = told("bert_sa_sft", SA, REVIEWS, lambda row: row["label"] if row["content"].islower() else 0, [loud])
    shift = points.shifts["upper"]
    assert (shift.changed, shift.read) == (60, 0)
    assert list(objections(shifted_record(points, None))) == [
        "shift upper changes no token that the model reads, and its points are others"
    ]


def test_only_rows_that_change_are_asked_anew():
    """Two of four reviews say "not": they are asked, and the others keep their points."""
    texts = ("i do not like it .", "i like it .", "it is not good .", "good .")
    rows = [{"label": 1, "title": "t", "content": text} for text in texts]
    model = Model(SA, lambda row: int("n't" not in row["content"]))
    points = shifted(codec_for("gpt2_sa_sft"), rows, model, [one for one in SHIFTS if one.id in ("contracted", "renamed")])
    assert model.asked == [4, 2, 4]  # as they are, contracted, and as they are again
    assert points.shifts["contracted"].points == [0.0, 100.0, 0.0, 100.0]
    assert list(points.shifts) == ["contracted"]  # no review has a name: a shift that changes nothing costs not 0


def test_rows_that_are_scored_otherwise_without_a_change_are_objected_to():
    answers = iter([1, 1, 0, 1])
    points = told("bert_sa_sft", SA, REVIEWS[:2], lambda row: next(answers), [])
    assert list(objections(shifted_record(points, None))) == [
        "scored again without any change, rows have other points: drops cannot be told from chance"
    ]


def test_of_many_rows_some_are_taken_the_same_for_every_cell():
    rows = [{"n": number} for number in range(ROWS + 50)]
    assert sampled(rows) == sampled(rows) == sorted(sampled(rows), key=lambda row: row["n"])
    assert (len(sampled(rows)), len(sampled(rows[:9]))) == (ROWS, 9)


def test_a_users_shift_is_scored_on_the_problems_that_it_is_for():
    def exclaimed(task, row, rng):
        return dict(row) | {"title": f"{row['title']} !"}

    loud = Shift(id="loud", meaning="!", change=exclaimed, problems=(SA.problem,))
    assert list(told("gpt2_sa_sft", SA, REVIEWS, lambda row: 1, [loud]).shifts) == ["loud"]
    elsewhere = replace(loud, problems=(QA.problem,))
    assert list(told("gpt2_sa_sft", SA, REVIEWS, lambda row: 1, [elsewhere]).shifts) == []


def test_a_summary_follows_its_article_by_the_words_that_differ():
    old, new = {"highlights": "ann hurt ."}, {"highlights": "bob hurt ."}
    assert follows(SUM, old, new, "bob hurt")
    assert not follows(SUM, old, new, "ann and bob hurt")
    assert not follows(SUM, old, new, "somebody hurt")
    assert follows(SUM, new, old, "ann is hurt")
