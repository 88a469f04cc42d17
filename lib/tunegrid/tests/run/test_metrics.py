from random import Random
from statistics import fmean

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.run.build import load_bert_scorer
from tunegrid.run.metrics import (
    classification_scores,
    rouge_examples,
    simplify,
    squad_examples,
)


def scored(examples, references, texts):
    """Scores over all rows from a function that scores each row."""
    return {name: fmean(points) for name, points in examples(references, texts).items()}


# SQuAD v1.1


def test_case_punctuation_articles_and_spaces_do_not_count():
    assert simplify("The  Cat's a-sat, an' THE end.") == "cats asat end"
    assert simplify("another theatre a day") == "another theatre day"  # articles are whole words
    assert squad_examples([["red  car"], ["red car"]], ["the Red car.", "red cars"])[
        "exact_match"
    ] == [100.0, 0.0]


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


@pytest.mark.parametrize("count", [2, 3, 5])
def test_classification_equals_scikit_learn(count):
    rng = Random(count)
    truth = rng.choices(range(count), k=57)
    guess = rng.choices(range(count), k=57)
    wanted = {
        "accuracy": accuracy_score(truth, guess),
        "f1_macro": f1_score(truth, guess, average="macro"),
    }
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        wanted |= {
            f"{name}_{label}": value
            for label, value in enumerate(score(truth, guess, average=None))
        }
    assert classification_scores(truth, guess, count) == pytest.approx(
        {name: 100 * value for name, value in wanted.items()}
    )


# ROUGE


@pytest.mark.parametrize(
    ("reference", "text", "points"),
    [
        # 6 words each, 5 of them shared; of 5 pairs "the cat", "on the", "the mat"; longest common
        # subsequence without "sat"
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


# test_bertscore


@pytest.fixture(scope="module")
def scorer():
    torch.set_num_threads(1)
    return load_bert_scorer(QUICK_PROFILE)


NAMES = ["bertscore_precision", "bertscore_recall", "bertscore_f1"]
# Longer than the encoder's window of 256
LONG = " ".join(["police arrest anna reed in upton ."] * 60)
# Points of bert_score 0.3.13 on the micro BERT's layer 2 with a window of 256: precision, recall,
# F1.
BERT_SCORES = {
    ("fire hits dover bridge .", "flood closes dover bridge ."): (94.5853, 94.5853, 94.5853),
    ("Étienne opens café 日本 ☃ .", "etienne closes cafe ☃ !"): (92.1114, 89.5509, 90.8131),
    ("☃ 日", "fire hits ☃"): (52.3770, 58.4577, 55.2505),
    ("anna reed missing .", "police arrest anna reed in upton and carry her away ."): (
        46.0535,
        65.2886,
        54.0096,
    ),
    (f"{LONG} fire hits dover bridge .", "flood closes bridge ."): (56.3773, 40.7702, 47.3201),
    ("fire hits dover bridge .", "fire hits dover bridge ."): (100.0, 100.0, 100.0),
    ("fire hits dover bridge .", ""): (0.0, 0.0, 0.0),
    ("", "fire hits"): (0.0, 0.0, 0.0),
    ("", ""): (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("texts", BERT_SCORES, ids=lambda texts: texts[0][:12])
def test_scores_are_those_of_the_bert_score_package(scorer, texts):
    reference, candidate = texts
    points = scorer.examples([reference], [candidate])
    # 1e-4 of 1
    assert [points[name][0] for name in NAMES] == pytest.approx(BERT_SCORES[texts], abs=1e-2)
