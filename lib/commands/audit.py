"""Re-checks a saved run without torch: `python -m lib.audit reports/run.json` lists what cannot be; exit 1 where there is any.

Checked are the schema, scores that contradict each other, results that two cells share, rows that differ within a triple,
and the audits that each cell recorded when it ran.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import jsonschema

from lib.errors import InputError
from lib.results.files import read_records
from lib.results.record import Record
from lib.results.record_checks import across, failed, invariants, not_numbers, unlike

SCHEMA = Path(__file__).parents[1] / "reports" / "schema.json"


def faults(records: Mapping[str, Record]) -> dict[str, list[str]]:
    """Sentences by cell; cells without any are left out."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    together = across(list(records.values()))
    found = {}
    for cell, record in records.items():
        sentences = [f"schema: {error.json_path} {error.message}" for error in validator.iter_errors(record)]
        sentences += [*invariants(record), *not_numbers(record), *failed(record)]
        known = {finding["name"] for finding in record["audits"]}
        sentences += [
            f"{finding['name']}: {finding['detail']}"
            for finding in together.get(cell, [])
            if not finding["passed"] and finding["name"] not in known
        ]
        if sentences:
            found[cell] = sentences
    return found


def page(path: Path, records: Mapping[str, Record], found: Mapping[str, list[str]]) -> str:
    """The findings in Markdown."""
    lines = [f"# Audit of {path.name}", ""]
    lines += [f"{len(records)} cells, {len(found)} with findings.", ""]
    lines += [f"* `{cell}`: {sentence}" for cell, sentences in found.items() for sentence in sentences]
    share = audit_share(records)
    if share is not None:
        lines += ["", f"Audits took {share:.2f} % of the cells' time."]
    pairs = unlike(records)
    if pairs:
        lines += ["", "Not like for like, which is no fault, but no ranking either:", "", *(f"* {line}" for line in pairs)]
    return "\n".join(lines) + "\n"


def audit_share(records: Mapping[str, Record]) -> float | None:
    """Percent of all phases' seconds that the audits took; None where no phase was timed."""
    phases = [phases for record in records.values() if (phases := (record["memory"] or {}).get("phases"))]
    total = sum(phase["seconds"] for found in phases for phase in found.values())
    return 100 * sum(found["audit"]["seconds"] for found in phases if "audit" in found) / total if total else None


def main(arguments: list[str] | None = None) -> int:
    """Print the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.audit", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN.json")
    options = parser.parse_args(arguments)
    try:
        records = read_records(options.run)
    except InputError as error:
        parser.error(str(error))
    found = faults(records)
    print(page(options.run, records, found), end="")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
