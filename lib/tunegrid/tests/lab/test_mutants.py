"""Mutants: changes of small sources by hand, one in a live function, how they are drawn and sorted.

Nothing trains.
"""

import ast
import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tunegrid.errors import InputError
from tunegrid.lab import mutants as command
from tunegrid.lab import mutation
from tunegrid.lab.mutants import CRASH, OTHER, REPORTED, SILENT, Job, Mutant, Trial, find_outcome
from tunegrid.lab.mutation import CALL_NAME, can_replace, find_changes, functions_in, replace_live
from tunegrid.tests.outputs import refusal

DOUBLE = """
def double(number):
    result = number + number
    return result
"""
ADDER = """
def adder(step):
    def add(number):
        return number + step
    return add
"""
LONG = """
def f(a):
    if a:
        b = [
            a,
            2,
        ]
        return b
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A library of one function."""
    folder = tmp_path / "tinylibrary"
    folder.mkdir()
    (folder / "__init__.py").write_text(DOUBLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command, "MUTATED", ("tinylibrary",))
    for cached in (
        command.library_path,
        command.library_file,
        command.change_numbers,
        command.changes_of,
        command.original_functions,
        command.function_starts,
        command.statement_starts,
    ):
        cached.cache_clear()
    yield import_module("tinylibrary")
    monkeypatch.delitem(sys.modules, "tinylibrary")


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a * b", ["operator: a * b -> a / b"]),
        ("a and b or a == b", []),
        ("-a", ["operator: -a -> a"]),
        (
            "a <= b is c",
            [
                "border: a <= b is c -> a < b is c",
            ],
        ),
        ("a[1]", ["constant: 1 -> 2", "constant: 1 -> 0", "constant: 1 -> -1"]),
        ("a[0]", ["constant: 0 -> 1", "constant: 0 -> -1"]),
        ("a[:b]", ["slice: :b -> :b + 1"]),
        ("[2.0]", ["constant: 2.0 -> 2.02", "constant: 2.0 -> 2.2", "constant: 2.0 -> -2.0"]),
        ("[True, None, 'text']", ["constant: True -> False"]),
        ("a.sum(b)", ["reduction: a.sum(b) -> a.mean(b)"]),
        ("a.add_(b)", ["in-place line removed: a.add_(b) -> pass"]),
        ("a.__init__(b)", []),
        ("a.add(b)", []),
        (
            "x = f(a, b=c)",
            [
                "detach: x = f(a, b=c) -> x = __tunegrid_detach__(f(a, b=c))",
                "dtype: x = f(a, b=c) -> x = __tunegrid_round__(f(a, b=c))",
            ],
        ),
        ("x.y = z", []),
        ("if a: b", []),
        ("a -= b", ["in-place line removed: a -= b -> pass", "operator: a -= b -> a += b"]),
        (
            "def f(): return a",
            [
                "detach: return a -> return __tunegrid_detach__(a)",
                "dtype: return a -> return __tunegrid_round__(a)",
            ],
        ),
        (
            "def f(a, b=2.0, *, c=False, d=None): pass",
            [
                "default: type(b) is float and b == 2.0 -> b = 2.02",
                "default: type(b) is float and b == 2.0 -> b = 2.2",
                "default: type(b) is float and b == 2.0 -> b = -2.0",
                "default: type(c) is bool and c == False -> c = True",
            ],
        ),
        ("def f(a: Literal[1]) -> Literal[2]: 'text'", []),
        ("assert a == 1", []),
        ("raise Error(a + 1)", []),
        ("logger.warning('text', a + 1)", []),
        ("f'{a + 1}'", []),
    ],
)
def test_changes_are_those_by_hand(source, changes):
    found = []
    for change in find_changes(ast.parse(source)):
        before, after = change.texts
        found.append(f"{change.kind}: {before} -> {after}")
    assert found == changes


def change_number(path, replacement):
    """The number of the change in a file that puts this code in place of other code."""
    changes = find_changes(ast.parse(path.read_text()))
    return [change.texts[1] for change in changes].index(replacement)


def test_a_live_function_and_those_within_it_take_a_change(tmp_path, monkeypatch):
    path = tmp_path / "adding.py"
    path.write_text(ADDER)
    monkeypatch.syspath_prepend(tmp_path)
    adder = import_module("adding").adder
    add_two = adder(2)
    calls = []
    monkeypatch.setattr(f"builtins.{CALL_NAME}", lambda: calls.append("reached"), raising=False)
    changed = functions_in(path, change_number(path, "number - step"))
    assert can_replace(functions_in(path), changed)
    replace_live(changed)
    assert add_two(5) == 3
    assert adder(1)(5) == 4
    assert calls == ["reached", "reached"]


