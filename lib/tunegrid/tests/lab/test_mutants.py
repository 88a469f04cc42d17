"""Mutants: changes of small sources by hand, one in a live function, how they are drawn and sorted.

Nothing trains.
"""

import ast
import json
import sys
from importlib import import_module

import pytest

from tunegrid.errors import InputError
from tunegrid.lab import mutants as command
from tunegrid.lab.mutants import CRASH, OTHER, REPORTED, SILENT, Job, Mutant, Trial, find_outcome
from tunegrid.lab.mutation import CALL_NAME, can_replace, find_changes, functions_in, replace_live
from tunegrid.tests.outputs import refusal

DOUBLE = """
def double(number):
    result = number + number
    return result
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A library of one function."""
    folder = tmp_path / "tinylibrary"
    folder.mkdir()
    (folder / "__init__.py").write_text(DOUBLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command, "MUTATED", ("tinylibrary",))
    for cached in (command.library_path, command.library_file, command.change_numbers):
        cached.cache_clear()
    yield import_module("tinylibrary")
    monkeypatch.delitem(sys.modules, "tinylibrary")


def found(source):
    return [(change.kind, *change.texts) for change in find_changes(ast.parse(source))]


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a * b", [("operator", "a * b", "a / b")]),
        ("a and b", [("operator", "a and b", "a or b")]),
        ("-a", [("operator", "-a", "a")]),
        (
            "a <= b is c",
            [
                ("comparison", "a <= b is c", "a < b is c"),
                ("comparison", "a <= b is c", "a <= b is not c"),
            ],
        ),
        ("a[1]", [("constant", "1", "2")]),
        ("[True, None, 'text']", [("constant", "True", "False")]),
        (
            "x = f(a, b, c=d)",
            [
                ("statement removed", "x = f(a, b, c=d)", "pass"),
                ("argument dropped", "f(a, b, c=d)", "f(b, c=d)"),
                ("argument dropped", "f(a, b, c=d)", "f(a, c=d)"),
                ("argument dropped", "f(a, b, c=d)", "f(a, b)"),
                ("arguments swapped", "f(a, b, c=d)", "f(b, a, c=d)"),
            ],
        ),
        (
            "if a: b",
            [("condition", "a", "not a"), ("condition", "a", "True"), ("condition", "a", "False")],
        ),
        ("while a: b", [("condition", "a", "not a"), ("condition", "a", "False")]),
        ("a -= b", [("statement removed", "a -= b", "pass"), ("operator", "a -= b", "a += b")]),
        (
            "for a in b: break",
            [
                ("loop", "for a in b:\n    break", "for a in ():\n    break"),
                ("loop", "break", "continue"),
            ],
        ),
        ("def f(): return a", [("return value", "return a", "return None")]),
        ("def f(): return None", []),
        ("def f(a: Literal[1]) -> Literal[2]: 'text'", []),
        ("assert a == 1", []),
        ("raise Error(a + 1)", []),
        ("logger.warning('text', a + 1)", []),
        ("f'{a + 1}'", []),
    ],
)
def test_changes_are_those_by_hand(source, changes):
    assert found(source) == changes


