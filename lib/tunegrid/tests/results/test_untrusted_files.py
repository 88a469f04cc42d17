"""Untrusted run files: whatever is in them, a command answers with a sentence and writes to its target alone."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest

from tunegrid.commands import baseline, export, gate, merge, page
from tunegrid.errors import InputError
from tunegrid.record import from_json
from tunegrid.results import examples
from tunegrid.results.examples import Examples
from tunegrid.results.judgements import Verdict, judgement_of
from tunegrid.results.report import Section, markdown
from tunegrid.results.summary import summary
from tunegrid.results.verdict import verdict_of
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.records import complete, complete_json
from tunegrid.tests.strangers import attacked, seeds_of

VALUES = [
    *(None, True, -1, 0, 3, 10**400, 0.5, -1e308, float("nan"), float("inf")),
    *("", "x", "../lib/gate.py", "/etc/passwd", "a\nb", "\x1b[2J\x00", "\ud800", "|`<b>*_[](x)"),
    *("::error::x", "\n  ::add-mask::x", "##[group]x"),
    *("0123456789abcdef.parquet", "é" * 500, [], [None], [[1, [2]]], ["x", 3], {}, {"x": None}, {"cell": "x"}),
]
EXPECTED = re.compile(r"in/a\.json|out/c\.(json|html|parquet|csv)|out/examples/([0-9a-f]{16}\.parquet|c\.zip)")


# What the examples that `world` writes are named by.
EXAMPLES = {"file": "613ddef0283ab058.parquet", "rows_hash": "3554d2b8a1e34099"}


def run_of(cell="bert_sa_lora"):
    """A small run that each command takes."""
    record = complete_json(cell, profile="full", examples=EXAMPLES, scores={"accuracy": 50.0}, bounds={})
    record["data"] = record["data"] | {"rows": record["data"]["rows"] | {"test": 2}}
    row = {"name": "test_finetune[full]", "fullname": "benchmarks::test_finetune[full]", "extra_info": record}
    return {"benchmarks": [row], "machine_info": {"cpu": "a CPU"}, "commit_info": {"dirty": False}}


def places_in(node, path=()):
    """The path of every value of nested mappings and lists."""
    if path:
        yield path
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield from places_in(value, (*path, key))


def parent_of(run, path):
    for key in path[:-1]:
        run = run[key]
    return run


COMMANDS = ("baseline", "export", "export --rows", "gate", "gate --numerics", "merge", "merge --journal", "page")
TEXT = json.dumps(run_of())
PLACES = list(places_in(json.loads(TEXT)))


def mutated(random):
    """A run's JSON with values replaced, removed or misnamed; of every tenth, the text is cut or overwritten somewhere."""
    run = json.loads(TEXT)
    for _ in range(random.randint(1, 3)):
        path = random.choice(PLACES)
        try:
            parent = parent_of(run, path)
            change = random.choice(["replace", "replace", "remove", "misname"])
            if change == "replace":
                parent[path[-1]] = random.choice(VALUES)
            else:
                value = parent.pop(path[-1])
                if change == "misname" and isinstance(parent, dict):
                    parent[random.choice(["", "x", "../x", "cell"])] = value
        except (AttributeError, KeyError, IndexError, TypeError):
            continue  # an earlier change took that place away
    text = json.dumps(run)
    if random.random() < 0.1:
        cut = random.randint(0, len(text))
        text = text[:cut] + random.choice(["", "]", "[" * 100_000, "\\ud800", "\0"]) + text[cut + 1 :]
    return text


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder of such files, ours, and files that nobody may touch."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    for name in ("in/examples", "lib", "out", "store"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lib" / "gate.py").write_text("ours")
    (tmp_path / "sound.json").write_text(TEXT)
    written = examples.write(Examples(ids=["a", "b"], points={"accuracy": [100.0, 0.0]}, predictions=["1", "0"]))
    (tmp_path / "store" / written.file).rename(tmp_path / "in" / "examples" / EXAMPLES["file"])
    return tmp_path


