from dataclasses import replace

import pyarrow as pa
import pytest

from tunegrid.codecs import features as cache
from tunegrid.codecs.features import cache_key, get_features
from tunegrid.run.prepare import make_codec
from tunegrid.tests.small import get_tokenizer, quick_cell, train_rows

CELLS = ["bert_sa_lora", "bert_qa_sft", "gpt2_qa_lora", "gpt2_sum_sft", "t5_sum_lora"]


def disk_codec(folder, cell_id, task_changes=None, **changes):
    cell = quick_cell(cell_id, **changes)
    profile = replace(cell.profile, feature_cache=folder)
    task = replace(cell.task, **task_changes or {})
    return make_codec(replace(cell, profile=profile, task=task), get_tokenizer(cell_id))


def first_rows(cell_id):
    return train_rows(cell_id)[:20]


@pytest.mark.parametrize("cell_id", CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_features_from_the_cache_are_the_encoded_ones_and_nothing_is_tokenised_again(
    tmp_path, monkeypatch, cell_id, training
):
    codec = disk_codec(tmp_path, cell_id)
    rows = first_rows(cell_id)
    encoded = codec.encode(rows, training=training)
    fresh = get_features(codec, rows, training=training)
    monkeypatch.setattr(type(codec), "encode", lambda *_, **__: pytest.fail("tokenised again"))
    assert list(fresh) == list(get_features(codec, rows, training=training)) == encoded
    assert len(list(tmp_path.glob("*.arrow"))) == 1


def test_methods_of_a_triple_share_a_file_and_anything_else_does_not(tmp_path, monkeypatch):
    rows = first_rows("gpt2_sa_lora")

    def key(cell_id="gpt2_sa_lora", rows=rows, training=True, **changes):
        return cache_key(disk_codec(tmp_path, cell_id, **changes), rows, training=training)

    own_key = key()
    assert key("gpt2_sa_qlora") == own_key
    assert key("gpt2_sa_sft") == own_key
    keys = [
        own_key,
        key("t5_sa_lora"),
        key(training=False),
        key(max_length=63),
        key(text=("content",)),
        key(prefix="review: "),
        key(task_changes={"text_pair": ("title",)}),
        key(task_changes={"labels": ("bad", "fair", "good")}),
        key(rows=rows[1:]),
        key(rows=[rows[0] | {"content": "another"}, *rows[1:]]),
    ]
    monkeypatch.setattr(cache, "package_digest", lambda library: f"the code of another {library}")
    keys.append(key())
    assert len(set(keys)) == 11


def test_a_damaged_file_is_written_again(tmp_path):
    codec = disk_codec(tmp_path, "bert_sa_lora")
    rows = first_rows("bert_sa_lora")
    features = get_features(codec, rows, training=True)
    expected = list(features)
    [path] = tmp_path.glob("*.arrow")
    for damaged in (path.read_bytes()[:100], path.read_bytes()[:-10], b""):
        path.unlink()  # `features` maps it
        path.write_bytes(damaged)
        assert list(get_features(codec, rows, training=True)) == expected
    assert pa.ipc.open_stream(path).read_all().num_rows == 20
