"""Makes the `Page`, which templates print, of a run, older runs and the gate's judgements: fields of the grid, and tables."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from tunegrid.errors import InputError
from tunegrid.gate.gate import Run, gate
from tunegrid.gate.judgements import GRAVEST_FIRST, Judgement, Verdict, by_cell, make_judgement, worst
from tunegrid.gate.noise import load_noise
from tunegrid.gate.quality import check_rows
from tunegrid.grid.cells import study_place
from tunegrid.grid.tasks import score_title
from tunegrid.page.rows import rows_section
from tunegrid.record import Record, Status
from tunegrid.report import compare
from tunegrid.report.compare import Comparison, compare_methods
from tunegrid.report.tables import Section
from tunegrid.report.verdict import RunVerdict, run_verdict
from tunegrid.runs.files import OwnNoise, SavedRun, read_saved
from tunegrid.runs.frame import figure_frame
from tunegrid.runs.status import cell_status, too_short, unconfirmed_misses
from tunegrid.terminal import defuse, strip_places
from tunegrid.words import count, some

if TYPE_CHECKING:
    from tunegrid.page.charts import Chart

UNCHANGED = (Verdict.SAME, Verdict.EQUAL, Verdict.ROUNDING, Verdict.CANNOT_TELL, Verdict.NOT_COMPARABLE, None)
ROWS_A_CELL, ROWS_A_PAGE = 30, 900  # test rows that are shown
MOST_COLUMNS = 6  # of methods, in the grid: more stand below each other
MOST_OPEN = 3  # cells that failed
MOST_CHARTS = 12  # of losses


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """A run of one profile, as its file has it.

    Attributes:
        when: the ISO date and time at which it was saved, in UTC.
        commit: of the suite that ran it.
        remarks: what the page leaves out of it, as sentences.
        doubt: why it is no baseline; empty if its seals hold.
    """

    name: str
    records: Sequence[Record]
    path: Path | None = None
    when: str = ""
    commit: str = ""
    command: str = ""
    noise: Sequence[OwnNoise] = ()
    remarks: tuple[str, ...] = ()
    doubt: str = ""

    @property
    def warning(self) -> str:
        """The sentence that a page begins with if the seals of the file do not hold; else empty."""
        return f"{self.name} {self.doubt}" if self.doubt else ""

    @cached_property
    def by_cell(self) -> Mapping[str, list[Record]]:
        """The records of each cell, in the study's order: one per seed of the run, the lowest seed first."""
        cells: dict[str, list[Record]] = defaultdict(list)
        records = (record for record in self.records if record.seeds.confirms is None)
        for record in sorted(records, key=lambda record: (study_place(record.cell), record.seeds.seed or 0)):
            cells[record.cell].append(record)
        return cells

    @property
    def profile(self) -> str:
        """The profile of all its records; empty if it has none."""
        return self.records[0].profile if self.records else ""

    @cached_property
    def time(self) -> datetime | None:
        """When it was saved, in UTC if its file names no zone; None if that is no date."""
        try:
            time = datetime.fromisoformat(self.when)
        except ValueError:
            return None
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def seed_records(self, cell: str, seeds: Iterable[int | None]) -> list[Record]:
        """A cell's records of these seeds; all if it has none of them."""
        records = self.by_cell.get(cell, [])
        return [record for record in records if record.seeds.seed in seeds] or records


def mean(figures: Iterable[float | None]) -> float | None:
    """The mean of what was measured."""
    numbers = [figure for figure in figures if figure is not None]
    return fmean(numbers) if numbers else None


def read_page_run(path: Path, profile: str | None = None) -> PageRun:
    """A saved run; raises InputError, in one sentence, if the file cannot be read."""
    return page_run(read_saved(path), profile)


