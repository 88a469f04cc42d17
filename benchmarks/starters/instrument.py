"""An instrument of your own: one more measurement of a trained cell.

tunegrid run -m quick --grid=NAME.py --cells=bert_sa_lora --ask=NAME  # runs right away
"""

from typing import ClassVar

from tunegrid.instruments import Figure, Instrument, tidy

ROWS = 40


class Longest(Instrument):
    """Scores the cell on its longest test rows."""

    id = "NAME"  # the name that --ask takes
    # The heading of its table in reports
    question = f"how right is it on its {ROWS} longest test rows? Points"
    # A gate with --gate-on=instruments judges the figure if `better` is "higher" or "lower"; a
    # change smaller than `margin` does not count. Without `better`, the figure is only shown.
    figures: ClassVar = {"points": Figure(better="higher", margin=3.0, shown=".1f")}

    def measure(self, cell, before):
        """Returns each row's points on its own line, so that runs can be compared row by row."""
        # `cell.evaluation` holds the cell's answers. `cell.score(rows)` scores other rows, and
        # `cell.score(rows, model)` another model. To measure before training, add a
        # method `before(cell)`: its result is passed on as `before`. For a single number, return
        # tidy("points", 93.0).
        points = cell.row_points(cell.evaluation)
        by_length = []
        for row, name, score in zip(cell.test_rows, cell.row_names, points, strict=True):
            length = sum(len(row[column]) for column in cell.cell.text)
            by_length.append((length, name, score))
        by_length.sort()
        _, names, scores = zip(*by_length[-ROWS:], strict=True)
        return tidy("points", scores, row=names)


def pytest_tunegrid_grid(grid):
    grid.add_instrument(Longest())
