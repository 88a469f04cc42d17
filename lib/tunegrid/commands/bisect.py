"""Which release made it worse? `tunegrid bisect --good transformers==5.20 --bad transformers==5.24 --cells t5_qa_lora`.

Finds the release after which the gate calls the cells worse than with the good one; with --repo, the commit of a checkout. Each
release is installed, without what it depends on, in an environment of its own in .cache/bisect. The same command goes on where
it was stopped. What cannot be installed, or does not finish, is skipped. Exit code 1 where no one release is found: the bad end
is not worse, or skipped releases leave more than one.
"""

import argparse
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.commands.environments import (
    ENVIRONMENT,
    Command,
    Commits,
    Releases,
    Subject,
    Suite,
    first_updates,
    held,
    measure,
    output_of_run,
    python_with,
    suite,
)
from tunegrid.errors import InputError
from tunegrid.grid.recipes import CACHE
from tunegrid.machine import import_folder, library_digests, replacing, versions
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import Judgement, Outcome
from tunegrid.results.report import count
from tunegrid.results.resume_key import code_digest
from tunegrid.results.summary import counted, remarks
from tunegrid.results.verdict import COUNTED, FAILED_BY, RunVerdict, failing, in_lines, kinds_of, outcome, undecided, verdict_of
from tunegrid.terminal import say


class VersionState(StrEnum):
    """What an oracle says of a version."""

    GOOD = "not worse"
    BAD = "worse"
    SKIPPED = "skipped"  # it cannot be told, as where the version cannot be installed


# Answers for a version, and is told how many steps are left at most, this one included.
Oracle = Callable[[str, int], VersionState]


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """Between which versions it became worse.

    Attributes:
        last_good: the last version that is known not to be worse.
        first_bad: the first version that is known to be worse.
        skipped: versions between the two; any of them may be the first that is worse.
    """

    last_good: str
    first_bad: str
    skipped: tuple[str, ...]


def most_steps(candidates: int) -> int:
    """How many questions tell so many versions apart, with a good one before and a bad one after them.

    Every version that has to be skipped may cost one more.
    """
    return candidates.bit_length()


