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


def test_a_seal_is_of_the_content_whatever_the_order_of_its_keys_and_its_blanks():
    content = {"b": [1, {"d": None, "c": 0.1}], "a": "é"}
    # By sha256sum, of {"a":"\\u00e9","b":[1,{"c":0.1,"d":null}]}
    seal = "72f02010bbaac14508f6c56b14464d38bc93faec43d82b511ec7ac9beb8b509e"
    sealed_content = add_seal(content)
    assert sealed_content == content | {"seal": seal}
    rewritten = json.dumps(sealed_content, indent=3, sort_keys=True)
    assert check_seal(json.loads(rewritten)) == "sealed"
    assert check_seal(content) == "unsealed"
    assert check_seal(sealed_content) == "sealed"
    assert check_seal(sealed_content | {"a": "e"}) == "changed"


def full_record(seeds, **changes):
    return get_record("bert_sa_lora", POINTS, profile="full", seeds=seeds, **changes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a sound run of a cell at two seeds, and its rows beside it."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    records = [
        full_record(
            make_seeds(0),
            status="unconfirmed",
            bounds={"accuracy": 95.0},
            missed=["accuracy 90.0 is below 95.0"],
        ),
        full_record(make_seeds(10000) | {"confirms": 0}),
        full_record(make_seeds(1)),
    ]
    rows = []
    for record in records:
        name = f"test_finetune[full-bert_sa_lora-seed{record.seeds.seed}]"
        stats = {"data": [1.0]}
        rows.append({"name": name, "fullname": name, "stats": stats, "extra_info": to_json(record)})
    run = {
        "benchmarks": rows,
        "commit_info": {"dirty": False, "id": "a" * 40},
        "datetime": "2026-12-01T09:00:00",
    }
    save(run, tmp_path / "RUN.json", records)
    (tmp_path / "store").rename(tmp_path / "examples" / "loose")
    return tmp_path


def changed_run(folder, change):
    """The JSON of the sound run after a change."""
    run = json.loads((folder / "RUN.json").read_text())
    change(run)
    return run


def write_run(folder, name, run):
    (folder / name).write_text(json.dumps(run))


def exchange_names(run):
    first, *_, last = run["benchmarks"]
    first["name"], last["name"] = last["name"], first["name"]


def in_record(path, value):
    """A change of the last record."""

    def change(run):
        *parents, name = path.split(".")
        fields = run["benchmarks"][-1]["extra_info"]
        for parent in parents:
            fields = fields[parent]
        fields[name] = value

    return change


# Facts of a sound run that nothing else in the file contradicts.
LIES = {
    "names": exchange_names,
    "speed": in_record("throughput.train_samples_per_second", 1e308),
    "another profile": in_record("profile", "quick"),
    "commit": lambda run: run["commit_info"].update(id="b" * 40),
    "time": lambda run: run["benchmarks"][0]["stats"].update(data=[0.5]),
    "a row less": lambda run: run["benchmarks"].pop(),
    "its own seal": lambda run: run.pop("seal"),
}


def write_lie(folder, name):
    write_run(folder, "LIE.json", changed_run(folder, LIES[name]))


@pytest.mark.parametrize("name", LIES)
def test_whatever_is_changed_in_a_run_the_reader_says_so(folder, name):
    assert read_saved(folder / "RUN.json").doubt == ""
    write_lie(folder, name)
    doubt = read_saved(folder / "LIE.json").doubt
    assert doubt.startswith("was changed since it was written (")


def words(folder, command):
    return [str(folder / word) if word[0].isupper() else word for word in command.split()]


@pytest.mark.parametrize("name", ["speed", "another profile"])
@pytest.mark.parametrize(
    "command",
    [
        "gate LIE.json RUN.json",
        "gate RUN.json LIE.json",
        "merge LIE.json -o OUT.json",
        "merge LIE.json --baseline -o OUT.json",
    ],
)
def test_a_changed_run_is_neither_judged_nor_merged(folder, capsys, command, name):
    write_lie(folder, name)
    sentence = "LIE.json was changed since it was written (test_finetune[full-bert_sa_lora-seed1])"
    assert sentence in refusal(capsys, main, *words(folder, command))
    assert not list(folder.glob("OUT*"))


