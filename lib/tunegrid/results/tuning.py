"""Says what searches for a cell's learning rate and rank found. Trials go in; the best setting, edges and ratios come out.

A study is one search with its own sampler seed. Several studies of a cell have the same space and number of trials, and the
median of their best scores stands for the method, as AlgoPerf compares methods (Dahl et al. 2023). All that is chosen here is
chosen on validation rows. Test scores of seeds by which nothing was chosen say how far the recipe is from the best found: what
wins by a few seeds was lucky with them, too. Needs no torch.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any, Literal

from tunegrid.errors import InputError
from tunegrid.results.statistics import ALPHA, critical_value
from tunegrid.results.table import Column, lines, markdown, markdown_table, number
from tunegrid.results.words import count

EDGE = 0.05  # of the space in log rate at either end: a best rate in there may be a better one beyond
FINALISTS = 3  # settings that train again with fresh seeds
FRESH = 1000  # the first seed by which finalists are chosen; studies train with their own numbers, which are below
TOLD = 2000  # the first seed that tells how far the recipe is from the best found
LEAST_DEVIATION = 0.1  # points between seeds: about a row of 768; two seeds that happen to differ by none tell no more
TRIALS_A_RANK = 3  # that came to their end: the best of fewer is wherever they were drawn
Ended = Literal["complete", "pruned", "diverged"]
Rows = Literal["validation", "test"]
COLUMNS = (
    Column(title="cell", width=15),
    Column(title="score", width=9),
    Column(title="median best", right=True),
    Column(title="over studies", width=14),
    Column(title="rate", right=True),
    Column(title="rank", right=True),
    Column(title="test", width=6, right=True),
    Column(title="recipe", width=6, right=True),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a trial tries: a learning rate and the adapter's rank; no rank for a method without one."""

    rate: float
    rank: int | None = None

    def __str__(self) -> str:
        """As in "rate 0.0023, rank 8"."""
        return f"rate {self.rate:.2g}" + ("" if self.rank is None else f", rank {self.rank}")


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may be tried: rates from `low` to `high`, equally likely in their logarithm, and ranks in ascending order.

    Raises:
        InputError: where there is nothing to search in.
    """

    low: float
    high: float
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not 0 < self.low < self.high < math.inf:
            raise InputError(f"no rate lies between {self.low:g} and {self.high:g}: give two above 0, the lower one first")

    def __str__(self) -> str:
        """As in "rates 0.0001 to 0.03, ranks 4, 8"."""
        ranks = f", ranks {', '.join(map(str, self.ranks))}" if self.ranks else ""
        return f"rates {self.low:g} to {self.high:g}{ranks}"

    def edges(self, setting: Setting) -> tuple[str, ...]:
        """The ends of the space that a setting lies at."""
        place = math.log(setting.rate / self.low) / math.log(self.high / self.low)
        several = len(self.ranks) > 1
        reached = {
            "lowest rate": place < EDGE,
            "highest rate": place > 1 - EDGE,
            "lowest rank": several and setting.rank == self.ranks[0],
            "highest rank": several and setting.rank == self.ranks[-1],
        }
        return tuple(end for end, is_reached in reached.items() if is_reached)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a study.

    Attributes:
        study: its number, from 0; also the seed of its trainings.
        scores: the main score on validation rows, at each look.
        ended: at its last update; at a look, below the median of earlier trials; or by a loss that is not a number.
    """

    study: int
    setting: Setting
    scores: tuple[float, ...]
    ended: Ended

    @property
    def score(self) -> float | None:
        """At the end; None where it did not get there."""
        return self.scores[-1] if self.ended == "complete" else None


