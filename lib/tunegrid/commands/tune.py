"""Which learning rate and LoRA rank are best? `tunegrid tune --cells A,B --trials N` searches, on validation rows alone.

Each cell has several studies of so many trials, all in one space: the logarithm of the rate, and the rank, with alpha in
proportion. A trial makes as many updates as the recipe, unless it is given up at a look, below the median of earlier ones. When
all studies are over, the three best settings train with fresh seeds. The best of them and the recipe train with others, and
test rows are scored, once. Exit code 1 where a recipe is further below the best found than --within, beyond the noise of seeds.
The same command goes on where it was stopped. It needs Optuna: pip install -e '.[tune]'.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tunegrid.commands.cli import refuse
from tunegrid.commands.search import check_optuna
from tunegrid.commands.studies import LOOKS, CellStudies, Kept, Pace, Plan
from tunegrid.data.hub import commit_of, prefer_cache_if_unreachable
from tunegrid.disk import write_whole
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, Cell, Grid
from tunegrid.grid.larger import larger
from tunegrid.grid.methods import SFT, Lora
from tunegrid.grid.more_tasks import more_tasks
from tunegrid.grid.profiles import CACHE, FULL_PROFILE, QUICK_PROFILE, TASKS_PROFILE, ZOO_PROFILE, Profile
from tunegrid.grid.zoo import zoo
from tunegrid.machine import announce_threads, cpu_name, thread_share, versions
from tunegrid.results.journal import content_key
from tunegrid.results.tuning import FORMATS, FRESH, TOLD, FinalRun, RateRatio, Setting, Space, Tuned, rate_ratios
from tunegrid.run.progress import LogThrottle, Progress, ProgressState
from tunegrid.terminal import say

if TYPE_CHECKING:
    from tunegrid.run.trial import Bench

KEPT = CACHE / "tune"
GRIDS: dict[str, tuple[Profile, Callable[[], Grid], tuple[float, float]]] = {
    # The rates lie a decade and more around those of all recipes, of every method: methods are compared in one space.
    "quick": (QUICK_PROFILE, lambda: STUDY, (1e-4, 3e-2)),
    "zoo": (ZOO_PROFILE, zoo, (1e-4, 1.0)),  # prompt tuning takes 0.5
    "tasks": (TASKS_PROFILE, more_tasks, (1e-4, 3e-2)),
    "full": (FULL_PROFILE, larger, (1e-6, 1e-2)),
}
RANKS = (2, 4, 8, 16, 32)
OWN = ()  # ranks: each recipe's own, so that the rate alone is searched


# Cells


def recipe_of(cell: Cell) -> Setting:
    """The recipe's own setting."""
    rank = cell.recipe.adapter.r if cell.recipe.adapter and isinstance(cell.method, Lora) else None
    return Setting(rate=cell.recipe.learning_rate, rank=rank)


def space_of(cell: Cell, rates: tuple[float, float], ranks: Sequence[int]) -> Space:
    """A cell's space; raises InputError for a rank at which alpha in proportion is no whole number."""
    adapter, own = cell.recipe.adapter, recipe_of(cell).rank
    if own is None or adapter is None:
        return Space(low=rates[0], high=rates[1])
    ranks = ranks or (own,)
    for rank in ranks:
        if adapter.lora_alpha * rank % adapter.r:
            alpha = f"alpha at rank {rank} would be {adapter.lora_alpha} x {rank} / {adapter.r}, which is no whole number"
            raise InputError(f"{cell.id}: {alpha}; give other --adapter-ranks")
    return Space(low=rates[0], high=rates[1], ranks=tuple(ranks))


