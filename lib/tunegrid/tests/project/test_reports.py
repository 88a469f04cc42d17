"""Runs committed under reports/ can be read, follow the schema and pass their audits."""

import json
from zipfile import ZipFile

import pytest
from jsonschema import Draft202012Validator

from tunegrid import ROOT
from tunegrid.record import schema, to_json
from tunegrid.record.checks import failed_audits
from tunegrid.record.record import SCHEMA_VERSION
from tunegrid.runs import examples
from tunegrid.runs.files import read_list

REPORTS = ROOT / "reports"
SCHEMA = Draft202012Validator(schema())
BASELINES = sorted((REPORTS / "baselines").glob("*.json"))
COMMITTED = [*BASELINES, REPORTS / "study.json", *sorted(REPORTS.glob("*/footprint.json"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(REPORTS)))
def test_a_committed_run_is_as_the_schema_says_of_todays_version_and_has_no_findings(path):
    records = read_list(path)
    assert {data["schema_version"] for data in read_records(path)} == {SCHEMA_VERSION}
    assert len(records) == len(read_records(path))
    if path.name != "study.json":
        assert [
            fault
            for record in records
            for fault in (*record.missed, *failed_audits(record.audits, record.excused))
        ] == []
    assert [
        error.message for record in records for error in SCHEMA.iter_errors(to_json(record))
    ] == []


def read_records(path):
    """The records in a file, as they are stored."""
    return [row["extra_info"] for row in json.loads(path.read_text())["benchmarks"]]


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_the_examples_beside_the_baseline_are_those_of_its_records_and_no_others(path):
    """All that the records name is there, the texts of their rows, too; and nothing is left over of
    an older baseline.
    """
    record = read_list(path)[0]
    if record.finished:
        points = examples.point_columns(examples.read(record, path))
        assert all(
            sum(values) / len(values) == pytest.approx(record.scores[name], abs=0.01)
            for name, values in points.items()
        )
    named = {name for record in read_list(path) for name in examples.record_files(record).values()}
    with ZipFile(path.parent / "examples" / f"{path.stem}.zip") as pack:
        assert named == set(pack.namelist())
