"""Suggests commands to run next.

Suggested commands run cells in the environment of the new run. A command that was just given is not
suggested again, except to resume a run.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from packaging.version import InvalidVersion, Version

from tunegrid import ROOT
from tunegrid.gate.judgements import KINDS
from tunegrid.grid.more_tasks import marker_words
from tunegrid.machine import PACKAGES
from tunegrid.record import Record
from tunegrid.runs.status import first_trainings

UNLIKE = "compare runs of the same cells, seeds, rows and recipes, on one machine"
FIRST_UPDATES_OPTION = "--first-updates"
# Options that define the cells of a run.
CELL_OPTIONS = (
    "--ask",
    "--grid",
    "--data-root",
    "--checkpoint-root",
    "--device",
    "--set",
    "--ranks",
    FIRST_UPDATES_OPTION,
)
# Ranges of seeds to suggest, each with its number of seeds.
SEED_RANGES = {"0-4": 5, "0-9": 10}
# Options that do not change what trains, whatever their value.
SHOWING = re.compile(
    r"(-n|--gate|--gate-on|--on|--report-to|--format|--html"
    r"|--benchmark-json|--benchmark-save|--junitxml)$"
)
# Settings that can make a run shorter than its recipe.
LENGTHS = ("max_steps", "num_train_epochs", "train_rows", "eval_rows")


@dataclass(frozen=True, kw_only=True)
class NextSteps:
    """Suggests the next commands for a run's verdict.

    Most methods return an empty text if their command would only repeat `command` or `given`.

    Attributes:
        command: the command that started the run; empty if unknown.
        given: the command that the user typed, if it differs from `command`.
        files: the files of the older run and of this one.
        runner: the start of a command that runs cells in the new run's environment; empty if that
            is the current environment.
        upgrade: for `tunegrid upgrade`, the command that runs both sides again.
    """

    records: Sequence[Record]
    before: Sequence[Record]
    command: str = ""
    given: str = ""
    files: tuple[str, str] = ("OLD.json", "NEW.json")
    runner: Sequence[str] = ()
    upgrade: Sequence[str] = ()

    @property
    def command_words(self) -> list[str]:
        """The words of the run's command."""
        return split_words(self.command)

    @property
    def has_settings(self) -> bool:
        """Checks whether the run changed a setting by `--set`, so that its bounds do not hold."""
        return bool(re.search(r"--set[ =](?!perturbation)", self.command))

    def quoted(self, words: Sequence[str]) -> str:
        """The command in backticks; empty if it repeats the run's command or the user's."""
        for given in (self.command, self.given):
            if given and normal_form(words) == normal_form(split_words(given)):
                return ""
        return f"`{shlex.join(words)}`"

    def cell_options(self, *, whole: bool = False) -> list[str]:
        """The options of the run that define its cells, each as one word.

        `whole` drops options that can shorten the run.
        """
        options = []
        for word, value in pairwise([*self.command_words, "-"]):
            name, has_value, own_value = word.partition("=")
            if name not in CELL_OPTIONS:
                continue
            takes_next = not has_value and not value.startswith("-")
            setting = value if takes_next else own_value
            is_length = name == "--set" and setting.partition("=")[0] in LENGTHS
            if whole and (name == FIRST_UPDATES_OPTION or is_length):
                continue
            options.append(f"{word}={value}" if takes_next else word)
        return options

    def run(self, cells: Sequence[str], *more: str, whole: bool = False) -> str:
        """The command to run cells as this run did, or to the end if `whole`.

        Options in `more` replace the option that names the seeds.
        """
        records = [record for record in [*self.records, *self.before] if record.cell in cells]
        marker = marker_words(records[0].cell, records[0].profile) if records else "quick"
        more = more or seed_options(records)
        runner = [*self.runner]
        if not runner:
            runner = ["pytest"] if Path.cwd().is_relative_to(ROOT) else ["tunegrid", "run"]
        selection = ["-m", marker, "--cells", ",".join(cells)]
        return self.quoted([*runner, *selection, *self.cell_options(whole=whole), *more])

    @property
    def trained_one_cell(self) -> bool:
        """Checks whether the run trained a single cell at a single seed.

        Running that cell alone would only repeat the run.
        """
        own = first_trainings(self.records)
        return len({(record.cell, record.seeds.seed) for record in own}) == 1

    def rerun(self, record: Record) -> str:
        """Advice to resume the run if the cell did not finish, or else to run the cell alone."""
        if record.status in ("killed", "not run", "unfinished"):
            return self.resume()
        if self.trained_one_cell and not self.runner:
            return ""
        seed = ["--seeds", f"{record.seeds.seed}"] if record.seeds.seed else []
        command = self.run([record.cell], "-n", "0", *seed)
        return f"{command} runs one cell alone" if command else ""

    def resume(self) -> str:
        """Advice to resume the run."""
        words = self.command_words
        if words[:1] not in (["pytest"], ["tunegrid"]):
            return "the run's own command with --resume runs what is left"
        if "--resume" in words:
            return (
                f"`{self.command}` runs what is left"
                if self.given
                else "the same command again runs what is left"
            )
        return f"{self.quoted([*words, '--resume'])} runs what is left"

    def whole_run(self, cells: Sequence[str]) -> str:
        """The command to train cells to the end."""
        command = self.run(cells, whole=True)
        return (
            f"{command} trains {'it' if len(cells) == 1 else 'them'} to the end" if command else ""
        )

    def more_seeds(self, cells: Sequence[str]) -> str:
        """The command to train more seeds, to tell a change from noise."""
        held = {record.seeds.seed for record in self.records if record.cell in cells}
        seeds = next(
            (text for text, number in SEED_RANGES.items() if not held >= set(range(number))), ""
        )
        if not seeds:
            return ""
        if self.upgrade:
            command = self.quoted([*self.upgrade, "--seeds", seeds])
            return f"{command} would decide" if command else ""
        command = self.run(cells, "--seeds", seeds, whole=True)
        return f"{command}, for both runs, would decide" if command else ""

    def confirmation(self, cell: str) -> str:
        """The command that retrains a cell to confirm or refute a drop; empty if there is none.

        A `--gate` session retrains it automatically.
        """
        first = next(r for r in first_trainings(self.records) if r.cell == cell)
        command = self.run([cell], f"--seeds={first.seeds.seed or 0}", f"--gate={self.files[0]}")
        return f"{command} confirms or refutes it" if command else ""

    def evidence(self) -> str:
        """The command to print the evidence for each verdict on numerics."""
        command = self.quoted(["tunegrid", "gate", *self.files, "--numerics"])
        return f"{command} prints the evidence for each verdict" if command else ""

    def changed_rows(self) -> str:
        """The command to write a page with the test rows that changed."""
        old, new = self.files
        command = self.quoted(["tunegrid", "page", new, old, "-o", "page.html"])
        return f"{command} shows the test rows that changed" if command else ""

    def bisection(self, cells: Sequence[str], kinds: Sequence[str]) -> str:
        """The command to find the release that changed the first of `cells`.

        Empty if a run lacks that cell, or if no library has a later release in the new run.
        """
        if not cells:
            return ""
        old = [record for record in self.before if record.cell == cells[0]]
        new = [record for record in self.records if record.cell == cells[0]]
        if not old or not new:
            return ""
        before = old[0].versions
        after = new[0].versions
        packages = [name for name in PACKAGES if is_later(before.get(name), after.get(name))]
        if not packages:
            return ""
        name = packages[0]
        ends = ["--good", f"{name}=={before[name]}", "--bad", f"{name}=={after[name]}"]
        basis = ",".join(kind for kind in KINDS if kind in kinds)
        words = ["tunegrid", "bisect", *ends, "--cells", cells[0], "--gate-on", basis]
        options = self._session_options(new)
        if options:
            words += ["--", *options]
        others = ", ".join(packages[1:])
        note = f" ({others} changed, too)" if others else ""
        command = self.quoted(words)
        return f"{command} finds the release{note}" if command else ""

    def _session_options(self, records: Sequence[Record]) -> list[str]:
        """The options of a session that trains these records of one cell again, to the end."""
        marker = marker_words(records[0].cell, records[0].profile)
        options = [] if marker == "quick" else ["-m", marker]
        return [*options, *self.cell_options(whole=True), *seed_options(records)]