def with_setting(grid: Grid, cell: Cell, setting: Setting, seed: int) -> Cell:
    """The cell with another rate and rank, alpha in proportion; a head's own rate changes as the rate does."""
    changes: dict[str, Any] = {"learning_rate": setting.rate}
    if setting.rank is not None:
        assert cell.recipe.adapter, "it has a rank"
        alpha = cell.recipe.adapter.lora_alpha * setting.rank // cell.recipe.adapter.r
        changes |= {"adapter.r": setting.rank, "adapter.lora_alpha": alpha}
    return grid.cell(cell.id, replace(cell.profile, seed=seed, changes=changes))


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Trains one cell by whatever setting, in this process."""

    grid: Grid
    cell: Cell
    bench: "Bench"
    throttle: LogThrottle = field(default_factory=LogThrottle)

    def train(self, setting: Setting, seed: int) -> Iterator[float]:
        """The validation scores of a training, at each look."""
        trainer = self.bench.trainer(with_setting(self.grid, self.cell, setting, seed))
        yield from self.bench.looks(trainer, self._progress(), LOOKS)

    def final(self, setting: Setting, seed: int) -> FinalRun:
        """Train to the end and score validation rows, and test rows where nothing is chosen by the seed."""
        trainer = self.bench.trainer(with_setting(self.grid, self.cell, setting, seed))
        validation = next(self.bench.looks(trainer, self._progress(), 1), None)
        test = None if validation is None or seed < TOLD else self.bench.test_score(trainer, self._progress())
        return FinalRun(setting=setting, seed=seed, updates=trainer.total, validation=validation, test=test)

    def _progress(self) -> Progress:
        return Progress(self.cell.id, self._say)

    def _say(self, state: ProgressState) -> None:
        for line in self.throttle.due([state]):
            say(f"  {line}")


def workshop(grid: Grid, cell: Cell) -> Workshop:
    """Where a cell trains: in this process, on the device of its profile."""
    profile, threads = cell.profile, thread_share(cell.profile.threads)
    announce_threads(threads)
    if profile.data_root is None or profile.checkpoint_root is None:
        prefer_cache_if_unreachable()
    import torch

    from tunegrid.run.device import resolve_device
    from tunegrid.run.trial import bench_of

    if profile.device is None and not torch.cuda.is_available():
        raise InputError("full cells need a CUDA device and there is none; --device cpu tunes them here, slowly")
    torch.set_num_threads(threads)
    return Workshop(grid=grid, cell=cell, bench=bench_of(cell, resolve_device(profile.device)))


def tune(grid: Grid, cells: Sequence[CellStudies]) -> list[Tuned]:
    """All studies of all cells first; then the final trainings, of which the last alone read test rows."""
    pace = Pace(left=sum(one.trials_left + one.plan.finals for one in cells))
    for one in cells:
        if one.trials_left:
            say(f"{one.cell.id}: {one.plan.studies} x {one.plan.trials} trials, {one.space}")
            one.search(workshop(grid, one.cell).train, pace)
    for one in cells:
        pace.left = sum(each.most_finals_left for each in cells)  # a cell that few seeds tell leaves its others out
        if one.finals_left():
            one.finish(workshop(grid, one.cell).final, pace)
    return [one.tuned() for one in cells]


# The command line


def whole(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def few(text: str) -> int:
    """The same, below the first fresh seed: studies train with their own numbers."""
    if whole(text) >= FRESH:
        raise argparse.ArgumentTypeError(f"{text!r} is not below {FRESH}")
    return int(text)


def seed_counts(text: str) -> tuple[int, int]:
    """A number of seeds, and the most; the same where one is given."""
    first, comma, most = (part.strip() for part in text.partition(","))
    counts = few(first), few(most if comma else first)
    if counts[0] > counts[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the second number is the larger one, as in 4,12")
    return counts


def points(text: str) -> float:
    """Points of a score."""
    value = real(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of points from 0 to 100")
    return value


def real(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def rate_bounds(text: str) -> tuple[float, float]:
    """The lowest and the highest rate."""
    low, comma, high = text.partition(",")
    if not comma or not 0 < real(low) < real(high) < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not two rates above 0 with a comma between, as in 1e-4,3e-2")
    return real(low), real(high)


def rank_list(text: str) -> tuple[int, ...]:
    """Ranks, in ascending order; none for each recipe's own."""
    if text == "own":
        return OWN
    return tuple(sorted({whole(word.strip()) for word in text.split(",")}))


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tunegrid tune", description=__doc__)
    add = parser.add_argument
    add("--cells", metavar="ID,ID", help="cells to tune, as in bert_sa_lora,bert_sa_sft (default: all of the profile)")
    add("--trials", type=whole, default=20, metavar="N", help="settings that each study tries (default 20)")
    add("--studies", type=few, default=3, metavar="N", help="searches of each cell, whose median counts (default 3)")
    add(
        "--seeds",
        type=few,
        default=3,
        metavar="N",
        help="fresh ones that choose the best setting (default 3)",
    )
    how_many = "default: as many as --seeds; a cell that N cannot tell gets MOST"
    which = f"others that tell how far the recipe is from the best setting ({how_many})"
    add("--further-seeds", type=seed_counts, metavar="N,MOST", help=which)
    spaces = ", ".join(f"{name}: {low:g},{high:g}" for name, (_, _, (low, high)) in GRIDS.items())
    add("--rates", type=rate_bounds, metavar="LOW,HIGH", help=f"lowest and highest learning rate (default {spaces})")
    ranks = ",".join(map(str, RANKS))
    which = f"LoRA ranks to try, or own: each recipe's, so that the rate alone is tuned (default {ranks})"
    add("--adapter-ranks", type=rank_list, default=RANKS, metavar="R,R", help=which)
    add("--updates", type=whole, metavar="N", help="of every training (default: the recipe's)")
    add("--within", type=points, default=1.0, metavar="POINTS", help="a recipe may be so far below the best found (default 1)")
    add("-m", "--profile", choices=GRIDS, default="quick", help="of the cells (default quick)")
    add("--state", type=Path, default=KEPT, metavar="DIR", help=f"where trials are kept (default {KEPT.name} below the cache)")
    add("--format", choices=FORMATS, default="text", help="of what is printed at the end (default text)")
    add("-o", "--output", type=Path, metavar="FILE.json", help="write all figures there")
    add("--device", metavar="DEVICE", help="as for pytest")
    add("--data-root", type=Path, metavar="DIR", help="as for pytest")
    add("--checkpoint-root", type=Path, metavar="DIR", help="as for pytest")
    return parser, parser.parse_args(arguments)


