"""Wrong targets: as many as asked for, all of them wrong, and sound rows."""

from dataclasses import replace

import pytest

from tunegrid.data.splits import check_row, load_splits, noisy
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.grid.tasks import QA, SA, SUM


@pytest.mark.parametrize("task", [SA, QA, SUM], ids=lambda task: task.id)
def test_a_fifth_of_the_training_rows_have_a_wrong_target_and_all_others_stay(task):
    clean = load_splits(task, QUICK_PROFILE)
    assert noisy(task, list(clean.train), 0.0) == list(clean.train)
    rows = load_splits(task, replace(QUICK_PROFILE, label_noise=0.2))
    wrong = [index for index, (old, new) in enumerate(zip(clean.train, rows.train, strict=True)) if old != new]
    assert len(wrong) == round(0.2 * len(clean.train))
    assert all(rows.train[index][task.target] != clean.train[index][task.target] for index in wrong)
    assert all({**rows.train[index], task.target: 0} == {**clean.train[index], task.target: 0} for index in wrong)
    for index in wrong:
        check_row(task, rows.train[index], index, "noise")
    assert (list(rows.test), list(rows.validation)) == (list(clean.test), list(clean.validation))
    assert rows.fingerprint != clean.fingerprint


def test_a_wrong_answer_is_a_word_beside_the_right_one():
    row = {"id": "1", "title": "t", "context": "a b , b", "question": "?", "answers": {"text": ["a b"], "answer_start": [0]}}
    [wrong] = noisy(QA, [row], 1.0)
    assert wrong["answers"] == {"text": ["b"], "answer_start": [6]}


def test_three_labels_have_two_wrong_ones_each():
    task = replace(SA, labels=("a", "b", "c"))
    rows = [{"label": 1, "title": "t", "content": f"{number}"} for number in range(40)]
    assert {row["label"] for row in noisy(task, rows, 1.0)} == {0, 2}
