"""Count the false alarms that the suite raises on healthy grids.

`python -m tunegrid.lab false_alarms --train 20000-20039` trains and judges a grid with each seed.

Each seed has its own session, `pytest -m quick --seeds=SEED --gate=BASELINE`, whose run, output and
exit code are kept in --to. If interrupted, run the same command again to continue. Saved runs of
whole grids are judged, too; bounds and noise must not have been computed from them. Each grid is
judged by --bounds and --baseline, first without and then with the training runs that confirm its
misses. The exit code is 1 if more than one grid in twenty still raises an alarm with these runs.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tunegrid import ROOT, launcher
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.gate.gate import Run, gate, read_run
from tunegrid.gate.judgements import DEFAULT_KINDS, find_worse, verdict_text
from tunegrid.gate.thresholds import Bounds, load_bounds
from tunegrid.lab.calibrate import LAB_RUNS, parse_seeds
from tunegrid.record import Record
from tunegrid.record.checks import below_bounds, failed_audits
from tunegrid.runs.files import read_list
from tunegrid.runs.status import first_trainings

BOUNDS = ROOT / "benchmarks" / "thresholds" / "quick.toml"
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
ALLOWED = 0.05  # of all grids


class Alarm(NamedTuple):
    """A false alarm that a grid raises."""

    kind: str  # "missed" or "worse"
    cell: str
    sentence: str


def sessions(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Run the sessions that are still missing; yield each run's path, and its exit code as text.

    Raises InputError if a session stopped early.
    """
    options.to.mkdir(parents=True, exist_ok=True)
    for seed in options.train:
        path = options.to / f"{seed}.json"
        log = options.to / f"{seed}.log"
        code_path = options.to / f"{seed}.exit-code"
        if not code_path.is_file():
            words = ["-m", "quick", "-n", options.workers, f"--seeds={seed}"]
            words += [f"--gate={options.baseline}", "--resume", f"--benchmark-json={path}"]
            with log.open("w", encoding="utf-8") as output:
                code = launcher.run(command(words), output=output)
            if code not in (0, 1, 6) or not path.is_file():
                hint = f"see {log}; the same command continues"
                raise InputError(f"pytest ended with exit code {code}: {hint}")
            code_path.write_text(f"{code}", encoding="utf-8")
        yield path, f"exit code {code_path.read_text(encoding='utf-8')}, "


def alarms(
    records: Iterable[Record],
    path: Path,
    baseline: Run,
    bounds: Mapping[str, Bounds],
) -> list[Alarm]:
    """The alarms of one seed's grid: missed bounds, failed audits and worse figures.

    A missed bound counts only if every confirming training run misses a bound as well. A failed
    audit counts in any training run.
    """
    run = Run.make(records, path)
    reasons = []
    for record in run.all_records:
        cell = record.cell
        trainings = [record, *run.confirming.get(cell, {}).values()]
        gaps = [below_bounds(training.scores, bounds.get(cell, {})) for training in trainings]
        texts = list(gaps[0]) if all(gaps) else []
        for training in trainings:
            texts += failed_audits(training.audits, training.excused)
        reasons += [Alarm("missed", cell, f"{cell} {text}") for text in texts]
    for judgement in find_worse(gate(baseline, run), DEFAULT_KINDS):
        reasons.append(Alarm("worse", judgement.cell, verdict_text(judgement)))
    return reasons


def grids_by_seed(path: Path) -> Mapping[int | None, list[Record]]:
    """Group a run's records by seed; a confirmation belongs to the seed whose miss it confirms."""
    records = defaultdict[int | None, list[Record]](list)
    for record in read_list(path):
        seeds = record.seeds
        records[seeds.seed if seeds.confirms is None else seeds.confirms].append(record)
    return records


def main(arguments: list[str] | None = None) -> int:
    """Judge the grids; print alarms, a line per grid and the totals; return the exit code."""
    name = "python -m tunegrid.lab false_alarms"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="*", metavar="RUN.json", help="saved runs of whole grids")
    add(
        "--train",
        type=parse_seeds,
        default=(),
        metavar="N-M",
        help="trains the quick grid of each of these seeds",
    )
    add(
        "--to",
        type=Path,
        default=LAB_RUNS / "healthy",
        metavar="DIR",
        help="keeps what is trained (default .cache/lab/healthy)",
    )
    add(
        "--baseline",
        type=Path,
        default=BASELINE,
        metavar="FILE",
        help="default: the committed quick one",
    )
    add("--bounds", type=Path, default=BOUNDS, metavar="FILE", help="default: the suite's")
    add("-n", dest="workers", default="auto", metavar="N", help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    first_count = red_count = total = 0
    baseline = read_run(options.baseline)
    bounds = load_bounds(options.bounds)
    saved_runs = ((path, "") for path in options.runs)
    for path, code in chain(saved_runs, sessions(options)):
        for seed, grid in grids_by_seed(path).items():
            first_records = first_trainings(grid)
            first_alarms = alarms(first_records, path, baseline, bounds)
            confirmed = first_alarms
            if len(grid) > len(first_records):
                confirmed = alarms(grid, path, baseline, bounds)
            missed = {alarm.cell for alarm in confirmed if alarm.kind == "missed"}
            worse = {alarm.cell for alarm in confirmed if alarm.kind == "worse"}
            dropped = [alarm for alarm in first_alarms if alarm.cell not in missed | worse]
            dropped_cells = {alarm.cell for alarm in dropped}
            title = f"{path.name} seed {seed}"
            for alarm in confirmed:
                print(f"{title}: {alarm.sentence}")
            for alarm in dropped:
                print(f"{title}: not confirmed: {alarm.sentence}")
            counts = f"{len(missed)} missed, {len(worse)} worse, {len(dropped_cells)} not confirmed"
            print(f"{title}: {code}{counts}", flush=True)
            total += 1
            first_count += bool(first_alarms)
            red_count += bool(confirmed)
    print(f"before misses are confirmed: {first_count} of {total}")
    print(f"{red_count} of {total} healthy grids are red")
    return int(red_count > ALLOWED * total)
