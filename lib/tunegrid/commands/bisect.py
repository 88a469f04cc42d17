"""Which release made it worse?

`tunegrid bisect --good transformers==5.20 --bad transformers==5.24 --cells t5_qa_lora`.

Finds the first release that the gate calls worse than the good one or, with --repo, the first such
commit of a checkout. Each version is installed, without its dependencies, in an environment of its
own. Versions that cannot be installed or judged are skipped; the exit code is 1 if a skipped one
may be the first bad one. If interrupted, run the same command again to continue.
"""

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tunegrid.commands import environments
from tunegrid.commands.packages import git_address, list_releases, read_output
from tunegrid.commands.sides import Runner, finished_cells, judge, parse_options
from tunegrid.errors import InputError
from tunegrid.gate.judgements import (
    KINDS,
    Judgement,
    Verdict,
    find_worse,
    main_scores,
    uncompared_kinds,
)
from tunegrid.report.summary import count_verdicts, remarks
from tunegrid.report.verdict import answer_lines, run_verdict
from tunegrid.runs.files import SavedRun
from tunegrid.terminal import say
from tunegrid.words import count

Measure = Callable[..., SavedRun]  # runs the cells with a version; `again` repeats the run


def search(measure: Measure, versions: Sequence[str], kinds: Sequence[str]) -> tuple[int, int, str]:
    """Find the last version known to be good and the first known to be bad.

    Returns their indexes, and the reason why the gate calls the bad one worse. Versions that cannot
    be run or judged are skipped. All versions between the two returned were skipped; any of them
    may be the first bad one.

    Raises:
        InputError: if the good or the bad version cannot be run, if the gate calls the good version
            worse than itself, or if it does not call the bad version worse.
    """
    good = versions[0]
    bad = versions[-1]
    basis = " and ".join(kinds)
    causes: dict[str, str] = {}
    say(f"runs the good end, {good}, twice")
    baseline = measure(good)
    drops = find_worse(judge(baseline, measure(good, again=True)), kinds)
    if drops:
        reason = remarks(drops)[0]
        raise InputError(
            f"{good} is called worse than itself, so there is nothing to bisect: {reason}"
        )

    def is_worse(version: str) -> bool:
        run = measure(version)
        judgements = judge(baseline, run)
        if find_worse(judgements, kinds):
            say(f"{version}: worse")
            verdict = run_verdict(
                run.records,
                judgements,
                kinds,
                baseline=good,
                before=baseline.records,
                judges_cells=False,
            )
            causes[version] = verdict.statements[0].clause
            return True
        if version == bad:
            answer = f"{bad} is not worse than {good} by {basis} ({count_verdicts(judgements)})"
            seeds = "more seeds (-- --seeds 0-2) detect smaller drops"
            numerics = "--gate-on numerics detects changes before scores"
            raise InputError(f"nothing to find: {answer}; {seeds}, {numerics}")
        reason = why_undecided(judgements, kinds)
        if reason:
            raise InputError(reason)
        say(f"{version}: no worse")
        return False

    say(f"runs the bad end, {bad}")
    is_worse(bad)
    last_good = 0
    first_bad = len(versions) - 1
    candidates = list(range(1, first_bad))
    while candidates:
        middle = len(candidates) // 2
        index = candidates[middle]
        version = versions[index]
        say(f"tries {version}; at most {count(len(candidates).bit_length(), 'step')} left")
        try:
            worse_there = is_worse(version)
        except InputError as error:
            say(f"skips {version}: {error}")
            candidates.remove(index)
            continue
        if worse_there:
            first_bad = index
            candidates = candidates[:middle]
        else:
            last_good = index
            candidates = candidates[middle + 1 :]
    return last_good, first_bad, causes[versions[first_bad]]


def why_undecided(judged: Sequence[Judgement], kinds: Sequence[str]) -> str:
    """The reason why the gate cannot judge a version; empty if it can judge it."""
    unknown = uncompared_kinds(judged, kinds)
    if not unknown:
        return ""
    undecided = main_scores(judged, Verdict.CANNOT_TELL)
    for remark in (*remarks(undecided), *remarks(judged)):
        return remark
    return f"nothing of {' and '.join(unknown)} could be compared"


