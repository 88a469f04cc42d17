"""What the suite itself costs is measured over rows that hold up as rows of a run; no step compares all with all."""

from collections import Counter
from itertools import combinations

import pytest

from tunegrid.commands import overhead
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.record import from_json, to_json
from tunegrid.results.files import load, read_list
from tunegrid.results.gate_report import rows as report_rows
from tunegrid.results.gates import Run, gate
from tunegrid.results.journal import passed
from tunegrid.results.judgements import by_cell
from tunegrid.results.record_checks import _results, across, distinct_results
from tunegrid.results.synthetic import BASELINE, cells_of, rows_of, write_run
from tunegrid.tests.records import complete


def test_cells_stand_for_many_under_methods_of_other_names():
    assert cells_of(135) == list(STUDY_IDS)
    assert cells_of(145)[-2:] == [f"{STUDY_IDS[0]}x1", f"{STUDY_IDS[1]}x1"]
    assert len(set(cells_of(5000))) == 1000


def test_synthetic_rows_are_sound_and_no_cell_shares_results():
    records = [from_json(row["extra_info"]) for row in rows_of(300)["benchmarks"]]  # 27 cells, their copies, six more
    assert Counter(record.seeds.seed for record in records) == dict.fromkeys(range(5), 60)
    for seed in range(5):
        findings = across([record for record in records if record.seeds.seed == seed])
        assert [finding for told in findings.values() for finding in told if not finding.passed] == []


def test_a_second_run_has_the_figures_of_other_seeds():
    first, second = (rows_of(10, shift)["benchmarks"] for shift in (0, 1))
    assert [row["fullname"] for row in first] == [row["fullname"] for row in second]
    assert second[0]["extra_info"]["scores"] == first[1]["extra_info"]["scores"]


@pytest.mark.parametrize("stage", ["journal", "json", "gate", "page"])
def test_a_stage_does_what_it_is_named_for(tmp_path, stage):
    for name, shift in (("old", 0), ("new", 1)):
        write_run(tmp_path / name / "run.json", 10, shift)
    overhead.STAGES[stage](tmp_path, 10)
    if stage == "journal":
        assert len(passed(tmp_path / "journal")) == 10
    if stage == "json":
        assert read_list(tmp_path / "saved.json") == read_list(tmp_path / "new" / "run.json")
    if stage == "page":
        assert (tmp_path / "page.html").stat().st_size > 50_000


def test_a_whole_session_takes_rows_from_a_file(capsys):
    assert overhead.main(["--rows", "10", "--stages", "session"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:2] == ["session", "10"]
    assert float(line[4]) < 2  # GiB


# What was quadratic says what it said


def all_with_all(records):
    """As it was: every pair of cells."""
    results = {cell: figures for cell, record in records.items() if (figures := _results(record))}
    faults = dict.fromkeys(results, "")
    for one, other in combinations(results, 2):
        if results[one] & results[other]:
            faults[one], faults[other] = f"the results are those of {other}", f"the results are those of {one}"
    return faults


def test_copied_results_are_named_as_by_all_pairs():
    scores = {"bert_sa_lora": 90.0, "bert_sa_qlora": 91.0, "bert_sa_sft": 90.0, "t5_sa_lora": 90.0, "t5_sa_sft": 92.0}
    records = {cell: complete(cell, scores={"accuracy": points}) for cell, points in scores.items()}
    assert distinct_results(records) == all_with_all(records)
    assert distinct_results(records)["bert_sa_lora"] == "the results are those of t5_sa_lora"
    real = {record.cell: record for record in read_list(BASELINE) if record.seeds.seed == 0}
    assert distinct_results(real) == all_with_all(real)


def test_judgements_are_grouped_in_their_order():
    records = read_list(BASELINE)
    judged = gate(Run.of(records, BASELINE), Run.of([r for r in records if r.seeds.seed == 0], BASELINE))
    assert [j for own in by_cell(judged).values() for j in own] == judged
    assert [row[0] for row in report_rows(judged)] == list(dict.fromkeys(j.cell for j in judged))


def test_a_record_is_written_as_it_was_read():
    for row in load(BASELINE)["benchmarks"][:5]:
        assert to_json(from_json(row["extra_info"])) == row["extra_info"]
