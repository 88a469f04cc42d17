"""All that is said of ten kinds of runs, as a person reads it: terminal, step summary, annotation
and page.

`TUNEGRID_SNAPSHOTS=new pytest lib/tunegrid/tests/report/test_summary.py` writes the files anew:
read them before a commit.
"""

from dataclasses import replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from fixtures.reports import add_answer
from tunegrid.commands import gate
from tunegrid.page.view import make_page, read_page_run
from tunegrid.report.summary import (
    annotate,
    cell_lines,
    failure_lines,
    gate_section,
    summary,
    write_step_summary,
)
from tunegrid.report.tables import Section, text
from tunegrid.runs.status import locate
from tunegrid.tests import kinds
from tunegrid.tests.outputs import is_snapshot, refusal
from tunegrid.tests.records import complete, run_file

CELL = "bert_qa_lora"
FAILED = ("base_frozen", "adapters_add_as_declared")


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_all_that_is_said_of_a_run(kind, monkeypatch, capsys):
    _, new, judged, _ = kinds.KINDS[kind]()
    verdict = kinds.kind_verdict(kind)
    lines = [line for line, _ in cell_lines(new, seconds=61.0)]
    table = [gate_section(judged, verdict.failing)] if judged else []
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    annotate(verdict)
    parts = {
        "terminal": text([Section(sentences=lines), *table, Section(sentences=verdict.sentences)]),
        "step summary": summary(verdict, judged, [*failure_lines(new)]),
        "JUnit": ElementTree.tostring(
            add_answer(Element("testsuite", tests="27", failures="0"), verdict), "unicode"
        ),
        "annotation": capsys.readouterr().out.replace("%0A", "\n  "),
        "page": kinds.page_text(kinds.kind_page(kind)),
    }
    assert is_snapshot(
        "\n\n".join(f"## {name}\n\n{part.rstrip()}" for name, part in parts.items()) + "\n",
        f"{kind}.txt",
    )


def test_all_that_is_said_of_an_unsound_baseline(tmp_path, capsys):
    """A session refuses it before it trains (tests/fixtures/test_gating.py), so that there is no
    summary and no JUnit.
    """
    [record] = kinds.baseline((CELL,))
    audits = [replace(finding, passed=finding.name not in FAILED) for finding in record.audits]
    missed = [locate(record, f"audit {name}: moved") for name in FAILED]
    unsound = replace(record, audits=audits, missed=missed, status="audit", examples=None)
    old = run_file(tmp_path / "old.json", [unsound])
    new = run_file(tmp_path / "new.json", [replace(record, examples=None)])
    page = make_page(read_page_run(new), [read_page_run(old)])
    parts = {
        "tunegrid gate old.json new.json": refusal(capsys, gate.main, old, new),
        "page": "\n".join([*page.answer.sentences, *page.remarks]),
    }
    words = "\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items()).replace(
        f"{tmp_path}/", ""
    )
    assert is_snapshot(f"{words}\n", "unsound_baseline.txt")


def test_a_sentence_that_several_cells_share_is_there_once():
    cells = ("bert_sa_lora", "bert_sa_sft")
    records = [
        complete(cell, status="error", missed=[f"a.csv, row 7: bad ({cell}, quick, seed 0)"])
        for cell in cells
    ]
    title, *sentences = failure_lines(records)
    assert title.endswith("bert_sa_lora, bert_sa_sft")
    assert [sentence.strip() for sentence in sentences] == [
        "a.csv, row 7: bad (bert_sa_lora, quick, seed 0)"
    ]


def test_a_step_summary_that_cannot_be_written_costs_a_sentence(monkeypatch, tmp_path, capsys):
    for path in (tmp_path, tmp_path / "nowhere" / "x"):
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
        write_step_summary("words")
        sentence = f"no step summary: GITHUB_STEP_SUMMARY={path} cannot be written"
        assert sentence in capsys.readouterr().err