@dataclass(frozen=True, kw_only=True)
class FinalRun:
    """A training of a finalist, or of the recipe, with a fresh seed; scores are None where it diverged.

    Attributes:
        seed: from `TOLD` on, it tells how good the setting is; below, the best finalist is chosen by it.
        updates: those of every training of the cell that comes to its end.
        test: None also where it only chooses.
    """

    setting: Setting
    seed: int
    updates: int
    validation: float | None
    test: float | None


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Those that came to their end, best first. Of equal scores, the rate in the middle of them comes first."""
    complete = [trial for trial in trials if trial.score is not None]
    rates: dict[float | None, list[float]] = {}
    for trial in complete:
        rates.setdefault(trial.score, []).append(math.log(trial.setting.rate))

    def key(trial: Trial) -> tuple[float, float]:
        assert trial.score is not None, "it is complete"
        return -trial.score, abs(math.log(trial.setting.rate) - median(rates[trial.score]))

    return sorted(complete, key=key)


def best_of_studies(trials: Sequence[Trial]) -> list[Trial]:
    """The best trial of each study that has one."""
    studies = sorted({trial.study for trial in trials})
    by_study = [ranked([trial for trial in trials if trial.study == study]) for study in studies]
    return [best for best, *_ in filter(None, by_study)]


def finalists(trials: Sequence[Trial]) -> list[Setting]:
    """The best settings of all studies, each once."""
    return list(dict.fromkeys(trial.setting for trial in ranked(trials)))[:FINALISTS]


def middle(rates: Sequence[float]) -> float:
    """The median of rates in their logarithm."""
    return math.exp(median(map(math.log, rates)))


def edges(space: Space, bests: Sequence[Trial]) -> list[str]:
    """The ends of the space at which more than half of the studies have their best: one alone may be there by chance."""
    ends = [end for best in bests for end in space.edges(best.setting)]
    return [end for end in dict.fromkeys(ends) if 2 * ends.count(end) > len(bests)]


def by_rank(trials: Sequence[Trial]) -> dict[int, Trial]:
    """The best trial of each rank that has one, lowest rank first."""
    ranks = sorted({trial.setting.rank for trial in ranked(trials) if trial.setting.rank is not None})
    return {rank: ranked([trial for trial in trials if trial.setting.rank == rank])[0] for rank in ranks}


def per_study(trials: Sequence[Trial]) -> list[float]:
    """The factor by which the best rate moves when the rank doubles, of each study that has two ranks."""
    own = [by_rank([trial for trial in trials if trial.study == study]) for study in sorted({trial.study for trial in trials})]
    factors = (per_doubling({rank: trial.setting.rate for rank, trial in best.items()}) for best in own)
    return [factor for factor in factors if factor is not None]


def per_doubling(rates: Mapping[int, float]) -> float | None:
    """By what factor the best rate moves when the rank doubles, by least squares in logarithms; None for one rank."""
    if len(rates) < 2:
        return None
    doublings = [math.log2(rank) for rank in rates]
    logs = [math.log(rate) for rate in rates.values()]
    centre, height = fmean(doublings), fmean(logs)
    slope = sum((x - centre) * (y - height) for x, y in zip(doublings, logs, strict=True))
    return math.exp(slope / sum((x - centre) ** 2 for x in doublings))


@dataclass(frozen=True, kw_only=True)
class Distance:
    """By how many points the best found is above the recipe, over further seeds that both have.

    Attributes:
        low, high: of the 95 % interval over seeds (paired t-test); None for one seed.
    """

    points: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """As in "+1.26 (-0.12 to +2.64)"."""
        return f"{self.points:+.2f}" + ("" if self.low is None else f" ({self.low:+.2f} to {self.high:+.2f})")

    def verdict(self, within: float) -> Literal["within", "beyond", "cannot tell"]:
        """Whether the recipe is within so many points of the best found: where the whole interval is, or is beyond."""
        if self.low is None or self.high is None:
            return "cannot tell"
        return "within" if self.high <= within else "beyond" if self.low > within else "cannot tell"


def distance(best: Sequence[float], recipe: Sequence[float]) -> Distance:
    """The distance of scores, seed by seed."""
    falls = [ours - theirs for ours, theirs in zip(best, recipe, strict=True)]
    if len(falls) < 2:
        return Distance(points=fmean(falls), low=None, high=None)
    reach = critical_value(ALPHA / 2, len(falls) - 1) * max(stdev(falls), LEAST_DEVIATION) / math.sqrt(len(falls))
    return Distance(points=fmean(falls), low=fmean(falls) - reach, high=fmean(falls) + reach)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What the studies of a cell found.

    Attributes:
        score: the main score.
        recipe: what the cell's recipe has.
        within: points that the recipe may be below the best found.
    """

    cell: str
    score: str
    space: Space
    recipe: Setting
    within: float
    trials: Sequence[Trial]
    finals: Sequence[FinalRun]

    @property
    def bests(self) -> list[Trial]:
        """The best trial of each study."""
        return best_of_studies(self.trials)

    @property
    def best_scores(self) -> list[float]:
        """Of the studies, on validation rows; methods are compared by their median."""
        return [best.score for best in self.bests if best.score is not None]

    @property
    def best_rates(self) -> list[float]:
        """Of the studies."""
        return [best.setting.rate for best in self.bests]

    @property
    def winner(self) -> Setting | None:
        """The finalist with the best mean on validation rows over fresh seeds; None where each of them diverged somewhere."""
        means = {setting: _mean(self._scores(setting, "validation", "choose")) for setting in finalists(self.trials)}
        sound = {setting: mean for setting, mean in means.items() if mean is not None}
        return max(sound, key=lambda setting: sound[setting]) if sound else None

    @property
    def edges(self) -> list[str]:
        """The ends of the space at which the optimum lies."""
        return edges(self.space, self.bests)

    @property
    def outermost(self) -> Literal["lowest", "highest"] | None:
        """Whether the best found has the lowest or the highest rate that any study tried: a better one may lie beyond."""
        rates = sorted({trial.setting.rate for trial in self.trials})
        places: dict[float, Literal["lowest", "highest"]] = {rates[-1]: "highest", rates[0]: "lowest"}
        return places.get(self.winner.rate) if self.winner else None

    @property
    def distance(self) -> Distance | None:
        """How far the recipe is below the best found on test rows; None where one of them diverged."""
        return self._distance("test")

    @property
    def validation_distance(self) -> Distance | None:
        """The same on validation rows, by which the best was found: a recipe that was tuned by test rows is nearer on these."""
        return self._distance("validation")

    def _distance(self, rows: Rows) -> Distance | None:
        both = [self._scores(setting, rows, "tell") for setting in (self.winner, self.recipe)]
        return distance(*both) if all(both) else None

    @property
    def misses(self) -> bool:
        """Whether the recipe is further from the best found than it may be, beyond the noise of seeds; or diverges."""
        if self.distance is None:
            return self.winner is None or self._diverged(self.recipe) > self._diverged(self.winner)
        return self.distance.verdict(self.within) == "beyond"

    def tests(self, setting: Setting | None) -> list[float]:
        """Test scores of a setting, by seed; empty where one of its trainings diverged."""
        return self._scores(setting, "test", "tell")

    def _diverged(self, setting: Setting | None) -> int:
        """With how many further seeds a setting diverged."""
        return sum(run.setting == setting and run.seed >= TOLD and run.test is None for run in self.finals)

    def _scores(self, setting: Setting | None, rows: Rows, seeds: Literal["choose", "tell"]) -> list[float]:
        own = (run for run in self.finals if run.setting == setting and (run.seed >= TOLD) == (seeds == "tell"))
        runs = sorted(own, key=lambda run: run.seed)
        scores = [run.validation if rows == "validation" else run.test for run in runs]
        known = [score for score in scores if score is not None]
        return known if len(known) == len(scores) else []

    @property
    def row(self) -> tuple[str, ...]:
        """Of the table."""
        scores, winner = self.best_scores, self.winner
        over = f"{min(scores):.2f} to {max(scores):.2f}" if len(scores) > 1 else "-"
        middle = f"{median(scores):.2f}" if scores else "-"
        rate, rank = ("-", "-") if winner is None else (f"{winner.rate:.2g}", "-" if winner.rank is None else str(winner.rank))
        tests = [number(_mean(self.tests(setting)), 2) for setting in (winner, self.recipe)]
        return self.cell, self.score, middle, over, rate, rank, *tests

    @property
    def sentences(self) -> list[str]:
        """What the studies say."""
        return [f"{self.cell}: {sentence}" for sentence in (self._of_recipe, self._of_edges, self._of_ranks) if sentence]

    @property
    def _of_recipe(self) -> str:
        gap, within = self.distance, f"{self.within:g} point{'' if self.within == 1 else 's'}"
        if not ranked(self.trials):
            return "every trial diverged; give lower --rates"
        if gap is None:
            who = f"the recipe ({self.recipe})" if self._diverged(self.recipe) else "the best found"
            return f"with a further seed {who} diverged, so the two are not compared"
        best, own = (fmean(self.tests(setting)) for setting in (self.winner, self.recipe))
        told = f"the best found ({self.winner}) scores {best:.2f}, the recipe ({self.recipe}) {own:.2f}"
        how = f"{self.finals[0].updates} updates each, further seeds: {len(self.tests(self.recipe))}"
        told = f"{told}: {gap} on test rows, {self.validation_distance} on validation rows"
        if gap.low is None:
            return f"{told} ({how}); one seed does not tell whether the recipe is within {within}"
        ways = {
            "within": f"the recipe is within {within}",
            "beyond": f"the recipe is not within {within}",
            "cannot tell": f"whether the recipe is within {within} cannot be told",
        }
        return f"{told} ({how}); {ways[gap.verdict(self.within)]}"

    @property
    def _of_edges(self) -> str:
        if not self.edges and self.outermost:
            beyond = "lower" if self.outermost == "lowest" else "higher"
            return f"the best found has the {self.outermost} rate tried: with more --trials a {beyond} one may be better"
        if not self.edges:
            return "the optimum is not on the edge of the space"
        options = dict.fromkeys("--rates" if end.endswith("rate") else "--adapter-ranks" for end in self.edges)
        return f"the optimum is on the edge of the space ({', '.join(self.edges)}): widen it with {' and '.join(options)}"

    @property
    def _of_ranks(self) -> str:
        rates = {rank: trial.setting.rate for rank, trial in by_rank(self.trials).items()}
        factor = per_doubling(rates)
        if factor is None:
            return ""
        told = ", ".join(f"{rate:.2g} at rank {rank}" for rank, rate in rates.items())
        fewest = min(sum(trial.setting.rank == rank for trial in ranked(self.trials)) for rank in rates)
        if fewest < TRIALS_A_RANK:
            few = f"{count(fewest, 'trial')} of a rank"
            return f"the best rate is {told}; whether it moves with the rank cannot be told by {few}"
        each = sorted(per_study(self.trials))
        reach = f"{each[0]:.2f} to {each[-1]:.2f} by study" if len(each) > 1 else "one study"
        if len(each) < 2 or each[0] <= 1 <= each[-1]:
            return f"the best rate is {told}; whether it moves with the rank cannot be told (a factor of {factor:.2f}, {reach})"
        return f"the best rate is {told}: it moves by a factor of {factor:.2f} when the rank doubles ({reach})"

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        best = {
            "best_scores": self.best_scores,
            "best_rates": self.best_rates,
            "edges": self.edges,
            "outermost": self.outermost,
        }
        distances = {"distance": self.distance, "validation_distance": self.validation_distance}
        found = {"winner": self.winner and asdict(self.winner)}
        return asdict(self) | best | found | {name: one and asdict(one) for name, one in distances.items()}


