"""The commands: what they print, and how they refuse."""

import json
import tomllib

import pytest

from lib import calibrate, scores
from lib.data import hub
from lib.errors import InputError
from lib.grid.cells import grid
from lib.grid.profiles import QUICK_PROFILE
from lib.results.files import read_records
from lib.results.record import new_record


def saved(path, points, cells=27):
    """A pytest-benchmark file whose first cells all score `points`."""
    records = []
    for cell in grid(QUICK_PROFILE)[:cells]:
        device = {"type": "cpu", "name": "a CPU", "threads": 1}
        found = {"scores": dict.fromkeys(cell.task.bounded_scores, points), "device": device}
        records.append(new_record(cell) | found)
    path.write_text(json.dumps({"benchmarks": [{"extra_info": record} for record in records]}))
    return path


def test_equal_scores_are_called_identical(tmp_path, capsys):
    first, second = saved(tmp_path / "a.json", 90.5), saved(tmp_path / "b.json", 90.5)
    assert scores.main([str(first), str(second)]) == 0
    # 9 sentiment and 9 question cells with 2 scores each, 9 summarization cells with 5
    assert capsys.readouterr().out.startswith("identical: 81 scores of 27 cells")


def test_a_difference_in_the_last_digit_is_listed(tmp_path, capsys):
    first, second = saved(tmp_path / "a.json", 90.5), saved(tmp_path / "b.json", 90.50000000000001)
    assert scores.main([str(first), str(second)]) == 1
    assert "bert_sa_lora: accuracy 90.5 and 90.50000000000001" in capsys.readouterr().out


def test_a_cell_that_only_one_run_has_is_a_difference(tmp_path, capsys):
    first, second = saved(tmp_path / "a.json", 90.5), saved(tmp_path / "b.json", 90.5, cells=26)
    assert scores.main([str(first), str(second)]) == 1
    assert capsys.readouterr().out == "t5_sa_sft: only in one of the two\n"


def test_a_missing_file_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        scores.main([str(tmp_path / "none.json"), str(tmp_path / "none.json")])
    assert "does not exist" in capsys.readouterr().err


def runs_of(tmp_path, *points):
    return [read_records(saved(tmp_path / f"{n}.json", score)) for n, score in enumerate(points)]


def test_a_bound_is_three_deviations_below_the_mean(tmp_path):
    written = tomllib.loads(calibrate.toml(runs_of(tmp_path, 88.0, 90.0, 92.0)))
    # mean 90, sd 2, hence 84
    found = {"minimum": 84.0, "mean": 90.0, "sd": 2.0, "scores": [88.0, 90.0, 92.0]}
    assert written["cells"]["t5_qa_lora"]["exact_match"] == found
    assert len(written["cells"]) == 27


def test_a_run_without_a_cell_calibrates_nothing(tmp_path):
    runs = runs_of(tmp_path, 88.0, 90.0)
    del runs[1]["gpt2_sa_sft"]
    with pytest.raises(InputError, match="gpt2_sa_sft left no accuracy"):
        calibrate.toml(runs)


def test_one_seed_is_refused(capsys):
    with pytest.raises(SystemExit):
        calibrate.main(["--seeds", "1"])
    assert "at least 2 seeds" in capsys.readouterr().err


def test_an_unreachable_hub_switches_the_libraries_to_their_caches(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "")  # so that whatever stood there, or nothing, comes back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert not hub.prefer_cache_if_unreachable.__wrapped__()
    assert hub.os.environ["HF_HUB_OFFLINE"] == "1"
