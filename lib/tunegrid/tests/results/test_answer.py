"""The answer to a run: on made-up records and judgements, and in the four places where a whole session says it."""

import io
import json
import re
from contextlib import redirect_stdout
from copy import deepcopy
from html import unescape
from xml.etree import ElementTree

import pytest

from tunegrid import ROOT
from tunegrid.commands import gate as command
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.results.answer import State, answer_of
from tunegrid.results.failures import told_by_cause
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.results.outcomes import FAILED_BY, kinds_of
from tunegrid.tests.records import complete
from tunegrid.tests.rehearsal import rehearsed

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
NUMERICS = ("numerics", "quality", "memory")
ADAPTERS = [cell for cell in STUDY_IDS if not cell.endswith("_sft")]
SOUND = {"name": "base_frozen", "passed": True, "detail": "nothing moved"}
MOVED = "start: weights before training, lora_A x 0.9258"  # kaiming's sqrt(5) as sqrt(6): sqrt(6 / 7)


def failed(name):
    return {"name": name, "passed": False, "detail": "why"}


def record_of(cell="bert_sa_lora", status="passed", audits=(), missed=(), score=95.0, bound=88.0, seed=0):
    objections = [f"audit {audit['name']}: {audit['detail']} ({cell}, quick, seed {seed})" for audit in audits]
    return complete(
        cell,
        status=status,
        audits=[SOUND, *audits],
        missed=[*objections, *missed] if status != "passed" else [],
        scores={"accuracy": score},
        bounds={} if bound is None else {"accuracy": bound},
        seeds={"seed": seed, "split_seed": 42, "perturbation": None},
    )


def judgement(cell, quantity, verdict, **evidence):
    main = {"sa": "accuracy", "qa": "f1", "sum": "rougeLsum"}[cell.split("_")[1]]
    return Judgement(cell=cell, main_score=main, quantity=quantity or main, verdict=verdict, **evidence)


def judged(cells=STUDY_IDS, **verdicts):
    """Equal numerics and the same main scores, but for the verdicts of some cells; each was tested."""
    scores = [judgement(cell, "", verdicts.get(cell, Verdict.SAME), p=0.5) for cell in cells]
    return [*scores, *(judgement(cell, "numerics", Verdict.EQUAL) for cell in cells)]


def with_numerics(judgements, details):
    """Numerics of these cells changed."""
    kept = [j for j in judgements if j.quantity != "numerics" or j.cell not in details]
    return [*kept, *(judgement(cell, "numerics", Verdict.CHANGED, detail=detail) for cell, detail in details.items())]


HEALTHY = [record_of(cell) for cell in STUDY_IDS]


# Cells


def test_a_failed_audit_is_the_first_sentence_whatever_the_gate_says():
    records = [record_of(c, "missed", [failed("dropout_drops")]) if c in ADAPTERS else record_of(c) for c in STUDY_IDS]
    answer = answer_of(records, judged(), baseline="before.json")
    assert answer.sentences[0] == "Failed: 18 of 27 cells failed audit dropout_drops."
    assert (answer.state, answer.exit_code) == (State.FAILED, 1)


def test_causes_are_counted_by_cell_audits_first_and_each_by_name():
    cells = iter(STUDY_IDS)
    records = [
        record_of(next(cells), "unfinished"),
        record_of(next(cells), "error", missed=["ValueError: no"]),
        record_of(next(cells), "stopped", missed=["loss is nan"]),
        record_of(next(cells), "stopped", [failed("adapters_where_declared")]),
        *(record_of(next(cells), "missed", score=80.0) for _ in range(2)),
        record_of(next(cells), "missed", [failed("base_frozen")], score=80.0),
        *(record_of("t5_sa_sft", "missed", [failed("dropout_drops")], seed=seed) for seed in range(3)),
        *(record_of(cell, "missed", [failed("dropout_drops")]) for cell in ("t5_sum_sft", "t5_qa_sft")),
        record_of("t5_sa_lora", "missed", missed=["the ledger holds 2 bytes, the device 3"]),
    ]
    answer = answer_of(records)
    assert answer.answer == (
        "Failed: 3 of 11 cells failed audit dropout_drops, 1 failed audit adapters_where_declared, 1 failed audit base_frozen, "
        "3 missed a bound, 1 had wrong figures, 1 broke off, 1 stopped early, 1 did not finish."
    )
    assert answer.cause == "audit dropout_drops: why (t5_sum_sft, quick, seed 0); likewise t5_qa_sft, t5_sa_sft"
    assert answer.more == ()


