import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lib.codecs import codec_of
from lib.codecs.cache import cache_key, features_of
from lib.errors import InputError
from lib.tests.small import cell_of, rows_of, tokenizer_of

ROOT = Path(__file__).parents[2]
FOLDERS = {"sa": "amazon_polarity", "qa": "squad", "sum": "cnn_dailymail"}
CELLS = ["bert_sa_lora", "bert_qa_sft", "gpt2_qa_lora", "gpt2_sum_sft", "t5_sum_lora"]


def codec_with(folder, cell_id, task=None, **changes):
    cell = cell_of(cell_id, **changes)
    cell = replace(cell, profile=replace(cell.profile, feature_cache=folder), task=replace(cell.task, **task or {}))
    return codec_of(cell, tokenizer_of(cell_id))


def rows_for(cell_id):
    return rows_of(f"{FOLDERS[cell_id.split('_')[1]]}/train")[:20]


@pytest.mark.parametrize("cell_id", CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_features_from_the_cache_are_the_encoded_ones(tmp_path, cell_id, training):
    codec, rows = codec_with(tmp_path, cell_id), rows_for(cell_id)
    fresh, again = (features_of(codec, rows, training=training) for _ in range(2))
    assert fresh == again == codec.encode(rows, training=training)
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_the_second_time_nothing_is_tokenised(tmp_path, monkeypatch):
    codec, rows = codec_with(tmp_path, "bert_sa_lora"), rows_for("bert_sa_lora")
    features_of(codec, rows, training=True)
    monkeypatch.setattr(type(codec), "ids", lambda *_: pytest.fail("tokenised again"))
    assert len(features_of(codec, rows, training=True)) == 20


def test_without_a_folder_nothing_is_written(tmp_path):
    codec = codec_with(None, "bert_sa_lora")
    assert len(features_of(codec, rows_for("bert_sa_lora"), training=True)) == 20
    assert list(tmp_path.iterdir()) == []


def test_methods_of_a_triple_share_a_file_and_anything_else_does_not(tmp_path):
    rows = rows_for("gpt2_sa_lora")

    def key(cell_id, rows=rows, training=True, **changes):
        return cache_key(codec_with(tmp_path, cell_id, **changes), rows, training=training)

    assert key("gpt2_sa_lora") == key("gpt2_sa_qlora") == key("gpt2_sa_sft")
    others = [
        key("t5_sa_lora"),
        key("gpt2_sa_lora", training=False),
        key("gpt2_sa_lora", max_length=63),
        key("gpt2_sa_lora", text=("content",)),
        key("gpt2_sa_lora", prefix="review: "),
        key("gpt2_sa_lora", task={"text_pair": ("title",)}),
        key("gpt2_sa_lora", task={"labels": ("bad", "fair", "good")}),
        key("gpt2_sa_lora", rows=rows[1:]),
        key("gpt2_sa_lora", rows=[rows[0] | {"content": "another"}, *rows[1:]]),
    ]
    assert len({key("gpt2_sa_lora"), *others}) == 10


def test_a_damaged_file_is_written_again(tmp_path):
    codec, rows = codec_with(tmp_path, "bert_sa_lora"), rows_for("bert_sa_lora")
    features = features_of(codec, rows, training=True)
    [path] = tmp_path.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    assert features_of(codec, rows, training=True) == features
    assert pq.read_table(path).num_rows == 20


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from lib.codecs.cache import features_of
from lib.errors import InputError
from lib.tests.test_cache import codec_with, rows_for

codec, rows = codec_with(Path(sys.argv[1]), "bert_sa_lora"), rows_for("bert_sa_lora")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # a write past it fails as on a full disk
try:
    features_of(codec, rows, training=True)
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, tmp_path]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"cannot keep tokenised rows in {tmp_path} (" in answer.stdout
    assert "make room there: what it holds can be deleted" in answer.stdout
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    codec = codec_with(tmp_path / "file" / "folder", "bert_sa_lora")
    with pytest.raises(InputError, match="cannot keep tokenised rows in"):
        features_of(codec, rows_for("bert_sa_lora"), training=True)


def test_two_processes_at_once_get_the_same_features(tmp_path):
    code = (
        "import hashlib, sys; from pathlib import Path; from lib.tests.test_cache import codec_with, features_of, rows_for\n"
        "codec = codec_with(Path(sys.argv[1]), 'bert_qa_sft')\n"
        "features = features_of(codec, rows_for('bert_qa_sft'), training=True)\n"
        "print(hashlib.sha256(repr(features).encode()).hexdigest())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, tmp_path]
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in both}
    assert len(answers) == 1
    assert {process.returncode for process in both} == {0}
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_a_stored_row_is_plain(tmp_path):
    features_of(codec_with(tmp_path, "bert_qa_sft"), rows_for("bert_qa_sft"), training=True)
    [path] = tmp_path.glob("*.parquet")
    assert json.dumps(pq.read_table(path).to_pylist())
