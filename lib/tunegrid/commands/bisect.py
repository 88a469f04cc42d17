"""Which release made it worse? `tunegrid bisect --good transformers==5.20 --bad transformers==5.24 --cells t5_qa_lora`.

Finds the release after which the gate calls the cells worse than with the good one; with --repo, the commit of a checkout. Each
release is installed, without what it depends on, in an environment of its own. The same command goes on where it was stopped.
What cannot be installed, or does not finish, is skipped. Exit code 1 if no one release is found: the bad end is not worse, or
skipped releases leave more than one.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tunegrid.commands import environments
from tunegrid.commands.environments import Suite, output_of
from tunegrid.errors import InputError
from tunegrid.results.files import read_list
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import Outcome
from tunegrid.results.report import count
from tunegrid.results.summary import counted, remarks
from tunegrid.results.verdict import failing, in_lines, kinds_of, outcome, undecided, verdict_of
from tunegrid.terminal import say

Measure = Callable[..., Run]  # of a version, and a name that tells a second run of it from the first


class NotWorse(InputError):
    """The bad end is not worse than the good one."""


class Bisection(NamedTuple):
    """Between which versions it became worse; any of those that were skipped may be the first that is worse, too."""

    last_good: str
    first_bad: str
    skipped: tuple[str, ...]


def bisection(versions: Sequence[str], is_worse: Callable[[str, int], bool | None]) -> Bisection:
    """Halve until no version is left to ask about; the first version is good and the last one is bad, unasked.

    `is_worse` takes a version and how many steps are left, this one included, if none is skipped; None: it cannot be told.
    """
    last_good, first_bad, skipped = 0, len(versions) - 1, set[int]()
    while candidates := [index for index in range(last_good + 1, first_bad) if index not in skipped]:
        index = candidates[len(candidates) // 2]
        worse = is_worse(versions[index], len(candidates).bit_length())
        if worse is None:
            skipped.add(index)
        elif worse:
            first_bad = index
        else:
            last_good = index
    return Bisection(versions[last_good], versions[first_bad], tuple(versions[last_good + 1 : first_bad]))


def search(measure: Measure, versions: Sequence[str], kinds: Sequence[str]) -> tuple[Bisection, str]:
    """Check both ends, then halve; what was found, and the cause that the gate names for the first version that is worse.

    Raises:
        InputError: if the ends do not differ as they should.
    """
    good, bad, by = versions[0], versions[-1], " and ".join(kinds)
    causes: dict[str, str] = {}
    say(f"the good end, {good}, twice")
    baseline = measure(good)
    if worse := failing(gate(baseline, measure(good, "again")), kinds):
        raise InputError(f"{good} is called worse than itself, so nothing can be told: {remarks(worse)[0]}")

    def is_worse(version: str) -> bool:
        run = measure(version)
        judged = gate(baseline, run)
        worse = failing(judged, kinds)
        if version == bad and not worse:
            hints = ["more seeds (-- --seeds 0-2) see smaller drops"] if "quality" in kinds else []
            seen = "other cells may show what these do not", "--by numerics sees changes before scores do"
            hints.append(seen["numerics" not in kinds])
            raise NotWorse(f"by {by} {bad} is not worse than {good} ({counted(judged)}); {', and '.join(hints)}")
        if outcome(judged, kinds) is Outcome.CANNOT_TELL:
            reasons = [*remarks(undecided(judged)), *remarks(judged), f"nothing of {by} could be compared"]
            raise InputError(reasons[0])
        if worse:
            verdict = verdict_of(run.in_a_row, judged, kinds, baseline=good, before=baseline.in_a_row, troubles=None)
            causes[version] = verdict.findings[0].sentence
        say(f"{version}: {verdict.answer}" if worse else f"{version} is not worse")
        return bool(worse)

    def step(version: str, steps_left: int) -> bool | None:
        say(f"tries {version}; at most {count(steps_left, 'step')} left")
        try:
            return is_worse(version)
        except InputError as error:
            say(f"skips {version}: {error}")
            return None

    say(f"the bad end, {bad}")
    is_worse(bad)
    found = bisection(versions, step)
    return found, causes[found.first_bad]


def run_version(
    options: argparse.Namespace, suite: Suite, package: str, stage: Sequence[str], version: str, name: str = "run"
) -> Run:
    """A version's run; `name` tells a second one from the first. Raises InputError if it cannot be had."""
    wanted = environments.copy_of(options.repo, version).as_uri() if options.repo else f"{package}=={version}"
    environment, cells = environments.environment_with([wanted], options.find_links, alone=True), options.cells.split(",")

    def missing(path: Path) -> list[str]:
        finished = Run.of(read_list(path)).records
        return [cell for cell in cells if cell not in finished]

    command = suite(cells, (*stage, *options.pytest_options), "quick")
    file = f"{'first-updates-' if stage else ''}{name}.json"
    path = environment.run(command, sorted(cells), options.pytest_options, file, lambda path: not missing(path))
    if unfinished := missing(path):
        raise InputError(f"{unfinished[0]} does not finish with {package} {version} ({path} and its .txt say why)")
    return read_run(path)


