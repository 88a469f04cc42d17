"""Policies: what a file may say, which cells may fail a run by it, and the guide's example."""

import json
import re
from dataclasses import replace

import pytest

from tunegrid import ROOT
from tunegrid.commands import gate as command
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.results import examples
from tunegrid.results.answer import answer_of
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import Judgement, Outcome, Verdict
from tunegrid.results.outcomes import FAILED_BY, failing, outcome
from tunegrid.results.policy import EVERY_CELL_CRITICAL, Known, Policy, Rule, Tier, described, read_policy
from tunegrid.tests.records import MEASURED, hits, record_of, run_file

KNOWN = Known.of([])
GUIDE = ROOT / "benchmarks" / "guides" / "what-fails-a-run.md"
MAIN = {"sa": "accuracy", "qa": "f1", "sum": "rougeLsum"}
CRITICAL, SUPPORTING, ADVISORY = "bert_qa_sft", "gpt2_qa_sft", "t5_qa_sft"
THREE = Policy(
    name="ci.toml",
    default=Tier.SUPPORTING,
    rules=[Rule(cells=["bert_*"], tier=Tier.CRITICAL), Rule(parts={"backbone": "t5"}, tier=Tier.ADVISORY)],
)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Examples of these runs stay out of the machine's own store."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")


def written(tmp_path, text):
    path = tmp_path / "ci.toml"
    path.write_text(text)
    return path


def policy_of(tmp_path, text):
    return read_policy(written(tmp_path, text), KNOWN)


def judgement(cell, verdict, quantity=None):
    main = MAIN[cell.split("_")[1]]
    return Judgement(cell=cell, main_score=main, quantity=quantity or main, verdict=verdict, p=0.5)


def judged(**verdicts):
    return [judgement(cell, verdicts.get(cell, Verdict.SAME)) for cell in STUDY_IDS]


# The file


def test_the_first_rule_that_names_a_cell_counts_and_the_default_for_all_others(tmp_path):
    policy = policy_of(
        tmp_path,
        """
        default = "supporting"
        supporting_may_be_worse = 2
        [[rule]]
        cells = ["bert_qa_sft", "t5_sa_*"]
        tier = "critical"
        margins = { f1 = 0.5, step_seconds = 0.3 }
        [[rule]]
        task = "qa"
        method = "qlora"
        tier = "advisory"
        [[rule]]
        task = "qa"
        margins = { f1 = 3 }
        """,
    )
    tiers = {cell: policy.tier_of(cell) for cell in STUDY_IDS}
    assert [cell for cell, tier in tiers.items() if tier is Tier.CRITICAL] == [
        cell for cell in STUDY_IDS if cell == "bert_qa_sft" or cell.startswith("t5_sa_")
    ]
    assert {cell for cell, tier in tiers.items() if tier is Tier.ADVISORY} == {f"{b}_qa_qlora" for b in ("bert", "gpt2", "t5")}
    assert policy.may_be_worse == 2
    assert policy.margins_of("bert_qa_sft") == {"f1": 0.5, "step_seconds": 0.3}
    assert (policy.tier_of("gpt2_qa_sft"), policy.margins_of("gpt2_qa_sft")) == (Tier.SUPPORTING, {"f1": 3})
    assert policy.margins_of("bert_sum_lora") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("default = 'critcal'", "default is 'critcal': give critical, supporting, advisory; did you mean critical?"),
        ("[[rule]]\ncells = ['bert_*']\ntier = 3", "rule 1: tier is 3: give critical, supporting, advisory"),
        ("[[rule]]\ncells = ['bert_sa_lroa']", "rule 1: no cell is called 'bert_sa_lroa'; did you mean bert_sa_lora?"),
        ("[[rule]]\ncells = ['gpt3_*']", "rule 1: no cell is called 'gpt3_*'"),
        ("[[rule]]\ncells = 'bert_*'", "rule 1: cells is 'bert_*': give a list of ids or patterns, as in"),
        ("[[rule]]\nbackbone = 'brt'", "rule 1: no cell has the backbone 'brt'; did you mean bert?"),
        ("[[rule]]\nbackbone = 'bert'\ncells = ['t5_*']", "rule 1: no cell has all that it asks for"),
        ("[[rule]]\ntier = 'advisory'", "rule 1: it names no cell: give cells, backbone, task or method"),
        ("[[rule]]\ntask = 'qa'\nmargins = { f1 = -1.0 }", "rule 1: the margin f1 is -1.0: give points from 0 to 100"),
        ("[[rule]]\ntask = 'qa'\nmargins = { ledger = 11 }", "rule 1: the margin ledger is 11: give a share from 0 to 10"),
        ("[[rule]]\ntask = 'qa'\nmargins = { f1 = true }", "the margin f1 is True: give points from 0 to 100"),
        ("[[rule]]\ntask = 'qa'\nmargins = { f1 = nan }", "the margin f1 is nan: give points from 0 to 100"),
        ("[[rule]]\ntask = 'qa'\nmargins = { accurcy = 1 }", "rule 1: unknown margin 'accurcy'; did you mean accuracy?"),
        ("[[rule]]\ntask = 'qa'\nmargins = 1", "rule 1: margins is 1: give a table, as in { f1 = 1.0 }"),
        ("[[rules]]\ntask = 'qa'", "unknown key 'rules'; did you mean rule?"),
        ("[[rule]]\ntask = 'qa'\nmargin = 1", "rule 1: unknown key 'margin'; did you mean margins?"),
        ("rule = 1", "rule is not a list of tables: write [[rule]] above each"),
        ("supporting_may_be_worse = -1", "supporting_may_be_worse is -1: give a whole number of cells, 0 or more"),
        ("x", "the policy {path} cannot be read: "),
    ],
)
def test_what_is_wrong_is_one_sentence_that_says_the_way_out(tmp_path, text, sentence):
    with pytest.raises(InputError) as error:
        policy_of(tmp_path, text)
    assert sentence.replace("{path}", str(tmp_path / "ci.toml")) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_error_has_its_sentence(tmp_path):
    with pytest.raises(InputError) as error:
        policy_of(tmp_path, "default = 'x'\n[[rule]]\ncells = ['a']\n[[rule]]\ntask = 'b'\ntier = 'c'")
    assert [part.partition(" is ")[0] for part in str(error.value).split(": ", 1)[1].split("; ")] == [
        "default",
        "rule 1: no cell",
        "rule 2: tier",
        "rule 2: no cell has the task 'b'",
    ]


