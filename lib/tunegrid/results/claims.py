"""Sets the study's claims beside runs: each holds, does not hold, or cannot be told.

A claim is about pairs of cells: the first one's score minus the second one's lies above 0 ("better"), or within the gate's
margin ("close"). A pair speaks for or against the claim where that is significant among all pairs of the claim (Holm, 5 %). The
claim holds where all its pairs speak for it, and does not where one speaks against it. The study published one score a cell and
no seeds, so that its own figures prove no claim; they stand beside the runs'. Needs no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from tunegrid import ROOT
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.methods import SFT
from tunegrid.record import Record
from tunegrid.record.invariants import impossible
from tunegrid.results.compare import Chance, Entry, Gap
from tunegrid.results.files import read_records
from tunegrid.results.passing import cross_cell_audits
from tunegrid.results.statistics import ALPHA, holm

STUDY = ROOT / "reports" / "study.json"
CellPair = tuple[str, str]
INSTEAD = {"rougeLsum": "rougeL"}  # which score the study printed where it did not print the main one


class Answer(StrEnum):
    """What runs say of a claim."""

    HOLDS = "holds"
    DOES_NOT = "does not hold"
    CANNOT = "cannot be told"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the study says.

    Attributes:
        pairs: of cells that it is about.
        close: the two have like scores; otherwise the first has the better one.
    """

    text: str
    pairs: Sequence[CellPair]
    close: bool = False

    def of_task(self, task: str | None) -> "Claim":
        """The same of one task's cells; of all where it is None."""
        return replace(self, pairs=[pair for pair in self.pairs if task in (None, pair[0].split("_")[1])])


def _pairs(task: str, first: str, *, by: int) -> Iterable[CellPair]:
    """Each cell of a task whose id has `first` as its part number `by`, beside all that differ from it in this part alone."""
    cells = [cell for cell in STUDY_IDS if cell.split("_")[1] == task]
    for one in (cell for cell in cells if cell.split("_")[by] == first):
        yield from ((one, cell) for cell in cells if cell != one and _without(cell, by) == _without(one, by))


def _without(cell: str, part: int) -> list[str]:
    return [word for index, word in enumerate(cell.split("_")) if index != part]


CLAIMS = (
    Claim(text="SFT is the best method for generation", pairs=[*_pairs("sum", SFT.id, by=2)]),
    Claim(
        text="QLoRA comes close to SFT",
        pairs=[(cell, cell.replace("_qlora", f"_{SFT.id}")) for cell in STUDY_IDS if cell.endswith("_qlora")],
        close=True,
    ),
    Claim(text="T5 is the first backbone in question answering", pairs=[*_pairs("qa", "t5", by=0)]),
)


# A claim beside runs


@dataclass(frozen=True, kw_only=True)
class Side:
    """A pair of cells, in the study and in runs.

    Attributes:
        score: whose points these are.
        theirs: the study's difference; None where it printed no such score.
        gap: the runs'; None where it cannot be told, for this `reason`.
        missing: cells that the runs do not have.
        ends: where what the claim says ends.
        inside: whether the runs' difference lies where the claim says.
    """

    pair: CellPair
    score: str
    theirs: float | None
    ends: Sequence[float]
    gap: Gap | None = None
    reason: str = ""
    missing: Sequence[str] = ()
    inside: bool = False

    @property
    def p(self) -> float:
        """Of the true difference lying at an end of what the claim says; 1 where nothing tells."""
        return max(self.gap.p(end) for end in self.ends) if self.gap else 1.0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with all its pairs."""

    claim: Claim
    sides: Sequence[Side]

    @cached_property
    def answers(self) -> list[Answer]:
        """The answer of each pair."""
        adjusted = holm({index: side.p for index, side in enumerate(self.sides) if side.gap})
        return [
            Answer.CANNOT if adjusted.get(index, 1.0) >= ALPHA else Answer.HOLDS if side.inside else Answer.DOES_NOT
            for index, side in enumerate(self.sides)
        ]

    @property
    def answer(self) -> Answer:
        """Of the whole claim."""
        if Answer.DOES_NOT in self.answers:
            return Answer.DOES_NOT
        return Answer.HOLDS if set(self.answers) == {Answer.HOLDS} else Answer.CANNOT

    @property
    def missing(self) -> list[str]:
        """The cells that the runs do not have."""
        return list(dict.fromkeys(cell for side in self.sides for cell in side.missing))


def judged(
    claim: Claim, entries: Mapping[str, Entry], chance: Chance, margins: Mapping[str, float], study: Mapping[str, Record]
) -> Judged:
    """The claim beside runs.

    Args:
        claim: what the study says.
        entries: of the runs, by cell.
        chance: what separates them.
        margins: by score, within which two are close.
        study: its records, by cell.
    """
    sides = []
    for pair in claim.pairs:
        one, other = (study[cell] for cell in pair)
        margin = margins.get(one.main_score, margins["other"])
        bare = Side(
            pair=pair, score=one.main_score, theirs=_theirs(one, other), ends=(-margin, margin) if claim.close else (0.0,)
        )
        sides.append(_beside(bare, claim.close, entries, chance))
    return Judged(claim=claim, sides=sides)


def _theirs(one: Record, other: Record) -> float | None:
    """The study's difference by its main score, or else by the one that it printed instead."""
    names = (one.main_score, INSTEAD.get(one.main_score, ""))
    both = ((one.scores.get(name), other.scores.get(name)) for name in names)
    return next((first - second for first, second in both if first is not None and second is not None), None)


def _beside(bare: Side, close: bool, entries: Mapping[str, Entry], chance: Chance) -> Side:
    missing = [cell for cell in bare.pair if cell not in entries]
    if missing:
        return replace(bare, missing=missing, reason=f"not in these runs: {' and '.join(missing)}")
    one, other = (entries[cell] for cell in bare.pair)
    if reason := chance.untested(one, other):
        return replace(bare, reason=reason)
    gap = chance.gap(one, other)
    assert gap, "both have noise, or `untested` says which has not"
    return replace(bare, gap=gap, inside=abs(gap.points) < bare.ends[-1] if close else gap.points > 0)


# The study's own figures


def findings(path: Path = STUDY) -> list[tuple[str, str]]:
    """What cannot be in the study's figures, by cell; two cells with the same results only show beside each other."""
    records = list(read_records(path).values())
    alone = [(record.cell, sentence) for record in records for sentence in impossible(record.scores)]
    found = [(cell, finding) for cell, findings in cross_cell_audits(records).items() for finding in findings]
    together = [(cell, finding.detail) for cell, finding in found if not finding.passed]
    return [*alone, *together]
