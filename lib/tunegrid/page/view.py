"""Builds the `Page` that templates render, with its grids and tables, from runs and judgements."""

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
from tunegrid.gate.judgements import (
    GRAVEST_FIRST,
    Judgement,
    Verdict,
    by_cell,
    make_judgement,
    worst,
)
from tunegrid.gate.noise import load_noise
from tunegrid.gate.quality import check_rows
from tunegrid.grid.cells import study_place
from tunegrid.grid.tasks import score_title
from tunegrid.page.rows import rows_section
from tunegrid.record import Record, Status
from tunegrid.report import compare
from tunegrid.report.compare import Comparison, compare_methods
from tunegrid.report.environments import library_versions
from tunegrid.report.tables import Section
from tunegrid.report.verdict import RunVerdict, run_verdict
from tunegrid.runs.files import OwnNoise, SavedRun, read_saved
from tunegrid.runs.frame import figure_frame
from tunegrid.runs.status import (
    cell_status,
    first_trainings,
    known_faults,
    locate,
    too_short,
    unconfirmed_misses,
)
from tunegrid.terminal import defuse, strip_places
from tunegrid.words import count, some

if TYPE_CHECKING:
    from tunegrid.page.charts import Chart

UNCHANGED = (
    Verdict.SAME,
    Verdict.EQUAL,
    Verdict.ROUNDING,
    Verdict.CANNOT_TELL,
    Verdict.NOT_COMPARABLE,
    None,
)
ROWS_A_CELL = 30  # test rows shown for a cell, at most
ROWS_A_PAGE = 900
MOST_COLUMNS = 6  # columns of methods; if there are more methods, each gets a row
MOST_OPEN = 3  # failed cells that start unfolded; if there are more, none does
MOST_CHARTS = 12  # charts of losses


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """The records of one profile in a saved run.

    Attributes:
        when: the ISO date and time of saving, in UTC.
        commit: the commit of the suite that made the run.
        remarks: sentences on what the page leaves out.
        doubt: why the run cannot be a baseline; empty if its seals hold.
    """

    name: str
    records: Sequence[Record]
    path: Path | None = None
    when: str = ""
    commit: str = ""
    command: str = ""
    noise: Sequence[OwnNoise] = ()
    remarks: Sequence[str] = ()
    doubt: str = ""

    @property
    def warning(self) -> str:
        """A sentence that says why the run cannot be a baseline; empty if its seals hold."""
        return f"{self.name} {self.doubt}" if self.doubt else ""

    @cached_property
    def by_cell(self) -> Mapping[str, list[Record]]:
        """Each cell's records by seed, except second training runs; cells are in study order."""
        cells: dict[str, list[Record]] = defaultdict(list)
        records = first_trainings(self.records)
        records.sort(key=lambda record: (study_place(record.cell), record.seeds.seed or 0))
        for record in records:
            cells[record.cell].append(record)
        return cells

    @property
    def profile(self) -> str:
        """The profile that all records share; empty if there are no records."""
        return self.records[0].profile if self.records else ""

    @cached_property
    def time(self) -> datetime | None:
        """The time when the run was saved, in UTC unless a time zone is given.

        None if the date is invalid.
        """
        try:
            time = datetime.fromisoformat(self.when)
        except ValueError:
            return None
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def seed_records(self, cell: str, seeds: Iterable[int | None]) -> list[Record]:
        """A cell's records with these seeds, or all of its records if none has one of them."""
        records = self.by_cell.get(cell, [])
        return [record for record in records if record.seeds.seed in seeds] or records


def mean(figures: Iterable[float | None]) -> float | None:
    """The mean of the measured figures; None if there are none."""
    numbers = [figure for figure in figures if figure is not None]
    return fmean(numbers) if numbers else None


def read_page_run(path: Path, profile: str | None = None) -> PageRun:
    """Reads a profile of a saved run; raises InputError as `read_saved` and `page_run` do."""
    return page_run(read_saved(path), profile)


