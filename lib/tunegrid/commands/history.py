"""What did each release change?

`tunegrid history peft --from 0.18` compares every release with the one before it. `tunegrid
history` alone goes on where the committed history ends, for each of its libraries, and draws it.

Each release on the index is installed in its own environment, together with the packages that must
change with it. There, cells make their first updates; with --whole, cells whose numerics changed
are trained to the end. If a release cannot be installed or no cell runs with it, its row of the
table says so, and the next release is compared with the last one that ran. If interrupted, run the
same command again to continue. With --causes, a TOML file gives reasons for changes, as in
`"0.19.0" = "..."`. The exit code is 2 if nothing could be compared, else 0.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import TypeAdapter

from tunegrid import ROOT
from tunegrid.commands import environments
from tunegrid.commands.environments import Environment
from tunegrid.commands.packages import list_releases
from tunegrid.commands.sides import (
    Comparison,
    Runner,
    cells_with_changes,
    finished_cells,
    package_changes,
    parse_options,
)
from tunegrid.errors import InputError, first_line
from tunegrid.gate.judgements import SINCE, Judgement, Verdict, tally, verdict_text
from tunegrid.machine import cpu_name, versions, write_whole
from tunegrid.record import Record
from tunegrid.report.tables import FORMATS, Section
from tunegrid.report.verdict import run_verdict
from tunegrid.runs.files import SavedRun
from tunegrid.runs.resume_key import code_files, digest_files
from tunegrid.terminal import say
from tunegrid.words import count, shorten, some

SUITE = "tunegrid"
FOLDER = ROOT / "reports" / "history"  # of the committed history
OUT_OF_REACH = "out of reach"  # begins the fault of a release that pip refuses here
SUITE_CHANGED = "the suite changed; compared with nothing"
PAGES = {".json": "json", ".html": "html", ".md": "markdown"}
NEITHER_EQUAL = (Verdict.WORSE, Verdict.BETTER, Verdict.MISSING)
LONGEST = 160  # maximum number of characters of an audit's sentence in a table


class Finding(NamedTuple):
    """A change since the previous release that ran, or a fault of the first release that ran."""

    kind: str  # numerics, quality, memory, audits, or cells (that now run or cannot run)
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release, and how it differs from the previous release that ran."""

    version: str
    before: str = ""  # previous release that ran; empty if none did or this one did not
    installed: str = ""  # version changes, such as "peft 0.18.1 -> 0.19.0"
    fault: str = ""  # the reason why it did not run
    answer: str = ""  # the gate's answer
    changed_cells: Sequence[str] = ()  # cells whose numerics changed or cannot be compared
    numerics: str = ""  # such as "25 equal, 2 changed"
    findings: Sequence[Finding] = ()
    cause: str = ""  # found by a person in the library's source or changelog
    suite: str = ""  # digest of the suite's code, if known; equal in the release before
    cpu: str = ""  # where it ran, if not where most of the history did

    @property
    def is_change(self) -> bool:
        """True if anything differs from the previous release that ran."""
        return bool(self.before and self.findings)

    @property
    def kinds(self) -> set[str]:
        """The kinds of the release's findings."""
        return {finding.kind for finding in self.findings}

    @property
    def mark(self) -> str:
        """The release's kind in the picture, the most important one if it has several."""
        from tunegrid.page.timeline import LOOKS, NOTHING  # imports matplotlib

        if self.fault:
            return OUT_OF_REACH if self.fault.startswith(OUT_OF_REACH) else "did not run"
        if not self.before:
            return "compared with nothing"
        return next((kind for kind in LOOKS if kind in self.kinds), NOTHING)

    @property
    def row(self) -> dict[str, str]:
        """The release as a row of the table."""
        findings = "; ".join(finding.sentence for finding in self.findings)
        nothing = "nothing" if self.before else self.answer or "the first"
        return {
            "release": self.version,
            "numerics": self.numerics or "-",
            "what changed": self.fault or findings or nothing,
            "cause": self.cause or "-",
        }


