"""Which release made it worse? `tunegrid bisect --good transformers==5.20 --bad transformers==5.24 --cells t5_qa_lora`.

Finds the release after which the gate calls the cells worse than with the good one; with --repo, the commit of a checkout. Each
release is installed, without what it depends on, in an environment of its own in .cache/bisect. The same command goes on where
it was stopped. What cannot be installed, or does not finish, is skipped. Exit code 1 if skipped releases leave more than one.
"""

import argparse
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from tunegrid import ROOT
from tunegrid.commands.cache import lock_of
from tunegrid.commands.environments import Commits, Releases, Subject, python_with
from tunegrid.errors import InputError
from tunegrid.grid.profiles import CACHE
from tunegrid.machine import versions
from tunegrid.results.answer import COUNTED, FAILED_BY, failing, kinds_of, outcome, undecided
from tunegrid.results.bisection import Bisection, VersionState, bisection, most_steps
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.gate_report import counted, remarks
from tunegrid.results.journal import code_digest
from tunegrid.results.judgements import Outcome

RUNS = CACHE / "bisect"
# The command that runs the cells, of the Python of a version and the file to write.
Command = Callable[[Path, Path], Sequence[str]]


def suite(cells: Sequence[str], options: Sequence[str]) -> Command:
    """The suite itself."""
    selection = ("-q", "-m", "quick", "--cells", ",".join(cells), *options)
    return lambda python, out: [str(python), "-m", "pytest", *selection, f"--benchmark-json={out}"]


class Steps:
    """The runs of each version. A measured one is taken from disk; `state.json` says which were measured."""

    def __init__(self, subject: Subject, cells: Sequence[str], command: Command, folder: Path) -> None:
        """Runs of these cells below `folder`."""
        self._subject, self._cells, self._command, self._folder = subject, cells, command, folder
        self._state_file = folder / "state.json"
        self._state: dict[str, dict[str, str]] = {"measured": {}, "skipped": {}}
        if self._state_file.is_file():
            self._state = json.loads(self._state_file.read_text())

    def run(self, version: str, name: str = "run") -> Run:
        """A version's run; `name` tells a second one from the first. Raises InputError where it cannot be had."""
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
        part = self._state_file.with_suffix(".part")
        part.write_text(json.dumps(self._state, indent=1))
        part.replace(self._state_file)

    def _measure(self, version: str, path: Path) -> None:
        """Leave a whole run at `path`, or nothing."""
        python = python_with(self._subject, version, path.parent / "environment")
        part, output = path.with_suffix(".part"), path.with_suffix(".txt")
        part.unlink(missing_ok=True)
        # PYTHONPATH would come before the version to try; PYTEST_* are those of a session around this one.
        own = {name: text for name, text in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PYTEST_")}
        with output.open("w") as file:
            subprocess.run(self._command(python, part), cwd=ROOT, env=own, stdout=file, stderr=file, check=False)
        finished = read_run(part).records if part.is_file() else {}
        for cell in self._cells:
            if cell not in finished:
                raise InputError(f"{cell} does not finish with {self._subject.name} {version}; {output} says why")
        part.replace(path)


def search(steps: Steps, candidates: Sequence[str], kinds: Sequence[str]) -> Bisection:
    """Check both ends, then halve; raises InputError where the ends do not differ as they should."""
    good, bad = candidates[0], candidates[-1]
    say(f"the good end, {good}, twice")
    baseline = steps.run(good)
    if worse := failing(gate(baseline, steps.run(good, "again")), kinds):
        raise InputError(f"{good} is called worse than itself, so nothing can be told: {remarks(worse)[0]}")
    say(f"the bad end, {bad}")
    judged = gate(baseline, steps.run(bad))
    if not failing(judged, kinds):
        raise InputError(f"by {' and '.join(kinds)} {bad} is not worse than {good} ({counted(judged)}); {advice(kinds)}")
    say(f"{bad}: {remarks(failing(judged, kinds))[0]}")

    def answer(version: str, steps_left: int) -> VersionState:
        say(f"tries {version}; at most {steps_left} step{'s' if steps_left > 1 else ''} left")
        try:
            judged = gate(baseline, steps.run(version))
            if outcome(judged, kinds) is Outcome.CANNOT_TELL:
                raise InputError(remarks(undecided(judged))[0])
            worse = failing(judged, kinds)
        except InputError as error:
            steps.skip(version, str(error))
            say(f"skips {version}: {error}")
            return VersionState.SKIPPED
        say(f"{version}: {remarks(worse)[0]}" if worse else f"{version} is not worse")
        return VersionState.BAD if worse else VersionState.GOOD

    return bisection(candidates, answer)


def advice(kinds: Sequence[str]) -> str:
    """What may tell two versions that these kinds of figures do not."""
    hints = ["more seeds (-- --seeds 0-2) see smaller drops"] if "quality" in kinds else []
    hints += [
        "other cells may show what these do not" if "numerics" in kinds else "--by numerics sees changes before scores do"
    ]
    return ", and ".join(hints)


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def conclusion(name: str, result: Bisection) -> str:
    """What was learned, in one sentence."""
    if not result.skipped:
        return f"{name} {result.first_bad} is the first that is worse; {result.last_good} is not"
    return (
        f"{name} became worse after {result.last_good}: with {result.first_bad}, or with one that was skipped: "
        f"{', '.join(result.skipped)}"
    )


# The command line


def folder_of(options: argparse.Namespace) -> Path:
    """A folder for runs of these cells: those of another suite or beside other libraries are kept apart."""
    name = options.repo.resolve().name if options.repo else options.good.partition("==")[0]
    installed = {package: version for package, version in versions().items() if package != name}
    question = [name if options.repo is None else str(options.repo.resolve()), options.cells, options.pytest_options]
    digest = hashlib.sha256(json.dumps([question, installed, code_digest()]).encode()).hexdigest()[:12]
    return RUNS / f"{name}-{digest}"


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


def main(arguments: Sequence[str] | None = None, command: Command | None = None) -> int:
    """Search, say what was learned; return the exit code. `command` runs cells; the suite where it is None."""
    parser, options = parsed(arguments)
    cells, folder = options.cells.split(","), folder_of(options)
    try:
        subject, good, bad = subject_of(options, folder)
        kinds = kinds_of(options.by)
        candidates = subject.between(good, bad)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_of(folder)):  # while it is held, no session removes the environments
            steps = Steps(subject, cells, command or suite(cells, options.pytest_options), folder)
            most = most_steps(len(candidates) - 2)
            say(f"{subject.name}: {len(candidates)} versions, at most {most} steps after the two ends; kept in {folder}")
            result = search(steps, candidates, kinds)
    except InputError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        say(f"stopped; the same command goes on with what is in {folder}")
        return 130
    say(conclusion(subject.name, result))
    return int(bool(result.skipped))