def bisection(versions: Sequence[str], oracle: Oracle) -> Bisection:
    """Halve until no version is left to ask about; the first version is good and the last one is bad, unasked."""
    last_good, first_bad, skipped = 0, len(versions) - 1, set[int]()
    while candidates := [index for index in range(last_good + 1, first_bad) if index not in skipped]:
        index = candidates[len(candidates) // 2]
        answer = oracle(versions[index], most_steps(len(candidates)))
        if answer is VersionState.GOOD:
            last_good = index
        elif answer is VersionState.BAD:
            first_bad = index
        else:
            skipped.add(index)
    between = tuple(versions[last_good + 1 : first_bad])
    return Bisection(last_good=versions[last_good], first_bad=versions[first_bad], skipped=between)


RUNS = CACHE / "bisect"


class NotWorse(InputError):
    """The bad end is not worse than the good one."""


class Steps:
    """The runs of each version. A measured one is taken from disk; `state.json` says which were measured."""

    def __init__(self, subject: Subject, cells: Sequence[str], command: Command, folder: Path, stage: str = "") -> None:
        """Runs of these cells below `folder`; files of a stage have its name in front."""
        self._subject, self._cells, self._command, self._folder, self._stage = subject, cells, command, folder, stage
        self._state_file = folder / "state.json"
        self._state: dict[str, dict[str, str]] = {"measured": {}, "skipped": {}}
        if self._state_file.is_file():
            self._state = json.loads(self._state_file.read_text(encoding="utf-8"))

    def run(self, version: str, name: str = "run") -> Run:
        """A version's run; `name` tells a second one from the first. Raises InputError where it cannot be had."""
        name = f"{self._stage}{name}"
        path = self._folder / version / f"{name}.json"
        if f"{version} {name}" not in self._state["measured"] or not path.is_file():
            began = time.monotonic()
            self._measure(version, path)
            self._state["skipped"].pop(version, None)
            self._keep("measured", f"{version} {name}", f"in {time.monotonic() - began:.0f} s")
        return read_run(path)

    def skip(self, version: str, reason: str) -> None:
        """Write down why a version was skipped; another session tries it again."""
        self._keep("skipped", version, reason)

    def _keep(self, kind: str, key: str, text: str) -> None:
        self._state[kind][key] = text
        with replacing(self._state_file) as part:
            part.write_text(json.dumps(self._state, indent=1), encoding="utf-8")

    def _measure(self, version: str, path: Path) -> None:
        """Leave a whole run at `path`, or nothing."""
        python = python_with(self._subject, version, path.parent / ENVIRONMENT)
        part = path.with_suffix(".part")
        finished = Run.of(measure(self._command, python, path, part)).records
        for cell in self._cells:
            if cell not in finished:
                raise InputError(f"{cell} does not finish with {self._subject.name} {version}; {output_of_run(path)} says why")
        part.replace(path)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search learned, and what the gate says of the first version that is worse."""

    bisection: Bisection
    verdict: RunVerdict


def search(steps: Steps, candidates: Sequence[str], kinds: Sequence[str]) -> Found:
    """Check both ends, then halve; raises InputError where the ends do not differ as they should."""
    good, bad = candidates[0], candidates[-1]
    say(f"the good end, {good}, twice")
    baseline = steps.run(good)
    if worse := failing(gate(baseline, steps.run(good, "again")), kinds):
        raise InputError(f"{good} is called worse than itself, so nothing can be told: {remarks(worse)[0]}")
    say(f"the bad end, {bad}")
    judged, verdicts = gate(baseline, steps.run(bad)), dict[str, RunVerdict]()
    if not failing(judged, kinds):
        raise NotWorse(f"by {' and '.join(kinds)} {bad} is not worse than {good} ({counted(judged)}); {advice(kinds)}")

    def tell(version: str, judged: Sequence[Judgement]) -> bool:
        """Say whether a version is worse."""
        after, before = steps.run(version).in_a_row, baseline.in_a_row
        verdict = verdicts[version] = verdict_of(after, judged, kinds, baseline=good, before=before, troubles=None)
        worse = bool(verdict.failing)
        say(f"{version}: {verdict.answer}" if worse else f"{version} is not worse")
        return worse

    tell(bad, judged)

    def answer(version: str, steps_left: int) -> VersionState:
        say(f"tries {version}; at most {count(steps_left, 'step')} left")
        try:
            judged = gate(baseline, steps.run(version))
            if outcome(judged, kinds) is Outcome.CANNOT_TELL:
                reasons = [*remarks(undecided(judged)), *remarks(judged), f"nothing of {' and '.join(kinds)} could be compared"]
                raise InputError(reasons[0])
        except InputError as error:
            steps.skip(version, str(error))
            say(f"skips {version}: {error}")
            return VersionState.SKIPPED
        return VersionState.BAD if tell(version, judged) else VersionState.GOOD

    result = bisection(candidates, answer)
    return Found(bisection=result, verdict=verdicts[result.first_bad])


def searched(steps: Callable[..., Steps], candidates: Sequence[str], kinds: Sequence[str], options: Sequence[str]) -> Found:
    """The same by first updates where numerics alone count and the ends differ in these; else by whole runs.

    Scores need whole runs: a release may change the arithmetic and another one, later, the score.
    """
    if tuple(kinds) == ("numerics",) and (stage := first_updates(options)):
        try:
            return search(steps(*stage), candidates, kinds)
        except NotWorse:
            say("the first updates do not tell the ends apart: cells train to their ends")
    return search(steps(), candidates, kinds)


def advice(kinds: Sequence[str]) -> str:
    """What may tell two versions that these kinds of figures do not."""
    hints = ["more seeds (-- --seeds 0-2) see smaller drops"] if "quality" in kinds else []
    hints += [
        "other cells may show what these do not" if "numerics" in kinds else "--by numerics sees changes before scores do"
    ]
    return ", and ".join(hints)


def conclusion(subject: Subject, found: Found) -> Sequence[str]:
    """What was learned: which version it was, what the gate says of it, and what to look at."""
    name, result, cause = subject.name, found.bisection, found.verdict.findings[0].sentence
    if result.skipped:
        others = f"with {result.first_bad}, or with one that was skipped: {', '.join(result.skipped)}"
        answer = f"{name} became worse after {result.last_good}: {others}."
        return in_lines(answer, cause, "the same command tries what was skipped again")
    answer = f"{name} {result.first_bad} is the first that is worse; {result.last_good} is not."
    return in_lines(answer, cause, _where_it_is(subject, result.first_bad))


def _where_it_is(subject: Subject, version: str) -> str:
    """What shows the change."""
    if isinstance(subject, Commits):
        return f"`{shlex.join(['git', '-C', subject.name, 'show', version])}` is the change"
    return f"the release notes of {subject.name} {version} say what changed; in a checkout, --repo finds the commit"


def folder_of(options: argparse.Namespace) -> Path:
    """A folder for runs of these cells: those of another suite or beside other libraries are kept apart."""
    repo = options.repo and options.repo.resolve()
    name = repo.name if repo else options.good.partition("==")[0]
    installed, digests = versions(), library_digests()
    others = [package for package in installed if not _is_bisected(package, name, repo)]
    beside = [(package, installed[package], digests.get(package)) for package in others]
    question = [str(repo or name), options.cells, options.pytest_options]
    digest = hashlib.sha256(json.dumps([question, beside, code_digest()]).encode()).hexdigest()[:12]
    return RUNS / f"{name}-{digest}"


def _is_bisected(package: str, name: str, repo: Path | None) -> bool:
    """Whether a package is the one to try, which may be installed here, too, as from the very checkout."""
    folder = import_folder(package) if repo else None
    return folder.is_relative_to(repo) if folder and repo else package == name


def subject_of(options: argparse.Namespace, folder: Path) -> tuple[Subject, str, str]:
    """What is bisected, and its two ends; raises InputError where these are of two packages, or of none."""
    pip = [f"--index-url={options.index_url}"] if options.index_url else []
    pip += ["--no-index", f"--find-links={options.find_links.resolve()}"] if options.find_links else []
    if options.repo:
        return Commits(repo=options.repo, folder=folder, options=pip), options.good, options.bad
    (name, _, good), (other, _, bad) = (text.partition("==") for text in (options.good, options.bad))
    if not good or name != other:
        raise InputError("give two releases of one package, as in --good peft==0.20 --bad peft==0.21, or a checkout as --repo")
    return Releases(name=name, options=pip, listed=options.versions.split(",") if options.versions else None), good, bad


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tunegrid bisect", description=__doc__)
    parser.add_argument("--good", required=True, metavar="PACKAGE==VERSION", help="not worse; with --repo a commit")
    parser.add_argument("--bad", required=True, metavar="PACKAGE==VERSION", help="worse; with --repo a commit")
    parser.add_argument("--cells", required=True, metavar="ID,ID", help="cells to run; the fewer, the sooner")
    parser.add_argument("--by", default=",".join(FAILED_BY), metavar="KIND,KIND", help=f"of {','.join(COUNTED)}: what counts")
    parser.add_argument("--repo", type=Path, metavar="PATH", help="a checkout whose commits are tried")
    parser.add_argument("--versions", metavar="A,B,C", help="releases to try (default: all that pip lists)")
    parser.add_argument("--index-url", metavar="URL", help="of another package index")
    parser.add_argument("--find-links", type=Path, metavar="DIR", help="wheels to take, in place of an index")
    parser.add_argument("pytest_options", nargs="*", metavar="-- OPTION", help="of pytest, as in -- --seeds 0-2 --grid=dora.py")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, suite: Suite = suite) -> int:
    """Search, say what was learned; return the exit code. `suite` makes the commands that run cells."""
    parser, options = parsed(arguments)
    cells, folder = options.cells.split(","), folder_of(options)
    try:
        subject, good, bad = subject_of(options, folder)
        kinds = kinds_of(options.by)
        candidates = subject.between(good, bad)
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder):  # meanwhile no session removes the environments
            most = most_steps(len(candidates) - 2)
            say(f"{subject.name}: {len(candidates)} versions, at most {most} steps after the two ends; kept in {folder}")

            def steps(*stage: str) -> Steps:
                chosen = suite(cells, (*stage, *options.pytest_options), "quick")
                return Steps(subject, cells, chosen, folder, "first-updates-" if stage else "")

            found = searched(steps, candidates, kinds, options.pytest_options)
    except NotWorse as error:
        say(f"nothing to find: {error}")
        return 1
    except InputError as error:
        refuse(parser, error)
    except KeyboardInterrupt:
        say(f"stopped; the same command goes on with what is in {folder}")
        return 130
    say("\n".join(conclusion(subject, found)))
    return int(bool(found.bisection.skipped))
