"""A saved run that says what cannot be true is told so in one sentence, which every command that reads it prints."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunegrid.__main__ import main
from tunegrid.errors import InputError
from tunegrid.record import to_json
from tunegrid.runs import examples
from tunegrid.runs.files import read_saved
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import get_record, hits, make_seeds

POINTS = {"accuracy": hits(40, right=36)}  # a mean of 90
SCORES = {"accuracy": 90.0, "f1_macro": 90.0}
FAILED = {"passed": False, "detail": "accuracy 51.2"}


def put(place, value):
    """Changes one value of a record, as of "training.updates"."""

    def change(record):
        *parents, name = place.split(".")
        for parent in parents:
            record = record[parent]
        record[name] = value

    return change


def failed(name, **excused):
    """An audit failed, and perhaps is excused."""

    def change(record):
        [finding] = [one for one in record["audits"] if one["name"] == name]
        finding.update(FAILED)
        record["excused"] = excused

    return change


def without(name):
    return lambda record: record.update(audits=[one for one in record["audits"] if one["name"] != name])


# By the sentence that is told: what is changed in a sound record.
LIES = {
    "passed', but audit base_frozen: accuracy 51.2": failed("base_frozen"),
    "excused has base_frozen, which no short run excuses": failed("base_frozen", base_frozen="too short"),
    "excused has learned_something, but bounds": failed("learned_something", learned_something="too short"),
    "excused has no_leakage, which is not a failed audit": put("excused", {"no_leakage": "too short"}),
    "audits is empty": put("audits", []),
    "audits lacks no_leakage": without("no_leakage"),
    "audits lacks base_frozen": without("base_frozen"),
    "accuracy 90.0 is below 95.0": put("bounds", {"accuracy": 95.0}),
    "bounds.accuracy: Input should be greater than 0": put("bounds", {"accuracy": 0.0}),
    "scores has no accuracy": lambda record: record.update(scores={"f1_macro": 90.0}, bounds={}),
    "main_score is 'f1_macro', but that of task sa is 'accuracy'": put("main_score", "f1_macro"),
    "main_score 'accuracy' is not among bounded_scores": put("bounded_scores", []),
    "but backbone, task and method are bert_sa_sft": put("method", "sft"),
    "recipe.adapter is set, which does not fit method sft": lambda record: record.update(method="sft", cell="bert_sa_sft"),
    "training.updates is 1, but training.losses has 2": put("training.updates", 1),
    "training.updates is 2, but the recipe's are 40": put("recipe.max_steps", 40),
    "training.updates is 0, but the recipe's": lambda record: record["training"].update(updates=0, losses=[]),
    "a loss is not a number": put("training.losses", [0.7, None]),
    "training.stopped tells why it ended early": put("training.stopped", "loss is nan"),
    "parameters.trainable_percent is 0.3, but 2.5": put("parameters.trainable_percent", 0.3),
    "data.rows.test is 40, but limits.test_rows is 16": put("limits.test_rows", 16),
    "limits.train_rows is set, but bounds apply": put("limits.train_rows", 100),
    "limits.label_noise is set, but bounds apply": put("limits.label_noise", 0.1),
    "no peak above 0 GiB": lambda record: [phase.update(rss_peak_gib=0.0) for phase in record["memory"]["phases"].values()],
    "weights_bytes: Input should be greater": put("memory.ledger.weights_bytes", 0),
    "train_samples_per_second: Input should be greater than 0": put("throughput.train_samples_per_second", 0.0),
    "train_samples_per_second: Input should be a finite": put("throughput.train_samples_per_second", float("inf")),
    "its rows have a mean accuracy of 90.00, but scores.accuracy is 97.00": put("scores.accuracy", 97.0),
    "it holds 40 rows, but the record names 41": put("data.rows.test", 41),
    "its rows do not match rows_hash": put("examples.rows_hash", "0" * 16),
    "first_updates is 2, but the status is 'passed'": put("first_updates", 2),
    "status: Input should be 'passed', 'unconfirmed'": put("status", "good"),
    "missed is empty, but the status is 'missed'": put("status", "missed"),
}
COMMANDS = (
    *("compare LIE", "export LIE -o OUT.csv", "gate RUN LIE", "gate LIE RUN", "merge LIE -o OUT.json"),
    *("merge --baseline LIE -o OUT.json", "page LIE -o OUT.html"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a sound run of a cell, and its rows beside it."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    write(tmp_path / "RUN", sound(tmp_path))
    shutil.move(tmp_path / "store", tmp_path / "examples")
    return tmp_path


def sound(folder, **changes):
    return to_json(get_record("bert_sa_lora", POINTS, scores=SCORES, profile="full", **changes))


def write(path, *records, name="test_finetune[bert_sa_lora]"):
    rows = [{"name": name, "fullname": name, "extra_info": record} for record in records]
    path.write_text(json.dumps({"benchmarks": rows, "commit_info": {"dirty": False}}))


def read_record(path):
    return json.loads(path.read_text())["benchmarks"][0]["extra_info"]


@pytest.mark.parametrize("sentence", LIES)
def test_a_lie_of_a_record_is_told_on_reading(folder, sentence):
    record = read_record(folder / "RUN")
    LIES[sentence](record)
    write(folder / "LIE", record)
    with pytest.raises(InputError) as told:
        read_saved(folder / "LIE")
    assert sentence in str(told.value)
    assert str(told.value).startswith(f"{folder}/")


def twice(folder, record):
    write(folder / "LIE", record, record)


def equal_losses(folder, record):
    write(folder / "LIE", record, record | {"seeds": make_seeds(1)})


def renamed(folder, record):
    write(folder / "LIE", record, name="test_finetune[full-bert_sa_sft-seed0]")


def changed_rows(folder, record):
    path = folder / "examples" / record["examples"]["file"]
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "id", pa.array([f"s{n}" for n in range(len(table))])), path)
    write(folder / "LIE", record)


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        (twice, "it is there twice"),
        (equal_losses, "all its losses equal those of seed 0"),
        (renamed, "which is another cell's"),
        (changed_rows, "it was changed or is damaged"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_lie_is_told_by_every_command_that_writes_nothing_then(folder, capsys, command, lie, sentence):
    words = [word if word.startswith("-") else str(folder / word) for word in command.split()[1:]]
    words = [command.split()[0], *words]
    lie(folder, read_record(folder / "RUN"))
    assert sentence in refusal(capsys, main, *words)
    assert not list(folder.glob("OUT*"))
    if lie is renamed:
        write(folder / "LIE", read_record(folder / "RUN"))
        assert main(words) == 0


def test_what_a_cell_tells_itself_is_no_lie(folder):
    record = read_record(folder / "RUN")
    LIES["a loss is not a number"](record)
    write(folder / "LIE", record | {"status": "missed", "missed": ["as it says"]})
    assert read_saved(folder / "LIE").records[0].status == "missed"
