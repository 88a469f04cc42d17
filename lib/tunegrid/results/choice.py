"""Says which method to choose, and what cannot be told, as one page of Markdown from saved runs.

Each sentence has its 95 % interval and the command behind it. Scores are those of `tunegrid.results.compare`; robustness,
calibration and forgetting those of their own modules; the study's claims are in `tunegrid.results.claims`. A method is said to
be below or above another only where they are told apart over seeds. What was not measured is named with the command that
measures it. Needs no torch.
"""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.methods import SFT
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.record import Record
from tunegrid.record.wrong import failures
from tunegrid.results.alike import check_alike
from tunegrid.results.calibration import by_chance, calibration_lines
from tunegrid.results.claims import CLAIMS, STUDY, Answer, Judged, Side, findings, judged
from tunegrid.results.compare import (
    MIB,
    OF_QUICK,
    ON_A_CPU,
    PEAK,
    TENSORS,
    TRAINED,
    Comparison,
    Entry,
    RecordKey,
    SourcedRecord,
    compared,
    counted,
    key_of,
    title,
)
from tunegrid.results.contrasts import ONE_SEED, Contrast, Figure, clauses, contrasts, shown
from tunegrid.results.examples import read_shifted
from tunegrid.results.files import read_records
from tunegrid.results.forgetting import change_of, forgetting_lines
from tunegrid.results.noise import Noise
from tunegrid.results.shifted import ContrastLine, ReadPoints, RowPoints, ShiftLine, contrast_lines, row_drops, shift_lines
from tunegrid.results.statistics import share_interval, stretched
from tunegrid.results.table import Column, markdown, markdown_table, number, signed
from tunegrid.results.thresholds import load_margins

RUNS = "RUNS"  # stands for the names of the runs' files in commands
OVER_ROWS = "A method's own interval is over rows or texts, not over seeds, and stands by itself."
PARTS = ("shifted", "forgetting", "calibration")  # of a record: what instruments and evaluation ask beside the score
NAMED = 6  # cells that a sentence names; of more it says how many
JOULES = {"gpu_energy_joules": "GPU", "cpu_energy_joules": "CPU"}


# What was measured


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What runs hold of the cells that a comparison takes.

    Attributes:
        parts: by name and cell, the records that have this part of a record, one per seed, each with its run.
    """

    comparisons: Sequence[Comparison]
    paths: Sequence[Path]
    parts: Mapping[str, Mapping[str, Sequence[SourcedRecord]]]

    @property
    def entries(self) -> list[Entry]:
        """Of all sound cells."""
        return [entry for comparison in self.comparisons for entry in comparison.sound]

    @property
    def profile(self) -> str:
        """That all cells are of."""
        return self.comparisons[0].entries[0].first.profile

    def of(self, part: str, comparison: Comparison) -> list[Sequence[SourcedRecord]]:
        """The records of each sound method that have this part, in the comparison's order."""
        return [own for entry in comparison.sound if (own := self.parts[part].get(entry.first.cell))]

    def lacking(self, part: str) -> list[str]:
        """The sound cells without this part."""
        return [entry.first.cell for entry in self.entries if entry.first.cell not in self.parts[part]]

    def more(self, cells: Sequence[str], part: str = "", seeds: str = "") -> str:
        """The command that trains these cells, with an instrument where a part is named."""
        marker = part if part and self.profile == QUICK_PROFILE.id else f'"{part} and {self.profile}"' if part else self.profile
        known = {entry.first.cell for entry in self.entries}
        whole = known >= set(STUDY_IDS) and 2 * len(cells) > len(known)
        chosen = "" if whole else f" --cells {','.join(cells)}"
        return f"pytest -m {marker}{chosen} --seeds {seeds or self._seeds} --benchmark-json=more.json"

    @property
    def next_seeds(self) -> str:
        """Five that the runs do not have."""
        last = self._known_seeds[-1]
        return f"{last + 1}-{last + 5}"

    @cached_property
    def _known_seeds(self) -> list[int]:
        return sorted({record.seeds.seed or 0 for entry in self.entries for record in entry.records})

    @property
    def _seeds(self) -> str:
        """As --seeds takes them: those of the runs, where these are several."""
        seeds = self._known_seeds
        if len(seeds) < 2:
            return "0-4"
        return f"{seeds[0]}-{seeds[-1]}" if seeds[-1] - seeds[0] == len(seeds) - 1 else ",".join(map(str, seeds))


