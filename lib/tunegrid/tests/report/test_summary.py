"""All that is said of ten kinds of runs, as a person reads it: terminal, step summary, annotation and page.

`TUNEGRID_SNAPSHOTS=new pytest lib/tunegrid/tests/report/test_summary.py` writes the files anew: read them before a commit.
"""

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from fixtures.reports import add_answer
from tunegrid.report.summary import annotate, cell_lines, failure_lines, gate_section, summary
from tunegrid.report.tables import Section, text
from tunegrid.tests import kinds
from tunegrid.tests.outputs import is_snapshot


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_all_that_is_said_of_a_run(kind, monkeypatch, capsys):
    (_, new, judged, _), verdict = kinds.KINDS[kind](), kinds.kind_verdict(kind)
    lines = [line for line, _ in cell_lines(new, seconds=61.0)]
    table = [gate_section(judged, verdict.failing)] if judged else []
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    annotate(verdict)
    parts = {
        "terminal": text([Section(sentences=lines), *table, Section(sentences=verdict.sentences)]),
        "step summary": summary(verdict, judged, [*failure_lines(new)]),
        "JUnit": ElementTree.tostring(add_answer(Element("testsuite", tests="27", failures="0"), verdict), "unicode"),
        "annotation": capsys.readouterr().out.replace("%0A", "\n  "),
        "page": kinds.page_text(kinds.kind_page(kind)),
    }
    assert is_snapshot("\n\n".join(f"## {name}\n\n{part.rstrip()}" for name, part in parts.items()) + "\n", f"{kind}.txt")