def releases(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Get a package's name, and its releases from --good to --bad, oldest first.

    5.20 and 5.20.0 count as one release.

    Raises:
        InputError: if --good and --bad are not an older and a newer release of the same package, or
            if the releases between them cannot be listed.
    """
    good, _, good_text = options.good.partition("==")
    bad, _, bad_text = options.bad.partition("==")
    try:
        [package] = {str(canonicalize_name(Requirement(name).name)) for name in (good, bad)}
        first = Version(good_text)
        last = Version(bad_text)
    except ValueError:  # not a name or a version, or two different packages
        example = "as in --good peft==0.20 --bad peft==0.21, or a checkout as --repo"
        raise InputError(f"give two releases of one package, {example}") from None
    if first >= last:
        raise InputError(
            f"{package} {first} is not older than {last}: give the older release as --good"
        )
    texts = options.versions.split(",") if options.versions else []
    texts = texts or list_releases(package, first, last, options.find_links)
    try:
        spellings = {first: good_text, last: bad_text}
        spellings |= {Version(text): text.strip() for text in texts}
    except InvalidVersion as error:
        raise InputError(f"{error}; give versions of {package} as --versions A,B,C") from None
    return package, [
        spellings[version] for version in sorted(spellings) if first <= version <= last
    ]


def commits(repo: Path, good: str, bad: str) -> list[str]:
    """The commits of a checkout from the good one to the bad one; a merge counts as one commit.

    Raises InputError if the checkout cannot be read, or if the good commit does not precede the bad
    one.
    """

    def git(*arguments: str) -> list[str]:
        return read_output(["git", "-C", str(repo), *arguments], f"{repo} cannot be read")

    [first] = git("rev-parse", "--short", "--verify", f"{good}^{{commit}}")
    [last] = git("rev-parse", "--short", "--verify", f"{bad}^{{commit}}")
    later = git("rev-list", "--reverse", "--first-parent", "--abbrev-commit", f"{first}..{last}")
    if not later or git("merge-base", first, last) != git("rev-parse", first):
        raise InputError(
            f"{good} is not an ancestor of {bad} in {repo}: give the older commit as --good"
        )
    return [first, *later]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the bisection; return the exit code.

    Raises InputError for an unknown kind in --gate-on, and for the same reasons as `run_bisection`.
    """
    usage = "tunegrid bisect --good A --bad B [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid bisect", usage=usage, description=__doc__)
    add = parser.add_argument
    good = "a release that is not worse; with --repo a commit"
    add("--good", required=True, metavar="PACKAGE==VERSION", help=good)
    bad = "a release that is worse; with --repo a commit"
    add("--bad", required=True, metavar="PACKAGE==VERSION", help=bad)
    repo = "a checkout whose commits are tried"
    add("--repo", type=lambda text: Path(text).resolve(), metavar="PATH", help=repo)
    versions = "releases to try (default: all of the index)"
    add("--versions", metavar="A,B,C", help=versions)
    return run_bisection(parse_options(parser, arguments, KINDS))


def run_bisection(options: argparse.Namespace) -> int:
    """Search for the first bad version and print the result; return the exit code.

    Raises:
        InputError: if the versions cannot be listed, or for the reasons given in `search`.
    """
    if options.repo:
        package = options.repo.name
        versions = commits(options.repo, options.good, options.bad)
    else:
        package, versions = releases(options)
    steps = (len(versions) - 2).bit_length()
    say(f"{package}: {len(versions)} versions, at most {steps} steps after the two ends")
    runner = Runner(options)

    def measure(version: str, *, again: bool = False) -> SavedRun:
        required = f"{package}=={version}"
        if options.repo:
            required = git_address(options.repo, version)
        side = environments.get_environment([required], options.find_links, alone=True)
        run = runner.run(side, options.cells, again=again)
        finished = finished_cells(run)
        for cell in options.cells:
            if cell not in finished:
                log = run.path.with_suffix(".txt")
                raise InputError(
                    f"{cell} does not finish with {package} {version} ({log} says why)"
                )
        return run

    last_good, first_bad, cause = search(measure, versions, options.kinds)
    last, *skips, first = versions[last_good : first_bad + 1]
    answer = f"{package} {first} is the first that is worse; {last} is not."
    notes = f"the release notes of {package} {first} say what changed"
    next_step = f"{notes}; in a checkout, --repo finds the commit"
    if skips:
        suspects = f"with {first}, or with one that was skipped: {', '.join(skips)}"
        answer = f"{package} became worse after {last}: {suspects}."
        next_step = "the same command tries what was skipped again"
    elif options.repo:
        next_step = f"`{shlex.join(['git', '-C', str(options.repo), 'show', first])}` is the change"
    say("\n".join(answer_lines(answer, cause, next_step)))
    return int(bool(skips))
