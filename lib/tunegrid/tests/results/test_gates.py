"""Gates on made-up runs whose verdicts are known."""

import json
import resource
import subprocess
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from tunegrid import ROOT
from tunegrid.commands import gate as command
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.tasks import TASKS
from tunegrid.record import from_json
from tunegrid.results import examples
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import Verdict
from tunegrid.results.summary import gate_section
from tunegrid.results.thresholds import load_margins
from tunegrid.results.verdict import FAILED_BY, failing, kinds_of
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import FOOTPRINT, MEASURED, ROWS, complete, hits, record_of, run_file

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
VERSIONS = complete().versions


pytestmark = pytest.mark.usefixtures("store")


def judged(old, new):
    """Verdicts by quantity."""
    return {judgement.quantity: judgement for judgement in gate(Run.of([old]), Run.of([new]))}


# Quality


def test_equal_runs_are_the_same_in_everything():
    record = record_of("bert_sa_lora", {"accuracy": hits(512, 480)})
    judgements = judged(record, record)
    assert judgements.pop("numerics").verdict is Verdict.EQUAL
    assert {j.verdict for j in judgements.values()} == {Verdict.SAME}
    assert judgements["accuracy"].effect == 0.0
    assert set(judgements) == {"accuracy", "f1_macro", "rss_peak_gib", "step_seconds"} | {
        f"{name}_bytes" for name in ("weights", "gradients", "optimizer", "checkpoint")
    }


def test_a_drop_that_is_no_chance_is_worse_with_its_evidence():
    old, new = (record_of("bert_sa_lora", {"accuracy": hits(512, 480, lost)}) for lost in (0, 20))
    judgement = judged(old, new)["accuracy"]
    assert judgement.verdict is Verdict.WORSE
    assert judgement.effect == pytest.approx(-100 * 20 / 512)
    assert judgement.p == pytest.approx(0.5**20)  # twenty tosses, all lost; one cell, so Holm adds nothing
    assert judgement.low < judgement.effect < judgement.high < 0
    assert judgement.detail == "20 rows lost, 0 gained of 512; noise of rows alone: error 0.86; margin 1.0"


@pytest.mark.parametrize(
    ("rows", "right", "lost", "verdict"),
    [
        (2000, 1900, (0, 4), Verdict.SAME),  # within the margin
        (512, 480, (20, 0), Verdict.BETTER),
        (30, 28, (0, 2), Verdict.CANNOT_TELL),  # a small test set, which would see no drop of ten points
    ],
)
def test_a_drop_within_the_margin_a_gain_and_a_small_test_set(rows, right, lost, verdict):
    judgement = judged(*(record_of("bert_sa_lora", {"accuracy": hits(rows, right, n)}) for n in lost))["accuracy"]
    assert (judgement.verdict, judgement.smallest > 10) == (verdict, verdict is Verdict.CANNOT_TELL)


def test_more_cells_make_each_verdict_stricter():
    """All of five changed rows are lost: p = 1/32 is enough for one cell alone, but not for one of nine."""
    cells = [name for name in STUDY_IDS if "_sa_" in name]
    good = {name: record_of(name, {"accuracy": hits(512, 480)}) for name in cells}
    bad = record_of("bert_sa_lora", {"accuracy": hits(512, 480, 5)})
    margins = load_margins() | {"points": load_margins()["points"] | {"accuracy": 0.5}}

    def verdict(old, new):
        judgements = gate(Run.of(old), Run.of(new), margins=margins)
        return next(j for j in judgements if (j.cell, j.quantity) == ("bert_sa_lora", "accuracy"))

    assert verdict([good["bert_sa_lora"]], [bad]).verdict is Verdict.WORSE
    among = verdict(good.values(), [*(good | {"bert_sa_lora": bad}).values()])
    assert (among.verdict, among.p) == (Verdict.CANNOT_TELL, pytest.approx(9 / 32))


@pytest.mark.parametrize("score", [None, float("nan")])
def test_a_score_that_is_no_number_is_worse_than_one_that_is(score):
    old = record_of("t5_qa_sft")
    new = replace(old, scores={"exact_match": 60.0, "f1": score})
    assert judged(old, new)["f1"].verdict is Verdict.WORSE
    assert judged(new, old)["f1"].verdict in (Verdict.CANNOT_TELL, Verdict.WORSE)


