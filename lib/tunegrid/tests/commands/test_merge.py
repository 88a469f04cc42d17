"""Runs that are merged, and what may be a baseline."""

import json
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from tunegrid import ROOT
from tunegrid.commands import merge
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.runs import examples
from tunegrid.runs.files import read_list
from tunegrid.runs.seal import add_seal
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import (
    MEASURED,
    altered,
    complete,
    get_record,
    make_seeds,
    run_file,
    sealed,
)

pytestmark = pytest.mark.usefixtures("store")
MISSED = {"status": "missed", "missed": ["why"]}


def whole_grid(seed=0):
    """A sound record of each cell of the study; their losses differ, as the audits demand."""
    records = []
    for index, cell in enumerate(STUDY_IDS):
        parts = {
            "training": MEASURED["training"] | {"losses": [float(index), seed / 8]},
            "evaluation": MEASURED["evaluation"] | {"loss": 1.0 + index},
        }
        records.append(complete(cell, seeds=make_seeds(seed), examples=None, **parts))
    return records


def save(name, records, dirty=False):
    return run_file(Path(name), records, dirty)


def merge_runs(line):
    """Merges runs; returns the records of the file that the line ends with."""
    assert merge.main(line.split()) == 0
    return read_list(Path(line.split()[-1]))


def merge_refusal(capsys, line):
    return refusal(capsys, merge.main, *line.split())


def test_a_baseline_is_made_of_clean_complete_passed_runs_one_a_seed():
    points = examples.write(["a", "b"], {"accuracy": [100.0, 100.0 / 3]}, ["1", "0"])
    scores = {"accuracy": 200 / 3, "f1_macro": 60.0}
    rows = {"train": 70, "validation": 15, "test": 2}
    for seed in (0, 1):
        *others, last = whole_grid(seed)
        last = replace(last, examples=points, scores=scores, bounds={"accuracy": 1.0})
        save(f"{seed}.json", [*others, altered(last, "data.rows", rows)])
    merged = merge_runs("0.json 1.json --baseline -o baselines/quick.json")
    for seed in (0, 1):
        cells = [record.cell for record in merged if record.seeds.seed == seed]
        assert sorted(cells) == sorted(STUDY_IDS)
    assert len(merged) == 2 * len(STUDY_IDS)
    with ZipFile("baselines/examples/quick.zip") as pack:
        assert pack.namelist() == [points.file]


FIRST, *OTHERS = whole_grid()


@pytest.mark.parametrize(
    ("reason", "records"),
    [
        ("cells are missing with seed 0: bert_sum_lora; run them, or name", OTHERS),
        ("did not pass: missed", [replace(FIRST, **MISSED), *OTHERS]),
        ("was changed or limited", [replace(FIRST, bounds={}), *OTHERS]),
        (
            "it is not of one profile",
            [replace(record, profile="other") for record in (FIRST, *OTHERS)],
        ),
        ("shared its device", [altered(FIRST, "device.contended", True), *OTHERS]),
        ("started from perturbed", [altered(FIRST, "seeds.perturbation", 1), *OTHERS]),
        ("differently", [altered(FIRST, "recipe.max_length", 9), *OTHERS, *whole_grid(1)]),
    ],
)
def test_what_is_no_baseline_is_refused(capsys, reason, records):
    save("run.json", records)
    assert reason in merge_refusal(capsys, "run.json --baseline -o to.json")
    assert not Path("to.json").exists()


def own_cells(seed):
    """Records of two cells of a user's own task, `bert_mine_lora` and `bert_mine_sft`."""
    records = []
    for record, method in zip(whole_grid(seed), ("lora", "sft"), strict=False):
        own = {"cell": f"bert_mine_{method}", "task": "mine", "method": method, "bounds": {}}
        records.append(replace(record, **own))
    return records


def test_cells_of_a_users_own_are_a_baseline_and_the_answer_names_them(capsys):
    save("0.json", own_cells(seed=0))
    save("1.json", own_cells(seed=1))
    merged = merge_runs("0.json 1.json --baseline -o own.json")
    answer = "a baseline of 2 cells (bert_mine_lora, bert_mine_sft) with seed 0 and seed 1"
    assert answer in capsys.readouterr().out
    cells = sorted(record.cell for record in merged)
    assert cells == ["bert_mine_lora"] * 2 + ["bert_mine_sft"] * 2


def test_a_cell_that_one_seed_lacks_is_named_and_the_others_can_be_chosen(capsys):
    save("0.json", own_cells(seed=0))
    save("1.json", own_cells(seed=1)[:1])
    reason = "missing with seed 1: bert_mine_sft; run them, or name"
    assert reason in merge_refusal(capsys, "0.json 1.json --baseline -o to.json")
    merged = merge_runs("0.json 1.json --baseline --cells=bert_mine_lora -o to.json")
    assert [record.cell for record in merged] == ["bert_mine_lora"] * 2


def test_some_cells_of_the_study_are_a_baseline_if_they_are_named(capsys):
    save("run.json", whole_grid()[:3])
    merge_runs(f"run.json --baseline --cells={STUDY_IDS[0]},{STUDY_IDS[1]} -o to.json")
    assert "a baseline of 2 cells" in capsys.readouterr().out
    assert "no run holds" in merge_refusal(capsys, "run.json --cells=t5_sa_lorra -o no.json")


def test_a_dirty_commit_is_refused_and_a_users_own_full_cells_are_not(capsys):
    save("dirty.json", whole_grid(), dirty=True)
    assert "uncommitted changes" in merge_refusal(capsys, "dirty.json --baseline -o to.json")
    save("run.json", [get_record("bert_sa_lora", profile="full")])
    merge_runs("run.json --baseline -o to.json")


def test_a_matrix_with_a_row_that_holds_no_record_is_merged():
    control = {
        "name": "control",
        "fullname": "benchmarks::control",
        "extra_info": {"control": "random_weights"},
    }
    records = whole_grid()
    first = save("a/a.json", records[:15])
    rows = [*json.loads(first.read_text())["benchmarks"], control]
    first.write_text(json.dumps(sealed({"benchmarks": rows})))
    save("b.json", records[14:])
    study = ROOT / "reports" / "study.json"
    merge_runs(f"a/a.json b.json {study} -o c/c.json")
    rows = json.loads(Path("c/c.json").read_text())["benchmarks"]
    assert add_seal(control) in rows
    assert len(rows) == 1 + 27 + 27


def test_two_results_of_one_cell_and_seed_are_refused(capsys):
    save("first.json", [FIRST])
    save("other.json", [replace(FIRST, **MISSED)])
    reason = f"{FIRST.cell} with seed 0 is in first.json and in other.json"
    assert reason in merge_refusal(capsys, "first.json other.json -o to.json")
