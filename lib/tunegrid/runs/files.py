"""Reads and writes saved runs, which are pytest-benchmark JSON, and the journal of a session.

A shard's file holds its number, the number of shards, and the cases of the whole run. A session
that is killed loses no finished cell, because each cell is written to `.cache/journal/*.jsonl` with
its key (`tunegrid.runs.resume_key`) as soon as it ends. Runs, their rows and the journal's lines
carry seals (`tunegrid.runs.seal`). A file that was changed or has no seal is never a baseline.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from tunegrid.errors import InputError
from tunegrid.grid.recipes import CACHE, Positive
from tunegrid.machine import cpu_name, gpus, is_special, replace_file, versions
from tunegrid.record import Record, from_json, to_json
from tunegrid.record.io import unique_keys
from tunegrid.record.record import Hash, Percent, jsonable
from tunegrid.runs import examples
from tunegrid.runs.seal import SEAL, add_seal, check_seal
from tunegrid.words import some

BenchmarkRow = dict[str, Any]  # pytest-benchmark's row; `extra_info` holds the record
RunJson = dict[str, Any]  # a run: rows (`benchmarks`), machine, commit and date
# Fields that tunegrid adds to pytest-benchmark's JSON
UNFINISHED = "unfinished"  # rows without a time, which pytest-benchmark could not read
COMMAND = "command"  # the command that started the session
SHARD = "shard"  # for a shard, its number and the cases of the whole run
NOISE = "noise"  # noise of users' cells, as measured by `tunegrid calibrate`
REFUSED = "refused"  # in a row: the record as measured, if it is not sound
WAS_CHANGED = "was changed since it was written"
UNSEALED = "has no seal: a version before 0.22 wrote it, or another program"
NEW_RUN = "make a new one with `tunegrid run -m PROFILE --benchmark-json=FILE`"
MOST_NAMED = 30  # missing runs named in a message
JOURNAL = CACHE / "journal"


class Case(NamedTuple):
    """One run of one cell."""

    profile: str
    cell: str
    seed: int | None

    def __str__(self) -> str:
        """The run's name for use in sentences."""
        return f"{self.cell} ({self.profile}, seed {self.seed})"


@dataclass(frozen=True, kw_only=True)
class OwnNoise:
    """Scores of a user's cell at several seeds, measured by `tunegrid calibrate`.

    Their noise applies to this recipe and this number of test rows only.
    """

    cell: str
    profile: str
    recipe: Hash
    rows: Positive
    scores: dict[str, list[Percent]]  # by the score's name

    def applies_to(self, record: Record) -> bool:
        """Checks whether a record has this cell, profile, recipe and number of test rows."""
        rows = record.data.rows["test"] if record.data else None
        if (record.cell, record.profile, rows) != (self.cell, self.profile, self.rows):
            return False
        return recipe_digest(record) == self.recipe


