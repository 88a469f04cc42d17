"""How often is `tunegrid speed` wrong, and what does it see? `python -m tunegrid.lab pairs` simulates it and prints the shares.

A simulated comparison draws what each side of a round measures, as if one came behind the other, which is harder than the
command's own updates in turn: noise of each side, a drift of the machine, and spells of several rounds' sides in which it is
slower. The command's own rule judges the pairs, and stops each cell when it is told. It trains nothing.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.lab.measured import note
from tunegrid.results.judgements import Verdict
from tunegrid.results.pairs import Change, Rule, judged, over_all
from tunegrid.results.statistics import Array
from tunegrid.results.table import Column, lines
from tunegrid.terminal import say

CELLS = (1, 9)
EFFECTS = (
    0.05,
    0.1,
    0.2,
)  # how much slower one cell became; the first is the margin, which is no worse
DRIFT = 0.3  # from the first turn to the last
SPELL_TURNS = 3.0  # how long a spell lasts on average
COLUMNS = (
    Column(title="cells"),
    Column(title="noise", gap=2),
    Column(title="equal: worse", right=True, gap=2),
    Column(title="same", right=True, gap=2),
    Column(title="rounds", right=True, gap=2),
    *(Column(title=f"{effect:.0%} slower: worse", right=True, gap=2) for effect in EFFECTS),
    Column(title="10% slower: rounds", right=True, gap=2),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where turns are taken.

    Attributes:
        noise: standard deviation of a turn's log seconds.
        spells: the share of turns that fall into one; each slows its turns by up to `height` (of log seconds).
        drift: of log seconds, from the first turn to the last, up or down.
        uneven: how far cells differ in their noise, as the standard deviation of its log.
    """

    noise: float
    spells: float = 0.0
    height: float = 0.5
    drift: float = DRIFT
    uneven: float = 0.0

    def seconds(self, turns: int, rng: np.random.Generator) -> Array:
        """What is common to turns in their order, in log seconds: drift and spells."""
        drift = rng.uniform(-self.drift, self.drift) * np.linspace(0, 1, turns)
        common: Array = drift + rng.uniform(0, self.height, turns) * self._in_spells(turns, rng)
        return common

    def _in_spells(self, turns: int, rng: np.random.Generator) -> Array:
        """1 for each turn in a spell; spells begin by chance and last `SPELL_TURNS` on average."""
        begins, ends = self.spells / (1 - self.spells) / SPELL_TURNS, 1 / SPELL_TURNS
        states = np.zeros(turns)
        inside = rng.random() < self.spells
        for turn, chance in enumerate(rng.random(turns)):
            states[turn] = inside
            inside = chance > ends if inside else chance < begins
        return states


MACHINES = {
    "0.5 %": Machine(noise=0.005),
    "1 %": Machine(noise=0.01),
    "2 %": Machine(noise=0.02),
    "3 %": Machine(noise=0.03),
    "5 %": Machine(noise=0.05),
    "10 %": Machine(noise=0.1),
    "30 %": Machine(noise=0.3),
    "1 %, and spells": Machine(noise=0.01, spells=0.1),
    "2 %, and spells": Machine(noise=0.02, spells=0.1),
    "30 %, and spells": Machine(noise=0.3, spells=0.1),
    "30 %, by cell 10 to 90 %": Machine(noise=0.3, uneven=math.log(3)),
}


@dataclass(frozen=True, kw_only=True)
class Told:
    """What simulated comparisons say of one cell that became slower by some share, and of all others, which are equal.

    Attributes:
        worse, same: the share in which the slower cell is called so.
        alarms: the share in which an equal cell is called worse, or all cells together where none became slower.
        rounds: that the slower cell took, on average.
    """

    worse: float
    same: float
    alarms: float
    rounds: float


def log_ratios(machine: Machine, cells: int, effects: Sequence[float], rule: Rule, rng: np.random.Generator) -> Array:
    """After over before, (cells, rounds); turns are taken round by round, cell by cell, A B and then B A."""
    turns = machine.seconds(2 * cells * rule.rounds, rng).reshape(rule.rounds, cells, 2)
    own = machine.noise * np.exp(rng.normal(0, machine.uneven, cells))
    turns = turns + rng.normal(size=turns.shape) * own[:, None]
    later = turns[:, :, 1] - turns[:, :, 0]
    later[1::2] *= -1
    ratios: Array = later.T + np.log1p(np.asarray(effects))[:, None]
    return ratios


def compared(machine: Machine, cells: int, effect: float, rule: Rule, rng: np.random.Generator) -> dict[str, Change]:
    """One comparison, in which cell "0" is slower by `effect`; and all cells together where there are several."""
    effects = [effect] + [0.0] * (cells - 1)
    ratios = log_ratios(machine, cells, effects, rule, rng)
    changes = judged({str(cell): list(own) for cell, own in enumerate(ratios)}, rule)
    together = over_all(changes, rule, cells)
    return changes | ({"all": together} if together else {})


def told(machine: Machine, cells: int, effect: float, rule: Rule, runs: int, seed: int = 0) -> Told:
    """What so many comparisons say."""
    rng = np.random.default_rng(seed)
    comparisons = [compared(machine, cells, effect, rule, rng) for _ in range(runs)]
    verdicts = [changes["0"].verdict for changes in comparisons]
    worse = [{cell for cell, change in changes.items() if change.verdict is Verdict.WORSE} for changes in comparisons]
    slower = {"0", "all"} if effect else set()
    return Told(
        worse=verdicts.count(Verdict.WORSE) / runs,
        same=verdicts.count(Verdict.SAME) / runs,
        alarms=sum(bool(called - slower) for called in worse) / runs,
        rounds=fmean(changes["0"].rounds for changes in comparisons),
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab pairs", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="simulated comparisons a line (default 1000)")
    parser.add_argument("--rounds", type=int, default=Rule.rounds, metavar="N", help=f"at most (default {Rule.rounds})")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="also note the figures in this file")
    options = parser.parse_args(arguments)
    try:
        rule = Rule(rounds=options.rounds)
    except InputError as error:
        refuse(parser, error)
    rows: list[list[str]] = []
    figures: dict[str, dict[str, float]] = {}
    for cells in CELLS:
        for noise, machine in MACHINES.items():
            equal = told(machine, cells, 0.0, rule, options.runs)
            slower = {effect: told(machine, cells, effect, rule, options.runs) for effect in EFFECTS}
            rows.append(row(cells, noise, equal, slower))
            figures[f"{noise}, {cells} cell{'s' if cells > 1 else ''}"] = noted(equal, slower)
    say("\n".join(lines(COLUMNS, rows)))
    note(options.measured, "pairs", {"runs": options.runs, "rounds": rule.rounds, **figures})
    return 0


def row(cells: int, noise: str, equal: Told, slower: Mapping[float, Told]) -> list[str]:
    """A line of the table."""
    shares = [f"{share:.1%}" for share in (equal.alarms, equal.same)]
    seen = [f"{own.worse:.1%}" for own in slower.values()]
    return [str(cells), noise, *shares, f"{equal.rounds:.1f}", *seen, f"{slower[0.1].rounds:.1f}"]


def noted(equal: Told, slower: Mapping[float, Told]) -> dict[str, float]:
    """The same figures for the file, in percent."""
    seen = {f"{effect:.0%} slower": _percent(own.worse) for effect, own in slower.items()}
    rounds = {"rounds, 10% slower": round(slower[0.1].rounds, 1)}
    return {"equal": _percent(equal.alarms), "same": _percent(equal.same), **seen, **rounds}


def _percent(share: float) -> float:
    return round(100 * share, 1)
