"""A verdict as data: which judgements count, what a run comes to, and commands for what to do next."""

import io
import json
import shlex
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import pytest

from tunegrid import ROOT
from tunegrid.commands import bisect
from tunegrid.commands import gate as command
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.results.status import failures_of
from tunegrid.results.summary import annotate, properties_of
from tunegrid.results.verdict import FAILED_BY, State, first_change, kinds_of, verdict_of
from tunegrid.terminal import annotation
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.records import begun, complete, seeds_as
from tunegrid.tests.rehearsal import rehearsed

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
NUMERICS = ("numerics", "quality", "memory")
ADAPTERS = [cell for cell in STUDY_IDS if not cell.endswith("_sft")]
SOUND = {"name": "base_frozen", "passed": True, "detail": "nothing moved"}
CELL, OTHER = "bert_sa_lora", "t5_sa_lora"


def failed(name):
    return {"name": name, "passed": False, "detail": "why"}


def record_of(cell=CELL, status="passed", audits=(), missed=(), score=95.0, bound=88.0, seed=0, **changes):
    objections = [f"audit {audit['name']}: {audit['detail']} ({cell}, quick, seed {seed})" for audit in audits]
    parts = {
        "status": status,
        "audits": [SOUND, *audits],
        "missed": [*objections, *missed] if status != "passed" else [],
        "scores": {"accuracy": score},
        "bounds": {} if bound is None else {"accuracy": bound},
        "seeds": seeds_as(seed),
    }
    return complete(cell, **parts | changes)


def judgement(cell, quantity, verdict, **evidence):
    main = {"sa": "accuracy", "qa": "f1", "sum": "rougeLsum"}[cell.split("_")[1]]
    return Judgement(cell=cell, main_score=main, quantity=quantity or main, verdict=verdict, **evidence)


def judged(cells=STUDY_IDS, **verdicts):
    """Equal numerics and the same main scores, but for the verdicts of some cells; each was tested."""
    scores = [judgement(cell, "", verdicts.get(cell, Verdict.SAME), p=0.5) for cell in cells]
    return [*scores, *(judgement(cell, "numerics", Verdict.EQUAL) for cell in cells)]


def changed(cell, stage="start", *modules, detail="lora_A x 0.9258"):
    return judgement(cell, "numerics", Verdict.CHANGED, stage=stage, modules=modules, detail=f"{stage}: {detail}")


# What a run comes to


@pytest.mark.parametrize("kinds", [FAILED_BY, NUMERICS, ("memory",)])
@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("status", ["passed", "missed", "error"])
def test_what_fails_never_begins_with_no_worse_or_passed_and_what_passes_never_with_failed(kinds, verdict, status):
    records = [record_of(status=status, score=80.0, missed=["accuracy 80.0 is below 88.0"]), record_of(OTHER)]
    answer = verdict_of(records, judged((CELL, OTHER), t5_sa_lora=verdict), kinds)
    assert answer.sentences[0].startswith("Failed") == (answer.exit_code == 1)
    assert ("no worse" in answer.sentences[0] or answer.sentences[0].startswith("Passed")) <= (answer.exit_code == 0)


def test_causes_are_counted_by_cell_audits_first_and_those_of_the_same_cells_together():
    cells = iter(STUDY_IDS)
    both = [failed("base_frozen"), failed("dropout_drops")]
    records = [
        record_of(next(cells), "unfinished"),
        record_of(next(cells), "error", missed=["ValueError: no"]),
        record_of(next(cells), "stopped", missed=["loss is nan"]),
        record_of(next(cells), "stopped", [failed("adapters_where_declared")]),
        record_of(next(cells), "missed", score=80.0),
        *(record_of("t5_sa_sft", "missed", both, score=80.0, seed=seed) for seed in range(3)),
        record_of(OTHER, "missed", missed=["the ledger holds 2 bytes, the device 3"]),
    ]
    assert [one.title for one in failures_of(records)] == [
        "1 cell failed audit adapters_where_declared",
        "1 cell failed audits base_frozen and dropout_drops",
        "2 cells missed a bound",
        "1 cell had wrong figures",
        "1 cell broke off",
        "1 cell stopped early",
        "1 cell did not finish",
    ]
    assert [one.title for one in failures_of([record_of(status="audit", audits=both)])] == [
        "1 cell failed audits base_frozen and dropout_drops"
    ]