def measured(runs: Mapping[Path, Sequence[Record]], calibrated: Noise, task: str | None = None) -> Measured:
    """What runs hold; raises InputError where they cannot be compared, or have no cell of the task."""
    known = sorted({record.task for records in runs.values() for record in records})
    if task not in (None, *known):
        raise InputError(f"no cell of task {task!r} in these runs; they hold {', '.join(known)}")
    own = {path: [record for record in records if task in (None, record.task)] for path, records in runs.items()}
    finished = [(record, path) for path, records in own.items() for record in records if record.finished]
    check_alike([record for record, _ in finished])
    return Measured(
        comparisons=compared(own, calibrated),
        paths=list(runs),
        parts={part: _with_part(part, finished) for part in PARTS},
    )


def _with_part(part: str, finished: Sequence[SourcedRecord]) -> dict[str, list[SourcedRecord]]:
    """By cell, the first record of each seed that has this part and passed its audits."""
    first: dict[RecordKey, SourcedRecord] = {}
    for record, path in finished:
        if getattr(record, part) and not failures(record.audits):
            first.setdefault(key_of(record), (record, path))
    cells: dict[str, list[SourcedRecord]] = {}
    for record, path in first.values():
        cells.setdefault(record.cell, []).append((record, path))
    return cells


# Sentences


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One thing that the page says.

    Attributes:
        subject: what it is about; empty for the whole run.
        command: behind it: it prints the figures, or would measure them.
    """

    text: str
    command: str
    subject: str = ""

    @property
    def line(self) -> str:
        """As Markdown."""
        head = f"**{markdown(self.subject)}**: " if self.subject else ""
        return f"* {head}{markdown(self.text)}. `{self.command}`"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is said of one backbone and task.

    Attributes:
        words: of each method by itself.
        pairs: of figures that are set beside each other.
        then: what else is to be said.
    """

    subject: str
    words: Sequence[str]
    pairs: Sequence[tuple[Figure, Figure]] = ()
    then: Sequence[str] = field(default_factory=tuple)


def told(places: Sequence[Place], unit: str, digits: int, command: str) -> list[Sentence]:
    """A sentence for each place that has any words; the pairs of one place are tested together, as its scores are."""
    return [
        Sentence(
            subject=place.subject,
            text="; ".join(filter(None, [", ".join(place.words), *clauses(contrasts(place.pairs), unit, digits), *place.then])),
            command=command,
        )
        for place in places
        if place.words or place.then
    ]


def place_of(comparison: Comparison, seeds: Sequence[Sequence[object]] = ()) -> str:
    """Its name, and how many seeds the methods have of which something is said."""
    name = f"{comparison.task} on {comparison.backbone}"
    return f"{name}, {counted([len(own) for own in seeds])}" if seeds else name


def beside_sft(figures: Sequence[Figure]) -> list[tuple[Figure, Figure]]:
    """Each figure beside that of SFT; beside the first one where there is no SFT."""
    base = next((figure for figure in figures if figure.method == SFT.id), figures[0] if figures else None)
    return [(figure, base) for figure in figures if base and figure is not base]


def ranged(values: Sequence[float], digits: int) -> str:
    """The least and the most over seeds."""
    return "one seed" if len(values) == 1 else f"{min(values):.{digits}f} to {max(values):.{digits}f}"


# Which method


def which(runs: Measured) -> list[Sentence]:
    """The best methods of each backbone and task, and how far behind the others are."""
    return [
        Sentence(subject=title(one), text=best(one, one.sound), command=f"tunegrid compare {RUNS}") for one in runs.comparisons
    ]


def best(comparison: Comparison, among: Sequence[Entry]) -> str:
    """The best of these methods, as part of a sentence."""
    if not among:
        return "which method is best cannot be told: none passed its audits"
    first, *others = among
    if not others:
        return f"which method is best cannot be told: {scored(comparison, first)} is alone"
    beside = [score_contrast(comparison, other, first) for other in others]
    if any(contrast.gap is None for contrast in beside):
        lead = f"which method is best cannot be told; scores are {', '.join(scored(comparison, one) for one in among)}"
    elif all(contrast.told for contrast in beside):
        lead = f"{scored(comparison, first)} is best"
    else:
        lead = f"{scored(comparison, first)} has the highest mean"
    return "; ".join([lead, *clauses(beside, "points", 1)])


