from random import Random

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.run.build import load_bert_scorer
from tunegrid.run.metrics import (
    classification_scores,
    rouge_examples,
    simplify,
    squad_examples,
)

# SQuAD v1.1


def test_case_punctuation_articles_and_spaces_do_not_count():
    assert simplify("The  Cat's a-sat, an' THE end.") == "cats asat end"
    assert simplify("another theatre a day") == "another theatre day"  # articles are whole words


def test_squad_takes_the_best_of_several_answers_and_counts_shared_words():
    truths = [
        ["the red car", "a car"],
        ["red  car"],
        ["anna reed"],
        ["red bike"],
        ["cars"],
        ["reed"],
    ]
    points = squad_examples(truths, ["car", "The Red car.", "anna", "red car", "car", ""])
    assert points["exact_match"] == [100, 100, 0, 0, 0, 0]
    assert points["f1"] == pytest.approx([100, 100, 200 / 3, 50, 0, 0])


# Classification


@pytest.mark.parametrize("count", [2, 3, 5])
def test_classification_equals_scikit_learn(count):
    rng = Random(count)
    truth = rng.choices(range(count), k=57)
    guess = rng.choices(range(count), k=57)
    precisions, recalls, f1s, _ = precision_recall_fscore_support(truth, guess)
    shares = {
        "accuracy": accuracy_score(truth, guess),
        "f1_macro": f1_score(truth, guess, average="macro"),
    }
    for label in range(count):
        shares[f"precision_{label}"] = precisions[label]
        shares[f"recall_{label}"] = recalls[label]
        shares[f"f1_{label}"] = f1s[label]
    points = {name: 100 * share for name, share in shares.items()}
    assert classification_scores(truth, guess, count) == pytest.approx(points)


# ROUGE


@pytest.mark.parametrize(
    ("reference", "text", "rouge1", "rouge2", "rouge_l"),
    [
        # 6 words each, 5 of them shared; of 5 pairs "the cat", "on the", "the mat"; longest common
        # subsequence without "sat"
        ("the cat sat on the mat", "the cat lay on the mat", 500 / 6, 60, 500 / 6),
        ("the cats jumped", "the cat jumping", 100, 100, 100),  # stems
        ("dover bridge falls", "dover bridge falls", 100, 100, 100),
        ("dover bridge falls", "anna sings", 0, 0, 0),
        ("dover bridge falls", "", 0, 0, 0),
    ],
)
def test_rouge_by_hand(reference, text, rouge1, rouge2, rouge_l):
    points = {name: row[0] for name, row in rouge_examples([reference], [text]).items()}
    expected = {"rouge1": rouge1, "rouge2": rouge2, "rougeL": rouge_l, "rougeLsum": rouge_l}
    assert points == pytest.approx(expected)


# BERTScore


@pytest.fixture(scope="module")
def scorer():
    torch.set_num_threads(1)
    return load_bert_scorer(QUICK_PROFILE)


# Longer than the encoder's window of 256
LONG = " ".join(["police arrest anna reed in upton ."] * 60)


# Points of bert_score 0.3.13 on the micro BERT's layer 2 with a window of 256
@pytest.mark.parametrize(
    ("reference", "candidate", "precision", "recall", "f1"),
    [
        ("fire hits dover bridge .", "flood closes dover bridge .", 94.5853, 94.5853, 94.5853),
        ("Étienne opens café 日本 ☃ .", "etienne closes cafe ☃ !", 92.1114, 89.5509, 90.8131),
        ("☃ 日", "fire hits ☃", 52.3770, 58.4577, 55.2505),
        (
            "anna reed missing .",
            "police arrest anna reed in upton and carry her away .",
            46.0535,
            65.2886,
            54.0096,
        ),
        (f"{LONG} fire hits dover bridge .", "flood closes bridge .", 56.3773, 40.7702, 47.3201),
        ("fire hits dover bridge .", "fire hits dover bridge .", 100, 100, 100),
        ("fire hits dover bridge .", "", 0, 0, 0),
        ("", "fire hits", 0, 0, 0),
        ("", "", 0, 0, 0),
    ],
    ids=lambda value: str(value)[:12],
)
def test_scores_are_those_of_the_bert_score_package(
    scorer, reference, candidate, precision, recall, f1
):
    points = scorer.examples([reference], [candidate])
    tolerance = 1e-2  # 1e-4 of 1
    assert points["bertscore_precision"] == pytest.approx([precision], abs=tolerance)
    assert points["bertscore_recall"] == pytest.approx([recall], abs=tolerance)
    assert points["bertscore_f1"] == pytest.approx([f1], abs=tolerance)