def test_a_changed_run_that_cannot_be_read_is_said_to_be_changed(folder):
    write_run(folder, "LIE.json", changed_run(folder, in_record("scores.accuracy", "high")))
    with pytest.raises(
        InputError, match=r"LIE.json was changed since .*, and cannot be read \(bert_sa_lora: "
    ):
        read_saved(folder / "LIE.json")


@pytest.mark.parametrize(
    "command", ["compare LIE.json", "export LIE.json -o OUT.csv", "page LIE.json -o OUT.html"]
)
def test_a_changed_run_is_shown_with_that_in_the_first_line(folder, capsys, command):
    write_lie(folder, "speed")
    assert main(words(folder, command)) == 0
    printed = capsys.readouterr()
    first_line = (printed.out + printed.err).splitlines()[0]
    assert "LIE.json was changed since it was written" in first_line


def test_a_page_that_compares_with_a_changed_run_says_so_in_its_heading(folder):
    write_lie(folder, "speed")
    assert main(words(folder, "page RUN.json LIE.json -o OUT.html")) == 0
    heading = re.search("<h1>.*</h1>", (folder / "OUT.html").read_text())[0]
    assert "LIE.json was changed since it was written" in heading


def remove_seals(run):
    for content in (run, *run["benchmarks"]):
        del content["seal"]


def remove_audit(run):
    record = run["benchmarks"][-1]["extra_info"]
    record["audits"] = [audit for audit in record["audits"] if audit["name"] != "no_leakage"]


def test_a_run_of_an_earlier_version_is_shown_without_audits_that_it_had_not(folder, capsys):
    run = changed_run(folder, remove_seals)
    remove_audit(run)
    write_run(folder, "OLD.json", run)
    assert main(words(folder, "compare OLD.json")) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'OLD.json'} {UNSEALED}.\n")


def test_files_of_older_versions_are_shown_are_no_baseline_and_make_no_sealed_run(folder, capsys):
    old = folder / "OLD.json"
    write_run(folder, old.name, changed_run(folder, remove_seals))
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove_audit, "audits lacks no_leakage"),
        (
            in_record("seeds.confirms", 0),
            "seeds.seed is 1, but the seed that confirms seed 0 is 10000",
        ),
        (
            in_record("scores.accuracy", 97.0),
            "its rows have a mean accuracy of 90.00, but scores.accuracy",
        ),
        (in_record("data.rows.test", 41), "it holds 40 rows, but the record names 41"),
        (in_record("examples.rows_hash", "0" * 16), "its rows do not match rows_hash"),
    ],
)
def test_what_honest_code_may_get_wrong_is_told_of_sealed_runs_too(folder, change, sentence):
    write_run(folder, "LIE.json", sealed(changed_run(folder, change)))
    with pytest.raises(InputError) as error:
        read_saved(folder / "LIE.json")
    assert sentence in str(error.value)
    assert str(error.value).startswith(f"{folder}/")


@pytest.mark.parametrize(
    "command", ["compare RUN.json", "gate RUN.json RUN.json", "page RUN.json -o OUT.html"]
)
def test_changed_files_beside_a_run_are_told(folder, capsys, command):
    record = read_saved(folder / "RUN.json").records[0]
    (folder / "examples" / "RUN.zip").unlink()
    table = pq.read_table(folder / "examples" / "loose" / record.examples.file)
    other_ids = pa.array([f"s{n}" for n in range(len(table))])
    path = folder / "examples" / record.examples.file
    pq.write_table(table.set_column(0, "id", other_ids), path)
    message = refusal(capsys, main, *words(folder, command))
    assert f"{record.examples.file} was changed since it was written" in message
