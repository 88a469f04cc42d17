"""Judges what a run measured beside losses and scores: memory, speed, and the figures of instruments.

The ledger of tensors is exact; peaks and speed have relative margins, and are compared between like machines only. What a
traced update holds is counted on a CPU, so that all CPUs are alike. A run's JSON declares the figures of instruments, and names
a file with their values for each cell and seed: nothing here knows an instrument. Needs no torch.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from tunegrid.gate.judgements import GRAVEST_FIRST, LEDGER, PEAKS, SPEEDS, TRACED, Judgement, Verdict, make_judgement
from tunegrid.gate.quality import Rows, effect_verdict
from tunegrid.gate.statistics import ALPHA, by_rows
from tunegrid.record import Record
from tunegrid.runs.examples import read
from tunegrid.words import count

ALIKE = ("torch", "transformers", "peft", "bitsandbytes")  # versions that affect speed
NUMBERS = ("value", "weight", "low", "high")
FIGURE, ROW = ("instrument", "part", "figure"), ("seed", "row")
OTHER_TRAINING = "the two runs are different trainings, so rows cannot be paired"
NO_NUMBER = "the new run lacks figures of some rows: ask for them with --ask, or see the reason below its table"


def judge_figures(
    cells: Mapping[str, Rows], one_training: Collection[str], margins: Mapping[str, Mapping[str, float]]
) -> Iterator[Judgement]:
    """Memory and speed of each cell; and the gravest figure of each instrument that the old run asked it."""
    for cell, rows in cells.items():
        is_finished = all(record.finished for record in rows.records[0])
        yield from _costs(rows, {**margins["memory"], **margins["speed"]}, is_finished)
        if is_finished:
            yield from _instruments(rows, cell in one_training)


def _costs(rows: Rows, margins: Mapping[str, float], is_finished: bool) -> Iterator[Judgement]:
    """Verdicts on the ledger; and of whole runs on peaks, traced bytes and speed, if the machines are alike."""
    (before, after), baseline = rows.records[0], list(rows.old.values())
    peers = [one for one in baseline if one.processes == after.processes]
    references = {name: [before] for name in LEDGER}
    if is_finished:
        twins = [one for one in peers if one.device and after.device and one.device.name == after.device.name]
        cpus = [one for one in peers if one.device and after.device and one.device.type == after.device.type == "cpu"]
        reason = unlike_machines(before, after)  # but a cluster's nodes may differ
        timings = [one for one in baseline if not reason and not unlike_machines(one, after)]
        references |= dict.fromkeys(PEAKS, twins) | dict.fromkeys(TRACED, cpus or twins) | dict.fromkeys(SPEEDS, timings)
    for name, records in references.items():
        old, new = [figure for record in records if (figure := _cost(record, name))], _cost(after, name)
        margin, judge = margins["ledger" if name in LEDGER else name], partial(make_judgement, before, name)
        if old and new is not None:
            # Worse: over the baseline's largest figure by more than the margin. Better: under its smallest by as much.
            share = new / max(old) - 1
            verdict = Verdict.WORSE if share > margin else Verdict.BETTER if new / min(old) - 1 < -margin else Verdict.SAME
            if name in LEDGER and verdict is Verdict.BETTER:  # no gain: something is no longer there, or no longer in fp32
                verdict = Verdict.CHANGED
            yield judge(verdict, effect=share, detail=f"margin {100 * margin:.3g}%")
        elif name == "step_seconds":
            yield judge(Verdict.NOT_COMPARABLE, detail=reason or "too few steps were measured")


def _cost(record: Record, name: str) -> float | None:
    memory, speed = record.memory, record.throughput
    if name == "step_seconds":
        return speed.step_seconds_median if speed else None
    if name in SPEEDS:
        rows, tokens = (speed.eval_samples_per_second, speed.generated_tokens_per_second) if speed else (None, None)
        rate = tokens if name == "token_seconds" else None if tokens else rows  # how long a text is, is not its speed
        return 1 / rate if rate else None
    return None if memory is None else getattr(memory.ledger, name) if name.endswith("_bytes") else memory.peak(name)


def unlike_machines(before: Record, after: Record) -> str:
    """Why the speed of two records cannot be compared; empty if it can."""
    if not before.device or not after.device:
        return "a run does not name its device"
    facts = [("name", before.device.name, after.device.name), ("threads", before.device.threads, after.device.threads)]
    facts += [("ranks", before.processes, after.processes)]
    facts += [(package, before.versions.get(package), after.versions.get(package)) for package in ALIKE]
    is_contended = before.device.contended or after.device.contended
    reasons = (f"{what}: {old} and {new}" for what, old, new in facts if old != new)
    return next(reasons, "measured on a device that others used" if is_contended else "")


def _instruments(rows: Rows, one_training: bool) -> Iterator[Judgement]:
    """The gravest verdict on each instrument's figures that have a better side, if rows pair: rounding alone moves these."""
    old, new = zip(*rows.records, strict=True)
    before, after = load_frame(old, rows.old_path), load_frame(new, rows.new_path)
    figures_by_name = {name: part.figures for record in (*new, *old) for name, part in record.instruments.items()}
    gravest: dict[str, Judgement] = {}
    pairs = before.merge(after, "left", [*FIGURE, *ROW], suffixes=("", "_new")) if len(before) else before
    for (instrument, part, name), lines in pairs.groupby([*FIGURE], sort=False):
        figure, judge = figures_by_name.get(instrument, {}).get(name), partial(make_judgement, new[0], f"{instrument}/{name}")
        if figure is None or not figure.better or lines.value.isna().any():
            continue
        reason = OTHER_TRAINING if not one_training else NO_NUMBER if lines.value_new.isna().any() else ""
        judgement = judge(Verdict.NOT_COMPARABLE, detail=reason)
        if not reason:
            gain, weights = 1 if figure.better == "higher" else -1, lines.weight / lines.weight.mean()
            gains = (gain * weights * (lines.value_new - lines.value)).groupby(lines.row).mean().to_numpy()
            effect = by_rows(gains if len(gains) > 1 else np.repeat(gains, 2))  # one number is held to its margin alone
            was, now, margin = (lines.value * weights).mean(), (lines.value_new * weights).mean(), figure.margin
            form, of_part = figure.shown.lstrip("+") or ".3f", f"of {part} " if part else ""
            judgement = judge(
                effect_verdict(effect, effect.p_worse, effect.p_better, margin, ALPHA) if was != now else Verdict.SAME,
                **{"before": was, "after": now, "effect": now - was, "margin": margin},
                **{"low": -effect.high, "high": -effect.low, "p": effect.p_worse},
                detail=f"{of_part}{now:{form}}, it was {was:{form}}; {count(len(gains), 'row')}, paired; margin {margin}",
            )
        other = gravest.setdefault(instrument, judgement)
        gravest[instrument] = min(other, judgement, key=lambda j: (GRAVEST_FIRST.index(j.verdict), 1.0 if j.p is None else j.p))
    yield from gravest.values()


def load_frame(records: Iterable[Record], run: Path | None) -> pd.DataFrame:
    """All lines of these records, each with its cell and seed; none of a record whose file is nowhere."""
    pairs = ((record, read(record, run, "figures")) for record in records)
    frames = [columns.assign(cell=record.cell, seed=record.seeds.seed) for record, columns in pairs if columns is not None]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*FIGURE, "cell", *ROW, "note", *NUMBERS])
    return frame.astype(dict.fromkeys(NUMBERS, float))
