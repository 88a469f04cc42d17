"""Reads and writes saved runs, which are pytest-benchmark JSON, and the journal of a session.

A shard's file holds its number, the number of shards, and the cases of the whole run. A killed
session loses no finished cell: each is a line of `.cache/journal/*.jsonl` as soon as it ends, with
its key (`tunegrid.runs.resume_key`). Runs, their rows and the journal's lines have seals
(`tunegrid.runs.seal`): a file that was changed, or has none, is never a baseline.
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

BenchmarkRow = dict[str, Any]  # pytest-benchmark's: name, fullname, stats; a record as `extra_info`
RunJson = dict[str, Any]  # a run: its rows as `benchmarks`, the machine, the commit, when
# Fields of a run's JSON in addition to pytest-benchmark's
UNFINISHED = "unfinished"  # rows of cells without an end: pytest-benchmark reads a time from others
COMMAND = "command"  # that started the session
SHARD = "shard"  # its number and the whole run, if it is one
NOISE = "noise"  # of users' cells, as `tunegrid calibrate` measured it
REFUSED = "refused"  # in a row: the record of a cell as it was measured, if it is not sound
WAS_CHANGED = "was changed since it was written"
UNSEALED = "has no seal: a version before 0.22 wrote it, or another program"
NEW_RUN = "make a new one with `tunegrid run -m PROFILE --benchmark-json=FILE`"
MOST_NAMED = 30  # missing runs that are named
JOURNAL = CACHE / "journal"


class Case(NamedTuple):
    """One run of one cell."""

    profile: str
    cell: str
    seed: int | None

    def __str__(self) -> str:
        """The run's name in sentences."""
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
        """Checks whether a record is of this cell, profile, recipe and number of test rows."""
        rows = record.data.rows["test"] if record.data else None
        if (record.cell, record.profile, rows) != (self.cell, self.profile, self.rows):
            return False
        return recipe_digest(record) == self.recipe


