"""Judges a run's measurements other than losses and scores: memory, speed and instruments.

The ledger of tensor bytes is exact. Peaks and speed have relative margins and are compared only
between similar machines. The bytes of an update traced on a CPU are counted, so they can be
compared between any two CPUs. A run's JSON declares the figures of its instruments and, for each
cell and seed, names the file with their values, so this module depends on no instrument. Needs no
torch.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from tunegrid.gate.judgements import (
    GRAVEST_FIRST,
    LEDGER,
    PEAKS,
    SPEEDS,
    TRACED,
    Judgement,
    Verdict,
    make_judgement,
)
from tunegrid.gate.quality import Rows, effect_verdict
from tunegrid.gate.statistics import ALPHA, by_rows
from tunegrid.record import Record
from tunegrid.record.record import Figure
from tunegrid.runs.examples import read
from tunegrid.words import count

# Packages whose versions affect speed.
SPEED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
FIGURE_COLUMNS = ("instrument", "part", "figure")
ROW_COLUMNS = ("seed", "row")
NUMBER_COLUMNS = ("value", "weight", "low", "high")
OTHER_TRAINING = "the two runs are different trainings, so rows cannot be paired"
MISSING_FIGURES = (
    "the new run lacks figures of some rows: "
    "ask for them with --ask, or see the reason below its table"
)


def judge_figures(
    cells: Mapping[str, Rows],
    one_training: Collection[str],
    margins: Mapping[str, Mapping[str, float]],
) -> Iterator[Judgement]:
    """Yields judgements on memory and speed, and the most severe one on each instrument."""
    cost_margins = {**margins["memory"], **margins["speed"]}
    for cell, rows in cells.items():
        is_finished = all(record.finished for record in rows.records[0])
        yield from _costs(rows, cost_margins, is_finished)
        if is_finished:
            yield from _instruments(rows, cell in one_training)


def _costs(rows: Rows, margins: Mapping[str, float], is_finished: bool) -> Iterator[Judgement]:
    """Judges tensor bytes and, for finished runs, peaks, traced bytes and speed."""
    before, after = rows.records[0]
    references = {name: [before] for name in LEDGER}
    if is_finished:
        references |= _references(rows)
    for name, records in references.items():
        judge = partial(make_judgement, before, name)
        costs = [_cost(record, name) for record in records]
        old = [cost for cost in costs if cost]
        new = _cost(after, name)
        if not old or new is None:
            if name == "step_seconds":
                reason = unlike_machines(before, after) or "too few steps were measured"
                yield judge(Verdict.NOT_COMPARABLE, detail=reason)
            continue
        margin = margins["ledger" if name in LEDGER else name]
        # Worse: the figure exceeds the baseline's largest by more than the margin. Better: it is
        # that far below the baseline's smallest.
        share = new / max(old) - 1
        verdict = Verdict.SAME
        if share > margin:
            verdict = Verdict.WORSE
        elif new / min(old) - 1 < -margin:
            # Fewer tensor bytes are no gain: a tensor is gone or no longer in fp32.
            verdict = Verdict.CHANGED if name in LEDGER else Verdict.BETTER
        yield judge(verdict, effect=share, detail=f"margin {100 * margin:.3g}%")


def _references(rows: Rows) -> dict[str, list[Record]]:
    """For each figure, the baseline's records from machines similar enough to compare."""
    before, after = rows.records[0]
    same_device: list[Record] = []
    cpus: list[Record] = []
    timings: list[Record] = []
    has_timings = not unlike_machines(before, after)
    for record in rows.old.values():
        if has_timings and not unlike_machines(record, after):  # nodes of a cluster may differ
            timings.append(record)
        if record.processes != after.processes or not record.device or not after.device:
            continue
        if record.device.name == after.device.name:
            same_device.append(record)
        if record.device.type == after.device.type == "cpu":
            cpus.append(record)
    references = dict.fromkeys(PEAKS, same_device)
    references |= dict.fromkeys(TRACED, cpus or same_device)
    return references | dict.fromkeys(SPEEDS, timings)


def _cost(record: Record, name: str) -> float | None:
    """A memory figure or a time in seconds; None if it was not measured or does not apply."""
    memory = record.memory
    speed = record.throughput
    if name in SPEEDS:
        if speed is None:
            return None
        if name == "step_seconds":
            return speed.step_seconds_median
        rate = speed.generated_tokens_per_second
        if name == "row_seconds":
            if rate:  # for generated texts, seconds per row depend on their length
                return None
            rate = speed.eval_samples_per_second
        return 1 / rate if rate else None
    if memory is None:
        return None
    if name in PEAKS:
        return memory.peak(name)
    figure: float | None = getattr(memory.ledger, name)
    return figure


