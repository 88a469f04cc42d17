"""Rounds of a race. In: a race, test rows, a number of rounds. Out: by contender, seconds of each round and what it came to.

Contenders take turns, A B C B C A: what slows the machine for a while slows all of them. Our loop and the bare one, which are
compared to within a few percent, take more turns in each round. Before the first round each trains a few updates without
dropout, which warms it up and shows whether all compute the same.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from lib.codecs.base import Feature
from lib.run.peers import WARMUP_UPDATES, Race, shortened, without_dropout
from lib.run.peers_predict import PREDICTING, equal_share, mean_figure
from lib.run.peers_train import DEFAULTS, OF_OURS, contenders, raced

PARITY_UPDATES = 3
FINER_TURNS = 5  # in a round: one turn may take 5 % longer than the next, and the goal is 3 %
Answer = tuple[float, float | None, Any]  # seconds, peak in GiB, what came out
Ask = Callable[[str, str], Answer]  # for a stage, and a contender's name


@dataclass(kw_only=True)
class Heat:
    """One contender's rounds in one stage.

    Attributes:
        samples: rows that a turn takes, where it takes fewer than others do.
        seconds: of each round, the median of its turns.
        peak_gib: the highest of all rounds; None on a CPU.
        figure: the last loss without dropout; of an evaluation the mean loss or score; the share of texts equal to ours.
    """

    samples: int | None = None
    seconds: list[float] = field(default_factory=list)
    peak_gib: float | None = None
    figure: float | None = None


def answer(race: Race, scored: Sequence[Feature], stage: str, name: str) -> Answer:
    """One contender's turn at a stage: "parity", whose outcome is its last loss, "train", or "predict" for `scored` rows."""
    if stage == "parity":
        with without_dropout(race.model):
            lapse = raced(shortened(race, min(PARITY_UPDATES, race.cell.recipe.max_steps)), name)
        return lapse.seconds, lapse.peak_gib, lapse.losses[-1]
    if stage == "train":
        lapse = raced(shortened(race, WARMUP_UPDATES + 1) if name == DEFAULTS else race, name)
        return lapse.seconds, lapse.peak_gib, None
    return PREDICTING[name](race, scored)


def train(race: Race, rounds: int, theirs: Ask | None = None) -> dict[str, Heat]:
    """Training by every contender of the cell; `theirs` runs other people's, which else run here."""
    asked = _asking(race, (), theirs)
    heats = {}
    for name in contenders(race.cell):
        race.progress.stage(f"parity, {name}").at(0, rounds)
        heats[name] = Heat(figure=asked("parity", name)[2])
    recipe = race.cell.recipe  # the defaults' rows are all of one length, and so their updates: one tells as much as many
    heats[DEFAULTS].samples = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    _take_turns(race, heats, "train", asked, rounds)
    race.restore()
    return heats


def evaluate(race: Race, scored: Sequence[Feature], rounds: int, theirs: Ask | None = None) -> dict[str, Heat]:
    """Prediction of test rows, ours and Trainer's, by a codec that does not generate."""
    heats = {"ours": Heat(), "trainer": Heat(), DEFAULTS: Heat()}
    outputs = _take_turns(race, heats, "predict", _asking(race, scored, theirs), rounds)
    for name, heat in heats.items():
        heat.figure = mean_figure(race.codec, outputs[name])
    return heats


def generate(race: Race, scored: Sequence[Feature], rounds: int, theirs: Ask | None = None) -> dict[str, Heat]:
    """Generation for test rows, ours and plain batches."""
    heats = {"ours": Heat(), "plain generate": Heat()}
    outputs = _take_turns(race, heats, "predict", _asking(race, scored, theirs), rounds)
    for name, heat in heats.items():
        heat.figure = equal_share(outputs["ours"], outputs[name])
    return heats


def _asking(race: Race, scored: Sequence[Feature], theirs: Ask | None) -> Ask:
    """Who is asked: what is ours runs here."""
    here = partial(answer, race, scored)
    return lambda stage, name: (here if name in OF_OURS or theirs is None else theirs)(stage, name)


def _take_turns(race: Race, heats: dict[str, Heat], stage: str, asked: Ask, rounds: int) -> dict[str, Any]:
    """Every contender once a round, each round begun by another one, and then what is finer; returns what came out at last."""
    outcomes, names = {}, list(heats)
    finer = [*OF_OURS] * (FINER_TURNS - 1) if set(OF_OURS) <= set(names) else []
    for number in range(rounds):
        first, turns = number % len(names), defaultdict(list)
        for name in names[first:] + names[:first] + finer:
            race.progress.stage(f"round, {name}").at(number, rounds)
            seconds, peak, outcomes[name] = asked(stage, name)
            turns[name].append(seconds)
            heats[name].peak_gib = _higher([heats[name].peak_gib, peak])
        for name, of_turns in turns.items():
            heats[name].seconds.append(median(of_turns))
    return outcomes


def _higher(peaks: Iterable[float | None]) -> float | None:
    return max((peak for peak in peaks if peak is not None), default=None)