def test_causes_of_the_same_cells_name_them_once():
    both = [failed("base_frozen"), failed("dropout_drops")]
    records = [record_of(cell, "missed", both, missed=["accuracy 80.0 is below 88.0"], score=80.0) for cell in STUDY_IDS[:4]]
    name = "failed audits base_frozen and dropout_drops and missed a bound"
    assert answer_of([*records, record_of("t5_sa_sft")]).answer == f"Failed: 4 of 5 cells {name}."
    assert list(told_by_cause(records)) == [
        f"4 cells {name}: {', '.join(STUDY_IDS[:4])}",
        f"  audit base_frozen: why ({STUDY_IDS[0]}, quick, seed 0)",
        f"  audit dropout_drops: why ({STUDY_IDS[0]}, quick, seed 0)",
        "  accuracy 80.0 is below 88.0",
    ]
    one_more = record_of("t5_sa_sft", "missed", both[:1])
    assert answer_of([*records, one_more]).answer == (
        "Failed: 5 of 5 cells failed audit base_frozen, 4 failed audit dropout_drops and missed a bound."
    )


def test_what_no_bound_or_audit_vouched_for_is_not_called_passed():
    assert " ".join(answer_of([record_of(bound=None)]).sentences) == (
        "Passed: the one cell ran to the end, without bounds, and passed every audit."
    )
    two = [record_of(), record_of("t5_sa_lora", bound=None)]
    assert " ".join(answer_of(two).sentences) == "Passed: all 2 cells reached every bound there is and passed every audit."
    [sentence] = answer_of([record_of(audits=[failed("learned_something")], bound=None), record_of("t5_sa_lora")]).sentences
    assert sentence.endswith("but audits that do not count here object in 1 cell (learned_something).")
    assert " ".join(answer_of([complete(audits=[])]).sentences).endswith("but not every cell was audited.")
    answer = answer_of([record_of()], troubles=["1 other test failed (test_x)"])
    assert (" ".join(answer.sentences), answer.exit_code) == ("Failed: 1 other test failed (test_x).", 1)


# The gate


def test_a_clean_run_is_no_worse():
    answer = answer_of(HEALTHY, judged(), baseline="before.json")
    assert answer.sentences == (
        "Passed: all 27 cells reached every bound and passed every audit.",
        "By quality and memory no worse than before.json.",
    )
    assert (answer.state, answer.exit_code, answer.failing) == (State.PASSED, 0, [])


def test_changed_numerics_name_their_stage_and_cells_and_fail_where_they_count():
    judgements = with_numerics(judged(), dict.fromkeys(ADAPTERS, MOVED))
    change = "umerics changed in 18 of 27 cells, first at the stage start (18 cells, as in "
    sample = f"{ADAPTERS[0]}: weights before training, lora_A x 0.9258)"
    shown = answer_of(HEALTHY, judgements, baseline="before.json")
    assert shown.sentences[1] == f"N{change}{sample}; that does not count here."
    assert shown.sentences[2].startswith("Next: ")
    assert shown.sentences[3] == "By quality and memory no worse than before.json."
    assert shown.exit_code == 0
    counted = answer_of(HEALTHY, judgements, NUMERICS)
    assert counted.answer == "Failed: numerics changed in 18 of 27 cells."
    assert counted.cause == f"first at the stage start (18 cells, as in {sample}"
    assert (counted.exit_code, {j.cell for j in counted.failing}) == (1, set(ADAPTERS))


def test_numerics_that_count_and_could_not_be_compared_are_not_called_unchanged():
    cells = ("bert_sa_lora", "t5_sa_lora")
    unlike = judgement(cells[0], "numerics", Verdict.NOT_COMPARABLE, detail="no run of the same seed")
    judgements = [j for j in judged(cells) if (j.cell, j.quantity) != (cells[0], "numerics")]
    answer = answer_of([record_of(cell) for cell in cells], [*judgements, unlike], NUMERICS)
    assert "Numerics did not change in 1 of 2 cells; 1 cell cannot be compared (no run of the same seed)." in answer.sentences