def command_of(name, world):
    path, sound, out = str(world / "in" / "a.json"), str(world / "sound.json"), str(world / "out" / "c.json")
    return {
        "baseline": lambda: baseline.main([path, out]),
        "export": lambda: export.main([path, "-o", str(world / "out" / "c.csv")]),
        "export --rows": lambda: export.main([path, "--rows", "-o", str(world / "out" / "c.parquet")]),
        "gate": lambda: gate.main([sound, path, "--format=markdown"]),
        "gate --numerics": lambda: gate.main([path, sound, "--numerics"]),
        "merge": lambda: merge.main([sound, path, "-o", out]),
        "merge --journal": lambda: merge.main(["--journal", path, "-o", out]),
        "page": lambda: page.main([path, sound, "-o", str(world / "out" / "c.html")]),
    }[name]


def answered(command):
    """The one sentence of a command that refuses; empty for one that answers. Neither makes a terminal obey."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    sentence = ""
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = command()
        except SystemExit as exit_:
            code = exit_.code
            sentence = read(err).partition(": error: ")[2]
            assert sentence.count("\n") == 1, sentence
    assert obeyed(read(out) + read(err)) == []
    assert code in (0, 1, 2, 6)  # 6: the gate could test nothing
    return sentence.strip()


def read(stream):
    stream.flush()
    return stream.buffer.getvalue().decode()


def journal_of(text):
    """A journal with the rows of a run, or with a text that is none."""
    try:
        return "\n".join(json.dumps({"key": "k", "row": row}) for row in json.loads(text)["benchmarks"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def untouched(world):
    """Every file but the run that is read and the targets of commands."""
    files = {str(path.relative_to(world)): path.read_bytes() for path in world.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not EXPECTED.fullmatch(name)}


def test_no_record_names_a_file_elsewhere(world):
    run = json.loads(TEXT)
    run["benchmarks"][0]["extra_info"]["examples"]["file"] = "../lib/gate.py"
    (world / "in" / "a.json").write_text(json.dumps(run))
    before = untouched(world)
    for name in COMMANDS:
        answered(command_of(name, world))
    (world / "in" / "a.json").write_text(journal_of(json.dumps(run)))
    answered(command_of("merge --journal", world))
    assert untouched(world) == before


def test_examples_that_are_no_parquet_are_one_sentence(world):
    (world / "in" / "a.json").write_text(TEXT)
    record = from_json(json.loads(TEXT)["benchmarks"][0]["extra_info"])
    file = world / "in" / "examples" / record.examples.file
    assert examples.read(record, world / "in" / "a.json").ids == ["a", "b"]
    file.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="does not hold points and predictions of rows"):
        examples.read(record, world / "in" / "a.json")


def test_names_have_no_effect_in_a_gates_markdown():
    record = complete()
    detail = "name: <b>a|b</b>\n# `c` and *d* _e_ [f](g)"
    judged = [judgement_of(record, "accuracy", Verdict.WORSE, detail=detail)]
    page = summary(verdict_of([record], judged), judged)
    assert "name: \\<b\\>a\\|b\\</b\\> # `c` and \\*d\\* \\_e\\_ \\[f\\](g)" in page
    assert "bert_sa_lora" in page
    assert {line.count("|") - line.count("\\|") for line in page.splitlines() if line.startswith("|")} == {4}
    parts = [Section(sentences=[one]) for one in ("run `a <b>` on <b>", "a `<b>` c `", "a $`x`$", "a `` b")]
    assert [markdown([part]) for part in parts] == [
        "* run `a <b>` on \\<b\\>",
        "* a \\`\\<b\\>\\` c \\`",  # one is left over
        "* a \\$`x`\\$",  # no formula
        "* a \\`\\` b",
    ]


@pytest.mark.parametrize("name", COMMANDS)
@seeds_of(40, 1000)
def test_a_mutated_run_is_answered_in_a_sentence_and_nothing_else_is_written(name, world, seeds):
    before = untouched(world)
    command, path = command_of(name, world), world / "in" / "a.json"

    def answer(random):
        text = mutated(random)
        path.write_text(journal_of(text) if name == "merge --journal" else text)
        if sentence := answered(command):
            raise InputError(sentence)

    attacked(answer, seeds)
    assert untouched(world) == before
