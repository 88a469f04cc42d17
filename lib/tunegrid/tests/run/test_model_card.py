"""The card of a saved model, read back with huggingface_hub: what a push to the hub would
upload.
"""

import json
import shutil
import socket
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from peft import PeftConfig
from transformers import AutoConfig

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.run.serving import Serving, save_trained
from tunegrid.tests.records import complete
from tunegrid.tests.small import get_tokenizer, quick_cell, quick_model

SCORES = {"precision_1": 92.0, "f1_macro": 91.0, "accuracy": 91.04, "recall_0": None}


@pytest.fixture
def no_network(monkeypatch):
    """Nothing may be asked of a network."""
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: asked.append(words) or [])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield
    assert asked == []


def kept(cell_id, root, **changes):
    """The folder of an untrained model, saved with a made-up record, and its card."""
    record = complete(cell_id, **{"scores": SCORES, **changes})
    folder = save_trained(
        quick_cell(cell_id), quick_model(cell_id), get_tokenizer(cell_id), record, root, Serving()
    )
    return folder, ModelCard.load(folder / "README.md")


def without_places(folder):
    """Whether no file tells a folder of this machine."""
    return [path.name for path in folder.glob("*.*") if b"/fixtures/" in path.read_bytes()] == []


def test_the_card_of_an_adapter_has_its_scores_the_main_one_first_and_its_base(tmp_path):
    folder, card = kept("bert_sa_qlora", tmp_path)
    lines = card.text.splitlines()
    assert [line for line in lines if line.endswith((": 91.04", ": 91.0", ": 92.0"))] == [
        "- accuracy (points, 0 to 100): 91.04",
        "- f1_macro (points, 0 to 100): 91.0",
        "- precision, positive (points, 0 to 100): 92.0",
    ]
    data = card.data
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == "peft"
    assert data.base_model is None
    assert data.tags == ["tunegrid"]
    assert data.datasets is None
    config = PeftConfig.from_pretrained(folder)
    assert config.base_model_name_or_path == "bert-micro"
    assert config.target_modules == {"query", "value"}
    assert without_places(folder)


def test_a_model_of_a_local_checkpoint_names_no_base_of_the_hub(tmp_path):
    profile = replace(QUICK_PROFILE, checkpoint_root=tmp_path)
    shutil.copytree(QUICK_PROFILE.checkpoint_root / "bert-micro", tmp_path / "bert-micro")
    change = "the checkpoint has no pooler.dense: it is new"
    base = "local checkpoint `bert-micro` (weights ffffffffffffffff)"
    own_base = f"{base}, saved in `base/`"
    for cell_id, text, name in (
        ("bert_sa_qlora", base, base),
        ("bert_sa_lora", own_base, "./base"),  # the head's own frozen layers are in no checkpoint
    ):
        record = complete(cell_id)
        training = replace(record.training, fallbacks=[change])
        folder = save_trained(
            STUDY.cell(cell_id, profile),
            quick_model(cell_id),
            get_tokenizer(cell_id),
            replace(record, training=training),
            tmp_path,
            Serving(),
        )
        card = ModelCard.load(folder / "README.md")
        assert card.data.base_model is None
        assert f"[optional]:** {text}\n" in card.text
        assert f"- {change}." in card.text
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == name


def test_a_saved_classifier_names_its_classes_without_the_network(no_network, tmp_path):
    folder, card = kept("bert_sa_sft", tmp_path)
    assert card.data.library_name == "transformers"
    assert json.loads((folder / "record.json").read_text())["cell"] == "bert_sa_sft"
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "negative", 1: "positive"}
    assert config.label2id == {"negative": 0, "positive": 1}
    assert without_places(folder)
