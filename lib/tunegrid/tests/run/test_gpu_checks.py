"""What `pytest -m gpu` says of its checks."""

from fixtures.instruments import gpu_line, is_check


def test_another_test_with_the_word_in_its_name_is_no_check():
    assert is_check("benchmarks/test_gpu.py::test_lost_updates_are_counted")
    assert not is_check("lib/tunegrid/tests/run/test_device.py::test_a_device_that_is_not_here_is_refused_in_a_sentence[gpu]")


def test_the_checks_end_in_one_line():
    assert gpu_line("H100", 8, [], 0) == "gpu: 8 of 8 checks passed: figures on H100 can be trusted"
    assert gpu_line("H100", 7, ["clocks_agree"], 0) == "gpu: figures on H100 cannot be trusted: clocks_agree"
    assert gpu_line("no GPU", 0, [], 8) == "gpu: 8 of 8 checks did not run: torch sees no CUDA device here"
