"""A cell as the page shows it, of its records of two runs and the gate's judgements; and the environment of a run."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.more_tasks import words_for
from tunegrid.grid.recipes import TASKS_PROFILE, ZOO_PROFILE
from tunegrid.grid.tasks import score_title
from tunegrid.page import charts
from tunegrid.page.runs import PageRun, mean
from tunegrid.record import Record, Status
from tunegrid.record.record import CrashRecord, DeviceRecord
from tunegrid.results.cell_answer import UNCHANGED, place_of
from tunegrid.results.compare import Interval
from tunegrid.results.flips import RowSample, sampled
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, Verdict, worst
from tunegrid.results.status import status_of, too_short
from tunegrid.results.study import INSTEAD

# Said elsewhere on the page, or of no use to its reader.
LEFT_OUT = ("trainable_params", "total_params", "adapter", "generation", "quantization")
# Of a device: what all cells of a run share as a rule, so that it stands once on the page.
SHARED = ("type", "name", "threads", "instructions")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What cells of a run ran in.

    Attributes:
        devices: each in words.
        versions: of each library, all that any cell ran with.
    """

    devices: Sequence[str]
    versions: Mapping[str, Sequence[str]]

    @property
    def one(self) -> bool:
        """Whether all cells share it."""
        return len(self.devices) < 2 and all(len(known) < 2 for known in self.versions.values())


def environment_of(records: Sequence[Record]) -> Environment:
    """The environment of these records; what is not known is left out."""
    devices = dict.fromkeys(device_in_words(record.device) for record in records if record.device)
    versions: dict[str, dict[str, None]] = {}
    for name, version in (pair for record in records for pair in record.versions.items()):
        if version:
            versions.setdefault(name, {})[version] = None
    return Environment(devices=list(devices), versions={name: list(known) for name, known in versions.items()})


def device_in_words(device: DeviceRecord) -> str:
    """A device with its threads and instructions."""
    threads = f"{device.threads} thread{'' if device.threads == 1 else 's'}" if device.threads else ""
    return ", ".join(filter(None, [device.name, threads, device.instructions]))


def settings_of(record: Record, *, alone: bool = True) -> list[tuple[str, str]]:
    """The recipe, then rows, model, device and versions; what does not apply is left out.

    Args:
        record: of the cell.
        alone: with the device and the versions, which a run's cells share as a rule.
    """
    recipe = asdict(record.recipe)
    plain = {name: value for name, value in recipe.items() if name not in LEFT_OUT}
    parts = {name: recipe[name] for name in ("adapter", "generation", "quantization")}
    known = (*plain.items(), *parts.items(), *_circumstances(record, alone))
    return [(name, _words(value)) for name, value in known if _told(value)]


def _circumstances(record: Record, alone: bool) -> list[tuple[str, Any]]:
    data, model, device, training = record.data, record.model, record.device, record.training
    parts: list[tuple[str, Any]] = [("seeds", asdict(record.seeds)), ("at most", asdict(record.limits))]
    if training:
        parts += [
            ("trained in", training.precision),
            ("rows a forward pass", training.micro_batch),
            ("tokens", training.tokens),
        ]
    if data:
        parts += [("rows", data.rows), ("rows from", data.origins), ("data fingerprint", data.fingerprint)]
        parts += [("data revision", data.revision)]
    if model:
        parts += [("checkpoint", model.checkpoint), ("weights", model.fingerprint), ("architecture", model.architecture)]
        parts += [("new modules", model.adapted_modules)]
    if record.evaluation:
        parts += [("metrics from", record.evaluation.metric_sources)]
    own = asdict(device) if device else {}
    shown = own if alone else {name: value for name, value in own.items() if name not in SHARED}
    return [*parts, ("device", shown), *([("versions", record.versions)] if alone else [])]


def _told(value: Any) -> bool:
    return value not in (None, "", [], (), {}) and not (isinstance(value, dict) and not any(map(_told, value.values())))


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items() if _told(item))
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:,}" if type(value) is int else str(value)


LEDGER = ("weights", "gradients", "optimizer", "activations")


