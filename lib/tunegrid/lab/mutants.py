"""Measure how many random faults in libraries the suite detects.

`python -m tunegrid.lab mutants --judged 150 --seed 1` draws mutants until 150 have been judged.

A mutant is one small change to a random library statement that a healthy cell executes; all stages
of a cell get the same share. A process changes the statement in memory, not in its file, and runs
the cell with the gate. The cell's files and answers are compared with those of a healthy run. A
mutant is judged if it changes weights, files or answers, and neither crashes nor hangs. If saved
trials are given, they are only shown.
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
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from inspect import CO_OPTIMIZED
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree
from types import CodeType, FrameType
from typing import Any
from xml.etree import ElementTree

import pandas as pd
from pydantic import TypeAdapter, ValidationError
from scipy.stats import binomtest
from torch import Tensor

from tunegrid import ROOT
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.grid.cells import SMOKE, STUDY
from tunegrid.lab.calibrate import LAB_RUNS
from tunegrid.lab.false_alarms import BASELINE
from tunegrid.lab.mutation import (
    CALL_NAME,
    HELPERS,
    OF_TENSORS,
    Functions,
    Mutation,
    can_replace,
    find_changes,
    functions_in,
    replace_live,
)
from tunegrid.machine import announce_threads, versions, write_whole
from tunegrid.report.tables import Section, markdown, text
from tunegrid.words import count

MUTATED = (
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "safetensors",
    "datasets",
    "rouge_score",
    "torch",
)
PRELOADED = (
    *MUTATED,
    "evaluate",
    "nltk",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "tokenizers",
    "tunegrid",
)
# A mutant counts as hanging beyond this multiple of a healthy process's CPU seconds. This is five
# times what a forked process needs, since forked processes import nothing.
CPU_LIMIT = 2
CLOCK_LIMIT = 10  # wall-clock limit as a multiple of the CPU limit, for a mutant that only waits
ATTEMPTS = 1000  # draws per mutant; many lines have no possible change
CRASH = "crash or hang"
OTHER = "other exit code"
REPORTED = "exit 0, reported"
SILENT = "exit 0, not reported"
OUTCOMES = (CRASH, "exit 1", "exit 6", OTHER, REPORTED, SILENT)
HARMFUL = "weights, files or answers change"
BYTES_ALONE = "bytes of tensors alone"
NO_EFFECT = "nothing changes"
EFFECTS = (HARMFUL, BYTES_ALONE, NO_EFFECT)
RESULTS = {"weights", "files", "answers"}  # what a user receives
RETURNED = "return"  # in place of a variable's name
MARK_REACHED, MARK_CELL = "reached", "reached by the cell"  # names of empty files
WITH_TIMES = ("record.json", "README.md")  # saved files that differ from run to run
# Stages of a cell, and the code that begins each, as a part of its path and its name. Of all callers
# on the stack, the one that is first here says the stage; whatever has none is of the start.
STAGES: Mapping[str, Sequence[tuple[str, str]]] = {
    "loading": [("tunegrid/run/serving.py", "load")],
    "saving": [("tunegrid/run/serving.py", "save")],
    "search": [("transformers/generation/utils.py", "generate")],
    "schedule": [("torch/optim/lr_scheduler.py", "step")],
    "optimizer": [("/optim/", "step")],
    "backward": [("torch/_tensor.py", "backward")],
    "forward": [("torch/nn/modules/module.py", "_call_impl")],
    "start": [],
}
AUDITS = "tunegrid/audits/"  # in the path of code that only looks
# Digests of weights, other files and answers, and the bytes of tensors; empty if the cell did not
# finish.
Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change to a library, and the result of a cell that runs with it."""

    cell: str
    file: str  # path that starts with the library's name
    line: int
    number: int  # index of the change in its file
    kind: str
    stage: str = ""  # one of STAGES
    before: str
    after: str
    outcome: str = ""  # empty until it has run
    exit_code: int | None = None
    was_reached: bool = False
    only_by_audits: bool = False  # reached by no code but that of audits
    differences: Sequence[str] = ()  # facts that differ from the healthy run's
    answer: Sequence[str] = ()
    seconds: float = 0.0
    reason: str = ""  # why the suite misses it; filled in by a person

    @property
    def effect(self) -> str:
        """The effect on the cell, one of EFFECTS."""
        if not RESULTS.isdisjoint(self.differences):
            return HARMFUL
        return BYTES_ALONE if self.differences else NO_EFFECT

    @property
    def is_judged(self) -> bool:
        """True if the mutant changes what a user receives, and does not crash or hang."""
        return self.effect == HARMFUL and self.outcome != CRASH

    def __str__(self) -> str:
        """The change in one line."""
        return f"{self.cell} {self.stage} {self.file}:{self.line} {short(self.before)} -> {short(self.after)}"


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """The result of a cell that runs without a mutant."""

    facts: Facts
    answer: Sequence[str]
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All mutants of a seed, and the healthy runs with which they are compared."""

    cells: Sequence[str]
    judged: int  # mutants to judge
    count: int  # mutants to draw at most
    seed: int
    versions: Mapping[str, str | None]
    modules: Sequence[str] = ()  # imported by a healthy run
    healthy: Mapping[str, Healthy] = field(default_factory=dict)  # by cell
    mutants: Sequence[Mutant] = ()


TRIAL = TypeAdapter(Trial)


# Running a cell in its own process


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a cell in its own process, which writes its files to `folder`."""

    cell: str
    folder: Path
    mutant: Mutant | None = None
    is_traced: bool = False
    limit_seconds: int | None = None

    def start(self, method: str, modules: Sequence[str] = ()) -> int:
        """Run the job in a new process and return its exit code.

        A fork server preloads `modules`; other start methods ignore them.
        """
        self.folder.mkdir(exist_ok=True)
        context: Any = get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([*modules, "tunegrid.lab.warm"])
        process = context.Process(target=self.run)
        process.start()
        process.join()
        return int(process.exitcode)

    def run(self) -> None:
        """Run `pytest -m quick --cells=CELL --gate=BASELINE` here, and exit with its code."""
        output = os.open(self.folder / "output.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if self.limit_seconds:
            resource.setrlimit(resource.RLIMIT_CPU, (self.limit_seconds, self.limit_seconds))
            signal.alarm(CLOCK_LIMIT * self.limit_seconds)
        os.chdir(ROOT)
        if self.mutant:
            self._change(self.mutant)
        lines = defaultdict[str, set[tuple[str, int]]](set)
        tensors: set[tuple[str, int, str]] = set()
        if self.is_traced:
            sys.settrace(partial(trace_lines, lines, tensors))
            sys.gettrace = lambda: None  # else pytest-benchmark stops the trace while a cell trains
        options = [
            "-m",
            "quick",
            f"--cells={self.cell}",
            f"--gate={BASELINE}",
            "-n0",
            f"--benchmark-json={self.folder / 'run.json'}",
            f"--junitxml={self.folder / 'junit.xml'}",
            f"--save-models={self.folder / 'models'}",
            "-Wignore::pytest.PytestAssertRewriteWarning",  # some plugins are already loaded
        ]
        sys.argv = command(options)[3:]
        try:
            runpy.run_module("pytest", run_name="__main__", alter_sys=True)
        finally:
            sys.settrace(None)
            names = []
            for name in sys.modules:
                if name.split(".")[0] in PRELOADED and "__main__" not in name:
                    names.append(name)
            facts = {
                "cpu_seconds": time.process_time(),
                "modules": names,
                "lines": {stage: sorted(places) for stage, places in lines.items()},
                "tensors": sorted(tensors),
            }
            path = self.folder / "process.json"
            path.write_text(json.dumps(facts), encoding="utf-8")

    def _change(self, mutant: Mutant) -> None:
        marks: set[str] = set()

        def mark() -> None:
            if MARK_CELL in marks:
                return
            (self.folder / MARK_REACHED).touch()
            if not is_called_from(AUDITS):
                (self.folder / MARK_CELL).touch()
                marks.add(MARK_CELL)

        setattr(builtins, CALL_NAME, mark)
        for name, helper in HELPERS.items():
            setattr(builtins, name, helper)
        module = mutant.file.removesuffix(".py").removesuffix("/__init__")
        import_module(module.replace("/", "."))
        replace_live(functions_in(library_path(mutant.file), mutant.number))

    @property
    def was_reached(self) -> bool:
        """True if the mutated code was reached."""
        return (self.folder / MARK_REACHED).exists()

    @property
    def only_by_audits(self) -> bool:
        """True if audits alone reached the mutated code."""
        return self.was_reached and not (self.folder / MARK_CELL).exists()

    @property
    def output(self) -> str:
        """The process's stdout and stderr."""
        return (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def process_facts(self) -> Mapping[str, Any]:
        """The process's CPU seconds, imported modules and traced lines."""
        facts: Mapping[str, Any] = json.loads((self.folder / "process.json").read_bytes())
        return facts

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of the cell's first training run; empty if the session wrote no record."""
        path = self.folder / "run.json"
        if not path.exists():
            return {}
        run = json.loads(path.read_bytes())
        for row in [*run["benchmarks"], *run.get("unfinished", [])]:
            record: Mapping[str, Any] = row["extra_info"]
            if record["seeds"]["confirms"] is None:
                return record
        return {}

    @property
    def answer(self) -> list[str]:
        """The lines of the session's verdict; empty if the session wrote none."""
        try:
            tree = ElementTree.parse(self.folder / "junit.xml")
        except (OSError, ElementTree.ParseError):
            return []
        return (tree.findtext(".//testcase[@classname='tunegrid']/*") or "").splitlines()

    @property
    def facts(self) -> Facts:
        """The facts that are compared between runs; empty if the cell saved no answers."""
        record = self.record
        if not record.get("examples"):
            return {}
        weights: dict[str, str] = {}
        files: dict[str, str] = {}
        models = self.folder / "models" / f"{self.cell}-seed0"
        for path in sorted(models.rglob("*.*")):
            if path.is_file() and path.name not in WITH_TIMES:
                digests = weights if path.suffix == ".safetensors" else files
                # transformers saves a nested checkpoint's path, and an adapter its base's.
                content = path.read_bytes()
                for place in (ROOT, self.folder.resolve()):
                    content = content.replace(os.fsencode(place), b"")
                digest = hashlib.sha256(content).hexdigest()[:16]
                digests[f"{path.relative_to(models)}"] = digest
        return {
            "weights": weights,
            "files": files,
            "answers": record["examples"]["file"],
            "bytes": record["memory"]["ledger"],
        }


def trace_lines(
    lines: dict[str, set[tuple[str, int]]],
    tensors: set[tuple[str, int, str]],
    frame: FrameType,
    event: str,
    argument: Any,
) -> Any:
    """Trace function for `sys.settrace` that collects executed lines of libraries by stage.

    `tensors` collects which variables of functions hold floating-point tensors: the function's
    first line and the variable, or the line of a `return` and RETURNED.
    """
    code = frame.f_code
    file = library_file(code.co_filename)
    if not file or not code.co_flags & CO_OPTIMIZED or is_called_from(AUDITS, frame):
        return None
    places = lines[stage_of(frame)]

    def note(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            places.add((file, frame.f_lineno))
        elif event == "return":
            if is_float(argument):
                tensors.add((file, frame.f_lineno, RETURNED))
            for name, value in frame.f_locals.items():
                if is_float(value):
                    tensors.add((file, code.co_firstlineno, name))
        return note

    return note


def is_float(value: Any) -> bool:
    """Checks whether a value is a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()


def stage_of(frame: FrameType | None) -> str:
    """The stage in which a function runs, by the callers on its stack."""
    ranks = {len(STAGES) - 1}
    while frame is not None:
        ranks.add(rank_of(frame.f_code))
        frame = frame.f_back
    return [*STAGES][min(ranks)]


@cache
def rank_of(code: CodeType) -> int:
    """The number of the stage that a function begins; the last stage's if it begins none."""
    for rank, beginnings in enumerate(STAGES.values()):
        for part, name in beginnings:
            if code.co_name == name and part in code.co_filename:
                return rank
    return len(STAGES) - 1


def is_called_from(part: str, frame: FrameType | None = None) -> bool:
    """Checks whether code with `part` in its path is on the stack of a frame, or of the caller."""
    if frame is None:
        frame = sys._getframe(1)
    while frame is not None:
        if part in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


@cache
def library_file(path: str) -> str:
    """Shorten a path to start with its library's name; empty if it is in none of MUTATED."""
    for name in MUTATED:
        folder = f"{library_path(name)}{os.sep}"
        if path.startswith(folder):
            return f"{name}/{path.removeprefix(folder)}"
    return ""


@cache
def library_path(file: str) -> Path:
    """The path of a library's file or folder; raises InputError if the library is not installed."""
    name, _, path = file.partition("/")
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"{name} is not installed; `pip install {name}`")
    return Path(spec.origin).parent / path


# Running a trial


def run_trial(trial: Trial, path: Path, workers: int) -> Trial:
    """Run the remaining mutants, saving each result; return the trial."""
    with (
        tempfile.TemporaryDirectory(prefix="tunegrid-mutants-") as name,
        ThreadPoolExecutor(workers) as pool,
    ):
        folder = Path(name)
        # No session may resume a mutant's rows, and the order of sets may decide which lines run.
        os.environ["TUNEGRID_CACHE"] = str(folder / "cache")
        os.environ["PYTHONHASHSEED"] = "0"
        announce_threads(1)
        if not trial.mutants:
            trial = prepare_trial(trial, folder, pool)
        mutants = [*trial.mutants]
        numbers = [number for number, mutant in enumerate(mutants) if not mutant.outcome]
        began = time.monotonic()
        run = partial(run_mutant, trial, folder)
        futures = [pool.submit(run, mutants[number]) for number in numbers]
        for number, future in zip(numbers, futures, strict=True):
            judged = sum(mutant.is_judged for mutant in mutants)
            if judged >= trial.judged:
                future.cancel()
                continue
            mutant = mutants[number] = future.result()
            trial = replace(trial, mutants=mutants)
            write_whole(path, TRIAL.dump_json(trial, indent=1).decode())
            effect = NO_EFFECT if mutant.was_reached else "never reached"
            if mutant.differences:
                effect = ", ".join(mutant.differences)
            minutes = (time.monotonic() - began) / 60
            progress = f"{judged + mutant.is_judged} of {trial.judged} after {minutes:.0f} min"
            print(f"{progress}: {mutant}: {mutant.outcome} ({effect})", flush=True)
    if judged < trial.judged:
        print(f"Only {judged} of {trial.judged} were judged; draw more with --count", flush=True)
    return trial


def prepare_trial(trial: Trial, folder: Path, pool: ThreadPoolExecutor) -> Trial:
    """Add healthy runs and mutants to a trial.

    Raises InputError if a healthy run fails, or if a forked healthy run fails or differs from it.
    """
    jobs = [Job(cell=cell, folder=folder / cell) for cell in trial.cells]
    modules = dict[str, None]()
    codes = pool.map(partial(Job.start, method="spawn"), jobs)
    for job, code in zip(jobs, codes, strict=True):
        if code:
            fault = f"{job.cell} fails without a mutant, with exit code {code}"
            raise InputError(f"{fault}:\n{job.output}")
        modules |= dict.fromkeys(job.process_facts["modules"])
        seconds = job.process_facts["cpu_seconds"]
        print(f"{job.cell}: a healthy run takes {seconds:.1f} CPU seconds", flush=True)
    traced_jobs = []
    for job in jobs:
        traced_jobs.append(replace(job, folder=folder / f"{job.cell}-traced", is_traced=True))
    start = partial(Job.start, method="forkserver", modules=[*modules])
    codes = pool.map(start, traced_jobs)
    healthy = {}
    lines = {}
    tensors: set[tuple[str, int, str]] = set()
    for job, traced, code in zip(jobs, traced_jobs, codes, strict=True):
        differences = find_differences(job.facts, traced.facts)
        if code or differences or job.answer != traced.answer:
            what = ", ".join(differences) or "the report"
            fault = f"{what} of a forked healthy run differs (exit code {code})"
            raise InputError(f"{job.cell}: {fault}:\n{traced.output}")
        for stage, places in traced.process_facts["lines"].items():
            lines[job.cell, stage] = [(file, line) for file, line in places]
        tensors |= {(file, line, name) for file, line, name in traced.process_facts["tensors"]}
        cpu_seconds = job.process_facts["cpu_seconds"]
        healthy[job.cell] = Healthy(facts=job.facts, answer=job.answer, cpu_seconds=cpu_seconds)
        size = sum(map(len, traced.process_facts["lines"].values()))
        result = f"a forked run is equal, and executes {size} lines of libraries"
        print(f"{job.cell}: {result}", flush=True)
    mutants = draw(lines, tensors, trial.count, trial.seed)
    return replace(trial, modules=[*modules], healthy=healthy, mutants=mutants)


def draw(
    lines: Mapping[tuple[str, str], Sequence[tuple[str, int]]],
    tensors: Collection[tuple[str, int, str]],
    count: int,
    seed: int,
) -> list[Mutant]:
    """Draw mutants: for each stage in turn, a random kind of change, cell, and change.

    `lines` holds the executed lines by cell and stage, `tensors` the variables that hold tensors.
    Raises InputError if too few mutants are found.
    """
    rng = random.Random(seed)
    changes: dict[str, dict[str, dict[str, list[tuple[str, int]]]]] = {}  # stage, kind, cell
    for (cell, stage), executed in lines.items():
        for file, line in executed_statements(executed):
            for kind, numbers in change_numbers(file).get(line, {}).items():
                for number in numbers:
                    if kind not in OF_TENSORS or tensor_place(file, number) in tensors:
                        by_cell = changes.setdefault(stage, {}).setdefault(kind, {})
                        by_cell.setdefault(cell, []).append((file, number))
    stages = [stage for stage in STAGES if stage in changes]
    mutants = dict[tuple[str, str, int], Mutant]()
    for attempt in range(ATTEMPTS * count):
        stage = stages[attempt % len(stages)]
        by_cell = changes[stage][rng.choice([*changes[stage]])]
        cell = rng.choice([*by_cell])
        file, number = rng.choice(by_cell[cell])
        if (cell, file, number) in mutants:
            continue
        if not can_replace(original_functions(file), functions_in(library_path(file), number)):
            continue
        change = changes_of(file)[number]
        before, after = change.texts
        mutants[cell, file, number] = Mutant(
            cell=cell,
            file=file,
            line=change.node.lineno,
            number=number,
            kind=change.kind,
            stage=stage,
            before=before,
            after=after,
        )
        if len(mutants) == count:
            return [*mutants.values()]
    fault = f"these cells have only {len(mutants)} mutants"
    raise InputError(f"{fault}: lower --count, or name more --cells")


def tensor_place(file: str, number: int) -> tuple[str, int, str]:
    """Where a change of a tensor must have been seen: as `trace_lines` notes it."""
    node = changes_of(file)[number].node
    if isinstance(node, ast.Return):
        return file, node.lineno, RETURNED
    assert isinstance(node, ast.Assign)
    return file, function_starts(file).get(node.lineno, 0), ast.unparse(node.targets[0])


@cache
def function_starts(file: str) -> Mapping[int, int]:
    """The first line, with decorators, of the innermost function around each line of a file."""
    starts: dict[int, int] = {}
    for node in ast.walk(ast.parse(library_path(file).read_bytes())):  # outer functions first
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *[decorator.lineno for decorator in node.decorator_list]])
            starts |= dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), first)
    return starts


