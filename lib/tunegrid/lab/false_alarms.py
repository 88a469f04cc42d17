"""Does the suite cry wolf? `python -m tunegrid.lab false_alarms --train 20000-20039` judges healthy grids, and counts the red.

Each of these seeds has a session of its own, `pytest -m quick --seeds=SEED --gate=BASELINE`; its run, output and exit code are
kept in --to, and the same command goes on where it was stopped. Saved runs of whole grids are judged, too, of seeds or starts
that had no part in bounds and noise. Each grid is held to the bounds of today and judged by the committed baseline, without and
with the trainings that confirm its misses. Exit code 1 if more than one in twenty is red with them.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from tunegrid import ROOT, launcher
from tunegrid.commands.cli import refuse
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.gate.gate import Run, gate, read_run
from tunegrid.gate.judgements import DEFAULT_KINDS, find_worse, verdict_text
from tunegrid.gate.thresholds import Bounds, load_bounds
from tunegrid.lab.calibrate import RUNS, parse_seeds
from tunegrid.record import Record
from tunegrid.record.checks import below_bounds, failed_audits
from tunegrid.runs.files import read_list

BOUNDS = ROOT / "benchmarks" / "thresholds" / "quick.toml"
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
ALLOWED = 0.05  # of all grids


def sessions(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """The run and the exit code of each seed's session when it has ended; raises InputError if one broke off."""
    options.to.mkdir(parents=True, exist_ok=True)
    for seed in options.train:
        path, log, code_path = (options.to / f"{seed}.{suffix}" for suffix in ("json", "log", "exit-code"))
        if not code_path.is_file():
            words = ["-m", "quick", "-n", options.workers, f"--seeds={seed}", f"--gate={options.baseline}", "--resume"]
            with log.open("w", encoding="utf-8") as output:
                code = launcher.run(command([*words, f"--benchmark-json={path}"]), output=output)
            if code not in (0, 1, 6) or not path.is_file():
                raise InputError(f"pytest ended with exit code {code}: see {log}; the same command continues")
            code_path.write_text(f"{code}", encoding="utf-8")
        yield path, f"exit code {code_path.read_text(encoding='utf-8')}, "


def alarms(records: Iterable[Record], path: Path, baseline: Run, bounds: Mapping[str, Bounds]) -> list[tuple[str, str, str]]:
    """Whatever is wrong in a grid of one seed: whether it is missed or worse, in which cell, and a sentence.

    It misses bounds that trainings which confirm them miss, too, and audits that failed when they ran, in any training.
    """
    run = Run.make(records, path)
    confirmations = {cell: list(seeds.values()) for cell, seeds in run.confirming.items()}
    calls = []
    for record in run.all_records:
        trainings = [record, *confirmations.get(record.cell, ())]
        gaps = [below_bounds(one.scores, bounds.get(one.cell, {})) for one in trainings]
        texts = [
            *(gaps[0] if all(gaps) else ()),
            *(text for one in trainings for text in failed_audits(one.audits, one.excused)),
        ]
        calls += [("missed", record.cell, f"{record.cell} {text}") for text in texts]
    return calls + [("worse", one.cell, verdict_text(one)) for one in find_worse(gate(baseline, run), DEFAULT_KINDS)]


def main(arguments: list[str] | None = None) -> int:
    """Judge, print what is red and a line for each grid, and the counts; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab false_alarms", description=__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="*", metavar="RUN.json", help="saved runs of whole grids")
    add("--train", type=parse_seeds, default=(), metavar="N-M", help="trains the quick grid of each of these seeds")
    add("--to", type=Path, default=RUNS / "healthy", metavar="DIR", help="keeps what is trained (default .cache/lab/healthy)")
    add("--baseline", type=Path, default=BASELINE, metavar="FILE", help="default: the committed quick one")
    add("--bounds", type=Path, default=BOUNDS, metavar="FILE", help="default: the suite's")
    add("-n", dest="workers", default="auto", metavar="N", help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    first_count = red_count = total = 0
    try:
        baseline, bounds = read_run(options.baseline), load_bounds(options.bounds)
        for path, code in chain(((path, "") for path in options.runs), sessions(options)):
            records_by_seed = defaultdict[int | None, list[Record]](list)
            for record in read_list(path):
                records_by_seed[record.seeds.seed if record.seeds.confirms is None else record.seeds.confirms].append(record)
            for seed, grid in records_by_seed.items():
                first_records = [one for one in grid if one.seeds.confirms is None]
                first_calls = alarms(first_records, path, baseline, bounds)
                calls = alarms(grid, path, baseline, bounds) if len(grid) > len(first_records) else first_calls
                missed, worse = ({cell for kind, cell, _ in calls if kind == one} for one in ("missed", "worse"))
                dropped = [call for call in first_calls if call[1] not in missed | worse]
                for line in (*(call[2] for call in calls), *(f"not confirmed: {call[2]}" for call in dropped)):
                    print(f"{path.name} seed {seed}: {line}")
                counts = f"{len(missed)} missed, {len(worse)} worse, {len({call[1] for call in dropped})} not confirmed"
                print(f"{path.name} seed {seed}: {code}{counts}", flush=True)
                total, first_count, red_count = total + 1, first_count + bool(first_calls), red_count + bool(calls)
    except InputError as error:
        refuse(parser, error)
    print(f"before misses are confirmed: {first_count} of {total}")
    print(f"{red_count} of {total} healthy grids are red")
    return int(red_count > ALLOWED * total)