def scored(comparison: Comparison, entry: Entry) -> str:
    """A method with its score and interval."""
    own = comparison.chance.interval(entry)
    interval = f"{shown(own.low, own.high, 1)}; {own.by}" if own else "no interval"
    return f"{entry.method} {number(entry.score, 1)} ({interval})"


def score_contrast(comparison: Comparison, one: Entry, other: Entry) -> Contrast:
    """Two scores beside each other, as the comparison's groups have them."""
    chance = comparison.chance
    reason = "" if chance.knows_seeds(one) and chance.knows_seeds(other) else ONE_SEED
    reason = reason or chance.untested(one, other)
    gap = None if reason else chance.gap(one, other)
    told = comparison.told(one, other)
    return Contrast(one=one.method, other=other.method, what="score", gap=gap, told=told, reason=reason)


# At which memory


def memory(runs: Measured, gib: float | None) -> list[Sentence]:
    """The mean peaks of each backbone and task; with a limit, the best method that no seed takes beyond it."""
    places = []
    for one in runs.comparisons:
        figures = [Figure(method=entry.method, what="peak", values=own) for entry in one.sound if (own := peaks(entry))]
        words = [f"{own.method} {fmean(own.values):.2f} GiB ({ranged(own.values, 2)})" for own in figures]
        words = tensors(one) if one.peaks_are_shared else words
        then = [] if gib is None else [within(one, gib)]
        places.append(
            Place(subject=place_of(one, [own.values for own in figures]), words=words, pairs=beside_sft(figures), then=then)
        )
    return told(places, "GiB", 2, f"tunegrid compare {RUNS}")


def peaks(entry: Entry) -> list[float]:
    """The highest peak of each seed that is its own."""
    return [peak for record in entry.records if (peak := record.own_peak_gib) is not None]


def tensors(comparison: Comparison) -> list[str]:
    """What stands in the place of peaks that are nobody's own."""
    known = [f"{entry.method} {size / MIB:.1f} MiB" for entry in comparison.sound if (size := entry.costs[TENSORS]) is not None]
    counted = any(record.memory and record.memory.cells_before for entry in comparison.entries for record in entry.records)
    reason = "processes ran several" if counted else "nobody counted what processes ran before"
    why = f"no peak is {'' if counted else 'known to be '}a cell's own, since {reason} (--isolate=yes measures it)"
    return [f"{why}; weights, gradients and optimizer state are {', '.join(known)}" if known else why]


def within(comparison: Comparison, gib: float) -> str:
    """The best of the methods whose peak stays within so many GiB in each seed."""
    fitting = [entry for entry in comparison.sound if (peak := entry.costs[PEAK]) is not None and peak <= gib]
    unknown = [entry.method for entry in comparison.sound if entry.costs[PEAK] is None]
    if unknown:
        known = ", ".join(entry.method for entry in fitting) or "no other method"
        return f"the peak of {' and '.join(unknown)} is not known; {known} stays within {gib:g} GiB"
    if len(fitting) < 2:
        return f"{scored(comparison, fitting[0]) + ' alone' if fitting else 'no method'} stays within {gib:g} GiB"
    return f"within {gib:g} GiB {best(comparison, fitting)}"


# How robust


def robust(runs: Measured) -> list[Sentence]:
    """What costs each method most, and where it loses more or less than SFT."""
    return told([_robust(runs, one) for one in runs.comparisons], "points", 1, f"tunegrid export {RUNS} -o runs.csv")


