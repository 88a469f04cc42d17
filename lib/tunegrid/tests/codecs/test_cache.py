import resource
from dataclasses import replace

import pyarrow as pa
import pytest

from tunegrid.codecs import features as cache
from tunegrid.codecs.features import cache_key, features_of
from tunegrid.run.prepare import codec_of
from tunegrid.tests.processes import apart
from tunegrid.tests.small import cell_of, tokenizer_of, train_rows

CELLS = ["bert_sa_lora", "bert_qa_sft", "gpt2_qa_lora", "gpt2_sum_sft", "t5_sum_lora"]


def codec_with(folder, cell_id, task=None, **changes):
    cell = cell_of(cell_id, **changes)
    cell = replace(cell, profile=replace(cell.profile, feature_cache=folder), task=replace(cell.task, **task or {}))
    return codec_of(cell, tokenizer_of(cell_id))


def rows_for(cell_id):
    return train_rows(cell_id)[:20]


@pytest.mark.parametrize("cell_id", CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_features_from_the_cache_are_the_encoded_ones_and_nothing_is_tokenised_again(tmp_path, monkeypatch, cell_id, training):
    codec, rows = codec_with(tmp_path, cell_id), rows_for(cell_id)
    encoded, fresh = codec.encode(rows, training=training), features_of(codec, rows, training=training)
    monkeypatch.setattr(type(codec), "encode", lambda *_, **__: pytest.fail("tokenised again"))
    assert list(fresh) == list(features_of(codec, rows, training=training)) == encoded
    assert len(list(tmp_path.glob("*.arrow"))) == 1


def test_methods_of_a_triple_share_features_in_memory():
    rows, lora, sft = rows_for("bert_sa_lora"), *(codec_with(None, cell) for cell in ("bert_sa_lora", "bert_sa_sft"))
    features = features_of(lora, rows, training=True)
    assert features_of(sft, rows, training=True) is features
    assert features_of(sft, rows, training=False) is not features
    assert features_of(sft, rows[1:], training=True) is not features


def test_methods_of_a_triple_share_a_file_and_anything_else_does_not(tmp_path, monkeypatch):
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
    own = key("gpt2_sa_lora")
    monkeypatch.setattr(cache, "digest_of", lambda library: f"the code of another {library}")
    assert len({own, *others, key("gpt2_sa_lora")}) == 11


def test_a_damaged_file_is_written_again(tmp_path):
    codec, rows = codec_with(tmp_path, "bert_sa_lora"), rows_for("bert_sa_lora")
    features = features_of(codec, rows, training=True)
    wanted = list(features)
    [path] = tmp_path.glob("*.arrow")
    for damaged in (path.read_bytes()[:100], path.read_bytes()[:-10], b""):
        path.unlink()  # `features` maps it
        path.write_bytes(damaged)
        assert list(features_of(codec, rows, training=True)) == wanted
    assert pa.ipc.open_stream(path).read_all().num_rows == 20


def test_a_full_disk_or_no_folder_costs_the_cache_alone(tmp_path):
    [features] = apart(features_on_a_full_disk, tmp_path)
    assert features == kept_features(tmp_path / "other")
    assert not list(tmp_path.glob("*.arrow"))
    (tmp_path / "file").write_text("")
    assert kept_features(tmp_path / "file" / "folder") == features  # it cannot be made


def features_on_a_full_disk(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # a write past it fails as on a full disk
    return kept_features(folder)


def kept_features(folder):
    return list(features_of(codec_with(folder, "bert_qa_sft"), rows_for("bert_qa_sft"), training=True))
