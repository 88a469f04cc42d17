"""Rounds of a race. In: a race, test rows, a number of rounds. Out: by contender, seconds of each round and what it came to.

Contenders take turns, A B C B C A: what slows the machine for a while slows all of them. Before the first round each trains a
few updates without dropout, which warms it up and shows whether all compute the same.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.codecs.base import Feature
from lib.run.peers import WARMUP_UPDATES, Race, shortened, without_dropout
from lib.run.peers_predict import equal_share, mean_figure, timed_generate, timed_ours, timed_trainer
from lib.run.peers_train import DEFAULTS, contenders, raced

PARITY_UPDATES = 3
Run = Callable[[], tuple[float, float | None, Any]]  # seconds, peak in GiB, what came out


@dataclass(kw_only=True)
class Heat:
    """One contender's rounds in one stage.

    Attributes:
        samples: rows that a round takes, where it takes fewer than others do.
        peak_gib: the highest of all rounds; None on a CPU.
        figure: the last loss without dropout; of an evaluation the mean loss or score; the share of texts equal to ours.
    """

    samples: int | None = None
    seconds: list[float] = field(default_factory=list)
    peak_gib: float | None = None
    figure: float | None = None


def train(race: Race, rounds: int) -> dict[str, Heat]:
    """Training by every contender of the cell."""
    names = contenders(race.cell)
    short, shortest = shortened(race, PARITY_UPDATES), shortened(race, WARMUP_UPDATES + 1)
    heats = {}
    with without_dropout(race.model):
        for name in names:
            race.progress.stage(f"parity, {name}").at(0, rounds)
            heats[name] = Heat(figure=raced(short, name).losses[-1])
    if DEFAULTS in heats:  # its rows are all of one length, and so its updates: one tells as much as many
        heats[DEFAULTS].samples = len(shortest.features) // (WARMUP_UPDATES + 1)

    def run_of(name: str) -> Run:
        def run() -> tuple[float, float | None, Any]:
            lapse = raced(shortest if name == DEFAULTS else race, name)
            return lapse.seconds, lapse.peak_gib, None

        return run

    _take_turns(race, heats, {name: run_of(name) for name in names}, rounds)
    race.restore(ours=True)
    return heats


def evaluate(race: Race, features: Sequence[Feature], rounds: int) -> dict[str, Heat]:
    """Prediction of test rows, ours and Trainer's, by a codec that does not generate."""
    heats = {"ours": Heat(), "trainer": Heat()}
    runs: dict[str, Run] = {
        "ours": lambda: timed_ours(race, features),
        "trainer": lambda: timed_trainer(race, features),
    }
    outputs = _take_turns(race, heats, runs, rounds)
    for name, heat in heats.items():
        heat.figure = mean_figure(race.codec, outputs[name])
    return heats


def generate(race: Race, features: Sequence[Feature], rounds: int) -> dict[str, Heat]:
    """Generation for test rows, ours and plain batches."""
    heats = {"ours": Heat(), "plain generate": Heat()}
    runs: dict[str, Run] = {
        "ours": lambda: timed_ours(race, features),
        "plain generate": lambda: timed_generate(race, features),
    }
    outputs = _take_turns(race, heats, runs, rounds)
    for name, heat in heats.items():
        heat.figure = equal_share(outputs["ours"], outputs[name])
    return heats


def _take_turns(race: Race, heats: dict[str, Heat], runs: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Every contender once a round, each round begun by another one; returns what came out at last."""
    outcomes, names = {}, list(runs)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            race.progress.stage(f"round, {name}").at(number, rounds)
            seconds, peak, outcomes[name] = runs[name]()
            heats[name].seconds.append(seconds)
            heats[name].peak_gib = _higher([heats[name].peak_gib, peak])
    return outcomes


def _higher(peaks: Iterable[float | None]) -> float | None:
    return max((peak for peak in peaks if peak is not None), default=None)
