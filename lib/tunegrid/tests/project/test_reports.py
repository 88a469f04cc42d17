"""Runs committed under reports/ can be read, follow the schema and pass their audits."""

from zipfile import ZipFile

import pytest
from jsonschema import Draft202012Validator

from tunegrid import ROOT
from tunegrid.record import schema, to_json
from tunegrid.record.checks import failed_audits
from tunegrid.record.record import SCHEMA_VERSION
from tunegrid.runs import examples
from tunegrid.runs.files import read_list
from tunegrid.tests.sessions import benchmark_rows

REPORTS = ROOT / "reports"
SCHEMA = Draft202012Validator(schema())
BASELINES = sorted((REPORTS / "baselines").glob("*.json"))
COMMITTED = [*BASELINES, REPORTS / "study.json", *sorted(REPORTS.glob("*/footprint.json"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(REPORTS)))
def test_a_committed_run_is_as_the_schema_says_of_todays_version_and_has_no_findings(path):
    rows = benchmark_rows(path)
    assert {row["schema_version"] for row in rows} == {SCHEMA_VERSION}
    records = read_list(path)
    assert len(records) == len(rows)
    for record in records:
        SCHEMA.validate(to_json(record))
        if path.name != "study.json":
            assert record.missed == []
            assert list(failed_audits(record.audits, record.excused)) == []


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_the_examples_beside_the_baseline_are_those_of_its_records_and_no_others(path):
    """The texts of the rows are there, too, and nothing is left over of an older baseline."""
    records = read_list(path)
    first = records[0]
    if first.finished:
        points = examples.point_columns(examples.read(first, path))
        assert not points.empty
        for name, values in points.items():
            assert sum(values) / len(values) == pytest.approx(first.scores[name], abs=0.01)
    named = set()
    for record in records:
        named.update(examples.record_files(record).values())
    with ZipFile(path.parent / "examples" / f"{path.stem}.zip") as pack:
        assert named == set(pack.namelist())