def recipe_digest(record: Record) -> str:
    """The first sixteen hex digits of a hash of the record's recipe."""
    text = json.dumps(jsonable(record.recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record_case(record: Record) -> Case:
    """The case that a record belongs to."""
    return Case(record.profile, record.cell, record.seeds.seed)


def is_cell(extra_info: Mapping[str, Any]) -> bool:
    """Checks whether a row's `extra_info` is a cell's record, not another benchmark's."""
    return "cell" in extra_info


def has_no_time(row: BenchmarkRow) -> bool:
    """Checks whether a row has no timing because its cell did not complete."""
    return "stats" not in row and row["extra_info"].get("status") in ("error", "killed", "not run")


def row_name(row: BenchmarkRow) -> str:
    """The name of the test that made a row."""
    return str(row.get("fullname") or row.get("name"))


# Reading


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A saved run, as read from its file."""

    path: Path
    records: list[Record]
    content: RunJson = field(default_factory=dict)  # the file's JSON
    rows: Sequence[tuple[BenchmarkRow, Record | None]] = ()  # all rows; cells' have records
    when: str = ""  # ISO date and time of saving, in UTC
    commit: str = ""  # ten digits of the suite's commit
    command: str = ""  # the command that made the run; empty for a merged file
    noise: Sequence[OwnNoise] = ()  # measured noise of users' cells
    doubt: str = ""  # why it cannot be a baseline ("was changed ..."); empty if its seals hold
    left_out: int = 0  # number of journal lines dropped because they were changed

    @property
    def warning(self) -> str:
        """A sentence that says why the run cannot be a baseline; empty if its seals hold."""
        return f"{self.path} {self.doubt}" if self.doubt else ""

    def check_unchanged(self) -> None:
        """Raises InputError if the file was changed since it was written."""
        if self.doubt.startswith(WAS_CHANGED):
            raise InputError(f"{self.warning}: give it as it was written, or {NEW_RUN}")


def load(path: Path) -> RunJson:
    """The JSON of a saved run; raises InputError if the file is missing, cut off or not a run."""
    try:
        run: RunJson = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
        run["benchmarks"] = [*run["benchmarks"], *run.pop(UNFINISHED, [])]
        cells = sum(is_cell(row["extra_info"] | {}) for row in run["benchmarks"])
    except FileNotFoundError:
        command = f"tunegrid run -m quick --benchmark-json={path}"
        raise InputError(f"{path} does not exist; `{command}` writes it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is not a complete pytest-benchmark JSON ({cause})") from None
    if not cells:
        raise InputError(f"{path} holds no cells; was it saved by `tunegrid run -m quick`?")
    return run


def read_saved(path: Path) -> SavedRun:
    """Reads a saved run; raises InputError if the file, a record or its examples are invalid."""
    run = load(path)
    seal = check_seal(run)
    changed_rows = [row for row in run["benchmarks"] if check_seal(row) == "changed"]
    names = [row_name(row).rpartition("::")[2] for row in changed_rows]
    has_sealed_rows = any(SEAL in row for row in run["benchmarks"])
    doubt = UNSEALED if seal == "unsealed" else ""
    if names or seal == "changed" or (seal == "unsealed" and has_sealed_rows):
        doubt = f"{WAS_CHANGED} ({some(names) or 'what it says of the whole run'})"
    try:
        return replace(_parse(path, run), doubt=doubt)
    except InputError as error:
        if not doubt:
            raise
        cause = str(error).removeprefix(f"{path}, ")
        raise InputError(f"{path} {doubt}, and cannot be read ({cause}): {NEW_RUN}") from None


def get_saved(run: Path | str | Record | Iterable[Record], name: str = "the run") -> SavedRun:
    """Gets a run from its file or from records; in messages, `name` stands for the records.

    Raises InputError as `read_saved` does, and if `run` has any other type.
    """
    if isinstance(run, Path | str):
        return read_saved(Path(run))
    if isinstance(run, Record):
        return SavedRun(path=Path(name), records=[run])
    if isinstance(run, Iterable):
        records = list(run)
        if all(isinstance(record, Record) for record in records):
            return SavedRun(path=Path(name), records=records)
    raise InputError(f"{name} must be a file or records, and is of type {type(run).__name__}")


def _parse(path: Path, run: RunJson) -> SavedRun:
    rows = list[tuple[BenchmarkRow, Record | None]]()
    for row in run["benchmarks"]:
        fields = {name: value for name, value in row.items() if name != SEAL}
        record = None
        if is_cell(fields["extra_info"]):
            record = from_json(fields["extra_info"], str(path), is_old=SEAL not in run)
            fields["extra_info"] = to_json(record)
        rows.append((fields, record))
    records = [record for _, record in rows if record]
    for record in records:
        examples.read(record, path)
        examples.check_digests(record, path)
    commit = run.get("commit_info")
    try:
        noise = TypeAdapter(list[OwnNoise]).validate_python(run.get(NOISE, []))
    except ValidationError as error:
        cause = f"{path}: its {NOISE} cannot be read ({error.errors()[0]['msg']})"
        raise InputError(f"{cause}; run its cells again") from None
    return SavedRun(
        path=path,
        content=run,
        records=records,
        rows=rows,
        when=str(run.get("datetime") or ""),
        commit=str(commit.get("id") or "")[:10] if isinstance(commit, dict) else "",
        command=str(run.get(COMMAND) or ""),
        noise=noise,
    )


def noise_json(noise: Iterable[OwnNoise], records: Iterable[Record]) -> RunJson:
    """The measured noise of the records' cells, without duplicates, as a field of a run's JSON."""
    cells = {record.cell for record in records}
    entries: list[dict[str, Any]] = []
    for own in noise:
        entry = asdict(own)
        if own.cell in cells and entry not in entries:
            entries.append(entry)
    return {NOISE: entries} if entries else {}


def read_list(path: Path | str) -> list[Record]:
    """Reads all records of a saved run; raises InputError as `read_saved` does."""
    return read_saved(Path(path)).records


def check_alike(records: Iterable[Record]) -> None:
    """Raises InputError if records of the same cell differ in recipe, limits or test rows."""
    facts_by_cell: dict[str, tuple[object, ...]] = {}
    for record in records:
        facts = (record.recipe, record.limits, record.examples and record.examples.rows_hash)
        if facts_by_cell.setdefault(record.cell, facts) != facts:
            fault = f"the runs trained or scored {record.cell} differently"
            raise InputError(f"{fault}, so they are not seeds of one experiment")


# Writing


def rows_by_name(
    rows: Mapping[Any, BenchmarkRow],
    records: Mapping[Any, Record],
) -> list[BenchmarkRow]:
    """The rows sorted by test name; a record with a row's key replaces the row's `extra_info`."""
    updated = []
    for key, row in rows.items():
        record = records.get(key)
        updated.append(row | {"extra_info": to_json(record)} if record else row)
    return sorted(updated, key=row_name)


def save(
    run: RunJson,
    path: Path,
    records: Iterable[Record] = (),
    sources: Collection[Path] = (),
    *,
    is_sealed: bool = True,
) -> None:
    """Writes a run's file, whole or not at all, and a pack with the examples of its records.

    The examples are found next to `sources` or in this machine's store. A run that is made from
    unsealed runs must not be sealed. Raises InputError if a file cannot be written.
    """
    plain = json.loads(json.dumps(run, default=str))  # what a reader will load
    rows = sorted(plain["benchmarks"], key=has_no_time)
    if is_sealed:
        rows = [add_seal(row) for row in rows]
        plain = add_seal(plain | {"benchmarks": rows})
    plain["benchmarks"] = [row for row in rows if not has_no_time(row)]
    plain[UNFINISHED] = [row for row in rows if has_no_time(row)]
    fields = {name: json.dumps(value) for name, value in plain.items()}
    for name in ("benchmarks", UNFINISHED):
        # Each row has its own line, so that a diff shows which cells changed.
        fields[name] = "[\n" + ",\n".join(map(json.dumps, plain[name])) + "\n]"
    if not plain[UNFINISHED]:
        del fields[UNFINISHED]
    try:
        with replace_file(path) as file:
            text = ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items())
            file.write_text(f"{{{text}}}\n", encoding="utf-8")
        if not is_special(path):  # a device has no folder for examples
            names = examples.file_names(records, [row.get(REFUSED) for row in rows])
            examples.write_pack(dict(examples.contents(names, *sources)), path)
    except OSError as error:
        cause = error.strerror or error
        raise InputError(f"{path} or its examples cannot be written ({cause})") from None


def missing_runs(runs: Iterable[SavedRun], present: Collection[Case]) -> str:
    """A sentence about the cases that no shard ran.

    Empty if no case is missing or there are no shards. Raises InputError if the shards belong to
    different suite runs or a file does not say which shard it is.
    """
    shards = [run.content[SHARD] for run in runs if SHARD in run.content]
    try:
        wholes = {frozenset(Case(*case) for case in shard["whole"]) for shard in shards}
    except (KeyError, TypeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise InputError(f"a file does not say which shard it is ({cause})") from None
    if len(wholes) > 1:
        advice = "give all the same N of --shard=I/N, -m, --cells and --seeds"
        raise InputError(f"these are shards of different runs: {advice}")
    cases = next(iter(wholes), frozenset[Case]())
    gaps = sorted(cases.difference(present))
    if not gaps:
        return ""
    return f"{len(gaps)} of {len(cases)} runs are missing: {some(list(map(str, gaps)), MOST_NAMED)}"


# The journal


class JournalLine(NamedTuple):
    """A line of the journal: a row, and the key of its cell's result."""

    key: str
    row: BenchmarkRow
    seal: str
    number: int  # the line's number in its file, from 1


def journal_line(key: str, row: BenchmarkRow) -> bytes:
    """A sealed journal line; it starts with a newline in case the line before was cut off."""
    return f"\n{json.dumps(add_seal({'key': key, 'row': row}))}\n".encode()


def read_journal(path: Path) -> Iterator[JournalLine]:
    """Yields the complete lines of a journal and skips lines that were cut off."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            row = entry["row"] | {"extra_info": entry["row"]["extra_info"] | {}}
            yield JournalLine(str(entry["key"]), row, check_seal(entry), number)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


def journals(folder: Path) -> list[Path]:
    """A folder's journals, those last written to last."""
    return sorted(folder.glob("*.jsonl"), key=lambda file: (file.stat().st_mtime_ns, file.name))


def journal_run(path: Path | None = None, folder: Path = JOURNAL) -> SavedRun:
    """Reads a journal as a run: the journal at `path`, or the newest that has a finished cell.

    Lines that were changed are left out. Raises InputError if no cell has finished.
    """
    for journal in [path] if path else reversed(journals(folder)):
        lines = list(read_journal(journal))
        sound_lines = [line for line in lines if line.seal != "changed"]
        rows = dict[str, BenchmarkRow]()
        for number, line in enumerate(sound_lines):
            rows[str(line.row.get("fullname") or number)] = line.row
        if any(is_cell(row["extra_info"]) and not has_no_time(row) for row in rows.values()):
            machine = {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}
            run: RunJson = {
                "machine_info": {"tunegrid": machine},
                "commit_info": {"dirty": None},  # the journal does not record it
                "version": "journal",
                "benchmarks": list(rows.values()),
                "datetime": datetime.now(UTC).isoformat(),
            }
            is_sealed = all(line.seal == "sealed" for line in sound_lines)
            left_out = len(lines) - len(sound_lines)
            doubt = "" if is_sealed else UNSEALED
            return replace(_parse(journal, run), doubt=doubt, left_out=left_out)
    raise InputError(f"{path or f'no journal in {folder}'}: no cell has finished there yet")