@dataclass(frozen=True, kw_only=True)
class CellView:
    """A cell with all its seeds, beside what an older run says of it.

    Attributes:
        records: one per seed; the first one stands for the cell where a figure is not a mean.
        old: the older run's records that these are compared with: of the same seeds, or all where no seed is the same.
        judged: the gate's judgements on it.
        interval: 95 % interval of the main score, as `tunegrid compare` has it; None where nothing tells it.
    """

    records: Sequence[Record]
    old: Sequence[Record]
    judged: Sequence[Judgement]
    interval: Interval | None
    rows: RowSample

    @property
    def first(self) -> Record:
        """The record of the lowest seed."""
        return self.records[0]

    @property
    def id(self) -> str:
        """The cell's name."""
        return self.first.cell

    @property
    def status(self) -> Status:
        """Passed where every seed passed."""
        return status_of(self.records)

    @property
    def main_score(self) -> str:
        """The name of the main score; of a publication that does not have it, of the one that it has instead."""
        name = self.first.main_score
        return INSTEAD.get(name, name) if self.status == "reported" and name not in self.first.scores else name

    @property
    def score(self) -> float | None:
        """The main score, its mean over seeds."""
        return self.score_of(self.main_score)

    def score_of(self, name: str) -> float | None:
        """A score's mean over seeds."""
        return mean(record.scores.get(name) for record in self.records)

    def before(self, name: str) -> float | None:
        """A score's mean over the runs that the gate paired with."""
        paired = next((judgement.before for judgement in self.judged if judgement.quantity == name), None)
        return mean(record.scores.get(name) for record in self.old) if paired is None else paired

    @property
    def bound(self) -> float | None:
        """What the main score must reach."""
        return self.first.bounds.get(self.first.main_score)

    @property
    def above(self) -> float | None:
        """How far the main score is above its bound."""
        return None if self.score is None or self.bound is None else self.score - self.bound

    @property
    def shade(self) -> str:
        """The heat map's step: b4 far below the bound, a4 far above, none where there is no bound."""
        if self.above is None:
            return "none"
        step = 1 + sum(abs(self.above) >= edge for edge in (1, 3, 8))
        return f"{'a' if self.above >= 0 else 'b'}{step}"

    @property
    def main(self) -> Judgement | None:
        """The judgement on the main score."""
        return next((j for j in self.judged if j.quantity == self.first.main_score), None)

    @property
    def change(self) -> float | None:
        """Points by which the main score differs from the older run's, as the gate pairs them; None where nobody compared."""
        return self.main.effect if self.main else None

    @property
    def place(self) -> tuple[str, str]:
        """The stage at which numerics changed first, and the module; empty where none did."""
        return place_of(self.gravest_first)

    @property
    def changed(self) -> bool:
        """Whether the gate says that it is other than before, or it ended otherwise."""
        ended = {self.status, status_of(self.old)} if self.old and self.status != "begun" else set()
        return len(ended) > 1 or (self.verdict or Verdict.SAME) not in (*UNCHANGED, Verdict.CANNOT_TELL, Verdict.NOT_COMPARABLE)

    @property
    def crash(self) -> CrashRecord | None:
        """How the first seed that broke off did so."""
        return next((record.crash for record in self.records if record.crash), None)

    def title_of(self, score: str) -> str:
        """A score's name for readers."""
        return score_title(score, self.first.labels)

    @property
    def verdict(self) -> Verdict | None:
        """The gravest verdict on numerics, quality and memory."""
        return worst([j for j in self.judged if j.decides and j.kind not in ("instruments", "speed")])

    def gravest(self, kind: str) -> Judgement | None:
        """The gravest judgement on a kind of figure."""
        return next((j for j in self.gravest_first if j.kind == kind), None)

    def verdict_on(self, kind: str) -> Verdict | None:
        """The gravest verdict on a kind of figure."""
        return worst([j for j in self.judged if j.decides and j.kind == kind])

    @property
    def gravest_first(self) -> list[Judgement]:
        """All judgements, the gravest first."""
        return sorted(self.judged, key=lambda judgement: GRAVEST_FIRST.index(judgement.verdict))

    @property
    def sentences(self) -> list[str]:
        """What it missed, without the cell's name."""
        several = len(self.records) > 1
        return [
            sentence.replace(f" ({self.id}, {self.first.profile}, seed {record.seeds.seed})", "")
            + (f" (seed {record.seeds.seed})" if several else "")
            for record in self.records
            for sentence in (*record.missed, *too_short(record))
        ]

    @property
    def failed_audits(self) -> int:
        """How many audits of its seeds object."""
        return sum(not finding.passed for record in self.records for finding in record.audits)

    @property
    def train_seconds(self) -> float | None:
        """Seconds of training, the mean over seeds."""
        return mean(record.training.seconds if record.training else None for record in self.records)

    @property
    def peak(self) -> float | None:
        """The highest peak in GiB, of the seeds."""
        return max((peak for record in self.records if (peak := record.peak_gib) is not None), default=None)

    @property
    def trained_bytes(self) -> int | None:
        """Bytes that training changes and a checkpoint keeps."""
        return self.first.memory.ledger.checkpoint_bytes if self.first.memory else None

    @property
    def ledger(self) -> list[int | None]:
        """Bytes by the names of `LEDGER`."""
        ledger = self.first.memory.ledger if self.first.memory else None
        return [getattr(ledger, f"{name}_bytes", None) for name in LEDGER]

    def rate(self, name: str, *, old: bool = False) -> float | None:
        """A rate of `Throughput`, the mean over seeds."""
        rates = (record.throughput for record in (self.old if old else self.records))
        return mean(getattr(rate, name) if rate else None for rate in rates)

    def joules(self, figure: str, phase: str | None = None) -> float | None:
        """Joules by one counter, of a phase or all of the cell's own; the mean over seeds, None where one was not measured."""
        memories = [record.memory for record in self.records if record.memory]
        of_phase = (memory.phases.get(phase) for memory in memories) if phase else ()
        each = [getattr(own, figure, None) for own in of_phase] if phase else [memory.joules(figure) for memory in memories]
        known = [joules for joules in each if joules is not None]
        return fmean(known) if known and len(known) == len(self.records) else None

    @property
    def peaks(self) -> list[tuple[str, float, float]]:
        """Phase, its peak in GiB, and by how much it raised the peak of the phases before."""
        steps, highest = [], 0.0
        for name, phase in (self.first.memory.phases if self.first.memory else {}).items():
            peak = phase.rss_peak_gib if phase.reserved_peak_gib is None else phase.reserved_peak_gib
            if peak is not None:
                steps.append((name, peak, max(0.0, peak - highest)))
                highest = max(highest, peak)
        return steps

    def peak_of(self, phase: str) -> float | None:
        """A phase's peak in GiB."""
        return next((peak for name, peak, _ in self.peaks if name == phase), None)

    def losses(self, *, old: bool = False) -> list[float | None]:
        """Losses of the first seed."""
        record = next(iter(self.old if old else self.records), None)
        return list(record.training.losses) if record and record.training else []

    def curve(self, width: int, height: int, left: int = 0, axes: charts.Extent | None = None) -> charts.Curve | None:
        """The loss curve, the older one behind it."""
        return charts.curve(self.losses(), self.losses(old=True), width, height, left, axes)

    @property
    def loss_rows(self) -> list[tuple[int, float | None, float | None]]:
        """Update, new and old loss of some updates, the first and the last among them."""
        new, old = self.losses(), self.losses(old=True)
        indices = sorted({round(share * (len(new) - 1) / 5) for share in range(6)}) if new else []
        return [(index + 1, new[index], old[index] if index < len(old) else None) for index in indices]

    def settings(self, *, alone: bool) -> list[tuple[str, str]]:
        """What it ran with, as words: recipe, rows, model; with the environment where it stands alone with its own."""
        return settings_of(self.first, alone=alone)

    @property
    def command(self) -> str:
        """What runs just this cell again."""
        first = self.first
        words = words_for(self.id, first.profile)
        ours = words != first.profile or first.profile in (ZOO_PROFILE.id, TASKS_PROFILE.id) or self.id in STUDY_IDS
        options = ["" if ours else "--grid=FILE.py", f"--cells={self.id}"]
        seeds = [str(record.seeds.seed) for record in self.records]
        options.append(f"--seeds={','.join(seeds)}")
        options.append(f"--set perturbation={first.seeds.perturbation}" if first.seeds.perturbation is not None else "")
        options.append("--set own_test=true" if first.limits.own_test else "")
        options.append(f"--set label_noise={first.limits.label_noise}" if first.limits.label_noise else "")
        options.append("--device=cpu" if first.profile == "full" and first.device and first.device.type == "cpu" else "")
        return " ".join(["pytest -m", shlex.quote(words), *filter(None, options)])


def cell_view(
    run: PageRun, baseline: PageRun | None, cell: str, judgements: Sequence[Judgement], interval: Interval | None, limit: int
) -> CellView:
    """A cell of a run, with at most `limit` of its test rows."""
    records = run.by_cell[cell]
    older = baseline.by_cell.get(cell, []) if baseline else []
    seeds = [record.seeds.seed for record in records]
    old = [record for record in older if record.seeds.seed in seeds] or older
    pair = next((record for record in old if record.seeds.seed == seeds[0]), next(iter(old), None))
    rows = sampled(records[0], run.path, pair, baseline.path if baseline else None, limit)
    ordered = [pair, *(record for record in old if record is not pair)] if pair else []
    return CellView(records=records, old=ordered, judged=judgements, interval=interval, rows=rows)
