"""A saved run is sealed: one that was changed is shown as such and is no baseline; and what honest
code may get wrong.
"""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunegrid.__main__ import main
from tunegrid.commands import merge
from tunegrid.errors import InputError
from tunegrid.lab import seal as lab_seal
from tunegrid.record import to_json
from tunegrid.runs import examples
from tunegrid.runs.files import UNSEALED, read_saved, save
from tunegrid.runs.seal import add_seal, check_seal
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import get_record, hits, make_seeds, sealed

POINTS = {"accuracy": hits(40, right=36)}  # a mean of 90
SCORES = {"accuracy": 90.0, "f1_macro": 90.0}


def test_a_seal_is_of_the_content_whatever_the_order_of_its_keys_and_its_blanks():
    content = {"b": [1, {"d": None, "c": 0.1}], "a": "é"}
    # By sha256sum, of {"a":"\\u00e9","b":[1,{"c":0.1,"d":null}]}
    seal = "72f02010bbaac14508f6c56b14464d38bc93faec43d82b511ec7ac9beb8b509e"
    assert add_seal(content) == content | {"seal": seal}
    assert (
        check_seal(json.loads(json.dumps(content | {"seal": seal}, indent=3, sort_keys=True)))
        == "sealed"
    )
    assert check_seal(content) == "unsealed"
    assert check_seal(add_seal(content)) == "sealed"
    assert check_seal(add_seal(content) | {"a": "e"}) == "changed"


def full_record(**changes):
    return get_record("bert_sa_lora", POINTS, scores=SCORES, profile="full", **changes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a sound run of a cell at two seeds, and its rows beside it."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    records = [
        full_record(
            seeds=make_seeds(0),
            status="unconfirmed",
            bounds={"accuracy": 95.0},
            missed=["accuracy 90.0 is below 95.0"],
        ),
        full_record(seeds=make_seeds(10000) | {"confirms": 0}),
        full_record(seeds=make_seeds(1)),
    ]
    rows = []
    for record in records:
        name = f"test_finetune[full-bert_sa_lora-seed{record.seeds.seed}]"
        stats = {"data": [1.0]}
        info = to_json(record)
        rows.append({"name": name, "fullname": name, "stats": stats, "extra_info": info})
    run = {
        "benchmarks": rows,
        "commit_info": {"dirty": False, "id": "a" * 40},
        "datetime": "2026-12-01T09:00:00",
    }
    save(run, tmp_path / "RUN.json", records)
    (tmp_path / "store").rename(tmp_path / "examples" / "loose")
    return tmp_path


def rename_cells(run):
    first, *_, last = run["benchmarks"]
    first["name"], last["name"] = last["name"], first["name"]


def in_record(**fields):
    def change(run):
        run["benchmarks"][-1]["extra_info"].update(fields)

    return change


def in_part(place, value):
    def change(run):
        *parents, name = place.split(".")
        part = run["benchmarks"][-1]["extra_info"]
        for parent in parents:
            part = part[parent]
        part[name] = value

    return change


RANKS = {"count": 2, "backend": "gloo", "fsdp": False, "each": [{}, {}]}
CRASH = {"traceback": ["ValueError: no rows"], "printed": []}
# Facts of a sound run that nothing else in the file contradicts.
LIES = {
    "names": rename_cells,
    "unconfirmed": in_record(status="unconfirmed", missed=["why"]),
    "ranks": in_record(ranks=RANKS),
    "phases": in_part("memory.phases", {}),
    "trainable": in_part(
        "parameters", {"trainable_params": 0, "total_params": 1000, "trainable_percent": 0.0}
    ),
    "updates": in_part("training.updates", 144),
    "crash": in_record(crash=CRASH),
    "speed": in_part("throughput.train_samples_per_second", 1e308),
    "commit": lambda run: run["commit_info"].update(id="b" * 40),
    "time": lambda run: run["benchmarks"][0]["stats"].update(data=[0.5]),
    "a row less": lambda run: run["benchmarks"].pop(),
    "its own seal": lambda run: run.pop("seal"),
    "another profile": in_record(profile="quick"),
}


def lie(folder, name):
    return changed_run(folder, LIES[name])


def changed_run(folder, change):
    """The doubt about a run that somebody changed."""
    run = json.loads((folder / "RUN.json").read_text())
    change(run)
    (folder / "LIE.json").write_text(json.dumps(run))
    return read_saved(folder / "LIE.json").doubt


@pytest.mark.parametrize("name", LIES)
def test_whatever_is_changed_in_a_run_the_reader_says_so(folder, name):
    assert read_saved(folder / "RUN.json").doubt == ""
    assert lie(folder, name).startswith("was changed since it was written (")


REFUSING = (
    "gate LIE.json RUN.json",
    "gate RUN.json LIE.json",
    "merge LIE.json -o OUT.json",
    "merge LIE.json --baseline -o OUT.json",
)
SHOWING = (
    "compare LIE.json",
    "export LIE.json -o OUT.csv",
    "page LIE.json -o OUT.html",
    "page RUN.json LIE.json -o OUT.html",
)


