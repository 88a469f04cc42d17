"""A saved run that says what cannot be true is told so in one sentence by every command that reads it."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from tunegrid.commands import baseline, compare, export, gate, merge, page
from tunegrid.record import to_json
from tunegrid.results import examples
from tunegrid.tests.records import hits, record_of

POINTS = {"accuracy": hits(40, right=36)}  # a mean of 90
SCORES = {"accuracy": 90.0, "f1_macro": 90.0}
FAILED = {"name": "base_frozen", "passed": False, "detail": "3 tensors changed"}


def change(**changes):
    return lambda record: record.update(changes)


def part(name, **changes):
    return lambda record: record.update({name: record[name] | changes})


# What is changed in a sound record, and the sentence that it breaks.
LIES = {
    "a failed audit": (change(audits=[FAILED]), "the status is 'passed', but audit base_frozen: 3 tensors changed"),
    "a failed audit that may not be excused": (
        change(audits=[FAILED], excused={"base_frozen": "too short"}),
        "excused has base_frozen, which no run is too short for",
    ),
    "an excuse for what did not fail": (
        change(excused={"learned_something": "too short"}),
        "excused has learned_something, which is no audit that failed",
    ),
    "no audit at all": (change(audits=[]), "audits is empty, but the status is 'passed'"),
    "a score below its bound": (change(bounds={"accuracy": 95.0}), "the status is 'passed', but accuracy 90.0 is below 95.0"),
    "no main score": (change(scores={"f1_macro": 90.0}, bounds={}), "scores has no accuracy, but the status is 'passed'"),
    "no score that gates judge": (
        change(bounded_scores=[]),
        "main_score 'accuracy' is not among bounded_scores, by which gates judge",
    ),
    "another method's name": (change(method="sft"), "cell is bert_sa_lora, but backbone, task and method are bert_sa_sft"),
    "another method's name throughout": (
        change(method="sft", cell="bert_sa_sft"),
        "recipe.adapter is set, which is not method sft",
    ),
    "fewer updates than losses": (part("training", updates=1), "training.updates is 1, but training.losses has 2"),
    "a loss that is no number": (part("training", losses=[0.7, None]), "the status is 'passed', but a loss is not a number"),
    "a training that stopped early": (
        part("training", stopped="loss is nan"),
        "training.stopped tells why it ended early, but the status is 'passed'",
    ),
    "another share than that of the counts": (
        part("parameters", trainable_percent=0.3),
        "parameters.trainable_percent is 0.3, but 2.5 by the counts",
    ),
    "more test rows than its limit": (part("limits", test_rows=16), "data.rows.test is 40, but limits.test_rows is 16"),
    "scores that are not the mean of their rows": (
        change(scores=SCORES | {"accuracy": 97.0}),
        "its rows have a mean accuracy of 90.00, but scores.accuracy is 97.00",
    ),
    "rows of another number": (
        lambda record: record["data"]["rows"].update(test=41),
        "it holds 40 rows, but the record names 41",
    ),
    "other rows": (part("examples", rows_hash="0" * 16), "it holds other rows than those of rows_hash"),
}
COMMANDS = {
    "baseline": lambda run, sound, out: baseline.main([run, f"{out}.json"]),
    "compare": lambda run, sound, out: compare.main([run]),
    "export": lambda run, sound, out: export.main([run, "-o", f"{out}.csv"]),
    "gate, a run": lambda run, sound, out: gate.main([sound, run]),
    "gate, a baseline": lambda run, sound, out: gate.main([run, sound]),
    "merge": lambda run, sound, out: merge.main([run, "-o", f"{out}.json"]),
    "page": lambda run, sound, out: page.main([run, "-o", f"{out}.html"]),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a sound run of a cell, and its rows beside it."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    for name, cell in (("run", "bert_sa_lora"), ("other", "bert_sa_sft")):
        write(tmp_path / f"{name}.json", to_json(record_of(cell, POINTS, scores=SCORES, profile="full")))
    shutil.move(tmp_path / "store", tmp_path / "examples")
    return tmp_path


def write(path, *records):
    rows = [{"name": f"test[{number}]", "fullname": f"test[{number}]", "extra_info": r} for number, r in enumerate(records)]
    path.write_text(json.dumps({"benchmarks": rows, "commit_info": {"dirty": False}}))


def record_in(path):
    return json.loads(path.read_text())["benchmarks"][0]["extra_info"]


def answers(folder, capsys):
    """Exit code and sentence of every command on `lie.json`; none writes anything."""
    said = {}
    for name, command in COMMANDS.items():
        try:
            code = command(str(folder / "lie.json"), str(folder / "run.json"), folder / "out")
        except SystemExit as exit_:
            code = exit_.code
        said[name] = code, "".join(capsys.readouterr())
    assert not list(folder.glob("out*"))
    return said


def assert_told(said, sentence):
    for name, (code, text) in said.items():
        assert code == 2, (name, text)
        assert sentence in text.replace("\\", ""), (name, text)  # a page of Markdown escapes


def test_a_sound_run_is_taken_by_every_command(folder, capsys):
    for name, command in COMMANDS.items():
        code = command(str(folder / "run.json"), str(folder / "run.json"), folder / name)
        assert code == 0, (name, capsys.readouterr())


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told_by_every_command(folder, capsys, lie):
    edit, sentence = LIES[lie]
    record = record_in(folder / "run.json")
    edit(record)
    write(folder / "lie.json", record)
    assert_told(answers(folder, capsys), sentence)


def test_rows_that_were_changed_under_an_unchanged_name_are_told_by_every_command(folder, capsys):
    record = record_in(folder / "run.json")
    path = folder / "examples" / record["examples"]["file"]
    table = pq.read_table(path)
    zeroed = table.set_column(1, "accuracy", [[0.0] * 40])
    pq.write_table(zeroed, path)
    write(folder / "lie.json", record)
    assert_told(answers(folder, capsys), "does not hold what it is named for")


def test_a_row_that_stands_twice_is_told_by_every_command(folder, capsys):
    record = record_in(folder / "run.json")
    write(folder / "lie.json", record, record)
    for name, (code, text) in answers(folder, capsys).items():
        assert (code, "holds bert_sa_lora (full, seed 0) twice" in text) == (2, True), (name, text)


@pytest.mark.parametrize("lie", ["a score below its bound", "a failed audit", "a loss that is no number"])
def test_what_a_cell_tells_itself_is_no_lie(folder, lie):
    edit, _ = LIES[lie]
    record = record_in(folder / "run.json")
    edit(record)
    record |= {"status": "missed", "missed": ["as it says"]}
    write(folder / "missed.json", record)
    assert page.main([str(folder / "missed.json"), "-o", str(folder / "page.html")]) == 0
