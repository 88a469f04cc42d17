"""The study's claims beside runs: pairs that speak for, against, or say nothing, worked out by hand."""

import pytest

from tunegrid.results.claims import CLAIMS, STUDY, Answer, Claim, findings, judged
from tunegrid.results.compare import chance_of, entry_of
from tunegrid.results.files import read_records
from tunegrid.results.noise import Noise
from tunegrid.tests.records import trained

MARGINS = {"f1": 1.5, "other": 2.0}
PAIRS = [("t5_qa_sft", "bert_qa_sft"), ("t5_qa_sft", "gpt2_qa_sft")]


def beside(claim, **scores):
    """The claim beside runs of these scores by cell."""
    entries = {cell: entry_of([(record, STUDY) for record in trained(cell, *own)]) for cell, own in scores.items()}
    return judged(claim, entries, chance_of([*entries.values()], Noise()), MARGINS, read_records(STUDY))


def test_a_claim_holds_where_all_its_pairs_do():
    """Gaps of 10 and 20 with a standard error of the root of 2 and two degrees of freedom."""
    own = beside(Claim(text="-", pairs=PAIRS), t5_qa_sft=(90.0, 92.0), bert_qa_sft=(80.0, 82.0), gpt2_qa_sft=(70.0, 72.0))
    assert [side.gap.points for side in own.sides] == [10.0, 20.0]
    assert [side.p for side in own.sides] == pytest.approx([1 - 10 / (100 + 4) ** 0.5, 1 - 20 / (400 + 4) ** 0.5])  # .019, .005
    assert (own.answers, own.answer) == ([Answer.HOLDS, Answer.HOLDS], Answer.HOLDS)


def test_one_pair_that_speaks_against_it_is_enough():
    own = beside(Claim(text="-", pairs=PAIRS), t5_qa_sft=(60.0, 62.0), bert_qa_sft=(80.0, 82.0), gpt2_qa_sft=(40.0, 42.0))
    assert (own.answers, own.answer) == ([Answer.DOES_NOT, Answer.HOLDS], Answer.DOES_NOT)


def test_one_pair_that_cannot_be_told_leaves_the_claim_open():
    """A gap of 2 lies within noise: p is 1 - 2 / sqrt(4 + 4), 0.29."""
    own = beside(Claim(text="-", pairs=PAIRS), t5_qa_sft=(90.0, 92.0), bert_qa_sft=(88.0, 90.0), gpt2_qa_sft=(70.0, 72.0))
    assert (own.answers, own.answer) == ([Answer.CANNOT, Answer.HOLDS], Answer.CANNOT)


def test_pairs_of_a_claim_are_tested_together():
    """A gap of 7 has p 0.038 alone; beside a gap of 2, Holm takes it twice."""
    scores = {"t5_qa_sft": (90.0, 92.0), "bert_qa_sft": (83.0, 85.0), "gpt2_qa_sft": (88.0, 90.0)}
    assert beside(Claim(text="-", pairs=PAIRS[:1]), **scores).answers == [Answer.HOLDS]
    assert beside(Claim(text="-", pairs=PAIRS), **scores).answers == [Answer.CANNOT, Answer.CANNOT]


@pytest.mark.parametrize(
    ("scores", "answer"),
    [
        ((80.1, 80.12), Answer.HOLDS),  # 0.1 above, with an error of 0.014
        ((80.0, 82.0), Answer.CANNOT),  # 0.99 above, and the interval reaches beyond the margin of 1.5
        ((84.0, 86.0), Answer.CANNOT),  # 4.99 above, and the interval reaches within it
        ((92.0, 92.02), Answer.DOES_NOT),
    ],
)
def test_close_is_within_the_margin_with_the_whole_interval(scores, answer):
    own = beside(Claim(text="-", pairs=PAIRS[:1], close=True), t5_qa_sft=scores, bert_qa_sft=(80.0, 80.02))
    assert (own.sides[0].ends, own.answer) == ((-1.5, 1.5), answer)


def test_one_seed_without_known_noise_cannot_be_told():
    own = beside(Claim(text="-", pairs=PAIRS[:1]), t5_qa_sft=(99.0,), bert_qa_sft=(10.0,))
    assert (own.sides[0].gap, own.answer) == (None, Answer.CANNOT)
    assert own.sides[0].reason == "nobody knows by how much a seed moves sft or sft; --seeds 0-4 trains more"


def test_cells_that_did_not_run_are_named():
    own = beside(Claim(text="-", pairs=PAIRS), t5_qa_sft=(90.0, 92.0), bert_qa_sft=(80.0, 82.0))
    assert (own.answers, own.answer, own.missing) == ([Answer.HOLDS, Answer.CANNOT], Answer.CANNOT, ["gpt2_qa_sft"])


def test_the_studys_own_difference_stands_beside():
    """F1 66.75 and 62.58; the study printed no rougeLsum of BERT, so that rougeL stands for it: 25.52 and 24.52."""
    pairs = [("bert_qa_qlora", "bert_qa_sft"), ("bert_sum_sft", "bert_sum_lora"), ("t5_sum_sft", "t5_sum_lora")]
    assert [side.theirs for side in beside(Claim(text="-", pairs=pairs), t5_qa_sft=(1.0,)).sides] == pytest.approx(
        [4.17, 1.0, 0]
    )


def test_the_claims_are_about_these_cells():
    generation, close, t5 = CLAIMS
    assert len(generation.pairs) == len(t5.pairs) == 6
    assert ("gpt2_sum_sft", "gpt2_sum_qlora") in generation.pairs
    assert ("t5_qa_lora", "bert_qa_lora") in t5.pairs
    assert len(close.pairs) == 9
    assert close.of_task("sa").pairs == [(f"{name}_sa_qlora", f"{name}_sa_sft") for name in ("bert", "gpt2", "t5")]
    assert generation.of_task("qa").pairs == []


def test_the_studys_figures_that_cannot_be_right_are_named():
    assert ("bert_qa_lora", "the results are those of bert_qa_sft") in findings()