def test_cells_and_scores_of_the_runs_may_be_named(tmp_path):
    path = written(tmp_path, "[[rule]]\ncells = ['bert_mine_lora']\nmargins = { mine = 2 }")
    policy = read_policy(path, Known.of(["bert_mine_lora"], ["mine"]))
    assert policy.margins_of("bert_mine_lora") == {"mine": 2}
    with pytest.raises(InputError, match=r"no cell is called 'bert_mine_lora'.*unknown margin 'mine'"):
        read_policy(path, KNOWN)


# What fails a run


@pytest.mark.parametrize(
    ("worse", "failing_cells"),
    [
        ([CRITICAL], [CRITICAL]),
        ([SUPPORTING], []),
        ([SUPPORTING, "gpt2_sa_lora"], [SUPPORTING, "gpt2_sa_lora"]),
        ([CRITICAL, SUPPORTING], [CRITICAL]),
        ([ADVISORY, "t5_sa_lora", "t5_sum_lora"], []),
        ([SUPPORTING, ADVISORY], []),
    ],
)
def test_a_critical_cell_fails_a_supporting_one_with_another_and_an_advisory_one_never(worse, failing_cells):
    judgements = judged(**dict.fromkeys(worse, Verdict.WORSE))
    assert {j.cell for j in failing(judgements, FAILED_BY, THREE)} == set(failing_cells)
    assert {j.cell for j in failing(judgements, FAILED_BY)} == set(worse)
    expected = Outcome.WORSE if failing_cells else Outcome.NO_WORSE
    assert outcome(judgements, FAILED_BY, THREE) is expected
    answer = answer_of([], judgements, baseline="before.json", policy=THREE)
    assert answer.exit_code == (1 if failing_cells else 0)
    assert all(cell in answer.text for cell in worse)  # whatever does not fail the run is told


def test_several_figures_of_one_supporting_cell_are_one_cell():
    twice = [judgement(SUPPORTING, Verdict.WORSE), judgement(SUPPORTING, Verdict.WORSE, "weights_bytes")]
    assert failing(twice, FAILED_BY, THREE) == []


def test_a_missing_cell_weighs_as_a_worse_one():
    gone = [judgement(cell, Verdict.MISSING, "cell") for cell in (SUPPORTING, ADVISORY)]
    assert failing(gone, FAILED_BY, THREE) == []
    assert {j.cell for j in failing([*gone, judgement(CRITICAL, Verdict.MISSING, "cell")], FAILED_BY, THREE)} == {CRITICAL}


def test_changed_numerics_weigh_by_tier_too():
    changed = [
        Judgement(cell=cell, main_score="f1", quantity="numerics", verdict=Verdict.CHANGED, detail="start: why")
        for cell in (SUPPORTING, ADVISORY)
    ]
    answer = answer_of([], [*judged(), *changed], ("numerics", "quality"), baseline="before.json", policy=THREE)
    assert answer.exit_code == 0
    assert (
        "Numerics changed in 2 of 2 cells, first at the stage start (2 cells, as in gpt2_qa_sft: why); ci.toml lets that pass."
        in (answer.sentences)
    )


def test_an_advisory_cell_makes_no_doubt():
    doubt = judged(**{ADVISORY: Verdict.CANNOT_TELL})
    kinds = ("quality", "cannot-tell")
    assert (outcome(doubt, kinds), outcome(doubt, kinds, THREE)) == (Outcome.CANNOT_TELL, Outcome.NO_WORSE)


