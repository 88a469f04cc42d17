"""Gates on made-up runs whose verdicts are known."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tunegrid import ROOT
from tunegrid.commands import gate as command
from tunegrid.errors import InputError
from tunegrid.gate.gate import Run, gate
from tunegrid.gate.judgements import LEDGER, Verdict
from tunegrid.gate.thresholds import load_margins
from tunegrid.grid.recipes import CONFIRMING
from tunegrid.record.record import KernelRecord
from tunegrid.report.environments import version_changes
from tunegrid.runs.files import OwnNoise, noise_json, read_list, recipe_digest
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import (
    FOOTPRINT,
    MEASURED,
    altered,
    complete,
    get_record,
    hits,
    make_seeds,
    run_file,
    scored,
    sealed,
)

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
RANK = {"rss_peak_gib": 0.5, "train_samples": 24}
RANKS = {"count": 2, "backend": "gloo", "each": [RANK, RANK]}
CELL = "bert_sa_lora"
WORSE = Verdict.WORSE
BETTER = Verdict.BETTER
SAME = Verdict.SAME
CANNOT_TELL = Verdict.CANNOT_TELL
DEVICE = MEASURED["device"]
KEYS = ["answer", "exit_code", "reasons", "next_step", "environments", "warning", "judgements"]
OTHER_CPU = {"device": DEVICE | {"name": "another CPU"}}

pytestmark = pytest.mark.usefixtures("store")


def judged(old, new):
    """The judgements on one record against another, by quantity."""
    return {judgement.quantity: judgement for judgement in gate(Run.make([old]), Run.make([new]))}


def hit(rows, right, lost=0, **changes):
    """A record with points by row: so many are right, less those lost."""
    return get_record(CELL, {"accuracy": hits(rows, right, lost)}, **changes)


def test_equal_runs_are_the_same_in_everything():
    judgements = judged(hit(512, 480), hit(512, 480))
    assert judgements.pop("numerics").verdict is Verdict.EQUAL
    assert {j.verdict for j in judgements.values()} == {SAME}
    assert judgements["accuracy"].effect == 0.0
    assert set(judgements) == {
        "accuracy",
        "f1_macro",
        "rss_peak_gib",
        "step_seconds",
        "row_seconds",
        *LEDGER,
    }


@pytest.mark.parametrize(
    ("rows", "right", "lost_before", "lost_after", "verdict"),
    [
        (2000, 1900, 0, 4, SAME),  # within the margin
        (512, 480, 20, 0, BETTER),
        (30, 28, 0, 2, CANNOT_TELL),  # a small test set, which would see no drop of ten points
    ],
)
def test_small_changes_gains_and_small_test_sets(rows, right, lost_before, lost_after, verdict):
    judgement = judged(hit(rows, right, lost_before), hit(rows, right, lost_after))["accuracy"]
    assert judgement.verdict == verdict
    assert (judgement.min_drop > 10) == (verdict is CANNOT_TELL)
    assert judgement.effect == pytest.approx(100 * (lost_before - lost_after) / rows)


def test_a_drop_that_is_no_chance_is_worse_and_has_its_evidence():
    judgement = judged(hit(512, 480), hit(512, 480, 20))["accuracy"]
    assert judgement.verdict == WORSE
    assert judgement.effect == pytest.approx(-100 * 20 / 512)
    assert judgement.min_drop <= 10
    assert judgement.p == pytest.approx(2.5e-5, rel=0.1)  # 4.06 errors on the scale
    assert judgement.low < judgement.effect < judgement.high < 0
    assert (
        judgement.detail
        == "20 rows lost, 0 gained of 512; noise of rows alone: error 0.86; margin 1.0"
    )


@pytest.mark.parametrize(
    ("seeds", "confirmed_seed", "again", "verdict", "confirmed", "words"),
    [
        ((0,), None, 0.0, WORSE, "open", ""),
        ((0,), 0, 99.0, CANNOT_TELL, "no", "at seed 0 -39.00, at 10000 +0.00: not confirmed"),
        ((0,), 0, 61.0, WORSE, "yes", "at seed 0 -39.00, at 10000 -38.00: confirmed"),
        ((0,), 7, 99.0, WORSE, "open", ""),  # another seed's second training run
        ((0, 4), 0, 99.0, WORSE, "", ""),  # a mean of several is certain enough
        ((1,), 1, 99.0, WORSE, "", ""),  # of the baseline's seeds: what differs is a change
    ],
)
def test_a_drop_at_one_other_seed_counts_if_a_second_training_confirms_it(
    seeds, confirmed_seed, again, verdict, confirmed, words
):
    new = [scored(CELL, 60.0, seed) for seed in seeds]
    if confirmed_seed is not None:
        new.append(scored(CELL, again, confirmed_seed + CONFIRMING, confirms=confirmed_seed))
    judgements = gate(Run.make(scored(CELL, 99.0, seed) for seed in (1, 2, 3)), Run.make(new))
    judgement = next(j for j in judgements if j.quantity == "accuracy")
    assert judgement.verdict == verdict
    assert judgement.confirmed == confirmed
    assert judgement.effect == pytest.approx(-39.0)
    assert words in judgement.detail


def test_a_score_without_a_margin_takes_the_one_for_others_and_one_that_is_no_number_is_worse():
    def recalled(right):
        points = {"accuracy": hits(512, 480), "recall_1": hits(512, right)}
        return get_record(CELL, points, bounded_scores=["accuracy", "recall_1"])

    judgement = judged(recalled(480), recalled(479))["recall_1"]
    assert judgement.verdict == SAME
    assert judgement.margin == load_margins()["points"]["other"]
    old = get_record("t5_qa_sft")
    for score in (None, float("nan")):
        new = replace(old, scores={"exact_match": 60.0, "f1": score})
        assert judged(old, new)["f1"].verdict == WORSE
        assert judged(new, old)["f1"].verdict == CANNOT_TELL


def test_points_that_are_no_numbers_and_other_test_rows_are_refused():
    old = get_record(CELL, {"accuracy": [1.0, 2.0]}, ids=["a", "b"])
    scores = old.scores
    new = get_record(CELL, {"accuracy": [1.0, float("nan")]}, ids=["a", "b"], scores=scores)
    with pytest.raises(InputError, match="not every row has text and finite numbers"):
        judged(old, new)
    other_rows = get_record(CELL, {"accuracy": [1.0, 2.0]}, ids=["a", "c"])
    with pytest.raises(InputError, match="scored different test rows"):
        judged(old, other_rows)


def test_a_cell_that_is_not_there_or_did_not_finish_is_missing_and_a_new_one_is_reported():
    kept = get_record(CELL)
    gone = get_record("t5_qa_sft")
    new = get_record("gpt2_qa_sft")
    for unfinished in ([], [get_record("t5_qa_sft", status="error", memory=None)]):
        judgements = gate(Run.make([kept, gone]), Run.make([kept, new, *unfinished]))
        verdicts = {(j.cell, j.verdict) for j in judgements if j.quantity == "cell"}
        assert verdicts == {("t5_qa_sft", Verdict.MISSING), ("gpt2_qa_sft", Verdict.NEW)}


def test_two_profiles_and_runs_without_a_common_cell_are_refused():
    record = get_record(CELL)
    with pytest.raises(
        InputError, match="holds cells of full and quick: judge one profile at a time"
    ):
        Run.make([record, get_record(CELL, profile="full")])
    with pytest.raises(InputError, match="no cell in common"):
        judged(record, get_record("t5_qa_sft"))
    with pytest.raises(InputError, match="nothing to judge"):
        gate(Run.make([record]), Run.make([]))
    with pytest.raises(InputError, match="the baseline holds quick cells, the run footprint cells"):
        judged(record, complete(CELL, **FOOTPRINT))


def add_weights(size):
    return altered(complete(), "memory.ledger.weights_bytes", size)


def add_traced(share, **changes):
    """A footprint whose activations take so many times 103 MiB."""
    made = complete(CELL, **FOOTPRINT | changes)
    return altered(made, "memory.ledger.activations_bytes", round(share * 103 * 2**20))


def add_peak(peak, **changes):
    phases = {"train": MEASURED["memory"]["phases"]["train"] | {"rss_peak_gib": peak}}
    return get_record(CELL, memory=MEASURED["memory"] | {"phases": phases}, **changes)


@pytest.mark.parametrize(
    ("old", "new", "quantity", "verdict"),
    [
        (add_weights(4000), add_weights(4001), "weights_bytes", WORSE),
        # no gain: something is no longer there, or no longer in fp32
        (add_weights(4000), add_weights(3999), "weights_bytes", Verdict.CHANGED),
        (add_peak(1.0), add_peak(1.49), "rss_peak_gib", SAME),
        (add_peak(1.0), add_peak(1.51), "rss_peak_gib", WORSE),
        (add_peak(1.0), add_peak(0.49), "rss_peak_gib", BETTER),
        (add_traced(1), add_traced(1.04), "activations_bytes", SAME),
        # Tensors are counted on any CPU
        (add_traced(1), add_traced(1.2, **OTHER_CPU), "activations_bytes", WORSE),
        (add_traced(1), add_traced(0.8), "activations_bytes", BETTER),
    ],
)
def test_bytes_of_tensors_are_exact_and_other_memory_has_a_margin(old, new, quantity, verdict):
    assert judged(old, new)[quantity].verdict is verdict


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (add_peak(1.0), add_peak(9.0, **OTHER_CPU)),
        (add_peak(1.0), add_peak(9.0, ranks=RANKS)),
        (add_traced(1), add_traced(1.2, device=OTHER_CPU["device"] | {"type": "cuda"})),
    ],
)
def test_of_unlike_machines_only_the_ledger_is_compared(old, new):
    judgements = judged(old, new).values()
    assert [j.quantity for j in judgements if j.kind == "memory"] == list(LEDGER)


def add_steps(seconds, **changes):
    steps = [seconds * (1 + 0.01 * (n % 7)) for n in range(60)]
    speed = MEASURED["throughput"] | {
        "step_seconds": steps,
        "step_seconds_median": float(np.median(steps)),
    }
    return get_record(CELL, throughput=speed, **changes)


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(0.13, WORSE), (0.105, SAME), (0.05, BETTER)],
)
def test_speed_of_like_machines_has_a_margin(seconds, verdict):
    judgement = judged(add_steps(0.1), add_steps(seconds))["step_seconds"]
    assert judgement.verdict == verdict
    assert judgement.detail == "margin 15%"
    assert judgement.effect == pytest.approx(10 * seconds - 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (OTHER_CPU, "name: a CPU and another CPU"),
        ({"device": DEVICE | {"threads": 2}}, "threads: 1 and 2"),
        ({"device": DEVICE | {"contended": True}}, "measured on a device that others used"),
        (
            {"versions": complete().versions | {"torch": "9"}},
            f"torch: {complete().versions['torch']} and 9",
        ),
        ({"ranks": RANKS}, "ranks: 1 and 2"),
    ],
)
def test_speed_of_unlike_machines_is_not_compared(changes, reason):
    judgement = judged(add_steps(0.1), add_steps(0.2, **changes))["step_seconds"]
    assert judgement.verdict == Verdict.NOT_COMPARABLE
    assert judgement.detail == reason
    assert judgement.effect is None


@pytest.mark.parametrize(
    ("rows", "tokens", "quantity", "verdict"),
    [
        (30.0, None, "row_seconds", SAME),
        (20.1, None, "row_seconds", SAME),  # 49 % slower
        (19.9, None, "row_seconds", WORSE),
        (5.0, 3000.0, "token_seconds", SAME),  # longer texts
        (30.0, 300.0, "token_seconds", WORSE),  # ten times slower
    ],
)
def test_evaluation_is_timed_by_rows_or_if_it_generates_by_tokens(rows, tokens, quantity, verdict):
    def rated(rows, tokens):
        rates = {"eval_samples_per_second": rows, "generated_tokens_per_second": tokens}
        return get_record(CELL, throughput=MEASURED["throughput"] | rates)

    judgements = judged(rated(30.0, tokens and 3000.0), rated(rows, tokens))
    speed = {name: j.verdict for name, j in judgements.items() if j.kind == "speed"}
    assert speed == {"step_seconds": SAME, quantity: verdict}


def test_seeds_of_the_baseline_on_another_card_do_not_count():
    faster = add_steps(0.01, device=DEVICE | {"name": "H100"}, seeds=make_seeds(1))
    judgements = gate(Run.make([add_steps(0.1), faster]), Run.make([add_steps(0.1)]))
    [steps] = [judgement for judgement in judgements if judgement.quantity == "step_seconds"]
    assert steps.verdict == SAME
    assert steps.effect == pytest.approx(0.0)


def saved_pair(folder, old, new):
    """The files of two runs, each of one record."""
    return run_file(folder / "old.json", [old]), run_file(folder / "new.json", [new])


@pytest.mark.parametrize(
    ("pair", "options", "code"),
    [
        ("same", [], 0),
        ("worse", [], 1),
        ("few", [], 6),  # predictions are others
        ("few", ["--gate-on=quality,memory"], 0),
        ("slow", [], 6),
        ("slow", ["--gate-on", "quality,speed"], 1),
    ],
)
def test_exit_codes_of_the_command(pair, options, code, tmp_path, capsys):
    pairs = {
        "same": (hit(512, 480), hit(512, 480)),
        "worse": (hit(512, 480), hit(512, 480, 20)),
        "few": (hit(30, 28), hit(30, 28, 2)),
        "slow": (add_steps(0.1), add_steps(1.1)),  # their scores are equal, but no rows are at hand
    }
    old, new = saved_pair(tmp_path, *pairs[pair])
    assert command.main([str(old), str(new), *options]) == code
    assert capsys.readouterr().err == ""


KNOWN = {
    "status": "known",
    "audits": [{"name": "gradients_survive_evaluation", "passed": False, "detail": "by 1"}],
    "known": {"gradients_survive_evaluation": "pytorch#158232, torch<2.11"},
}


@pytest.mark.parametrize(
    ("old_part", "new_part", "code", "first", "detail"),
    [
        ({}, KNOWN, 6, "1 of 2 cells failed gradients_survive_evaluation", "in this run"),
        (KNOWN, {}, 0, "Passed: ", "in the baseline"),
        (KNOWN, KNOWN, 0, "Known fault: 1 of 2 cells failed gradients_survive_eval", "in this run"),
    ],
)
def test_a_cell_with_a_known_fault_is_a_row_of_its_own_and_no_pass(
    tmp_path, capsys, old_part, new_part, code, first, detail
):
    cell = "gpt2_sa_lora"
    points = {"accuracy": hits(512, 480)}
    # It would be 12 points worse
    old = [hit(512, 480), get_record(cell, points, **old_part)]
    new = [hit(512, 480), get_record(cell, {"accuracy": hits(512, 416)}, **new_part)]
    judgements = gate(Run.make(old), Run.make(new))
    [judgement] = [judgement for judgement in judgements if judgement.cell == cell]
    assert (judgement.quantity, judgement.verdict) == ("cell", Verdict.KNOWN)
    assert judgement.detail.startswith(f"pytorch#158232, torch<2.11, {detail}")
    assert {judgement.verdict for judgement in judgements} >= {Verdict.KNOWN, SAME}
    old_file = run_file(tmp_path / "old.json", old)
    new_file = run_file(tmp_path / "new.json", new)
    assert command.main([str(old_file), str(new_file), "--format", "json"]) == code
    assert json.loads(capsys.readouterr().out)["answer"].startswith(first)
    command.main([str(old_file), str(new_file)])
    lines = capsys.readouterr().out.splitlines()
    [row] = [line.split() for line in lines if line.startswith(f"{cell} ")]
    assert "known" in row
    assert not {"same", "passed", "worse"} & {*row}


def test_a_run_of_known_faults_alone_cannot_be_judged(tmp_path, capsys):
    record = get_record("gpt2_sa_lora", {"accuracy": hits(512, 480)}, **KNOWN)
    files = [str(path) for path in saved_pair(tmp_path, record, record)]
    assert command.main([*files, "--format", "json"]) == 6
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert answer == "Cannot tell whether the run is worse than old.json."


def test_a_baseline_with_a_known_fault_is_refused_for_another_failed_audit():
    other = {"audits": [*KNOWN["audits"], KNOWN["audits"][0] | {"name": "base_frozen"}]}
    record = get_record("gpt2_sa_lora", **KNOWN | other | {"status": "audit"})
    with pytest.raises(InputError, match="gpt2_sa_lora failed audit base_frozen; give"):
        gate(Run.make([record]), Run.make([record]))


def with_peft(record, version, digest):
    """A record made with this release of PEFT and this code of it."""
    versions = {"python": "3.12.3", "torch": "2.15.0", "peft": version, "nltk": None}
    return replace(record, versions=versions, libraries={"torch": "1" * 16, "peft": digest * 16})


@pytest.mark.parametrize(
    ("version", "digest", "changes"),
    [
        ("0.21.2", "a", []),
        ("0.22.0", "b", ["peft 0.21.2 -> 0.22.0"]),
        ("0.21.2", "b", ["peft 0.21.2 -> 0.21.2 (other code)"]),  # as of a checkout
        (None, "a", ["peft 0.21.2 -> none"]),
    ],
)
def test_files_of_two_environments_are_named_as_an_upgrade_names_them(
    tmp_path, capsys, version, digest, changes
):
    old = with_peft(hit(512, 480), "0.21.2", "a")
    new = with_peft(hit(512, 480), version, digest)
    files = [str(path) for path in saved_pair(tmp_path, old, new)]
    assert command.main([*files, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["environments"] == changes
    sentence = "".join(f"The environments differ in {change}." for change in changes)
    for form in ("text", "markdown"):
        command.main([*files, "--format", form])
        printed = capsys.readouterr().out.replace("\\>", ">")  # as Markdown escapes it
        assert ("The environments differ" in printed) == bool(changes)
        assert sentence in printed


def test_the_first_packages_named_are_the_suites_libraries():
    old = {"zlib": "1", "torch": "2.10", "peft": None, "python": "3.12", "scipy": "1"}
    new = {"zlib": "2", "torch": "2.11", "peft": "0.22", "python": "3.12", "nltk": "3"}
    changes = ["peft none -> 0.22", "torch 2.10 -> 2.11", "zlib 1 -> 2"]
    assert version_changes(old, new) == changes
    archive = {"python": "another archive"}
    python = "python 3.12 -> 3.12 (another archive)"
    assert version_changes(old, new, archive) == [*changes[:2], python, changes[2]]


@pytest.mark.parametrize(
    ("pair", "code", "first", "reason"),
    [
        ((480, 480), 0, "Passed: the one cell reached every bound", "No worse than old.json by "),
        ((480, 416), 1, "Failed: 1 cell worse: bert_sa_lora acc", "Cause: numerics changed, first"),
        ((500, 500), 6, "Changed: ", "Cause: the runs differ in peft 0.22.0, it was 0.21.2"),
    ],
)
def test_json_has_the_first_line_of_the_text_the_exit_code_and_the_reasons(
    tmp_path, capsys, pair, code, first, reason
):
    old, new = (with_peft(hit(512, right), "0.21.2", "a") for right in pair)
    if code == 6:
        new = altered(with_peft(new, "0.22.0", "b"), "training.losses", [0.9, 0.8])
    files = [str(path) for path in saved_pair(tmp_path, old, new)]
    assert command.main([*files, "--format", "json"]) == code
    content = json.loads(capsys.readouterr().out)
    assert list(content) == KEYS
    assert command.main(files) == code
    text_lines = capsys.readouterr().out.splitlines()
    # The first line after the table and its remarks
    answer = next(line for line in text_lines if line.startswith(first.partition(":")[0] + ":"))
    assert content["answer"] == answer
    assert answer.startswith(first)
    assert content["exit_code"] == code
    assert content["reasons"][0].startswith(reason)
    assert set(content["reasons"]) < set(text_lines)
    assert content["next_step"] == "" or f"Next: {content['next_step']}." in text_lines
    assert {judgement["cell"] for judgement in content["judgements"]} == {CELL}


def test_markdown_the_step_summary_and_the_former_name_of_an_option(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    old, new = saved_pair(tmp_path, hit(30, 28), hit(30, 28, 2))
    # The name of --gate-on until 0.22
    options = ["--on", "quality,cannot-tell", "--format", "markdown"]
    assert command.main([str(old), str(new), *options]) == 6
    printed = capsys.readouterr()
    assert "--on is now called --gate-on" in printed.err
    answer = "**Cannot tell whether the run is worse than old.json.**"
    assert answer in printed.out
    assert answer in (tmp_path / "summary.md").read_text()


def test_a_users_cell_is_judged_by_the_noise_that_its_baseline_carries(tmp_path, capsys):
    # Another training run, as on other rows
    other_losses = {"training": MEASURED["training"] | {"losses": [0.9, 0.8]}}
    cell = {"cell": "bert_faq_lora", "task": "faq"}
    old = replace(hit(512, 500, bounds={}), **cell)
    new = replace(hit(512, 500, 133, bounds={}, **other_losses), **cell)
    old_file, new_file = saved_pair(tmp_path, old, new)
    words = [str(old_file), str(new_file)]
    assert command.main(words) == 6  # 26 points lost, and no noise known
    noise = OwnNoise(
        cell="bert_faq_lora",
        profile="quick",
        recipe=recipe_digest(old),
        rows=512,
        scores={"accuracy": [97.6, 97.4, 97.9, 97.5, 97.7]},
    )
    run = json.loads(old_file.read_text())
    old_file.write_text(json.dumps(sealed(run | noise_json([noise, noise], [old]))))
    assert command.main(words) == 1
    old_file.write_text(json.dumps(sealed(run | noise_json([replace(noise, rows=511)], [old]))))
    assert command.main(words) == 6
    old_file.write_text(json.dumps(run | {"noise": [{"cell": "bert_faq_lora"}]}))
    assert "its noise cannot be read (Field required)" in refusal(capsys, command.main, *words)


def test_a_collapse_by_twenty_points_is_worse_in_all_27_cells_and_takes_no_torch(tmp_path):
    records = [replace(record, bounds={}, examples=None) for record in read_list(BASELINE)]
    collapsed = []
    for record in records:
        scores = {name: score - 20.0 for name, score in record.scores.items()}
        collapsed.append(replace(record, scores=scores))
    old = run_file(tmp_path / "old.json", records)
    new = run_file(tmp_path / "new.json", collapsed)
    code = """
import sys
from tunegrid.commands.gate import main
code = main(sys.argv[1:])
sys.exit(8 if "torch" in sys.modules else code)
"""
    words = [sys.executable, "-c", code, old, new]
    answer = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 1, answer.stderr
    assert "quality: 27 worse" in answer.stdout


def test_code_from_the_hub_is_a_line_of_its_own(tmp_path, capsys):
    kernel = KernelRecord(commit="c" * 40, digest="d" * 16)
    old = hit(512, 480)
    new = replace(old, kernels={"acme/fast": kernel})
    files = [str(path) for path in saved_pair(tmp_path, old, new)]
    command.main(files)
    sentence = (
        "They computed with other compiled code: kernel acme/fast, which the other run lacks."
    )
    assert sentence in capsys.readouterr().out
