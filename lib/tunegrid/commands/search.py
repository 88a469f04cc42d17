"""Asks Optuna for the next setting of a study, and which trial to give up. Nothing else here imports Optuna.

Optuna keeps nothing: each time it is told the trials so far, and its sampler starts from a seed of the study and the trial. So
a study that was stopped goes on with the very trials that it would have had. The first ten settings are spread evenly over the
space, and their rates are the same for every cell; then a tree-structured Parzen estimator (Bergstra et al. 2011) proposes
them. A trial is given up where its best score so far is below the median of the earlier trials that came to their end, once
there are five.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tunegrid.errors import InputError
from tunegrid.results.tuning import Setting, Space, Trial

SPREAD = 10  # settings, before scores say where to look
STEPS = (0.7548776662, 0.5698402910)  # of the R2 sequence (Roberts 2018): 1 / g and 1 / g**2 with g**3 = g + 1
FIRST_LOOK = 2  # at which a trial may be given up: after a quarter of the updates, scores say little of the end
SEEDS_APART = 100_000  # trials that a study may have until its seeds are the next one's
RATE, RANK = "rate", "rank"  # Optuna's parameters; a rank is its place in the list, so that neighbours are near


def check_optuna() -> None:
    """Raises InputError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401 # the question is whether it is there
    except ImportError:
        raise InputError("tunegrid tune needs Optuna, which is not installed here: pip install -e '.[tune]'") from None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A setting to try, and Optuna's trial of it."""

    setting: Setting
    trial: Any

    def is_hopeless(self, look: int, score: float) -> bool:
        """Whether a trial with this score at this look is to be given up."""
        self.trial.report(score, look)
        return bool(self.trial.should_prune())


def spread(space: Space, study: int, number: int) -> Setting:
    """The setting of a number in a sequence that fills the space evenly; each study begins elsewhere."""
    random = Random(study)
    along_rates, along_ranks = ((random.random() + number * step) % 1 for step in STEPS)
    rank = space.ranks[int(along_ranks * len(space.ranks))] if space.ranks else None
    return Setting(rate=space.low * (space.high / space.low) ** along_rates, rank=rank)


def propose(space: Space, earlier: Sequence[Trial], study: int) -> Proposal:
    """The next setting of a study, after its earlier trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=study * SEEDS_APART + len(earlier))
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=FIRST_LOOK)
    known = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    parameters: dict[str, Any] = {RATE: optuna.distributions.FloatDistribution(space.low, space.high, log=True)}
    if space.ranks:
        parameters[RANK] = optuna.distributions.IntDistribution(0, len(space.ranks) - 1)
    known.add_trials([_told(trial, space, parameters) for trial in earlier])
    if len(earlier) < SPREAD:
        known.enqueue_trial(_values(spread(space, study, len(earlier)), space))
    trial = known.ask(parameters)
    rank = space.ranks[trial.params[RANK]] if space.ranks else None
    return Proposal(setting=Setting(rate=trial.params[RATE], rank=rank), trial=trial)


def _values(setting: Setting, space: Space) -> dict[str, Any]:
    """A setting as Optuna has it."""
    return {RATE: setting.rate} | ({} if setting.rank is None else {RANK: space.ranks.index(setting.rank)})


def _told(trial: Trial, space: Space, parameters: dict[str, Any]) -> Any:
    """An earlier trial as Optuna has it: one that diverged was given up without a score, which is worse than any."""
    import optuna

    pruned, complete = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=pruned if trial.score is None else complete,
        value=trial.score,
        params=_values(trial.setting, space),
        distributions=parameters,
        intermediate_values={} if trial.ended == "diverged" else dict(enumerate(trial.scores, 1)),
    )