def test_macro_f1_without_noise_is_judged_by_hits_around_its_own_change():
    old, new = (record_of("bert_sa_lora", {"accuracy": hits(512, 480, lost)}) for lost in (0, 60))
    new = replace(new, scores=new.scores | {"f1_macro": old.scores["f1_macro"] - 15.0})
    judgement = judged(old, new)["f1_macro"]
    assert (judgement.verdict, judgement.effect) == (Verdict.WORSE, -15.0)
    assert judgement.low < -15.0 < judgement.high
    assert judged(old, replace(old, scores=old.scores | {"f1_macro": 20.0}))["f1_macro"].verdict is Verdict.CANNOT_TELL


def test_a_score_without_a_margin_of_its_own_takes_the_one_for_others():
    old, new = (
        record_of(
            "bert_sa_lora", {"accuracy": hits(512, 480), "recall_1": hits(512, right)}, bounded_scores=["accuracy", "recall_1"]
        )
        for right in (480, 479)
    )
    judgement = judged(old, new)["recall_1"]
    assert (judgement.verdict, judgement.margin) == (Verdict.SAME, load_margins()["points"]["other"])


def test_points_that_are_no_numbers_and_other_test_rows_are_refused():
    untold = {"scores": {"accuracy": 1.5, "f1_macro": 1.5}, "status": "missed", "missed": ["why"]}
    old, new = (
        record_of("bert_sa_lora", {"accuracy": values}, ids=["a", "b"], **untold)
        for values in ([1.0, 2.0], [1.0, float("nan")])
    )
    with pytest.raises(InputError, match=r"not every row has text and finite numbers\); remove it"):
        judged(old, new)
    old, new = (record_of("bert_sa_lora", {"accuracy": [100.0, 0.0]}, ids=ids) for ids in (["a", "b"], ["a", "c"]))
    hashes = [record.examples.rows_hash for record in (old, new)]
    with pytest.raises(InputError, match=rf"scored different test rows \({hashes[0]} and {hashes[1]}\)"):
        judged(old, new)


# Cells that are missing or new


@pytest.mark.parametrize("gone", [[], [record_of("t5_qa_sft", status="error", memory=None)]], ids=["gone", "unfinished"])
def test_a_cell_that_is_not_there_or_did_not_finish_is_missing_and_a_new_one_is_reported(gone):
    one, other = record_of("bert_sa_lora"), record_of("t5_qa_sft")
    judgements = gate(Run.of([one, other]), Run.of([one, record_of("gpt2_qa_sft"), *gone]))
    verdicts = {(j.cell, j.verdict) for j in judgements if j.quantity == "cell"}
    assert verdicts == {("t5_qa_sft", Verdict.MISSING), ("gpt2_qa_sft", Verdict.NEW)}


def test_two_profiles_and_runs_without_a_common_cell_are_refused(tmp_path, capsys):
    one = record_of("bert_sa_lora")
    with pytest.raises(InputError, match="holds cells of full and quick: judge one profile at a time"):
        Run.of([one, record_of("bert_sa_lora", profile="full")])
    with pytest.raises(InputError, match="no cell in common"):
        gate(Run.of([one]), Run.of([record_of("t5_qa_sft")]))
    quick = run_file(tmp_path / "quick.json", [record_of("bert_sa_lora")])
    footprint = run_file(tmp_path / "footprint.json", [complete("bert_sa_lora", **FOOTPRINT)])
    assert "the baseline is of quick and the run of footprint: " in refusal(capsys, command.main, quick, footprint)


# Memory and speed


def with_ledger(**sizes):
    memory = MEASURED["memory"]
    return record_of("bert_sa_lora", memory=memory | {"ledger": memory["ledger"] | sizes})


def test_one_byte_more_of_weights_is_worse_and_one_less_is_changed():
    same, more, less = (with_ledger(weights_bytes=size) for size in (4000, 4001, 3999))
    assert judged(same, more)["weights_bytes"].verdict is Verdict.WORSE
    assert judged(same, less)["weights_bytes"].verdict is Verdict.CHANGED