def _mean(scores: Sequence[float]) -> float | None:
    return fmean(scores) if scores else None


@dataclass(frozen=True, kw_only=True)
class RateRatio:
    """The best rate of a method over that of full fine-tuning, on one backbone and task.

    Attributes:
        low, high: over pairs of studies, the least and the largest.
    """

    group: str
    method: str
    reference: str
    ratio: float
    low: float
    high: float

    @property
    def sentence(self) -> str:
        """In words."""
        over = f"{self.low:.2g} to {self.high:.2g} over pairs of studies"
        return f"{self.group}: rate({self.method}) / rate({self.reference}) is {self.ratio:.2g} ({over})"


def rate_ratios(tuned: Sequence[Tuned], reference: str) -> list[RateRatio]:
    """The ratios of all methods to the reference, where both were tuned on one backbone and task."""
    rates: dict[str, dict[str, list[float]]] = {}
    for one in tuned:
        group, method = one.cell.rsplit("_", 1)
        rates.setdefault(group, {})[method] = one.best_rates
    return [
        RateRatio(
            group=group,
            method=method,
            reference=reference,
            ratio=middle(own) / middle(full),
            low=min(own) / max(full),
            high=max(own) / min(full),
        )
        for group, methods in rates.items()
        for method, own in methods.items()
        if method != reference and (full := methods.get(reference))
    ]


