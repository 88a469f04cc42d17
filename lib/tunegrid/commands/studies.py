"""The studies of a cell: trials that are missing are made, and each is written down when it ends.

Who stops a command loses the trial that runs, and the same command goes on with the trials that it would have had. What trains
is given: a function from a setting and a seed to scores.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from time import monotonic

from tunegrid.commands.search import Proposal, propose
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.results.tuning import FINALISTS, FRESH, TOLD, Ended, FinalRun, Setting, Space, Trial, Tuned, finalists, ranked
from tunegrid.terminal import say

LOOKS = 4  # at a model, of a training: after each quarter
Train = Callable[[Setting, int], Iterator[float]]  # a setting and a seed -> scores of validation rows, at each look


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is asked for.

    Attributes:
        trials: of each study.
        seeds: by which the best finalist is chosen.
        further: how many seeds tell how far the recipe is from it: of all cells, and of a cell that these cannot tell.
        within: points that the recipe may be below the best found.
    """

    trials: int
    studies: int
    seeds: int
    further: tuple[int, int]
    within: float

    @property
    def choosing(self) -> range:
        """The seeds that choose a finalist."""
        return range(FRESH, FRESH + self.seeds)

    @property
    def telling(self) -> tuple[range, range]:
        """The seeds that tell: those of all cells, and all those of a cell that these cannot tell."""
        first, most = self.further
        return range(TOLD, TOLD + first), range(TOLD, TOLD + most)

    @property
    def finals(self) -> int:
        """How many trainings of a cell come after its studies, at most."""
        return FINALISTS * len(self.choosing) + 2 * len(self.telling[1])


@dataclass(kw_only=True)
class Kept:
    """The trials and final trainings of a cell, each written down when it ends."""

    path: Path
    trials: list[Trial] = field(default_factory=list)
    finals: list[FinalRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read what an earlier command left."""
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            setting = Setting(**entry.pop("setting"))
            if "ended" in entry:
                self.trials.append(Trial(**entry | {"setting": setting, "scores": tuple(entry["scores"])}))
            else:
                self.finals.append(FinalRun(**entry, setting=setting))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # a line that was cut off

    def add(self, entry: Trial | FinalRun) -> None:
        """Write it down, on a line of its own, also after half a line that a kill left.

        Raises:
            InputError: where the disk has no room.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(asdict(entry))}")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror or error}); give another --state") from None
        if isinstance(entry, Trial):
            self.trials.append(entry)
        else:
            self.finals.append(entry)


@dataclass(kw_only=True)
class Pace:
    """How many trainings are left, and how long that takes at the speed so far."""

    left: int
    made: int = 0
    began: float = field(default_factory=monotonic)

    def one_more(self) -> str:
        """Count a training that ended; say how long the others take at most: some are given up."""
        self.left, self.made = self.left - 1, self.made + 1
        return f"about {self.left * (monotonic() - self.began) / self.made / 60:.0f} min left"