def test_a_peak_has_a_tolerance_and_is_compared_between_like_machines_only():
    def with_peak(peak, **changes):
        phases = {"train": MEASURED["memory"]["phases"]["train"] | {"rss_peak_gib": peak}}
        return record_of("bert_sa_lora", memory=MEASURED["memory"] | {"phases": phases}, **changes)

    margin = load_margins()["memory"]["rss_peak_gib"]
    assert judged(with_peak(1.0), with_peak(1.0 + margin - 0.01))["rss_peak_gib"].verdict is Verdict.SAME
    assert judged(with_peak(1.0), with_peak(1.0 + margin + 0.01))["rss_peak_gib"].verdict is Verdict.WORSE
    other = with_peak(9.0, device=MEASURED["device"] | {"name": "another CPU"})
    assert "rss_peak_gib" not in judged(with_peak(1.0), other)


def with_steps(seconds, **changes):
    steps = [seconds * (1 + 0.01 * (n % 7)) for n in range(60)]
    speed = MEASURED["throughput"] | {"step_seconds": steps, "step_seconds_median": float(np.median(steps))}
    return record_of("bert_sa_lora", throughput=speed, **changes)


def test_slower_steps_on_a_like_machine_are_worse_and_seeds_on_another_card_do_not_count():
    judgement = judged(with_steps(0.1), with_steps(0.13))["step_seconds"]
    assert (judgement.verdict, judgement.effect) == (Verdict.WORSE, pytest.approx(0.3))
    assert judged(with_steps(0.1), with_steps(0.105))["step_seconds"].verdict is Verdict.SAME
    assert judged(with_steps(0.1), with_steps(0.05))["step_seconds"].verdict is Verdict.BETTER
    other = {"device": MEASURED["device"] | {"name": "H100"}, "seeds": {"seed": 1, "split_seed": 42, "perturbation": None}}
    baseline, now = Run.of([with_steps(0.1), with_steps(0.01, **other)]), Run.of([with_steps(0.1)])
    [speed] = [judgement for judgement in gate(baseline, now) if judgement.quantity == "step_seconds"]
    assert (speed.verdict, speed.effect) == (Verdict.SAME, pytest.approx(0.0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": MEASURED["device"] | {"name": "another CPU"}}, "name: a CPU and another CPU"),
        ({"device": MEASURED["device"] | {"threads": 2}}, "threads: 1 and 2"),
        ({"device": MEASURED["device"] | {"contended": True}}, "measured on a device that others used"),
        ({"versions": VERSIONS | {"torch": "9"}}, f"torch: {VERSIONS['torch']} and 9"),
    ],
)
def test_speed_is_compared_between_like_machines_only(changes, reason):
    judgement = judged(with_steps(0.1), with_steps(0.2, **changes))["step_seconds"]
    assert (judgement.verdict, judgement.detail) == (Verdict.NOT_COMPARABLE, reason)


# Commands


def whole_grid(lost=0, seed=0, **changes):
    """27 cells with points for every row."""
    rng = np.random.default_rng(5)
    records = []
    for index, cell in enumerate(STUDY_IDS):
        task = cell.split("_")[1]
        metrics = [m for t in TASKS if t.id == task for m in t.bounded_scores if m != "f1_macro"]
        if task == "sum":
            drawn = np.clip(rng.normal(75, 10, ROWS[task]), 0, 100)
            points = {metric: list(np.maximum(drawn - 5 * (metric == "rouge2"), 0)) for metric in metrics}
        else:
            points = {metric: hits(ROWS[task], ROWS[task] - 20, lost if index == 20 else 0) for metric in metrics}
        losses = MEASURED["training"] | {"losses": [float(index)], "updates": 1}
        records.append(record_of(cell, points, seed=seed, training=losses, **changes))
    return records


