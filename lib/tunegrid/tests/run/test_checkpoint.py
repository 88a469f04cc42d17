"""A training run that was cut off continues to the same weights, bit for bit; code in a stranger's
checkpoint does not run.
"""

import ast
import io
import shutil
from dataclasses import replace

import pytest

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.run.build import build, checksums, load_tokenizer
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.serving import Serving
from tunegrid.tests.small import CPU, change_json, fine_tuner, quick_cell, silent, train_rows


class Cut(Exception):
    """Training ends here."""


def make_trainer(cell_id, path, resume=False, cut_at=None):
    """A trainer of 12 updates that saves each of them, and may be cut after one."""
    checkpoints = Checkpoints(path=path, every_seconds=0.0, resume=resume)

    def save_and_cut(trainer):
        checkpoints.save_if_due(trainer)
        if trainer.log.updates == cut_at:
            raise Cut

    trainer = fine_tuner(
        cell_id,
        train_rows(cell_id)[:24],
        after_update=save_and_cut,
        max_steps=12,
        num_train_epochs=1,
        per_device_train_batch_size=4,
    )
    checkpoints.restore(trainer)
    return trainer


# bert_qa_qlora has bitsandbytes' 8-bit moments; gpt2 accumulates two micro-batches; dropout is on
# in all of them.
@pytest.mark.parametrize("cell_id", ["bert_qa_qlora", "gpt2_sum_lora"])
def test_a_run_that_was_cut_ends_with_the_weights_of_one_that_was_not(cell_id, tmp_path):
    whole = make_trainer(cell_id, tmp_path / "whole.safetensors")
    whole_training = whole.run(silent())
    path = tmp_path / "cut.safetensors"
    with pytest.raises(Cut):
        make_trainer(cell_id, path, cut_at=6).run(silent())
    resumed = make_trainer(cell_id, path, resume=True)
    training = resumed.run(silent())
    assert training.losses == whole_training.losses
    assert resumed.log.learning_rates == whole.log.learning_rates
    assert training.updates == whole_training.updates
    assert training.order == whole_training.order
    assert checksums(resumed.parameters.items()) == checksums(whole.parameters.items())
    assert training.fallbacks == [
        "resumed at update 6 of 12; seconds and throughput cover only the rest"
    ]
    Checkpoints(path=path).clear()
    assert not path.exists()


def test_a_file_that_was_cut_off_is_set_aside_in_a_sentence_and_training_starts_anew(tmp_path):
    path = tmp_path / "cut.safetensors"
    with pytest.raises(Cut):
        make_trainer("bert_sa_sft", path, cut_at=4).run(silent())
    whole = path.read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        checkpoints = Checkpoints(path=path, resume=True)
        checkpoints.restore(None)  # into which no state could be loaded
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
def cell(tmp_path):
    """A cell of bert-micro as a checkpoint whose tokenizer, config and model are classes of its
    own, in a file beside them; its head is, as a user may write it, of whatever class the
    checkpoint names.
    """
    cell = quick_cell("bert_sa_sft")
    folder = tmp_path / "bert-micro"
    shutil.copytree(cell.profile.checkpoint_root / "bert-micro", folder)
    (folder / "own.py").write_text(CODE.format(folder=str(tmp_path)))
    change_json(
        folder / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["own.Own", "own.Own"]},
    )
    change_json(
        folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=AUTO_MAP
    )
    head = replace(
        cell.head, architecture="AutoModelForSequenceClassification", new_modules=("classifier",)
    )
    # A checkpoint of another type would be rejected before any code of it could run.
    backbone = replace(cell.backbone, shape={**cell.backbone.shape, "model_type": "own"})
    profile = replace(cell.profile, checkpoint_root=tmp_path)
    return replace(cell, head=head, backbone=backbone, profile=profile)


@pytest.mark.parametrize(
    "load",
    [
        load_tokenizer,
        lambda cell: build(cell, load_tokenizer(quick_cell("bert_sa_sft")), CPU),
        lambda cell: Serving().load(cell, cell.profile.checkpoint_root / "bert-micro", CPU),
    ],
    ids=["tokenizer", "model", "saved model"],
)
def test_code_in_a_checkpoint_is_rejected_in_a_sentence_and_does_not_run(
    load, cell, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 99))  # as `yes |` does
    with pytest.raises((InputError, ValueError), match="contains custom code"):
        load(cell)
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in capsys.readouterr().out


def unsafe_loads(path):
    """Calls that load something and neither reject its code nor pass on options that may."""
    functions = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") not in LOADERS:
            continue
        function = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        is_safe = options.get("trust_remote_code") == "False" or None in options
        if not is_safe and "GenerationConfig" not in function:
            functions.add(function)
    return functions


def test_whatever_is_loaded_is_loaded_without_its_code():
    functions = set()
    for folder in ("lib", "fixtures", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if "tests" not in path.relative_to(ROOT).parts:
                functions |= unsafe_loads(path)
    # PEFT's own classes read weights and a config; they know no code of a checkpoint.
    assert functions == {"peft.PeftModel.from_pretrained", "peft.PeftConfig.from_pretrained"}
