"""What did each release change?

`tunegrid history peft --from 0.18` compares every release with the one before it.

Each release of the index gets an environment of its own, with what must change beside it, in which
cells make their first updates; with --whole, those whose numerics changed train to their end. A
release that cannot be installed, or in which no cell runs, is a row of the table, and the next one
is compared with the last that ran. If interrupted, run the same command again to continue. With
--causes, a TOML file says why a release changed what it changed, as in `"0.19.0" = "..."`. Exit
code 0, whatever changed; 2 if nothing could be compared.
"""

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tunegrid.commands import environments
from tunegrid.commands.environments import Environment
from tunegrid.commands.packages import list_releases
from tunegrid.commands.sides import (
    Comparison,
    Runner,
    cells_with_changes,
    finished_cells,
    parse_options,
    version_changes,
)
from tunegrid.errors import InputError
from tunegrid.gate.judgements import Judgement, Verdict, tally
from tunegrid.machine import cpu_name, versions, write_whole
from tunegrid.record.checks import failed_audits
from tunegrid.report.tables import FORMATS, Section
from tunegrid.report.verdict import run_verdict
from tunegrid.runs.files import SavedRun
from tunegrid.terminal import say
from tunegrid.words import count, some

SUITE = "tunegrid"
PAGES = {".json": "json", ".html": "html", ".md": "markdown"}
NEITHER_EQUAL = (Verdict.WORSE, Verdict.BETTER, Verdict.MISSING)


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release, and how it differs from the last earlier release that ran."""

    version: str
    before: str = ""  # empty if no earlier release ran or this one did not
    installed: str = ""  # what changed with it, such as "peft 0.18.1 -> 0.19.0"
    fault: str = ""  # the reason why it did not run
    answer: str = ""  # the gate's answer
    changed_cells: Sequence[str] = ()  # cells whose numerics changed
    places: Sequence[str] = ()  # where each cell's numerics first changed, without duplicates
    figures: Sequence[str] = ()  # scores and memory that are worse or better
    # sentences of failed audits, by cell
    audits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    other_audits: Sequence[str] = ()  # cells where a different set of audits failed before
    numerics: str = ""  # such as "25 equal, 2 changed"
    cause: str = ""  # found by a person in the library's source or changelog

    @property
    def is_change(self) -> bool:
        """True if any cell, figure or audit differs from before."""
        return bool(self.changed_cells or self.figures or self.other_audits)

    @property
    def row(self) -> dict[str, str]:
        """The release as a row of the table."""
        failed = [f"{cell}: {sentences[0]}" for cell, sentences in self.audits.items()]
        changes = "; ".join([*self.places, *self.figures])
        return {
            "release": self.version,
            "numerics": self.numerics or "-",
            "what changed": changes or self.fault or self.answer,
            "audits": "; ".join(failed) or "-",
            "cause": self.cause or "-",
        }


@dataclass(frozen=True, kw_only=True)
class History:
    """The releases of a library, oldest first."""

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
        changed = [release.version for release in ran if release.is_change]
        total = count(len(self.releases), "release")
        sentence = f"{len(ran)} of {total} of {self.library} ran"
        if len(ran) < 2:
            return f"{sentence}: nothing could be compared."
        if changed:
            return f"{sentence}; {len(changed)} changed something: {some(changed, 8)}."
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
    """Describe a release from its comparison with the last earlier release that ran."""
    old, new, judgements = compared
    verdict = run_verdict(new.records, judgements, kinds, before=old.records)
    places = []
    figures = []
    numerics = []
    for judgement in judgements:
        if judgement.quantity == "numerics":
            numerics.append(judgement.verdict)
            if judgement.verdict is Verdict.CHANGED:
                places.append(judgement.detail)
        if is_other_figure(judgement):
            quantity = f"{judgement.cell} {judgement.quantity}"
            figures.append(f"{quantity} {judgement.verdict}: {judgement.detail}")
    failures = audit_failures(new)
    failures_before = audit_failures(old)
    other_audits = []
    for cell in dict.fromkeys([*failures_before, *failures]):
        if audit_names(failures.get(cell, ())) != audit_names(failures_before.get(cell, ())):
            other_audits.append(cell)
    return Release(
        version=number,
        before=before,
        answer=verdict.answer,
        changed_cells=cells_with_changes(judgements),
        places=list(dict.fromkeys(places)),
        figures=figures,
        audits=failures,
        other_audits=other_audits,
        numerics=tally(numerics),
    )


def is_other_figure(judgement: Judgement) -> bool:
    """True if a score or memory figure is worse, better or missing.

    Speed does not count, because releases run at different times.
    """
    return judgement.kind in ("quality", "memory") and judgement.verdict in NEITHER_EQUAL


def audit_failures(run: SavedRun) -> dict[str, list[str]]:
    """The sentences of failed audits, by cell."""
    failures = {}
    for record in run.records:
        sentences = failed_audits(record.audits, record.excused)
        if sentences:
            failures[record.cell] = sentences
    return failures


def audit_names(sentences: Sequence[str]) -> set[str]:
    """The audit names in sentences such as "audit base_frozen: 2 changed"."""
    return {sentence.partition(":")[0] for sentence in sentences}


def walk(options: argparse.Namespace, numbers: Sequence[str]) -> list[Release]:
    """Measure each release once and compare it with the last earlier release that ran."""
    runner = Runner(options)
    first_updates = runner.can_begin
    releases: list[Release] = []
    last: Environment | None = None
    before = ""
    for number in reversed(numbers):
        name = f"{options.library} {number}"
        say(f"{name}, {len(releases) + 1} of {len(numbers)}")
        requirement = f"{options.library}=={number}"
        try:
            side = environments.get_environment([requirement], options.find_links)
            run = runner.run(side, options.cells, first_updates=first_updates)
            if not finished_cells(run):
                reason = next(iter(run.records[0].missed), run.records[0].status)
                raise InputError(f"no cell finishes with {side.name}: {reason}")
            if last is None:
                release = Release(version=number, answer="the first", audits=audit_failures(run))
            else:
                compared = runner.compare(
                    last, side, first_updates=first_updates, finishes=options.whole
                )
                release = describe_release(number, before, compared, options.kinds)
                release = replace(release, installed=version_changes(last, side))
        except InputError as error:
            releases.append(Release(version=number, fault=str(error)))
            say(f"{name} is left out: {error}")
            continue
        say(f"{name}: {release.answer}")
        releases.append(release)
        last = side
        before = number
    return releases


def read_causes(path: Path | None) -> Mapping[str, str]:
    """Read the causes that a person wrote down, by release.

    Raises InputError if the file is not a valid file of causes.
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

    Raises InputError if tunegrid's requirements set no lower bound for the package.
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
    """Measure the releases, write the pages and print the table; return the exit code.

    Raises:
        InputError: if an argument cannot be used.
    """
    usage = "tunegrid history LIBRARY [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid history", usage=usage, description=__doc__)
    add = parser.add_argument
    library = "its name on the index, as peft"
    add("library", type=lambda text: str(canonicalize_name(text)), metavar="LIBRARY", help=library)
    origin = "the first release (default: the oldest that tunegrid takes)"
    add("--from", dest="origin", metavar="VERSION", help=origin)
    add("--to", metavar="VERSION", help="the last release (default: the newest)")
    add("--whole", action="store_true", help="train cells whose numerics changed to their end")
    causes = "why releases changed what they changed"
    add("--causes", type=Path, metavar="FILE.toml", help=causes)
    output = f"write {', '.join(PAGES)}; repeatable"
    add("-o", "--output", type=Path, action="append", default=[], metavar="FILE", help=output)
    options = parse_options(parser, arguments)
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
    for path in options.output:
        form = PAGES[path.suffix]
        page = FORMATS[form](history.sections)
        if form == "json":
            page = json.dumps(asdict(history), indent=1)
        write_whole(path, page)
        say(f"wrote {path}")
    say(FORMATS["text"](history.sections))
    could_compare = any(release.before for release in releases)
    return 0 if could_compare else 2
