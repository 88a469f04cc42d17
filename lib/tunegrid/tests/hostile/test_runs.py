"""Runs of strangers: whatever is in them, a command answers with a sentence and writes to its target alone."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest

from tunegrid.__main__ import main
from tunegrid.errors import InputError
from tunegrid.results import examples
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.records import complete_json
from tunegrid.tests.strangers import attacked, changed

COMMANDS = {
    "export": "export IN -o OUT.csv",
    "export --rows": "export IN --rows -o OUT.parquet",
    "gate": "gate SOUND IN --format=markdown",
    "gate --numerics": "gate IN SOUND --numerics",
    "merge": "merge SOUND IN -o OUT.json",
    "merge --baseline": "merge IN -o OUT.json --baseline",
    "merge --journal": "merge --journal IN -o OUT.json",
    "page": "page IN SOUND -o OUT.html",
}
TARGET = re.compile(r"IN|OUT\.\w+|examples/OUT\.zip")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small sound run, its rows beside it, and a file that nobody may touch."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "examples")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    kept = vars(examples.write(["a", "b"], {"accuracy": [100.0, 0.0]}, ["1", "0"]))
    record = complete_json(profile="full", examples=kept, scores={"accuracy": 50.0}, bounds={})
    record["data"] = record["data"] | {"rows": record["data"]["rows"] | {"test": 2}}
    row = {"name": "test_finetune[full]", "fullname": "benchmarks::test_finetune[full]", "extra_info": record}
    run = {"benchmarks": [row], "machine_info": {"cpu": "a CPU"}, "commit_info": {"dirty": False}}
    (tmp_path / "SOUND").write_text(json.dumps(run))
    (tmp_path / "gate.py").write_text("ours")
    return tmp_path


def mutated(run, random):
    """Its JSON with values replaced, removed or misnamed; of every tenth, the text is cut or overwritten somewhere."""
    text = json.dumps(changed(run, random, random.randint(1, 3)))
    if random.random() < 0.1:
        cut = random.randint(0, len(text))
        text = text[:cut] + random.choice(["", "]", "[" * 100_000, "\\ud800", "\0"]) + text[cut + 1 :]
    return text


def answered(words):
    """The one sentence of a command that refuses; empty for one that answers. Neither makes a terminal obey."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
    sentence = err.getvalue().partition(": error: ")[2]
    assert sentence.count("\n") == (code == 2), sentence
    assert obeyed(out.getvalue() + err.getvalue()) == []
    assert code in (0, 1, 2, 6)  # 6: the gate could test nothing
    return sentence.strip() if code == 2 else ""


def journal_of(text):
    """A journal with the rows of a run, or with a text that is none."""
    try:
        return "\n".join(json.dumps({"key": "k", "row": row}) for row in json.loads(text)["benchmarks"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def untouched(folder):
    """Every file but the run that is read and the targets of commands."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not TARGET.fullmatch(name)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mutated_run_is_answered_in_a_sentence_and_nothing_else_is_written(name, folder):
    before, run = untouched(folder), json.loads((folder / "SOUND").read_text())
    command, *words = COMMANDS[name].split()
    words = [str(folder / word) if word.startswith(("IN", "OUT", "SOUND")) else word for word in words]

    def answer(random):
        text = mutated(run, random)
        (folder / "IN").write_text(journal_of(text) if name == "merge --journal" else text)
        if sentence := answered([command, *words]):
            raise InputError(sentence)

    attacked(answer, 40)
    assert untouched(folder) == before


def test_no_record_names_a_file_elsewhere(folder):
    run = json.loads((folder / "SOUND").read_text())
    run["benchmarks"][0]["extra_info"]["examples"]["file"] = "../gate.py"
    (folder / "IN").write_text(json.dumps(run))
    assert "examples.file: String should match pattern" in answered(
        ["merge", str(folder / "IN"), "-o", str(folder / "OUT.json")]
    )
    assert (folder / "gate.py").read_text() == "ours"
