"""Which release made it worse? `tunegrid bisect --good transformers==5.20 --bad transformers==5.24 --cells t5_qa_lora`.

Finds the first release with which the gate calls the cells worse than with the good one; with --repo, the first such commit of
a checkout. Each release is installed, without its dependencies, in an environment of its own. After a stop, the same command
goes on. A release that cannot be installed, or does not finish, is skipped. Exit code 1 if several remain because of skips.
"""

import argparse
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tunegrid.commands import environments
from tunegrid.commands.packages import git_address, list_releases, read_output
from tunegrid.errors import InputError
from tunegrid.gate.judgements import (
    KINDS,
    Judgement,
    Verdict,
    find_worse,
    main_scores,
    parse_kinds,
    uncompared_kinds,
)
from tunegrid.report.summary import count_verdicts, remarks
from tunegrid.report.verdict import answer_lines, run_verdict
from tunegrid.terminal import say
from tunegrid.words import count

if TYPE_CHECKING:
    from tunegrid.gate.gate import Run  # which brings scipy

Measure = Callable[..., "Run"]  # of a version, and the name of its file if it is a second run


def search(measure: Measure, versions: Sequence[str], kinds: Sequence[str]) -> tuple[int, int, str]:
    """The last version that is not worse and the first that is, by number, and the cause that the gate names.

    Both ends are checked, then it is halved. What cannot be told is skipped, and lies between the two if it is in doubt.

    Raises:
        InputError: if the ends do not differ as they should.
    """
    from tunegrid.gate.gate import gate

    good, bad = versions[0], versions[-1]
    basis = " and ".join(kinds)
    causes: dict[str, str] = {}
    say(f"runs the good end, {good}, twice")
    baseline = measure(good)
    if drops := find_worse(gate(baseline, measure(good, "again")), kinds):
        raise InputError(f"{good} is called worse than itself, so there is nothing to bisect: {remarks(drops)[0]}")

    def is_worse(version: str) -> bool:
        run = measure(version)
        verdicts = gate(baseline, run)
        if find_worse(verdicts, kinds):
            say(f"{version}: worse")
            verdict = run_verdict(
                run.all_records,
                verdicts,
                kinds,
                baseline=good,
                before=baseline.all_records,
                judges_cells=False,
            )
            causes[version] = verdict.statements[0].clause
            return True
        if version == bad:
            hint = "more seeds (-- --seeds 0-2) detect smaller drops, --gate-on numerics detects changes before scores"
            raise InputError(f"nothing to find: {bad} is not worse than {good} by {basis} ({count_verdicts(verdicts)}); {hint}")
        reason = why_undecided(verdicts, kinds)
        if reason:
            raise InputError(reason)
        say(f"{version}: no worse")
        return False

    say(f"runs the bad end, {bad}")
    is_worse(bad)
    last_good, first_bad, candidates = 0, len(versions) - 1, list(range(1, len(versions) - 1))
    while candidates:
        middle = len(candidates) // 2
        index = candidates[middle]
        say(f"tries {versions[index]}; at most {count(len(candidates).bit_length(), 'step')} left")
        try:
            worse_there = is_worse(versions[index])
        except InputError as error:
            say(f"skips {versions[index]}: {error}")
            candidates.remove(index)
            continue
        if worse_there:
            first_bad, candidates = index, candidates[:middle]
        else:
            last_good, candidates = index, candidates[middle + 1 :]
    return last_good, first_bad, causes[versions[first_bad]]


def why_undecided(judged: Sequence[Judgement], kinds: Sequence[str]) -> str:
    """Why it cannot be told whether a version is worse; empty if it is not."""
    undecided = main_scores(judged, Verdict.CANNOT_TELL)
    unknown = uncompared_kinds(judged, kinds)
    if not unknown:
        return ""
    for remark in (*remarks(undecided), *remarks(judged)):
        return remark
    return f"nothing of {' and '.join(unknown)} could be compared"


def run_version(options: argparse.Namespace, package: str, version: str, name: str = "run") -> "Run":
    """A version's run; one of another `name` is measured anew. Raises InputError if it cannot be had."""
    from tunegrid.gate.gate import read_run

    required = git_address(options.repo, version) if options.repo else f"{package}=={version}"
    environment = environments.get_environment([required], options.find_links, alone=True)
    resume = ("--resume",) if name == "run" else ()
    path = environment.run(f"{name}.json", ["-m", "quick", "--cells", options.cells, *resume, *options.pytest_options])
    run = read_run(path)
    if missing_cells := [cell for cell in options.cells.split(",") if cell not in run.records]:
        raise InputError(f"{missing_cells[0]} does not finish with {package} {version} ({path.with_suffix('.txt')} says why)")
    return run