def as_text(tuned: Sequence[Tuned], ratios: Sequence[RateRatio]) -> str:
    """A table of the cells, and what is to be said of each."""
    return "\n".join([*lines(COLUMNS, [one.row for one in tuned]), *_sentences(tuned, ratios)])


def as_markdown(tuned: Sequence[Tuned], ratios: Sequence[RateRatio]) -> str:
    """The same as Markdown."""
    table = markdown_table(COLUMNS, [one.row for one in tuned])
    return "\n".join([*table, "", *[f"* {markdown(sentence)}" for sentence in _sentences(tuned, ratios)]])


def _sentences(tuned: Sequence[Tuned], ratios: Sequence[RateRatio]) -> list[str]:
    told = [sentence for one in tuned for sentence in one.sentences]
    return [*told, *[ratio.sentence for ratio in ratios], *_of_all(tuned)]


def _of_all(tuned: Sequence[Tuned]) -> list[str]:
    """What the distances of several cells are on average, and how many recipes are within the points."""
    on_test = [(own, one.within) for one in tuned if (own := one.distance)]
    on_validation = [(own, one.within) for one in tuned if (own := one.validation_distance)]
    if len(on_test) < 2:
        return []
    told = f"on test rows {_summed_up(on_test)}; on validation rows {_summed_up(on_validation)}"
    left_out = f"; {len(tuned) - len(on_test)} not compared" if len(on_test) < len(tuned) else ""
    return [f"{len(on_test)} cells, the best found less the recipe: {told}{left_out}"]


def _summed_up(distances: Sequence[tuple[Distance, float]]) -> str:
    """As in "-0.28 on average, 23 within, 4 cannot tell"."""
    verdicts = Counter(one.verdict(within) for one, within in distances)
    counts = (f"{number} {verdict}" for verdict, number in verdicts.most_common())
    return f"{fmean(one.points for one, _ in distances):+.2f} on average, {', '.join(counts)}"


FORMATS: dict[str, Callable[[Sequence[Tuned], Sequence[RateRatio]], str]] = {"text": as_text, "markdown": as_markdown}