def test_code_that_reads_other_names_of_an_outer_function_is_not_replaced(tmp_path):
    path = tmp_path / "closure.py"
    path.write_text(ADDER)
    original = functions_in(path)
    path.write_text(ADDER.replace("number + step", "number"))
    assert not can_replace(original, functions_in(path))


def test_a_default_changes_where_the_caller_gives_none(tmp_path, monkeypatch):
    path = tmp_path / "scaling.py"
    path.write_text(
        "def scale(x, factor=2.0, is_on=True):\n    return x * factor if is_on else x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    scale = import_module("scaling").scale
    calls = []
    monkeypatch.setattr(f"builtins.{CALL_NAME}", lambda: calls.append("reached"), raising=False)
    replace_live(functions_in(path, change_number(path, "factor = -2.0")))
    assert [scale(3), scale(3, 5.0)] == [-6.0, 15.0]
    assert calls == ["reached"]


def test_helpers_change_tensors_alone():
    weight = torch.ones(2, requires_grad=True)
    assert not mutation.detach(weight * 2).requires_grad
    assert mutation.detach("text") == "text"
    # bf16 has 8 bits of mantissa: 1 + 2**-9 rounds to 1.
    assert mutation.round_to_bf16(torch.tensor([1 + 2**-9])).tolist() == [1.0]
    assert mutation.round_to_bf16(torch.tensor([3])).dtype is torch.int64


FILE = "tinylibrary/__init__.py"
LINES = {
    ("first", "start"): [(FILE, 3), (FILE, 4)],
    ("second", "start"): [(FILE, 4)],
    ("first", "search"): [(FILE, 3)],
}
TENSORS = [(FILE, 2, "result"), (FILE, 4, "return")]  # `result` is a tensor, and is returned


def test_a_seed_draws_the_same_mutants_each_time_of_stages_in_turn(tiny):
    drawn = command.draw(LINES, TENSORS, 4, seed=1)
    assert drawn == command.draw(LINES, TENSORS, 4, seed=1)
    assert [mutant.stage for mutant in drawn] == ["search", "start", "search", "start"]
    kinds = {mutant.kind for mutant in drawn if mutant.stage == "search"}
    assert kinds <= {"operator", "detach", "dtype"}
    assert {mutant.cell for mutant in drawn if mutant.stage == "search"} == {"first"}


def test_values_that_are_no_tensors_are_not_detached_or_rounded(tiny):
    drawn = command.draw(LINES, [(FILE, 4, "return")], 5, seed=1)
    assert sorted({(mutant.kind, mutant.line) for mutant in drawn}) == [
        ("detach", 4), ("dtype", 4), ("operator", 3),
    ]  # fmt: skip
    assert {mutant.kind for mutant in command.draw(LINES, [], 1, seed=1)} == {"operator"}


def generate(function):
    return function()


def test_the_stage_is_that_of_the_first_known_caller(monkeypatch):
    here = Path(__file__).name
    stages = {"saving": [(here, "save")], "search": [(here, "generate")], "start": []}
    monkeypatch.setattr(command, "STAGES", stages)
    command.rank_of.cache_clear()

    def look():
        return command.stage_of(sys._getframe())

    def save():
        return generate(look)

    assert [look(), generate(look), save()] == ["start", "search", "saving"]
    command.rank_of.cache_clear()
    assert command.is_called_from(here)
    assert not command.is_called_from("no such file")


def test_a_statement_of_many_executed_lines_counts_once(tiny, monkeypatch, tmp_path):
    path = tmp_path / "long.py"
    path.write_text(LONG)
    monkeypatch.setattr(command, "library_path", lambda file: path)
    places = [("long.py", line) for line in (3, 4, 5, 6, 8)]
    assert command.executed_statements(places) == [("long.py", 3), ("long.py", 4), ("long.py", 8)]


def test_too_few_mutants_are_an_error(tiny):
    with pytest.raises(InputError, match="only 5 mutants: lower --count"):
        command.draw({("first", "start"): LINES["first", "start"]}, TENSORS, 6, seed=1)


MUTANT = Mutant(
    cell="t5_qa_sft",
    file=FILE,
    line=3,
    number=2,
    kind="operator",
    before="number + number",
    after="number - number",
)


@pytest.mark.parametrize(
    ("mutant", "code"), [(None, 3 + 3), (MUTANT, 3 - 3)], ids=["healthy", "mutant"]
)
def test_a_process_runs_with_a_change_that_it_reaches(tiny, tmp_path, monkeypatch, mutant, code):
    monkeypatch.setattr("runpy.run_module", lambda *args, **options: sys.exit(tiny.double(3)))
    job = Job(cell="", folder=tmp_path / "job", mutant=mutant, is_traced=True)
    assert job.start("fork") == code
    assert job.was_reached == bool(mutant)
    assert job.process_facts["lines"] == {"start": [[FILE, 3], [FILE, 4]]}
    assert not job.only_by_audits
    assert tiny.double(3) == 6


def test_saved_files_of_two_clones_are_equal_wherever_these_stand(tmp_path, monkeypatch):
    digests = []
    for clone in ("first", "second"):
        job = Job(cell="cell", folder=tmp_path / clone)
        checkpoint = job.folder / "models" / "cell-seed0"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text(f'{{"_name_or_path": "{tmp_path / clone}/bert"}}')
        record = {"seeds": {"confirms": None}, "examples": {"file": ""}, "memory": {"ledger": {}}}
        (job.folder / "run.json").write_text(json.dumps({"benchmarks": [{"extra_info": record}]}))
        monkeypatch.setattr(command, "ROOT", job.folder)
        digests.append(job.facts["files"])
    assert digests[0] == digests[1]
    assert [*digests[0]] == ["config.json"]


def test_a_process_that_hangs_is_ended(tiny, tmp_path, monkeypatch):
    def hang(*args, **options):
        while True:
            tiny.double(3)

    monkeypatch.setattr("runpy.run_module", hang)
    assert Job(cell="", folder=tmp_path / "job", limit_seconds=1).start("fork") < 0


@pytest.mark.parametrize(
    ("code", "status", "answer", "outcome"),
    [
        (0, "passed", "Passed in 12 s.", SILENT),
        (0, "passed", "Passed in 12 s. Rounded.", REPORTED),
        (1, "audit", "Failed.", "exit 1"),
        (6, "passed", "Changed.", "exit 6"),
        (1, "error", "Failed.", CRASH),
        (3, "killed", "", CRASH),
        (-9, "killed", "", CRASH),
        (4, "killed", "", OTHER),
    ],
)
def test_outcomes_are_sorted_by_exit_code_status_and_report(code, status, answer, outcome):
    assert find_outcome(code, status, [answer], ["Passed in 11 s."]) == outcome


def test_a_share_counts_what_changes_results_and_survivors_have_their_place(tmp_path, capsys):
    def mutant(outcome, code, *differences):
        return replace(MUTANT, outcome=outcome, exit_code=code, differences=differences)

    mutants = [
        mutant(CRASH, -9, "weights", "files", "answers", "bytes"),
        mutant("exit 1", 1, "weights"),
        mutant("exit 6", 6, "answers"),
        mutant(SILENT, 0, "files"),
        mutant(SILENT, 0, "bytes"),
        mutant(REPORTED, 0),
    ]
    path = tmp_path / "trial.json"
    page = tmp_path / "page.md"
    trial = Trial(cells=["t5_qa_sft"], judged=3, count=6, seed=1, versions={}, mutants=mutants)
    path.write_bytes(command.TRIAL.dump_json(trial))
    assert command.main([str(path), f"--report={page}"]) == 0
    output = capsys.readouterr().out
    # Wilson's interval of 3 of 4 is 30.1 to 95.4 %, of 2 of 3 20.8 to 93.9 %.
    assert "3 of 4, 75.0% (30.1% to 95.4%)" in output
    assert "2 of 3, 66.7% (20.8% to 93.9%)" in output
    [survivor] = [line for line in output.splitlines() if line.startswith("tinylibrary")]
    expected = (
        "tinylibrary/__init__.py:3 number + number -> number - number t5_qa_sft files the cell"
    )
    assert " ".join(survivor.split()).startswith(expected)
    assert "75.0%" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cells=bert_sa_nothing"], "bert_sa_nothing"),
        (["--count=0"], "--count must be at least 1"),
        (["--workers=0"], "--workers must be at least 1"),
        (["missing.json"], "missing.json is no saved trial"),
    ],
)
def test_what_cannot_run_is_refused(capsys, arguments, sentence):
    assert sentence in refusal(capsys, command.main, *arguments)


def test_a_saved_trial_is_continued_only_if_asked_and_only_the_same(tmp_path, capsys):
    path = tmp_path / "trial.json"
    trial = Trial(cells=command.SMOKE, judged=150, count=2, seed=1, versions=command.versions())
    path.write_bytes(command.TRIAL.dump_json(trial))
    words = ["--count=2", "-o", path]
    assert "continue it with --resume" in refusal(capsys, command.main, *words)
    assert "has another seed (1)" in refusal(capsys, command.main, *words, "--seed=2", "--resume")
