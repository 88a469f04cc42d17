"""Runs that are merged, and what may be a baseline."""

import json
from dataclasses import replace
from zipfile import ZipFile

import pytest

from tunegrid import ROOT
from tunegrid.commands import merge
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.runs import examples
from tunegrid.runs.files import read_list
from tunegrid.runs.seal import add_seal
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import altered, get_record, make_seeds, run_file, sealed, trained

pytestmark = pytest.mark.usefixtures("store")


def whole_grid(seed=0):
    """A sound record of each cell of the study, with figures of its own."""
    records = []
    for index, cell in enumerate(STUDY_IDS):
        score = 50.0 + index
        [record] = trained(cell, score, seeds=make_seeds(seed))
        training = replace(record.training, losses=[float(index), seed / 8])
        records.append(
            replace(
                record,
                scores=dict.fromkeys(record.bounded_scores, score),
                bounds={record.main_score: 1.0},
                training=training,
                evaluation=replace(record.evaluation, loss=1.0 + index),
            )
        )
    return records


def test_a_baseline_is_made_of_clean_complete_passed_runs_one_a_seed(tmp_path):
    points = examples.write(["a", "b"], {"accuracy": [100.0, 100.0 / 3]}, ["1", "0"])
    rows = {"train": 70, "validation": 15, "test": 2}
    runs = []
    for seed in (0, 1):
        grid = [altered(record, "data.rows", rows) for record in whole_grid(seed)]
        scores = {"accuracy": 200 / 3, "f1_macro": 60.0}
        grid[-1] = replace(grid[-1], examples=points, scores=scores)
        runs.append(str(run_file(tmp_path / f"{seed}.json", grid)))
    target = tmp_path / "baselines" / "quick.json"
    assert merge.main([*runs, "--baseline", "-o", str(target)]) == 0
    saved = read_list(target)
    for seed in (0, 1):
        cells = [record.cell for record in saved if record.seeds.seed == seed]
        assert sorted(cells) == sorted(STUDY_IDS)
    assert len(saved) == 2 * len(STUDY_IDS)
    with ZipFile(target.parent / "examples" / "quick.zip") as pack:
        assert pack.namelist() == [points.file]


MISSED = {"status": "missed", "missed": ["why"]}


@pytest.mark.parametrize(
    ("make_records", "reason"),
    [
        (
            lambda first, others: others,
            "cells are missing with seed 0: bert_sum_lora; run them, or name",
        ),
        (lambda first, others: [replace(first, **MISSED), *others], "did not pass: missed"),
        (lambda first, others: [replace(first, bounds={}), *others], "was changed or limited"),
        (
            lambda first, others: [replace(r, profile="other") for r in (first, *others)],
            "it is not of one profile",
        ),
        (
            lambda first, others: [altered(first, "device.contended", True), *others],
            "shared its device",
        ),
        (
            lambda first, others: [altered(first, "seeds.perturbation", 1), *others],
            "started from perturbed",
        ),
        (
            lambda first, others: [
                altered(first, "recipe.max_length", 9),
                *others,
                *whole_grid(1),
            ],
            "differently",
        ),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path, capsys, make_records, reason):
    first, *others = whole_grid()
    run = run_file(tmp_path / "run.json", make_records(first, others))
    assert reason in refusal(capsys, merge.main, run, "--baseline", "-o", tmp_path / "to.json")
    assert not (tmp_path / "to.json").exists()


OWN = ("bert_mine_lora", "bert_mine_sft")


def own_grid(seed, cells=OWN):
    first, second, *_ = whole_grid(seed)
    named = zip((first, second), cells, strict=False)
    return [
        replace(record, cell=cell, task="mine", method=cell.rpartition("_")[2], bounds={})
        for record, cell in named
    ]


def test_cells_of_a_users_own_are_a_baseline_and_the_answer_names_them(tmp_path, capsys):
    runs = [str(run_file(tmp_path / f"{seed}.json", own_grid(seed))) for seed in (0, 1)]
    target = tmp_path / "own.json"
    assert merge.main([*runs, "--baseline", "-o", str(target)]) == 0
    assert (
        "a baseline of 2 cells (bert_mine_lora, bert_mine_sft) with seed 0 and seed 1"
        in capsys.readouterr().out
    )
    assert sorted(record.cell for record in read_list(target)) == sorted(2 * OWN)


def test_a_cell_that_one_seed_lacks_is_named_and_the_others_can_be_chosen(tmp_path, capsys):
    runs = [
        run_file(tmp_path / "0.json", own_grid(0)),
        run_file(tmp_path / "1.json", own_grid(1, OWN[:1])),
    ]
    words = [*runs, "--baseline", "-o", tmp_path / "to.json"]
    assert "missing with seed 1: bert_mine_sft; run them, or name" in refusal(
        capsys, merge.main, *words
    )
    assert merge.main([*map(str, words), f"--cells={OWN[0]}"]) == 0
    assert [record.cell for record in read_list(tmp_path / "to.json")] == [OWN[0]] * 2


def test_some_cells_of_the_study_are_a_baseline_if_they_are_named(tmp_path, capsys):
    run = run_file(tmp_path / "run.json", whole_grid()[:3])
    names = ",".join(STUDY_IDS[:2])
    words = [str(run), "--baseline", f"--cells={names}", "-o", str(tmp_path / "to.json")]
    assert merge.main(words) == 0
    assert "a baseline of 2 cells" in capsys.readouterr().out
    words = [run, "--cells=t5_sa_lorra", "-o", tmp_path / "no.json"]
    assert "no run holds" in refusal(capsys, merge.main, *words)


def test_a_dirty_commit_is_refused_and_a_users_own_full_cells_are_not(tmp_path, capsys):
    dirty = run_file(tmp_path / "dirty.json", whole_grid(), dirty=True)
    assert "uncommitted changes" in refusal(
        capsys, merge.main, dirty, "--baseline", "-o", tmp_path / "to.json"
    )
    run = run_file(tmp_path / "run.json", [get_record("bert_sa_lora", profile="full")])
    assert merge.main([str(run), "--baseline", "-o", str(tmp_path / "to.json")]) == 0


def test_runs_of_a_matrix_are_merged_with_rows_that_hold_no_record_and_conflicts_refused(
    tmp_path, capsys
):
    control = {
        "name": "control",
        "fullname": "benchmarks::control",
        "extra_info": {"control": "random_weights"},
    }
    records = whole_grid()
    first = run_file(tmp_path / "a" / "a.json", records[:15])
    second = run_file(tmp_path / "b.json", records[14:])
    rows = [*json.loads(first.read_text())["benchmarks"], control]
    first.write_text(json.dumps(sealed({"benchmarks": rows})))
    target = tmp_path / "c" / "c.json"
    study = ROOT / "reports" / "study.json"
    assert merge.main([str(first), str(second), str(study), "-o", str(target)]) == 0
    rows = json.loads(target.read_text())["benchmarks"]
    assert add_seal(control) in rows
    assert len(rows) == 1 + 27 + 27
    other = run_file(tmp_path / "other.json", [replace(records[0], **MISSED)])
    assert f"{records[0].cell} with seed 0 is in" in refusal(
        capsys, merge.main, first, other, "-o", target
    )