def page_run(saved: SavedRun, profile: str | None = None) -> PageRun:
    """The records of this profile in a saved run; by default of the one with most. Raises InputError if it has none."""
    profiles = [record.profile for record in saved.records]
    names = sorted(set(profiles), key=lambda name: (-profiles.count(name), name))
    if profile is not None and profile not in names:
        raise InputError(f"{saved.path.name} holds no cells of {profile}, but of {' and '.join(names) or 'nothing'}")
    if profiles and all(record.status == "reported" for record in saved.records):
        raise InputError(f"{saved.path.name} holds only published results, which `tunegrid compare` shows with a run")
    profile_name = profile or next(iter(names), "")
    others = ", ".join(f"{profiles.count(name)} of {name}" for name in names if name != profile_name)
    advice = f"{saved.path.name} also holds records of another profile ({others}): `--profile` shows those"
    return PageRun(
        name=defuse(saved.path.name),  # it may be no UTF-8
        records=[record for record in saved.records if record.profile == profile_name],
        path=saved.path,
        when=saved.when,
        commit=saved.commit,
        command=saved.command,
        noise=saved.noise,
        remarks=(advice,) if others else (),
        doubt=saved.doubt,
    )


def judge_runs(old: PageRun, new: PageRun) -> tuple[list[Judgement], list[str]]:
    """The gate's judgements on the cells that can be compared, and a sentence for what cannot."""
    try:
        before = Run.make(old.records, old.path, old.noise, old.doubt)
        after = Run.make(new.records, new.path, new.noise)
        common = before.records.keys() & after.records.keys()
        unlike = sorted(cell for cell in common if has_other_rows(old.by_cell[cell], new.by_cell[cell][0]))
        remarks = []
        if unlike:
            rows = f"{old.name} scored other test rows in {some(unlike)}"
            remarks.append(f"{rows}: its figures are shown, but not paired or judged")
        if old.records == new.records:
            remarks.append(f"{old.name} and {new.name} hold the same records: there is nothing to compare")
        if not common:
            return [], [f"{old.name} and {new.name} have no finished cell in common, so nothing is compared"]
        firsts = [new.by_cell[cell][0] for cell in unlike]
        judge = partial(make_judgement, verdict=Verdict.NOT_COMPARABLE, detail="other test rows")
        judgements = [judge(record, record.main_score) for record in firsts]
        if common > set(unlike):
            before = before.select(before.records.keys() - set(unlike))
            after = after.select(after.records.keys() - set(unlike))
            judgements += gate(before, after)
        return judgements, remarks
    except InputError as error:
        return [], [f"not compared with {old.name}: {error}"]


def has_other_rows(old: Iterable[Record], new: Record) -> bool:
    """True if a record was scored on other test rows than one of the older ones."""
    try:
        for record in old:
            check_rows(record, new)
    except InputError:
        return True
    return False


