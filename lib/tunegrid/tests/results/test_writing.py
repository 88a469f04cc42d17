"""Whoever ran a run's cells, equal records make an equal run: in a session, elsewhere, resumed, or merged."""

import pytest

from tunegrid.commands import merge
from tunegrid.record import to_json
from tunegrid.results.files import Journal, latest, read_journal, rows_by_name
from tunegrid.results.summary import cell_lines
from tunegrid.tests.records import complete, read_records
from tunegrid.tests.sessions import run_in

PLUGINS = ("options", "session", "selection", "progress", "results", "processes")
CELLS = ("t5_sa_lora", "t5_sa_qlora", "t5_sa_sft")
# Cells that train nothing. Two have the results of one, the third fails an audit of its own.
TESTS = """
import pytest
from fixtures.session import session_of
from tunegrid.tests.records import complete

SCORES = {"t5_sa_lora": 91.0, "t5_sa_qlora": 92.0, "t5_sa_sft": 91.0}
BROKEN = [{"name": "base_frozen", "passed": False, "detail": "3 tensors changed"}]

@pytest.mark.cells("quick")
def test_cell(request, profile, backbone, task, method, seed, benchmark):
    benchmark.pedantic(sum, args=([1, 2],), rounds=1)
    run = session_of(request.config).run_of(request.node)
    broken = {"audits": BROKEN, "status": "audit", "missed": ["audit base_frozen: 3 tensors changed"]}
    run.record = complete(run.cell.id, scores={"accuracy": SCORES[run.cell.id]}, **broken if method == "qlora" else {})
    assert not run.record.missed
"""
COPIED = "audit distinct_results: the results are those of {other} ({cell}, quick, seed 0)"
EXPECTED = {
    "t5_sa_lora": ("audit", [COPIED.format(cell="t5_sa_lora", other="t5_sa_sft")], {"distinct_results"}),
    "t5_sa_qlora": ("audit", ["audit base_frozen: 3 tensors changed"], {"base_frozen"}),
    "t5_sa_sft": ("audit", [COPIED.format(cell="t5_sa_sft", other="t5_sa_lora")], {"distinct_results"}),
}


def session(folder, name, *options):
    """Exit code, output, and the path of the JSON of a session over these cells; all of a folder share a cache."""
    (folder / "test_cells.py").write_text(TESTS)
    options = (f"--cells={','.join(CELLS)}", f"--benchmark-json={name}.json", *options, "test_cells.py")
    code, output = run_in(folder, PLUGINS, *options, TUNEGRID_CACHE=str(folder / "cache"))
    return code, output, folder / f"{name}.json"


def findings_of(path):
    """Status, sentences and failed audits by cell."""
    records = read_records(path)
    failed = {cell: {finding.name for finding in record.audits if not finding.passed} for cell, record in records.items()}
    return {cell: (record.status, record.missed, failed[cell]) for cell, record in records.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return *session(folder, "run", "-n0"), folder


@pytest.mark.parametrize("way", ["-n2", "--engine=process"])
@pytest.mark.slow
def test_wherever_cells_run_the_run_is_the_same(tmp_path, way):
    code, output, path = session(tmp_path, "run", way)
    assert (code, findings_of(path)) == (1, EXPECTED), output


def test_a_session_and_one_resumed_tell_what_cells_show_together(plain):
    code, output, path, _ = plain
    assert (code, findings_of(path)) == (1, EXPECTED), output
    assert "0 of 3 cells passed" in output
    assert COPIED.format(cell="t5_sa_sft", other="t5_sa_lora") in output
    folder = plain[-1]
    code, output, path = session(folder, "again", "-n0", "--resume")
    assert "resumed 2 cells" in output
    assert (code, findings_of(path)) == (1, EXPECTED), output


def test_finishing_and_merging_tell_the_same_and_leave_the_journal_as_it_was(plain, tmp_path, capsys):
    *_, run, folder = plain
    journal = sorted((folder / "cache" / "journal").glob("*.jsonl"))[0]
    before = journal.read_bytes()
    assert [row["extra_info"]["status"] for _, row in read_journal(journal)].count("passed") == 2
    for name in ("first", "second"):
        assert merge.main(["--journal", str(journal), "-o", str(tmp_path / f"{name}.json")]) == 1
    assert "0 of 3 cells passed on a CPU" in capsys.readouterr().out
    assert merge.main([str(run), str(tmp_path / "first.json"), "-o", str(tmp_path / "merged.json")]) == 1
    assert findings_of(tmp_path / "first.json") == findings_of(tmp_path / "merged.json") == EXPECTED
    assert read_records(tmp_path / "first.json") == read_records(tmp_path / "second.json") == read_records(run)
    assert journal.read_bytes() == before


def test_a_run_that_holds_together_is_finished_with_exit_code_0(tmp_path, capsys):
    journal = Journal(tmp_path)
    for cell, score in (("t5_sa_lora", 91.0), ("t5_sa_sft", 92.0)):
        journal.append(cell, {"fullname": cell, "extra_info": to_json(complete(cell, scores={"accuracy": score}))})
    assert merge.main(["--journal", str(latest(tmp_path)), "-o", str(tmp_path / "run.json")]) == 0
    assert "2 of 2 cells passed on a CPU" in capsys.readouterr().out
    assert {status for status, _, _ in findings_of(tmp_path / "run.json").values()} == {"passed"}


def test_rows_that_are_no_cells_stay_and_stand_by_name():
    own = {"b": {"fullname": "b", "extra_info": {}}, "a": {"name": "a", "extra_info": {"control": 1}}}
    rows = rows_by_name(own, {"b": complete()})
    assert [row.get("fullname") or row["name"] for row in rows] == ["a", "b"]
    assert rows[0] == {"name": "a", "extra_info": {"control": 1}}
    assert rows[1]["extra_info"]["cell"] == "bert_sa_lora"


def test_lines_stand_in_the_order_of_cells_and_sentences_below_them():
    short = complete(
        "t5_sa_lora",
        bounds={},
        scores={"accuracy": 51.2},
        audits=[{"name": "learned_something", "passed": False, "detail": "accuracy 51.2"}],
        excused={"learned_something": "a run of 3 of 40 planned updates may be too short to meet it"},
    )
    missed = complete(status="missed", missed=["accuracy 91.0 is below 92.0"])
    _, first, second, *rest = cell_lines([missed, short], ["t5_sa_lora", "bert_sa_lora"])
    assert (first[0].split()[0], first[1]) == ("t5_sa_lora", "green")
    assert first[0].endswith("too short")
    assert (second[0].split()[0], second[1]) == ("bert_sa_lora", "red")
    assert rest == [
        ("1 of 2 cells passed on a CPU", ""),
        ("1 cell had wrong figures: bert_sa_lora", "red"),  # 91.04 is above its bound of 88
        ("  accuracy 91.0 is below 92.0", "red"),
        (
            "audit learned_something: accuracy 51.2; a run of 3 of 40 planned updates may be too short to meet it "
            "(t5_sa_lora, quick, seed 0)",
            "yellow",
        ),
    ]
