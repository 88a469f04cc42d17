"""Three of the guides' example files, run as they are written: offline, with tiny weights made here.

The other examples are loaded and listed, and never trained.
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

GUIDES = ROOT / "benchmarks" / "guides"
BLOCK = re.compile(r"<!-- example: (?P<name>\w+\.py) -->\n```python\n(?P<code>.*?)```", re.DOTALL)
EXAMPLES = {}
for guide in sorted(GUIDES.glob("*.md")):
    EXAMPLES |= dict(BLOCK.findall(guide.read_text()))
PARTS = ("plot", "cast", "music", "ending", "story", "camera", "light", "sound")
LABELS = {"poor": 0, "great": 1, "bad": 0, "good": 1, "weak": 0, "solid": 1}


def reviews():
    """384 rows as SST-2 has them, each sentence once, in a random order."""
    rows = []
    for first, second, word in product(PARTS, PARTS, LABELS):
        sentence = f"the {first} is {word} and so is the {second} ."
        rows.append({"idx": len(rows), "sentence": sentence, "label": LABELS[word]})
    return Random(0).sample(rows, len(rows))


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
    line = "-m quick --grid=recall.py --cells=bert_sa_lora -n0 --benchmark-json="
    for options in (f"{line}first.json", f"{line}second.json --gate=first.json"):
        answer = SessionProcess(*SUITE, *options.split(), folder=tmp_path).ended()
        assert answer.returncode == 0, answer.stdout + answer.stderr
    first = tmp_path / "first.json"
    second = tmp_path / "second.json"
    [record] = read_saved(second).records
    assert record.main_score == "recall"
    assert record.bounds["recall"] == 80
    assert record.status == "passed"
    judgements = tunegrid.gate(first, second).cells["bert_sa_lora"]
    equal = "equal to the last digit, and no row lost or gained points"
    assert [sentence for sentence in judgements if " recall " in sentence] == [
        f"same: bert_sa_lora recall +0.00 points ({equal})"
    ]


def test_three_commands_lead_from_rows_to_a_gated_cell(tmp_path, monkeypatch):
    rows = reviews()
    folder = tmp_path / "sst2"
    folder.mkdir()
    datasets.Dataset.from_list(rows[:264]).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_list(rows[264:]).to_parquet(folder / "validation.parquet")
    full_options(tmp_path, **{"bert-base-uncased": "bert"})
    (tmp_path / "sst2.py").write_text(EXAMPLES["sst2.py"])
    guide = (GUIDES / "own-data.md").read_text()
    block = re.search(r"```bash\n(tunegrid calibrate .*?)```", guide, re.DOTALL)[1]
    lines = block.replace("DIR", str(tmp_path)).splitlines()
    # Without the words `tunegrid calibrate` or `tunegrid run`
    calibrating, first, gated = [shlex.split(line)[2:] for line in lines]
    here = ("--device=cpu", f"--checkpoint-root={tmp_path}")
    outputs = []

    def session(arguments):
        answer = SessionProcess(*SUITE, *arguments, folder=tmp_path).ended()
        outputs.append(answer.stdout)
        return answer.returncode

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "RUNS", tmp_path / "runs")
    assert calibrate.main([*calibrating, *here], session) == 0, outputs[-1]
    bounds = load_bounds(tmp_path / "sst2.full.toml")["bert_sst2_lora"]
    assert session([*first, *here]) == 0, outputs[-1]
    assert session([*gated, *here]) == 0, outputs[-1]
    assert "passed" in outputs[-1]
    [record] = benchmark_rows("before.json")
    assert record["bounds"] == bounds
    assert record["status"] == "passed"
    assert record["recipe"]["learning_rate"] == 5e-4
    assert bounds["accuracy"] > 50
    before = read_saved(tmp_path / "before.json")
    [noise] = before.noise  # which later gates read
    assert noise.applies_to(before.records[0])
    assert len(noise.scores["accuracy"]) == 5