def _robust(runs: Measured, comparison: Comparison) -> Place:
    own = runs.of("shifted", comparison)
    paths = {key_of(record): path for seeds in own for record, path in seeds}
    records = [record for seeds in own for record, _ in seeds]

    def read(record: Record) -> RowPoints | None:
        return read_shifted(record, paths[key_of(record)])

    lines = shift_lines(records, lambda _: None)  # what is beyond SFT is tested over seeds here
    turned = contrast_lines(records)
    by_cell = {seeds[0][0].cell: [record for record, _ in seeds] for seeds in own}
    words = [
        _worst(seeds[0].method, [line for line in lines if line.cell == cell])
        + _followed([line for line in turned if line.cell == cell])
        for cell, seeds in by_cell.items()
    ]
    figures = [_changes(seeds, read) for seeds in by_cell.values()]
    by_shift = [[each[name] for each in figures if name in each] for name in dict.fromkeys(line.shift for line in lines)]
    pairs = [pair for changes in by_shift for pair in beside_sft(changes) if any(any(own.values) for own in pair)]
    return Place(subject=place_of(comparison, own), words=words, pairs=pairs)


def _cells(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.cell for record in records))


def _changes(seeds: Sequence[Record], read: ReadPoints) -> dict[str, Figure]:
    """What each shift costs a method, by seed and by row."""
    parts = [record.shifted for record in seeds if record.shifted]
    rows = row_drops(seeds, read)
    names = dict.fromkeys(name for part in parts for name in part.shifts)
    changes = {name: [part.shifts[name].change for part in parts if name in part.shifts] for name in names}
    return {
        name: Figure(
            method=seeds[0].method,
            what=f"change under {name}",
            values=[change.value for change in own],
            estimates=own,
            rows=rows.get(name),
        )
        for name, own in changes.items()
    }


def _worst(method: str, lines: Sequence[ShiftLine]) -> str:
    """The shift that costs a method most, of those that are seen to cost it anything among all of them (Bonferroni)."""
    if not lines:
        return f"no shift changes a row of {method}"
    seen = [line for line in lines if stretched(line.change, line.high, 1 / len(lines)) < 0]
    worst = min(seen or lines, key=lambda line: line.change)
    interval = shown(worst.low, worst.high, 1, sign=True)
    if seen:
        return f"{method} loses most under {worst.shift}, {worst.change:+.1f} of {worst.plain:.1f} ({interval})"
    return f"no shift of {len(lines)} is seen to cost {method} anything, not even {worst.shift} ({interval})"


def _followed(turned: Sequence[ContrastLine]) -> str:
    """How often answers follow where each shift turns the right one."""
    known = [_follows(line) for line in turned if line.followed is not None]
    return f", and follows {', '.join(known)}" if known else ""


def _follows(line: ContrastLine) -> str:
    assert line.followed is not None, "asked by `_followed`"
    low, high = share_interval(line.followed / 100, line.right)
    return f"{line.followed:.0f} % of answers that {line.shift} turns ({100 * low:.0f} to {100 * high:.0f})"


# How calibrated


def calibrated(runs: Measured) -> list[Sentence]:
    """How far confidence is from hits, and whose likelihood of hits and misses is better."""
    return told([_calibrated(runs, one) for one in runs.comparisons], "nats", 3, f"tunegrid export {RUNS} -o runs.csv")


def _calibrated(runs: Measured, comparison: Comparison) -> Place:
    own = [[record for record, _ in seeds] for seeds in runs.of("calibration", comparison)]
    figures = [_likelihood(seeds) for seeds in own]
    return Place(subject=place_of(comparison, own), words=[_sure(seeds) for seeds in own], pairs=beside_sft(figures))


def _likelihood(seeds: Sequence[Record]) -> Figure:
    losses = [record.calibration.unscaled.nll for record in seeds if record.calibration]
    return Figure(method=seeds[0].method, what="NLL", values=[loss.value for loss in losses], estimates=losses)


def _sure(seeds: Sequence[Record]) -> str:
    """A method's ECE beside the one that chance alone gives; it is said to be more only where it is in each seed."""
    [line] = calibration_lines(seeds)
    parts = [record.calibration.unscaled for record in seeds if record.calibration]
    interval = shown(fmean(part.ece.low for part in parts), fmean(part.ece.high for part in parts), 1)
    beyond = sum(not by_chance(part) for part in parts)
    than = (
        "more than"
        if beyond == len(parts)
        else "not seen to be more than"
        if not beyond
        else f"in {beyond} of {len(parts)} seeds more than"
    )
    hits = f", is right in {line.hits:.1f} %" if line.hits is not None else ""
    sure = f"{seeds[0].method} says {line.confidence:.1f} %{hits}: ECE {line.ece:.1f} ({interval})"
    return f"{sure}, {than} the {line.by_chance:.1f} of chance"


