"""A verdict as data: which judgements count, what a run comes to, and commands for what to do
next.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from tunegrid import ROOT
from tunegrid.commands import bisect
from tunegrid.commands import gate as command
from tunegrid.gate.judgements import DEFAULT_KINDS, Judgement, Verdict, parse_kinds
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.report.verdict import Rank, changed_place, run_verdict
from tunegrid.terminal import annotation
from tunegrid.tests import kinds
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.records import altered, begun, complete, make_seeds

NUMERICS = ("numerics", "quality", "memory")
CELL = "bert_sa_lora"
OTHER = "t5_sa_lora"


def cell_run(cell=CELL, status="passed", audits=(), missed=(), score=95.0, seed=0, **changes):
    findings = [{"name": name, "passed": False, "detail": "why"} for name in audits]
    objections = [f"audit {name}: why ({cell}, quick, seed {seed})" for name in audits]
    parts = {
        "status": status,
        "audits": [{"name": "base_frozen", "passed": True, "detail": "nothing moved"}, *findings],
        "missed": [*objections, *missed] if status != "passed" else [],
        "scores": {"accuracy": score},
        "bounds": {"accuracy": 88.0},
        "seeds": make_seeds(seed),
    }
    return complete(cell, **parts | changes)


def judgement(cell, quantity, verdict, **evidence):
    main = {"sa": "accuracy", "qa": "f1", "sum": "rougeLsum"}[cell.split("_")[1]]
    return Judgement(
        cell=cell, main_score=main, quantity=quantity or main, verdict=verdict, **evidence
    )


def judged(cells=STUDY_IDS, evidence=None, **verdicts):
    """Equal numerics and the same main scores, but for the verdicts of some cells.

    Each score was tested; all judgements hold the evidence.
    """
    evidence = evidence or {}
    tested = {"p": 0.5} | evidence
    scores = [judgement(cell, "", verdicts.get(cell, Verdict.SAME), **tested) for cell in cells]
    numerics = [judgement(cell, "numerics", Verdict.EQUAL, **evidence) for cell in cells]
    return scores + numerics


def changed(cell, stage="start", *modules, detail="lora_A x 0.9258"):
    return judgement(
        cell, "numerics", Verdict.CHANGED, stage=stage, modules=modules, detail=f"{stage}: {detail}"
    )


# What a run comes to


@pytest.mark.parametrize("counted", [DEFAULT_KINDS, NUMERICS, ("memory",)])
@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("status", ["passed", "missed", "error"])
def test_what_fails_never_begins_with_passed_and_what_passes_never_with_failed(
    counted, verdict, status
):
    records = [
        cell_run(status=status, score=80.0, missed=["accuracy 80.0 is below 88.0"]),
        cell_run(OTHER),
    ]
    answer = run_verdict(records, judged((CELL, OTHER), t5_sa_lora=verdict), counted)
    assert answer.sentences[0].startswith("Failed") == (answer.exit_code == 1)
    assert answer.sentences[0].startswith(("Passed", "No regression")) == (answer.exit_code == 0)


EARLY = [
    judgement(CELL, "numerics", Verdict.EQUAL, first_updates=2),
    judgement(OTHER, "numerics", Verdict.EQUAL, first_updates=2),
]
UNTESTED = [
    judgement(CELL, "", Verdict.CANNOT_TELL, detail="no points by row"),
    judgement(OTHER, "", Verdict.CANNOT_TELL, detail="no points by row"),
]
LOST = judgement(CELL, "numerics", Verdict.NOT_COMPARABLE, detail="no run of the same seed")
DOUBT = judged((CELL, OTHER), {"min_drop": 4.1}, t5_sa_lora=Verdict.CANNOT_TELL)
LESS = judgement(CELL, "gradients_bytes", Verdict.CHANGED, effect=-0.5, detail="margin 0%")
NEW_CELL = judgement("gpt2_sa_sft", "cell", Verdict.NEW, detail="not in the baseline")
UNLIKE = judged(
    (CELL, OTHER),
    {"detail": "the recipes differ in learning_rate"},
    t5_sa_lora=Verdict.NOT_COMPARABLE,
)
SLOWER = judgement(CELL, "step_seconds", Verdict.NOT_COMPARABLE, detail="name: a and b")
REFUTED = judged(
    (CELL,),
    {"effect": -5.0, "confirmed": "no", "min_drop": 1.5},
    bert_sa_lora=Verdict.CANNOT_TELL,
)
BOTH = (cell_run(CELL), cell_run(OTHER))
BOTH_BEGUN = [begun(), begun(OTHER)]
SHORT = cell_run(
    audits=["learned_something"],
    excused={"learned_something": "2 of 48 updates may be too few"},
    bounds={},
)
UNVARIED = replace(
    SHORT,
    cell=OTHER,
    excused=dict.fromkeys(
        ("learned_something", "predictions_not_collapsed"), "2 of 48 updates may be too few"
    ),
)
CUT = altered(cell_run(bounds={}), "training.planned", 48)  # it made two
EXIT_CODES = {Rank.FAILED: 1, Rank.CHANGED: 6, Rank.CANNOT_TELL: 6, Rank.UNJUDGED: 6}


class Case(NamedTuple):
    """A run, the judgements on it, and what its verdict says."""

    rank: Rank
    words: str
    judgements: Sequence = ()
    records: Sequence = BOTH
    counted: Sequence = DEFAULT_KINDS


CASES = [
    Case(Rank.PASSED, "Passed: both cells reached every bound and passed every audit."),
    Case(Rank.EMPTY, "Nothing to show: this run holds no cell that ran.", records=[]),
    Case(
        Rank.BEGUN,
        "2 cells: 2 equal by their first 2 updates.",
        EARLY,
        BOTH_BEGUN,
        counted=NUMERICS,
    ),
    Case(
        Rank.FAILED,
        "Failed: lora_A x 0.9258 (numerics of the one cell",
        [changed(CELL)],
        BOTH_BEGUN,
        counted=NUMERICS,
    ),
    Case(Rank.CHANGED, "scores were not judged.", [changed(CELL)], BOTH_BEGUN),
    Case(
        Rank.CANNOT_TELL,
        "2 main scores cannot be decided (bert_sa_lora accuracy (no points",
        UNTESTED,
    ),
    Case(Rank.OPEN, "1 of 2 scores undecided (it would show drops of 4 points).", DOUBT),
    Case(
        Rank.CANNOT_TELL,
        "Cannot tell whether the run is worse than old.json.",
        DOUBT,
        counted=parse_kinds("cannot-tell"),
    ),
    Case(
        Rank.PASSED,
        "No worse than old.json by quality.",
        judged((CELL, OTHER)),
        counted=parse_kinds("quality,cannot-tell"),
    ),
    Case(
        Rank.OPEN,
        "found; numerics of 1 of 2 cells not compared (no run of the",
        [*judged((OTHER,)), LOST],
        counted=NUMERICS,
    ),
    Case(
        Rank.CANNOT_TELL,
        "no figure of numerics could be compared (no run of the same seed)",
        [LOST],
        counted=("numerics",),
    ),
    Case(
        Rank.PASSED,
        "numerics do not count here.",
        [*judged((CELL,)), changed(OTHER)],
        counted=("quality",),
    ),
    Case(
        Rank.CHANGED,
        "as in t5_sa_lora); no score is worse.",
        [*judged((CELL,)), changed(OTHER)],
    ),
    Case(Rank.CHANGED, "no score is worse, 1 of 2 undecided.", [*DOUBT, changed(CELL)]),
    Case(
        Rank.CHANGED,
        "Changed: tensors of the one cell hold fewer bytes: ",
        [*judged((CELL,)), LESS],
    ),
    Case(
        Rank.OPEN,
        "found; 1 cell not in old.json (gpt2_sa_sft).",
        [*judged((CELL, OTHER)), NEW_CELL],
    ),
    Case(
        Rank.CANNOT_TELL,
        "1 of 2 cells is not comparable with old.json: the recipes differ in learning_rate (t5_sa_lora).",
        UNLIKE,
    ),
    Case(
        Rank.UNJUDGED,
        "Too short to judge: the one cell failed learned_something (2 of 48",
        records=[SHORT],
    ),
    Case(
        Rank.UNJUDGED,
        "short to judge: bert_sa_lora made 2 of its 48 planned updates",
        records=[CUT],
    ),
    Case(
        Rank.TOO_SHORT,
        "bert_sa_lora made 2 of its 48 planned updates",
        records=[CUT, BOTH[1]],
    ),
    Case(
        Rank.TOO_SHORT,
        "Partly too short to judge: 1 of 2 cells failed learned_something",
        records=[SHORT, BOTH[1]],
    ),
    Case(
        Rank.UNJUDGED,
        "both cells failed learned_something; t5_sa_lora failed predictions_not_collapsed "
        "(2 of 48 updates may be too few).",
        records=[SHORT, UNVARIED],
    ),
    # No line says more than was compared
    Case(Rank.CHANGED, "; scores could not be compared.", [*UNTESTED, changed(CELL)]),
    Case(
        Rank.CANNOT_TELL,
        "no figure of instruments could be compared.",
        judged((CELL, OTHER)),
        counted=("quality", "instruments"),
    ),
    Case(
        Rank.CANNOT_TELL,
        "no figure of speed could be compared (name: a and b).",
        [*judged((CELL, OTHER)), SLOWER],
        counted=("quality", "speed"),
    ),
    Case(
        Rank.FAILED,
        "Failed: 1 cell worse: t5_sa_lora accuracy",
        judged((CELL, OTHER), t5_sa_lora=Verdict.WORSE),
        counted=("memory", "quality"),
    ),
    Case(
        Rank.FAILED,
        "Failed: 1 cell worse: t5_sa_lora",
        [UNLIKE[0], judgement(OTHER, "", Verdict.WORSE)],
    ),
    Case(
        Rank.FAILED,
        "1 of 2 cells is not comparable with old.json: the recipes differ in learning_rate (t5_sa_lora).",
        [UNLIKE[1], judgement(CELL, "", Verdict.WORSE, p=0.0)],
    ),
    Case(
        Rank.CANNOT_TELL,
        "no figure of memory could be compared",
        UNLIKE,
        counted=("memory",),
    ),
    Case(
        Rank.CHANGED,
        "1 main score worse, which does not count here: ",
        [*judged((CELL,), bert_sa_lora=Verdict.WORSE), LESS],
        counted=("memory",),
    ),
    Case(
        Rank.OPEN,
        "No regression found; 1 drop not confirmed by a second training (bert_sa_lora -5.0); "
        "1 of 1 score",
        REFUTED,
    ),
    Case(Rank.OPEN, "(it would show drops of 1.5 points)", REFUTED),
    Case(
        Rank.OPEN,
        "1 of 2 scores not tested (no points by row)",
        [UNTESTED[0], *DOUBT[1:]],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.words)
def test_what_a_run_comes_to(case):
    verdict = run_verdict(case.records, case.judgements, case.counted, baseline="old.json")
    assert verdict.rank is case.rank
    assert verdict.exit_code == EXIT_CODES.get(case.rank, 0)
    assert case.words in " ".join(verdict.sentences)


@pytest.mark.parametrize(
    ("changes", "command", "words"),
    [
        ({"main_score": "recall"}, "", "(main score recall has none: `tunegrid calibrate`"),
        (
            {"bounds": {}},
            "pytest --set=max_steps=4",
            "without bounds, which do not hold with --set,",
        ),
        ({"bounds": {}}, "pytest --set perturbation=1", "to the end, without bounds, and passed"),
    ],
)
def test_a_bound_that_is_missing_or_does_not_hold_is_in_the_answer(changes, command, words):
    assert words in run_verdict([cell_run(**changes)], command=command).answer


def test_a_cell_of_the_baseline_that_missed_a_bound_is_noted():
    old = [cell_run(status="missed", score=80.0), cell_run("t5_qa_sft", status="missed")]
    verdict = run_verdict(BOTH, judged((CELL, OTHER)), baseline="old.json", before=old)
    note = "In old.json, 1 cell missed a bound (bert_sa_lora): give a baseline that passed."
    assert note in verdict.sentences
    assert verdict.exit_code == 0


def test_a_page_that_explains_a_failure_exists_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdict = run_verdict([cell_run(status="audit", audits=["base_frozen"])])
    assert f"{ROOT}/reports/evidence/audits.md explains base_frozen" in verdict.next_step


def test_first_updates_that_failed_are_not_among_the_sound_ones():
    failed = cell_run(audits=["base_frozen"]).audits
    wrong = replace(begun(), audits=failed, missed=["audit base_frozen: why"], status="failed")
    verdict = run_verdict([wrong, begun(OTHER)], EARLY)
    assert verdict.exit_code == 1
    assert verdict.answer == f"Failed: why (1 of 2 cells, {CELL}; failed audit base_frozen)."


def test_a_second_training_that_misses_too_confirms_a_miss_and_a_cell_alone_has_no_next_step():
    missed = {"status": "missed", "missed": ["accuracy 80.0 is below 88.0"], "score": 80.0}
    seeds = make_seeds(10_000) | {"confirms": 0}
    verdict = run_verdict(
        [cell_run(**missed), cell_run(**missed, seeds=seeds)],
        command=f"pytest -m quick --cells {CELL} -n 0",
    )
    assert (
        "accuracy 80.0 is below 88.0, confirmed by a second training at seed 10000)"
        in verdict.answer
    )
    assert verdict.next_step == ""


def test_modules_with_a_class_in_common_are_one_place_and_the_first_stage_is_named():
    cells = []
    for layer, cell in enumerate(STUDY_IDS[:2]):
        name = f"h.{layer}.c_attn"
        moved = f"the output of {name} (Conv1D, transformers) moves; with peft 2"
        module = (name, "Conv1D", "transformers")
        cells.append(changed(cell, "forward", module, detail=moved))
    later = changed(STUDY_IDS[3], "optimizer")
    change = changed_place([later, *cells])
    assert change.cells == list(STUDY_IDS[:2])
    assert change.stage == "forward"
    assert change.what == "the output of Conv1D of transformers moves"
    assert "h.0.c_attn (Conv1D" in changed_place([cells[0], later]).what
    assert not changed_place(judged()).cells
    two = [("q", "Linear", "peft"), ("k", "Linear", "peft")]
    both = [
        changed(cell, "forward", *two, detail="q (Linear, peft) and k (Linear, peft) change first")
        for cell in STUDY_IDS
    ]
    assert changed_place(both).what == "Linear of peft change first"


# What to run next

RAN = "pytest -m quick -n 4 --grid 'my own.py' --set max_steps=4 --ranks 2:fsdp --first-updates --data-root=d --gate x.json"
CARRIED = "'--grid=my own.py' --set=max_steps=4 --ranks=2:fsdp --first-updates --data-root=d"
MISSING = judgement(OTHER, "cell", Verdict.MISSING, detail="not in this run")
BROKEN = cell_run(status="error")
WORSE = [*judged((CELL,), bert_sa_lora=Verdict.WORSE), changed(CELL)]


def of_versions(peft, **changes):
    return [cell_run(versions=complete().versions | {"peft": peft}, **changes)]


class Step(NamedTuple):
    """A run, the command that made it, and the beginning of the command to run next."""

    begins: str
    records: Sequence
    judgements: Sequence = ()
    before: Sequence = ()
    ran: str = ""


STEPS = [
    Step(
        f"pytest -m quick --cells {CELL} {CARRIED} -n 0 --seeds 3",
        [cell_run(status="missed", score=80.0, seed=3), cell_run(OTHER)],
        ran=RAN,
    ),
    Step(f"{RAN} --resume", [cell_run(status="killed")], ran=RAN),
    Step(
        "pytest -m 'full and larger' --cells",
        [replace(BROKEN, cell="t5base_sa_lora", profile="full"), cell_run()],
    ),
    Step(
        "pytest -m quick --cells '$(rm -r x)' -n 0",
        [replace(BROKEN, cell="$(rm -r x)"), cell_run()],
        ran="an 'open quote",
    ),
    Step(
        f"pytest -m quick --cells {CELL} '--grid=my own.py' --ranks=2:fsdp --data-root=d",
        [SHORT],
        ran=RAN,
    ),
    Step(
        f"pytest -m quick --cells {CELL} --seeds 0,3",
        [altered(SHORT, "seeds.seed", 0), altered(SHORT, "seeds.seed", 3)],
        ran="pytest -m quick --seeds=0,3",
    ),
    Step(
        f"pytest -m quick --cells {OTHER} {CARRIED}",
        [cell_run()],
        [*judged((CELL,)), MISSING],
        before=[cell_run(OTHER)],
        ran=RAN,
    ),
    Step(f"pytest -m quick --cells {OTHER} --seeds 0-4", BOTH, DOUBT),
    Step(
        "tunegrid page NEW.json OLD.json -o page.html",
        [cell_run()],
        WORSE[:-1],
        before=[cell_run()],
    ),
    Step(
        "tunegrid bisect --good peft==0.21.0 --bad peft==0.21.2 "
        f"--cells {CELL} --gate-on numerics -- -m full '--grid=my own.py'",
        of_versions("0.21.2", profile="full", seed=2),
        WORSE,
        before=of_versions("0.21.0", profile="full", seed=2),
        ran=RAN,
    ),
]
# other code, an older release and another build are no later release, and no release brings a
# checkout's code
for version in ("0.21.0", "0.20.0", "0.21.0+cu1", "0.22.0.dev0", "none", None):
    STEPS.append(
        Step(
            "tunegrid gate OLD.json NEW.json --numerics",
            of_versions(version),
            [changed(CELL)],
            before=of_versions("0.21.0"),
        )
    )


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.begins)
def test_what_to_run_next_is_a_command_that_its_own_parser_takes(request, step):
    verdict = run_verdict(
        step.records, step.judgements, NUMERICS, before=step.before, command=step.ran
    )
    [words] = re.findall("`([^`]*)`", verdict.next_step)
    assert words.startswith(step.begins)
    parse(request.config, shlex.split(words))


def parse(config, words):
    """Raises what the command's own parser does."""
    if words[:2] == ["tunegrid", "bisect"]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                bisect,
                "run_bisection",
                lambda options: parse(config, ["pytest", *options.pytest_options]),
            )
            bisect.main(words[2:])
    elif words[:2] == ["tunegrid", "gate"]:
        with pytest.MonkeyPatch.context() as patched:
            for name in ("read_saved", "judge", "print_answer"):
                patched.setattr(command, name, lambda *_: SimpleNamespace(exit_code=0))
            assert command.main(words[2:]) == 0
    else:
        options = words[words.index("-m") :] if "-m" in words else words[1:]
        _, unknown = config._parser.parse_known_and_unknown_args(options)
        assert [word for word in unknown if word.startswith("-")] == []


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_commands_of_five_kinds_of_runs_are_parsed_too(request, kind):
    for words in re.findall("`([^`]*)`", " ".join(kinds.kind_verdict(kind).sentences)):
        parse(request.config, shlex.split(words))


