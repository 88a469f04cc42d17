"""The libraries' own path against ours: how values are compared, and the table of known differences.

`benchmarks/plants/stock.py` has planted bugs, which `-m stock` runs.
"""

import torch

from benchmarks.stock.known import KNOWN
from benchmarks.stock.stages import STAGES, unequal
from tunegrid import ROOT


def test_the_first_value_that_differs_is_named():
    assert unequal("loss of update", [1.0, 20.1], [1.0, 20.0], 0.01) == ""
    assert unequal("loss of update", [1.0, 0.2], [1.0, 0.1], 0.01) == "loss of update[1] is 0.2, ours is 0.1"
    assert unequal("eval_loss", float("nan"), 1.0, 1e9) == "eval_loss is nan, ours is 1"
    assert unequal("loss of update", [1.0], [1.0, 1.0], 1e9) == "loss of update[1] is 'missing', ours is 1"
    assert unequal("token of row", {3: [[5, 6]]}, {3: [[5, 7]]}) == "token of row[3][0][1] is 6, ours is 7"
    halves = {"w": torch.ones(2, 2, dtype=torch.bfloat16)}
    assert unequal("", halves, {"w": torch.ones(2, 2)}) == "[w] is bfloat16 (2, 2) of norm 2, ours is float32 (2, 2) of norm 2"


def test_the_tables_stages_and_reports_are_there():
    assert {entry.stage for entry in KNOWN} <= STAGES.keys()
    assert len({entry.id for entry in KNOWN}) == len(KNOWN)
    assert [entry.id for entry in KNOWN if entry.upstream and not (ROOT / entry.upstream).is_file()] == []