def test_the_answer_names_tiers_and_what_was_let_pass():
    answer = answer_of([], judged(bert_qa_sft=Verdict.WORSE, gpt2_qa_sft=Verdict.WORSE, t5_qa_sft=Verdict.WORSE), policy=THREE)
    assert answer.answer == "Failed against the baseline: 1 critical cell worse (bert_qa_sft f1)."
    assert answer.more[-1] == (
        "ci.toml lets pass: 1 supporting cell worse (gpt2_qa_sft f1), 1 advisory cell worse (t5_qa_sft f1)."
    )


def test_without_a_file_every_cell_is_critical_and_nothing_is_said():
    assert {EVERY_CELL_CRITICAL.tier_of(cell) for cell in STUDY_IDS} == {Tier.CRITICAL}
    assert described(EVERY_CELL_CRITICAL, STUDY_IDS) == []


# Margins


def test_a_cell_is_judged_by_its_own_margin():
    old, new = (
        [record_of(cell, {"accuracy": hits(2000, right)}) for cell in ("bert_sa_lora", "t5_sa_lora")] for right in (1900, 1850)
    )
    policy = Policy(name="ci.toml", rules=[Rule(cells=["bert_sa_lora"], margins={"accuracy": 3.25, "rss_peak_gib": 0.1})])
    verdicts = {j.cell: j for j in gate(Run.of(old), Run.of(new), policy=policy) if j.quantity == "accuracy"}
    assert verdicts["t5_sa_lora"].verdict is Verdict.WORSE  # 2.5 points, and the suite's margin is 1
    assert (verdicts["bert_sa_lora"].margin, verdicts["t5_sa_lora"].margin) == (3.25, 1.0)
    assert verdicts["bert_sa_lora"].verdict is Verdict.SAME  # at worst 3.2 points
    assert "margin 3.25" in verdicts["bert_sa_lora"].detail


def test_memory_is_judged_by_its_own_margin():
    phases = {
        name: phase | {"rss_peak_gib": 1.3 * phase["rss_peak_gib"]} for name, phase in MEASURED["memory"]["phases"].items()
    }
    old, new = record_of("bert_sa_lora"), record_of("bert_sa_lora", memory=MEASURED["memory"] | {"phases": phases})
    policy = Policy(rules=[Rule(cells=["bert_sa_lora"], margins={"rss_peak_gib": 0.25})])
    verdicts = [
        next(j for j in gate(Run.of([old]), Run.of([new]), policy=one) if j.quantity == "rss_peak_gib")
        for one in (EVERY_CELL_CRITICAL, policy)
    ]
    assert [j.verdict for j in verdicts] == [Verdict.SAME, Verdict.WORSE]  # 30 % more; the suite's margin is 50 %
    assert verdicts[1].detail == "margin 25%"


# The command, and the guide


def scored(cell, right):
    """A record of which so many of 512 rows are right, with no score beside the main one."""
    main = MAIN[cell.split("_")[1]]
    record = record_of(cell, {main: hits(512, right)})
    return replace(record, scores={main: record.scores[main]}, bounded_scores=[main])


def guides_policy():
    [text] = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return text


@pytest.mark.parametrize(("worse", "code"), [("t5_qa_sft", 1), ("bert_sum_lora", 0), ("gpt2_sa_qlora", 0)])
def test_the_guides_policy_decides_as_the_guide_says(tmp_path, capsys, worse, code):
    """Question answering is critical, QLoRA elsewhere advisory, the rest supporting."""
    path = written(tmp_path, guides_policy())
    cells = ("t5_qa_sft", "bert_sum_lora", "gpt2_sa_qlora")

    def run(name, right):
        return run_file(tmp_path / name, [scored(cell, right.get(cell, 480)) for cell in cells])

    old, new = run("old.json", {}), run("new.json", {worse: 440})
    assert command.main([str(old), str(new)]) == 1
    capsys.readouterr()
    assert command.main([str(old), str(new), "--policy", str(path)]) == code
    out = capsys.readouterr().out
    titles, *rows = out.splitlines()[:4]
    assert titles.split()[-1] == "tier"
    assert {row.split()[0]: row.split()[-1] for row in rows} == dict(
        zip(cells, ("critical", "supporting", "advisory"), strict=True)
    )
    assert "ci.toml: 1 critical: t5_qa_sft (margin f1 1)" in out
    assert ("ci.toml lets pass: 1 " in out) is (code == 0)
    command.main([str(old), str(new), "--policy", str(path), "--format", "json"])
    assert {one["cell"]: one["tier"] for one in json.loads(capsys.readouterr().out)}["t5_qa_sft"] == "critical"


def test_a_policy_that_cannot_be_used_ends_the_command_with_its_sentence(tmp_path, capsys):
    run = run_file(tmp_path / "run.json", [record_of("bert_sa_lora")])
    with pytest.raises(SystemExit) as end:
        command.main([str(run), str(run), "--policy", str(written(tmp_path, "default = 'x'"))])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("default is 'x': give critical, supporting, advisory")
