"""Re-check a saved run without torch: `tunegrid audit RUN.json` lists what cannot be; exit code 1 if there is anything.

Checked are each record by itself and beside its test rows, scores that contradict each other, results that two cells share,
rows that differ within a triple, the audits that each cell recorded when it ran, and cells that did not come to their end. What
a cell was too short for is listed, but is not a finding.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import AuditFinding, Record
from tunegrid.record.checks import failures, impossible_figures
from tunegrid.record.io import checked
from tunegrid.results import examples
from tunegrid.results.alike import unlike_pairs
from tunegrid.results.files import is_cell, load
from tunegrid.results.status import cross_cell_audits, too_short
from tunegrid.results.table import markdown
from tunegrid.terminal import say


def audited(saved: Iterable[Mapping[str, Any]], source: str) -> tuple[list[Record], dict[str, list[str]]]:
    """The records that can be read, and sentences by cell; cells without any are left out. Each seed is compared by itself.

    Raises:
        InputError: where a record's schema version cannot be read.
    """
    records: list[Record] = []
    sentences: dict[str, list[str]] = defaultdict(list)
    for data in saved:
        record, faults = checked(data, source)
        told = sentences[str(data["cell"])]
        told += [f"record: {fault}" for fault in faults]
        if record is not None:
            records.append(record)
            told += row_faults(record, Path(source))
    seeds = dict.fromkeys(record.seeds.seed for record in records)
    for seed in seeds:
        of_seed = [record for record in records if record.seeds.seed == seed]
        together = cross_cell_audits(of_seed)
        suffix = f" (seed {seed})" if len(seeds) > 1 else ""
        for record in of_seed:
            told = sentences[record.cell]
            new = [fault for fault in faults_of(record, together.get(record.cell, ())) if not any(fault in one for one in told)]
            told += [fault + suffix for fault in new]
    return records, {cell: messages for cell, messages in sentences.items() if messages}


def row_faults(record: Record, run: Path) -> list[str]:
    """What the rows beside a run, or in this machine's store, show to be untrue of a record; nothing where there are none."""
    try:
        examples.check(record, run)
    except InputError as error:
        return [f"rows: {error}"]
    return []


def faults_of(record: Record, together: Sequence[AuditFinding]) -> list[str]:
    """Sentences on one record; `together` is what its cell shows beside others, which the record may know already."""
    known = {finding.name for finding in record.audits}
    fresh = [finding for finding in together if not finding.passed and finding.name not in known]
    sentences = [*unfinished(record), *impossible_figures(record), *failures(record.audits, record.excused)]
    return sentences + [f"{finding.name}: {finding.detail}" for finding in fresh]


def unfinished(record: Record) -> list[str]:
    """Why a cell did not come to its end; nothing of one that did, or that was not run here."""
    if record.finished or record.status == "reported" or (record.status == "begun" and not record.missed):
        return []
    return [f"the status is {record.status!r}: {'; '.join(record.missed) or 'nothing says why'}"]


def page(path: Path, records: Sequence[Record], sentences: Mapping[str, Sequence[str]]) -> str:
    """The findings in Markdown."""
    cells = {record.cell for record in records}
    lines = [f"# Audit of {markdown(path.name)}", ""]
    lines += [f"{len(cells | sentences.keys())} cells, {len(sentences)} with findings.", ""]
    lines += [f"* {_name(cell)}: {markdown(sentence)}" for cell, messages in sentences.items() for sentence in messages]
    share = audit_share(records)
    if share is not None:
        lines += ["", f"Audits took {share:.2f} % of the cells' time."]
    lines += _listed("Audits that failed and do not count, since the run was short:", map(too_short, records))
    lines += _listed("Not like for like: not a fault, but these cells cannot be ranked:", [unlike_pairs(records)])
    return "\n".join(lines) + "\n"


def _listed(title: str, messages: Iterable[Sequence[str]]) -> list[str]:
    """A title and its items; nothing where there are none."""
    items = [f"* {markdown(sentence)}" for sentences in messages for sentence in sentences]
    return ["", title, "", *items] if items else []


def _name(cell: str) -> str:
    """A cell's id as code, or whatever stands in its place, escaped."""
    return f"`{cell}`" if re.fullmatch(r"\w+", cell) else markdown(cell)


def audit_share(records: Iterable[Record]) -> float | None:
    """Percent of all phases' seconds that the audits took; None where no phase was timed."""
    phases = [(name, phase) for record in records if record.memory for name, phase in record.memory.phases.items()]
    total = sum(phase.seconds for _, phase in phases)
    return 100 * sum(phase.seconds for name, phase in phases if name == "audit") / total if total else None


def main(arguments: list[str] | None = None) -> int:
    """Print the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid audit", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN.json")
    options = parser.parse_args(arguments)
    try:
        rows = load(options.run)["benchmarks"]
        records, sentences = audited([row["extra_info"] for row in rows if is_cell(row["extra_info"])], str(options.run))
    except InputError as error:
        refuse(parser, error)
    say(page(options.run, records, sentences).rstrip("\n"))
    return 1 if sentences else 0