def executed_statements(places: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The file and first line of each executed statement, so that long statements count once."""
    starts = {(file, statement_starts(file).get(line, line)) for file, line in places}
    return sorted(starts)


@cache
def statement_starts(file: str) -> Mapping[int, int]:
    """The first line of the innermost statement around each line of a file."""
    starts: dict[int, int] = {}
    tree = ast.parse(library_path(file).read_bytes())
    for node in ast.walk(tree):  # yields outer statements first
        if isinstance(node, ast.stmt):
            end = node.end_lineno or node.lineno
            starts |= dict.fromkeys(range(node.lineno, end + 1), node.lineno)
    return starts


@cache
def original_functions(file: str) -> Functions:
    """The code of a file's functions as installed."""
    return functions_in(library_path(file))


@cache
def changes_of(file: str) -> Sequence[Mutation]:
    """All possible changes to a file."""
    return [*find_changes(ast.parse(library_path(file).read_bytes()))]


@cache
def change_numbers(file: str) -> Mapping[int, Mapping[str, Sequence[int]]]:
    """The indexes of a file's changes, by the first line of their statement and by their kind."""
    starts = statement_starts(file)
    numbers = defaultdict[int, dict[str, list[int]]](dict)
    for number, change in enumerate(changes_of(file)):
        kinds = numbers[starts[change.node.lineno]]
        kinds.setdefault(change.kind, []).append(number)
    return numbers


def run_mutant(trial: Trial, folder: Path, mutant: Mutant) -> Mutant:
    """Run a mutant; return it with its result."""
    healthy = trial.healthy[mutant.cell]
    job = Job(
        cell=mutant.cell,
        folder=Path(tempfile.mkdtemp(dir=folder)),
        mutant=mutant,
        limit_seconds=round(CPU_LIMIT * healthy.cpu_seconds),
    )
    began = time.monotonic()
    code = job.start("forkserver", trial.modules)
    status = job.record.get("status", "killed")
    result = replace(
        mutant,
        outcome=find_outcome(code, status, job.answer, healthy.answer),
        exit_code=code,
        was_reached=job.was_reached,
        only_by_audits=job.only_by_audits,
        differences=find_differences(healthy.facts, job.facts),
        answer=job.answer,
        seconds=round(time.monotonic() - began, 1),
    )
    rmtree(job.folder)
    return result


def find_differences(healthy: Facts, facts: Facts) -> list[str]:
    """The names of the facts that differ from the healthy run's."""
    return [name for name, fact in healthy.items() if fact != facts.get(name)]


def find_outcome(code: int, status: str, answer: Sequence[str], healthy: Sequence[str]) -> str:
    """Classify a mutant's run as one of OUTCOMES by its exit code, status and verdicts.

    Numbers in the verdicts are ignored.
    """
    if code == 0:
        sentences = re.sub(r"\d\S*", "", " ".join(answer))
        expected = re.sub(r"\d\S*", "", " ".join(healthy))
        return SILENT if sentences == expected else REPORTED
    if code in (2, 4, 5):
        return OTHER
    if code not in (1, 6) or status in ("error", "killed", "not run"):
        return CRASH
    return f"exit {code}"


# Reporting trials


def short(source: str) -> str:
    """Source code on one line, truncated after 90 characters."""
    line = " ".join(source.split())
    return line if len(line) <= 90 else f"{line[:90]} ..."


def share(mutants: Sequence[Mutant]) -> str:
    """The share of mutants with a nonzero exit code, and its 95 % interval, as text."""
    if not mutants:
        return "none"
    seen = sum(mutant.exit_code != 0 for mutant in mutants)
    interval = binomtest(seen, len(mutants)).proportion_ci(method="wilson")
    shares = f"{seen / len(mutants):.1%} ({interval.low:.1%} to {interval.high:.1%})"
    return f"{seen} of {len(mutants)}, {shares}"


def trial_sections(trial: Trial) -> list[Section]:
    """Sections with a trial's outcomes, shares and survivors."""
    mutants = [mutant for mutant in trial.mutants if mutant.outcome]
    counts = Counter((mutant.outcome, mutant.effect) for mutant in mutants)
    rows = []
    for outcome in OUTCOMES:
        rows.append([outcome, *(counts[outcome, effect] for effect in EFFECTS)])
    harmful = [mutant for mutant in mutants if mutant.effect == HARMFUL]
    judged = [mutant for mutant in mutants if mutant.is_judged]
    unreached_count = sum(not mutant.was_reached for mutant in mutants)
    sentences = [
        "Of mutants that change weights, files or answers and neither crash nor hang, "
        f"these end with another exit code than 0: {share(judged)}.",
        f"With crashes and hangs: {share(harmful)}.",
        f"Never reached: {unreached_count}.",
    ]
    size = f"{len(judged)} judged of {len(mutants)} mutants over {len(trial.cells)} cells"
    outcomes = Section(
        heading=f"Seed {trial.seed}: {size}",
        frame=pd.DataFrame(rows, columns=["outcome", *EFFECTS]),
        formats=dict.fromkeys(EFFECTS, ""),
        sentences=sentences,
    )
    survivors = [mutant for mutant in judged if mutant.exit_code == 0]
    needless = []
    for mutant in mutants:
        if mutant.effect == NO_EFFECT and mutant.exit_code and mutant.outcome != CRASH:
            needless.append(mutant)
    return [
        outcomes,
        shares_by("stage", judged),
        shares_by("kind", judged),
        places(f"Seed {trial.seed}: {count(len(survivors), 'survivor')}", survivors),
        places(f"Seed {trial.seed}: {len(needless)} change nothing, and the run fails", needless),
    ]


def shares_by(name: str, mutants: Sequence[Mutant]) -> Section:
    """A section with the share of mutants that end with another exit code than 0, by a field."""
    rows = []
    for value in dict.fromkeys(sorted(getattr(mutant, name) for mutant in mutants)):
        group = [mutant for mutant in mutants if getattr(mutant, name) == value]
        seen = sum(mutant.exit_code != 0 for mutant in group)
        rows.append([value, len(group), seen])
    frame = pd.DataFrame(rows, columns=[name, "judged", "exit code not 0"])
    return Section(heading=f"By {name}", frame=frame, formats={"judged": "", "exit code not 0": ""})


def places(heading: str, mutants: Sequence[Mutant]) -> Section:
    """A section with the places of some mutants, what they change, and why that is so."""
    rows = []
    for mutant in mutants:
        row = {
            "place": f"{mutant.file}:{mutant.line}",
            "change": f"{short(mutant.before)} -> {short(mutant.after)}",
            "cell": mutant.cell,
            "stage": mutant.stage,
            "differs": ", ".join(mutant.differences),
            "reached by": "audits alone" if mutant.only_by_audits else "the cell",
            "answer": short(next(iter(mutant.answer), "")),
            "reason": mutant.reason,
        }
        rows.append(row)
    return Section(heading=heading, frame=pd.DataFrame(rows))


def page(paths: Sequence[Path], trials: Sequence[Trial]) -> str:
    """Format trials as a Markdown page."""
    tables: list[Section] = []
    for trial in trials:
        tables += trial_sections(trial)
    names = " ".join(path.name for path in paths)
    packages = ", ".join(f"{name} {trials[-1].versions.get(name)}" for name in MUTATED[:4])
    return f"""# Mutants: random faults of libraries

Written by `python -m tunegrid.lab mutants {names} --report PAGE.md`, with {packages}.
A mutant is one small change of a random statement of a library that a quick cell executes. \
It runs in its own
process, judged by the committed baseline, and is compared with the healthy run bit for bit.

{markdown(tables)}
"""


def find_trial(options: argparse.Namespace) -> Trial:
    """Get the trial that the options describe, with any results that were saved.

    Raises InputError if an option is invalid, or if the file exists without --resume or holds
    another trial.
    """
    for name in ("judged", "count", "workers"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    cells = STUDY.checked_ids(options.cells.split(","))
    trial = Trial(
        cells=cells,
        judged=options.judged,
        count=options.count,
        seed=options.seed,
        versions=versions(),
    )
    path = options.output
    if not path.exists():
        return trial
    if not options.resume:
        raise InputError(f"{path} exists: continue it with --resume, or name another file with -o")
    saved = read_trial(path)
    for name in ("judged", "count", "seed", "versions", "cells"):
        value = getattr(saved, name)
        if json.dumps(value) != json.dumps(getattr(trial, name)):
            raise InputError(f"{path} has another {name} ({value}): name another file with -o")
    return saved


def read_trial(path: Path) -> Trial:
    """Read a saved trial; raises InputError if the file holds no trial."""
    try:
        return TRIAL.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        fault = f"{path} is no saved trial ({type(error).__name__})"
        raise InputError(f"{fault}; `mutants -o FILE.json` writes one") from None


def main(arguments: list[str] | None = None) -> int:
    """Run a trial or read saved ones, and print their tables; return 0."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab mutants", description=__doc__)
    add = parser.add_argument
    add(
        "trials",
        type=Path,
        nargs="*",
        metavar="TRIAL.json",
        help="saved trials to show; nothing runs",
    )
    add(
        "--cells",
        default=",".join(SMOKE),
        metavar="ID,ID",
        help="quick cells (default: those of -m smoke)",
    )
    add("--judged", type=int, default=150, metavar="N", help="to judge (default 150)")
    add("--count", type=int, default=1000, metavar="N", help="to draw at most (default 1000)")
    add("--seed", type=int, default=1, metavar="S", help="of the draw (default 1)")
    add("-n", "--workers", type=int, default=1, metavar="N", help="processes at a time (default 1)")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.json",
        help="default: .cache/lab/mutants-SEED.json",
    )
    add("--resume", action="store_true", help="continue the trial in that file")
    add("--report", type=Path, metavar="PAGE.md", help="write a page, too")
    options = parser.parse_args(arguments)
    options.output = options.output or LAB_RUNS / f"mutants-{options.seed}.json"
    paths = options.trials or [options.output]
    if options.trials:
        trials = [read_trial(path) for path in paths]
    else:
        trials = [run_trial(find_trial(options), options.output, options.workers)]
    if options.report:
        write_whole(options.report, page(paths, trials))
    for trial in trials:
        print(text(trial_sections(trial)))
    return 0
