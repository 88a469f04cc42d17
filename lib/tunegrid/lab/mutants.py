"""How many random faults of libraries does the suite see? `python -m tunegrid.lab mutants --count 300 --seed 1` tries them.

A mutant is one small change of a random statement of a library that a healthy cell executes. A process with this change in
memory runs the cell with the gate; no file of a library changes. What the cell saved and answered is compared with the healthy
run, so that mutants that change nothing count apart. Saved trials are shown without a run.
"""

import argparse
import ast
import builtins
import hashlib
import json
import os
import random
import re
import resource
import runpy
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from inspect import CO_OPTIMIZED
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree
from types import FrameType
from typing import Any
from xml.etree import ElementTree

import pandas as pd
from pydantic import TypeAdapter, ValidationError
from scipy.stats import binomtest

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.grid.cells import SMOKE, STUDY
from tunegrid.lab.calibrate import RUNS
from tunegrid.lab.false_alarms import BASELINE
from tunegrid.lab.mutation import MARK, can_replace, find_changes, functions_in, replace_live
from tunegrid.machine import announce_threads, versions, write_whole
from tunegrid.report.tables import Section, markdown, text
from tunegrid.words import count

LIBRARIES = ("transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "datasets", "rouge_score", "torch")
PRELOADED = (*LIBRARIES, "evaluate", "nltk", "numpy", "pandas", "pyarrow", "scipy", "tokenizers", "tunegrid")
# After so many times a healthy process's CPU seconds a mutant hangs: five times those of a forked one, which imports nothing.
PATIENCE = 2
PATIENCE_WAITING = 10  # the same in seconds of the clock, for a mutant that waits, beside other processes
ATTEMPTS = 1000  # draws for each mutant: many lines have no change
CRASH, OTHER, REPORTED, SILENT = "crash or hang", "other exit code", "exit 0, reported", "exit 0, not reported"
OUTCOMES = (CRASH, "exit 1", "exit 6", OTHER, REPORTED, SILENT)
RESULTS = ("weights", "files", "answers")  # what a user gets
WITH_TIMES = ("record.json", "README.md")  # saved files that differ from run to run
Facts = Mapping[str, Any]  # digests of weights, of other files and of answers, and bytes of tensors; empty without an end


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of a library, and how a cell ends with it."""

    cell: str
    file: str  # from the library's name on
    line: int
    number: int  # of the change, in its file
    kind: str
    before: str
    after: str
    outcome: str = ""  # empty: it has not run
    exit_code: int | None = None
    was_reached: bool = False
    differences: Sequence[str] = ()  # from the healthy run's facts
    answer: Sequence[str] = ()
    seconds: float = 0.0
    reason: str = ""  # why it is not seen, for a person to fill in

    @property
    def is_harmful(self) -> bool:
        """Whether it changes what a user gets."""
        return bool(set(RESULTS).intersection(self.differences))

    def __str__(self) -> str:
        """The change on a line."""
        return f"{self.cell} {self.file}:{self.line} {short(self.before)} -> {short(self.after)}"


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """How a cell ends without a change."""

    facts: Facts
    answer: Sequence[str]
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All mutants of a seed, and what they are compared with."""

    cells: Sequence[str]
    count: int
    seed: int
    versions: Mapping[str, str | None]
    modules: Sequence[str] = ()  # that a healthy run imports
    healthy: Mapping[str, Healthy] = field(default_factory=dict)  # by cell
    mutants: Sequence[Mutant] = ()


TRIAL = TypeAdapter(Trial)


# A cell in a process of its own


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a cell, which leaves its files in a folder."""

    cell: str
    folder: Path
    mutant: Mutant | None = None
    is_traced: bool = False
    limit_seconds: int | None = None

    def start(self, method: str, modules: Sequence[str] = ()) -> int:
        """Run it in a new process, which has these modules if it is forked; return the exit code."""
        self.folder.mkdir(exist_ok=True)
        context: Any = get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([*modules, "tunegrid.lab.warm"])
        process = context.Process(target=self.run)
        process.start()
        process.join()
        return int(process.exitcode)

    def run(self) -> None:
        """Run `pytest -m quick --cells=CELL --gate=BASELINE` in this process, which ends with its exit code."""
        output = os.open(self.folder / "output.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if self.limit_seconds:
            resource.setrlimit(resource.RLIMIT_CPU, (self.limit_seconds, self.limit_seconds))
            signal.alarm(PATIENCE_WAITING * self.limit_seconds)
        os.chdir(ROOT)
        if self.mutant:
            self._change(self.mutant)
        lines = defaultdict[str, set[int]](set)
        if self.is_traced:
            sys.settrace(partial(trace, lines))
            sys.gettrace = lambda: None  # else pytest-benchmark stops it while a cell trains
        sys.argv = command(self._options())[3:]
        try:
            runpy.run_module("pytest", run_name="__main__", alter_sys=True)
        finally:
            sys.settrace(None)
            names = [name for name in sys.modules if name.split(".")[0] in PRELOADED and "__main__" not in name]
            facts = {"cpu_seconds": time.process_time(), "modules": names}
            facts["lines"] = sorted((file, line) for file, numbers in lines.items() for line in numbers)
            (self.folder / "process.json").write_text(json.dumps(facts), encoding="utf-8")

    def _options(self) -> list[str]:
        return [
            *("-m", "quick", f"--cells={self.cell}", f"--gate={BASELINE}", "-n0"),
            f"--benchmark-json={self.folder / 'run.json'}",
            f"--junitxml={self.folder / 'junit.xml'}",
            f"--save-models={self.folder / 'models'}",
            "-Wignore::pytest.PytestAssertRewriteWarning",  # of plugins that are loaded already
        ]

    def _change(self, mutant: Mutant) -> None:
        def mark() -> None:
            if not self.was_reached:
                (self.folder / "reached").touch()

        setattr(builtins, MARK, mark)
        import_module(mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        replace_live(functions_in(library_path(mutant.file), mutant.number))

    @property
    def was_reached(self) -> bool:
        """Whether the mutant's place was reached."""
        return (self.folder / "reached").exists()

    @property
    def output(self) -> str:
        """What the process printed."""
        return (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def process_facts(self) -> Mapping[str, Any]:
        """CPU seconds, modules and traced lines."""
        facts: Mapping[str, Any] = json.loads((self.folder / "process.json").read_bytes())
        return facts

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of the cell's first training; empty if the session left none."""
        path = self.folder / "run.json"
        run = json.loads(path.read_bytes()) if path.exists() else {"benchmarks": []}
        for row in [*run["benchmarks"], *run.get("unfinished", [])]:
            record: Mapping[str, Any] = row["extra_info"]
            if record["seeds"]["confirms"] is None:
                return record
        return {}

    @property
    def answer(self) -> list[str]:
        """The sentences of the session's verdict."""
        try:
            tree = ElementTree.parse(self.folder / "junit.xml")
        except (OSError, ElementTree.ParseError):
            return []
        return (tree.findtext(".//testcase[@classname='tunegrid']/*") or "").splitlines()

    @property
    def facts(self) -> Facts:
        """What the cell left."""
        record = self.record
        if not record.get("examples"):
            return {}
        digests: dict[bool, dict[str, str]] = {True: {}, False: {}}
        models = self.folder / "models" / f"{self.cell}-seed0"
        for path in sorted(models.rglob("*.*")):
            if path.is_file() and path.name not in WITH_TIMES:
                # transformers saves the path of a nested checkpoint, which another clone has elsewhere.
                content = path.read_bytes().replace(os.fsencode(ROOT), b"")
                digest = hashlib.sha256(content).hexdigest()[:16]
                digests[path.suffix == ".safetensors"][f"{path.relative_to(models)}"] = digest
        return {
            "weights": digests[True],
            "files": digests[False],
            "answers": record["examples"]["file"],
            "bytes": record["memory"]["ledger"],
        }


def trace(lines: dict[str, set[int]], frame: FrameType, event: str, argument: Any) -> Any:
    """A trace function for `sys.settrace`, which notes the lines of libraries' functions, by file."""
    code = frame.f_code
    file = library_file(code.co_filename)
    if not file or not code.co_flags & CO_OPTIMIZED:
        return None

    def note(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            lines[file].add(frame.f_lineno)
        return note

    return note


@cache
def library_file(path: str) -> str:
    """A path from the library's name on; empty if it is of no library."""
    for name in LIBRARIES:
        folder = f"{library_path(name)}{os.sep}"
        if path.startswith(folder):
            return f"{name}/{path.removeprefix(folder)}"
    return ""


@cache
def library_path(file: str) -> Path:
    """The path of a library's file or folder."""
    name, _, path = file.partition("/")
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"{name} is not installed; `pip install {name}`")
    return Path(spec.origin).parent / path


# A trial


def run_trial(trial: Trial, path: Path, workers: int) -> Trial:
    """Run what has not run, and save each result; return the trial."""
    with tempfile.TemporaryDirectory(prefix="tunegrid-mutants-") as name, ThreadPoolExecutor(workers) as pool:
        folder = Path(name)
        # No session may resume a mutant's rows; the order of sets may decide which lines run.
        os.environ |= {"TUNEGRID_CACHE": f"{folder / 'cache'}", "PYTHONHASHSEED": "0"}
        announce_threads(1)
        if not trial.mutants:
            trial = prepare_trial(trial, folder, pool)
        mutants = [*trial.mutants]
        places = [place for place, mutant in enumerate(mutants) if not mutant.outcome]
        began = time.monotonic()
        run = partial(run_mutant, trial, folder)
        for done, mutant in enumerate(pool.map(run, [mutants[place] for place in places]), 1):
            mutants[places[done - 1]] = mutant
            trial = replace(trial, mutants=mutants)
            write_whole(path, TRIAL.dump_json(trial, indent=1).decode())
            minutes = (time.monotonic() - began) / done * (len(places) - done) / 60
            effect = ", ".join(mutant.differences) or ("nothing changes" if mutant.was_reached else "never reached")
            print(f"{done} of {len(places)}, {minutes:.0f} min left: {mutant}: {mutant.outcome} ({effect})", flush=True)
    return trial


def prepare_trial(trial: Trial, folder: Path, pool: ThreadPoolExecutor) -> Trial:
    """The trial with healthy runs and mutants. Raises InputError if a healthy run fails, or a forked one differs from it."""
    jobs = [Job(cell=cell, folder=folder / cell) for cell in trial.cells]
    modules = dict[str, None]()
    for job, code in zip(jobs, pool.map(partial(Job.start, method="spawn"), jobs), strict=True):
        if code:
            raise InputError(f"{job.cell} fails without a mutant, with exit code {code}:\n{job.output}")
        modules |= dict.fromkeys(job.process_facts["modules"])
        print(f"{job.cell}: a healthy run takes {job.process_facts['cpu_seconds']:.1f} CPU seconds", flush=True)
    traced_jobs = [replace(job, folder=folder / f"{job.cell}-traced", is_traced=True) for job in jobs]
    start = partial(Job.start, method="forkserver", modules=[*modules])
    healthy, lines = {}, {}
    for job, traced, code in zip(jobs, traced_jobs, pool.map(start, traced_jobs), strict=True):
        differences = find_differences(job.facts, traced.facts)
        if code or differences or job.answer != traced.answer:
            what = ", ".join(differences) or "the report"
            raise InputError(f"{job.cell}: {what} of a forked healthy run differs (exit code {code}):\n{traced.output}")
        lines[job.cell] = [(file, line) for file, line in traced.process_facts["lines"]]
        cpu_seconds = job.process_facts["cpu_seconds"]
        healthy[job.cell] = Healthy(facts=job.facts, answer=job.answer, cpu_seconds=cpu_seconds)
        print(f"{job.cell}: a forked run is equal, and executes {len(lines[job.cell])} lines of libraries", flush=True)
    mutants = draw(lines, trial.count, trial.seed)
    return replace(trial, modules=[*modules], healthy=healthy, mutants=mutants)


def draw(lines: Mapping[str, Sequence[tuple[str, int]]], count: int, seed: int) -> list[Mutant]:
    """Draw mutants: of the cells in turn a statement, and one of its changes. Raises InputError if there are too few."""
    rng = random.Random(seed)
    cells = [*lines]
    statements = {cell: executed_statements(places) for cell, places in lines.items()}
    mutants = dict[tuple[str, str, int], Mutant]()
    for _ in range(ATTEMPTS * count):
        cell = cells[len(mutants) % len(cells)]
        file, line = rng.choice(statements[cell])
        numbers = change_numbers(file).get(line)
        if not numbers:
            continue
        number = rng.choice(numbers)
        if (cell, file, number) in mutants or not is_applicable(file, number):
            continue
        change = [*find_changes(ast.parse(library_path(file).read_bytes()))][number]
        before, after = change.texts
        mutants[cell, file, number] = Mutant(
            cell=cell,
            file=file,
            line=change.node.lineno,
            number=number,
            kind=change.kind,
            before=before,
            after=after,
        )
        if len(mutants) == count:
            return [*mutants.values()]
    raise InputError(f"these cells have only {len(mutants)} mutants: lower --count, or name more --cells")


def executed_statements(places: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The file and the first line of each statement of which a line was executed: one of a hundred lines counts once."""
    return sorted({(file, statement_starts(file).get(line, line)) for file, line in places})


@cache
def statement_starts(file: str) -> Mapping[int, int]:
    """For each line of a file, where the innermost statement begins that it is of."""
    starts: dict[int, int] = {}
    for node in ast.walk(ast.parse(library_path(file).read_bytes())):  # outer statements first
        if isinstance(node, ast.stmt):
            starts.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), node.lineno))
    return starts


@cache
def change_numbers(file: str) -> Mapping[int, Sequence[int]]:
    """The numbers of a file's changes, by the first line of their statement."""
    starts = statement_starts(file)
    numbers = defaultdict[int, list[int]](list)
    for number, change in enumerate(find_changes(ast.parse(library_path(file).read_bytes()))):
        numbers[starts[change.node.lineno]].append(number)
    return numbers


def is_applicable(file: str, number: int) -> bool:
    """Checks that live functions can take a change."""
    path = library_path(file)
    return can_replace(functions_in(path), functions_in(path, number))


def run_mutant(trial: Trial, folder: Path, mutant: Mutant) -> Mutant:
    """The mutant with how it ended."""
    healthy = trial.healthy[mutant.cell]
    limit = round(PATIENCE * healthy.cpu_seconds)
    job = Job(
        cell=mutant.cell,
        folder=Path(tempfile.mkdtemp(dir=folder)),
        mutant=mutant,
        limit_seconds=limit,
    )
    began = time.monotonic()
    code = job.start("forkserver", trial.modules)
    mutant = replace(
        mutant,
        outcome=find_outcome(code, job.record.get("status", "killed"), job.answer, healthy.answer),
        exit_code=code,
        was_reached=job.was_reached,
        differences=find_differences(healthy.facts, job.facts),
        answer=job.answer,
        seconds=round(time.monotonic() - began, 1),
    )
    rmtree(job.folder)
    return mutant


def find_differences(healthy: Facts, facts: Facts) -> list[str]:
    """The names of the facts that differ."""
    return [name for name, fact in healthy.items() if fact != facts.get(name)]


def find_outcome(code: int, status: str, answer: Sequence[str], healthy: Sequence[str]) -> str:
    """One of OUTCOMES, by the exit code, the record's status, and the reports without their figures."""
    if code == 0:
        sentences, expected = (re.sub(r"\d\S*", "", " ".join(lines)) for lines in (answer, healthy))
        return SILENT if sentences == expected else REPORTED
    if code in (2, 4, 5):
        return OTHER
    if code not in (1, 6) or status in ("error", "killed", "not run"):
        return CRASH
    return f"exit {code}"


# What is said of trials


def short(source: str, most: int = 90) -> str:
    """Source on a line, cut."""
    line = " ".join(source.split())
    return line if len(line) <= most else f"{line[:most]} ..."


def share(mutants: Sequence[Mutant]) -> str:
    """The share of mutants that end with another exit code than 0, with its 95 % interval."""
    if not mutants:
        return "none"
    seen = sum(mutant.exit_code != 0 for mutant in mutants)
    interval = binomtest(seen, len(mutants)).proportion_ci(method="wilson")
    return f"{seen} of {len(mutants)}, {seen / len(mutants):.1%} ({interval.low:.1%} to {interval.high:.1%})"


def sections(trial: Trial) -> list[Section]:
    """A trial's outcomes, its shares, and its survivors."""
    mutants = [mutant for mutant in trial.mutants if mutant.outcome]
    effects = ("weights, files or answers change", "bytes of tensors alone", "nothing changes")
    counts = Counter((mutant.outcome, find_effect(mutant, effects)) for mutant in mutants)
    table = pd.DataFrame([[name, *(counts[name, effect] for effect in effects)] for name in OUTCOMES])
    table.columns = pd.Index(["outcome", *effects])
    harmful = [mutant for mutant in mutants if mutant.is_harmful]
    sentences = [
        f"Of mutants that change weights, files or answers, these end with another exit code than 0: {share(harmful)}.",
        f"Without crashes and hangs: {share([mutant for mutant in harmful if mutant.outcome != CRASH])}.",
        f"Never reached: {sum(not mutant.was_reached for mutant in mutants)}.",
    ]
    rows = []
    for mutant in harmful:
        if mutant.exit_code == 0:
            row = {
                "place": f"{mutant.file}:{mutant.line}",
                "change": f"{short(mutant.before)} -> {short(mutant.after)}",
                "cell": mutant.cell,
                "differs": ", ".join(mutant.differences),
                "reported": mutant.outcome == REPORTED,
                "reason": mutant.reason,
            }
            rows.append(row)
    heading = f"Seed {trial.seed}: {len(mutants)} of {trial.count} mutants over {len(trial.cells)} cells"
    return [
        Section(heading=heading, frame=table, formats=dict.fromkeys(effects, ""), sentences=sentences),
        Section(heading=f"Seed {trial.seed}: {count(len(rows), 'survivor')}", frame=pd.DataFrame(rows)),
    ]


def find_effect(mutant: Mutant, effects: Sequence[str]) -> str:
    """The effect of a mutant, of these three."""
    if mutant.is_harmful:
        return effects[0]
    return effects[1] if mutant.differences else effects[2]


def page(paths: Sequence[Path], trials: Sequence[Trial]) -> str:
    """A page on trials, as Markdown."""
    tables: list[Section] = []
    for trial in trials:
        tables += sections(trial)
    names = " ".join(path.name for path in paths)
    packages = ", ".join(f"{name} {trials[-1].versions.get(name)}" for name in LIBRARIES[:4])
    lines = [
        "# Mutants: random faults of libraries",
        f"Written by `python -m tunegrid.lab mutants {names} --report PAGE.md`, with {packages}.",
        "A mutant is one small change of a random statement of a library that a quick cell executes. It runs in its own",
        "process, judged by the committed baseline, and is compared with the healthy run bit for bit.",
    ]
    return "\n\n".join([lines[0], "\n".join(lines[1:]), markdown(tables)]) + "\n"


def find_trial(options: argparse.Namespace) -> Trial:
    """The trial that the options ask for, as far as it has run; raises InputError if there is another one in its file."""
    for name in ("count", "workers"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    cells = STUDY.checked_ids(options.cells.split(","))
    trial = Trial(cells=cells, count=options.count, seed=options.seed, versions=versions())
    path = options.output
    if not path.exists():
        return trial
    if not options.resume:
        raise InputError(f"{path} exists: continue it with --resume, or name another file with -o")
    saved = read_trial(path)
    for name in ("count", "seed", "versions", "cells"):
        if json.dumps(getattr(saved, name)) != json.dumps(getattr(trial, name)):
            raise InputError(f"{path} has another {name} ({getattr(saved, name)}): name another file with -o")
    return saved


def read_trial(path: Path) -> Trial:
    """A saved trial; raises InputError if the file is none."""
    try:
        return TRIAL.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} is no saved trial ({type(error).__name__}); `mutants -o FILE.json` writes one") from None


def main(arguments: list[str] | None = None) -> int:
    """Run a trial or read saved ones, and print their tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab mutants", description=__doc__)
    add = parser.add_argument
    add("trials", type=Path, nargs="*", metavar="TRIAL.json", help="saved trials to show; nothing runs")
    add("--cells", default=",".join(SMOKE), metavar="ID,ID", help="quick cells (default: those of -m smoke)")
    add("--count", type=int, default=300, metavar="N", help="mutants (default 300)")
    add("--seed", type=int, default=1, metavar="S", help="of the draw (default 1)")
    add("-n", "--workers", type=int, default=1, metavar="N", help="processes at a time (default 1)")
    add("-o", "--output", type=Path, metavar="FILE.json", help="default: .cache/lab/mutants-SEED.json")
    add("--resume", action="store_true", help="continue the trial in that file")
    add("--report", type=Path, metavar="PAGE.md", help="write a page, too")
    options = parser.parse_args(arguments)
    options.output = options.output or RUNS / f"mutants-{options.seed}.json"
    paths = options.trials or [options.output]
    try:
        if options.trials:
            trials = [read_trial(path) for path in paths]
        else:
            trials = [run_trial(find_trial(options), options.output, options.workers)]
        if options.report:
            write_whole(options.report, page(paths, trials))
    except InputError as error:
        refuse(parser, error)
    for trial in trials:
        print(text(sections(trial)))
    return 0
