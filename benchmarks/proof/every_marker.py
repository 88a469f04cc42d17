"""Runs the tests of every marker, one marker after the other, and writes a table of the results.

`python benchmarks/proof/every_marker.py -n 2` continues after a stop: what passed at this commit,
with these libraries, does not run again. The exit code is 1 if a marker's tests did not all pass.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from tunegrid import ROOT, launcher
from tunegrid.commands.run import command
from tunegrid.machine import cpu_name, usable_cores, versions, write_whole
from tunegrid.report.tables import Section, markdown, text
from tunegrid.words import shorten

# By the time that they take, short first. `gpu` and `full` need a GPU.
MARKERS = (
    "tasks",
    "smoke",
    "equivalent",
    "quick",
    "faults",
    "stock",
    "zoo",
    "controls",
    "library_bugs",
    "footprint",
)
LONGEST_MESSAGE = 200  # characters of a failure
COUNTS = ("tests", "failures", "errors", "skipped")
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")
STATE = ROOT / ".cache" / "markers.json"
PAGE = ROOT / "reports" / "evidence" / "markers.md"
Row = dict[str, Any]


def main() -> int:
    """Runs what is missing, prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--only", metavar="MARKER,...", default=",".join(MARKERS), help=f"of {', '.join(MARKERS)}")
    add("-n", "--workers", default="auto", metavar="N", help="processes at a time (default auto)")
    add("--state", type=Path, default=STATE, metavar="FILE.json", help="results so far")
    add("--report", type=Path, metavar="PAGE.md", help=f"write a page, as {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    markers = options.only.split(",")
    unknown = [marker for marker in markers if marker not in MARKERS]
    if unknown:
        parser.error(f"--only: no marker {unknown[0]!r} of {', '.join(MARKERS)}")
    state: dict[str, Row] = {}
    if options.state.is_file():
        state = json.loads(options.state.read_bytes())
    here = {"commit": current_commit(), "versions": versions()}
    for marker in markers:
        row = state.get(marker, {})
        if has_passed(row) and here.items() <= row.items():
            print(f"{marker}: passed before, in {row['seconds']:.0f} s", flush=True)
            continue
        print(f"{marker}: runs", flush=True)
        state[marker] = here | run_marker(marker, options.workers)
        write_whole(options.state, json.dumps(state, indent=1))
        print(f"{marker}: {describe(state[marker])}", flush=True)
    rows = {marker: state[marker] for marker in MARKERS if marker in state}
    sections = [table(rows)]
    print(text(sections))
    if options.report:
        write_whole(options.report, page(sections))
    return int(not all(has_passed(rows[marker]) for marker in markers))


def current_commit() -> str:
    """The commit of this checkout, with "-dirty" if its files differ; "unknown" without git."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def run_marker(marker: str, workers: str) -> Row:
    """Runs `pytest -m MARKER`; returns the machine, the seconds, the exit code and the counts."""
    folder = STATE.parent / "markers"
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / f"{marker}.xml"
    report.unlink(missing_ok=True)
    began = time.monotonic()
    with (folder / f"{marker}.log").open("w", encoding="utf-8") as output:
        words = ["-m", marker, "-n", workers, f"--junitxml={report}"]
        code = launcher.run(command(words), output=output)
    row: Row = {
        "machine": f"{usable_cores()} cores of {cpu_name()}",
        "workers": workers,
        "seconds": round(time.monotonic() - began, 1),
        "exit_code": code,
        "first_failure": "",
    }
    return row | read_counts(report)


def read_counts(report: Path) -> Row:
    """The counts of a JUnit report, and the first line of its first failure; none without one."""
    if not report.is_file():
        return {}
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None, "pytest writes one suite"
    row: Row = {name: int(suite.get(name, 0)) for name in COUNTS}
    for kind in ("failure", "error"):
        fault = suite.find(f"testcase/{kind}")
        if fault is not None:
            row["first_failure"] = shorten(
                " ".join(fault.get("message", "").split()), LONGEST_MESSAGE
            )
            break
    return row


def has_passed(row: Mapping[str, Any]) -> bool:
    """Checks whether a marker ran, and all its tests passed."""
    return row.get("exit_code") == 0 and row.get("tests", 0) > row.get("skipped", 0)


def describe(row: Mapping[str, Any]) -> str:
    """One clause on how a marker's tests ended."""
    failed = row.get("failures", 0) + row.get("errors", 0)
    passed = row.get("tests", 0) - row.get("skipped", 0) - failed
    ended = f"{passed} passed, {failed} failed, {row.get('skipped', 0)} skipped"
    fault = f": {row['first_failure']}" if row["first_failure"] else ""
    return f"exit code {row['exit_code']}, {ended} in {row['seconds']:.0f} s{fault}"


def table(rows: Mapping[str, Row]) -> Section:
    """The section of all markers that have run."""
    lines = []
    for marker, row in rows.items():
        failed = row.get("failures", 0) + row.get("errors", 0)
        lines.append(
            {
                "marker": marker,
                "result": "passed" if has_passed(row) else f"exit code {row['exit_code']}",
                "passed": row.get("tests", 0) - row.get("skipped", 0) - failed,
                "failed": failed,
                "skipped": row.get("skipped", 0),
                "seconds": row["seconds"],
                "commit": row["commit"],
            }
        )
    failed_markers = [marker for marker, row in rows.items() if not has_passed(row)]
    heading = f"All tests of {len(rows)} markers passed"
    if failed_markers:
        heading = f"Failed: {', '.join(failed_markers)}, of {len(rows)} markers"
    sentences = [
        f"{row['first_failure']} ({marker})" for marker, row in rows.items() if row["first_failure"]
    ]
    for row in {machine_and_versions(row): row for row in rows.values()}.values():
        sentences.append(f"On {machine_and_versions(row)}.")
    formats = {"passed": "", "failed": "", "skipped": "", "seconds": ".0f"}
    return Section(heading=heading, frame=pd.DataFrame(lines), formats=formats, sentences=sentences)


def machine_and_versions(row: Mapping[str, Any]) -> str:
    """The machine, the number of processes and the libraries of a marker's run, in one line."""
    packages = ", ".join(f"{name} {row['versions'].get(name)}" for name in LIBRARIES)
    return f"{row['machine']}, -n {row['workers']}, with {packages}"


def page(sections: list[Section]) -> str:
    """The page of the evidence."""
    return f"""# Every marker, as a whole

Written by `python benchmarks/proof/every_marker.py -n 2 --report {PAGE.relative_to(ROOT)}`, which runs every test that needs \
no GPU.
`pytest -m gpu` and `pytest -m full` are not among them.

{markdown(sections)}
"""


if __name__ == "__main__":
    sys.exit(main())