@dataclass(frozen=True, kw_only=True)
class CellStudies:
    """The studies of one cell, and the final trainings after them. It trains nothing itself.

    Attributes:
        recipe: the setting of the cell's recipe.
        kept: what is known by now.
    """

    cell: Cell
    recipe: Setting
    space: Space
    plan: Plan
    kept: Kept

    def of_study(self, study: int) -> list[Trial]:
        """The trials of a study, as many as are asked for."""
        return [trial for trial in self.kept.trials if trial.study == study][: self.plan.trials]

    @property
    def trials(self) -> list[Trial]:
        """Those of all studies."""
        return [trial for study in range(self.plan.studies) for trial in self.of_study(study)]

    @property
    def trials_left(self) -> int:
        """How many are missing."""
        return self.plan.studies * self.plan.trials - len(self.trials)

    def search(self, train: Train, pace: Pace) -> None:
        """Make the trials that are missing, study by study; `train` scores validation rows."""
        for study in range(self.plan.studies):
            while len(earlier := self.of_study(study)) < self.plan.trials:
                trial = tried(propose(self.space, earlier, study), study, train)
                self.kept.add(trial)
                best = ranked(self.of_study(study))[:1]
                so_far = f"best so far {best[0].score:.2f}" if best else "no score so far"
                where = f"study {study + 1} of {self.plan.studies}, trial {len(earlier) + 1} of {self.plan.trials}"
                say(f"{self.cell.id}  {where}: {trial.setting}: {ending(trial)} ({so_far}); {pace.one_more()}")

    def finals_left(self) -> list[tuple[Setting, int]]:
        """The next final trainings: those of the best settings, then, with other seeds, of the best of these and the recipe."""
        first, most = self.plan.telling
        return self._unchosen or self._missing(first) or (self._missing(most) if self._doubtful else [])

    @property
    def most_finals_left(self) -> int:
        """How many final trainings are missing after all trials, at most."""
        if not self.finals_left():
            return 0
        most = self.plan.telling[1]
        return len(self._unchosen) + (2 * len(most) if self._unchosen else len(self._missing(most)))

    @property
    def _unchosen(self) -> list[tuple[Setting, int]]:
        """The trainings that are missing to choose among the best settings; none where every trial diverged."""
        return self._new(product(finalists(self.trials), self.plan.choosing))

    def _missing(self, seeds: range) -> list[tuple[Setting, int]]:
        """The trainings of the best found and the recipe that are missing with these seeds."""
        winner = self._tuned_with(seeds).winner
        return self._new(product(dict.fromkeys([winner, self.recipe]), seeds)) if winner else []

    def _new(self, wanted: Iterable[tuple[Setting, int]]) -> list[tuple[Setting, int]]:
        known = {(run.setting, run.seed) for run in self.kept.finals}
        return [pair for pair in wanted if pair not in known]

    @property
    def _doubtful(self) -> bool:
        """Whether the first seeds cannot tell whether the recipe is within the points."""
        first, _ = self.plan.telling
        gap = None if self._missing(first) else self._tuned_with(first).distance
        return gap is not None and gap.verdict(self.plan.within) == "cannot tell"

    def finish(self, final: Callable[[Setting, int], FinalRun], pace: Pace) -> None:
        """Make the final trainings that are missing; `final` scores test rows where the seed tells."""
        while left := self.finals_left():
            for setting, seed in left:
                run = final(setting, seed)
                self.kept.add(run)
                kind = "fresh" if seed in self.plan.choosing else "further"
                say(f"{self.cell.id}  {kind} seed {seed}: {setting}: {final_scores(run)}; {pace.one_more()}")

    def tuned(self) -> Tuned:
        """What was found."""
        first, most = self.plan.telling
        return self._tuned_with(most if self._doubtful else first)

    def _tuned_with(self, telling: range) -> Tuned:
        best = finalists(self.trials)
        return Tuned(
            cell=self.cell.id,
            score=self.cell.task.main_score,
            space=self.space,
            recipe=self.recipe,
            within=self.plan.within,
            trials=self.trials,
            finals=[
                run
                for run in self.kept.finals
                if run.seed in telling or (run.seed in self.plan.choosing and run.setting in best)
            ],
        )


def tried(proposal: Proposal, study: int, train: Train) -> Trial:
    """Train a setting until its end, or until Optuna gives it up."""
    scores: list[float] = []
    for score in train(proposal.setting, study):
        scores.append(score)
        if len(scores) < LOOKS and proposal.is_hopeless(len(scores), score):
            return Trial(study=study, setting=proposal.setting, scores=tuple(scores), ended="pruned")
    ended: Ended = "complete" if len(scores) == LOOKS else "diverged"
    return Trial(study=study, setting=proposal.setting, scores=tuple(scores), ended=ended)


def ending(trial: Trial) -> str:
    """How a trial ended, in words."""
    words = {"complete": "{:.2f}", "pruned": "given up at {:.2f}, below the median", "diverged": "diverged"}
    return words[trial.ended].format(*trial.scores[-1:])


def final_scores(run: FinalRun) -> str:
    """The score of a final training, in words."""
    if run.validation is None:
        return "diverged"
    return f"{run.validation:.2f} on validation rows" if run.test is None else f"{run.test:.2f} on test rows"
