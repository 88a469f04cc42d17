import pytest
import torch

from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.run.build import load_bert_scorer
from tunegrid.run.metrics import BATCH, Embedded, greedy_match, means


@pytest.fixture(scope="module")
def scorer():
    torch.set_num_threads(1)
    return load_bert_scorer(QUICK_PROFILE)


def scored(scorer, references, candidates):
    return means(scorer.examples(references, candidates))


NAMES = ["bertscore_precision", "bertscore_recall", "bertscore_f1"]
EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


def text(*vectors, framed=0):
    """A text of these tokens; the first `framed` of them do not count."""
    counted = torch.tensor([index >= framed for index in range(len(vectors))], dtype=torch.bool)
    return Embedded(vectors=torch.tensor(vectors).reshape(len(vectors), 2), counted=counted)


def test_greedy_match_by_hand():
    # candidate east; reference north and between. Cosines 0 and 0.6: precision 0.6, recall (0 + 0.6) / 2.
    matched = greedy_match(text(EAST), text(NORTH, BETWEEN))
    assert matched == pytest.approx((0.6, 0.3, 0.4))  # F1 = 2 * 0.6 * 0.3 / 0.9


def test_greedy_match_takes_each_tokens_best_partner():
    matched = greedy_match(text(EAST, NORTH), text(NORTH, EAST, NORTH))
    assert matched == pytest.approx((1.0, 1.0, 1.0))


def test_swapping_the_texts_swaps_precision_and_recall():
    one, other = text(EAST), text(NORTH, BETWEEN)
    assert greedy_match(other, one) == pytest.approx((0.3, 0.6, 0.4))


def test_nothing_matches_nothing():
    assert greedy_match(text(), text(EAST)) == (0.0, 0.0, 0.0)
    assert greedy_match(text(EAST), text(NORTH)) == (0.0, 0.0, 0.0)


def test_a_token_that_does_not_count_is_a_partner_all_the_same():
    # candidate [CLS] = north, and east, which counts; reference [CLS] = east, and north. East finds the reference's [CLS]: 1.
    assert greedy_match(text(NORTH, EAST, framed=1), text(EAST, NORTH, framed=1)) == pytest.approx((1.0, 1.0, 1.0))


LONG = " ".join(["police arrest anna reed in upton ."] * 60)  # longer than the encoder's window of 256
# Points of bert_score 0.3.13 on the micro BERT's layer 2 with a window of 256: precision, recall, F1.
BERT_SCORES = {
    ("fire hits dover bridge .", "flood closes dover bridge ."): (94.5853, 94.5853, 94.5853),
    ("Étienne opens café 日本 ☃ .", "etienne closes cafe ☃ !"): (92.1114, 89.5509, 90.8131),
    ("☃ 日", "fire hits ☃"): (52.3770, 58.4577, 55.2505),
    ("anna reed missing .", "police arrest anna reed in upton and carry her away ."): (46.0535, 65.2886, 54.0096),
    (f"{LONG} fire hits dover bridge .", "flood closes bridge ."): (56.3773, 40.7702, 47.3201),
    ("fire hits dover bridge .", ""): (0.0, 0.0, 0.0),
    ("", "fire hits"): (0.0, 0.0, 0.0),
    ("", ""): (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("texts", BERT_SCORES, ids=lambda texts: texts[0][:12])
def test_scores_are_those_of_the_bert_score_package(scorer, texts):
    reference, candidate = texts
    points = scorer.examples([reference], [candidate])
    assert [points[name][0] for name in sorted(points, key=NAMES.index)] == pytest.approx(
        BERT_SCORES[texts], abs=1e-2
    )  # 1e-4 of 1


def test_identical_texts_score_100(scorer):
    scores = scored(scorer, ["fire hits dover bridge ."], ["fire hits dover bridge ."])
    assert scores == pytest.approx(dict.fromkeys(("bertscore_precision", "bertscore_recall", "bertscore_f1"), 100.0), abs=1e-3)


def test_an_empty_candidate_scores_0(scorer):
    assert set(scored(scorer, ["fire hits dover bridge ."], [""]).values()) == {0.0}


def test_the_mean_is_over_examples(scorer):
    scores = scored(scorer, ["fire hits dover bridge .", "police arrest anna reed ."], ["fire hits dover bridge .", ""])
    assert scores["bertscore_f1"] == pytest.approx(50.0, abs=1e-3)


def test_f1_lies_between_precision_and_recall(scorer):
    scores = scored(scorer, ["fire hits dover bridge . police arrest anna reed ."], ["fire hits bridge ."])
    low, middle, high = sorted(scores.values())
    assert scores["bertscore_f1"] == middle
    assert low < middle < high


def test_padding_and_batching_change_nothing(scorer):
    references = ["fire hits dover bridge .", "police arrest anna reed in upton and carry her away ."] * BATCH
    candidates = ["flood closes bridge .", "anna reed missing ."] * BATCH
    alone = [scored(scorer, [r], [c])["bertscore_f1"] for r, c in list(zip(references, candidates, strict=True))[:2]]
    assert scored(scorer, references, candidates)["bertscore_f1"] == pytest.approx(sum(alone) / 2, abs=1e-3)


def test_the_encoder_is_named(scorer):
    assert scorer.name == "bert-micro"