def cells_of(options: argparse.Namespace, grid: Grid, stack: ExitStack) -> list[CellStudies]:
    """What is asked for, with what an earlier command left of it, which the stack holds for this one.

    Raises:
        InputError: for a cell that cannot be tuned, or that another command tunes.
    """
    base, _, rates = GRIDS[options.profile]
    profile = replace(base, max_steps=options.updates, checkpoint_root=options.checkpoint_root or base.checkpoint_root)
    if profile.micro and (options.data_root or options.device not in (None, "cpu")):
        raise InputError("--data-root and --device go with -m full: quick cells read micro data on a CPU")
    if not profile.micro:
        profile = replace(profile, data_root=options.data_root, device=options.device or base.device)
    named = grid.ids(profile) if options.cells is None else options.cells.split(",")
    names = [name.strip() for name in named if name.strip()]
    if not names:
        raise InputError("--cells names no cell; give ids with commas between, as in bert_sa_lora,bert_sa_sft")
    further = options.further_seeds or (options.seeds, options.seeds)
    plan = Plan(trials=options.trials, studies=options.studies, seeds=options.seeds, further=further, within=options.within)
    cells = [grid.cell(name, profile) for name in dict.fromkeys(names)]
    spaces = [space_of(cell, options.rates or rates, options.adapter_ranks) for cell in cells]
    return [
        CellStudies(
            cell=cell,
            recipe=recipe_of(cell),
            space=space,
            plan=plan,
            kept=stack.enter_context(held(options.state / file_name(cell, space))),
        )
        for cell, space in zip(cells, spaces, strict=True)
    ]


def file_name(cell: Cell, space: Space) -> str:
    """The file of a cell's trials is named for all that decides them but their number."""
    circumstances = {
        "space": asdict(space),
        "device": cell.profile.device,
        "threads": thread_share(cell.profile.threads),
        "data_commit": commit_of(cell.task.dataset, cell.task.config) if cell.rows_from_hub else None,
    }
    return f"{cell.id}-{content_key(cell, circumstances)}.jsonl"


@contextmanager
def held(path: Path) -> Iterator[Kept]:
    """What an earlier command left in a file, which no other command writes meanwhile.

    Raises:
        InputError: where another command does, or the folder cannot be written.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another command tunes this cell right now and writes {path}: wait for its end") from None
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written ({error.strerror or error}); give another --state") from None
    try:
        yield Kept(path=path)
    finally:
        lock.release()


def write(path: Path, found: Sequence[Tuned], ratios: Sequence[RateRatio], plan: Plan) -> None:
    """All figures as JSON; raises InputError where the place cannot be written."""
    made = {"plan": asdict(plan), "versions": versions(), "cpu": cpu_name()}
    figures = made | {"cells": [one.as_json() for one in found], "ratios": [asdict(ratio) for ratio in ratios]}
    write_whole(path, json.dumps(figures, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune, say what was found; return the exit code."""
    parser, options = parsed(arguments)
    try:
        check_optuna()
        with ExitStack() as stack:
            grid = GRIDS[options.profile][1]()
            cells = cells_of(options, grid, stack)
            for one in cells:
                if one.kept.trials:
                    say(f"{one.cell.id}: {len(one.kept.trials)} trials are known from an earlier command ({one.kept.path})")
            with warnings.catch_warnings(action="ignore"):  # PEFT's, on names that transformers gave up
                found = tune(grid, cells)
        ratios = rate_ratios(found, SFT.id)
        say(FORMATS[options.format](found, ratios))
        if options.output:
            write(options.output, found, ratios, cells[0].plan)
    except InputError as error:
        refuse(parser, error)
    except KeyboardInterrupt:
        say("stopped; the same command goes on after the trials that ended")
        return 130
    return int(any(one.misses for one in found))
