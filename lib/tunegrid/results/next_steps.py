"""What to run next: commands that a shell takes as they are, with the options of the run that they are about."""

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
# What makes the cells of a run what they are; the last may stand without a value.
CARRIED = ("--grid", "--data-root", "--checkpoint-root", "--device", "--set", "--ranks", "--first-updates")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A run that a verdict is asked of, and the gate's judgements on it: the arguments of `verdict_of`."""

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

    def options(self, record: Record, *, whole: bool = False) -> list[str]:
        """Those that a cell needs to run as it did, each as one word; without a command those that its record tells."""
        carried = []
        for word, value in pairwise([*self.words, "-"]):
            has_value = value.isdigit() if word == CARRIED[-1] else not value.startswith("-")
            if word.partition("=")[0] in CARRIED:
                carried.append(f"{word}={value}" if word in CARRIED and has_value else word)
        if not self.command:
            ranks = record.ranks and f"--ranks={record.ranks.count}{':fsdp' if record.ranks.fsdp else ''}"
            draw, noise, own_test = record.seeds.perturbation, record.limits.label_noise, record.limits.own_test
            settings = (("perturbation", draw), ("label_noise", noise), ("own_test", own_test and "true"))
            carried = [*([ranks] if ranks else []), *(f"--set={name}={value}" for name, value in settings if value)]
            carried += [f"{CARRIED[-1]}={record.first_updates}"] if record.first_updates else []
        asked = [f"--ask={','.join(record.instruments)}"] if record.instruments else []
        return [*asked, *(option for option in carried if not whole or not option.startswith(CARRIED[-1]))]

    def run(self, cells: Sequence[str], *more: str, whole: bool = False) -> str:
        """Runs cells as this run did; `whole`: to their ends."""
        first = next((record for record in (*self.records, *self.before) if record.cell in cells), None)
        words = ["pytest"] if Path.cwd().is_relative_to(ROOT) else ["tunegrid", "run"]
        words += ["-m", words_for(first.cell, first.profile) if first else "quick", "--cells", ",".join(cells)]
        words += self.options(first, whole=whole) if first else []
        return f"`{shlex.join([*words, *more])}`"

    def alone(self, record: Record) -> str:
        """Runs one cell that failed, in one process; a score below its bound beside a run that passed."""
        options = ["-n", "0", *(["--seeds", f"{record.seeds.seed}"] if record.seeds.seed else [])]
        if record.status == "missed" and record.profile == "quick" and not self.judged and not self.options(record):
            return f"{self.run([record.cell], *options, f'--gate={BASELINE}')} says what is other than in a run that passed"
        return f"{self.run([record.cell], *options)} runs one alone"

    def more_seeds(self, cells: Sequence[str]) -> str:
        """What tells changes from noise."""
        return f"{self.run(cells, '--seeds', '0-4', whole=True)}, for both runs, would tell"

    def gate(self, *options: str) -> str:
        """Shows more of the two files."""
        return f"`{shlex.join(['tunegrid', 'gate', *self.files, *options])}`"

    @property
    def page(self) -> str:
        """Shows the rows of the two files."""
        return f"`{shlex.join(['tunegrid', 'page', *reversed(self.files), '-o', 'page.html'])}`"

    def bisection(self, cell: str, kinds: Sequence[str]) -> str:
        """What finds the release of a library that differs, or the commit if its code does; empty if none is known to."""
        old, new = ([record for record in records if record.cell == cell] for records in (self.before, self.records))
        pairs = [(a, b) for b in new for a in old if a.seeds.seed == b.seeds.seed] or list(zip(old, new, strict=False))
        if not pairs:
            return ""
        before, after = pairs[0]
        seeds, marker = sorted({record.seeds.seed or 0 for record in new}), words_for(cell, after.profile)
        options = [
            *(["-m", marker] if marker != "quick" else []),
            *self.options(after, whole=True),
        ]  # first updates are its own
        options += ["--seeds", ",".join(map(str, seeds))] if seeds != [0] else []
        by = ["--cells", cell, "--by", ",".join(kind for kind in KINDS if kind in kinds)]
        by += ["--", *options] if options else []
        ways = {name: _way(before.versions.get(name), after.versions.get(name)) for name in PACKAGES}
        if upgraded := [name for name in PACKAGES if ways[name] == "release"]:
            good, bad = (f"{upgraded[0]}=={record.versions[upgraded[0]]}" for record in (before, after))
            also = f" ({', '.join(upgraded[1:])} changed, too)" if upgraded[1:] else ""
            return f"`{shlex.join(['tunegrid', 'bisect', '--good', good, '--bad', bad, *by])}` finds the release{also}"
        codes = {name: {one.libraries.get(name) for one in (before, after)} - {None} for name in PACKAGES if ways[name]}
        edited = [name for name, digests in codes.items() if len(digests) > 1]
        ends = ["--repo", "CHECKOUT", "--good", "COMMIT", "--bad", "HEAD"]
        return f"`{shlex.join(['tunegrid', 'bisect', *ends, *by])}` finds the commit of {edited[0]}" if edited else ""


def _way(before: str | None, after: str | None) -> str:
    """How a library is bisected: by releases if the older one is its good end, by commits if it may be a checkout."""
    try:
        old, new = Version(before or ""), Version(after or "")
    except InvalidVersion:
        return ""
    if old == new or new.is_devrelease:
        return "commit"
    return "release" if Version(old.public) < Version(new.public) and not old.is_devrelease else ""