@dataclass(frozen=True, kw_only=True)
class History:
    """A comparison of a library's releases, oldest first."""

    library: str
    profile: str
    cells: Sequence[str]
    cpu: str
    suite: str
    versions: Mapping[str, str | None]
    releases: Sequence[Release]

    @property
    def answer(self) -> str:
        """A sentence that says how many releases ran and which of them changed something."""
        ran = [release for release in self.releases if not release.fault]
        changed = [release for release in ran if release.is_change]
        total = count(len(self.releases), "release")
        sentence = f"{len(ran)} of {total} of {self.library} ran"
        if len(ran) < 2:
            return f"{sentence}: nothing could be compared."
        if changed:
            kinds = Counter(kind for release in changed for kind in release.kinds)
            by_kind = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
            numbers = some([release.version for release in changed], 8)
            return f"{sentence}; {len(changed)} changed something: {numbers} ({by_kind})."
        return f"{sentence}; none changed anything."

    @property
    def sections(self) -> list[Section]:
        """The answer and the table."""
        import pandas as pd  # --help does not need pandas

        frame = pd.DataFrame([release.row for release in self.releases])
        heading = f"{self.library}, release by release"
        return [Section(heading=heading, sentences=[self.answer]), Section(frame=frame)]


def describe_release(
    number: str, before: str, compared: Comparison, kinds: Sequence[str]
) -> Release:
    """Describe a release from its comparison with the previous release that ran."""
    old, new, judgements = compared
    verdict = run_verdict(new.records, judgements, kinds, before=old.records)
    numerics = [judgement for judgement in judgements if judgement.quantity == "numerics"]
    return Release(
        version=number,
        before=before,
        answer=verdict.answer,
        changed_cells=cells_with_changes(judgements),
        numerics=tally(judgement.verdict for judgement in numerics),
        findings=[
            *numerics_findings(numerics),
            *figure_findings(judgements),
            *run_findings(new, old),
        ],
    )


def numerics_findings(numerics: Sequence[Judgement]) -> Iterator[Finding]:
    """Yield a finding for each stage at which some cells' numerics first changed."""
    stages: dict[str, list[Judgement]] = {}
    for judgement in numerics:
        if judgement.verdict is Verdict.CHANGED:
            stages.setdefault(judgement.stage, []).append(judgement)
    for changed in stages.values():
        first = changed[0]
        words, _, _ = first.detail.partition(SINCE)
        cells = count(len(changed), "cell")
        yield Finding("numerics", f"{cells}, as {first.cell}: {words}")


def figure_findings(judgements: Sequence[Judgement]) -> Iterator[Finding]:
    """Yield findings on scores and memory figures that are worse or better, and on missing cells.

    Speed does not count, because releases run at different times.
    """
    for judgement in judgements:
        if judgement.kind in ("quality", "memory") and judgement.verdict in NEITHER_EQUAL:
            yield Finding(judgement.kind, verdict_text(judgement))


def run_findings(new: SavedRun, old: SavedRun | None = None) -> Iterator[Finding]:
    """Yield findings for audits that start or stop failing, and cells that start or stop running.

    Without an older run, all failures are new.
    """
    failing = failures(new)
    failed_before = failures(old) if old else {}
    finished = finished_cells(new)
    for name in dict.fromkeys([*failing, *failed_before]):
        now = failing.get(name, {})
        before = failed_before.get(name, {})
        begun = [cell for cell in now if cell not in before]
        ended = [cell for cell in before if cell not in now and cell in finished]
        fails = f"audit {name} fails in" if name else "not run:"
        passes = f"audit {name} no longer fails in" if name else "run now:"
        kind = "audits" if name else "cells"
        if begun:
            reason = shorten(now[begun[0]], LONGEST)
            yield Finding(kind, f"{fails} {some(begun)}: {reason}")
        if ended:
            yield Finding(kind, f"{passes} {some(ended)}")


def failures(run: SavedRun) -> dict[str, dict[str, str]]:
    """The reasons for failures, by audit and then by cell.

    The reasons why cells did not finish are listed under "" instead of an audit.
    """
    finished = finished_cells(run)
    reasons: dict[str, dict[str, str]] = {}
    for record in run.records:
        for finding in record.audits:
            if not finding.passed and finding.name not in record.excused:
                reasons.setdefault(finding.name, {})[record.cell] = finding.detail
        if record.cell not in finished:
            reasons.setdefault("", {})[record.cell] = fault(record)
    return reasons


def fault(record: Record) -> str:
    """The reason why a cell did not finish, or its status if none is known."""
    return next(iter(record.missed), record.status)


