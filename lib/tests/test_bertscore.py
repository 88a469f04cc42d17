import pytest
import torch

from lib.grid.profiles import QUICK_PROFILE
from lib.run.bertscore import BATCH, greedy_match
from lib.run.build import load_bert_scorer
from lib.run.metrics import means


@pytest.fixture(scope="module")
def scorer():
    torch.set_num_threads(1)
    return load_bert_scorer(QUICK_PROFILE)


def scored(scorer, references, candidates):
    return means(scorer.examples(references, candidates))


EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


def test_greedy_match_by_hand():
    # candidate east; reference north and between. Cosines 0 and 0.6: precision 0.6, recall (0 + 0.6) / 2.
    matched = greedy_match(torch.tensor([EAST]), torch.tensor([NORTH, BETWEEN]))
    assert matched == pytest.approx((0.6, 0.3, 0.4))  # F1 = 2 * 0.6 * 0.3 / 0.9


def test_greedy_match_takes_each_tokens_best_partner():
    matched = greedy_match(torch.tensor([EAST, NORTH]), torch.tensor([NORTH, EAST, NORTH]))
    assert matched == pytest.approx((1.0, 1.0, 1.0))


def test_swapping_the_texts_swaps_precision_and_recall():
    one, other = torch.tensor([EAST]), torch.tensor([NORTH, BETWEEN])
    assert greedy_match(other, one) == pytest.approx((0.3, 0.6, 0.4))


def test_nothing_matches_nothing():
    assert greedy_match(torch.zeros(0, 2), torch.tensor([EAST])) == (0.0, 0.0, 0.0)
    assert greedy_match(torch.tensor([EAST]), torch.tensor([NORTH])) == (0.0, 0.0, 0.0)


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
