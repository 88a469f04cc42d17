"""A file is written whole or not at all, and points of rows are what their name says, whatever was killed or damaged."""

import json
from contextlib import suppress
from zipfile import ZipFile

import pytest

from tunegrid.errors import InputError
from tunegrid.machine import replace_file, write_whole
from tunegrid.record import from_json
from tunegrid.runs import examples
from tunegrid.runs.files import load, save
from tunegrid.tests.records import complete_json, sealed

NOTHING = {"benchmarks": []}
SMALL = ["a", "b"], {"accuracy": [100.0, 0.0]}, ["1", "0"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder cannot be written \(Is a directory\); give another place"):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_write_that_breaks_off_leaves_what_was_there_and_nothing_else(tmp_path):
    path, names = tmp_path / "file", []
    path.write_text("before")
    for _ in range(2):
        with suppress(ZeroDivisionError), replace_file(path) as part:
            part.write_text("half")
            names.append(part.name)
            raise ZeroDivisionError
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "before"}
    assert len(set(names)) == 2  # nobody knows it before, who could lay a link there


def test_no_link_is_followed(tmp_path):
    path, elsewhere = tmp_path / "file", tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    path.symlink_to(elsewhere)
    write_whole(path, "whole")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "whole", "elsewhere": "mine"}


def make_record(kept):
    data = complete_json(examples=vars(kept), scores={"accuracy": 50.0}, bounds={})
    data["data"] = data["data"] | {"rows": data["data"]["rows"] | {"test": 2}}
    return from_json(data)


def other_rows(content):
    other = examples.write(["a", "b"], {"accuracy": [0.0, 0.0]}, ["0", "0"])
    return (examples.STORE / other.file).read_bytes()


DAMAGES = {
    "cut off": lambda content: content[: len(content) // 2],
    "a flipped bit": lambda content: bytes([*content[:40], content[40] ^ 1, *content[41:]]),
    "another file's": other_rows,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_points_are_told_never_copied_and_written_anew(tmp_path, store, how):
    kept = examples.write(*SMALL)
    record, run = make_record(kept), tmp_path / "run.json"
    (store / kept.file).write_bytes(DAMAGES[how]((store / kept.file).read_bytes()))
    with pytest.raises(InputError, match="was changed since it was written"):
        examples.read(record, None)
    save(NOTHING, run, [record])
    assert not (tmp_path / "examples").exists()
    assert examples.write(*SMALL) == kept
    assert examples.read(record, None).to_dict("list") == {"id": ["a", "b"], "accuracy": [100, 0], "prediction": ["1", "0"]}


def test_a_pack_is_read_as_files_are_and_one_that_is_damaged_is_told(tmp_path, store):
    kept = examples.write(*SMALL)
    record, run, other = make_record(kept), tmp_path / "run.json", tmp_path / "other" / "run.json"
    save(NOTHING, run, [record])
    content = (tmp_path / "examples" / "run.zip").read_bytes()
    (store / kept.file).unlink()
    save(NOTHING, other, [record], [run])
    assert (other.parent / "examples" / "run.zip").read_bytes() == content
    assert list(examples.read(record, other)["id"]) == ["a", "b"]
    assert examples.read(record, tmp_path / "nowhere" / "run.json") is None
    (tmp_path / "examples" / "run.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"run\.zip is not a pack of examples .*BadZipFile"):
        examples.read(record, run)
    with ZipFile(other.parent / "examples" / "run.zip", "w") as changed:
        changed.writestr(kept.file, other_rows(None))
    with pytest.raises(InputError, match="was changed since it was written"):
        examples.read(record, other)


def test_a_run_holds_what_did_not_end_apart_and_is_read_as_one(tmp_path):
    timed = {"name": "a", "stats": {}, "extra_info": complete_json()}
    untimed = {"name": "b", "extra_info": complete_json("bert_sa_sft", status="error", missed=["why"])}
    save({"benchmarks": [untimed, timed], "version": "x"}, tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())
    assert ([row["name"] for row in saved["benchmarks"]], [row["name"] for row in saved["unfinished"]]) == (["a"], ["b"])
    assert load(tmp_path / "run.json") == sealed({"benchmarks": [timed, untimed], "version": "x"})
