"""The card of a saved model, read back with huggingface_hub: what a push to the hub would upload."""

import json
import socket

import pytest
from huggingface_hub import ModelCard
from peft import PeftConfig
from transformers import AutoConfig

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.run.serving import Serving, card_of, save
from tunegrid.tests.records import complete
from tunegrid.tests.small import cell_of, model_of, tokenizer_of

SCORES = {"precision_1": 92.0, "f1_macro": 91.0, "accuracy": 91.04, "recall_0": None}


@pytest.fixture
def no_network(monkeypatch):
    """Nothing may be asked of a network; yields what tried to."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("a test forbids it")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield asked
    assert asked == []


def kept(cell_id, root, **changes):
    """The folder of an untrained model, saved with a made-up record, and its card."""
    record = complete(cell_id, **{"scores": SCORES, **changes})
    folder = save(cell_of(cell_id), model_of(cell_id), tokenizer_of(cell_id), record, root, Serving())
    return folder, ModelCard.load(folder / "README.md")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return kept("bert_sa_qlora", tmp_path_factory.mktemp("models"))


def test_scores_stand_in_the_card_the_main_score_first(adapter):
    lines = [line for line in adapter[1].text.splitlines() if line.endswith((": 91.04", ": 91.0", ": 92.0"))]
    assert lines == [
        "- accuracy (points, 0 to 100): 91.04",
        "- f1_macro (points, 0 to 100): 91.0",
        "- precision, positive (points, 0 to 100): 92.0",
    ]
    assert adapter[1].data.pipeline_tag == "text-classification"


def test_no_file_of_an_adapter_tells_a_folder_of_this_machine(adapter):
    folder, card = adapter
    assert (card.data.library_name, card.data.base_model, card.data.tags) == ("peft", None, ["tunegrid"])
    assert "- **Finetuned from model [optional]:** bert-micro" in card.text.splitlines()
    config = PeftConfig.from_pretrained(folder)
    assert (config.base_model_name_or_path, config.target_modules) == ("bert-micro", {"query", "value"})
    assert "A micro model, for tests alone" in card.text
    assert "Synthetic data: tunegrid made up every row" in card.text
    assert card.data.datasets is None
    assert [path.name for path in folder.glob("*.*") if b"/fixtures/" in path.read_bytes()] == []


def test_a_saved_classifier_names_its_classes_without_the_network(no_network, tmp_path):
    folder, card = kept("bert_sa_sft", tmp_path)
    assert card.data.library_name == "transformers"
    assert json.loads((folder / "record.json").read_text())["cell"] == "bert_sa_sft"
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "negative", 1: "positive"}
    assert config.label2id == {"negative": 0, "positive": 1}
    assert [path.name for path in folder.glob("*.*") if b"/fixtures/" in path.read_bytes()] == []


def test_a_cell_of_the_hub_names_data_and_backbone(no_network):
    cell = STUDY.cell("gpt2_qa_lora", FULL_PROFILE)
    data = card_of(cell, complete("gpt2_qa_lora", profile="full")).data
    assert (data.base_model, data.datasets) == ("openai-community/gpt2", ["rajpurkar/squad"])
    assert data.pipeline_tag == "question-answering"


def test_a_run_that_did_not_pass_is_a_limitation():
    text = card_of(cell_of("bert_sa_lora"), complete(status="missed", missed=["accuracy 60.0 is below 88.0"])).text
    assert "- Its run did not pass (missed). accuracy 60.0 is below 88.0" in text.splitlines()
