"""One more question to a trained cell.

tunegrid run -m quick --grid=NAME.py --cells=bert_sa_lora --ask=NAME    # runs at once, on a micro backbone
"""

from typing import ClassVar

from tunegrid.instruments import Figure, Instrument, tidy

TENTH = 10


class Longest(Instrument):
    """Asks for the points of the longest rows."""

    id = "NAME"  # as --ask names it
    question = "how right is it on the longest tenth of its test rows? Points"  # the heading of its table
    # better="lower" or "higher": a gate with --gate-on=instruments judges it, and margin is the smallest change that
    # counts. Without `better` it is shown only.
    figures: ClassVar = {"points": Figure(better="higher", margin=3.0, shown=".1f")}

    def measure(self, cell, before):
        """Their points, one line for each row, so that two runs are compared row by row."""
        # `cell.evaluation` has what the cell answered; `cell.score(rows)` scores other rows, `cell.score(rows, model)`
        # another model. A method `before(cell)` measures before training; `measure` gets what it returns.
        points = cell.row_points(cell.evaluation)
        lengths = [sum(len(row[column]) for column in cell.cell.text) for row in cell.test_rows]
        longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-len(lengths) // TENTH :]
        # A single number is tidy("points", 93.0).
        return tidy("points", [points[i] for i in longest], row=[cell.row_names[i] for i in longest])


def pytest_tunegrid_grid(grid):
    grid.add_instrument(Longest())
