"""What did each release change? `tunegrid history peft --from 0.18` compares every release with the one before it.

Each release of the index gets an environment of its own, with what must change beside it, in which cells make their first
updates; with --whole, those whose numerics changed train to their end. A release that cannot be installed, or in which no cell
runs, is a row of the table, and the next one is compared with the last that ran. After a stop, the same command goes on. With
--causes, a TOML file says why a release changed what it changed, as in `"0.19.0" = "..."`. Exit code 0, whatever changed; 2 if
nothing could be compared.
"""

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tunegrid.commands import environments
from tunegrid.commands.environments import Environment
from tunegrid.commands.packages import list_releases
from tunegrid.commands.upgrade import cells_with_changes, changes, judge_sides, run_side
from tunegrid.errors import InputError
from tunegrid.gate.judgements import Judgement, Verdict, parse_kinds, tally
from tunegrid.grid.recipes import SCORED
from tunegrid.machine import cpu_name, versions, write_whole
from tunegrid.record.checks import failed_audits
from tunegrid.report.tables import FORMATS, Section
from tunegrid.report.verdict import run_verdict
from tunegrid.runs.files import SavedRun
from tunegrid.terminal import say
from tunegrid.words import count, some

SUITE = "tunegrid"
PAGES = {".json": "json", ".html": "html", ".md": "markdown"}


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a release changed, beside the last one before it that ran."""

    version: str
    before: str = ""  # empty: nothing ran before it, or it did not run
    installed: str = ""  # what changed with it, as "peft 0.18.1 -> 0.19.0"
    fault: str = ""  # why it did not run
    answer: str = ""  # the gate's
    changed_cells: Sequence[str] = ()  # by their numerics
    places: Sequence[str] = ()  # the first that changed in each of them, without repetitions
    figures: Sequence[str] = ()  # scores and memory that are worse or better
    audits: Mapping[str, Sequence[str]] = field(default_factory=dict)  # what those that failed saw, by cell
    other_audits: Sequence[str] = ()  # cells in which others failed before
    numerics: str = ""  # as "25 equal, 2 changed"
    cause: str = ""  # in the library's source or changelog, by a person

    @property
    def is_change(self) -> bool:
        """Whether anything is other than before."""
        return bool(self.changed_cells or self.figures or self.other_audits)

    @property
    def row(self) -> dict[str, str]:
        """A line of the table."""
        said = self.fault or self.answer
        failed_cells = [f"{cell}: {sentences[0]}" for cell, sentences in self.audits.items()]
        return {
            "release": self.version,
            "numerics": self.numerics or "-",
            "what changed": "; ".join([*self.places, *self.figures]) or said,
            "audits": "; ".join(failed_cells) or "-",
            "cause": self.cause or "-",
        }


@dataclass(frozen=True, kw_only=True)
class History:
    """The releases of a library, the oldest first."""

    library: str
    profile: str
    cells: Sequence[str]
    cpu: str
    suite: str
    versions: Mapping[str, str | None]
    releases: Sequence[Release]

    @property
    def answer(self) -> str:
        """A sentence: how many releases ran, and which of them changed something."""
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
        import pandas as pd  # which --help does without

        frame = pd.DataFrame([release.row for release in self.releases])
        return [Section(heading=f"{self.library}, release by release", sentences=[self.answer]), Section(frame=frame)]


class MeasuredRelease(NamedTuple):
    """A release that ran."""

    version: str
    side: Environment
    run: SavedRun


def compare(old: MeasuredRelease, new: MeasuredRelease, kinds: Sequence[str]) -> Release:
    """What changed from a release to the next one."""
    judgements = judge_sides(old.run, new.run)
    verdict = run_verdict(new.run.records, judgements, kinds, before=old.run.records)
    places = dict.fromkeys(judgement.detail for judgement in judgements if is_change(judgement))
    figures = [f"{j.cell} {j.quantity} {j.verdict}: {j.detail}" for j in judgements if is_other_figure(j)]
    audits = audit_failures(new.run)
    audits_before = audit_failures(old.run)
    numerics = tally(j.verdict for j in judgements if j.quantity == "numerics")
    return Release(
        version=new.version,
        before=old.version,
        installed=changes(old.side, new.side),
        answer=verdict.answer,
        changed_cells=cells_with_changes(judgements),
        places=[*places],
        figures=figures,
        audits=audits,
        other_audits=[
            cell
            for cell in dict.fromkeys([*audits_before, *audits])
            if audit_names(audits.get(cell, ())) != audit_names(audits_before.get(cell, ()))
        ],
        numerics=numerics,
    )


def audit_failures(run: SavedRun) -> dict[str, list[str]]:
    """What each audit that failed saw, by cell."""
    failures = {}
    for record in run.records:
        sentences = failed_audits(record.audits, record.excused)
        if sentences:
            failures[record.cell] = sentences
    return failures


def audit_names(sentences: Sequence[str]) -> set[str]:
    """The audits of sentences as "audit base_frozen: 2 changed"."""
    return {sentence.partition(":")[0] for sentence in sentences}


def is_change(judgement: Judgement) -> bool:
    """Whether numerics changed."""
    return judgement.quantity == "numerics" and judgement.verdict is Verdict.CHANGED


def is_other_figure(judgement: Judgement) -> bool:
    """Whether another figure became worse or better, speed aside: releases run at other times."""
    return judgement.kind in ("quality", "memory") and judgement.verdict in (Verdict.WORSE, Verdict.BETTER, Verdict.MISSING)


def walk(options: argparse.Namespace, numbers: Sequence[str]) -> list[Release]:
    """Measure each release once, and compare it with the last before it that ran."""
    kinds = parse_kinds(options.gate_on)
    cells = options.cells.split(",") if options.cells else []
    first_updates = ("--first-updates",) if options.profile in SCORED else ()
    releases: list[Release] = []
    last: MeasuredRelease | None = None
    for number in reversed(numbers):
        say(f"{options.library} {number}, {len(releases) + 1} of {len(numbers)}")
        try:
            side = environments.get_environment([f"{options.library}=={number}"], options.find_links)
            new = MeasuredRelease(number, side, run_side(options, side, cells, first_updates))
        except InputError as error:
            releases.append(Release(version=number, fault=str(error)))
            say(f"{options.library} {number} does not run: {error}")
            continue
        if last is None:
            release = Release(version=number, answer="the first", audits=audit_failures(new.run))
        else:
            release = compare(last, new, kinds)
            if options.whole and release.changed_cells:
                changed = release.changed_cells
                old_whole, new_whole = (each._replace(run=run_side(options, each.side, changed)) for each in (last, new))
                release = compare(old_whole, new_whole, kinds)
        say(f"{options.library} {number}: {release.answer}")
        releases.append(release)
        last = new
    return releases


def read_causes(path: Path | None) -> Mapping[str, str]:
    """Causes by release, as a person wrote them down; raises InputError if the file is none."""
    if path is None:
        return {}
    try:
        causes = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no TOML, or no UTF-8
        raise InputError(f"{path} is no file of causes: {error}") from None
    for release, cause in causes.items():
        if not isinstance(cause, str):
            raise InputError(f'{path} is no file of causes: expected a text for {release}, as "0.19.0" = "..."')
    return causes


def supported_from(library: str) -> Version:
    """The oldest release that tunegrid asks for; raises InputError for a package that it does not need."""
    for text in requires(SUITE) or ():
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) == library:
            bounds = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
            if bounds:
                return bounds[0]
    raise InputError(f"tunegrid asks for no version of {library}: say from which release, with --from")


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk, write what was found, say it; return the exit code. Raises InputError if there are no two releases."""
    usage = "tunegrid history LIBRARY [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid history", usage=usage, description=__doc__)
    add = parser.add_argument
    add("library", type=lambda text: str(canonicalize_name(text)), metavar="LIBRARY", help="its name on the index, as peft")
    add("--from", dest="origin", metavar="VERSION", help="the first release (default: the oldest that tunegrid takes)")
    add("--to", metavar="VERSION", help="the last release (default: the newest)")
    add("-m", "--profile", default="quick", metavar="NAME", help="of the cells: quick, zoo, full, ... (default quick)")
    add("--cells", metavar="ID,ID", help="cells to run (default: all of the profile)")
    add("--whole", action="store_true", help="train cells whose numerics changed to their end")
    add("--causes", type=Path, metavar="FILE.toml", help="why releases changed what they changed")
    add("-o", "--output", type=Path, action="append", default=[], metavar="FILE", help=f"write {', '.join(PAGES)}; repeatable")
    environments.add_options(parser)
    words = list(arguments or ())
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.pytest_options = words[end + 1 :]
    for path in options.output:
        if path.suffix not in PAGES:
            raise InputError(f"{path}: expected a name that ends in {some([*PAGES])}")
    parse_kinds(options.gate_on)  # before anything runs
    causes = read_causes(options.causes)
    try:
        first = Version(options.origin) if options.origin else supported_from(options.library)
        last = Version(options.to) if options.to else None
    except InvalidVersion as error:
        raise InputError(f"{error}; give releases as --from 0.18 --to 0.20") from None
    releases = walk(options, list_releases(options.library, first, last, options.find_links))
    releases = [replace(release, cause=causes.get(release.version, "")) for release in releases]
    history = History(
        library=options.library,
        profile=options.profile,
        cells=options.cells.split(",") if options.cells else [],
        cpu=cpu_name(),
        suite=version(SUITE),
        versions=versions(),
        releases=releases,
    )
    for path in options.output:
        form = PAGES[path.suffix]
        page = json.dumps(asdict(history), indent=1) if form == "json" else FORMATS[form](history.sections)
        write_whole(path, page)
        say(f"wrote {path}")
    say(FORMATS["text"](history.sections))
    compared = [release for release in releases if release.before]
    return 0 if compared else 2