def releases(options: argparse.Namespace) -> tuple[str, list[str]]:
    """A package, and its releases from the good one to the bad one, the older first; 5.20 is the index's 5.20.0.

    Raises:
        InputError: if the ends are no two releases of one package, or nobody can list those between.
    """
    ends = [text.partition("==") for text in (options.good, options.bad)]
    try:
        [package] = {str(canonicalize_name(Requirement(name).name)) for name, _, _ in ends}
        first, last = (Version(version) for _, _, version in ends)
    except ValueError:  # of another text than a name or a version, or of two packages
        example = "as in --good peft==0.20 --bad peft==0.21, or a checkout as --repo"
        raise InputError(f"give two releases of one package, {example}") from None
    if first >= last:
        raise InputError(f"{package} {first} is not older than {last}: give the older release as --good")
    texts = options.versions.split(",") if options.versions else []
    texts = texts or list_releases(package, first, last, options.find_links)
    try:
        spellings = {first: ends[0][2], last: ends[1][2]} | {Version(text): text.strip() for text in texts}
    except InvalidVersion as error:
        raise InputError(f"{error}; give versions of {package} as --versions A,B,C") from None
    return package, [spellings[version] for version in sorted(spellings) if first <= version <= last]


def commits(repo: Path, good: str, bad: str) -> list[str]:
    """Commits of a checkout from the good one to the bad one; what a merge brings in counts as one commit."""

    def git(*arguments: str) -> list[str]:
        return read_output(["git", "-C", str(repo), *arguments], f"{repo} cannot be read")

    first, last = (git("rev-parse", "--short", "--verify", f"{commit}^{{commit}}")[0] for commit in (good, bad))
    later = git("rev-list", "--reverse", "--first-parent", "--abbrev-commit", f"{first}..{last}")
    if not later or git("merge-base", first, last) != git("rev-parse", first):
        raise InputError(f"{good} is not an ancestor of {bad} in {repo}: give the older commit as --good")
    return [first, *later]


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, say what was learned; return the exit code. Raises InputError, as `run_bisection`."""
    parser = argparse.ArgumentParser(prog="tunegrid bisect", description=__doc__)
    add = parser.add_argument
    add("--good", required=True, metavar="PACKAGE==VERSION", help="a release that is not worse; with --repo a commit")
    add("--bad", required=True, metavar="PACKAGE==VERSION", help="a release that is worse; with --repo a commit")
    add("--cells", required=True, metavar="ID,ID", help="cells to run; fewer are faster")
    add("--repo", type=lambda text: Path(text).resolve(), metavar="PATH", help="a checkout whose commits are tried")
    add("--versions", metavar="A,B,C", help="releases to try (default: all of the index)")
    add("pytest_options", nargs="*", metavar="-- OPTION", help="options of pytest, as in -- --seeds 0-2 --first-updates")
    environments.add_options(parser, KINDS)
    return run_bisection(parser.parse_args(arguments))


def run_bisection(options: argparse.Namespace) -> int:
    """Search, say what was learned; return the exit code. Raises InputError if an argument cannot be used."""
    kinds = parse_kinds(options.gate_on, KINDS)
    if options.repo:
        package, versions = options.repo.name, commits(options.repo, options.good, options.bad)
    else:
        package, versions = releases(options)
    say(f"{package}: {len(versions)} versions, at most {(len(versions) - 2).bit_length()} steps after the two ends")
    last_good, first_bad, cause = search(partial(run_version, options, package), versions, kinds)
    last, *skips, first = versions[last_good : first_bad + 1]
    answer = f"{package} {first} is the first that is worse; {last} is not."
    next_step = f"the release notes of {package} {first} say what changed; in a checkout, --repo finds the commit"
    if skips:
        answer = f"{package} became worse after {last}: with {first}, or with one that was skipped: {', '.join(skips)}."
        next_step = "the same command tries what was skipped again"
    elif options.repo:
        next_step = f"`{shlex.join(['git', '-C', str(options.repo), 'show', first])}` is the change"
    say("\n".join(answer_lines(answer, cause, next_step)))
    return int(bool(skips))
