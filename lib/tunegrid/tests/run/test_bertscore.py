from statistics import fmean

import pytest
import torch

from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.run.build import load_bert_scorer
from tunegrid.run.metrics import BATCH, Embedded, greedy_match


@pytest.fixture(scope="module")
def scorer():
    torch.set_num_threads(1)
    return load_bert_scorer(QUICK_PROFILE)


NAMES = ["bertscore_precision", "bertscore_recall", "bertscore_f1"]
EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


def text(*vectors, framed=0):
    """A text of these tokens; the first `framed` of them do not count."""
    counted = torch.tensor([index >= framed for index in range(len(vectors))], dtype=torch.bool)
    return Embedded(vectors=torch.tensor(vectors).reshape(len(vectors), 2), counted=counted)


@pytest.mark.parametrize(
    ("candidate", "reference", "points"),
    [
        # Cosines 0 and 0.6: precision 0.6, recall (0 + 0.6) / 2, F1 = 2 * 0.6 * 0.3 / 0.9; and the other way round.
        (text(EAST), text(NORTH, BETWEEN), (0.6, 0.3, 0.4)),
        (text(NORTH, BETWEEN), text(EAST), (0.3, 0.6, 0.4)),
        (text(EAST, NORTH), text(NORTH, EAST, NORTH), (1.0, 1.0, 1.0)),  # each token's best partner
        (text(), text(EAST), (0.0, 0.0, 0.0)),
        (text(EAST), text(NORTH), (0.0, 0.0, 0.0)),
        # [CLS] = north and east, against [CLS] = east and north: [CLS] does not count, and is a partner all the same.
        (text(NORTH, EAST, framed=1), text(EAST, NORTH, framed=1), (1.0, 1.0, 1.0)),
    ],
)
def test_greedy_match_by_hand(candidate, reference, points):
    assert greedy_match(candidate, reference) == pytest.approx(points)


LONG = " ".join(["police arrest anna reed in upton ."] * 60)  # longer than the encoder's window of 256
# Points of bert_score 0.3.13 on the micro BERT's layer 2 with a window of 256: precision, recall, F1.
BERT_SCORES = {
    ("fire hits dover bridge .", "flood closes dover bridge ."): (94.5853, 94.5853, 94.5853),
    ("Étienne opens café 日本 ☃ .", "etienne closes cafe ☃ !"): (92.1114, 89.5509, 90.8131),
    ("☃ 日", "fire hits ☃"): (52.3770, 58.4577, 55.2505),
    ("anna reed missing .", "police arrest anna reed in upton and carry her away ."): (46.0535, 65.2886, 54.0096),
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
    assert [points[name][0] for name in NAMES] == pytest.approx(BERT_SCORES[texts], abs=1e-2)  # 1e-4 of 1


def test_padding_and_batching_change_nothing(scorer):
    references = ["fire hits dover bridge .", "police arrest anna reed in upton and carry her away ."] * BATCH
    candidates = ["flood closes bridge .", "anna reed missing ."] * BATCH
    alone = [scorer.examples(references[n : n + 1], candidates[n : n + 1])["bertscore_f1"][0] for n in (0, 1)]
    assert fmean(scorer.examples(references, candidates)["bertscore_f1"]) == pytest.approx(sum(alone) / 2, abs=1e-3)