def page_run(saved: SavedRun, profile: str | None = None) -> PageRun:
    """Selects one profile of a saved run, by default the profile with the most records.

    Raises InputError if the run has no records of `profile` or holds only published results.
    """
    profiles = [record.profile for record in saved.records]
    names = sorted(set(profiles), key=lambda name: (-profiles.count(name), name))
    if profile is not None and profile not in names:
        held = " and ".join(names) or "nothing"
        raise InputError(f"{saved.path.name} holds no cells of {profile}, but of {held}")
    if profiles and all(record.status == "reported" for record in saved.records):
        advice = "holds only published results, which `tunegrid compare` shows with a run"
        raise InputError(f"{saved.path.name} {advice}")
    profile_name = profile or next(iter(names), "")
    counts = []
    for name in names:
        if name != profile_name:
            counts.append(f"{profiles.count(name)} of {name}")
    remarks = []
    if counts:
        source = f"{saved.path.name} also holds records of another profile"
        remarks.append(f"{source} ({', '.join(counts)}): `--profile` shows those")
    return PageRun(
        name=defuse(saved.path.name),  # the name may not be UTF-8
        records=[record for record in saved.records if record.profile == profile_name],
        path=saved.path,
        when=saved.when,
        commit=saved.commit,
        command=saved.command,
        noise=saved.noise,
        remarks=remarks,
        doubt=saved.doubt,
    )


def judge_runs(old: PageRun, new: PageRun) -> tuple[list[Judgement], list[str]]:
    """The gate's judgements on the new run, and sentences on what cannot be compared."""
    try:
        before = Run.make(old.records, old.path, old.noise, old.doubt)
        after = Run.make(new.records, new.path, new.noise)
        common = before.records.keys() & after.records.keys()
        unlike = []
        for cell in sorted(common):
            if has_other_rows(old.by_cell[cell], new.by_cell[cell][0]):
                unlike.append(cell)
        remarks = []
        if unlike:
            rows = f"{old.name} scored other test rows in {some(unlike)}"
            remarks.append(f"{rows}: its figures are shown, but not paired or judged")
        runs = f"{old.name} and {new.name}"
        if old.records == new.records:
            remarks.append(f"{runs} hold the same records: there is nothing to compare")
        if not common:
            return [], [f"{runs} have no finished cell in common, so nothing is compared"]
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
    """Checks whether any older record was scored on different test rows than the new record."""
    try:
        for record in old:
            check_rows(record, new)
    except InputError:
        return True
    return False