def test_outside_the_checkout_tunegrid_runs_cells(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_verdict(BOTH, DOUBT).next_step.startswith(
        f"`tunegrid run -m quick --cells {OTHER} --seeds 0-4`"
    )
    assert "`" not in run_verdict([cell_run(status="killed")], command="rm -r x").next_step


@pytest.mark.parametrize(
    ("records", "judgements", "ran"),
    [
        ([cell_run(status="killed")], [], f"{RAN} --resume"),
        (BOTH, DOUBT, f"pytest --seeds=0-4 -m quick --cells={OTHER}"),
        (BOTH, [*judged((CELL,)), MISSING], f"tunegrid run -m quick --cells {OTHER}"),
        ([SHORT], [], f"pytest -m quick --cells {CELL} -n 4 --gate=old.json --html page.html"),
        # More seeds than would be named
        ([cell_run(OTHER, seed=seed) for seed in range(10)], DOUBT, ""),
        (
            [cell_run(status="audit", audits=["base_frozen"])],
            [],
            "pytest -m quick -n 2 --grid own.py",
        ),
    ],
)
def test_no_step_repeats_the_command_that_was_given(records, judgements, ran):
    assert "`" not in run_verdict(records, judgements, NUMERICS, command=ran).next_step


def test_after_an_upgrade_cells_run_in_the_environment_that_failed():
    runner = ["/env/bin/python", "-m", "tunegrid", "run"]
    upgrade = ["tunegrid", "upgrade", "peft", "--"]
    failed = run_verdict([cell_run(status="error")], runner=runner, upgrade=upgrade)
    assert failed.next_step.startswith(
        f"`/env/bin/python -m tunegrid run -m quick --cells {CELL} -n 0`"
    )
    five = [cell_run(OTHER, seed=seed) for seed in range(5)]
    assert "--seeds 0-9" in run_verdict(five, DOUBT).next_step
    assert run_verdict(BOTH, DOUBT, upgrade=upgrade).next_step.startswith(
        "`tunegrid upgrade peft -- --seeds 0-4`"
    )


# On a CI


def test_texts_of_a_file_cannot_end_an_annotation_or_begin_another():
    line = annotation("error", "a,b: 50 %\n::error::x", "first 5 %\n::error::x\x1b[2J")
    assert (
        line
        == "::error title=a%2Cb%3A 50 %25\\n%3A%3Aerror%3A%3Ax::first 5 %25%0A\\::error::x\\x1b[2J"
    )
    assert not obeyed(line.removeprefix("::error"))
