"""A file is written whole or not at all, and points of rows are what their name says, whatever was killed or damaged."""

import json
from zipfile import ZipFile

import pytest

from tunegrid.errors import InputError
from tunegrid.machine import replacing, write_whole
from tunegrid.record import ExamplesRecord, from_json
from tunegrid.results import examples
from tunegrid.results.examples import Examples
from tunegrid.results.files import load, save
from tunegrid.tests.records import complete_json

SMALL = Examples(ids=["a", "b"], points={"accuracy": [100.0, 0.0]}, predictions=["1", "0"])


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder cannot be written \(Is a directory\); give another place"):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_write_that_breaks_off_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def broken_off():
        with replacing(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "before"}


def record_with(kept: ExamplesRecord):
    data = complete_json(examples=vars(kept), scores={"accuracy": 50.0}, bounds={})
    data["data"] = data["data"] | {"rows": data["data"]["rows"] | {"test": 2}}
    return from_json(data)


DAMAGES = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped bit": lambda content: bytes([*content[:40], content[40] ^ 1, *content[41:]]),
    "another file's": None,
}


def damage(path, how):
    if how == "another file's":
        other = examples.write(Examples(ids=["a", "b"], points={"accuracy": [0.0, 0.0]}, predictions=["0", "0"]))
        path.write_bytes((examples.STORE / other.file).read_bytes())
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_points_are_told_on_reading_and_written_anew(store, how):
    kept = examples.write(SMALL)
    damage(store / kept.file, how)
    with pytest.raises(InputError, match=r"does not hold|was changed or is damaged"):
        examples.read(record_with(kept), None)
    assert examples.write(SMALL) == kept
    assert examples.read(record_with(kept), None) == SMALL


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_points_are_never_copied_over_good_ones(tmp_path, store, how):
    kept = examples.write(SMALL)
    record, run = record_with(kept), tmp_path / "run.json"
    examples.keep_beside([record], run)
    good = (tmp_path / "examples" / kept.file).read_bytes()
    damage(store / kept.file, how)
    examples.keep_beside([record], run)
    assert (tmp_path / "examples" / kept.file).read_bytes() == good
    assert examples.read(record, run) == SMALL
    examples.keep_beside([record], tmp_path / "elsewhere" / "run.json")
    assert not (tmp_path / "elsewhere").exists()
    damage(tmp_path / "examples" / kept.file, how)
    assert examples.write(SMALL) == kept
    examples.keep_beside([record], run)
    assert examples.read(record, run) == SMALL


def test_a_damaged_file_beside_a_run_gives_way_to_the_machines_own(tmp_path, store):
    kept = examples.write(SMALL)
    record, run = record_with(kept), tmp_path / "run.json"
    examples.keep_beside([record], run)
    damage(tmp_path / "examples" / kept.file, "cut off")
    assert examples.read(record, run) == SMALL


def test_a_pack_is_read_as_files_are_and_so_is_what_was_changed_in_it(tmp_path, store):
    kept = examples.write(SMALL)
    record, run = record_with(kept), tmp_path / "run.json"
    examples.pack_beside([record], run)
    pack = tmp_path / "examples" / "run.zip"
    content = pack.read_bytes()
    examples.pack_beside([record], run)
    assert pack.read_bytes() == content
    damage(store / kept.file, "another file's")
    assert examples.read(record, run) == SMALL
    examples.keep_beside([record], tmp_path / "other" / "run.json", run)
    assert examples.read(record, tmp_path / "other" / "run.json") == SMALL
    with ZipFile(pack, "w") as changed:
        changed.write(store / kept.file, kept.file)
    (store / kept.file).unlink()
    with pytest.raises(InputError, match=r"run\.zip/\w+\.parquet does not hold what it is named for"):
        examples.read(record, run)
    pack.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"run\.zip/\w+\.parquet does not hold points .*BadZipFile"):
        examples.read(record, run)


def test_a_run_holds_what_did_not_end_apart_and_is_read_as_one(tmp_path):
    timed = {"name": "a", "stats": {}, "extra_info": complete_json()}
    untimed = {"name": "b", "extra_info": complete_json("bert_sa_sft", status="error", missed=["why"])}
    save({"benchmarks": [untimed, timed], "version": "x"}, tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())
    assert ([row["name"] for row in saved["benchmarks"]], [row["name"] for row in saved["unfinished"]]) == (["a"], ["b"])
    assert load(tmp_path / "run.json") == {"benchmarks": [timed, untimed], "version": "x"}
