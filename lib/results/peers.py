"""Our loops beside other people's. In: seconds of each round, by cell, stage and contender. Out: ratios, a table, goals.

A ratio is taken within each round, in which contenders run one after the other, and its median is over the rounds. A contender
that does not compute the same has no ratio, and a sentence that says so.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from json import dumps
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter, ValidationError

from lib.errors import InputError
from lib.grid.cells import STUDY_IDS
from lib.record.parts import Part
from lib.record.plain import plain
from lib.results.numerics import load_tolerances
from lib.results.table import Column, lines, number

OURS, TRAINER, DEFAULTS, BARE, PLAIN = "ours", "trainer", "trainer defaults", "bare", "plain generate"
COLUMNS = (
    Column(title="cell", width=15),
    Column(title="ours samples/s", right=True),
    Column(title="best peer"),
    Column(title="samples/s", right=True),
    Column(title="ratio", right=True),
    Column(title="rounds"),
    Column(title="x defaults", right=True),
    Column(title="of bare time", right=True),
    Column(title="evaluate", right=True),
    Column(title="generate", right=True),
)


@dataclass(kw_only=True)
class Timed(Part):
    """One contender in one stage.

    Attributes:
        samples: rows that its rounds take, where they are fewer than the stage's.
        seconds: of each round.
        peak_gib: the most that was allocated on the GPU in any round; None on a CPU.
        figure: what its result is compared by: the last loss without dropout, a mean loss or score, the share of equal texts.
        does_not_count: why it has no ratio; empty where it has one.
    """

    samples: int | None = None
    seconds: list[float] = field(default_factory=list)
    peak_gib: float | None = None
    figure: float | None = None
    does_not_count: str = ""


@dataclass(kw_only=True)
class Stage(Part):
    """One stage of a cell: how many rows a round takes, and its contenders by name."""

    samples: int
    contenders: dict[str, Timed] = field(default_factory=dict)

    def rate(self, name: str) -> float | None:
        """Samples a second, by the median round; None for a contender that is not there."""
        timed = self.contenders.get(name)
        return (timed.samples or self.samples) / median(timed.seconds) if timed and timed.seconds else None

    def ratios(self, name: str) -> list[float]:
        """How many times as long as ours a contender takes for a row, by round; empty where it does not count."""
        timed, ours = self.contenders.get(name), self.contenders[OURS]
        if timed is None or timed.does_not_count or ours.does_not_count:
            return []
        more = self.samples / (timed.samples or self.samples)
        return [more * theirs / own for theirs, own in zip(timed.seconds, ours.seconds, strict=True)]

    def ratio(self, name: str) -> float | None:
        """The median of `ratios`."""
        ratios = self.ratios(name)
        return median(ratios) if ratios else None

    def best_peer(self) -> str | None:
        """The fastest that counts; the bare loop is no peer: nobody trains with it."""
        known = {name: median(self.ratios(name)) for name in self.contenders if name not in (OURS, BARE) and self.ratios(name)}
        return min(known, key=lambda name: known[name]) if known else None


# What a contender's figure may differ by from ours, by what is compared. Nats of the last loss: in fp32 what the parity test
# allows (lib/tests/test_parity.py), else what rounding alone may do to a later update (benchmarks/thresholds/numerics.toml).
PARITY = 1e-4
EVALUATION = 0.02  # of the figure: bf16 has 2 to 3 digits, and batches differ
TEXTS = 0.05  # texts that another padding may turn at a near-tie


def tolerance_of(kind: str, figure: float) -> float:
    """By what a contender's figure may differ from ours, `figure`; `kind` is an arithmetic, "evaluation" or "texts"."""
    if kind in ("evaluation", "texts"):
        return TEXTS if kind == "texts" else EVALUATION * max(1.0, abs(figure))
    return PARITY if kind == "fp32" else load_tolerances()[{"fp16": "bf16", "nf4": "nf4 fp32"}.get(kind, kind)]["later"]


def held(stage: Stage, kind: str) -> Stage:
    """The stage, each contender held to our figure: what computes another thing does not count."""
    ours = stage.contenders[OURS].figure
    for timed in stage.contenders.values():
        if ours is None or timed.figure is None:
            timed.does_not_count = "nothing shows that it computes the same"
        elif not abs(timed.figure - ours) <= (allowed := tolerance_of(kind, ours)):
            what = {"evaluation": "its mean figure", "texts": "its share of equal texts"}.get(kind, "its last loss")
            timed.does_not_count = f"{what} is {timed.figure:.5g}, ours {ours:.5g}: they may differ by {allowed:.1g}"
    return stage


@dataclass(kw_only=True)
class CellPeers(Part):
    """One cell: how it trains here, and its stages.

    Attributes:
        batch: rows of a micro-batch, and micro-batches of an update.
        updates: timed in each round.
    """

    cell: str
    precision: str
    batch: tuple[int, int]
    updates: int
    train: Stage
    evaluate: Stage | None = None
    generate: Stage | None = None

    def objections(self) -> Iterator[str]:
        """A sentence for each contender that does not count."""
        for stage in (self.train, self.evaluate, self.generate):
            for name, timed in (stage.contenders if stage else {}).items():
                if timed.does_not_count:
                    yield f"{self.cell}: {name} does not count: {timed.does_not_count}"


@dataclass(kw_only=True)
class PeersRun(Part):
    """A whole measurement."""

    date: str
    device: str
    threads: int
    micro: bool
    versions: dict[str, str | None]
    cells: list[CellPeers] = field(default_factory=list)


