"""The two sides of an upgrade: environments, the runs that are kept of each, and a run from before that is known already."""

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from packaging.utils import canonicalize_name

from tunegrid import ROOT
from tunegrid.commands.environments import (
    ENVIRONMENT,
    Command,
    Suite,
    held,
    last_said,
    measure,
    output_of_run,
    path_in,
    python_of,
    suite,
)
from tunegrid.commands.requirements import Plan, Wanted, plan
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import CACHE, FULL_PROFILE, MICRO, QUICK_PROFILE, Profile
from tunegrid.machine import PACKAGES, cpu_name, library_digests, versions
from tunegrid.record import Record
from tunegrid.record.record import recipe_record
from tunegrid.results.files import read_list, read_saved
from tunegrid.results.report import count, some
from tunegrid.results.resume_key import code_digest
from tunegrid.terminal import say

RUNS = CACHE / "upgrade"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is run on both sides.

    Attributes:
        profile: of the cells.
        cells: to run; none for all.
        options: of pytest.
        whole: whether all cells train to their end at once.
        suite: makes the command that runs cells.
    """

    profile: str = "quick"
    cells: Sequence[str] = ()
    options: Sequence[str] = ()
    whole: bool = False
    suite: Suite = suite

    def command(self, cells: Sequence[str], options: Sequence[str]) -> Command:
        """The command for some cells, with options of this stage; of two equal ones pytest takes the last, the user's."""
        shared = ("--resume", *(("-n", "auto") if self.profile in MICRO else ()))
        return self.suite(cells, (*shared, *options, *self.options), self.profile)


@dataclass(frozen=True, kw_only=True)
class Side:
    """An environment. Its Python is also what speed is measured with.

    Attributes:
        python: of the environment.
        folder: where its runs are kept.
        own: versions of the packages that it does not take from this environment.
        checkouts: where those that are checkouts stand.
    """

    python: Path
    folder: Path
    own: Mapping[str, str] = field(default_factory=dict)
    checkouts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For a sentence."""
        return some([f"{name} {self.shown(name)}" for name in _in_order(self.own)]) or "the libraries here"

    def version(self, name: str) -> str | None:
        """Of a package; None where there is none."""
        return self.own.get(name) or installed(name)

    def shown(self, name: str) -> str:
        """A package's version, and its checkout where it is of one."""
        return f"{self.version(name)}" + (f" of {self.checkouts[name]}" if name in self.checkouts else "")


class NoCellRuns(InputError):
    """A session ended without a run."""

    def __init__(self, side: Side, reason: str) -> None:
        """Of this side, for what it said last."""
        super().__init__(f"no cell runs with {side.name}: {reason}")
        self.side = side


def installed(name: str) -> str | None:
    """A package's version here; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def digest(facts: object) -> str:
    """Twelve hex digits over some facts."""
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]


def side_of(wanted: Wanted, locks: ExitStack) -> Side:
    """The environment that has what is asked for, made where it is not there yet; this one where nothing is asked for.

    Args:
        wanted: by the user.
        locks: while they are held, no session removes the environment, and no other command measures the same.

    Raises:
        InputError: where it cannot be installed, or changes nothing that a cell could tell.
    """
    if not wanted:
        return Side(python=Path(sys.executable), folder=_locked(RUNS / f"here-{digest([sys.prefix, sys.version])}", locks))
    with plan(wanted, RUNS) as planned:
        name = f"{planned.names[0]}-{digest([planned.content, sys.prefix, sys.version])}"
        folder = _locked(RUNS / name, locks)
        environment, began = folder / ENVIRONMENT, time.monotonic()
        python = python_of(nullcontext(planned.sources), environment, wanted.places, wanted.text)
        say(f"{wanted.text}: {count(len(planned.sources), 'package')} in {environment} ({time.monotonic() - began:.0f} s)")
        return Side(python=python, folder=folder, own=packages_in(environment), checkouts=_checkouts(planned))


def _locked(folder: Path, locks: ExitStack) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    locks.enter_context(held(folder))
    return folder


def packages_in(environment: Path) -> dict[str, str]:
    """The versions of the packages that an environment has of its own, by name."""
    folders = {str(path_in(environment, name)) for name in ("purelib", "platlib")}
    return {canonicalize_name(found.name): found.version for found in distributions(path=sorted(folders))}


def _checkouts(planned: Plan) -> dict[str, Path]:
    parted = (source.partition(" @ ") for source in planned.sources)
    return {canonicalize_name(name): planned.checkouts[url][1] for name, _, url in parted if url in planned.checkouts}


def changed(before: Side, after: Side) -> list[str]:
    """The packages that the two have in different versions, or code; the suite's libraries first."""
    return [name for name in _in_order({**before.own, **after.own}) if _of(before, name) != _of(after, name)]


def changes(before: Side, after: Side) -> str:
    """As "peft 0.21.2 -> 0.22.0"."""
    names = changed(before, after)
    known = [name for name in names if before.version(name) and after.version(name)]
    added = len(names) - len(known)
    more = [f"{count(added, 'package')} on one side only"] if added else []
    return some([*(f"{name} {before.shown(name)} -> {after.shown(name)}" for name in known), *more])


