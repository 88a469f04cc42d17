"""The user files that the guides show, each run as it is written: offline, with tiny weights made
on the spot.
"""

import re
import shlex
from itertools import product
from random import Random

import datasets

import tunegrid
from tunegrid import ROOT
from tunegrid.commands import calibrate
from tunegrid.commands.run import SUITE
from tunegrid.gate.thresholds import load_bounds
from tunegrid.grid.recipes import QUICK
from tunegrid.runs.files import read_saved
from tunegrid.tests.sessions import ForkedProcess, SessionProcess, benchmark_rows, full_options

GUIDES = "\n".join(
    guide.read_text() for guide in sorted((ROOT / "benchmarks" / "guides").glob("*.md"))
)
BLOCK = re.compile(r"<!-- example: (?P<name>\w+\.py) -->\n```python\n(?P<code>.*?)```", re.DOTALL)
EXAMPLES = {match["name"]: match["code"] for match in BLOCK.finditer(GUIDES)}
PARTS = ("plot", "cast", "music", "ending", "story", "camera", "light", "sound")


def reviews(count):
    """Rows as SST-2 has them, each sentence once."""
    parts = product(
        PARTS,
        PARTS,
        (("poor", 0), ("great", 1), ("bad", 0), ("good", 1), ("weak", 0), ("solid", 1)),
    )
    rows = [
        {"sentence": f"the {one} is {word} and so is the {two} .", "label": label}
        for one, two, (word, label) in parts
    ]
    return [{"idx": number, **row} for number, row in enumerate(rows[:count])]


def test_the_guide_names_the_quick_recipes_learning_rate():
    rate = re.search(r"^RECIPE, TRIALS = (\S+),", EXAMPLES["tune.py"], re.MULTILINE)[1]
    assert float(rate) == QUICK["bert_sa_lora"]["learning_rate"]
    assert f"for rate in ({rate}," in EXAMPLES["sweep.py"]


def test_a_sweep_in_python_compares_the_means_of_two_learning_rates(tmp_path):
    (tmp_path / "sweep.py").write_text(EXAMPLES["sweep.py"])
    answer = ForkedProcess(tmp_path / "sweep.py", folder=tmp_path).ended()
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"^9\d\.\d and 9\d\.\d points", answer.stdout, re.MULTILINE), answer.stdout
    assert len(read_saved(tmp_path / "reports" / "latest.json").records) == 3


def test_a_metric_of_the_guide_has_a_bound_and_is_judged(tmp_path):
    (tmp_path / "recall.py").write_text(EXAMPLES["recall.py"])
    (tmp_path / "recall.quick.toml").write_text(
        "[cells.bert_sa_lora]\nrecall = { minimum = 80.0 }\n"
    )
    options = (
        *SUITE,
        "-m",
        "quick",
        f"--grid={tmp_path / 'recall.py'}",
        "--cells=bert_sa_lora",
        "-n0",
    )
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for more in ([f"--benchmark-json={first}"], [f"--benchmark-json={second}", f"--gate={first}"]):
        answer = SessionProcess(*options, *more, folder=tmp_path).ended()
        assert answer.returncode == 0, answer.stdout + answer.stderr
    [record] = read_saved(second).records
    assert (record.main_score, record.bounds["recall"], record.status) == ("recall", 80, "passed")
    judged = tunegrid.gate(first, second).cells["bert_sa_lora"]
    assert [text for text in judged if " recall " in text] == [
        "same: bert_sa_lora recall +0.00 points (equal to the last digit, and no row lost or gained points)"
    ]


def test_three_commands_lead_from_rows_to_a_gated_cell(tmp_path, monkeypatch):
    rows, folder = Random(0).sample(reviews(384), 384), tmp_path / "sst2"
    folder.mkdir()
    datasets.Dataset.from_list(rows[:264]).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_list(rows[264:]).to_parquet(folder / "validation.parquet")
    full_options(tmp_path, **{"bert-base-uncased": "bert"})
    (tmp_path / "sst2.py").write_text(EXAMPLES["sst2.py"])
    guide = (ROOT / "benchmarks" / "guides" / "own-data.md").read_text()
    calibrating, first, gated = re.search(
        r"```bash\n(tunegrid calibrate .*?)```", guide, re.DOTALL
    )[1].splitlines()
    here = ("--device=cpu", f"--checkpoint-root={tmp_path}")
    ended = []

    def session(arguments):
        words = (
            "-c",
            ROOT / "pyproject.toml",
            f"--rootdir={ROOT}",
            ROOT / "benchmarks",
            *arguments,
        )
        ended.append(SessionProcess(*words, folder=tmp_path).ended())
        return ended[-1].returncode

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "RUNS", tmp_path / "runs")
    words = shlex.split(calibrating.replace("DIR", str(tmp_path)))
    assert calibrate.main([*words[2:], *here], session) == 0, ended[-1].stdout
    bounds = load_bounds(tmp_path / "sst2.full.toml")["bert_sst2_lora"]
    for command in (first, gated):
        assert session([*shlex.split(command.replace("DIR", str(tmp_path)))[2:], *here]) == 0, (
            ended[-1].stdout
        )
    assert "passed" in ended[-1].stdout
    [record] = benchmark_rows(tmp_path / "before.json")
    assert (record["bounds"], record["status"], record["recipe"]["learning_rate"]) == (
        bounds,
        "passed",
        5e-4,
    )
    assert bounds["accuracy"] > 50
    before = read_saved(tmp_path / "before.json")
    [noise] = before.noise  # which later gates read
    assert noise.applies_to(before.records[0])
    assert len(noise.scores["accuracy"]) == 5