def save(run: PeersRun, path: Path) -> None:
    """Write a measurement; raises InputError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumps(plain(asdict(run)), indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


def load(path: Path) -> PeersRun:
    """A saved measurement; raises InputError where the file is none."""
    try:
        return TypeAdapter(PeersRun).validate_json(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); `pytest -m peers` writes it") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise InputError(f"{path} was not written by `pytest -m peers`: {place}: {fault['msg']}") from None


ALIKE = ("device", "threads", "micro", "versions")  # what measurements must have in common to be one


def joined(runs: Mapping[Path, PeersRun]) -> PeersRun:
    """Measurements of different cells as one, in the grid's order, of the last one's date.

    Raises InputError where they were not taken under the same conditions, or hold a cell twice.
    """
    (first_path, first), *others = runs.items()
    for path, run in others:
        if name := next((name for name in ALIKE if getattr(run, name) != getattr(first, name)), None):
            raise InputError(f"{first_path} and {path} cannot be one table: they differ in {name}")
    places = {cell_id: place for place, cell_id in enumerate(STUDY_IDS)}
    cells = [cell for run in runs.values() for cell in run.cells]
    cells.sort(key=lambda cell: (places.get(cell.cell, len(places)), cell.cell))
    if twice := next((one.cell for one, other in pairwise(cells) if one.cell == other.cell), None):
        raise InputError(f"these files cannot be one table: {twice} is in two of them")
    return replace(first, date=max(run.date for run in runs.values()), cells=cells)


def table(run: PeersRun) -> list[str]:
    """One line a cell, then what does not count."""
    return [*lines(COLUMNS, [_row(cell) for cell in run.cells]), *(said for cell in run.cells for said in cell.objections())]


def _row(cell: CellPeers) -> tuple[str, ...]:
    best = cell.train.best_peer()
    ratios = cell.train.ratios(best) if best else []
    return (
        cell.cell,
        number(cell.train.rate(OURS), 2),
        best or "-",
        number(cell.train.rate(best) if best else None, 2),
        number(median(ratios) if ratios else None, 2),
        f"{len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-",
        number(cell.train.ratio(DEFAULTS), 1),
        number(of_bare_time(cell), 2),
        number(evaluated(cell), 2),
        number(generated(cell), 2),
    )


def line(cell: CellPeers) -> str:
    """A cell's row as a sentence, for whoever waits."""
    best, rate = cell.train.best_peer(), number(cell.train.rate(OURS), 2)
    ratios = {
        f"x {best or 'any peer'}": cell.train.ratio(best) if best else None,
        "x the bare loop's time": of_bare_time(cell),
        "x its evaluation": evaluated(cell),
        "x its generation": generated(cell),
    }
    return ", ".join([f"{cell.cell}: {rate} samples/s", *(f"{ratio:.2f} {what}" for what, ratio in ratios.items() if ratio)])


def trained(cell: CellPeers) -> float | None:
    """Our training's speed over that of Trainer at its best."""
    return cell.train.ratio(TRAINER)


def of_bare_time(cell: CellPeers) -> float | None:
    """Our training's time over that of the bare loop."""
    ratios = cell.train.ratios(BARE)
    return median(1 / ratio for ratio in ratios) if ratios else None


def evaluated(cell: CellPeers) -> float | None:
    """Our evaluation's speed over Trainer's, with as many rows at once as ours or by default, whichever is faster."""
    best = cell.evaluate.best_peer() if cell.evaluate else None
    return cell.evaluate.ratio(best) if cell.evaluate and best else None


def generated(cell: CellPeers) -> float | None:
    """Our generation's speed over that of plain batches."""
    return cell.generate.ratio(PLAIN) if cell.generate else None


def least_ratio(cell: CellPeers) -> float | None:
    """Our speed over that of the fastest peer, in the stage where we do worst."""
    best = cell.train.best_peer()
    known = [cell.train.ratio(best) if best else None, evaluated(cell), generated(cell)]
    return min((ratio for ratio in known if ratio is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is aimed at: a figure of each cell, and the least, or the most, that it should be."""

    what: str
    figure: Callable[[CellPeers], float | None]
    least: float | None = None
    most: float | None = None

    def holds(self, figure: float) -> bool:
        """Whether a cell's figure reaches the goal."""
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)


GOALS = (
    Goal(what="training at least 1.3 x as fast as Trainer at its best", figure=trained, least=1.3),
    Goal(what="training in at most 1.03 x the bare loop's time", figure=of_bare_time, most=1.03),
    Goal(what="evaluation at least 1.3 x as fast as Trainer's", figure=evaluated, least=1.3),
    Goal(what="generation at least 2 x as fast as plain batches", figure=generated, least=2.0),
    Goal(what="nothing slower than the fastest peer", figure=least_ratio, least=1.0),
)


def goals(run: PeersRun) -> list[str]:
    """A sentence for each goal: in how many cells it holds, and where it does not."""
    return [_said(goal, run) for goal in GOALS]


def _said(goal: Goal, run: PeersRun) -> str:
    figures = {cell.cell: figure for cell in run.cells if (figure := goal.figure(cell)) is not None}
    if not figures:
        return f"not measured: {goal.what}"
    short = {cell: figure for cell, figure in figures.items() if not goal.holds(figure)}
    listed = ", ".join(f"{cell} {figure:.2f}" for cell, figure in short.items())
    verdict = "does not hold" if short else "holds"
    return f"{verdict}: {goal.what}: {len(figures) - len(short)} of {len(figures)} cells" + (f"; {listed}" if short else "")


def heading(run: PeersRun) -> str:
    """Where and when it was measured."""
    names = ", ".join(f"{name} {run.versions[name]}" for name in ("torch", "transformers", "peft", "accelerate"))
    size = "micro backbones; " if run.micro else ""
    return f"peers: {size}on {run.device}, {run.threads} threads, {run.date}; {names}"
