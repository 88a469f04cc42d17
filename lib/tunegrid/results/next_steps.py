"""A run that was judged, and commands for what to do next: a shell takes them as they are, with the options of the run."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from packaging.version import InvalidVersion, Version

from tunegrid import ROOT
from tunegrid.grid.more_tasks import words_for
from tunegrid.machine import PACKAGES
from tunegrid.record import Record
from tunegrid.results.judgements import KINDS, Judgement

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"  # each of its cells passed
FIRST_UPDATES = "--first-updates"
# What makes the cells of a run what they are.
CARRIED = ("--ask", "--grid", "--data-root", "--checkpoint-root", "--device", "--set", "--ranks", FIRST_UPDATES)


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """What a verdict rests on: the arguments of `verdict_of`."""

    records: Sequence[Record]
    judged: Sequence[Judgement]
    kinds: Sequence[str]
    baseline: str
    before: Sequence[Record]
    command: str
    files: tuple[str, str]

    @property
    def words(self) -> list[str]:
        """The command's; none if a shell could not read it: somebody wrote it into a file."""
        try:
            return shlex.split(self.command)
        except ValueError:
            return []

    def options(self, *, whole: bool = False) -> list[str]:
        """Those of the command that its cells need to run as they did, or to their ends (`whole`); each is one word."""
        carried = []
        for word, value in pairwise([*self.words, "-"]):
            name, has_value, _ = word.partition("=")
            if name in CARRIED and not (whole and name == FIRST_UPDATES):
                carried.append(word if has_value or value.startswith("-") else f"{word}={value}")
        return carried

    def run(self, cells: Sequence[str], *more: str, whole: bool = False) -> str:
        """Runs cells as this run did; `whole`: to their ends."""
        first = next((record for record in (*self.records, *self.before) if record.cell in cells), None)
        words = ["pytest"] if Path.cwd().is_relative_to(ROOT) else ["tunegrid", "run"]
        words += ["-m", words_for(first.cell, first.profile) if first else "quick", "--cells", ",".join(cells)]
        return f"`{shlex.join([*words, *self.options(whole=whole), *more])}`"

    def alone(self, record: Record) -> str:
        """Runs one cell that failed, in one process; a score below its bound beside a run that passed."""
        options = ["-n", "0", *(["--seeds", f"{record.seeds.seed}"] if record.seeds.seed else [])]
        if record.status == "missed" and record.profile == "quick" and not self.judged and not self.options():
            return f"{self.run([record.cell], *options, f'--gate={BASELINE}')} says what is other than in a run that passed"
        return f"{self.run([record.cell], *options)} runs one alone"

    def rest(self) -> str:
        """Runs what was left out."""
        resumed = shlex.join([*self.words, *([] if "--resume" in self.words else ["--resume"])])
        return f"{f'`{resumed}`' if self.words[:1] == ['pytest'] else 'the same command with --resume'} runs what is left"

    def more_seeds(self, cells: Sequence[str]) -> str:
        """What tells changes from noise."""
        return f"{self.run(cells, '--seeds', '0-4', whole=True)}, for both runs, would tell"

    def gate(self, *options: str) -> str:
        """Shows more of the two files."""
        return f"`{shlex.join(['tunegrid', 'gate', *self.files, *options])}`"

    def bisection(self, cell: str, kinds: Sequence[str]) -> str:
        """Finds the release that changed a cell; empty if no library has a later release than before."""
        old, new = ([record for record in records if record.cell == cell] for records in (self.before, self.records))
        before, after = ({} if not own else own[0].versions for own in (old, new))
        upgraded = [name for name in PACKAGES if is_later(before.get(name), after.get(name))]
        if not upgraded:
            return ""
        good, bad = (f"{upgraded[0]}=={versions[upgraded[0]]}" for versions in (before, after))
        marker, seeds = words_for(cell, new[0].profile), sorted({record.seeds.seed or 0 for record in new})
        options = [*(["-m", marker] if marker != "quick" else []), *self.options(whole=True)]
        options += ["--seeds", ",".join(map(str, seeds))] if seeds != [0] else []
        words = ["tunegrid", "bisect", "--good", good, "--bad", bad, "--cells", cell]
        words += ["--by", ",".join(kind for kind in KINDS if kind in kinds), *(["--", *options] if options else [])]
        also = f" ({', '.join(upgraded[1:])} changed, too)" if upgraded[1:] else ""
        return f"`{shlex.join(words)}` finds the release{also}"


def is_later(before: str | None, after: str | None) -> bool:
    """Whether two versions are releases, and the second one is later: another build of one release is not."""
    try:
        old, new = Version(before or ""), Version(after or "")
    except InvalidVersion:
        return False
    return Version(old.public) < Version(new.public) and not (old.is_devrelease or new.is_devrelease)
