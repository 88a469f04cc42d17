"""A verdict as data: which judgements count, what a run comes to, and commands for what to do
next.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest

from tunegrid import ROOT
from tunegrid.commands import bisect, gate, page
from tunegrid.gate.judgements import DEFAULT_KINDS, Judgement, Verdict, parse_kinds
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.page import view
from tunegrid.report.verdict import Rank, changed_place, run_verdict
from tunegrid.terminal import annotation
from tunegrid.tests import kinds
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.records import FINDING, altered, begun, complete, make_seeds

NUMERICS = ("numerics", "quality", "memory")
CELL = "bert_sa_lora"
OTHER = "t5_sa_lora"


def judgement(cell, verdict, quantity="accuracy", **evidence):
    """A judgement on a figure, by default on the main score."""
    return Judgement(
        cell=cell, main_score="accuracy", quantity=quantity, verdict=verdict, **evidence
    )


def judge(cell, verdict=Verdict.SAME, **evidence):
    """The judgements on a cell: its main score was tested, and its numerics are equal."""
    return [
        judgement(cell, verdict, p=0.5, **evidence),
        judgement(cell, Verdict.EQUAL, "numerics"),
    ]


def changed(cell, stage="start", detail="lora_A x 0.9258", modules=()):
    return judgement(
        cell, Verdict.CHANGED, "numerics", stage=stage, modules=modules, detail=f"{stage}: {detail}"
    )


# What a run comes to


@pytest.mark.parametrize("counted", [DEFAULT_KINDS, NUMERICS, ("memory",)])
@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("status", ["passed", "missed", "error"])
def test_what_fails_never_begins_with_passed_and_what_passes_never_with_failed(
    counted, verdict, status
):
    score = 91.0 if status == "passed" else 80.0
    records = [complete(CELL, status=status, scores={"accuracy": score}), complete(OTHER)]
    answer = run_verdict(records, judge(CELL) + judge(OTHER, verdict), counted)
    assert answer.sentences[0].startswith("Failed") == (answer.exit_code == 1)
    assert answer.sentences[0].startswith(("Passed", "No regression")) == (answer.exit_code == 0)


def test_exit_codes():
    exit_codes = {rank: rank.exit_code for rank in Rank if rank.exit_code}
    assert exit_codes == {Rank.FAILED: 1, Rank.CHANGED: 6, Rank.CANNOT_TELL: 6, Rank.UNJUDGED: 6}


EARLY = [
    judgement(CELL, Verdict.EQUAL, "numerics", first_updates=2),
    judgement(OTHER, Verdict.EQUAL, "numerics", first_updates=2),
]
SAME = judge(CELL)
BOTH_SAME = [*SAME, *judge(OTHER)]
UNTESTED = judgement(CELL, Verdict.CANNOT_TELL, detail="no points by row")
BOTH_UNTESTED = [UNTESTED, replace(UNTESTED, cell=OTHER)]
LOST = judgement(CELL, Verdict.NOT_COMPARABLE, "numerics", detail="no run of the same seed")
UNDECIDED = judge(OTHER, Verdict.CANNOT_TELL, min_drop=4.1)
DOUBT = [*SAME, *UNDECIDED]
LESS = judgement(CELL, Verdict.CHANGED, "gradients_bytes", effect=-0.5, detail="margin 0%")
NEW_CELL = judgement("gpt2_sa_sft", Verdict.NEW, "cell", detail="not in the baseline")
UNLIKE = judge(OTHER, Verdict.NOT_COMPARABLE, detail="the recipes differ in learning_rate")
SLOWER = judgement(CELL, Verdict.NOT_COMPARABLE, "step_seconds", detail="name: a and b")
REFUTED = judge(CELL, Verdict.CANNOT_TELL, effect=-5.0, confirmed="no", min_drop=1.5)
BOTH = (complete(CELL), complete(OTHER))
BOTH_BEGUN = [begun(), begun(OTHER)]
SHORT = complete(
    audits=[FINDING | {"name": "learned_something", "passed": False}],
    excused={"learned_something": "2 of 48 updates may be too few"},
    bounds={},
)
UNVARIED = replace(
    SHORT,
    cell=OTHER,
    excused=SHORT.excused | {"predictions_not_collapsed": "2 of 48 updates may be too few"},
)
CUT = altered(complete(bounds={}), "training.planned", 48)  # an older run, which made two
SWEPT = altered(CUT, "training.asked", 2)
BROKEN_OFF = altered(CUT, "training.asked", 40)
SURVIVAL = "gradients_survive_evaluation"
KNOWN = complete(
    "gpt2_sa_lora",
    status="known",
    versions={"torch": "2.6.0"},
    audits=[FINDING | {"name": SURVIVAL, "passed": False}],
    known={SURVIVAL: "pytorch#158232, torch<2.11"},
)
AUDITED = complete(
    status="audit",
    audits=[FINDING | {"name": "base_frozen", "passed": False}],
    missed=["audit base_frozen: why"],
)


class Case(NamedTuple):
    """A run, the judgements on it, and what its verdict says."""

    rank: Rank
    words: str
    judgements: Sequence = ()
    records: Sequence = BOTH
    counted: Sequence = DEFAULT_KINDS


NOT_COMPARABLE = (
    "1 of 2 cells is not comparable with old.json: "
    "the recipes differ in learning_rate (t5_sa_lora)."
)
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
        BOTH_UNTESTED,
    ),
    Case(
        Rank.CANNOT_TELL,
        "Cannot tell whether the run is worse than old.json.",
        DOUBT,
        counted=parse_kinds("cannot-tell"),
    ),
    # Only main scores count as undecided
    Case(
        Rank.PASSED,
        "No worse than old.json by quality.",
        [*BOTH_SAME, judgement(OTHER, Verdict.CANNOT_TELL, "f1_macro")],
        counted=parse_kinds("quality,cannot-tell"),
    ),
    Case(
        Rank.OPEN,
        "found; numerics of 1 of 2 cells not compared (no run of the",
        [*judge(OTHER), LOST],
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
        [*SAME, changed(OTHER)],
        counted=("quality",),
    ),
    Case(Rank.CHANGED, "no score is worse, 1 of 2 undecided.", [*DOUBT, changed(CELL)]),
    Case(Rank.CHANGED, "Changed: tensors of the one cell hold fewer bytes: ", [*SAME, LESS]),
    Case(Rank.OPEN, "found; 1 cell not in old.json (gpt2_sa_sft).", [*BOTH_SAME, NEW_CELL]),
    Case(
        Rank.CANNOT_TELL,
        NOT_COMPARABLE,
        [*SAME, *UNLIKE],
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
        Rank.PASSED,
        "Passed: the one cell ran to the end, without bounds, and passed every audit.",
        records=[SWEPT],
    ),
    Case(
        Rank.UNJUDGED,
        "short to judge: bert_sa_lora made 2 of its 40 planned updates",
        records=[BROKEN_OFF],
    ),
    Case(
        Rank.UNJUDGED,
        "short to judge: the one cell failed learned_something",
        records=[altered(SHORT, "training.asked", 2)],
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
    Case(
        Rank.KNOWN,
        f"Known fault: 1 of 2 cells failed {SURVIVAL} (gpt2_sa_lora; known: pytorch#158232, torch<2.11).",
        records=[KNOWN, BOTH[0]],
    ),
    Case(
        Rank.KNOWN,
        "1 of 2 cells reached every bound and passed every audit.",  # the other one alone
        records=[KNOWN, BOTH[0]],
    ),
    Case(
        Rank.KNOWN,
        "Known fault: the one cell failed",
        records=[altered(altered(KNOWN, "status", "begun"), "first_updates", 2)],
    ),
    Case(Rank.FAILED, f"1 of 2 cells failed {SURVIVAL} (gpt2_sa", records=[KNOWN, AUDITED]),
    # No line says more than was compared
    Case(Rank.CHANGED, "; scores could not be compared.", [*BOTH_UNTESTED, changed(CELL)]),
    Case(
        Rank.CANNOT_TELL,
        "no figure of instruments could be compared.",
        BOTH_SAME,
        counted=("quality", "instruments"),
    ),
    Case(
        Rank.CANNOT_TELL,
        "no figure of speed could be compared (name: a and b).",
        [*BOTH_SAME, SLOWER],
        counted=("quality", "speed"),
    ),
    Case(
        Rank.FAILED,
        "Failed: 1 cell worse: t5_sa_lora accuracy",
        [*SAME, *judge(OTHER, Verdict.WORSE)],
        counted=("memory", "quality"),
    ),
    Case(
        Rank.FAILED,
        NOT_COMPARABLE,
        [UNLIKE[0], judgement(CELL, Verdict.WORSE, p=0.0)],
    ),
    Case(
        Rank.CANNOT_TELL,
        "no figure of memory could be compared",
        [*SAME, *UNLIKE],
        counted=("memory",),
    ),
    Case(
        Rank.CHANGED,
        "1 main score worse, which does not count here: ",
        [*judge(CELL, Verdict.WORSE), LESS],
        counted=("memory",),
    ),
    Case(
        Rank.OPEN,
        "No regression found; 1 drop not confirmed by a second training (bert_sa_lora -5.0); "
        "1 of 1 score undecided (it would show drops of 1.5 points).",
        REFUTED,
    ),
    Case(
        Rank.OPEN,
        "1 of 2 scores undecided (it would show drops of 4 points); "
        "1 of 2 scores not tested (no points by row)",
        [UNTESTED, *UNDECIDED],
    ),
    Case(Rank.OPEN, "1 of 2 scores not tested (no points by row)", [UNTESTED, *judge(OTHER)]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.words)
def test_what_a_run_comes_to(case):
    verdict = run_verdict(case.records, case.judgements, case.counted, baseline="old.json")
    assert verdict.rank is case.rank
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
    assert words in run_verdict([complete(**changes)], command=command).answer


def test_a_cell_of_the_baseline_that_missed_a_bound_is_noted():
    old = [complete(status="missed"), complete("t5_qa_sft", status="missed")]
    verdict = run_verdict(BOTH, BOTH_SAME, baseline="old.json", before=old)
    note = "In old.json, 1 cell missed a bound (bert_sa_lora): give a baseline that passed."
    assert note in verdict.sentences
    assert verdict.exit_code == 0


def test_a_page_that_explains_a_failure_exists_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    next_step = run_verdict([AUDITED]).next_step
    assert f"{ROOT}/reports/evidence/audits.md explains base_frozen" in next_step


def test_failures_of_the_cells_can_be_left_to_others():
    failed = complete(status="error")
    assert run_verdict([failed], SAME).rank is Rank.FAILED
    verdict = run_verdict([failed], SAME, judges_cells=False)
    assert verdict.answer == "No worse than the baseline by quality."


def test_first_updates_that_failed_are_not_among_the_sound_ones():
    wrong = replace(begun(), audits=AUDITED.audits, missed=AUDITED.missed, status="failed")
    verdict = run_verdict([wrong, begun(OTHER)], EARLY)
    assert verdict.exit_code == 1
    assert verdict.answer == f"Failed: why (1 of 2 cells, {CELL}; failed audit base_frozen)."


def test_modules_with_a_class_in_common_are_one_place_and_the_first_stage_is_named():
    def attention_changed(cell, name):
        detail = f"the output of {name} (Conv1D, transformers) moves; with peft 2"
        return changed(cell, "forward", detail, [(name, "Conv1D", "transformers")])

    first_layer = attention_changed(CELL, "h.0.c_attn")
    second_layer = attention_changed(OTHER, "h.1.c_attn")
    later = changed("gpt2_sa_lora", "optimizer")
    change = changed_place([later, first_layer, second_layer])
    assert change.cells == [CELL, OTHER]
    assert change.stage == "forward"
    assert change.what == "the output of Conv1D of transformers moves"
    assert "h.0.c_attn (Conv1D" in changed_place([first_layer, later]).what
    assert not changed_place(SAME).cells
    two_modules = [("q", "Linear", "peft"), ("k", "Linear", "peft")]
    words = "q (Linear, peft) and k (Linear, peft) change first"
    in_all_cells = [changed(cell, "forward", words, two_modules) for cell in STUDY_IDS]
    assert changed_place(in_all_cells).what == "Linear of peft change first"


# What to run next

RAN = (
    "pytest -m quick -n 4 --grid 'my own.py' --set max_steps=4 --ranks 2:fsdp "
    "--first-updates --data-root=d --gate x.json"
)
CARRIED = "'--grid=my own.py' --set=max_steps=4 --ranks=2:fsdp --first-updates --data-root=d"
MISSING = judgement(OTHER, Verdict.MISSING, "cell", detail="not in this run")
BROKEN = complete(status="error")
KILLED = complete(status="killed")
WORSE = [*judge(CELL, Verdict.WORSE), changed(CELL)]


def peft_run(version, **changes):
    return [complete(versions=complete().versions | {"peft": version}, **changes)]


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
        [complete(status="missed", seeds=make_seeds(3)), BOTH[1]],
        ran=RAN,
    ),
    Step(f"{RAN} --resume", [KILLED], ran=RAN),
    Step(
        "pytest -m 'full and larger' --cells",
        [replace(BROKEN, cell="t5base_sa_lora", profile="full"), BOTH[0]],
    ),
    Step(
        "pytest -m quick --cells '$(rm -r x)' -n 0",
        [replace(BROKEN, cell="$(rm -r x)"), BOTH[0]],
        ran="an 'open quote",
    ),
    Step(
        f"pytest -m quick --cells {CELL} '--grid=my own.py' --ranks=2:fsdp --data-root=d",
        [SHORT],
        ran=RAN,
    ),
    Step(
        f"pytest -m quick --cells {CELL} --seeds 0,3",
        [SHORT, altered(SHORT, "seeds.seed", 3)],
        ran="pytest -m quick --seeds=0,3",
    ),
    Step(
        f"pytest -m quick --cells {OTHER} {CARRIED}",
        BOTH[:1],
        [*SAME, MISSING],
        before=BOTH[1:],
        ran=RAN,
    ),
    Step(f"pytest -m quick --cells {OTHER} --seeds 0-4", BOTH, DOUBT),
    Step(
        "tunegrid page NEW.json OLD.json -o page.html",
        BOTH[:1],
        judge(CELL, Verdict.WORSE),
        before=BOTH[:1],
    ),
    Step(
        "tunegrid bisect --good peft==0.21.0 --bad peft==0.21.2 "
        f"--cells {CELL} --gate-on numerics -- -m full '--grid=my own.py'",
        peft_run("0.21.2", profile="full", seeds=make_seeds(2)),
        WORSE,
        before=peft_run("0.21.0", profile="full", seeds=make_seeds(2)),
        ran=RAN,
    ),
]
# other code, an older release and another build are no later release, and no release brings a
# checkout's code
STEPS += [
    Step(
        "tunegrid gate OLD.json NEW.json --numerics",
        peft_run(version),
        [changed(CELL)],
        before=peft_run("0.21.0"),
    )
    for version in ("0.21.0", "0.20.0", "0.21.0+cu1", "0.22.0.dev0", "none", None)
]


class ParsedError(Exception):
    """Raised in place of reading the files that a command names."""


@pytest.fixture
def parse(request, monkeypatch):
    """A function that fails if a command's own parser rejects its words."""

    def stop(*_):
        raise ParsedError

    def parse_options(options):
        _, unknown = request.config._parser.parse_known_and_unknown_args(options)
        assert [word for word in unknown if word.startswith("-")] == []

    def parse_bisection(options):
        parse_options(options.pytest_options)
        raise ParsedError

    def parse_command(command):
        runner, *options = shlex.split(command)
        if runner == "tunegrid" and options[0] in mains:
            with pytest.raises(ParsedError):
                mains[options[0]](options[1:])
        else:
            parse_options(options[options.index("-m") :])

    mains = {"bisect": bisect.main, "gate": gate.main, "page": page.main}
    monkeypatch.setattr(gate, "read_saved", stop)
    monkeypatch.setattr(view, "read_page_run", stop)
    monkeypatch.setattr(bisect, "run_bisection", parse_bisection)
    return parse_command