def seconds_of_children():
    """Processor time: other work on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_gate_of_27_cells_takes_seconds_and_no_torch(tmp_path):
    old, new = (run_file(tmp_path / name, whole_grid(lost)) for name, lost in (("old.json", 0), ("new.json", 30)))
    for path in (old, new):
        examples.pack_beside([from_json(row["extra_info"]) for row in json.loads(path.read_text())["benchmarks"]], path)
    code = (
        "import sys; from tunegrid.commands.gate import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    began = seconds_of_children()
    answer = subprocess.run([sys.executable, "-c", code, old, new], cwd=ROOT, capture_output=True, text=True, check=False)
    assert seconds_of_children() - began < 8  # 5 on an idle machine
    assert answer.returncode == 1, answer.stderr
    assert answer.stdout.splitlines()[-1] == "False"
    assert "quality: 1 worse, 26 same\n\nFailed: 1 cell worse: " in answer.stdout


def test_exit_codes_of_the_command(tmp_path, capsys, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    same = run_file(tmp_path / "same.json", [record_of("bert_sa_lora", {"accuracy": hits(512, 480)})])
    worse = run_file(tmp_path / "worse.json", [record_of("bert_sa_lora", {"accuracy": hits(512, 480, 20)})])
    small = [run_file(tmp_path / f"{n}.json", [record_of("bert_sa_lora", {"accuracy": hits(30, 28, n)})]) for n in (0, 2)]
    assert command.main([str(same), str(same)]) == 0
    assert command.main([str(same), str(worse)]) == 1
    assert command.main([*map(str, small)]) == 0
    slow = [run_file(tmp_path / f"slow{n}.json", [with_steps(0.1 + n)]) for n in (0, 1)]
    assert command.main([*map(str, slow), "--on", "memory"]) == 0
    assert command.main([*map(str, slow)]) == 6  # their scores are equal, but no rows are at hand, and no noise was calibrated
    assert command.main([*map(str, slow), "--on", "quality,speed"]) == 1
    assert command.main([*map(str, small), "--on=quality,memory,cannot-tell", "--format", "markdown"]) == 6
    assert "**Cannot tell whether the run is worse than 0.json.**\n\n* Cause: 1 main score" in capsys.readouterr().out
    assert "**Failed: " in summary.read_text()


def lowered(points):
    """The committed baseline's rows with every score lowered by so many points."""
    rows = json.loads(BASELINE.read_text())["benchmarks"]
    for row in rows:
        record = row["extra_info"]
        record["scores"] = {name: score - points for name, score in record["scores"].items()}
        record["bounds"] = {}
    return rows


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2, 3, 4)], ids=["one seed", "all seeds"])
def test_a_collapse_by_twenty_points_is_worse_in_every_cell_by_scores_alone(tmp_path, capsys, seeds):
    files = {}
    for name, points in (("old", 0.0), ("new", 20.0)):
        rows = [row for row in lowered(points) if row["extra_info"]["seeds"]["seed"] in seeds]
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps({"benchmarks": rows}))
    assert command.main([str(files["old"]), str(files["new"])]) == 1
    assert "quality: 27 worse" in capsys.readouterr().out


# Too good


def too_good(old, new):
    return [judgement for judgement in gate(Run.of(old), Run.of(new)) if judgement.verdict is Verdict.TOO_GOOD]


def test_a_score_far_above_what_healthy_runs_reach_is_too_good():
    # As far as the bound lies below their mean, so far above it is the most; of cells without that bound nothing is known.
    known = tomllib.loads((ROOT / "benchmarks" / "thresholds" / "quick.toml").read_text())["cells"]["bert_qa_lora"]["f1"]
    highest = 2 * known["mean"] - known["minimum"]
    old = record_of("bert_qa_lora")

    def scored(points, bound=known["minimum"]):
        return record_of("bert_qa_lora", scores={"exact_match": 80.0, "f1": points}, bounds={"f1": bound})

    assert too_good([old], [scored(highest - 0.1)]) == []
    [finding] = too_good([old], [scored(highest + 0.1)])
    assert finding.detail.endswith(f"is above {highest:.1f}, which healthy runs do not reach")
    assert too_good([old], [scored(highest + 0.1, bound=known["minimum"] - 1)]) == []
    records = read_run(BASELINE).records
    for seed in range(5):
        old, new = ([own[s] for own in records.values() for s in own if (s == seed) is apart] for apart in (False, True))
        assert too_good(old, new) == []


BOUND = {"f1": tomllib.loads((ROOT / "benchmarks/thresholds/quick.toml").read_text())["cells"]["bert_qa_lora"]["f1"]["minimum"]}


def test_too_good_is_shown_and_fails_only_where_asked(tmp_path, capsys):
    old, new = [record_of("bert_qa_lora")], [record_of("bert_qa_lora", scores={"exact_match": 99.0, "f1": 99.9}, bounds=BOUND)]
    judgements = gate(Run.of(old), Run.of(new))
    assert gate_section(judgements, []).frame["quality"][0] == "too good"
    assert failing(judgements, FAILED_BY) == []
    assert [j.verdict for j in failing(judgements, kinds_of("quality,too-good"))] == [Verdict.TOO_GOOD]
    files = [str(run_file(tmp_path / f"{name}.json", records)) for name, records in (("old", old), ("new", new))]
    assert command.main([*files, "--on", "memory"]) == 0
    assert command.main([*files, "--on", "too-good"]) == 1
