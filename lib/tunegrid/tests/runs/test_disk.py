"""A file is written whole or not at all, and points of rows are what their name says, whatever was
killed or damaged.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.machine import replace_file, temporary_folder, write_whole
from tunegrid.runs import examples
from tunegrid.runs.files import load, save
from tunegrid.tests.records import altered, complete, complete_json, sealed

NOTHING = {"benchmarks": []}


def write_examples():
    """Writes two rows, the first of them right."""
    return examples.write(["a", "b"], {"accuracy": [100.0, 0.0]}, ["1", "0"])


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        InputError, match=r"folder cannot be written \(Is a directory\); give another place"
    ):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_write_that_breaks_off_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    names = []
    path.write_text("before")
    for _ in range(2):
        with suppress(ZeroDivisionError), replace_file(path) as part:
            part.write_text("half")
            names.append(part.parent.name)
            raise ZeroDivisionError
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "before"}
    assert len(set(names)) == 2  # nobody knows it before, who could lay a link there


def test_of_a_link_the_target_is_replaced(tmp_path):
    path = tmp_path / "link"
    target = tmp_path / "folder" / "target"
    path.symlink_to(target)
    for text in ("made", "replaced"):
        write_whole(path, text)
        assert path.readlink() == target
        assert target.read_text() == text
    assert [file.name for file in target.parent.iterdir()] == ["target"]


def test_a_pipe_is_written_into_and_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, text=True) as reader:
        write_whole(path, "whole")
        assert reader.communicate(timeout=10)[0] == "whole"
        assert path.is_fifo()


def test_a_device_is_written_into_and_stays(tmp_path):
    path = tmp_path / "nul"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs the right to make a device")
    link = tmp_path / "link"
    link.symlink_to(path)
    save({"benchmarks": []}, path)
    write_whole(link, "text")
    assert path.is_char_device()
    assert link.is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "nul"]


def test_a_file_that_takes_this_processs_output_keeps_what_was_said_before_and_after(tmp_path):
    program = (
        "from pathlib import Path\n"
        "from tunegrid.machine import write_whole\n"
        "from tunegrid.terminal import say\n"
        "say('before')\n"
        "write_whole(Path('/proc/self/fd/1'), 'page\\n')\n"
        "say('after')\n"
    )
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, check=True, cwd=ROOT / "lib")
    assert (tmp_path / "log").read_text() == "before\npage\nafter\n"


WAITS = """
import sys, time
from pathlib import Path
from tunegrid.machine import replace_file, temporary_folder
with temporary_folder(), replace_file(Path(sys.argv[1])) as part:
    part.write_text("a library puts another file in its place")
    part.unlink()
    part.write_text("half")
    print("writes", flush=True)
    time.sleep(60)
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_a_living_one(
    tmp_path, monkeypatch
):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", f"{temporary}")
    monkeypatch.setattr(tempfile, "tempdir", f"{temporary}")
    command = [sys.executable, "-c", WAITS, tmp_path / "run.json"]
    writers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT / "lib") for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"writes\n"
    (tmp_path / "film.part").touch()  # another program's
    (tmp_path / f"old.json.{16 * '0'}.part").touch()  # an earlier version's
    for left, writer in zip((1, 0), writers, strict=True):
        writer.kill()
        writer.communicate()
        write_whole(tmp_path / "page.html", "whole")
        assert len(list(tmp_path.glob("run.json.*.part"))) == left
        with temporary_folder():
            assert len(list(temporary.iterdir())) == left + 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film.part", "page.html", "tmp"]
    assert list(temporary.iterdir()) == []


def test_writers_in_one_folder_never_remove_what_another_one_writes(tmp_path):
    def write(number):
        for text in map(str, range(200)):
            write_whole(tmp_path / f"{number}.txt", text)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        f"{number}.txt": "199" for number in range(4)
    }


def make_record(kept):
    record = complete(examples=vars(kept), scores={"accuracy": 50.0}, bounds={})
    return altered(record, "data.rows", record.data.rows | {"test": 2})


def other_rows(content):
    other = examples.write(["a", "b"], {"accuracy": [0.0, 0.0]}, ["0", "0"])
    return (examples.STORE / other.file).read_bytes()


DAMAGES = {
    "cut off": lambda content: content[: len(content) // 2],
    "a flipped bit": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    "another file's": other_rows,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_points_are_told_never_copied_and_written_anew(tmp_path, store, damage):
    kept = write_examples()
    record = make_record(kept)
    run = tmp_path / "run.json"
    (store / kept.file).write_bytes(damage((store / kept.file).read_bytes()))
    with pytest.raises(InputError, match="was changed since it was written"):
        examples.read(record, None)
    save(NOTHING, run, [record])
    assert not (tmp_path / "examples").exists()
    assert write_examples() == kept
    assert examples.read(record, None).to_dict("list") == {
        "id": ["a", "b"],
        "accuracy": [100, 0],
        "prediction": ["1", "0"],
    }


def test_a_pack_is_read_as_files_are_and_one_that_is_damaged_is_told(tmp_path, store):
    kept = write_examples()
    record = make_record(kept)
    run = tmp_path / "run.json"
    other = tmp_path / "other" / "run.json"
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


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_is_read(
    tmp_path, store, monkeypatch
):
    rows = pa.array([0] * 2**20, pa.int32())
    columns = {
        "id": pa.DictionaryArray.from_arrays(rows, ["b"]),
        "prediction": pa.DictionaryArray.from_arrays(rows, ["a" * 6100]),
    }
    file = BytesIO()
    pq.write_table(
        pa.table(columns | {"accuracy": pa.array([1.0] * 2**20)}), file, compression="zstd"
    )
    content = file.getvalue()
    assert len(content) < 20_000  # of 6.4 GB
    digest = hashlib.sha256(content).hexdigest()[:20]
    kept = replace(write_examples(), file=f"{digest}.parquet")
    (store / kept.file).write_bytes(content)
    with pytest.raises(InputError, match="it is too large when unpacked"):
        examples.read(make_record(kept), None)
    monkeypatch.setattr(examples, "MOST_PACKED", 100)
    pack = tmp_path / "examples" / "run.zip"
    pack.parent.mkdir()
    with ZipFile(pack, "w") as zipped:
        zipped.writestr("x.parquet", bytes(101))
    (store / kept.file).unlink()
    with pytest.raises(InputError, match="too large when unpacked"):
        examples.read(make_record(kept), tmp_path / "run.json")


def test_a_run_holds_what_did_not_end_apart_and_is_read_as_one(tmp_path):
    timed = {"name": "a", "stats": {}, "extra_info": complete_json()}
    untimed = {
        "name": "b",
        "extra_info": complete_json("bert_sa_sft", status="error", missed=["why"]),
    }
    save({"benchmarks": [untimed, timed], "version": "x"}, tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())
    assert [row["name"] for row in saved["benchmarks"]] == ["a"]
    assert [row["name"] for row in saved["unfinished"]] == ["b"]
    assert load(tmp_path / "run.json") == sealed({"benchmarks": [timed, untimed], "version": "x"})