# What it forgets


def forgotten(runs: Measured) -> list[Sentence]:
    """By how much the backbone's own loss changed."""
    return told([_forgotten(runs, one) for one in runs.comparisons], "nats a token", 3, f"tunegrid export {RUNS} -o runs.csv")


def _forgotten(runs: Measured, comparison: Comparison) -> Place:
    own = [[record for record, _ in seeds] for seeds in runs.of("forgetting", comparison)]
    lines = forgetting_lines(record for seeds in own for record in seeds)
    words = [
        f"{line.method} {signed(line.change, 3)} ({shown(line.low, line.high, 3, sign=True)})"
        for line in lines
        if line.change is not None and line.low is not None and line.high is not None
    ]
    then = [f"{line.method} cannot be asked: {line.refused}" for line in lines if line.refused]
    figures = [figure for seeds in own if (figure := change_of(seeds)).values]
    return Place(subject=place_of(comparison, own), words=[*words, *then], pairs=beside_sft(figures))


# What it costs


def costs(runs: Measured) -> list[Sentence]:
    """Seconds of training, what a checkpoint keeps, and joules where counters were read."""
    places = []
    for one in runs.comparisons:
        figures = [Figure(method=e.method, what="time", values=e.seconds) for e in one.sound if e.seconds]
        words = [_cost(entry) for entry in one.sound if entry.seconds]
        places.append(Place(subject=place_of(one, [own.values for own in figures]), words=words, pairs=beside_sft(figures)))
    return told(places, "s", 1, f"tunegrid compare {RUNS}")


def _cost(entry: Entry) -> str:
    kept = entry.costs[TRAINED]
    size = "" if kept is None else f" and a checkpoint of {kept / MIB:.2f} MiB"
    energy = [
        f", {mean:.0f} J of the {name} in all phases"
        for figure, name in JOULES.items()
        if (mean := _joules(entry, figure)) is not None
    ]
    return f"{entry.method} {fmean(entry.seconds):.1f} s ({ranged(entry.seconds, 1)}){size}{''.join(energy)}"


def _joules(entry: Entry, figure: str) -> float | None:
    """The mean over seeds; None where one was not measured."""
    each = [record.memory.joules(figure) if record.memory else None for record in entry.records]
    known = [joules for joules in each if joules is not None]
    return fmean(known) if len(known) == len(each) else None


# What the study claims


BESIDE = (
    Column(title="first minus second"),
    Column(title="score"),
    Column(title="the study"),
    Column(title="these runs"),
    Column(title="95 % interval"),
    Column(title="by"),
    Column(title="answer"),
)


def claims(runs: Measured, task: str | None, study: Path) -> list[str]:
    """Each claim with its answer, and a table of its pairs."""
    reported, margins = read_records(study), load_margins()["points"]
    entries = {entry.first.cell: entry for entry in runs.entries}
    chance = runs.comparisons[0].chance
    wanted = [limited for claim in CLAIMS if (limited := claim.of_task(task)).pairs]
    parts: list[str] = []
    for own in (judged(claim, entries, chance, margins, reported) for claim in wanted):
        pairs = [_beside(side, answer) for side, answer in zip(own.sides, own.answers, strict=True) if not side.missing]
        parts += ["", f"### {own.claim.text}: {own.answer} in these runs", "", _verdict(runs, own).line]
        parts += ["", *markdown_table(BESIDE, pairs)] if pairs else []
    cells = {cell for claim in wanted for pair in claim.pairs for cell in pair}
    return [*parts[1:], "", *(sentence.line for sentence in _doubts(cells, study))]


def _beside(side: Side, answer: Answer) -> tuple[str, ...]:
    own = side.gap.interval if side.gap else None
    ours = (signed(side.gap.points, 1), shown(own.low, own.high, 1, sign=True), own.by) if side.gap and own else ("-", "-", "-")
    return " - ".join(side.pair), side.score, signed(side.theirs, 2), *ours, answer


