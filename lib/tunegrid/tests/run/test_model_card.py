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


def save(cell, record, root):
    """The folder of an untrained model, saved with a made-up record, and its card."""
    model = quick_model(cell.id)
    folder = save_trained(cell, model, get_tokenizer(cell.id), record, root, Serving())
    return folder, ModelCard.load(folder / "README.md")


def files_with_places(folder):
    """The files that name a folder of this machine."""
    return [path.name for path in folder.glob("*.*") if b"/fixtures/" in path.read_bytes()]


def test_the_card_of_an_adapter_has_its_scores_the_main_one_first_and_its_base(tmp_path):
    scores = {"precision_1": 92.0, "f1_macro": 91.0, "accuracy": 91.04, "recall_0": None}
    record = complete("bert_sa_qlora", scores=scores)
    folder, card = save(quick_cell("bert_sa_qlora"), record, tmp_path)
    lines = card.text.splitlines()
    assert [line for line in lines if "(points, 0 to 100): 9" in line] == [
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
    assert files_with_places(folder) == []


BASE = "local checkpoint `bert-micro` (weights ffffffffffffffff)"


@pytest.mark.parametrize(
    ("cell_id", "text", "name"),
    [
        ("bert_sa_qlora", BASE, BASE),
        # The head's own frozen layers are in no checkpoint.
        ("bert_sa_lora", f"{BASE}, saved in `base/`", None),
    ],
)
def test_a_model_of_a_local_checkpoint_names_no_base_of_the_hub(
    monkeypatch, tmp_path, cell_id, text, name
):
    profile = replace(QUICK_PROFILE, checkpoint_root=tmp_path)
    shutil.copytree(QUICK_PROFILE.checkpoint_root / "bert-micro", tmp_path / "bert-micro")
    change = "the checkpoint has no pooler.dense: it is new"
    record = complete(cell_id)
    record = replace(record, training=replace(record.training, fallbacks=[change]))
    folder, card = save(STUDY.cell(cell_id, profile), record, tmp_path)
    assert card.data.base_model is None
    assert f"[optional]:** {text}\n" in card.text
    assert f"- {change}." in card.text
    config = json.loads((folder / "adapter_config.json").read_text())
    if name is None:
        name = str(folder / "base")
        monkeypatch.chdir(tmp_path)  # the path does not depend on the current folder
        assert AutoConfig.from_pretrained(config["base_model_name_or_path"]).model_type == "bert"
        assert "correct it if you move this folder" in card.text
    assert config["base_model_name_or_path"] == name


def test_a_saved_classifier_names_its_classes_without_the_network(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: asked.append(words) or [])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder, card = save(quick_cell("bert_sa_sft"), complete("bert_sa_sft"), tmp_path)
    assert card.data.library_name == "transformers"
    assert json.loads((folder / "record.json").read_text())["cell"] == "bert_sa_sft"
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "negative", 1: "positive"}
    assert config.label2id == {"negative": 0, "positive": 1}
    assert files_with_places(folder) == []
    assert asked == []
