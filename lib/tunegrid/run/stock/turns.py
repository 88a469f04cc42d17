"""Both sides in turns: compared stage by stage, then timed once more, as a record's part."""

from dataclasses import dataclass

from tunegrid.record.parts import StockRecord
from tunegrid.run.stock.both import UPDATES, Both
from tunegrid.run.stock.course import Course
from tunegrid.run.stock.stages import compare


@dataclass(kw_only=True)
class Rate:
    """Rows that both sides trained on, and the seconds that each of them took."""

    samples: int = 0
    theirs: float = 0.0
    ours: float = 0.0
    turns: int = 0

    def add(self, course: Course, seconds: float) -> None:
        """One turn of each."""
        self.samples += course.samples
        self.theirs += course.seconds
        self.ours += seconds
        self.turns += 1


def compared_in_turns(both: Both) -> StockRecord:
    """The record's part of a cell: all stages, and how fast both sides trained where they are alike."""
    compared = compare(both)
    part = StockRecord(stages=compared.stages, differs=compared.differs or None)
    if compared.differs:
        return part
    rate = Rate()
    rate.add(both.plain[1], both.ours_plain.seconds)
    again = both.again()
    rate.add(again, both.replay(again, 1, UPDATES).seconds)
    part.samples_per_second, part.own_samples_per_second = rate.samples / rate.theirs, rate.samples / rate.ours
    part.turns = rate.turns
    return part
