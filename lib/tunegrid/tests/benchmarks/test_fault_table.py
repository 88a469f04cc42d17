"""The fault table is complete, and its page shows it."""

from benchmarks.faults import FAULTS
from tunegrid import ROOT
from tunegrid.results.numerics import STAGES
from tunegrid.results.passing import cross_cell_audits
from tunegrid.run.audits import AUDITS, OF_LEARNING
from tunegrid.tests.records import complete

PAGE = (ROOT / "reports" / "evidence" / "faults.md").read_text()


def test_all_63_faults_are_there_once():
    assert [fault.id for fault in FAULTS] == [f"F{n}" for n in range(1, 64)]


def audit_names():
    """The audits of a cell, and those of all cells together."""
    together = {finding.name for finding in cross_cell_audits([complete()])["bert_sa_lora"]}
    return {audit.__name__ for audit in (*AUDITS, *OF_LEARNING)} | together


def test_every_fault_names_a_check_that_exists():
    known = audit_names() | {"threshold", *STAGES}
    assert {fault.caught_by for fault in FAULTS} <= known


def test_the_page_of_audits_names_each_of_them():
    page = (ROOT / "reports" / "evidence" / "audits.md").read_text()
    assert [name for name in audit_names() if f"`{name}`" not in page] == []


def test_the_page_shows_the_table():
    rows = [f"| {fault.id} | {fault.what} | {fault.where} | `{fault.caught_by}` |" for fault in FAULTS]
    assert "\n".join(rows) in PAGE
