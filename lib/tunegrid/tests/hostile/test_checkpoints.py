"""Checkpoint folders that anybody may have written are used, or refused in one sentence; no code of theirs runs."""

import json
import shutil
from dataclasses import replace

from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.run.build import build, load_tokenizer, model_record
from tunegrid.run.prepare import codec_of
from tunegrid.tests.small import CPU, cell_of, train_rows
from tunegrid.tests.strangers import attacked, changed, spoil

CELLS = ("bert_sa_lora", "gpt2_sum_sft", "t5_qa_sft", "bert_sum_sft", "gpt2_sa_qlora")


def other_checkpoint(folder, random):
    """The same folder with a file that is damaged, says something else, is gone, or is a folder."""
    path = random.choice(sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt")))
    how = random.choice(["damaged", "changed", "changed", "changed", "gone", "folder"])
    if how == "changed" and path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text()), random, random.choice([1, 1, 5]))))
    else:
        spoil(path, how, random)


def test_checkpoint_folders(tmp_path):
    def answer(random):
        cell = cell_of(random.choice(CELLS))
        root = tmp_path / str(random.random())  # a new one: what was read of a file is kept by its name
        folder = root / cell.backbone.micro
        shutil.copytree(QUICK_PROFILE.checkpoint_root / cell.backbone.micro, folder)
        other_checkpoint(folder, random)
        cell = replace(cell, profile=replace(cell.profile, checkpoint_root=root))
        assert model_record(cell).fingerprint
        tokenizer = load_tokenizer(cell)
        assert build(cell, tokenizer, CPU)
        assert codec_of(cell, tokenizer).encode(train_rows(cell.id)[:8], training=True)
        shutil.rmtree(root)

    attacked(answer, 6)
