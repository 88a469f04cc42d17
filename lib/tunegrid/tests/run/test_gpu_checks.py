"""The logic of `pytest -m gpu`, with figures made by hand: what is right passes, what is wrong is said."""

import pytest

from fixtures.instruments import gpu_line, is_check
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


def test_another_test_with_the_word_in_its_name_is_no_check():
    assert is_check("benchmarks/test_gpu.py::test_lost_updates_are_counted")
    assert not is_check("lib/tunegrid/tests/run/test_device.py::test_a_device_that_is_not_here_is_refused_in_a_sentence[gpu]")


def test_the_checks_end_in_one_line():
    assert gpu_line("H100", 8, [], 0) == "gpu: 8 of 8 checks passed: figures on H100 can be trusted"
    assert gpu_line("H100", 7, ["clocks_agree"], 0) == "gpu: figures on H100 cannot be trusted: clocks_agree"
    assert gpu_line("no GPU", 0, [], 8) == "gpu: 8 of 8 checks did not run: torch sees no CUDA device here"