def _verdict(runs: Measured, own: Judged) -> Sentence:
    """How many pairs speak for it, and what would tell the others."""
    counts = [f"{name} {own.answers.count(answer)}" for answer, name in ANSWERED.items()]
    close = f"; close is within {_ends(own)} points, the gate's margin" if own.claim.close else ""
    missing = f"; {len(own.missing)} of its cells are not in these runs" if own.missing else ""
    command = runs.more(own.missing) if own.missing else f"tunegrid compare {RUNS}"
    reasons = dict.fromkeys(side.reason for side in own.sides if side.reason and not side.missing)
    unknown = f"; {'; '.join(reasons)}" if reasons else ""
    return Sentence(text=f"of {len(own.sides)} pairs, {', '.join(counts)}{close}{unknown}{missing}", command=command)


ANSWERED = {Answer.HOLDS: "for it", Answer.DOES_NOT: "against it", Answer.CANNOT: "cannot be told"}


def _ends(own: Judged) -> str:
    return " or ".join(dict.fromkeys(f"{side.ends[-1]:g}" for side in own.sides))


def _doubts(cells: Collection[str], study: Path) -> Iterator[Sentence]:
    """What the study's own figures cannot tell."""
    if not cells:
        yield Sentence(text="the study says nothing of this task", command="tunegrid audit reports/study.json")
        return
    wrong = list(dict.fromkeys(cell for cell, _ in findings(study) if cell in cells))
    if wrong:
        text = f"the study's figures of {', '.join(wrong)} cannot all be right"
        yield Sentence(text=text, command="tunegrid audit reports/study.json")
    text = "the study printed one score a cell, without seeds or intervals, and no figure of memory or time"
    yield Sentence(text=text, command="tunegrid audit reports/study.json")


# What cannot be told


def open_questions(runs: Measured) -> list[Sentence]:
    """What these runs leave open, and what would tell."""
    pairs = sum(len(one.p_values) for one in runs.comparisons)
    alike = pairs - sum(len(one.apart) for one in runs.comparisons)
    sentences = []
    if alike:
        text = f"{alike} of {pairs} pairs of methods cannot be told apart by their scores, and more seeds narrow intervals"
        more = runs.more([entry.first.cell for entry in runs.entries], seeds=runs.next_seeds)
        sentences.append(Sentence(text=text, command=f"{more}` and then `tunegrid answer {RUNS} more.json"))
    return [*sentences, *_left_out(runs), *_limits(runs), *_without_energy(runs)]


def _left_out(runs: Measured) -> Iterator[Sentence]:
    """Methods that did not run, or that audits object to."""
    for one in runs.comparisons:
        if one.absent:
            absent = [f"{one.backbone}_{one.task}_{method}" for method in one.absent]
            yield Sentence(subject=place_of(one), text=f"{', '.join(one.absent)} did not run", command=runs.more(absent))
        for entry in one.entries:
            for objection in entry.objections:
                text = f"{entry.method} is left out: {objection}"
                yield Sentence(subject=place_of(one), text=text, command=f"tunegrid compare {RUNS}")


def _limits(runs: Measured) -> Iterator[Sentence]:
    """What keeps figures from saying more than they do."""
    unlike = Counter(sentence.partition(":")[0].partition(", ")[2] for one in runs.comparisons for sentence in one.unlike)
    count = len(runs.comparisons)
    if unlike:
        kinds = ", ".join(f"{what} ({tables} of {count} tables)" for what, tables in unlike.items())
        yield Sentence(text=f"methods are not like for like in {kinds}", command=f"tunegrid compare {RUNS}")
    records = [record for entry in runs.entries for record in entry.records]
    if any(record.device and record.device.contended for record in records):
        yield Sentence(text="others used a device at the same time", command=f"tunegrid compare {RUNS}")
    if any(record.device and record.device.type == "cpu" for record in records):
        yield Sentence(text=ON_A_CPU, command=f"{runs.more(_cells(records))} --isolate=yes")
    if any(record.recipe.generation for record in records):
        text = "how sure a model is of a text is not measured, since a text is neither a hit nor a miss"
        yield Sentence(text=text, command=f"tunegrid compare {RUNS}")