def test_first_updates_that_failed_are_not_among_the_sound_ones():
    wrong = begun(status="failed", missed=["audit base_frozen: why"], audits=[failed("base_frozen")])
    verdict = verdict_of(
        [wrong, begun(OTHER)], [judgement(one, "numerics", Verdict.EQUAL, first_updates=2) for one in (CELL, OTHER)]
    )
    assert (verdict.exit_code, verdict.answer) == (1, f"Failed: why (1 of 2 cells, {CELL}; failed audit base_frozen).")
    assert verdict_of([begun()]).state is State.BEGUN


def test_a_gate_that_could_test_no_main_score_cannot_tell_at_all():
    untested = [judgement(cell, "", Verdict.CANNOT_TELL, detail="no points by row to test") for cell in STUDY_IDS]
    answer = verdict_of(map(record_of, STUDY_IDS), untested, baseline="before.json")
    assert (answer.state, answer.exit_code) == (State.CANNOT_TELL, 6)
    assert answer.answer == "Cannot tell whether the run is worse than before.json."
    assert "no points by row to test" in answer.cause
    assert "no worse" not in " ".join(answer.sentences)


def test_a_doubt_is_said_and_counts_only_if_it_was_asked_for():
    judgements, records = judged(t5_sa_lora=Verdict.CANNOT_TELL), list(map(record_of, STUDY_IDS))
    answer = verdict_of(records, judgements, baseline="before.json")
    doubt = "By quality and memory no worse than before.json, though 1 main score cannot be told (t5_sa_lora)."
    assert answer.sentences[1] == doubt
    assert "--cells t5_sa_lora --seeds 0-4`" in answer.next_step
    for kinds in ("quality,memory,cannot-tell", "numerics,cannot-tell", "cannot-tell"):
        assert verdict_of(records, judgements, kinds_of(kinds)).exit_code == 6
    assert verdict_of(records, judged(), kinds_of("quality,memory,cannot-tell")).exit_code == 0


def test_numerics_that_count_and_were_not_compared_are_said_with_their_reason():
    reason, records = "no run of the same seed", [record_of(CELL), record_of(OTHER)]
    lost, equal = judgement(CELL, "numerics", Verdict.NOT_COMPARABLE, detail=reason), judged((CELL, OTHER))
    some = verdict_of(records, [*(j for j in equal if j.kind != "numerics" or j.cell == OTHER), lost], NUMERICS)
    assert (some.exit_code, f"Numerics of 1 of 2 cells could not be compared ({reason})." in some.sentences) == (0, True)
    alone = verdict_of(records[:1], [*judged((CELL,), bert_sa_lora=Verdict.CANNOT_TELL)[:1], lost], ("numerics",))
    assert (alone.exit_code, alone.cause) == (6, f"nothing of numerics could be compared ({reason})")


def test_modules_with_a_class_in_common_are_one_place_and_the_first_stage_is_named():
    places = [(f"h.{layer}.c_attn", "Conv1D", "transformers") for layer in range(2)]
    cells = [
        changed(cell, "forward", place, detail=f"the output of {place[0]} (Conv1D, transformers) moves; with peft 2")
        for cell, place in zip(STUDY_IDS, places, strict=False)
    ]
    later = changed(STUDY_IDS[3], "optimizer")
    change, what = first_change([later, *cells]), "the output of Conv1D of transformers moves"
    assert (change.stage, change.what, change.cells) == ("forward", what, list(STUDY_IDS[:2]))
    assert "h.0.c_attn (Conv1D" in first_change([cells[0], later]).what
    assert not first_change(judged()).cells
    two = [("q", "Linear", "peft"), ("k", "Linear", "peft")]
    both = [changed(cell, "forward", *two, detail="q (Linear, peft) and k (Linear, peft) change first") for cell in STUDY_IDS]
    assert first_change(both).what == "Linear of peft change first"