def unlike_machines(before: Record, after: Record) -> str:
    """The reason why the speeds of two records cannot be compared; empty if they can."""
    old = before.device
    new = after.device
    if not old or not new:
        return "a run does not name its device"
    facts = {
        "name": (old.name, new.name),
        "threads": (old.threads, new.threads),
        "ranks": (before.processes, after.processes),
    }
    for package in SPEED_PACKAGES:
        facts[package] = before.versions.get(package), after.versions.get(package)
    for name, (old_fact, new_fact) in facts.items():
        if old_fact != new_fact:
            return f"{name}: {old_fact} and {new_fact}"
    return "measured on a device that others used" if old.contended or new.contended else ""


def _instruments(rows: Rows, one_training: bool) -> Iterator[Judgement]:
    """Yields each instrument's most severe judgement; skips figures that declare no `better`."""
    old, new = zip(*rows.records, strict=True)
    before = load_frame(old, rows.old_path)
    after = load_frame(new, rows.new_path)
    if before.empty:
        return
    instruments = dict(new[0].instruments)
    for record in (*new[1:], *old):
        instruments |= record.instruments
    gravest: dict[str, Judgement] = {}
    pairs = before.merge(after, "left", [*FIGURE_COLUMNS, *ROW_COLUMNS], suffixes=("", "_new"))
    for (instrument, part, name), lines in pairs.groupby([*FIGURE_COLUMNS], sort=False):
        declared = instruments.get(instrument)
        figure = declared.figures.get(name) if declared else None
        if figure is None or not figure.better or lines.value.isna().any():
            continue
        judge = partial(make_judgement, new[0], f"{instrument}/{name}")
        if not one_training:
            judgement = judge(Verdict.NOT_COMPARABLE, detail=OTHER_TRAINING)
        elif lines.value_new.isna().any():
            judgement = judge(Verdict.NOT_COMPARABLE, detail=MISSING_FIGURES)
        else:
            judgement = _judge_figure(judge, figure, part, lines)
        gravest[instrument] = min(gravest.get(instrument, judgement), judgement, key=_gravity)
    yield from gravest.values()


def _judge_figure(
    judge: Callable[..., Judgement],
    figure: Figure,
    part: str,
    lines: pd.DataFrame,
) -> Judgement:
    """Judges a figure from the paired rows of two training runs that differ only by rounding."""
    weights = lines.weight / lines.weight.mean()
    sign = 1 if figure.better == "higher" else -1
    gains = sign * weights * (lines.value_new - lines.value)
    row_gains = gains.groupby(lines.row).mean().to_numpy()
    # A single row has no error to estimate, so only the margin decides.
    effect = by_rows(row_gains if len(row_gains) > 1 else np.repeat(row_gains, 2))
    was = (lines.value * weights).mean()
    now = (lines.value_new * weights).mean()
    margin = figure.margin
    verdict = Verdict.SAME
    if was != now:
        verdict = effect_verdict(effect, effect.p_worse, effect.p_better, margin, ALPHA)
    form = figure.shown.lstrip("+") or ".3f"
    of_part = f"of {part} " if part else ""
    change = f"{of_part}{now:{form}}, it was {was:{form}}"
    return judge(
        verdict,
        before=was,
        after=now,
        effect=now - was,
        margin=margin,
        low=-effect.high,
        high=-effect.low,
        p=effect.p_worse,
        detail=f"{change}; {count(len(row_gains), 'row')}, paired; margin {margin}",
    )


def _gravity(judgement: Judgement) -> tuple[int, float]:
    """A sort key: the most severe verdict first, then the smallest p-value."""
    p = 1.0 if judgement.p is None else judgement.p
    return GRAVEST_FIRST.index(judgement.verdict), p


def load_frame(records: Iterable[Record], run: Path | None) -> pd.DataFrame:
    """The instrument figures of these records, with cell and seed; missing files are skipped."""
    frames = []
    for record in records:
        columns = read(record, run, "figures")
        if columns is not None:
            frames.append(columns.assign(cell=record.cell, seed=record.seeds.seed))
    if frames:
        frame = pd.concat(frames, ignore_index=True)
    else:
        frame = pd.DataFrame(
            columns=[*FIGURE_COLUMNS, "cell", *ROW_COLUMNS, "note", *NUMBER_COLUMNS]
        )
    return frame.astype(dict.fromkeys(NUMBER_COLUMNS, float))