def recipe_digest(record: Record) -> str:
    """Sixteen hex digits of a recipe."""
    text = json.dumps(jsonable(record.recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record_case(record: Record) -> Case:
    """The run of a record."""
    return Case(record.profile, record.cell, record.seeds.seed)


def is_cell(extra_info: Mapping[str, Any]) -> bool:
    """Checks whether a row's `extra_info` is a cell's record; other benchmarks have rows, too."""
    return "cell" in extra_info


def has_no_time(row: BenchmarkRow) -> bool:
    """Checks whether a row is of a cell that did not end, and so is no benchmark."""
    return "stats" not in row and row["extra_info"].get("status") in ("error", "killed", "not run")


def row_name(row: BenchmarkRow) -> str:
    """The name of a row's test."""
    return str(row.get("fullname") or row.get("name"))


# Reading


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A saved run, as read from its file."""

    path: Path
    records: list[Record]
    content: RunJson = field(default_factory=dict)  # as it is in the file
    rows: Sequence[tuple[BenchmarkRow, Record | None]] = ()  # all rows, those of cells with records
    when: str = ""  # the time of saving: an ISO date and time in UTC
    commit: str = ""  # of the suite that ran it; ten digits
    command: str = ""  # that ran it; a merged file holds none
    noise: Sequence[OwnNoise] = ()  # of its users' cells that were calibrated
    doubt: str = ""  # why it is no baseline, as "was changed ..."; empty if its seals hold
    left_out: int = 0  # lines of a journal that were changed

    @property
    def warning(self) -> str:
        """The sentence to show before anything of a run in doubt; else empty."""
        return f"{self.path} {self.doubt}" if self.doubt else ""

    def check_unchanged(self) -> None:
        """Raises InputError for a file that was changed."""
        if self.doubt.startswith(WAS_CHANGED):
            raise InputError(f"{self.warning}: give it as it was written, or {NEW_RUN}")


def load(path: Path) -> RunJson:
    """A saved run as it is; raises InputError if the file is missing, cut off or no run."""
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
    """A saved run; raises InputError if a record is not sound, or does not fit its test rows."""
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


def get_saved(run: Path | str | Iterable[Record], name: str = "the run") -> SavedRun:
    """A run from its file, or from its records, which messages call by this name.

    Raises InputError as `read_saved` does.
    """
    if isinstance(run, Path | str):
        return read_saved(Path(run))
    return SavedRun(path=Path(name), records=list(run))


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
    """The noise of the records' cells as fields of a run's JSON, without duplicates."""
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
            fault = f"the runs trained or scored {record.cell} differently"
            raise InputError(f"{fault}, so they are not seeds of one experiment")


# Writing


def rows_by_name(
    rows: Mapping[Any, BenchmarkRow],
    records: Mapping[Any, Record],
) -> list[BenchmarkRow]:
    """The rows by their tests' names, those of cells with the records of the same keys."""
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
    """Write a run, whole or not at all, and its examples, which are read from beside the sources.

    A run made of unsealed ones is not sealed. Raises InputError if the disk has no room.
    """
    plain = json.loads(json.dumps(run, default=str))  # as a reader has it
    rows = sorted(plain["benchmarks"], key=has_no_time)
    if is_sealed:
        rows = [add_seal(row) for row in rows]
        plain = add_seal(plain | {"benchmarks": rows})
    plain["benchmarks"] = [row for row in rows if not has_no_time(row)]
    plain[UNFINISHED] = [row for row in rows if has_no_time(row)]
    fields = {name: json.dumps(value) for name, value in plain.items()}
    for name in ("benchmarks", UNFINISHED):
        # One row a line, so that a diff shows which cells changed.
        fields[name] = "[\n" + ",\n".join(map(json.dumps, plain[name])) + "\n]"
    if not plain[UNFINISHED]:
        del fields[UNFINISHED]
    try:
        with replace_file(path) as file:
            text = ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items())
            file.write_text(f"{{{text}}}\n", encoding="utf-8")
        if not is_special(path):  # nothing lies beside a device
            names = examples.file_names(records, [row.get(REFUSED) for row in rows])
            examples.write_pack(dict(examples.contents(names, *sources)), path)
    except OSError as error:
        cause = error.strerror or error
        raise InputError(f"{path} or its examples cannot be written ({cause})") from None


def missing_runs(runs: Iterable[SavedRun], present: Collection[Case]) -> str:
    """A sentence on the cells that shards lack of their run; empty if none is a shard.

    Raises InputError if they are of different runs.
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
    """A row with the key of its cell's result."""

    key: str
    row: BenchmarkRow
    seal: str
    number: int  # of the line in its file, from 1


def journal_line(key: str, row: BenchmarkRow) -> bytes:
    """A sealed line after a line break, since a kill or a full disk may have left half a line."""
    return f"\n{json.dumps(add_seal({'key': key, 'row': row}))}\n".encode()


def read_journal(path: Path) -> Iterator[JournalLine]:
    """The lines of a journal, without those that were cut off."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            row = entry["row"] | {"extra_info": entry["row"]["extra_info"] | {}}
            yield JournalLine(str(entry["key"]), row, check_seal(entry), number)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


def journal_run(path: Path | None = None, folder: Path = JOURNAL) -> SavedRun:
    """A journal, or the newest with a finished cell, as a run, without lines that were changed.

    Raises InputError if no cell has finished.
    """
    newest = sorted(folder.glob("*.jsonl"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    journals = [path] if path else newest[::-1]
    for journal in journals:
        lines = list(read_journal(journal))
        sound_lines = [line for line in lines if line.seal != "changed"]
        rows = dict[str, BenchmarkRow]()
        for number, line in enumerate(sound_lines):
            rows[str(line.row.get("fullname") or number)] = line.row
        if any(is_cell(row["extra_info"]) and not has_no_time(row) for row in rows.values()):
            machine = {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}
            run: RunJson = {
                "machine_info": {"tunegrid": machine},
                "commit_info": {"dirty": None},  # a journal does not know whether it is clean
                "version": "journal",
                "benchmarks": list(rows.values()),
                "datetime": datetime.now(UTC).isoformat(),
            }
            is_sealed = all(line.seal == "sealed" for line in sound_lines)
            left_out = len(lines) - len(sound_lines)
            doubt = "" if is_sealed else UNSEALED
            return replace(_parse(journal, run), doubt=doubt, left_out=left_out)
    raise InputError(f"{path or f'no journal in {folder}'}: no cell has finished there yet")
