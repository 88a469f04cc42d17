import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from tunegrid.audits import run_audits
from tunegrid.audits.before import checkpoint_loaded
from tunegrid.errors import InputError
from tunegrid.grid.backbones import BERT, checkpoint_source
from tunegrid.grid.cells import STUDY, study
from tunegrid.grid.recipes import QUICK_PROFILE, Profile
from tunegrid.run.build import build, load_tokenizer, model_record, weight_files
from tunegrid.run.serving import Serving
from tunegrid.tests.small import (
    CPU,
    cell_trainer,
    get_evidence,
    quick_cell,
    quick_model,
    read_rows,
    train_rows,
)

# Checkpoints that cannot be used


@pytest.fixture
def copied(tmp_path):
    """A cell's checkpoint in a folder of its own, and the cell that reads it there."""

    def copy(cell_id):
        cell = quick_cell(cell_id)
        folder = tmp_path / cell.backbone.micro
        shutil.copytree(QUICK_PROFILE.checkpoint_root / cell.backbone.micro, folder)
        return folder, replace(cell, profile=replace(cell.profile, checkpoint_root=tmp_path))

    return copy


def complaint(cell) -> str:
    """What the user reads: one sentence."""
    with pytest.raises(InputError) as caught:
        build(cell, load_tokenizer(cell), CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_code_that_bitsandbytes_took_from_the_hub_computes_no_4_bit_layer(monkeypatch):
    monkeypatch.setattr("tunegrid.run.build.hub_code", lambda: ["somebody/kernel at commit c"])
    assert "somebody/kernel at commit c, which the package kernels took from the hub" in complaint(
        quick_cell("bert_sa_qlora")
    )
    assert quick_model("bert_sa_sft")


def rewrite(folder, change):
    """The same checkpoint with other tensors."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in change(weights).items()},
        path,
        {"format": "pt"},
    )


def as_a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_a_shard(folder):
    in_two_files(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def half_as_wide(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 64}))


def without(lost):
    return lambda folder: rewrite(
        folder, lambda weights: {n: tensor for n, tensor in weights.items() if n != lost}
    )


def under_other_names(folder):
    rewrite(folder, lambda weights: {f"other.{name}": tensor for name, tensor in weights.items()})


def with_a_wider_tensor(folder):
    def widened(weights):
        name = next(
            name
            for name, tensor in weights.items()
            if tensor.ndim == 2 and "embed" not in name and "wte" not in name
        )
        return weights | {name: torch.zeros(3, 5)}

    rewrite(folder, widened)


QUERY = "encoder.layer.0.attention.self.query.weight"
CROSS = "decoder.block.1.layer.1.EncDecAttention.q.weight"


@pytest.mark.parametrize(
    ("cell_id", "spoil", "sentence"),
    [
        (
            "bert_sa_sft",
            shutil.rmtree,
            "no checkpoint folder 'bert-micro' below {root}; name it as the hub's model",
        ),
        (
            "bert_sa_sft",
            lambda folder: (folder / "tokenizer.json").unlink(),
            "{folder} has no tokenizer",
        ),
        (
            "gpt2_sa_sft",
            lambda folder: (folder / "config.json").unlink(),
            "{folder} has no config.json",
        ),
        ("t5_sa_sft", as_a_pickle, "only pytorch_model.bin, a pickle"),
        ("bert_sa_sft", without_a_shard, "cannot load {folder} ("),
        ("gpt2_sa_sft", half_as_wide, "transformer."),
        # what would start from random: an adapter's target and a cross-attention, too
        ("bert_sa_qlora", without(f"bert.{QUERY}"), QUERY),
        ("t5_sum_lora", without(CROSS), CROSS),
        ("t5_qa_lora", under_other_names, "would start from random"),
        ("gpt2_qa_lora", with_a_wider_tensor, "would start from random"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named_in_a_sentence(copied, cell_id, spoil, sentence):
    folder, cell = copied(cell_id)
    spoil(folder)
    assert sentence.format(folder=folder, root=folder.parent) in complaint(cell)


def in_two_files(folder):
    """The same weights in two files and an index, as save_pretrained writes large ones."""
    weights = load_file(folder / "model.safetensors")
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file(
            {name: tensor for name, tensor in weights.items() if files[name] == file},
            folder / file,
            {"format": "pt"},
        )
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )
    (folder / "model.safetensors").unlink()


def test_weights_in_several_files_are_all_loaded_and_all_fingerprinted(copied):
    folder, cell = copied("gpt2_sa_sft")
    whole = model_record(cell).fingerprint
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "gone.safetensors"}})
    )
    # Goes before an index, as in transformers
    assert [path.name for path in weight_files(cell)] == ["model.safetensors"]
    in_two_files(folder)
    # No part of the model
    save_file({"another": torch.zeros(1)}, folder / "adapter_model.safetensors")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert [path.name for path in weight_files(cell)] == names
    built = build(cell, load_tokenizer(cell), CPU)
    plain = quick_model("gpt2_sa_sft")
    assert all(torch.equal(p, built.get_parameter(name)) for name, p in plain.named_parameters())
    before = model_record(cell).fingerprint
    second = load_file(folder / names[1])
    save_file(
        {name: tensor + 1 for name, tensor in second.items()}, folder / names[1], {"format": "pt"}
    )
    assert len({whole, before, model_record(cell).fingerprint}) == 3


# Checkpoints in the variants in which people pretrain


def pretrained(folder, kind, *, micro):
    """A small checkpoint of this class below a folder, and a grid's profile that reads it."""
    source = QUICK_PROFILE.checkpoint_root / micro
    kind.from_pretrained(source).save_pretrained(folder / micro)
    hf.AutoTokenizer.from_pretrained(source).save_pretrained(folder / micro)
    return replace(QUICK_PROFILE, checkpoint_root=folder)


@pytest.mark.parametrize("method", ["lora", "qlora", "sft"])
def test_the_pooler_that_a_masked_language_model_lacks_is_new_and_trains(tmp_path, method):
    profile = pretrained(tmp_path, hf.BertForMaskedLM, micro="bert-micro")
    cell = STUDY.cell(f"bert_sa_{method}", profile)
    assert cell.head.renewed_modules == ["pooler.dense"]
    cell = replace(cell, recipe=replace(cell.recipe, max_steps=2, warmup_ratio=0.0))
    evidence = get_evidence(
        cell_trainer(cell, read_rows("amazon_polarity/train")[:32]), run=True, serving=Serving()
    )
    assert [finding for finding in run_audits(evidence) if not finding.passed] == []
    trained = {
        name for name, parameter in evidence.trainer.parameters.items() if parameter.requires_grad
    }
    assert any("pooler" in name for name in trained)
    [change] = [text for text in evidence.trainer.part().fallbacks if "pooler" in text]
    assert "initialized at random and trained" in change


def test_a_backbone_may_name_a_local_folder_as_its_checkpoint(tmp_path):
    pretrained(tmp_path, hf.BertForMaskedLM, micro="bert-micro")
    full = Profile(id="full", device="cpu")
    grid = study()
    grid.add_backbone(
        replace(BERT, id="mine", checkpoint=str(tmp_path / "bert-micro"), revision=None),
        like="bert",
    )
    cell = grid.cell("mine_sa_sft", full)
    assert cell.head.renewed_modules == ["pooler.dense"]
    assert cell.new_parts
    build(cell, load_tokenizer(cell), CPU)
    part = model_record(cell)
    assert part.checkpoint == "bert-micro"
    assert len(part.fingerprint) == 16


def test_a_checkpoint_of_another_kind_is_rejected_by_name(tmp_path):
    profile = pretrained(tmp_path, hf.GPT2Model, micro="gpt2-micro")
    (tmp_path / "gpt2-micro").rename(tmp_path / "bert-micro")
    with pytest.raises(
        InputError, match="bert-micro holds a model of type gpt2; this cell needs bert"
    ):
        checkpoint_source(BERT, profile)


def test_a_checkpoint_with_a_pooler_keeps_it(tmp_path):
    profile = pretrained(tmp_path, hf.BertModel, micro="bert-micro")
    for cell_id in ("bert_sa_lora", "bert_sa_sft"):
        assert STUDY.cell(cell_id, profile).head == STUDY.cell(cell_id, QUICK_PROFILE).head


@pytest.mark.parametrize(
    ("kind", "micro", "cell_ids"),
    [
        (hf.BertForMaskedLM, "bert-micro", ["bert_qa_lora", "bert_sum_lora"]),
        (hf.GPT2LMHeadModel, "gpt2-micro", ["gpt2_sa_lora", "gpt2_sum_lora"]),
        (hf.GPT2Model, "gpt2-micro", ["gpt2_sa_lora", "gpt2_sum_lora"]),
        (hf.T5ForConditionalGeneration, "t5-micro", ["t5_sa_lora", "t5_sum_lora"]),
        (hf.T5Model, "t5-micro", ["t5_sa_lora", "t5_sum_lora"]),
    ],
)
def test_what_was_pretrained_otherwise_is_loaded_bit_for_bit(tmp_path, kind, micro, cell_ids):
    profile = pretrained(tmp_path, kind, micro=micro)
    for cell_id in cell_ids:
        evidence = get_evidence(
            cell_trainer(STUDY.cell(cell_id, profile), train_rows(cell_id)[:16])
        )
        assert checkpoint_loaded(evidence)[0], cell_id


# Labels


def test_a_head_of_another_size_in_the_checkpoint_is_new_all_the_same(copied):
    folder, cell = copied("gpt2_sa_sft")
    rewrite(folder, lambda weights: weights | {"score.weight": torch.zeros(5, 128)})
    assert build(cell, load_tokenizer(cell), CPU).score.weight.shape == (2, 128)


# A base in bf16


@pytest.mark.parametrize(
    ("method", "frozen"), [("lora", {torch.bfloat16}), ("qlora", {torch.bfloat16, torch.uint8})]
)
def test_a_frozen_base_may_be_bf16_and_what_trains_is_fp32(method, frozen):
    changes = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "warmup_ratio": 0.0,
        "learning_rate": 1e-2,
    }
    cell = quick_cell("bert_sa_qlora", optim="adamw_torch", precision="bf16", **changes)
    cell = replace(
        cell, backbone=replace(cell.backbone, dtype="bfloat16"), method=STUDY.methods[method]
    )
    evidence = get_evidence(cell_trainer(cell, read_rows("amazon_polarity/train")[:16]), run=True)
    parameters = evidence.trainer.parameters.values()
    assert {p.dtype for p in parameters if not p.requires_grad} == frozen
    assert {p.dtype for p in parameters if p.requires_grad} == {torch.float32}
    assert [finding for finding in run_audits(evidence) if not finding.passed] == []
    assert len({round(loss, 4) for loss in evidence.trainer.log.losses}) == 3
