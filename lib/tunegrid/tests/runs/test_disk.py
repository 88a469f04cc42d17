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


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        InputError, match=r"folder cannot be written \(Is a directory\); give another place"
    ):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_write_that_breaks_off_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    folder_names = set()
    for _ in range(2):
        with suppress(ZeroDivisionError), replace_file(path) as new_file:
            new_file.write_text("half")
            folder_names.add(new_file.parent.name)
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "before"
    assert len(folder_names) == 2  # nobody knows it before, who could lay a link there


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
    save(NOTHING, path)
    write_whole(link, "text")
    assert path.is_char_device()
    assert link.is_symlink()
    assert set(tmp_path.iterdir()) == {link, path}


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
with temporary_folder(), replace_file(Path(sys.argv[1])) as new_file:
    new_file.write_text("a library puts another file in its place")
    new_file.unlink()
    new_file.write_text("half")
    print("writes", flush=True)
    time.sleep(60)
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_a_living_one(
    tmp_path, monkeypatch
):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    command = [sys.executable, "-c", WAITS, tmp_path / "run.json"]
    writers = []
    for _ in range(2):
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT / "lib")
        assert writer.stdout.readline() == b"writes\n"
        writers.append(writer)
    (tmp_path / "film.part").touch()  # another program's
    (tmp_path / f"old.json.{16 * '0'}.part").touch()  # an earlier version's
    for writer, living in zip(writers, (1, 0), strict=True):
        writer.kill()
        writer.communicate()
        write_whole(tmp_path / "page.html", "whole")
        assert len(list(tmp_path.glob("run.json.*.part"))) == living
        with temporary_folder():
            assert len(list(temporary.iterdir())) == living + 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film.part", "page.html", "tmp"]
    assert list(temporary.iterdir()) == []


def test_writers_in_one_folder_never_remove_what_another_one_writes(tmp_path):
    def write(path):
        for number in range(200):
            write_whole(path, str(number))

    paths = [tmp_path / f"{number}.txt" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, paths))
    assert sorted(tmp_path.iterdir()) == paths
    assert [path.read_text() for path in paths] == ["199"] * 4


def write_examples(points=(100.0, 0.0)):
    """Writes two rows, by default the first of them right."""
    predictions = ["1" if point else "0" for point in points]
    return examples.write(["a", "b"], {"accuracy": points}, predictions)


def make_record(reference):
    record = complete(examples=vars(reference), scores={"accuracy": 50.0}, bounds={})
    return altered(record, "data.rows", record.data.rows | {"test": 2})


def content_of_other_rows():
    """The content of a sound file with the same rows, both of them wrong."""
    return (examples.STORE / write_examples([0.0, 0.0]).file).read_bytes()


def test_damaged_points_are_told_never_copied_and_written_anew(tmp_path, store):
    reference = write_examples()
    record = make_record(reference)
    (store / reference.file).write_bytes(content_of_other_rows())
    with pytest.raises(InputError, match="was changed since it was written"):
        examples.read(record, None)
    save(NOTHING, tmp_path / "run.json", [record])
    assert not (tmp_path / "examples").exists()
    assert write_examples() == reference
    assert examples.read(record, None).to_dict("list") == {
        "id": ["a", "b"],
        "accuracy": [100, 0],
        "prediction": ["1", "0"],
    }


def test_a_pack_is_read_as_files_are_and_one_that_is_damaged_is_told(tmp_path, store):
    reference = write_examples()
    record = make_record(reference)
    run = tmp_path / "run.json"
    pack = tmp_path / "examples" / "run.zip"
    save(NOTHING, run, [record])
    content = pack.read_bytes()
    (store / reference.file).unlink()
    copied_run = tmp_path / "copy" / "run.json"
    copied_pack = tmp_path / "copy" / "examples" / "run.zip"
    save(NOTHING, copied_run, [record], [run])
    assert copied_pack.read_bytes() == content
    assert list(examples.read(record, copied_run)["id"]) == ["a", "b"]
    assert examples.read(record, tmp_path / "nowhere" / "run.json") is None
    pack.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"run\.zip is not a pack of examples .*BadZipFile"):
        examples.read(record, run)
    with ZipFile(copied_pack, "w") as changed:
        changed.writestr(reference.file, content_of_other_rows())
    with pytest.raises(InputError, match="was changed since it was written"):
        examples.read(record, copied_run)


def store_table(store, columns):
    """Stores columns as an examples file whose name fits its content; returns its record."""
    file = BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd")
    content = file.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:20]
    reference = replace(write_examples(), file=f"{digest}.parquet")
    (store / reference.file).write_bytes(content)
    return make_record(reference)


def test_an_id_that_is_not_utf_8_is_told(store):
    ids = pa.array([b"a", b"sa\xff"])
    columns = {
        "id": pa.Array.from_buffers(pa.string(), 2, ids.buffers()),  # its bytes are not checked
        "accuracy": [100.0, 0.0],
        "prediction": ["1", "0"],
    }
    record = store_table(store, columns)
    with pytest.raises(InputError, match=r"does not match its name \(.*UTF8"):
        examples.read(record, None)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_is_read(store):
    rows = pa.array([0] * 2**20, pa.int32())
    columns = {
        "id": pa.DictionaryArray.from_arrays(rows, ["b"]),
        "prediction": pa.DictionaryArray.from_arrays(rows, ["a" * 6100]),
        "accuracy": pa.array([1.0] * 2**20),
    }
    record = store_table(store, columns)
    assert (store / record.examples.file).stat().st_size < 20_000  # of 6.4 GB
    with pytest.raises(InputError, match="it is too large when unpacked"):
        examples.read(record, None)


def test_a_pack_that_is_too_large_is_refused_before_it_is_read(tmp_path, store, monkeypatch):
    reference = write_examples()
    (store / reference.file).unlink()
    monkeypatch.setattr(examples, "MOST_PACKED", 100)
    pack = tmp_path / "examples" / "run.zip"
    pack.parent.mkdir()
    with ZipFile(pack, "w") as zipped:
        zipped.writestr("x.parquet", bytes(101))
    with pytest.raises(InputError, match="too large when unpacked"):
        examples.read(make_record(reference), tmp_path / "run.json")


def test_a_run_holds_what_did_not_end_apart_and_is_read_as_one(tmp_path):
    path = tmp_path / "run.json"
    timed = {"name": "a", "stats": {}, "extra_info": complete_json()}
    untimed = {
        "name": "b",
        "extra_info": complete_json("bert_sa_sft", status="error", missed=["why"]),
    }
    save({"benchmarks": [untimed, timed], "version": "x"}, path)
    saved = json.loads(path.read_text())
    assert [row["name"] for row in saved["benchmarks"]] == ["a"]
    assert [row["name"] for row in saved["unfinished"]] == ["b"]
    assert load(path) == sealed({"benchmarks": [timed, untimed], "version": "x"})