def words(folder, command):
    return [str(folder / word) if word[0].isupper() else word for word in command.split()]


@pytest.mark.parametrize("name", ["speed", "another profile"])
@pytest.mark.parametrize("command", REFUSING)
def test_a_changed_run_is_neither_judged_nor_merged(folder, capsys, command, name):
    lie(folder, name)
    assert (
        "LIE.json was changed since it was written (test_finetune[full-bert_sa_lora-seed1])"
        in refusal(capsys, main, *words(folder, command))
    )
    assert not list(folder.glob("OUT*"))


def test_a_changed_run_that_cannot_be_read_is_said_to_be_changed(folder):
    with pytest.raises(
        InputError, match=r"LIE.json was changed since .*, and cannot be read \(bert_sa_lora: "
    ):
        changed_run(folder, in_part("scores.accuracy", "high"))


@pytest.mark.parametrize("command", SHOWING)
def test_a_changed_run_is_shown_with_that_in_the_first_line(folder, capsys, command):
    lie(folder, "speed")
    assert main(words(folder, command)) == 0
    printed = capsys.readouterr()
    text = printed.out + printed.err
    if command.startswith("page RUN"):
        text = re.search("<h1>.*</h1>", (folder / "OUT.html").read_text())[0]
    assert "LIE.json was changed since it was written" in text.splitlines()[0]


def unsealed(folder):
    run = json.loads((folder / "RUN.json").read_text())
    for content in (run, *run["benchmarks"]):
        del content["seal"]
    return run


def test_a_run_of_an_earlier_version_is_shown_without_audits_that_it_had_not(folder, capsys):
    run = unsealed(folder)
    del run["benchmarks"][-1]["extra_info"]["audits"][0]
    (folder / "OLD.json").write_text(json.dumps(run))
    assert main(words(folder, "compare OLD.json")) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'OLD.json'} {UNSEALED}.\n")


def test_files_of_older_versions_are_shown_are_no_baseline_and_make_no_sealed_run(folder, capsys):
    old = folder / "OLD.json"
    old.write_text(json.dumps(unsealed(folder)))
    assert read_saved(old).doubt == UNSEALED
    for command in ("gate OLD.json RUN.json", "merge OLD.json --baseline -o OUT.json"):
        assert "OLD.json has no seal" in refusal(capsys, main, *words(folder, command))
    assert main(words(folder, "gate RUN.json OLD.json")) == 6
    assert capsys.readouterr().out.splitlines()[0] == f"{old} {UNSEALED}."
    assert merge.main(words(folder, "OLD.json RUN.json -o OUT.json")) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{old} {UNSEALED}")
    assert read_saved(folder / "OUT.json").doubt == UNSEALED
    assert lab_seal.main([str(old)]) == 0
    assert read_saved(old).doubt == ""
    assert main(words(folder, "gate OLD.json RUN.json")) == 0


# What honest code may get wrong, of which files with a seal are asked as well


def sealed_lie(folder, change):
    """What is said of a run that somebody changed and sealed, or that a bug wrote."""
    run = json.loads((folder / "RUN.json").read_text())
    change(run)
    record = run["benchmarks"][-1]["extra_info"]
    row = {"name": "test_finetune[full-bert_sa_lora]", "extra_info": record}
    (folder / "LIE.json").write_text(json.dumps(sealed({"benchmarks": [row]})))
    with pytest.raises(InputError) as error:
        read_saved(folder / "LIE.json")
    return str(error.value)


def without(name):
    def change(run):
        record = run["benchmarks"][-1]["extra_info"]
        record["audits"] = [audit for audit in record["audits"] if audit["name"] != name]

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("no_leakage"), "audits lacks no_leakage"),
        (
            in_part("seeds.confirms", 0),
            "seeds.seed is 1, but the seed that confirms seed 0 is 10000",
        ),
        (
            in_part("scores.accuracy", 97.0),
            "its rows have a mean accuracy of 90.00, but scores.accuracy",
        ),
        (in_part("data.rows.test", 41), "it holds 40 rows, but the record names 41"),
        (in_part("examples.rows_hash", "0" * 16), "its rows do not match rows_hash"),
    ],
)
def test_what_honest_code_may_get_wrong_is_told_of_sealed_runs_too(folder, change, sentence):
    message = sealed_lie(folder, change)
    assert sentence in message
    assert message.startswith(f"{folder}/")


@pytest.mark.parametrize(
    "command", ["compare RUN.json", "gate RUN.json RUN.json", "page RUN.json -o OUT.html"]
)
def test_changed_files_beside_a_run_are_told(folder, capsys, command):
    record = read_saved(folder / "RUN.json").records[0]
    (folder / "examples" / "RUN.zip").unlink()
    table = pq.read_table(folder / "examples" / "loose" / record.examples.file)
    path = folder / "examples" / record.examples.file
    pq.write_table(table.set_column(0, "id", pa.array([f"s{n}" for n in range(len(table))])), path)
    assert f"{record.examples.file} was changed since it was written" in refusal(
        capsys, main, *words(folder, command)
    )