def package_of(good: str, bad: str) -> str:
    """The canonical name of the package whose releases these are; raises InputError if they are of two packages, or of none."""
    ends = [text.partition("==") for text in (good, bad)]
    with suppress(ValueError):  # of another text than a name or a version, or of two packages
        [package] = {str(canonicalize_name(Requirement(name).name)) for name, _, version in ends if Version(version)}
        return package
    raise InputError("give two releases of one package, as in --good peft==0.20 --bad peft==0.21, or a checkout as --repo")


def releases(package: str, good: str, bad: str, wheels: Path | None, listed: Sequence[str] = ()) -> list[str]:
    """Releases from the good one to the bad one, the older first; 5.20 is the index's 5.20.0. pip lists them if nobody did."""
    if not listed:
        # Not importlib.util.find_spec: asked for pip, setuptools' hook takes distutils from setuptools in this process.
        has_pip = PathFinder.find_spec("pip")
        pip = [sys.executable, "-m", "pip"] if has_pip else [shutil.which("uv") or "uv", "tool", "run", "pip"]
        places = ["--no-index", f"--find-links={wheels.resolve()}"] if wheels else []
        failure = f"the releases of {package} cannot be listed (give them with --versions A,B,C)"
        lines = output_of([*pip, "index", "versions", *places, "--", package], failure)
        [line] = [line for line in lines if line.startswith("Available versions:")]
        listed = line.partition(":")[2].split(",")
    try:
        spelled = {Version(text): text.strip() for text in (good, bad, *listed)}
    except InvalidVersion as error:
        raise InputError(f"{error}; versions are those of `pip index versions {package}`") from None
    first, last = Version(good), Version(bad)
    if first >= last:
        raise InputError(f"{package} {good} is not older than {bad}: give the older release as --good")
    return [spelled[version] for version in sorted(spelled) if first <= version <= last]


def commits(repo: Path, good: str, bad: str) -> list[str]:
    """Commits of a checkout from the good one to the bad one; what a merge brings in counts as one commit."""

    def git(*arguments: str) -> list[str]:
        return output_of(["git", "-C", str(repo), *arguments], f"{repo} cannot be read")

    first, last = (git("rev-parse", "--short", "--verify", f"{commit}^{{commit}}")[0] for commit in (good, bad))
    later = git("rev-list", "--reverse", "--first-parent", "--abbrev-commit", f"{first}..{last}")
    if not later or git("merge-base", first, last) != git("rev-parse", first):
        raise InputError(f"{good} is not an ancestor of {bad} in {repo}: give the older commit as --good")
    return [first, *later]


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tunegrid bisect", description=__doc__)
    parser.add_argument("--good", required=True, metavar="PACKAGE==VERSION", help="not worse; with --repo a commit")
    parser.add_argument("--bad", required=True, metavar="PACKAGE==VERSION", help="worse; with --repo a commit")
    parser.add_argument("--cells", required=True, metavar="ID,ID", help="cells to run; the fewer, the sooner")
    parser.add_argument(
        "--repo", type=lambda text: Path(text).resolve(), metavar="PATH", help="a checkout whose commits are tried"
    )
    parser.add_argument("--versions", metavar="A,B,C", help="releases to try (default: all that pip lists)")
    parser.add_argument("pytest_options", nargs="*", metavar="-- OPTION", help="of pytest, as in -- --seeds 0-2 --grid=dora.py")
    environments.add_options(parser)
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, suite: Suite = environments.suite) -> int:
    """Search, say what was learned; return the exit code. `suite` makes the commands that run cells."""
    parser, options = parsed(arguments)
    return environments.code_of(parser, partial(run_bisection, options, suite))


def run_bisection(options: argparse.Namespace, suite: Suite) -> int:
    """Search, say what was learned; return the exit code. Raises InputError if an argument cannot be used."""
    kinds = kinds_of(options.by)
    if options.repo:
        package, versions = options.repo.name, commits(options.repo, options.good, options.bad)
    else:
        package, listed = package_of(options.good, options.bad), options.versions.split(",") if options.versions else ()
        good, bad = (end.partition("==")[2] for end in (options.good, options.bad))
        versions = releases(package, good, bad, options.find_links, listed)
    say(f"{package}: {len(versions)} versions, at most {(len(versions) - 2).bit_length()} steps after the two ends")
    run = partial(run_version, options, suite, package)
    # Scores need whole runs: a release may change the arithmetic and another one, later, the score.
    first_updates = environments.first_updates(options.pytest_options) if kinds == ("numerics",) else ()
    for stage in (first_updates, ()) if first_updates else ((),):
        try:
            found, cause = search(partial(run, stage), versions, kinds)
            break
        except NotWorse as error:
            say(f"nothing to find{' in first updates' if stage else ''}: {error}")
    else:
        return 1
    last, first = found.last_good, found.first_bad
    if found.skipped:
        answer = f"{package} became worse after {last}: with {first}, or with one that was skipped: {', '.join(found.skipped)}."
        next_step = "the same command tries what was skipped again"
    else:
        answer = f"{package} {first} is the first that is worse; {last} is not."
        next_step = f"the release notes of {package} {first} say what changed; in a checkout, --repo finds the commit"
        if options.repo:
            next_step = f"`{shlex.join(['git', '-C', str(options.repo), 'show', first])}` is the change"
    say("\n".join(in_lines(answer, cause, next_step)))
    return int(bool(found.skipped))
