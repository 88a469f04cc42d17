"""The logic of `pytest -m gpu`, with figures made by hand: what is right passes, what is wrong is said."""

import pytest

from tunegrid.run.device import clocks_differ, ladder_broken, left_behind, not_shared, not_smaller, skips_miscounted

GIB = 2**30
HALVED = "out of memory at update 2 of 8: micro-batches of 8 in place of 16, accumulated to the same update"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (left_behind(10, 10 + 32 * 2**20), ""),  # a workspace
        (left_behind(0, int(1.4 * GIB)), "left 1.40 GiB"),
        (clocks_differ(1.0, 1.04), ""),
        (clocks_differ(0.5, 1.0), "0.500 s, the wall clock 1.000 s"),
        (ladder_broken([HALVED], 8, 16, (0.7, 0.701)), ""),
        (ladder_broken([], 16, 16, (0.7, 0.7)), "the micro-batch is 16 of 16"),
        (ladder_broken([HALVED], 8, 16, (0.7, 1.4)), "1.4000 in smaller micro-batches, 0.7000 in one"),
        (skips_miscounted([0, 1, 2], 3.0, updates=10, scheduled=7), ""),  # lost updates are those that halved the scale
        (skips_miscounted([0, 1], 3.0, updates=10, scheduled=8), "2 updates are counted as lost, the scale was halved 3 times"),
        (skips_miscounted([0], 1.0, updates=10, scheduled=10), "10 steps in 10 updates, 1 of them lost"),
        (skips_miscounted([], 0.0, updates=10, scheduled=10), "nothing was checked"),
        (not_smaller({"qlora": 1, "lora": 2, "sft": 3}), ""),
        (not_smaller({"qlora": 2_000, "lora": 2_000, "sft": 3_000}), "qlora takes 2,000 bytes, lora 2,000"),
        (not_shared(own=False, other=True), ""),
        (not_shared(own=False, other=False), "does not see that another one holds its GPU"),
        (not_shared(own=True, other=True), "takes itself for a guest"),
    ],
)
def test_what_is_right_passes_and_what_is_wrong_is_said(said, words):
    assert len(said) == (words != "")
    assert words in "".join(said)
