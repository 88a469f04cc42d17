"""A saved run, which is a pytest-benchmark JSON: reads and writes its rows and records; and the journal of a session's rows.

A shard's file says its number, of how many, and the cases that the whole run has. A killed session loses no finished cell: each
is a line of `.cache/journal/*.jsonl` as soon as it ends, with its key (`tunegrid.runs.resume_key`).
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.recipes import CACHE, Positive
from tunegrid.machine import cpu_name, gpus, is_special, replace_file, versions
from tunegrid.record import Record, from_json, to_json
from tunegrid.record.io import unique_keys
from tunegrid.record.record import Hash, Percent, jsonable
from tunegrid.runs import examples
from tunegrid.words import some

BenchmarkRow = dict[str, Any]  # of pytest-benchmark: name, fullname, stats, and the record as `extra_info`
RunJson = dict[str, Any]  # a run: its rows as `benchmarks`, the machine, the commit, when
# Beside pytest-benchmark's own in a run's JSON: rows of cells that came to no end (pytest-benchmark reads a time from every
# benchmark), what started the session, and which shard of a run it is.
# What `tunegrid calibrate` measured of users' cells stands there, too.
UNFINISHED, COMMAND, SHARD, NOISE = "unfinished", "command", "shard", "noise"
NAMED = 30  # missing runs that are named
JOURNAL = CACHE / "journal"


class Case(NamedTuple):
    """One run of one cell."""

    profile: str
    cell: str
    seed: int | None

    def __str__(self) -> str:
        """As a sentence names it."""
        return f"{self.cell} ({self.profile}, seed {self.seed})"


@dataclass(frozen=True, kw_only=True)
class OwnNoise:
    """Scores of a user's cell with several seeds, which `tunegrid calibrate` trained.

    Their noise is that of this recipe on so many test rows.
    """

    cell: str
    profile: str
    recipe: Hash
    rows: Positive
    scores: dict[str, list[Percent]]  # by name of the score

    def applies_to(self, record: Record) -> bool:
        """Whether a record is of this cell, profile, recipe and number of test rows."""
        rows = record.data.rows["test"] if record.data else None
        if (record.cell, record.profile, rows) != (self.cell, self.profile, self.rows):
            return False
        return recipe_digest(record) == self.recipe


def recipe_digest(record: Record) -> str:
    """Sixteen hex digits of a recipe."""
    text = json.dumps(jsonable(record.recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record_case(record: Record) -> Case:
    """Which run a record is of."""
    return Case(record.profile, record.cell, record.seeds.seed)


def is_cell(extra_info: Mapping[str, Any]) -> bool:
    """Whether a row's `extra_info` is a cell's record; other benchmarks have rows, too."""
    return "cell" in extra_info


def has_no_time(row: BenchmarkRow) -> bool:
    """Whether a row is of a cell that did not come to its end, and so is no benchmark."""
    return "stats" not in row and row["extra_info"].get("status") in ("error", "killed", "not run")


def row_name(row: BenchmarkRow) -> str:
    """Of a row's test."""
    return str(row.get("fullname") or row.get("name"))


# Reading


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A saved run, read once for all who look at it."""

    path: Path
    records: list[Record]
    rows: Sequence[tuple[BenchmarkRow, Record | None]] = ()  # every row, with its record if it is a cell's
    when: str = ""  # it was saved, as an ISO date and time in UTC
    commit: str = ""  # of the suite that ran it; ten digits
    command: str = ""  # that ran it; a merged file holds none
    noise: Sequence[OwnNoise] = ()  # of its users' cells that were calibrated


def load(path: Path) -> RunJson:
    """A saved run as it is; raises InputError if the file is missing, cut off or no run."""
    try:
        run: RunJson = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
        run["benchmarks"] = [*run["benchmarks"], *run.pop(UNFINISHED, [])]
        cells = sum(is_cell(row["extra_info"] | {}) for row in run["benchmarks"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `tunegrid run -m quick --benchmark-json={path}` writes it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a complete pytest-benchmark JSON ({type(error).__name__}: {error})") from None
    if not cells:
        raise InputError(f"{path} holds no cells; was it saved by `tunegrid run -m quick`?")
    return run


def read_saved(path: Path, content: RunJson | None = None) -> SavedRun:
    """A saved run, or this content of it; raises InputError if a record contradicts itself, its test rows, or another one."""
    run = load(path) if content is None else content
    rows = list[tuple[BenchmarkRow, Record | None]]()
    for row in run["benchmarks"]:
        record = from_json(row["extra_info"], str(path)) if is_cell(row["extra_info"]) else None
        rows.append((row | {"extra_info": to_json(record)} if record else row, record))
    if sentence := next(_contradictions(rows), None):
        raise InputError(f"{path}, {sentence}")
    records = [record for _, record in rows if record]
    for record in records:
        examples.read(record, path)
    commit, (when, command) = run.get("commit_info"), (str(run.get(name) or "") for name in ("datetime", COMMAND))
    commit = str(commit.get("id") or "")[:10] if isinstance(commit, dict) else ""
    try:
        noise = TypeAdapter(list[OwnNoise]).validate_python(run.get(NOISE, []))
    except ValidationError as error:
        cause = f"{path}: its {NOISE} cannot be read ({error.errors()[0]['msg']})"
        raise InputError(f"{cause}; run its cells again") from None
    return SavedRun(
        path=path,
        records=records,
        rows=rows,
        when=when,
        commit=commit,
        command=command,
        noise=noise,
    )


def _contradictions(rows: Iterable[tuple[BenchmarkRow, Record | None]]) -> Iterator[str]:
    """A sentence for each record that another record or its own row's name contradicts."""
    cases, trainings = set[Case](), dict[tuple[str, str, tuple[float | None, ...]], Record]()
    for row, record in rows:
        if record is None:
            continue
        if (case := record_case(record)) in cases:
            yield f"{case}: it is there twice; remove one of the two rows"
        cases.add(case)
        match = re.search(r"\[(?:\w+-)?(\w+?)(?:-seed\d+)?\]$", name := row_name(row))
        if match and match[1] in STUDY_IDS and match[1] != record.cell:
            yield f"{case}: the row's name is {name}, which is another cell's"
        losses = tuple(record.training.losses) if record.training else ()
        twin = trainings.setdefault((record.profile, record.cell, losses), record)
        if losses and twin.seeds.seed != case.seed:
            yield f"{case}: all its losses equal those of seed {twin.seeds.seed}"


