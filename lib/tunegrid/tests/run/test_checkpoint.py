"""A training run that was cut off continues to the same weights, bit for bit; code in a stranger's
checkpoint does not run.
"""

import ast
import io
import json
import shutil
from dataclasses import replace
from itertools import chain

import pytest
import torch

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.serving import Serving
from tunegrid.tests.small import CPU, fine_tuner, quick_cell, silent, train_rows

UPDATES = 12


class Cut(Exception):
    """Training ends here."""


def cut_trainer(cell_id, path, resume, cut_at=None, epochs=1, every_seconds=0.0):
    rows = train_rows(cell_id)[:24]
    settings = {"max_steps": UPDATES, "num_train_epochs": epochs, "per_device_train_batch_size": 4}
    checkpoints = Checkpoints(path=path, every_seconds=every_seconds, resume=resume)
    trainer = fine_tuner(cell_id, rows, after_update=checkpoints.save_if_due, **settings)
    checkpoints.restore(trainer)
    if cut_at is not None:
        update = trainer.update

        def cut(group):
            if trainer.log.updates == cut_at:
                raise Cut
            return update(group)

        trainer.update = cut
    return trainer


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.parameters.items() if p.requires_grad}


# bert_qa_qlora has bitsandbytes' 8-bit moments; gpt2 accumulates two micro-batches; dropout is on
# in all of them.
@pytest.mark.parametrize("cell_id", ["bert_qa_qlora", "gpt2_sum_lora"])
def test_a_run_that_was_cut_ends_with_the_weights_of_one_that_was_not(cell_id, tmp_path):
    cut_at = 6
    whole = cut_trainer(cell_id, tmp_path / "whole.safetensors", resume=False)
    training = whole.run(silent())
    path = tmp_path / "cut.safetensors"
    with pytest.raises(Cut):
        cut_trainer(cell_id, path, resume=False, cut_at=cut_at).run(silent())
    resumed = cut_trainer(cell_id, path, resume=True)
    again = resumed.run(silent())
    assert again.losses == training.losses
    assert resumed.log.learning_rates == whole.log.learning_rates
    assert again.updates == training.updates
    assert again.order == training.order
    assert all(torch.equal(p, weights(whole)[name]) for name, p in weights(resumed).items())
    assert again.fallbacks == [
        f"resumed at update {cut_at} of {UPDATES}; seconds and throughput cover only the rest"
    ]
    Checkpoints(path=path, every_seconds=0.0).clear()
    assert not path.exists()


class State:
    """An object with a state to save and restore."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_a_file_that_was_cut_off_is_set_aside_in_a_sentence_and_training_starts_anew(tmp_path):
    path = tmp_path / "cut.safetensors"
    with pytest.raises(Cut):
        cut_trainer("bert_sa_sft", path, resume=False, cut_at=4).run(silent())
    whole = path.read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        target = State()
        checkpoints = Checkpoints(path=path, every_seconds=0.0, resume=True)
        checkpoints.restore(target)
        assert target.state is None
        [sentence] = checkpoints.remarks
        assert sentence.startswith("started over: the checkpoint cannot be read (")
        assert sentence.endswith("; renamed to cut.safetensors.broken")
        assert path.with_name("cut.safetensors.broken").read_bytes() == whole[:length]
        assert not path.exists()


# Code that comes with a checkpoint or a data set is neither run nor asked about, whatever stands on
# standard input.

LOADERS = ("from_pretrained", "load_dataset", "load_dataset_builder")
CODE = """
from pathlib import Path
import transformers as hf
(Path({folder!r}) / "ran").touch()

class Own(hf.BertTokenizerFast): ...
class OwnConfig(hf.BertConfig):
    model_type = "own"
class OwnModel(hf.BertForSequenceClassification):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}


@pytest.fixture
def folder(tmp_path):
    """bert-micro as a checkpoint whose tokenizer, config and model are classes of its own, in a
    file beside them.
    """
    folder = tmp_path / "backbones" / "bert-micro"
    shutil.copytree(quick_cell("bert_sa_sft").profile.checkpoint_root / "bert-micro", folder)
    (folder / "own.py").write_text(CODE.format(folder=str(tmp_path)))
    changed(
        folder / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["own.Own", "own.Own"]},
    )
    changed(folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=AUTO_MAP)
    return folder


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def cell(folder):
    """A cell of that checkpoint whose head is, as a user may write it, of whatever class the
    checkpoint names.
    """
    cell = quick_cell("bert_sa_sft")
    head = replace(
        cell.head, architecture="AutoModelForSequenceClassification", new_modules=("classifier",)
    )
    # A checkpoint of another type would be refused before any code of it could run
    backbone = replace(cell.backbone, shape={**cell.backbone.shape, "model_type": "own"})
    profile = replace(cell.profile, checkpoint_root=folder.parent)
    return replace(cell, head=head, backbone=backbone, profile=profile)


LOADS = {
    "tokenizer": lambda cell, folder: load_tokenizer(cell),
    "model": lambda cell, folder: build(cell, load_tokenizer(quick_cell("bert_sa_sft")), CPU),
    "saved": lambda cell, folder: Serving().load(cell, folder, CPU),
}


@pytest.mark.parametrize("what", LOADS)
def test_code_in_a_checkpoint_is_refused_in_a_sentence_and_does_not_run(
    what, cell, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 99))  # as `yes |` does
    with pytest.raises((InputError, ValueError), match="contains custom code"):
        LOADS[what](cell, folder)
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in capsys.readouterr().out


def silent_on_code(path):
    """Calls that load something and neither refuse its code nor hand on who does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in LOADERS:
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                said.get("trust_remote_code") != "False"
                and None not in said
                and "GenerationConfig" not in ast.unparse(node.func)
            ):
                yield ast.unparse(node.func)


def test_whatever_is_loaded_is_loaded_without_its_code():
    product = [
        path for path in (ROOT / "lib").rglob("*.py") if "tests" not in path.relative_to(ROOT).parts
    ]
    product += (ROOT / "fixtures").rglob("*.py")
    product += (ROOT / "benchmarks").rglob("*.py")
    # PEFT's own classes read weights and a config; they know no code of a checkpoint.
    known = {"peft.PeftModel.from_pretrained", "peft.PeftConfig.from_pretrained"}
    assert set(chain(*map(silent_on_code, product))) == known
