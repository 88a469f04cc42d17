"""What a teacher did, as figures worked out by hand; and records that had one are not like those that had none."""

import json
from dataclasses import replace

import pytest

from tunegrid.commands import baseline
from tunegrid.errors import InputError
from tunegrid.record import from_json, to_json
from tunegrid.record.parts import DistilledRecord
from tunegrid.results.alike import check_alike, check_teachers, unlike
from tunegrid.results.distil import DistilResult, Lesson, gain_of
from tunegrid.results.gate import Run, gate
from tunegrid.results.numerics import compared, load_tolerances
from tunegrid.tests.records import complete, saved

TEACHER = DistilledRecord(cell="bert_sa_sft", seed=0, weights="0" * 16, alpha=0.5, temperature=2.0)
# Gains by row: 100, 0, 0, 0 in one seed, which is 25 points; 100, 100, 0, 0 in the other, 50 points.
LESSONS = [
    Lesson(seed=0, name="sft-seed0", score=95.0, alone=[0.0, 0.0, 100.0, 100.0], distilled=[100.0, 0.0, 100.0, 100.0]),
    Lesson(seed=1, name="sft-seed1", score=90.0, alone=[0.0, 0.0, 0.0, 100.0], distilled=[100.0, 100.0, 0.0, 100.0]),
]


def result(lessons):
    return DistilResult(
        cell="bert_sa_lora", teacher="bert_sa_sft", metric="accuracy", alpha=0.5, temperature=2.0, lessons=lessons
    )


# The gain


def test_a_gain_is_uncertain_by_seeds_and_by_rows():
    # Seeds: 25 and 50 points deviate by 312.5 squared points, 156.25 of their mean, with 1 degree of freedom.
    # Rows: means over seeds 100, 50, 0, 0 deviate by 2291.67 squared points, 572.92 of their mean, with 3.
    gain = gain_of(LESSONS)
    assert gain.points == pytest.approx(37.5)
    assert gain.error**2 == pytest.approx(156.25 + 572.9167, rel=1e-6)
    assert gain.df == pytest.approx(729.1667**2 / (572.9167**2 / 3 + 156.25**2), rel=1e-5)
    assert gain.by == "2 seeds and 4 test rows"


def test_equal_scores_are_no_proof_that_nothing_changed():
    # A row that flipped would be 25 points: half of it is the least that counts, over seeds and over rows.
    same = [replace(lesson, distilled=lesson.alone) for lesson in LESSONS]
    gain = gain_of(same)
    assert gain.points == 0
    assert gain.error**2 == pytest.approx(12.5**2 / 2 + 12.5**2)


def test_one_seed_never_tells():
    one = result([replace(LESSONS[0], alone=[0.0] * 50, distilled=[100.0] * 50)])
    assert one.gain.interval.low > 0
    assert one.gain.by == "50 test rows"
    assert "cannot be told to help or to harm by one seed: +100.00 points" in one.sentence


@pytest.mark.parametrize(("hits", "verdict"), [(40, "helps"), (10, "harms"), (25, "cannot be told to help or to harm")])
def test_a_teacher_helps_where_the_whole_interval_is_above_zero(hits, verdict):
    alone, distilled = ([100.0] * count + [0.0] * (50 - count) for count in (25, hits))
    lessons = [Lesson(seed=seed, name="t", score=99.0, alone=alone, distilled=distilled) for seed in range(3)]
    assert result(lessons).verdict == verdict


def test_a_result_is_a_table_a_sentence_and_json():
    text = result(LESSONS).as_text().splitlines()
    assert text[0].split() == ["seed", "teacher", "scores", "alone", "distilled", "gain"]
    assert text[1].split() == ["0", "sft-seed0", "95.00", "50.00", "75.00", "+25.00"]
    assert text[3].split() == ["mean", "bert_sa_sft", "92.50", "37.50", "75.00", "+37.50"]
    assert text[4].startswith("bert_sa_sft as the teacher of bert_sa_lora (alpha 0.5, temperature 2) cannot be told")
    assert text[4].endswith("+37.50 points of accuracy (-37.67 to +112.67, 2 seeds and 4 test rows, paired)")
    assert json.loads(json.dumps(result(LESSONS).as_json()))["gain"]["points"] == 37.5


# Records


def test_a_record_says_what_it_was_distilled_from_and_older_ones_are_read():
    record = replace(complete(), distilled=TEACHER)
    assert from_json(to_json(record)).distilled == TEACHER
    older = to_json(complete())
    del older["distilled"]
    assert from_json(older).distilled is None


def test_a_distilled_run_is_not_gated_by_a_plain_one_nor_by_another_teachers():
    plain, distilled = complete(), replace(complete(), distilled=TEACHER)
    for before, after in ((plain, distilled), (distilled, plain)):
        with pytest.raises(InputError, match=r"bert_sa_lora was trained with .* not like for like"):
            gate(Run.of([before]), Run.of([after]))
    with pytest.raises(InputError, match=r"bert_sa_sft at alpha 0\.5, temperature 2 in the baseline, with bert_sa_qlora"):
        check_teachers(distilled, replace(complete(), distilled=replace(TEACHER, cell="bert_sa_qlora")))
    check_teachers(distilled, replace(complete(), distilled=replace(TEACHER, seed=1, weights="1" * 16)))
    assert compared(plain, distilled, load_tolerances())[1] == "another teacher"


def test_distilled_and_plain_seeds_are_no_seeds_of_one_experiment():
    seeds = [complete(), replace(complete(), distilled=TEACHER)]
    with pytest.raises(InputError, match="trained or scored bert_sa_lora differently"):
        check_alike(seeds)
    other = {"bert_sa_lora": seeds[1], "bert_sa_sft": complete("bert_sa_sft")}
    assert any(line.startswith("bert_sa_lora and bert_sa_sft:") and "teacher" in line for line in unlike(other))


def test_a_distilled_run_is_no_baseline(tmp_path):
    reasons = list(baseline.refusals(saved(tmp_path / "run.json", replace(complete(), distilled=TEACHER))))
    assert "bert_sa_lora was distilled from bert_sa_sft" in reasons
    assert not [reason for reason in baseline.refusals(saved(tmp_path / "run.json", complete())) if "distilled" in reason]