def seed_options(records: Sequence[Record]) -> tuple[str, ...]:
    """The option that names the seeds of `records`; empty for seed 0 alone."""
    seeds = sorted({record.seeds.seed or 0 for record in first_trainings(records)})
    return () if seeds in ([], [0]) else ("--seeds", ",".join(map(str, seeds)))


def suite_file(name: str) -> str:
    """The path of one of the suite's files, relative if it is inside the working folder."""
    path = ROOT / name
    folder = Path.cwd()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def split_words(command: str) -> list[str]:
    """Splits a command into words; returns an empty list if a shell could not parse it.

    The command comes from a file, which may hold anything.
    """
    try:
        return shlex.split(command)
    except ValueError:
        return []


def normal_form(words: Sequence[str]) -> list[str]:
    """The words of a command that decide what trains, sorted, with "--name=value" split."""
    split: list[str] = []
    for word in words:
        if word.startswith("--"):
            split += word.split("=", 1)
        else:
            split.append(word)
    deciding = []
    for last, word in pairwise(["", *split]):
        if not SHOWING.match(word) and not SHOWING.match(last):
            deciding.append(word)
    if deciding[:2] == ["tunegrid", "run"]:
        deciding[:2] = ["pytest"]
    return sorted(deciding)


def is_later(before: str | None, after: str | None) -> bool:
    """Checks whether the second version is a later release than the first.

    Development releases and other builds of the same release do not count.
    """
    try:
        old = Version(before or "")
        new = Version(after or "")
    except InvalidVersion:
        return False
    if old.is_devrelease or new.is_devrelease:
        return False
    return Version(old.public) < Version(new.public)