@dataclass(frozen=True, kw_only=True)
class CellView:
    """A cell with all its seeds, the older run's records of the same seeds, and the gate's judgements on it."""

    records: Sequence[Record]
    old: Sequence[Record]
    judged: Sequence[Judgement]

    @property
    def first(self) -> Record:
        """The record of the lowest seed, for all that is no mean."""
        return self.records[0]

    @property
    def id(self) -> str:
        """The cell's name."""
        return self.first.cell

    @property
    def status(self) -> Status:
        """Passed if every seed passed."""
        return cell_status(self.records)

    @property
    def status_word(self) -> str:
        """The status as tables say it: a run that is too short did not pass."""
        is_short = any(record.is_short for record in self.records)
        return "too short" if is_short and self.status == "passed" else self.status

    @property
    def main_score(self) -> str:
        """The name of the main score."""
        return self.first.main_score

    def get_score(self, name: str, old: bool = False) -> float | None:
        """A score's mean over seeds."""
        return mean(record.scores.get(name) for record in (self.old if old else self.records))

    @property
    def score(self) -> float | None:
        """The main score."""
        return self.get_score(self.main_score)

    @property
    def headroom(self) -> float | None:
        """How far the main score is above its bound."""
        bound = self.first.bounds.get(self.first.main_score)
        return None if self.score is None or bound is None else self.score - bound

    @property
    def shade(self) -> str:
        """The heat map's step: b4 far below the bound, a4 far above, none without a bound."""
        if self.headroom is None:
            return "none"
        return f"{'a' if self.headroom >= 0 else 'b'}{1 + sum(abs(self.headroom) >= edge for edge in (1, 3, 8))}"

    @property
    def change(self) -> float | None:
        """Points by which the main score differs from the older run's, as the gate pairs them; None if it does not."""
        return next((j.effect for j in self.judged if j.quantity == self.first.main_score), None)

    @property
    def place(self) -> tuple[str, str]:
        """The stage at which numerics changed first, and the module; empty if none did."""
        stages = ((j.stage, next((name for name, *_ in j.modules), "")) for j in self.judged if j.stage)
        return next(stages, ("", ""))

    @property
    def ranked_judgements(self) -> list[Judgement]:
        """All judgements, the gravest first."""
        return sorted(self.judged, key=lambda judgement: GRAVEST_FIRST.index(judgement.verdict))

    @property
    def verdict(self) -> Verdict | None:
        """The gravest verdict on numerics, quality and memory."""
        return worst([j for j in self.judged if j.decides and j.kind not in ("instruments", "speed")])

    @property
    def failed(self) -> bool:
        """Whether it did not pass."""
        return self.status not in ("passed", "unconfirmed", "begun")

    @property
    def changed(self) -> bool:
        """Whether the gate says that it is other than before, or it ended otherwise."""
        has_new_status = bool(self.old) and self.status not in ("begun", cell_status(self.old))
        return has_new_status or self.verdict not in UNCHANGED

    @property
    def complaints(self) -> list[str]:
        """What it missed, without the cell's name."""
        several, texts = len(self.records) > 1, []
        for record in self.records:
            suffix = f" ({self.id}, {record.profile}, seed {record.seeds.seed})"
            seed = f" (seed {record.seeds.seed})" if several else ""
            texts += [strip_places(text.replace(suffix, "")) + seed for text in (*record.missed, *too_short(record))]
        return texts

    def losses(self, *, old: bool = False) -> Sequence[float | None]:
        """Losses of the first seed."""
        record = next(iter(self.old if old else self.records), None)
        return record.training.losses if record and record.training else ()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of one task: a row for each backbone and a column for each method, or the other way round."""

    task: str
    scores: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[CellView | None]]]


def task_grid(task: str, cells: Sequence[CellView]) -> Grid:
    """The grid of a task; many methods stand below each other."""
    backbones, methods = (list(dict.fromkeys(getattr(cell.first, name) for cell in cells)) for name in ("backbone", "method"))
    places = {(cell.first.backbone, cell.first.method): cell for cell in cells}
    rows = [(one, [places.get((one, method)) for method in methods]) for one in backbones]
    if methods_below := len(methods) > max(len(backbones), MOST_COLUMNS):
        rows = [(one, [places.get((backbone, one)) for backbone in backbones]) for one in methods]
    scores = list(dict.fromkeys(cell.main_score for cell in cells))
    return Grid(task=task, scores=scores, columns=backbones if methods_below else methods, rows=rows)


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a page shows.

    Attributes:
        older: the runs to compare with, the one that judges first.
        answer: what is to be said of the run.
        comparisons: what `tunegrid compare` says of it; empty if its seeds are not of one experiment.
        remarks: what is missing or left out, as sentences.
    """

    run: PageRun
    older: Sequence[PageRun]
    answer: RunVerdict
    cells: Sequence[CellView]
    judged: Sequence[Judgement]
    remarks: Sequence[str]
    comparisons: Sequence[Comparison]

    @cached_property
    def grids(self) -> list[Grid]:
        """The cells by task; none of a footprint, which has no scores."""
        tasks = dict.fromkeys(cell.first.task for cell in self.cells if self.run.profile != "footprint")
        return [task_grid(task, [cell for cell in self.cells if cell.first.task == task]) for task in tasks]

    @cached_property
    def environment(self) -> dict[str, str]:
        """What the run's cells ran in, with what differs in the run that judges."""
        baseline = self.older[0] if self.older else None
        devices = [record.device for record in self.run.records if record.device]
        threads = [f", {count(device.threads, 'thread')}" if device.threads else "" for device in devices]
        words = dict.fromkeys(
            f"{d.name}{suffix}, {d.instructions or ''}".rstrip(", ") for d, suffix in zip(devices, threads, strict=True)
        )
        now, before = (library_versions(run.records if run else ()) for run in (self.run, baseline))
        differs = {name: f" ({old} before)" for name, old in before.items() if now.get(name, old) != old}
        commit = self.run.commit
        if baseline and baseline.commit not in ("", commit):
            commit += f" ({baseline.commit} in {baseline.name})"
        versions = ", ".join(f"{name} {version}{differs.get(name, '')}" for name, version in now.items())
        facts = {"command": self.run.command, "device": "; ".join(words), "commit": commit, "versions": versions}
        return {name: text for name, text in facts.items() if text}

    def opens(self, cell: CellView) -> bool:
        """Whether a cell is shown without being asked for: one that failed, if few did, or the only one."""
        return len(self.cells) == 1 or (cell.failed and sum(one.failed for one in self.cells) <= MOST_OPEN)

    @property
    def changes(self) -> list[Section]:
        """The cells that failed, or are other than before, the largest change first."""
        cells = [cell for cell in self.cells if cell.failed or cell.changed]
        cells.sort(key=lambda cell: (not cell.failed, cell.score is not None, -abs(cell.change or 0.0)))
        rows = []
        for cell in cells:
            main = next((j for j in cell.judged if j.quantity == cell.first.main_score), None)
            gravest = next((j for j in cell.ranked_judgements if j.decides and j.verdict not in UNCHANGED), None)
            row: dict[str, Any] = {"cell": cell.id, "status": cell.status, "verdict": cell.verdict, "points": cell.score}
            row |= {name: getattr(main, name, None) for name in ("effect", "low", "high")}
            row |= dict(zip(("stage", "module"), (place or None for place in cell.place), strict=True))
            rows.append(row | {"says": "; ".join(cell.complaints) or (strip_places(gravest.detail) if gravest else None)})
        missing = [j.cell for j in self.judged if j.verdict is Verdict.MISSING and j.cell not in self.run.by_cell]
        sentences = [f"Missing: {', '.join(missing)} finished in {self.older[0].name}, but not in this run."] if missing else []
        forms = {"points": ".1f", "effect": "+.1f", "low": "+.1f", "high": "+.1f"}
        return [Section(frame=drop_empty(rows), formats=forms, sentences=sentences)] if rows or sentences else []

    @property
    def methods(self) -> list[Section]:
        """What `tunegrid compare` says."""
        return compare.sections(self.comparisons, self.run.records) if self.comparisons else []

    @cached_property
    def figures(self) -> list[Section]:
        """What cells were asked beside their scores, a table an instrument."""
        if not any(record.instruments for record in self.run.records):
            return []
        from tunegrid.report.instruments import instrument_sections

        return list(instrument_sections(self.run.records, self.run.path))

    @property
    def costs(self) -> list[Section]:
        """Bytes, peaks, rates and energy of all cells; what was measured of none is left out."""
        records = [record for cell in self.cells for record in cell.records]
        is_shared = any(r.memory and r.own_peak_gib is None and r.peak_gib is not None for r in records)
        alone = [r for r in records if not (r.device and r.device.contended)]
        joules = figure_frame(records, JOULES).groupby(level=0, sort=False)
        energy = joules.agg(lambda figures: figures.mean(skipna=False))
        metered_cells = energy.dropna(how="all").index
        devices = [r.device for r in records if r.device and r.cell in metered_cells]
        counters = "; ".join(dict.fromkeys(device.energy for device in devices if device.energy))
        shared = "Peaks include what earlier cells of the same process left." if is_shared else ""
        contended = ""
        if alone != records:
            contended = "Times are left out if other work used the machine."
        idle = f"Idle power included ({counters})." if counters else "Idle power included."
        tables = [
            cost_section("Bytes and peaks of memory", self._memory(), shared),
            cost_section("Speed and losses", self._speed(alone), contended),
            cost_section("Energy", energy, idle),
        ]
        return [table for table in tables if table.formats]

    def _memory(self) -> pd.DataFrame:
        """MiB of tensors of each cell's first seed, and the peak of each phase."""
        records = [cell.first for cell in self.cells]
        columns = dict(TENSOR_SIZES)
        for record in records:
            phases = record.memory.phases if record.memory else {}
            for phase in phases:
                columns[f"{phase} GiB"] = f"memory.phases.{phase}.peak_gib"
        return figure_frame(records, columns)

    def _speed(self, records: Sequence[Record]) -> pd.DataFrame:
        """Losses of each cell's first seed; mean rates of these records, and of the older run's."""
        frame = figure_frame([cell.first for cell in self.cells], COURSE)
        frame = frame.join(figure_frame(records, RATES).groupby(level=0).mean())
        old_records = [record for cell in self.cells for record in cell.old]
        before = figure_frame(old_records, {FORMER_RATE: RATES["rows/s"]})
        frame = frame.join(before.groupby(level=0).mean())
        frame[FORMER_RATE] = frame[FORMER_RATE].where(frame["rows/s"].notna())
        return frame

    @cached_property
    def runs(self) -> list[PageRun]:
        """All runs, the oldest first."""
        return [*sorted(self.older, key=lambda one: one.when), self.run]

    def scores(self, cell: CellView) -> list[float | None]:
        """A cell's main score in each run, of the same seeds, so that they compare as the grid does."""
        seeds = {record.seeds.seed for record in cell.records}
        name = cell.first.main_score
        return [mean(record.scores.get(name) for record in run.seed_records(cell.id, seeds)) for run in self.runs]

    @property
    def history(self) -> list[Section]:
        """Main scores of this run's cells over all runs; none without older ones."""
        if not self.older or not self.grids:
            return []
        names = [f"{run.name} {run.when[:10]} {run.commit[:7]}".strip() for run in self.runs]
        names = [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]
        frame = pd.DataFrame([[cell.id, *self.scores(cell)] for cell in self.cells], columns=["cell", *names])
        sentences = [*unconfirmed_misses(*([one for run in runs for one in run.records] for runs in ([self.run], self.older)))]
        return [Section(frame=frame, formats=dict.fromkeys(names, ".1f"), sentences=sentences)]

    @cached_property
    def charts(self) -> dict[str, "list[Chart]"]:
        """By section of the page."""
        from tunegrid.page import charts

        groups: dict[str, list[CellView]] = defaultdict(list)
        for cell in self.cells:
            if len(cell.losses()) > 1:
                groups[f"{cell.first.backbone} {cell.first.task}"].append(cell)
        curves = [
            charts.losses(name, *({cell.first.method: cell.losses(old=old) for cell in cells} for old in (False, True)))
            for name, cells in [*groups.items()][:MOST_CHARTS]
        ]
        times = [time for run in self.runs if (time := run.time)]
        dates = times if len(times) == len(self.runs) and times[0] < times[-1] else None
        steps = []
        for grid in self.grids if self.older else ():
            scores = {(c.first.backbone, c.first.method): self.scores(c) for _, row in grid.rows for c in row if c}
            steps.append(charts.history(grid.task, grid.scores[0], scores, dates))
        return {
            "methods": [*charts.quality(self.comparisons), *charts.seeds(self.comparisons)],
            "losses": curves,
            "history": steps,
        }

    def cell_tables(self, cell: CellView) -> list[Section]:
        """What stands in a cell's own section."""
        titles = {name: score_title(name, cell.first.labels) for name in cell.first.scores}
        scores = [
            {"score": title, "points": cell.get_score(name), "bound": cell.first.bounds.get(name)}
            | {"before": cell.get_score(name, old=True)}
            for name, title in titles.items()
        ]
        gate_rows = [
            {"figure": titles.get(j.quantity, j.quantity), "verdict": j.verdict, "before": j.before, "after": j.after}
            | {"change": effect_text(j), "p": j.p, "why": strip_places(j.detail)}
            for j in cell.ranked_judgements
        ]
        failed = [finding for record in cell.records for finding in record.audits if not finding.passed]
        audits = [
            {"audit": finding.name, "answer": "passed" if finding.passed else "failed"}
            | {"finding": strip_places(finding.detail)}
            for finding in sorted(cell.first.audits, key=lambda finding: finding.passed)
        ]
        forms = {"points": ".2f", "bound": ".1f", "before": ".2f", "after": ".2f", "p": ".3f"}
        gate_heading = f"Gate: {cell.verdict}" if cell.verdict else "Gate"
        heading = f"Audits: {len(failed)} failed" if failed else f"Audits: all {len(audits)} passed"
        settings = settings_frame(cell.first, " and " in self.environment.get("versions", ""))
        parts = [
            Section(frame=drop_empty(scores), formats=forms),
            Section(heading=gate_heading, frame=drop_empty(gate_rows), formats=forms, folded=True),
            *self._rows(cell),
            Section(heading=heading, frame=drop_empty(audits), folded=True),
            Section(heading="Recipe and data", frame=settings, folded=True),
        ]
        return [part for part in parts if part.cells or part.sentences]

    def _rows(self, cell: CellView) -> list[Section]:
        """Test rows of the first seed: lost and gained ones first, or else those with fewest points."""
        if not cell.first.evaluation:
            return []
        limit = max(4, min(ROWS_A_CELL, ROWS_A_PAGE // len(self.cells)))
        baseline = self.older[0].path if self.older else None
        return [rows_section(cell.first, self.run.path, next(iter(cell.old), None), baseline, limit)]


TENSOR_SIZES = {
    "weights MiB": "memory.ledger.weights_mib",
    "gradients MiB": "memory.ledger.gradients_mib",
    "optimizer MiB": "memory.ledger.optimizer_mib",
    "checkpoint MiB": "memory.ledger.checkpoint_mib",
    "activations MiB": "memory.ledger.activations_mib",
    "peak MiB": "memory.ledger.peak_mib",
}
COURSE = {"updates": "losses", "first loss": "first_loss", "last loss": "last_loss"}
RATES = {
    "train s": "training.seconds",
    "MFU %": "flops.mfu_percent",
    "rows/s": "throughput.train_samples_per_second",
    "tokens/s": "throughput.train_tokens_per_second",
    "step s": "throughput.step_seconds_median",
    "step p90 s": "throughput.step_seconds_p90",
    "scored rows/s": "throughput.eval_samples_per_second",
    "generated tokens/s": "throughput.generated_tokens_per_second",
}
FORMER_RATE = "rows/s before"
JOULES = {"GPU J": "gpu_joules", "CPU J": "cpu_joules"}
DIGITS = {
    "updates": ".0f",
    "tokens/s": ".0f",
    "first loss": ".4f",
    "last loss": ".4f",
    "step s": ".4f",
}


def cost_section(heading: str, frame: pd.DataFrame, note: str) -> Section:
    """A table of those figures that any cell has; a row for each cell, which is its index."""
    frame = frame.dropna(axis=1, how="all")
    formats = {name: DIGITS.get(name, ".2f") for name in frame}
    frame = frame.rename_axis("cell").reset_index()
    return Section(heading=heading, frame=frame, formats=formats, sentences=[note] if note else [])


def drop_empty(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A frame without the columns that nothing is in."""
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def effect_text(judgement: Judgement) -> str | None:
    """By how much a figure changed, with its unit and 95 % interval."""
    if judgement.effect is None:
        return None
    forms = {"quality": (1, "+.2f", " points"), "instruments": (1, "+.3f", "")}
    scale, form, unit = forms.get(judgement.kind, (100, "+.1f", " %"))
    change = f"{scale * judgement.effect:{form}}{unit}"
    if judgement.low is None or judgement.high is None:
        return change
    return f"{change} ({scale * judgement.low:{form}} to {scale * judgement.high:{form}})"


def library_versions(records: Sequence[Record]) -> dict[str, str]:
    """Of each library, all that any cell ran with."""
    numbers_by_name: dict[str, dict[str, None]] = defaultdict(dict)
    for name, version in (pair for record in records for pair in record.versions.items() if pair[1]):
        numbers_by_name[name][str(version)] = None
    return {name: " and ".join(versions) for name, versions in numbers_by_name.items()}


def settings_frame(record: Record, with_versions: bool) -> pd.DataFrame:
    """The recipe, rows, model and device of a cell, and versions if cells differ in them; what does not apply is left out."""
    parts = (record.recipe, record.seeds, record.limits, record.data, record.model, record.device)
    details = {name: value for part in parts if part for name, value in vars(part).items()}
    details |= {"fallbacks": record.training.fallbacks, "trained in": record.training.precision} if record.training else {}
    details |= {"metrics from": record.evaluation.metric_sources} if record.evaluation else {}
    details |= {"versions": record.versions} if with_versions else {}
    rows = [
        (name.replace("_", " "), strip_places(str(value))) for name, value in details.items() if value not in (None, "", [], {})
    ]
    return pd.DataFrame(rows, columns=["setting", "value"])


def make_page(
    run: PageRun,
    older: Sequence[PageRun] = (),
    *,
    verdicts: Sequence[Judgement] | None = None,
    answer: RunVerdict | None = None,
) -> Page:
    """The page of a run, of one profile or empty.

    Args:
        run: to show.
        older: runs to compare with; the first one judges.
        verdicts: the gate's, if a session has judged already.
        answer: the session's, if there was one.
    """
    baseline = older[0] if older else None
    judgements = list(verdicts or ())
    remarks: list[str] = []
    uncompared = ""
    if baseline and verdicts is None:
        judgements, remarks = judge_runs(baseline, run)
        if remarks and not judgements:
            uncompared, *remarks = remarks
    remarks += [other.warning for other in older[1:] if other.doubt]
    verdicts_by_cell = by_cell(judgements)
    cells = []
    comparisons: list[Comparison] = []
    for cell, records in run.by_cell.items():
        old = baseline.seed_records(cell, {record.seeds.seed for record in records}) if baseline else []
        cells.append(CellView(records=records, old=old, judged=verdicts_by_cell.get(cell, [])))
    try:
        is_scored = any(record.finished and record.scores for record in run.records)
        comparisons = compare_methods(run.records, load_noise(own=run.noise)) if is_scored else []
    except InputError as error:
        remarks = [*remarks, f"methods are not compared: {error}"]
    name, before = (baseline.name, baseline.records) if baseline else ("", ())
    files = f"{baseline.path if baseline else 'OLD.json'}", f"{run.path or 'NEW.json'}"
    verdict = answer or run_verdict(
        run.records,
        judgements,
        baseline=name,
        before=before,
        uncompared=uncompared,
        command=run.command,
        given=f"tunegrid page {files[1]} {files[0]} -o page.html",
        files=files,
    )
    return Page(
        run=run,
        older=older,
        answer=verdict,
        cells=cells,
        judged=judgements,
        remarks=[*remarks, *run.remarks, *(remark for one in older for remark in one.remarks)],
        comparisons=comparisons,
    )