def test_a_live_function_and_those_within_it_take_a_change(tmp_path, monkeypatch):
    path = tmp_path / "adding.py"
    path.write_text(
        "def adder(step):\n    def add(number):\n        return number + step\n    return add\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    adder = import_module("adding").adder
    add_two = adder(2)
    calls = []
    monkeypatch.setattr(f"builtins.{CALL_NAME}", lambda: calls.append("reached"), raising=False)
    kinds = [change.kind for change in find_changes(ast.parse(path.read_text()))]
    assert kinds.count("operator") == 1
    number = kinds.index("operator")
    assert can_replace(functions_in(path), functions_in(path, number))
    replace_live(functions_in(path, number))
    assert add_two(5) == 3
    assert adder(1)(5) == 4
    assert calls == ["reached", "reached"]


def test_code_that_reads_other_names_of_an_outer_function_is_not_replaced(tmp_path):
    path = tmp_path / "closure.py"
    path.write_text(
        "def adder(step):\n    def add(number):\n        return sum([number], step)\n    return add\n"
    )
    changes = [change.texts[1] for change in find_changes(ast.parse(path.read_text()))]
    assert not can_replace(functions_in(path), functions_in(path, changes.index("sum([number])")))
    assert can_replace(functions_in(path), functions_in(path, changes.index("sum(step, [number])")))


LINES = {
    "first": [("tinylibrary/__init__.py", 3), ("tinylibrary/__init__.py", 4)],
    "second": [("tinylibrary/__init__.py", 3)],
}


def test_a_seed_draws_the_same_mutants_each_time_of_cells_in_turn(tiny):
    drawn = command.draw(LINES, 4, seed=1)
    assert drawn == command.draw(LINES, 4, seed=1)
    assert [mutant.cell for mutant in drawn] == ["first", "second", "first", "second"]
    texts = {(mutant.before, mutant.after) for mutant in drawn if mutant.cell == "second"}
    assert texts == {("result = number + number", "pass"), ("number + number", "number - number")}


def test_a_statement_of_many_executed_lines_counts_once(tiny, monkeypatch, tmp_path):
    path = tmp_path / "long.py"
    path.write_text(
        "def f(a):\n    if a:\n        b = [\n            a,\n            2,\n        ]\n        return b\n"
    )
    monkeypatch.setattr(command, "library_path", lambda file: path)
    places = [("long.py", line) for line in (2, 3, 4, 5, 7)]
    assert command.executed_statements(places) == [("long.py", 2), ("long.py", 3), ("long.py", 7)]


def test_too_few_mutants_are_an_error(tiny):
    with pytest.raises(InputError, match="only 5 mutants: lower --count"):
        command.draw(LINES, 6, seed=1)


@pytest.mark.parametrize(("number", "code"), [(None, 6), (1, 0)])  # 3 + 3, and 3 - 3
def test_a_process_runs_with_a_change_that_it_reaches(tiny, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr("runpy.run_module", lambda *args, **options: sys.exit(tiny.double(3)))
    mutant = number and Mutant(
        cell="", file="tinylibrary/__init__.py", line=3, number=number, kind="", before="", after=""
    )
    job = Job(cell="", folder=tmp_path / "job", mutant=mutant, is_traced=True)
    assert job.start("fork") == code
    assert job.was_reached == bool(number)
    assert job.process_facts["lines"] == [
        ["tinylibrary/__init__.py", 3],
        ["tinylibrary/__init__.py", 4],
    ]
    assert tiny.double(3) == 6


def test_saved_files_of_two_clones_are_equal_wherever_these_stand(tmp_path, monkeypatch):
    digests = []
    for clone in ("one", "another"):
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


def mutant(outcome, code, *differences):
    return Mutant(
        cell="t5_qa_sft",
        file="torch/a.py",
        line=7,
        number=0,
        kind="constant",
        before="1",
        after="2",
        was_reached=True,
        outcome=outcome,
        exit_code=code,
        differences=differences,
    )


def test_a_share_counts_what_changes_results_and_survivors_have_their_place(tmp_path, capsys):
    results = [
        mutant(CRASH, -9, "weights", "files", "answers", "bytes"),
        mutant("exit 1", 1, "weights"),
        mutant("exit 6", 6, "answers"),
        mutant(SILENT, 0, "files"),
        mutant(SILENT, 0, "bytes"),
        mutant(REPORTED, 0),
    ]
    path = tmp_path / "trial.json"
    page = tmp_path / "page.md"
    trial = Trial(cells=["t5_qa_sft"], count=6, seed=1, versions={}, mutants=results)
    path.write_bytes(command.TRIAL.dump_json(trial))
    assert command.main([str(path), f"--report={page}"]) == 0
    output = capsys.readouterr().out
    # Wilson's interval of 3 of 4 is 30.1 to 95.4 %, of 2 of 3 20.8 to 93.9 %.
    assert "3 of 4, 75.0% (30.1% to 95.4%)" in output
    assert "2 of 3, 66.7% (20.8% to 93.9%)" in output
    survivors = [line.split() for line in output.splitlines() if line.startswith("torch/a.py")]
    assert survivors == [["torch/a.py:7", "1", "->", "2", "t5_qa_sft", "files", "no"]]
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
    trial = Trial(cells=command.SMOKE, count=2, seed=1, versions=command.versions())
    path.write_bytes(command.TRIAL.dump_json(trial))
    words = ["--count=2", "-o", path]
    assert "continue it with --resume" in refusal(capsys, command.main, *words)
    assert "has another seed (1)" in refusal(capsys, command.main, *words, "--seed=2", "--resume")
