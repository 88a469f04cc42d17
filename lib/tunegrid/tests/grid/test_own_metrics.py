"""A user's own metric: its range and direction, what it may be, and what is rejected."""

import evaluate
import pytest
from datasets import Features, Value

from tunegrid.errors import InputError
from tunegrid.grid.cells import study
from tunegrid.grid.metrics import OTHER_COLUMNS, Metric
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.run.metrics import Metrics, score_rows
from tunegrid.runs.examples import ALL_TEXTS, CONFIDENCE

ROWS = [{"label": label} for label in (0, 1, 1, 1)]
GUESSES = [0, 1, 1, 0]


def hits(predictions, references):
    return sum(map(int.__eq__, predictions, references)) / len(references)


class Hits(evaluate.Metric):
    """As a script has it that `evaluate.load` loads."""

    def _info(self):
        features = Features({"predictions": Value("int32"), "references": Value("int32")})
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions, references):
        return {"hits": hits(predictions, references)}


def own_points(value, **how):
    metric = Metric(name="own", function=lambda predictions, references: value, **how)
    return metric.points([0], [0])


def test_points_lie_between_the_worst_and_the_best_value_whichever_is_larger():
    assert own_points(0.25) == 25
    assert own_points(0.5, worst=-1, best=1) == 75
    assert own_points(0.1, worst=1, best=0) == 90  # an error rate
    assert own_points({"own": 30, "other": 1}, worst=0, best=100) == 30


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.5, "is 1.5, which is not between worst=0 and best=1"),
        (float("nan"), "is nan, which is not between"),
        ({"f1": 1.0}, "returned f1; give the metric the name of one of them"),
        (None, "returned None, which is no number"),
    ],
)
def test_a_value_that_is_no_number_of_the_range_is_one_sentence(value, words):
    with pytest.raises(InputError, match=words):
        own_points(value)


def test_an_error_of_the_function_is_named_with_its_line():
    metric = Metric(name="own", function=lambda predictions, references: 1 / 0)
    message = r"metric 'own' failed at test_own_metrics.py, line \d+: ZeroDivisionError"
    with pytest.raises(InputError, match=message):
        metric.points([0], [0])


def task_with(function, **how):
    grid = study()
    grid.add_metric("hits", function, task="sa", main=True, **how)
    return grid.cell("bert_sa_lora", QUICK_PROFILE).task


def scored(task):
    return score_rows(Metrics(own=task.metrics), task, ROWS, GUESSES)


def test_a_metric_that_evaluate_loads_scores_as_a_function_does():
    task = task_with(Hits())
    assert task.main_score == "hits"
    assert task.bounded_scores == ("accuracy", "f1_macro", "hits")
    result = scored(task)
    assert result.scores["hits"] == 75
    assert "hits" not in result.examples
    assert scored(task_with(hits)).scores["hits"] == 75


def test_a_metric_by_row_gives_each_row_points_and_their_mean_is_the_score():
    result = scored(task_with(hits, by_row=True))
    assert result.examples["hits"] == [100, 100, 100, 0]
    assert result.scores["hits"] == 75


@pytest.mark.parametrize(
    ("name", "function", "how", "words"),
    [
        ("accuracy", hits, {"task": "sa"}, "has a score 'accuracy' already"),
        ("own", hits, {"task": "none"}, "no task 'none', but sa, qa, sum; add the task first"),
        ("own", "accuracy", {"task": "sa"}, "'accuracy' is not a function"),
        ("own", Hits, {"task": "sa"}, "is not a function"),
        ("own", hits, {"task": "sa", "worst": 1}, "two different numbers"),
        ("My score", hits, {"task": "sa"}, "another name"),
        ("prediction", hits, {"task": "sa"}, "another name"),
    ],
)
def test_what_is_no_metric_is_rejected(name, function, how, words):
    with pytest.raises(InputError, match=words):
        study().add_metric(name, function, **how)


def test_no_score_has_the_name_of_another_column():
    assert set(OTHER_COLUMNS) == {*ALL_TEXTS, CONFIDENCE}
