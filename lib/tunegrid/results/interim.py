"""The gate's interim looks: which cells to train with more seeds, and the alpha of each look.

Looking again after every seed would multiply the chances of a false alarm. So each look is judged at its share of alpha.
"""

from collections.abc import Sequence

from scipy import special

from tunegrid.errors import InputError
from tunegrid.results.judgements import Judgement, Verdict


def share_of_alpha(look: int, looks: int) -> float:
    """The share of alpha that look `look` of at most `looks` gets: all looks get the same (Bonferroni over looks).

    A cell is judged at no more than `looks` numbers of seeds. With equal shares, the chance that it is ever called falsely
    stays below alpha, whoever chooses which cells get another seed, and when to stop. Shares that grow from look to look, as
    O'Brien and Fleming's, hold only where every cell gets its seeds on a fixed schedule.

    Raises:
        InputError: where there is no such look.
    """
    if not 1 <= look <= looks:
        raise InputError(f"look {look} of {looks} does not exist; count looks from 1")
    return 1 / looks


def promising(judged: Sequence[Judgement]) -> list[str]:
    """Cells whose main score cannot be told, in the order of which most likely can with another seed."""
    chances = {j.cell: chance_to_decide(j) for j in judged if j.quantity == j.main_score and j.verdict is Verdict.CANNOT_TELL}
    return sorted(chances, key=lambda cell: -chances[cell])


def chance_to_decide(judgement: Judgement) -> float:
    """The chance that one more seed makes it *same* or *worse*; 0 where seeds are not what is lacking.

    The mean of n + 1 differences, n of them known, deviates from the mean of n by error / sqrt(n + 1); the standard error
    shrinks by sqrt(n / (n + 1)).
    """
    effect, error, margin = judgement.effect, judgement.error, judgement.margin
    if effect is None or margin is None or not error or judgement.low is None or judgement.critical is None:
        return 0.0
    seeds = judgement.seeds
    shrink, spread = (seeds / (seeds + 1)) ** 0.5, error / (seeds + 1) ** 0.5
    same = (effect + margin - (effect - judgement.low) * shrink) / spread
    worse = (-effect - max(margin, judgement.critical * error * shrink)) / spread
    return float(special.ndtr(same) + special.ndtr(worse))
