"""The audit of the libraries: whether anything of ours stands in their place."""

from collections.abc import Sequence

from tunegrid.grid.methods import Answer
from tunegrid.run.audits.evidence import Evidence
from tunegrid.run.untouched import Replaced


def libraries_untouched(evidence: Evidence) -> Answer:
    """No function, class attribute or operator of a library is ours, but for those with a reason; a user's are shown.

    Of first updates nobody looks: it would take them a tenth of their time.
    """
    if evidence.trainer.paused:
        return None
    replaced = evidence.replaced
    wrong = [one for one in replaced if one.ours and one.reason is None]
    users = [one for one in replaced if not one.ours]
    if wrong:
        return False, f"{len(wrong)} replaced: {_listed(wrong)}"
    shown = f"; not ours: {_listed(users)}" if users else ""
    return True, f"nothing is replaced, {len(replaced) - len(users)} changes have a reason{shown}"


def _listed(replaced: Sequence[Replaced], most: int = 3) -> str:
    more = [f"{len(replaced) - most} more"] if len(replaced) > most else []
    return ", ".join([*(f"{one.what} by {one.by}" for one in replaced[:most]), *more])
