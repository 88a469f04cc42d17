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
from tunegrid.grid.backbones import BERT
from tunegrid.grid.cells import STUDY, study
from tunegrid.grid.recipes import QUICK_PROFILE, Profile
from tunegrid.libraries import LoadedKernel
from tunegrid.run.build import build, load_tokenizer, model_record, weight_files
from tunegrid.run.serving import Serving
from tunegrid.tests.small import (
    CPU,
    cell_trainer,
    change_json,
    get_evidence,
    quick_cell,
    quick_model,
    train_rows,
)

WEIGHTS = "model.safetensors"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"

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
    """The one sentence that the user reads."""
    with pytest.raises(InputError) as caught:
        build(cell, load_tokenizer(cell), CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_code_from_the_hub_computes_only_where_the_user_says_so(monkeypatch):
    kernel = LoadedKernel(commit="c" * 40, digest="d" * 16)
    monkeypatch.setattr("tunegrid.run.build.loaded_kernels", lambda: {"acme/fast": kernel})
    sentence = "a library loaded compiled code from the hub, acme/fast, whatever is there now"
    assert sentence in complaint(quick_cell("bert_sa_sft"))
    monkeypatch.setenv("USE_HUB_KERNELS", "yes")
    assert quick_model("bert_sa_sft")


def test_a_folder_that_the_user_named_needs_no_other_word(monkeypatch):
    kernel = LoadedKernel(commit=None, digest="d" * 16)
    monkeypatch.setattr("tunegrid.run.build.loaded_kernels", lambda: {"fast": kernel})
    assert quick_model("bert_sa_sft")


def save_pair(folder, **halves):
    """Saves a pair of encoder and decoder, each of a micro backbone, with BERT's tokenizer."""
    sources = [str(QUICK_PROFILE.checkpoint_root / halves[half]) for half in ("encoder", "decoder")]
    pair = hf.EncoderDecoderModel.from_encoder_decoder_pretrained(*sources)
    shutil.rmtree(folder)
    pair.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(sources[0]).save_pretrained(folder)
    return pair


@pytest.mark.parametrize("cell_id", ["bert_sum_sft", "bert_sum_lora"])
def test_a_users_own_pair_of_encoder_and_decoder_is_loaded_as_it_is(copied, cell_id):
    folder, cell = copied(cell_id)
    pair = save_pair(folder, encoder="bert-micro", decoder="bert-micro")
    # New since the pair was made, and in no checkpoint of one BERT
    name = "decoder.bert.encoder.layer.0.crossattention.self.query.weight"
    model = build(cell, load_tokenizer(cell), CPU)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = {key.replace(".base_layer", ""): value for key, value in model.state_dict().items()}
    assert torch.equal(weights[name], pair.state_dict()[name])


def test_a_pair_with_another_half_is_refused_before_training(copied):
    folder, cell = copied("bert_sum_sft")
    save_pair(folder, encoder="bert-micro", decoder="gpt2-micro")
    assert "bert-micro holds a model of type gpt2; this cell needs bert" in complaint(cell)


def test_a_shape_that_contradicts_its_checkpoint_is_refused_before_training(copied):
    _, cell = copied("bert_sa_lora")
    layers = {"model_type": "bert", "num_hidden_layers": 12}  # the micro BERT has 3
    folder = cell.profile.checkpoint_root / "bert-micro"
    backbone = replace(BERT, id="deep", checkpoint=str(folder), micro="", shape=layers)
    profile = replace(cell.profile, checkpoint_root=None)
    own = replace(cell, backbone=backbone, profile=profile)
    sentence = "has num_hidden_layers 3, the shape of deep 12; give the checkpoint's own"
    assert sentence in complaint(own)
    right = {"model_type": "bert", "num_hidden_layers": 3}
    fitting = replace(own, backbone=replace(backbone, shape=right))
    assert build(fitting, load_tokenizer(fitting), CPU)


def change_weights(path, change):
    """Applies a function to the tensors, by name, of a file."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def as_a_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def in_two_files(folder):
    """The same weights in two files and an index, as save_pretrained writes large ones."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [*weights]
    file_of = {}
    for file, its_names in zip(SHARDS, (names[::2], names[1::2]), strict=True):
        save_file({name: weights[name] for name in its_names}, folder / file, {"format": "pt"})
        file_of |= dict.fromkeys(its_names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def without_a_shard(folder):
    in_two_files(folder)
    (folder / SHARDS[1]).unlink()


def without(lost):
    return lambda folder: change_weights(folder / WEIGHTS, lambda weights: weights.pop(lost))


def under_other_names(folder):
    def rename(weights):
        for name in [*weights]:
            weights[f"other.{name}"] = weights.pop(name)

    change_weights(folder / WEIGHTS, rename)


def with_another_shape(name, *shape):
    """Replaces or adds a tensor."""
    tensor = torch.zeros(shape)
    return lambda folder: change_weights(
        folder / WEIGHTS, lambda weights: weights.update({name: tensor})
    )


QUERY = "encoder.layer.0.attention.self.query.weight"
CROSS = "decoder.block.1.layer.1.EncDecAttention.q.weight"
C_ATTN = "transformer.h.0.attn.c_attn.weight"


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
            lambda folder: change_json(folder / "config.json", model_type="gpt2"),
            "bert-micro holds a model of type gpt2; this cell needs bert",
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
        (
            "gpt2_sa_sft",
            lambda folder: change_json(folder / "config.json", n_embd=64),
            "transformer.",
        ),
        # What would start from random: an adapter's target and a cross-attention, too.
        ("bert_sa_qlora", without(f"bert.{QUERY}"), QUERY),
        ("t5_sum_lora", without(CROSS), CROSS),
        ("t5_qa_lora", under_other_names, "would start from random"),
        ("gpt2_qa_lora", with_another_shape(C_ATTN, 3, 5), "would start from random"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named_in_a_sentence(copied, cell_id, spoil, sentence):
    folder, cell = copied(cell_id)
    spoil(folder)
    assert sentence.format(folder=folder, root=folder.parent) in complaint(cell)


# Checkpoints that can be used


def test_a_head_of_another_size_in_the_checkpoint_is_new_all_the_same(copied):
    folder, cell = copied("gpt2_sa_sft")
    with_another_shape("score.weight", 5, 128)(folder)
    assert build(cell, load_tokenizer(cell), CPU).score.weight.shape == (2, 128)


def test_a_file_with_all_weights_goes_before_an_index_as_in_transformers(copied):
    folder, cell = copied("gpt2_sa_sft")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert weight_files(cell) == [folder / WEIGHTS]


def test_weights_in_several_files_are_all_loaded_and_all_fingerprinted(copied):
    folder, cell = copied("gpt2_sa_sft")
    whole = model_record(cell).fingerprint
    in_two_files(folder)
    adapter = folder / "adapter_model.safetensors"  # no part of the model
    save_file({"another": torch.zeros(1)}, adapter)
    assert [path.name for path in weight_files(cell)] == SHARDS
    built = build(cell, load_tokenizer(cell), CPU)
    plain = quick_model("gpt2_sa_sft")
    assert all(torch.equal(p, built.get_parameter(name)) for name, p in plain.named_parameters())
    split = model_record(cell).fingerprint
    change_weights(folder / SHARDS[1], lambda weights: weights[C_ATTN].add_(1))
    assert len({whole, split, model_record(cell).fingerprint}) == 3


# Checkpoints in the variants in which people pretrain


def pretrained(folder, kind):
    """A small checkpoint of this class below a folder, and a grid's profile that reads it."""
    micro = f"{kind.config_class.model_type}-micro"
    source = QUICK_PROFILE.checkpoint_root / micro
    kind.from_pretrained(source).save_pretrained(folder / micro)
    hf.AutoTokenizer.from_pretrained(source).save_pretrained(folder / micro)
    return replace(QUICK_PROFILE, checkpoint_root=folder)


@pytest.mark.parametrize("method", ["lora", "qlora", "sft"])
def test_the_pooler_that_a_masked_language_model_lacks_is_new_and_trains(tmp_path, method):
    cell = STUDY.cell(f"bert_sa_{method}", pretrained(tmp_path, hf.BertForMaskedLM))
    assert cell.head.renewed_modules == ["pooler.dense"]
    cell = replace(cell, recipe=replace(cell.recipe, max_steps=2, warmup_ratio=0.0))
    trainer = cell_trainer(cell, train_rows(cell.id)[:32])
    evidence = get_evidence(trainer, run=True, serving=Serving())
    assert [finding for finding in run_audits(evidence) if not finding.passed] == []
    poolers = [p for name, p in trainer.parameters.items() if "pooler" in name]
    assert any(pooler.requires_grad for pooler in poolers)
    [change] = [text for text in trainer.part().fallbacks if "pooler" in text]
    assert "initialized at random and trained" in change


def test_a_backbone_may_name_a_local_folder_as_its_checkpoint(tmp_path):
    pretrained(tmp_path, hf.BertForMaskedLM)
    folder = tmp_path / "bert-micro"
    grid = study()
    mine = replace(BERT, id="mine", checkpoint=str(folder), revision=None)
    grid.add_backbone(mine, like="bert")
    cell = grid.cell("mine_sa_sft", Profile(id="full", device="cpu"))
    assert cell.head.renewed_modules == ["pooler.dense"]
    assert cell.new_parts
    build(cell, load_tokenizer(cell), CPU)
    record = model_record(cell)
    assert record.checkpoint == "bert-micro"
    assert len(record.fingerprint) == 16


def test_a_checkpoint_with_a_pooler_keeps_it(tmp_path):
    profile = pretrained(tmp_path, hf.BertModel)
    for cell_id in ("bert_sa_lora", "bert_sa_sft"):
        assert STUDY.cell(cell_id, profile).head == STUDY.cell(cell_id, QUICK_PROFILE).head


@pytest.mark.parametrize(
    ("kind", "cell_ids"),
    [
        (hf.BertForMaskedLM, ["bert_qa_lora", "bert_sum_lora"]),
        (hf.GPT2LMHeadModel, ["gpt2_sa_lora", "gpt2_sum_lora"]),
        (hf.GPT2Model, ["gpt2_sa_lora", "gpt2_sum_lora"]),
        (hf.T5ForConditionalGeneration, ["t5_sa_lora", "t5_sum_lora"]),
        (hf.T5Model, ["t5_sa_lora", "t5_sum_lora"]),
    ],
)
def test_a_backbone_pretrained_with_another_head_is_loaded_bit_for_bit(tmp_path, kind, cell_ids):
    profile = pretrained(tmp_path, kind)
    for cell_id in cell_ids:
        trainer = cell_trainer(STUDY.cell(cell_id, profile), train_rows(cell_id)[:16])
        assert checkpoint_loaded(get_evidence(trainer))[0], cell_id


# A base in bf16


@pytest.mark.parametrize(
    ("method", "frozen"), [("lora", {torch.bfloat16}), ("qlora", {torch.bfloat16, torch.uint8})]
)
def test_a_frozen_base_may_be_bf16_and_what_trains_is_fp32(method, frozen):
    cell = quick_cell(
        "bert_sa_qlora",
        optim="adamw_torch",
        precision="bf16",
        max_steps=3,
        per_device_train_batch_size=4,
        warmup_ratio=0.0,
        learning_rate=1e-2,
    )
    backbone = replace(cell.backbone, dtype="bfloat16")
    cell = replace(cell, backbone=backbone, method=STUDY.methods[method])
    trainer = cell_trainer(cell, train_rows(cell.id)[:16])
    evidence = get_evidence(trainer, run=True)
    parameters = trainer.parameters.values()
    assert {p.dtype for p in parameters if not p.requires_grad} == frozen
    assert {p.dtype for p in parameters if p.requires_grad} == {torch.float32}
    assert [finding for finding in run_audits(evidence) if not finding.passed] == []
    assert len({round(loss, 4) for loss in trainer.log.losses}) == 3
