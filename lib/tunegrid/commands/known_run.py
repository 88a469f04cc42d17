"""A run from before an upgrade that is known already: one that the user gives, or the committed baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tunegrid import ROOT
from tunegrid.commands.sides import Question
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE, Profile
from tunegrid.libraries import library_digests
from tunegrid.machine import cpu_name, versions
from tunegrid.record import Record
from tunegrid.record.record import recipe_record
from tunegrid.results.files import read_list, read_saved

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
    same_libraries = record.versions == versions() and record.libraries == library_digests()
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