def _without_energy(runs: Measured) -> list[Sentence]:
    """Why joules were not measured."""
    without = [entry for entry in runs.entries if all(_joules(entry, figure) is None for figure in JOULES)]
    reasons = dict.fromkeys(
        (entry.first.device and entry.first.device.energy) or "an older run did not ask" for entry in without
    )
    if not without:
        return []
    text = f"energy was not measured of {len(without)} of {len(runs.entries)} cells: {'; '.join(reasons)}"
    return [Sentence(text=text, command=runs.more([entry.first.cell for entry in without]))]


def missing(runs: Measured, part: str) -> list[Sentence]:
    """The cells of which an instrument was not asked, with its marker; calibration needs none, and no text has any."""
    texts = [entry.first.cell for entry in runs.entries if part == "calibration" and entry.first.recipe.generation]
    cells = [cell for cell in runs.lacking(part) if cell not in texts]
    if not cells:
        return []
    whole = len(cells) + len(texts) == len(runs.entries)
    if part == "calibration":  # of every run: one that asks it again holds all scores, too
        command = f"{runs.more(cells)}` and then `tunegrid answer more.json"
    else:
        command = f"{runs.more(cells, part)}` and then `tunegrid answer {RUNS} more.json"
    of = "" if whole else f" of {', '.join(cells)}" if len(cells) <= NAMED else f" of {len(cells)} of {len(runs.entries)} cells"
    return [Sentence(text=f"not measured{of}", command=command)]


# The page


def page(runs: Measured, *, task: str | None = None, gib: float | None = None, study: Path = STUDY) -> str:
    """All that is said, as Markdown.

    Args:
        runs: what was measured.
        task: of which alone it is.
        gib: GiB that a method may take at most.
        study: its record.
    """
    sections = [
        section("Which method for my task?", "By main score, a higher one is better.", which(runs)),
        section("At which memory?", "The highest peak of a cell's phases, and its range.", memory(runs, gib)),
        section(
            "How robust?",
            f"Points on changed rows minus those on plain rows. {OVER_ROWS}",
            robust(runs),
            missing(runs, "shifted"),
        ),
        section(
            "How well does it know when it is right?",
            f"ECE in points, NLL in nats: lower is better. {OVER_ROWS}",
            calibrated(runs),
            missing(runs, "calibration"),
        ),
        section(
            "What does it forget?",
            f"The backbone's own loss on other texts, after minus before. {OVER_ROWS}",
            forgotten(runs),
            missing(runs, "forgetting"),
        ),
        section(
            "How fast is it, and what does it cost?",
            "Training alone, with each cell's own updates, on this machine; and its range.",
            costs(runs),
        ),
        ["", "## What does the study claim?", "", *claims(runs, task, study)],
        section("What cannot be told?", "", open_questions(runs)),
    ]
    return "\n".join([*_heading(runs), *(line for lines in sections for line in lines)])


def section(heading: str, preface: str, *sentences: Sequence[Sentence]) -> list[str]:
    """A section of the page."""
    return ["", f"## {heading}", *(["", preface] if preface else []), "", *(one.line for own in sentences for one in own)]


def _heading(runs: Measured) -> list[str]:
    records = [record for entry in runs.entries for record in entry.records]
    devices = dict.fromkeys(record.device.name for record in records if record.device)
    models = {record.backbone: record.model.checkpoint for record in records if record.model}
    sizes = {record.backbone: record.parameters.total_params for record in records if record.parameters}
    named = [
        f"{one} is {name}{f', {sizes[one] / 1e6:.1f} M parameters' if one in sizes else ''}" for one, name in models.items()
    ]
    files = " ".join(shlex.quote(str(path)) for path in runs.paths)
    return [
        "# Which method, and what cannot be told",
        "",
        f"{RUNS} is `{files}`: {len(runs.entries)} cells of the {runs.profile} profile on {markdown(', '.join(devices))}. "
        f"{markdown('; '.join(named))}.",
        *(["", f"**{OF_QUICK[0].upper()}{OF_QUICK[1:]}.**"] if runs.profile == QUICK_PROFILE.id else []),
        "",
        "Intervals are 95 %. A method is below or above another only where the two are told apart over seeds, with a chance of "
        "5 % for any mistake in one line of this page (Holm). So an interval may leave out 0 although the two cannot be told "
        "apart. Commands take your run's own options, too.",
    ]