@dataclass(frozen=True, kw_only=True)
class CellView:
    """A cell with its records, the older run's records of the same seeds, and its judgements."""

    records: Sequence[Record]
    old: Sequence[Record]
    judged: Sequence[Judgement]

    @property
    def first(self) -> Record:
        """The record of the lowest seed."""
        return self.records[0]

    @property
    def id(self) -> str:
        """The cell's id."""
        return self.first.cell

    @property
    def status(self) -> Status:
        """The status of all seeds together: *passed* only if every seed passed."""
        return cell_status(self.records)

    @property
    def status_word(self) -> str:
        """The status, with "too short" in place of *passed* if a run was too short to judge."""
        is_short = any(record.is_short for record in self.records)
        return "too short" if is_short and self.status == "passed" else self.status

    @property
    def pair(self) -> tuple[str, str]:
        """The cell's backbone and method."""
        return self.first.backbone, self.first.method

    @property
    def main_score(self) -> str:
        """The name of the cell's main score."""
        return self.first.main_score

    def get_score(self, name: str, old: bool = False) -> float | None:
        """The mean of a score over the seeds of this run, or of the older run if `old`."""
        records = self.old if old else self.records
        return mean(record.scores.get(name) for record in records)

    @property
    def score(self) -> float | None:
        """The mean of the main score over seeds."""
        return self.get_score(self.main_score)

    @property
    def headroom(self) -> float | None:
        """The points by which the main score exceeds its bound; None if either is missing."""
        bound = self.first.bounds.get(self.main_score)
        return None if self.score is None or bound is None else self.score - bound

    @property
    def shade(self) -> str:
        """The CSS class of the score: b4 (far below its bound) to a4 (far above), or "none"."""
        if self.headroom is None:
            return "none"
        step = 1 + sum(abs(self.headroom) >= edge for edge in (1, 3, 8))
        return f"a{step}" if self.headroom >= 0 else f"b{step}"

    @property
    def change(self) -> float | None:
        """The points that the main score gained over the older run; None if not judged."""
        return self.main_judgement.effect if self.main_judgement else None

    @property
    def main_judgement(self) -> Judgement | None:
        """The gate's judgement on the main score; None if there is none."""
        return next((j for j in self.judged if j.quantity == self.main_score), None)

    @property
    def place(self) -> tuple[str, str]:
        """The stage and module at which numerics changed first; both empty if none changed."""
        for judgement in self.judged:
            if judgement.stage:
                return judgement.stage, judgement.modules[0][0] if judgement.modules else ""
        return "", ""

    @property
    def ranked_judgements(self) -> list[Judgement]:
        """All judgements, most severe first."""
        return sorted(self.judged, key=lambda judgement: GRAVEST_FIRST.index(judgement.verdict))

    @property
    def verdict(self) -> Verdict | None:
        """The most severe verdict on numerics, quality and memory; None if there is none."""
        deciding = [judgement for judgement in self.judged if judgement.decides]
        return worst([j for j in deciding if j.kind not in ("instruments", "speed")])

    @property
    def failed(self) -> bool:
        """Checks whether the cell failed; *unconfirmed* and *begun* do not count as failures."""
        return self.status not in ("passed", "unconfirmed", "known", "begun")

    @property
    def changed(self) -> bool:
        """Checks whether the gate found a change or the status differs from the older run's."""
        has_new_status = bool(self.old) and self.status not in ("begun", cell_status(self.old))
        return has_new_status or self.verdict not in UNCHANGED

    @property
    def complaints(self) -> list[str]:
        """A sentence for each fault, also if it does not count, without the cell's name."""
        texts = []
        for record in self.records:
            suffix = locate(record, "")
            seed = f" (seed {record.seeds.seed})" if len(self.records) > 1 else ""
            for text in (*record.missed, *too_short(record), *known_faults(record)):
                texts.append(strip_places(text.replace(suffix, "")) + seed)
        return texts

    def losses(self, *, old: bool = False) -> Sequence[float | None]:
        """The first seed's loss at each update, from the older run if `old`."""
        records = self.old if old else self.records
        record = records[0] if records else None
        return record.training.losses if record and record.training else ()


@dataclass(frozen=True, kw_only=True)
class TaskGrid:
    """The cells of one task, with backbones as rows and methods as columns, or vice versa."""

    task: str
    scores: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[CellView | None]]]