def noise_json(noise: Iterable[OwnNoise], records: Iterable[Record]) -> RunJson:
    """The noise of the records' cells as a run's JSON holds it, each entry once; empty without any."""
    cells = {record.cell for record in records}
    entries: list[dict[str, Any]] = []
    for own in noise:
        entry = asdict(own)
        if own.cell in cells and entry not in entries:
            entries.append(entry)
    return {NOISE: entries} if entries else {}


def read_list(path: Path) -> list[Record]:
    """All records of a saved run; raises InputError as `read_saved` does."""
    return read_saved(path).records


def check_alike(records: Iterable[Record]) -> None:
    """Raises InputError if the seeds of a cell differ in more than the seed."""
    facts_by_cell: dict[str, tuple[object, ...]] = {}
    for record in records:
        facts = (record.recipe, record.limits, record.examples and record.examples.rows_hash)
        if facts_by_cell.setdefault(record.cell, facts) != facts:
            raise InputError(f"the runs trained or scored {record.cell} differently, so they are not seeds of one experiment")


# Writing


def rows_by_name(rows: Mapping[Any, BenchmarkRow], records: Mapping[Any, Record]) -> list[BenchmarkRow]:
    """The rows in the order of their tests' names, those of cells with the records of the same keys."""
    updated = [row | {"extra_info": to_json(records[key])} if key in records else row for key, row in rows.items()]
    return sorted(updated, key=row_name)


def save(run: RunJson, path: Path, records: Iterable[Record] = (), sources: Collection[Path] = ()) -> None:
    """Write a run, whole or not at all, and from beside the sources its examples; raises InputError if the disk has no room."""
    timed_rows, other_rows = ([row for row in run["benchmarks"] if has_no_time(row) is no_time] for no_time in (False, True))
    fields = {name: json.dumps(value, default=str) for name, value in run.items()}
    for name, rows in {"benchmarks": timed_rows, **({UNFINISHED: other_rows} if other_rows else {})}.items():
        # One row a line, so that a diff shows which cells changed.
        fields[name] = "[\n" + ",\n".join(json.dumps(row, default=str) for row in rows) + "\n]"
    try:
        with replace_file(path) as part:
            text = ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items())
            part.write_text(f"{{{text}}}\n", encoding="utf-8")
        if not is_special(path):  # nothing lies beside a device
            examples.write_pack(records, path, *sources)
    except OSError as error:
        raise InputError(f"{path} or its examples cannot be written ({error.strerror or error})") from None


def missing_runs(runs: Mapping[Path, RunJson], present: Collection[Case]) -> str:
    """Which cells shards lack of their run; empty if none is a shard. Raises InputError if they are of different runs."""
    try:
        wholes = {frozenset(Case(*case) for case in run[SHARD]["whole"]) for run in runs.values() if SHARD in run}
    except (KeyError, TypeError) as error:
        raise InputError(f"a file does not say which shard it is ({type(error).__name__}: {error})") from None
    if len(wholes) > 1:
        raise InputError("these are shards of different runs: give all the same N of --shard=I/N, -m, --cells and --seeds")
    cases = next(iter(wholes), frozenset[Case]())
    gaps = sorted(cases.difference(present))
    return f"{len(gaps)} of {len(cases)} runs are missing: {some(list(map(str, gaps)), NAMED)}" if gaps else ""


# The journal


def read_journal(path: Path) -> Iterator[tuple[str, BenchmarkRow]]:
    """Keys and rows of a journal; a line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            yield str(entry["key"]), entry["row"] | {"extra_info": entry["row"]["extra_info"] | {}}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


def journal_run(path: Path | None = None, folder: Path = JOURNAL) -> tuple[Path, RunJson]:
    """A journal, or the newest with a finished cell, and its rows as a run of this machine; raises InputError if none has."""
    newest = sorted(folder.glob("*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    for journal in [path] if path else newest:
        rows = {str(row.get("fullname") or number): row for number, (_, row) in enumerate(read_journal(journal))}
        if any(is_cell(row["extra_info"]) and not has_no_time(row) for row in rows.values()):
            run: RunJson = {"machine_info": {"tunegrid": {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}}}
            run |= {"commit_info": {"dirty": None}, "version": "journal"}  # whether it is clean, a journal does not know
            return journal, run | {"benchmarks": list(rows.values()), "datetime": datetime.now(UTC).isoformat()}
    raise InputError(f"{path or f'no journal in {folder}'}: no cell has finished there yet")