def quoted_commands(text):
    return re.findall("`([^`]*)`", text)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.begins)
def test_what_to_run_next_is_a_command_that_its_own_parser_takes(parse, step):
    verdict = run_verdict(
        step.records, step.judgements, NUMERICS, before=step.before, command=step.ran
    )
    [command] = quoted_commands(verdict.next_step)
    assert command.startswith(step.begins)
    parse(command)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_commands_of_all_kinds_of_runs_are_parsed_too(parse, kind):
    for command in quoted_commands(" ".join(kinds.kind_verdict(kind).sentences)):
        parse(command)


def test_outside_the_checkout_tunegrid_runs_cells(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_verdict(BOTH, DOUBT).next_step.startswith(
        f"`tunegrid run -m quick --cells {OTHER} --seeds 0-4`"
    )
    assert "`" not in run_verdict([KILLED], command="rm -r x").next_step


@pytest.mark.parametrize(
    ("records", "judgements", "ran"),
    [
        ([KILLED], [], f"{RAN} --resume"),
        (BOTH, DOUBT, f"pytest --seeds=0-4 -m quick --cells={OTHER}"),
        (BOTH, [*SAME, MISSING], f"tunegrid run -m quick --cells {OTHER}"),
        ([SHORT], [], f"pytest -m quick --cells {CELL} -n 4 --gate=old.json --html page.html"),
        # More seeds than would be named
        ([complete(OTHER, seeds=make_seeds(seed)) for seed in range(10)], DOUBT, ""),
        ([AUDITED], [], "pytest -m quick -n 2 --grid own.py"),
    ],
)
def test_no_step_repeats_the_command_that_was_given(records, judgements, ran):
    assert "`" not in run_verdict(records, judgements, NUMERICS, command=ran).next_step


def test_after_an_upgrade_cells_run_in_the_environment_that_failed():
    runner = ["/env/bin/python", "-m", "tunegrid", "run"]
    upgrade = ["tunegrid", "upgrade", "peft", "--"]
    failed = run_verdict([BROKEN], runner=runner, upgrade=upgrade)
    assert failed.next_step.startswith(
        f"`/env/bin/python -m tunegrid run -m quick --cells {CELL} -n 0`"
    )
    five = [complete(OTHER, seeds=make_seeds(seed)) for seed in range(5)]
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
