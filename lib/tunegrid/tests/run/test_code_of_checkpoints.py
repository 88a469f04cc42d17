"""Code that comes with a checkpoint or a data set is neither run nor asked about, whatever stands on standard input."""

import ast
import io
import json
import shutil
from dataclasses import replace

import pytest

from tunegrid import ROOT
from tunegrid.data.sources import tables
from tunegrid.errors import InputError
from tunegrid.grid.tasks import SA
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.serving import Serving
from tunegrid.tests.small import CPU, cell_of

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
    """bert-micro as a checkpoint whose tokenizer, config and model are classes of its own, in a file beside them."""
    folder = tmp_path / "backbones" / "bert-micro"
    shutil.copytree(cell_of("bert_sa_sft").profile.checkpoint_root / "bert-micro", folder)
    (folder / "own.py").write_text(CODE.format(folder=str(tmp_path)))
    changed(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    changed(folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=AUTO_MAP)
    return folder


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def cell(folder):
    """A cell of that checkpoint whose head is, as a user may write it, of whatever class the checkpoint names."""
    cell = cell_of("bert_sa_sft")
    head = replace(cell.head, architecture="AutoModelForSequenceClassification", new_modules=("classifier",))
    return replace(cell, head=head, profile=replace(cell.profile, checkpoint_root=folder.parent))


LOADS = {
    "tokenizer": lambda cell, folder: load_tokenizer(cell),
    "model": lambda cell, folder: build(cell, load_tokenizer(cell_of("bert_sa_sft")), CPU),
    "saved": lambda cell, folder: Serving().load(cell, folder, CPU),
}


@pytest.mark.parametrize("what", LOADS)
def test_code_in_a_checkpoint_is_refused_in_a_sentence_and_does_not_run(what, cell, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 99))  # as `yes |` does
    with pytest.raises((InputError, ValueError), match="contains custom code"):
        LOADS[what](cell, folder)
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in capsys.readouterr().out


def test_code_beside_the_rows_does_not_run(tmp_path):
    folder = tmp_path / SA.folder
    folder.mkdir()
    (folder / f"{SA.folder}.py").write_text(CODE.format(folder=str(tmp_path)))
    (folder / "train.jsonl").write_text(json.dumps(dict.fromkeys(SA.columns, "x")))
    assert len(tables(SA, tmp_path)["train"]) == 1
    assert not (tmp_path / "ran").exists()


def silent_on_code(path):
    """Calls that load something and neither refuse its code nor hand on who does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in LOADERS:
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if said.get("trust_remote_code") != "False" and None not in said:
                yield ast.unparse(node.func)


def test_whatever_is_loaded_is_loaded_without_its_code():
    product = [path for path in (ROOT / "lib").rglob("*.py") if "tests" not in path.relative_to(ROOT).parts]
    product += [path for folder in ("fixtures", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    # PEFT's own class reads weights and a config; it knows no code of a checkpoint.
    assert {call for path in product for call in silent_on_code(path)} == {"peft.PeftModel.from_pretrained"}