def walk(options: argparse.Namespace, numbers: Sequence[str]) -> list[Release]:
    """Run cells with each release, and compare it with the previous release that ran.

    `numbers` lists versions, newest first; the releases are returned oldest first.
    """
    runner = Runner(options)
    first_updates = runner.can_begin
    releases: list[Release] = []
    last: Environment | None = None
    before = ""
    code = ""
    for number in reversed(numbers):
        name = f"{options.library} {number}"
        say(f"{name}, {len(releases) + 1} of {len(numbers)}")
        code_before, code = code, digest_files(code_files())
        answer = "the first"
        if last and code != code_before:
            answer = SUITE_CHANGED
            last = None
        requirement = f"{options.library}=={number}"
        try:
            side = environments.get_environment([requirement], options.find_links)
            run = runner.run(side, options.cells, first_updates=first_updates)
            if not finished_cells(run):
                raise InputError(f"no cell finishes with {side.name}: {fault(run.records[0])}")
            if last is None:
                findings = list(run_findings(run))
                release = Release(version=number, answer=answer, findings=findings)
            else:
                compared = runner.compare(
                    last, side, first_updates=first_updates, finishes=options.whole
                )
                release = describe_release(number, before, compared, options.kinds)
                release = replace(release, installed=package_changes(last, side))
        except InputError as error:
            releases.append(Release(version=number, fault=str(error)))
            say(f"{name} is left out: {error}")
            continue
        say(f"{name}: {release.answer}")
        releases.append(replace(release, suite=code[:16], cpu=cpu_name()))
        last = side
        before = number
    return releases


def go_on(options: argparse.Namespace) -> int:
    """Walk the releases that came out since the committed history ends; append them to its files.

    The last release of the history that ran is measured again, with today's suite, so that the new
    ones have something to be compared with. Prints what is new first; returns the exit code, 2 if
    nothing new could be compared.
    """
    histories = [read_history(path) for path in sorted(FOLDER.glob("*.json"))]
    new_numbers = {}
    for history in histories:
        newest = Version(Version(history.releases[-1].version).public)
        listed = list_releases(history.library, newest, None, options.find_links)
        seen = {Version(Version(number).public) for number in listed} | index_releases(
            history.library
        )
        new_numbers[history.library] = [
            str(number) for number in sorted(seen, reverse=True) if number > newest
        ]
    found = [
        f"{name} {number}" for name, numbers in new_numbers.items() for number in numbers[::-1]
    ]
    say(f"New: {', '.join(found)}." if found else "Nothing new came out since the history ends.")
    could_compare = not found
    for i, history in enumerate(histories):
        numbers = new_numbers[history.library]
        if not numbers:
            continue
        grown = replace(history, releases=[*history.releases, *walk_new(options, history, numbers)])
        histories[i] = grown
        write_history(grown, [FOLDER / f"{grown.library}{end}" for end in (".json", ".md")])
        say(grown.answer)
        could_compare |= any(release.before for release in grown.releases[-len(numbers) :])
    draw(histories)
    return 0 if could_compare else 2


def walk_new(
    options: argparse.Namespace, history: History, numbers: Sequence[str]
) -> list[Release]:
    """The new releases, oldest first; `numbers` lists their versions, newest first."""
    refusals = {number: pip_refusal(history.library, number) for number in numbers}
    base = next(release.version for release in reversed(history.releases) if not release.fault)
    reachable = [number for number in numbers if not refusals[number]]
    walked = {}
    if reachable:
        options.library = history.library
        options.whole = True
        releases = walk(options, [*reachable, Version(base).public])
        walked = {release.version: release for release in releases}
    causes_file = FOLDER / f"{history.library}.toml"
    causes = read_causes(causes_file if causes_file.exists() else None)
    new = []
    for number in reversed(numbers):
        fault = f"{OUT_OF_REACH}: {refusals[number]}"
        release = walked.get(number) or Release(version=number, fault=fault)
        new.append(replace(release, cause=causes.get(number, "")))
    return new