def test_changed_numerics_fail_if_they_count_and_are_the_cause_of_what_is_worse():
    judgements = [*judged((CELL,), bert_sa_lora=Verdict.WORSE), changed(CELL)]
    before, after = (record_of(versions=complete().versions | {"peft": text}) for text in ("0.21.0", "0.21.2"))
    answer = verdict_of([after], judgements, before=[before])
    assert answer.cause == "numerics changed, first at the stage start: lora_A x 0.9258"
    assert answer.next_step.startswith(
        "`tunegrid bisect --good peft==0.21.0 --bad peft==0.21.2 --cells bert_sa_lora --by numerics`"
    )
    shown = verdict_of([after], [*judged((CELL,))[:1], changed(CELL)])
    assert (shown.exit_code, shown.findings[1].stage) == (0, "start")
    assert verdict_of([after], [changed(CELL)], NUMERICS).exit_code == 1


def test_a_run_that_is_compared_with_itself_says_so():
    records = list(map(record_of, STUDY_IDS))
    assert "compared with itself" in verdict_of(records, judged(), before=records[::-1]).answer


# What to run next


def test_a_command_has_the_options_of_its_run_and_nothing_that_a_shell_would_obey(monkeypatch, tmp_path):
    ran = "pytest -m quick -n 4 --grid 'my own.py' --set max_steps=4 --ranks 2:fsdp --first-updates --data-root=d --gate x.json"
    worse = record_of(status="missed", score=80.0, seed=3)
    said = verdict_of([worse], command=ran).next_step
    carried = "'--grid=my own.py' --set=max_steps=4 --ranks=2:fsdp --first-updates --data-root=d"
    assert said.startswith(f"`pytest -m quick --cells {CELL} {carried} -n 0 --seeds 3`")
    strange = verdict_of([replace(worse, cell="$(rm -r x)", status="error")], command="an 'open quote").next_step
    assert strange.startswith("`pytest -m quick --cells '$(rm -r x)' -n 0 --seeds 3`")
    assert "--gate=" in verdict_of([worse]).next_step  # the committed baseline tells what is other
    larger = replace(worse, cell="t5base_sa_lora", profile="full", instruments={"merges": "a part"})
    assert verdict_of([larger]).next_step.startswith("`pytest -m 'full and larger' --cells t5base_sa_lora --ask=merges ")
    missing = judgement(OTHER, "cell", Verdict.MISSING, detail="not in this run")
    monkeypatch.chdir(tmp_path)
    verdict = verdict_of([record_of()], [*judged((CELL,)), missing], before=[record_of(OTHER)], command=ran)
    assert verdict.next_step.startswith(f"`tunegrid run -m quick --cells {OTHER} ")
    for asked in (ran, f"{ran} --resume"):
        assert verdict_of([record_of(status="killed")], command=asked).next_step == f"`{ran} --resume` runs what is left"
    assert "`" not in verdict_of([record_of(status="killed")], command="rm -r x").next_step


def told(old, new, library="peft", **changes):
    """What to run if a library differs by version, code or both."""
    pair = [
        record_of(versions=complete().versions | {library: text}, libraries={library: digit * 16}, **changes)
        for text, digit in ((old, "1"), (new, "2"))
    ]
    return verdict_of(pair[1:], [changed(CELL)], NUMERICS, before=pair[:1]).next_step


def test_a_release_that_is_none_is_bisected_by_commits_and_another_build_or_a_downgrade_not_at_all():
    command_line = told("2.12.1+cpu", "2.13.0+cpu", "torch", profile="full", seed=2).split("`")[1]
    _, options = bisect.parsed(shlex.split(command_line)[2:])
    assert (options.good, options.bad, options.by) == ("torch==2.12.1+cpu", "torch==2.13.0+cpu", "numerics")
    assert options.pytest_options == ["-m", "full", "--seeds", "2"]
    assert "--repo CHECKOUT" in told("0.21.2", "0.22.0.dev0")
    assert "--repo CHECKOUT" in told("0.21.2", "0.21.2")  # other code of one version
    others = [told("0.21.2", other) for other in ("0.20.0", "not a version", None)]
    assert not any("bisect" in one for one in (*others, told("2.8.0+cpu", "2.8.0+cu128", "torch")))


# Cells in JUnit's file, and annotations


