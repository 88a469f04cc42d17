from dataclasses import replace
from random import Random
from statistics import fmean

import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from tunegrid.grid.tasks import QA, SA, SUM, Problem
from tunegrid.run.metrics import (
    METRICS,
    ROUGE_TYPES,
    Metrics,
    classification_scores,
    needs_bertscore,
    normalized,
    rouge_examples,
    sentence_lines,
    squad_examples,
    token_f1,
)


def scored(examples, references, texts):
    """Scores over all rows from a function that scores each row."""
    return {name: fmean(points) for name, points in examples(references, texts).items()}


# SQuAD v1.1


def test_case_punctuation_articles_and_spaces_do_not_count():
    assert normalized("The  Cat's a-sat, an' THE end.") == "cats asat end"
    assert normalized("another theatre a day") == "another theatre day"  # articles are whole words
    assert squad_examples([["red  car"], ["red car"]], ["the Red car.", "red cars"])["exact_match"] == [100.0, 0.0]


def test_f1_is_over_shared_words():
    assert token_f1("red car", "red bike") == 0.5  # precision 1/2, recall 1/2
    assert token_f1("red car", "red") == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert token_f1("red red car", "red car") == 0.8  # precision 2/3, recall 1


@pytest.mark.parametrize(
    ("references", "texts", "em", "f1"),
    [
        ([["the red car", "a car"]], ["car"], 100, 100),  # the best of several answers
        ([["dover"], ["anna reed"]], ["dover", "anna reed"], 100, 100),
        ([["dover"], ["anna reed"]], ["upton", ""], 0, 0),
        (
            [["dover"], ["anna reed"], ["1950"], ["red bike"]],
            ["dover", "anna", "1951", "red car"],
            25,
            25 * (1 + 2 / 3 + 1 / 2),
        ),
    ],
)
def test_squad_is_the_mean_over_questions(references, texts, em, f1):
    assert scored(squad_examples, references, texts) == pytest.approx({"exact_match": em, "f1": f1})


# Classification


def test_classification_by_hand():
    scores = classification_scores([1, 1, 1, 0, 0], [1, 1, 0, 0, 1], 2)
    assert scores == pytest.approx(
        {
            "accuracy": 60.0,
            "precision_1": 200 / 3,
            "recall_1": 200 / 3,
            "f1_1": 200 / 3,
            "precision_0": 50.0,
            "recall_0": 50.0,
            "f1_0": 50.0,
            "f1_macro": (200 / 3 + 50) / 2,
        }
    )


def test_a_class_nobody_predicted_scores_0():
    scores = classification_scores([1, 0], [1, 1], 2)
    assert (scores["precision_0"], scores["recall_0"], scores["f1_0"]) == (0.0, 0.0, 0.0)
    assert scores["f1_macro"] == pytest.approx(100 / 3)  # class 1: precision 1/2, recall 1
    assert classification_scores([0, 1], [0, 1], 4)["f1_macro"] == 50.0  # nor one that no row has


def test_three_classes_by_hand():
    scores = classification_scores([0, 0, 1, 2, 2], [0, 1, 1, 2, 0], 3)
    assert scores["accuracy"] == 60.0
    assert [scores[f"precision_{label}"] for label in range(3)] == [50.0, 50.0, 100.0]
    assert [scores[f"recall_{label}"] for label in range(3)] == [50.0, 100.0, 50.0]
    assert [scores[f"f1_{label}"] for label in range(3)] == pytest.approx([50.0, 200 / 3, 200 / 3])
    assert scores["f1_macro"] == pytest.approx((50 + 2 * 200 / 3) / 3)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_classification_equals_scikit_learn(seed, count):
    rng = Random(seed)
    truth, guess = ([rng.randrange(count) for _ in range(57)] for _ in range(2))
    wanted = {"accuracy": accuracy_score(truth, guess), "f1_macro": f1_score(truth, guess, average="macro")}
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        wanted |= {f"{name}_{label}": value for label, value in enumerate(score(truth, guess, average=None))}
    assert classification_scores(truth, guess, count) == pytest.approx({name: 100 * value for name, value in wanted.items()})


# ROUGE


@pytest.mark.parametrize(
    ("reference", "text", "points"),
    [
        # 6 words each, 5 of them shared; of 5 pairs "the cat", "on the", "the mat"; longest common subsequence without "sat"
        ("the cat sat on the mat", "the cat lay on the mat", (500 / 6, 60, 500 / 6)),
        ("the cats jumped", "the cat jumping", (100, 100, 100)),  # stems
        ("dover bridge falls", "dover bridge falls", (100, 100, 100)),
        ("dover bridge falls", "anna sings", (0, 0, 0)),
        ("dover bridge falls", "", (0, 0, 0)),
    ],
)
def test_rouge_by_hand(reference, text, points):
    one, two, longest = points
    wanted = {"rouge1": one, "rouge2": two, "rougeL": longest, "rougeLsum": longest}
    assert scored(rouge_examples, [reference], [text]) == pytest.approx(wanted)


def test_generated_sentences_become_lines():
    assert sentence_lines(" fire hits town .  police come ! why ? ") == "fire hits town .\npolice come !\nwhy ?"
    assert sentence_lines("it cost 2.50 pounds") == "it cost 2.50 pounds"


def test_rouge_lsum_matches_generated_sentences_in_any_order():
    rows = [{"highlights": "fire hits dover .\npolice arrest anna ."}]
    scores = METRICS[Problem.GENERATE](Metrics(), SUM, rows, ["police arrest anna . fire hits dover ."]).scores
    assert scores["rougeLsum"] == 100.0
    assert scores["rougeL"] == 50.0  # in one sequence only one of the two lines can match


def test_each_row_keeps_its_own_points():
    result = METRICS[Problem.CLASSIFY](Metrics(), SA, [{"label": 1}, {"label": 0}, {"label": 1}], [1, 1, 1])
    assert result.examples == {"accuracy": [100.0, 0.0, 100.0]}
    rows = [{"id": n, "answers": {"text": ["red car"], "answer_start": [0]}} for n in "ab"]
    result = METRICS[Problem.EXTRACT](Metrics(), QA, rows, ["red", "red car"])
    assert result.examples["exact_match"] == [0.0, 100.0]
    assert result.examples["f1"] == pytest.approx([200 / 3, 100.0])
    result = METRICS[Problem.GENERATE](Metrics(), SUM, [{"highlights": "a fire"}, {"highlights": "a flood"}], ["a fire", ""])
    assert result.examples == {name: [100.0, 0.0] for name in ROUGE_TYPES}
    assert result.scores["rouge1"] == 50.0


class Perfect:
    """A BERTScore that is always 100."""

    name = "perfect"

    def examples(self, references, candidates):
        return {"bertscore_f1": [100.0] * len(references)}


def test_bertscore_is_computed_only_for_a_task_that_is_held_to_it():
    metrics, rows = Metrics(bert_scorer=Perfect()), [{"highlights": "a fire"}]
    rouge_only = replace(SUM, bounded_scores=ROUGE_TYPES)
    assert (needs_bertscore(SUM), needs_bertscore(rouge_only), needs_bertscore(QA)) == (True, False, False)
    whole, fewer = (METRICS[Problem.GENERATE](metrics, task, rows, ["a fire"]) for task in (SUM, rouge_only))
    assert (set(whole.scores), set(fewer.scores)) == ({*ROUGE_TYPES, "bertscore_f1"}, set(ROUGE_TYPES))
    assert whole.sources == {"rouge": "rouge_score", "bertscore": "built-in, perfect"}
    assert fewer.sources == {"rouge": "rouge_score"}