def index_releases(library: str) -> set[Version]:
    """All releases that pip sees, even those that it may not install here; empty if it sees none.

    Builds and pre-releases are left out.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", library]
    answer = subprocess.run(command, capture_output=True, check=False, encoding="utf-8").stdout
    _, _, numbers = answer.partition("Available versions: ")
    versions = {
        Version(number.strip()) for number in numbers.partition("\n")[0].split(",") if number
    }
    return {version for version in versions if not version.local and not version.is_prerelease}


def pip_refusal(library: str, number: str) -> str:
    """Why this machine's pip does not install a release; empty if it does."""
    flags = ["--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *flags, f"{library}=={number}"]
    answer = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
    if not answer.returncode:
        return ""
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    return shorten((lines or ["pip says nothing"])[0].removeprefix("ERROR: "), LONGEST)


def read_history(path: Path) -> History:
    """Read a history as `-o FILE.json` wrote it; raises InputError if the file holds none."""
    try:
        return TypeAdapter(History).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no history: {first_line(error)}") from None


def write_history(history: History, paths: Sequence[Path]) -> None:
    """Write a history to files, each in the format that its name ends in."""
    for path in paths:
        form = PAGES[path.suffix]
        page = FORMATS[form](history.sections)
        if form == "json":
            page = json.dumps(asdict(history), indent=1)
        write_whole(path, page)
        say(f"wrote {path}")


def draw(histories: Sequence[History]) -> None:
    """Draw the committed history as a picture and as a page."""
    from tunegrid.page.timeline import Mark, write_timeline  # imports matplotlib

    rows = {}
    for history in histories:
        marks = []
        for release in history.releases:
            facts = {
                "compared with": release.before,
                "installed": release.installed,
                "numerics": release.numerics,
                "changed": release.row["what changed"],
                "cells": ", ".join(release.changed_cells),
                "cause": release.cause,
                "measured on": release.cpu or history.cpu,
            }
            marks.append(
                Mark(
                    library=history.library,
                    version=release.version,
                    kind=release.mark,
                    facts=facts,
                )
            )
        rows[history.library] = marks
    write_timeline(rows, FOLDER / "history.svg", FOLDER / "history.html")
    say(f"wrote {FOLDER / 'history.svg'} and {FOLDER / 'history.html'}")


def read_causes(path: Path | None) -> Mapping[str, str]:
    """Read user-written explanations of changes, by release; empty if `path` is None.

    Raises InputError if the file is unreadable or is not TOML that maps releases to strings.
    """
    if path is None:
        return {}
    try:
        causes = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: not TOML, or not UTF-8
        raise InputError(f"{path} is no file of causes: {error}") from None
    for release, cause in causes.items():
        if not isinstance(cause, str):
            raise InputError(
                f'{path} is no file of causes: expected a text for {release}, as "0.19.0" = "..."'
            )
    return causes


def supported_from(library: str) -> Version:
    """The oldest release of a library that tunegrid supports.

    Raises InputError if tunegrid's requirements set no lower bound for the library.
    """
    for text in requires(SUITE) or ():
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) != library:
            continue
        for bound in requirement.specifier:
            if bound.operator == ">=":
                return Version(bound.version)
    raise InputError(
        f"tunegrid asks for no version of {library}: say from which release, with --from"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the releases, write the files and print the table; return the exit code.

    Raises:
        InputError: if an argument is invalid, or if the releases cannot be listed.
    """
    usage = "tunegrid history [LIBRARY] [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid history", usage=usage, description=__doc__)
    add = parser.add_argument
    library = "its name on the index, as peft (default: go on with the committed history)"
    add(
        "library",
        nargs="?",
        type=lambda text: str(canonicalize_name(text)),
        metavar="LIBRARY",
        help=library,
    )
    origin = "the first release (default: the oldest that tunegrid takes)"
    add("--from", dest="origin", metavar="VERSION", help=origin)
    add("--to", metavar="VERSION", help="the last release (default: the newest)")
    add("--whole", action="store_true", help="train cells whose numerics changed to their end")
    causes = "why releases changed what they changed"
    add("--causes", type=Path, metavar="FILE.toml", help=causes)
    output = f"write {', '.join(PAGES)}; repeatable"
    add("-o", "--output", type=Path, action="append", default=[], metavar="FILE", help=output)
    options = parse_options(parser, arguments)
    if options.library is None:
        given = {"--from": options.origin, "--to": options.to, "--causes": options.causes}
        unfit = [name for name, value in (given | {"-o": options.output}).items() if value]
        if unfit:
            raise InputError(f"{unfit[0]} is for one library; give its name, too")
        return go_on(options)
    for path in options.output:
        if path.suffix not in PAGES:
            raise InputError(f"{path}: expected a name that ends in {some([*PAGES])}")
    causes_by_release = read_causes(options.causes)
    try:
        first = Version(options.origin) if options.origin else supported_from(options.library)
        last = Version(options.to) if options.to else None
    except InvalidVersion as error:
        raise InputError(f"{error}; give releases as --from 0.18 --to 0.20") from None
    releases = []
    for release in walk(options, list_releases(options.library, first, last, options.find_links)):
        cause = causes_by_release.get(release.version, "")
        releases.append(replace(release, cause=cause))
    history = History(
        library=options.library,
        profile=options.profile,
        cells=options.cells,
        cpu=cpu_name(),
        suite=version(SUITE),
        versions=versions(),
        releases=releases,
    )
    write_history(history, options.output)
    say(FORMATS["text"](history.sections))
    could_compare = any(release.before for release in releases)
    return 0 if could_compare else 2