def test_what_is_worse_or_missing_comes_before_what_passed():
    judgements = judged(t5_qa_sft=Verdict.WORSE, bert_qa_sft=Verdict.WORSE)
    judgements.append(judgement("t5_sa_lora", "cell", Verdict.MISSING, detail="in the baseline, not in this run"))
    answer = answer_of(HEALTHY, judgements, baseline="before.json")
    assert answer.sentences[0] == (
        "Failed against before.json: 1 cell missing (t5_sa_lora), 2 cells worse (bert_qa_sft f1, t5_qa_sft f1)."
    )
    assert answer.cause == "t5_sa_lora is in the baseline, not in this run"
    assert answer.way_on == "`pytest -m quick --cells t5_sa_lora` runs what is missing"
    assert answer.more == ("All 27 cells reached every bound and passed every audit.",)


def test_a_gate_that_could_test_no_main_score_cannot_tell_at_all():
    untested = [judgement(cell, "", Verdict.CANNOT_TELL, detail="no points by row to test") for cell in STUDY_IDS]
    answer = answer_of(HEALTHY, untested, baseline="before.json")
    assert answer.sentences[:3] == (
        "Cannot tell whether the run is worse than before.json.",
        "Cause: no main score could be tested (bert_sum_lora rougeLsum: no points by row to test).",
        "Next: give both runs several seeds (`--seeds 0-4`).",
    )
    assert (answer.state, answer.exit_code) == (State.CANNOT_TELL, 6)
    assert "no worse" not in " ".join(answer.sentences)


def test_a_doubt_is_said_and_counts_only_where_it_was_asked_for():
    judgements = judged(t5_sa_lora=Verdict.CANNOT_TELL)
    answer = answer_of(HEALTHY, judgements, baseline="before.json")
    assert answer.sentences[1].endswith("no worse than before.json, though the gate cannot tell for 1 main score.")
    assert answer.sentences[2].startswith("Next: give both runs several seeds")
    for kinds in ("quality,memory,cannot-tell", "numerics,cannot-tell", "cannot-tell"):
        answer = answer_of(HEALTHY, judgements, kinds_of(kinds), baseline="before.json")
        assert (answer.exit_code, *answer.sentences[:2]) == (
            6,
            "Cannot tell whether the run is worse than before.json.",
            "Cause: 1 cell cannot be told (t5_sa_lora accuracy).",
        )
    answer = answer_of(HEALTHY, judged(), kinds_of("quality,memory,cannot-tell"), baseline="before.json")
    assert answer.sentences[-1] == "By quality and memory no worse than before.json."


@pytest.mark.parametrize("kinds", [FAILED_BY, NUMERICS, ("memory",)])
@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("status", ["passed", "missed", "error"])
def test_what_fails_never_begins_with_no_worse_or_passed_and_what_passes_never_with_failed(kinds, verdict, status):
    records = [record_of(status=status, score=80.0, missed=["accuracy 80.0 is below 88.0"]), record_of("t5_sa_lora")]
    answer = answer_of(records, judged(("bert_sa_lora", "t5_sa_lora"), t5_sa_lora=verdict), kinds)
    assert answer.sentences[0].startswith("Failed") == (answer.exit_code == 1)
    assert ("no worse" in answer.sentences[0] or answer.sentences[0].startswith("Passed")) <= (answer.exit_code == 0)


# Every place


def session(folder, change, *options):
    """A whole session but for training, gated by the baseline: its code, lines by place, JUnit's suite and cases."""
    saved = json.loads(BASELINE.read_text())
    rows = [deepcopy(row) for row in saved["benchmarks"] if row["extra_info"]["seeds"]["seed"] == 0]
    for row in rows:
        change(row["extra_info"])
    (folder / "rows.json").write_text(json.dumps(saved | {"benchmarks": rows}))
    page, xml, summary, run = (folder / name for name in ("page.html", "junit.xml", "summary.md", "run.json"))
    files = (f"--gate={BASELINE}", f"--benchmark-json={run}", f"--html={page}", f"--junit-xml={xml}")
    done = rehearsed(folder, folder / "rows.json", "-n", "0", *files, *options, GITHUB_STEP_SUMMARY=str(summary))
    assert page.is_file(), done.stdout + done.stderr
    suite = ElementTree.parse(xml).getroot().find("testsuite")
    after_counts = done.stdout.partition("; quality: ")[2].splitlines()[1:]
    head = page.read_text().partition("<h1>")[2].partition("<ul")[0].replace("\u2212", "-")
    places = {
        "terminal": after_counts,
        "summary": [line.strip("*") for line in summary.read_text().replace("\\", "").splitlines() if line],
        "page": re.findall(r"(?:</span> |<p class=\"gate\">)(.*?)</(?:h1|p)>", unescape(head)),
        "junit": lines_of(properties_of(suite)),
        "annotation": [line for line in after_counts if line.startswith("::error")][:1],
    }
    code, places["command"] = of_command(run, options)
    assert code == done.returncode
    cases = map(properties_of, suite.findall("testcase"))
    return code, places, suite, {case.get("cell"): case for case in cases}