def task_grid(task: str, cells: Sequence[CellView]) -> TaskGrid:
    """Builds the grid of a task; if there are many methods, they become the rows."""
    views = {cell.pair: cell for cell in cells}
    backbones = list(dict.fromkeys(backbone for backbone, _ in views))
    methods = list(dict.fromkeys(method for _, method in views))
    scores = list(dict.fromkeys(cell.main_score for cell in cells))
    rows: list[tuple[str, Sequence[CellView | None]]] = []
    if len(methods) > max(len(backbones), MOST_COLUMNS):
        for method in methods:
            rows.append((method, [views.get((backbone, method)) for backbone in backbones]))
        return TaskGrid(task=task, scores=scores, columns=backbones, rows=rows)
    for backbone in backbones:
        rows.append((backbone, [views.get((backbone, method)) for method in methods]))
    return TaskGrid(task=task, scores=scores, columns=methods, rows=rows)


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that a page shows.

    Attributes:
        older: the runs to compare with; the first is the baseline.
        answer: the verdict on the run.
        comparisons: the comparisons of `tunegrid compare`; empty if methods cannot be compared.
        remarks: sentences on what is missing or left out.
    """

    run: PageRun
    older: Sequence[PageRun]
    answer: RunVerdict
    cells: Sequence[CellView]
    judged: Sequence[Judgement]
    remarks: Sequence[str]
    comparisons: Sequence[Comparison]

    @cached_property
    def grids(self) -> list[TaskGrid]:
        """The grid of each task; empty for the footprint profile, which has no scores."""
        if self.run.profile == "footprint":
            return []
        by_task: dict[str, list[CellView]] = defaultdict(list)
        for cell in self.cells:
            by_task[cell.first.task].append(cell)
        return [task_grid(task, cells) for task, cells in by_task.items()]

    @cached_property
    def environment(self) -> dict[str, str]:
        """The run's environment, with the baseline's commit and versions if they differ."""
        baseline = self.older[0] if self.older else None
        devices: dict[str, None] = {}
        for record in self.run.records:
            device = record.device
            if device:
                threads = f", {count(device.threads, 'thread')}" if device.threads else ""
                text = f"{device.name}{threads}, {device.instructions or ''}"
                devices[text.rstrip(", ")] = None
        before = library_versions(baseline.records if baseline else ())
        versions = []
        for name, version in library_versions(self.run.records).items():
            old = before.get(name, version)
            versions.append(f"{name} {version}" + (f" ({old} before)" if old != version else ""))
        commit = self.run.commit
        if baseline and baseline.commit not in ("", commit):
            commit += f" ({baseline.commit} in {baseline.name})"
        facts = {
            "command": self.run.command,
            "device": "; ".join(devices),
            "commit": commit,
            "versions": ", ".join(versions),
        }
        return {name: text for name, text in facts.items() if text}

    def opens(self, cell: CellView) -> bool:
        """Checks whether a cell starts unfolded: the only cell, or one of a few failed ones."""
        if len(self.cells) == 1:
            return True
        return cell.failed and sum(view.failed for view in self.cells) <= MOST_OPEN

    @property
    def changes(self) -> list[Section]:
        """The cells that failed or changed, and a sentence on missing cells.

        Failed cells come first. Within each group, cells without scores come first, then the
        largest changes.
        """
        cells = [cell for cell in self.cells if cell.failed or cell.changed]
        cells.sort(key=lambda cell: -abs(cell.change or 0))
        cells.sort(key=lambda cell: (not cell.failed, cell.score is not None))
        rows = []
        for cell in cells:
            main = cell.main_judgement
            stage, module = cell.place
            row = {
                "cell": cell.id,
                "status": cell.status,
                "verdict": cell.verdict,
                "points": cell.score,
                "effect": cell.change,
                "low": main and main.low,
                "high": main and main.high,
                "stage": stage or None,
                "module": module or None,
                "says": "; ".join(cell.complaints) or None,
            }
            changes = [j for j in cell.ranked_judgements if j.decides]
            changes = [j for j in changes if j.verdict not in UNCHANGED]
            if changes and not cell.complaints:
                row["says"] = strip_places(changes[0].detail)
            rows.append(row)
        sentences = []
        missing = [j.cell for j in self.judged if j.verdict is Verdict.MISSING]
        missing = [cell for cell in missing if cell not in self.run.by_cell]
        if missing:
            finished = f"finished in {self.older[0].name}, but not in this run."
            sentences.append(f"Missing: {', '.join(missing)} {finished}")
        if not rows and not sentences:
            return []
        forms = {"points": ".1f", "effect": "+.1f", "low": "+.1f", "high": "+.1f"}
        return [Section(frame=drop_empty(rows), formats=forms, sentences=sentences)]

    @property
    def methods(self) -> list[Section]:
        """The tables of `tunegrid compare`, if methods can be compared."""
        return compare.sections(self.comparisons, self.run.records) if self.comparisons else []

    @cached_property
    def figures(self) -> list[Section]:
        """A table of figures for each instrument."""
        if not any(record.instruments for record in self.run.records):
            return []
        from tunegrid.report.instruments import instrument_sections

        return list(instrument_sections(self.run.records, self.run.path))

    @property
    def costs(self) -> list[Section]:
        """Tables of the cells' bytes, memory peaks, rates, losses and energy."""
        records: list[Record] = []
        for cell in self.cells:
            records += cell.records
        is_shared = any(r.own_peak_gib is None and r.peak_gib is not None for r in records)
        alone = [r for r in records if not (r.device and r.device.contended)]
        joules = figure_frame(records, JOULES).groupby(level=0, sort=False)
        energy = joules.agg(lambda figures: figures.mean(skipna=False))
        metered_cells = energy.dropna(how="all").index
        devices = [r.device for r in records if r.device and r.cell in metered_cells]
        counters = "; ".join(dict.fromkeys(device.energy for device in devices if device.energy))
        shared = ""
        if is_shared:
            shared = "Peaks include what earlier cells of the same process left."
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
        """Sizes of tensors in MiB and peaks of phases in GiB, for each cell's first seed."""
        records = [cell.first for cell in self.cells]
        columns = dict(TENSOR_SIZES)
        for record in records:
            phases = record.memory.phases if record.memory else {}
            for phase in phases:
                columns[f"{phase} GiB"] = f"memory.phases.{phase}.peak_gib"
        return figure_frame(records, columns)

    def _speed(self, records: Sequence[Record]) -> pd.DataFrame:
        """Each cell's first-seed losses, mean rates over `records`, and the older run's rows/s."""
        frame = figure_frame([cell.first for cell in self.cells], COURSE)
        frame = frame.join(figure_frame(records, RATES).groupby(level=0).mean())
        old_records: list[Record] = []
        for cell in self.cells:
            old_records += cell.old
        before = figure_frame(old_records, {FORMER_RATE: RATES["rows/s"]})
        frame = frame.join(before.groupby(level=0).mean())
        frame[FORMER_RATE] = frame[FORMER_RATE].where(frame["rows/s"].notna())
        return frame

    @cached_property
    def runs(self) -> list[PageRun]:
        """The older runs, oldest first, then this run."""
        return [*sorted(self.older, key=lambda run: run.when), self.run]

    def scores(self, cell: CellView) -> list[float | None]:
        """A cell's mean main score in each run, over the seeds that it shares with this run.

        If they share none, all seeds of the older run count.
        """
        seeds = {record.seeds.seed for record in cell.records}
        scores = []
        for run in self.runs:
            records = run.seed_records(cell.id, seeds)
            scores.append(mean(record.scores.get(cell.main_score) for record in records))
        return scores

    @property
    def history(self) -> list[Section]:
        """The main scores of this run's cells in all runs; empty without older runs or scores."""
        if not self.older or not self.grids:
            return []
        names = [f"{run.name} {run.when[:10]} {run.commit[:7]}".strip() for run in self.runs]
        titles = []
        for index, name in enumerate(names, 1):
            titles.append(f"{name} ({index})" if names.count(name) > 1 else name)
        rows = [[cell.id, *self.scores(cell)] for cell in self.cells]
        frame = pd.DataFrame(rows, columns=["cell", *titles])
        older_records: list[Record] = []
        for run in self.older:
            older_records += run.records
        sentences = list(unconfirmed_misses(self.run.records, older_records))
        return [Section(frame=frame, formats=dict.fromkeys(titles, ".1f"), sentences=sentences)]

    @cached_property
    def charts(self) -> dict[str, "list[Chart]"]:
        """The page's charts by section."""
        from tunegrid.page import charts

        groups: dict[str, list[CellView]] = defaultdict(list)
        for cell in self.cells:
            if len(cell.losses()) > 1:
                groups[f"{cell.first.backbone} {cell.first.task}"].append(cell)
        loss_charts = []
        for name, cells in list(groups.items())[:MOST_CHARTS]:
            new = {cell.first.method: cell.losses() for cell in cells}
            old = {cell.first.method: cell.losses(old=True) for cell in cells}
            loss_charts.append(charts.loss_chart(name, new, old))
        times = [run.time for run in self.runs if run.time]
        dates = times if len(times) == len(self.runs) and times[0] < times[-1] else None
        histories = []
        for grid in self.grids:
            scores = {}
            for _, row in grid.rows:
                for view in row:
                    if view and self.older:
                        scores[view.pair] = self.scores(view)
            if scores:
                histories.append(charts.history(grid.task, grid.scores[0], scores, dates))
        return {
            "methods": [*charts.quality(self.comparisons), *charts.seeds(self.comparisons)],
            "losses": loss_charts,
            "history": histories,
        }

    def cell_tables(self, cell: CellView) -> list[Section]:
        """The tables of a cell's own section."""
        record = cell.first
        titles = {name: score_title(name, record.labels) for name in record.scores}
        score_rows = []
        for name, title in titles.items():
            row = {
                "score": title,
                "points": cell.get_score(name),
                "bound": record.bounds.get(name),
                "before": cell.get_score(name, old=True),
            }
            score_rows.append(row)
        gate_rows = []
        for judgement in cell.ranked_judgements:
            gate_row = {
                "figure": titles.get(judgement.quantity, judgement.quantity),
                "verdict": judgement.verdict,
                "before": judgement.before,
                "after": judgement.after,
                "change": effect_text(judgement),
                "p": judgement.p,
                "why": strip_places(judgement.detail),
            }
            gate_rows.append(gate_row)
        audit_rows = []
        for finding in sorted(record.audits, key=lambda finding: finding.passed):
            answer = "passed" if finding.passed else "failed"
            detail = strip_places(finding.detail)
            audit_rows.append({"audit": finding.name, "answer": answer, "finding": detail})
        failed = 0
        for seed_record in cell.records:
            failed += sum(not finding.passed for finding in seed_record.audits)
        audit_heading = f"Audits: {failed} failed"
        if not failed:
            audit_heading = f"Audits: all {len(audit_rows)} passed"
        forms = {"points": ".2f", "bound": ".1f", "before": ".2f", "after": ".2f", "p": ".3f"}
        scores = Section(frame=drop_empty(score_rows), formats=forms)
        heading = f"Gate: {cell.verdict}" if cell.verdict else "Gate"
        gate = Section(heading=heading, frame=drop_empty(gate_rows), formats=forms, folded=True)
        audits = Section(heading=audit_heading, frame=drop_empty(audit_rows), folded=True)
        settings = settings_frame(record, " and " in self.environment.get("versions", ""))
        recipe = Section(heading="Recipe and data", frame=settings, folded=True)
        sections = [scores, gate, *self._rows(cell), audits, recipe]
        return [section for section in sections if section.cells or section.sentences]

    def _rows(self, cell: CellView) -> list[Section]:
        """The table of the first seed's test rows; empty if nothing was scored."""
        if not cell.first.evaluation:
            return []
        limit = max(4, min(ROWS_A_CELL, ROWS_A_PAGE // len(self.cells)))
        baseline = self.older[0].path if self.older else None
        old = cell.old[0] if cell.old else None
        return [rows_section(cell.first, self.run.path, old, baseline, limit)]


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
COST_FORMATS = {
    "updates": ".0f",
    "tokens/s": ".0f",
    "first loss": ".4f",
    "last loss": ".4f",
    "step s": ".4f",
}


def cost_section(heading: str, frame: pd.DataFrame, note: str) -> Section:
    """Builds a table with a row for each cell, without empty columns."""
    frame = frame.dropna(axis=1, how="all")
    formats = {name: COST_FORMATS.get(name, ".2f") for name in frame}
    frame = frame.rename_axis("cell").reset_index()
    return Section(heading=heading, frame=frame, formats=formats, sentences=[note] if note else [])


def drop_empty(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Builds a data frame from the rows, dropping empty columns."""
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def effect_text(judgement: Judgement) -> str | None:
    """The change in a figure, with its unit and any 95 % interval; None if it is unknown."""
    if judgement.effect is None:
        return None
    forms = {"quality": (1, "+.2f", " points"), "instruments": (1, "+.3f", "")}
    scale, form, unit = forms.get(judgement.kind, (100, "+.1f", " %"))
    change = f"{scale * judgement.effect:{form}}{unit}"
    if judgement.low is None or judgement.high is None:
        return change
    return f"{change} ({scale * judgement.low:{form}} to {scale * judgement.high:{form}})"


def settings_frame(record: Record, with_versions: bool) -> pd.DataFrame:
    """A table of a cell's settings, data, model and device; versions are added on request."""
    details: dict[str, Any] = {}
    for name in ("recipe", "seeds", "limits", "data", "model", "device"):
        settings = getattr(record, name)
        if settings:
            details |= vars(settings)
    if record.training:
        details["fallbacks"] = record.training.fallbacks
        details["trained in"] = record.training.precision
    if record.evaluation:
        details["metrics from"] = record.evaluation.metric_sources
    if with_versions:
        details["versions"] = record.versions
    rows = []
    for name, value in details.items():
        if value not in (None, "", [], {}):
            rows.append((name.replace("_", " "), strip_places(str(value))))
    return pd.DataFrame(rows, columns=["setting", "value"])


def make_page(
    run: PageRun,
    older: Sequence[PageRun] = (),
    *,
    verdicts: Sequence[Judgement] | None = None,
    answer: RunVerdict | None = None,
) -> Page:
    """Builds the page of a run.

    Args:
        run: the run to show.
        older: the runs to compare with; the first is the baseline.
        verdicts: the gate's judgements, if a session already made them.
        answer: the session's verdict, if there was a session.
    """
    baseline = older[0] if older else None
    judgements = list(verdicts or ())
    remarks: list[str] = []
    uncompared = ""
    if baseline and verdicts is None:
        judgements, remarks = judge_runs(baseline, run)
        if remarks and not judgements:
            uncompared, *remarks = remarks
    remarks += [old_run.warning for old_run in older[1:] if old_run.doubt]
    verdicts_by_cell = by_cell(judgements)
    cells = []
    comparisons: list[Comparison] = []
    for cell, records in run.by_cell.items():
        old: list[Record] = []
        if baseline:
            old = baseline.seed_records(cell, {record.seeds.seed for record in records})
        cells.append(CellView(records=records, old=old, judged=verdicts_by_cell.get(cell, [])))
    try:
        if any(record.finished and record.scores for record in run.records):
            comparisons = compare_methods(run.records, load_noise(own=run.noise))
    except InputError as error:
        remarks.append(f"methods are not compared: {error}")
    for shown_run in (run, *older):
        remarks += shown_run.remarks
    old_file = str(baseline.path) if baseline else "OLD.json"
    new_file = str(run.path or "NEW.json")
    verdict = answer or run_verdict(
        run.records,
        judgements,
        baseline=baseline.name if baseline else "",
        before=baseline.records if baseline else (),
        uncompared=uncompared,
        command=run.command,
        given=f"tunegrid page {new_file} {old_file} -o page.html",
        files=(old_file, new_file),
    )
    return Page(
        run=run,
        older=older,
        answer=verdict,
        cells=cells,
        judged=judgements,
        remarks=remarks,
        comparisons=comparisons,
    )