def test_a_case_has_its_status_or_the_gravest_verdict_and_speed_only_if_it_counts():
    judgements = [
        judgement(CELL, "numerics", Verdict.EQUAL),
        judgement(CELL, "step_seconds", Verdict.WORSE, detail="margin 15%", effect=0.2),
        changed(CELL, "forward", ("h.0", "Linear", "torch")),
    ]
    assert properties_of(complete(), judgements[:2])["verdict"] == "equal"
    counted = properties_of(complete(), judgements[:2], ("quality", "speed"))
    assert (counted["verdict"], counted["cause"]) == ("worse", "bert_sa_lora step_seconds +20.0 % (margin 15%)")
    assert [properties_of(complete(), judgements)[name] for name in ("stage", "module")] == ["forward", "h.0"]
    below = record_of(status="missed", score=80.0, missed=["accuracy 80.0 is below 88.0"])
    assert properties_of(below, judgements)["verdict"] == "missed"
    assert properties_of(complete(scores={"accuracy": None})) == {"verdict": "passed"}  # a score that is no number is left out


@pytest.mark.parametrize(("variables", "printed"), [({"GITHUB_ACTIONS": "true"}, 10), ({"GITHUB_ACTIONS": ""}, 0)])
def test_annotations_are_printed_in_github_actions_alone_and_as_many_as_it_shows(monkeypatch, capsys, variables, printed):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    records = [record_of(cell, "audit", [failed(f"audit_{n}")]) for n, cell in enumerate(STUDY_IDS[:20])]
    annotate(verdict_of(records))
    annotate(verdict_of([record_of()]))
    assert capsys.readouterr().out.count("::error title=") == printed


def test_texts_of_a_file_cannot_end_an_annotation_or_begin_another():
    line = annotation("error", "a,b: 50 %\n::error::x", "first 5 %\n::error::x\x1b[2J")
    assert line == "::error title=a%2Cb%3A 50 %25\\n%3A%3Aerror%3A%3Ax::first 5 %25%0A\\::error::x\\x1b[2J"
    assert not obeyed(line.removeprefix("::error"))


# Every place of a session


def moved_start(record):
    if record["cell"] in ADAPTERS:
        record["training"]["first_step"]["weights"]["lora_A"] *= (6 / 7) ** 0.5


@pytest.mark.parametrize("options", [(), ("--gate-on=numerics,quality,memory",)])
def test_every_place_of_a_session_says_the_same_lines(tmp_path, options):
    """A whole session but for training, gated by the baseline."""
    saved = json.loads(BASELINE.read_text())
    rows = [deepcopy(row) for row in saved["benchmarks"] if row["extra_info"]["seeds"]["seed"] == 0]
    for row in rows:
        moved_start(row["extra_info"])
    (tmp_path / "rows.json").write_text(json.dumps(saved | {"benchmarks": rows}))
    page, xml, summary, run = (tmp_path / name for name in ("page.html", "junit.xml", "summary.md", "run.json"))
    files = (f"--gate={BASELINE}", f"--benchmark-json={run}", f"--html={page}", f"--junit-xml={xml}")
    done = rehearsed(tmp_path, tmp_path / "rows.json", "-n", "0", *files, *options, GITHUB_STEP_SUMMARY=str(summary))
    with redirect_stdout(io.StringIO()) as out:
        code = command.main([str(BASELINE), str(run), *(option.replace("--gate-on", "--on") for option in options)])
    assert (code, done.returncode) == (int(bool(options)), int(bool(options))), done.stdout + done.stderr
    first = next(line for line in out.getvalue().splitlines() if line.startswith(("Passed", "Failed")))
    change = "eights before training, lora_A x 0.9258 (numerics of 18 of 27 cells changed, first at the stage start"
    assert change in (first if options else done.stdout)
    suite = ElementTree.parse(xml).getroot().find("testsuite")
    whole = {one.get("name"): one.get("value") for one in suite.findall("properties/property")}
    assert first in done.stdout.splitlines()
    assert whole["answer"] == first
    assert first in summary.read_text().replace("\\", "")
    assert first.partition(": ")[2] in unescape(page.read_text()).replace("\u2212", "-")
    assert (suite.find("testcase[@classname='tunegrid']/failure") is not None) == bool(options)
    assert ("::error" in done.stdout) == bool(options)