def recorded_changes(before: Sequence[Record], after: Sequence[Record]) -> str:
    """The same of two runs, by what their records tell."""
    old, new = before[0].versions, after[0].versions
    return some([f"{name} {old[name]} -> {new[name]}" for name in new if name in old and old[name] != new[name]])


def _of(side: Side, name: str) -> tuple[str | None, Path | None]:
    return side.version(name), side.checkouts.get(name)


def _in_order(names: Mapping[str, str]) -> list[str]:
    order = {name: index for index, name in enumerate(PACKAGES)}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def run(side: Side, question: Question, stage: str, cells: Sequence[str], options: Sequence[str] = ()) -> Path:
    """The file of a side's run, measured unless it was before.

    One that holds cells which did not finish is measured again next time: what failed once may have failed for want of room.

    Raises:
        NoCellRuns: where the session leaves no file.
    """
    beside = [versions(), library_digests(), code_digest()]
    about = [question.profile, *sorted(cells), question.options, options]
    path = side.folder / f"{stage}-{digest([about, beside])}.json"
    if path.is_file():
        say(f"{side.name}: {stage}, measured before")
        return path
    say(f"{side.name}: {stage}; {output_of_run(path)} says how far it is")
    began, part = time.monotonic(), path.with_suffix(".part.json")
    records = measure(question.command(cells, options), side.python, path, part)
    if not records:
        raise NoCellRuns(side, last_said(path))
    say(f"{side.name}: {count(len(records), 'cell')} in {time.monotonic() - began:.0f} s")
    return part if unfinished(records) else part.replace(path)


def unfinished(records: Sequence[Record]) -> list[Record]:
    """Those of which the gate has nothing to judge."""
    return [record for record in records if not record.finished and not record.first_updates]


BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
PROFILES: Mapping[str, Profile] = {profile.id: profile for profile in (QUICK_PROFILE, FULL_PROFILE)}
OTHER_RECIPES = ("--set", "--grid")  # options of pytest that change recipes, or add some


def shipped_baseline(question: Question) -> Path | None:
    """The committed baseline, where it answers the question for this environment: its libraries made it on such a machine."""
    other_options = set(question.options[::2]) - {"-n"}
    if question.profile != "quick" or other_options or not BASELINE.is_file():
        return None
    records = read_saved(BASELINE, with_rows=False).records
    known = {record.cell for record in records if _is_of_here(record) and not other_settings(record)}
    return BASELINE if known == {record.cell for record in records} and set(question.cells) <= known else None


def _is_of_here(record: Record) -> bool:
    # An older baseline may name libraries that are not used any more.
    same_libraries = versions().items() <= record.versions.items() and library_digests().items() <= record.libraries.items()
    return same_libraries and record.device is not None and record.device.name == cpu_name()


def with_cells_and_seeds(path: Path, question: Question) -> Question:
    """The question with the cells and seeds of a run that is given.

    Raises:
        InputError: where the run has another profile, or not these cells, or trained them by other recipes.
    """
    records = read_list(path)
    profiles, cells = {record.profile for record in records}, {record.cell: None for record in records}
    if profiles != {question.profile}:
        raise InputError(f"{path} is of {' and '.join(sorted(profiles))}: give -m {min(profiles)}, or another run")
    for cell in question.cells:
        if cell not in cells:
            raise InputError(f"{path} has no {cell}: leave it out of --cells, or leave out --before")
    question = replace(question, cells=question.cells or tuple(cells))
    _check_recipes(path, [record for record in records if record.cell in question.cells], question)
    seeds = sorted({record.seeds.seed for record in records if record.seeds.seed is not None})
    given = () if _has(question, "--seeds") or seeds in ([], [0]) else ("--seeds", ",".join(map(str, seeds)))
    return replace(question, options=(*given, *question.options))


def _has(question: Question, *names: str) -> bool:
    return any(option.partition("=")[0] in names for option in question.options)


def _check_recipes(path: Path, records: Sequence[Record], question: Question) -> None:
    """Raises InputError where the suite would train a cell otherwise: before it trains anything."""
    if _has(question, *OTHER_RECIPES):
        return
    for record in records:
        for name, (theirs, ours) in other_settings(record).items():
            raise InputError(
                f"{path} trained {record.cell} with {name} {theirs}, which is {ours} here: give its --set after --, or "
                "another run"
            )


def other_settings(record: Record) -> dict[str, tuple[object, object]]:
    """The recipe's fields by which the suite would train a cell otherwise now, with the values then and now."""
    profile = PROFILES.get(record.profile)
    if profile is None:
        return {}
    now = vars(recipe_record(STUDY.cell(record.cell, profile)))
    then = vars(record.recipe)
    return {name: (then[name], value) for name, value in now.items() if then[name] != value}


def check_alike(before: Sequence[Record], after: Sequence[Record], path: Path) -> None:
    """Raises InputError where a run that was given trained other seeds than the new one, or by another recipe."""
    known = {(record.cell, record.seeds.seed): record for record in before}
    for record in after:
        twin = known.get((record.cell, record.seeds.seed))
        if twin is None:
            raise InputError(f"{path} has no {record.cell} of seed {record.seeds.seed}: give its seeds after --, or none")
        if (twin.recipe, twin.limits) != (record.recipe, record.limits):
            raise InputError(f"{path} trained {record.cell} by another recipe, or on other rows: give its --set after --")
