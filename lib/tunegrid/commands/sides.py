"""Runs cells in environments and compares the runs, for `upgrade`, `history` and `bisect`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tunegrid.commands.cli import add_gate_on
from tunegrid.commands.environments import Environment
from tunegrid.commands.packages import find_packages, installed_version
from tunegrid.errors import InputError
from tunegrid.gate.judgements import (
    COUNTED,
    DEFAULT_KINDS,
    SAME_NUMERICS,
    Judgement,
    parse_kinds,
)
from tunegrid.grid.recipes import MICRO, SCORED
from tunegrid.report.environments import version_changes
from tunegrid.runs.files import SavedRun, read_saved
from tunegrid.words import some


class Comparison(NamedTuple):
    """The runs of two environments, and the gate's judgements on the new one."""

    old: SavedRun
    new: SavedRun
    judgements: list[Judgement]


class Runner:
    """Runs cells in environments, resumes interrupted runs and reuses finished ones."""

    def __init__(self, options: argparse.Namespace, *, is_strict: bool = False) -> None:
        """Store the options from `parse_options`; if strict, cells must finish in the old run."""
        self.options = options
        self.is_strict = is_strict
        self._runs: dict[tuple[object, ...], SavedRun] = {}

    @property
    def can_begin(self) -> bool:
        """True if the first updates of the profile's cells can be compared."""
        return self.options.profile in SCORED

    def run(
        self,
        side: Environment,
        cells: Sequence[str],
        *,
        first_updates: bool = False,
        again: bool = False,
    ) -> SavedRun:
        """Run cells, by default all of the profile; `again` ignores earlier runs' results."""
        stage = "first-updates" if first_updates else "whole"
        arguments = ["-m", self.options.profile]
        if cells:
            arguments += ["--cells", ",".join(cells)]
        if again:
            stage = "again"
        else:
            arguments.append("--resume")
        if self.options.profile in MICRO:
            arguments += ["-n", "auto"]
        if first_updates:
            arguments.append("--first-updates")
        # If an option is repeated, pytest uses the last value, so the user's options come last.
        arguments += self.options.pytest_options
        key = (side.folder, stage, *cells)
        if key not in self._runs:
            self._runs[key] = read_saved(side.run(f"{stage}.json", arguments))
        return self._runs[key]

    def compare(
        self,
        before: Environment,
        after: Environment,
        *,
        first_updates: bool,
        finishes: bool,
    ) -> Comparison:
        """Run cells in two environments and compare the runs with the gate.

        If `first_updates`, cells make only their first updates. If `finishes` is also set, cells
        whose numerics differ are then trained to the end.

        Raises:
            InputError: if the runner is strict and a cell does not finish in `before`.
        """
        old, new = self._run_both(before, after, self.options.cells, first_updates)
        judgements = judge_sound(old, new)
        changed_cells = cells_with_changes(judgements)
        if not first_updates or not finishes or not changed_cells:
            return Comparison(old, new, judgements)
        old_end, new_end = self._run_both(before, after, changed_cells, first_updates=False)
        old = with_ends(old, old_end)
        new = with_ends(new, new_end)
        return Comparison(old, new, judge_sound(old, new))

    def _run_both(
        self,
        before: Environment,
        after: Environment,
        cells: Sequence[str],
        first_updates: bool,
    ) -> tuple[SavedRun, SavedRun]:
        old = self.run(before, cells, first_updates=first_updates)
        if self.is_strict:
            check_finished(old, before)
        return old, self.run(after, cells, first_updates=first_updates)


def finished_cells(run: SavedRun) -> set[str]:
    """The cells that finished their training or their first updates with at least one seed."""
    return {record.cell for record in run.records if record.finished or record.first_updates}


def check_finished(run: SavedRun, side: Environment) -> None:
    """Raises InputError if a cell finished neither its training nor its first updates."""
    for record in run.records:
        if not record.finished and not record.first_updates:
            reason = next(iter(record.missed), record.status)
            raise InputError(
                f"{record.cell} does not finish with {side.name} ({run.path}): {reason}"
            )


def with_ends(start: SavedRun, end: SavedRun) -> SavedRun:
    """The run `end`, plus the records of `start` for cells that `end` lacks."""
    finished = {record.cell for record in end.records}
    begun = [record for record in start.records if record.cell not in finished]
    return replace(end, records=[*end.records, *begun])


def judge(old: SavedRun, new: SavedRun) -> list[Judgement]:
    """The gate's judgements on the new run; empty if no cell finished in one of the two runs."""
    from tunegrid.gate.gate import Run, gate  # imports scipy

    before = Run.of_file(old)
    after = Run.of_file(new)
    if not before.records or not after.records:
        return []
    return gate(before, after)


def judge_sound(old: SavedRun, new: SavedRun) -> list[Judgement]:
    """Judge the new run, leaving out cells that are unsound in the old run."""
    unsound = unsound_cells(old)
    sides = []
    for run in (old, new):
        sound = [record for record in run.records if record.cell not in unsound]
        sides.append(replace(run, records=sound))
    return judge(*sides)


def unsound_cells(run: SavedRun) -> list[str]:
    """The cells that failed, or whose audits failed without excuse, with at least one seed."""
    from tunegrid.gate.gate import is_sound  # imports scipy

    unsound = [record for record in run.records if record.known or not is_sound(record)]
    return list(dict.fromkeys(record.cell for record in unsound))


def cells_with_changes(judgements: Sequence[Judgement]) -> list[str]:
    """The cells whose numerics changed by more than rounding or could not be compared."""
    numerics = [judgement for judgement in judgements if judgement.quantity == "numerics"]
    return [judgement.cell for judgement in numerics if judgement.verdict not in SAME_NUMERICS]


def package_changes(before: Environment, after: Environment) -> str:
    """Describe version changes, as in "peft 0.21.2 -> 0.22.0", with the suite's libraries first.

    If all versions are equal, name the packages, which then come from different archives.
    """
    here = {name: installed_version(found) for name, found in find_packages(sys.path).items()}
    names = {**before.own, **after.own}
    old = {name: before.own.get(name) or here.get(name) for name in names}
    new = {name: after.own.get(name) or here.get(name) for name in names}
    archives = dict.fromkeys(names, "another archive")
    return some(version_changes(old, new) or version_changes(old, new, archives))


def parse_options(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    counted: Sequence[str] = COUNTED,
) -> argparse.Namespace:
    """Parse a command's own options and those that `upgrade`, `history` and `bisect` share.

    `counted` lists the kinds that --gate-on accepts. Arguments after `--` are passed to pytest.

    Raises:
        InputError: for an unknown kind.
    """
    add = parser.add_argument
    profiles = "of the cells: quick, zoo, full, ... (default quick)"
    add("-m", "--profile", default="quick", metavar="NAME", help=profiles)
    cells = "cells to run (default: all of the profile)"
    add("--cells", type=lambda text: text.split(","), default=[], metavar="ID,ID", help=cells)
    default = [kind for kind in DEFAULT_KINDS if kind in counted]
    add_gate_on(parser, counted, default, former_name="--by")
    wheels = "take wheels from DIR, not from an index"
    add("--find-links", type=Path, metavar="DIR", help=wheels)
    words = list(arguments or ())
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.pytest_options = words[end + 1 :]
    options.kinds = parse_kinds(options.gate_on, counted)
    return options