def properties_of(node):
    return {one.get("name"): one.get("value") for one in node.findall("properties/property")}


def lines_of(properties):
    labels = {"answer": "", "cause": "Cause: ", "next": "Next: "}
    return [f"{label}{properties[name]}{'.' if label else ''}" for name, label in labels.items() if name in properties]


def of_command(run, options):
    """The exit code of `tunegrid gate` on the two files, and what it says at its end."""
    words = [option.replace("--gate-on", "--on") for option in options]
    with redirect_stdout(io.StringIO()) as out:
        code = command.main([str(BASELINE), str(run), *words])
    return code, out.getvalue().partition("; quality: ")[2].splitlines()[1:]


def failed_audit(record):
    if record["cell"] in ADAPTERS:
        record["audits"][0] |= {"passed": False}
        audit = record["audits"][0]
        record |= {
            "status": "missed",
            "missed": [f"audit {audit['name']}: {audit['detail']} ({record['cell']}, quick, seed 0)"],
        }


def moved_start(record):
    if record["cell"] in ADAPTERS:
        record["training"]["first_step"]["weights"]["lora_A"] *= (6 / 7) ** 0.5


def assert_same_lines(places, lines):
    """Every place begins with these lines; the annotation holds them."""
    annotation = next(iter(places.pop("annotation")), "")
    assert {name: found[: len(lines)] for name, found in places.items()} == dict.fromkeys(places, lines)
    if annotation:
        message = annotation.removeprefix("::error title=tunegrid%3A failed::").split("%0A")
        assert message[: len(lines)] == [line.replace("%", "%25") for line in lines]


def test_every_place_says_of_a_failed_audit_the_same_three_lines(tmp_path):
    code, places, suite, cases = session(tmp_path, failed_audit)
    assert code == 1
    first, second, third, fourth, *_ = ADAPTERS
    lines = [
        "Failed: 18 of 27 cells failed audit checkpoint_loaded.",
        places["terminal"][1],
        f"Next: `pytest -m quick -n 0 --cells {first}` runs one alone; reports/evidence/audits.md says what checkpoint_loaded "
        "looks at.",
    ]
    assert lines[1].startswith("Cause: audit checkpoint_loaded: ")
    assert lines[1].endswith(f" ({first}, quick, seed 0); likewise {second}, {third}, {fourth} and 14 more.")
    assert places["annotation"]
    assert_same_lines(places, lines)
    [case] = suite.findall("testcase[@classname='tunegrid']")
    assert case.find("failure").get("message") == lines[0]
    assert case.find("failure").text.splitlines()[:3] == lines
    assert cases.keys() == {*STUDY_IDS, None}
    assert [cases[cell]["verdict"] for cell in (first, "gpt2_sa_sft")] == ["missed", "same"]
    assert "cause" not in cases["gpt2_sa_sft"]
    assert cases[first]["cause"].endswith(f"({first}, quick, seed 0)")


@pytest.mark.parametrize("options", [(), ("--gate-on=numerics,quality,memory",)])
def test_every_place_names_the_stage_at_which_numerics_changed_in_the_same_lines(tmp_path, options):
    code, places, suite, cases = session(tmp_path, moved_start, *options)
    where = "first at the stage start (18 cells, as in "
    lines = places["terminal"][:3]
    if options:
        assert (code, lines[0]) == (1, "Failed: numerics changed in 18 of 27 cells.")
        assert lines[1].startswith(f"Cause: {where}")
    else:
        assert (code, lines[0].partition(":")[0], places["annotation"]) == (0, "Passed", [])
        assert lines[1].startswith(f"Numerics changed in 18 of 27 cells, {where}")
        assert lines[1].endswith("; that does not count here.")
        places["junit"].insert(1, lines[1])  # whose properties have no cause where the run passed
    assert_same_lines(places, lines)
    assert "lora_A x 0.9258" in lines[1]
    assert [cases[ADAPTERS[0]][name] for name in ("stage", "numerics", "quality")] == ["start", "changed", "same"]
    assert (suite.find("testcase[@classname='tunegrid']/failure") is not None) == bool(options)
