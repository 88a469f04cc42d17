"""What is saved, loaded again and merged computes what was trained.

Faults in whole runs: `pytest -m faults`.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache

import peft
import pytest
import torch
import transformers as hf
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from tunegrid.audits.evidence import differing_parts
from tunegrid.audits.saved import other_pair, saved_is_served
from tunegrid.grid.methods import Adapting, Lora
from tunegrid.run.prepare import make_codec
from tunegrid.run.serving import Serving, saved_search
from tunegrid.tests.small import (
    assert_fails,
    assert_passes,
    cell_trainer,
    four_update_cell,
    get_evidence,
    train_rows,
)
from tunegrid.words import first_difference

EQUAL = "4 rows: loaded again, logits differ by 0.0e+00 of the largest"


@dataclass(frozen=True, kw_only=True)
class Prompts(Adapting):
    """Prompt tuning (Lester et al. 2021)."""

    def peft_config(self, cell, base):
        return peft.PromptTuningConfig(
            task_type="SEQ_CLS", num_virtual_tokens=4, modules_to_save=base.modules_to_save
        )


def quick_evidence(cell_id, method=None, perturbation=None):
    """A quick cell after four updates at a high rate."""
    cell = four_update_cell(cell_id)
    profile = replace(cell.profile, perturbation=perturbation)
    cell = replace(cell, method=method or cell.method, profile=profile)
    return get_evidence(cell_trainer(cell, train_rows(cell_id)[:24]), run=True)


@cache
def shared(cell_id):
    """The same for tests that change nothing in it."""
    return quick_evidence(cell_id)


# Saved and loaded again


@pytest.mark.parametrize(
    ("cell_id", "merged"),
    [
        ("bert_sum_sft", ""),
        ("gpt2_sum_lora", "; merged, by .*e-.."),
        ("t5_sum_qlora", "; merged, by .* apart from [0-9]+ packed layers"),
    ],
)
def test_a_trained_model_comes_back_bit_for_bit_and_merges(cell_id, merged):
    detail = assert_passes(saved_is_served, shared(cell_id))
    assert re.fullmatch(re.escape(EQUAL) + merged, detail)


@pytest.mark.parametrize("cell_id", ["gpt2_sa_lora", "t5_sa_qlora"])
def test_a_base_that_was_moved_is_saved_with_the_adapter(cell_id):
    _, detail = saved_is_served(quick_evidence(cell_id, perturbation=1))
    assert detail.startswith(EQUAL)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_rewrites_the_base_is_served_over_the_base_as_rewritten(start):
    method = Lora(id=start, name=start, options={"init_lora_weights": start})
    evidence = quick_evidence("t5_sa_lora", method)
    detail = assert_passes(saved_is_served, evidence)
    assert detail.startswith(EQUAL)
    assert evidence.model.peft_config["default"].init_lora_weights == start


# Saved wrongly


def broken(evidence, **methods):
    """The same evidence, with other methods of serving."""
    return replace(evidence, serving=type("Broken", (Serving,), methods)())


def saved_otherwise(cell_id, change):
    """The fault that is found if `change` is made in the folder after saving."""

    def save(serving, cell, model, tokenizer, folder):
        Serving.save(serving, cell, model, tokenizer, folder)
        change(folder)

    return assert_fails(saved_is_served, broken(shared(cell_id), save=save))


def edited(name, edit):
    """A change of a JSON file's fields."""

    def change(folder):
        path = folder / name
        fields = json.loads(path.read_text())
        edit(fields)
        path.write_text(json.dumps(fields))

    return change


LORA_A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
NEXT_A = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"


def halve(tensors):
    tensors[LORA_A] = tensors[LORA_A].half()


def flip_a_bit(tensors):
    tensors[LORA_A].view(torch.int32)[1, 2] ^= 1


def round_to_bf16(tensors):
    tensors[LORA_A] = tensors[LORA_A].bfloat16().float()


def swap(tensors):
    tensors[LORA_A], tensors[NEXT_A] = tensors[NEXT_A], tensors[LORA_A]


def leave_out(tensors):
    del tensors[LORA_A]


def rename(tensors):
    tensors["foobar"] = tensors.pop(LORA_A)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (halve, f"{LORA_A} was saved as float16"),
        (flip_a_bit, f"{LORA_A} was saved with 1 of 1024 values changed"),
        (round_to_bf16, "as bfloat16 rounds"),
        (swap, f"2 tensors differ: {LORA_A}"),
        (leave_out, f"{LORA_A} is in no file"),
        (rename, "holds foobar, which the trained model lacks"),
    ],
)
def test_a_tensor_that_is_saved_otherwise_is_named(change, fault):
    def rewrite(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    assert fault in saved_otherwise("gpt2_sum_lora", rewrite)


def test_a_tied_tensor_that_is_saved_under_two_names_is_named():
    """transformers saves T5's embeddings once, although three modules have them."""

    def copy_the_embeddings(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
        save_file(tensors, path, metadata={"format": "pt"})

    fault = saved_otherwise("t5_sum_sft", copy_the_embeddings)
    assert re.fullmatch(r"(\S+) was saved twice: (\S+) is the same tensor", fault)
    assert "shared.weight" in fault
    assert "encoder.embed_tokens.weight" in fault


@pytest.mark.parametrize(
    ("cell_id", "name", "field", "value"),
    [
        ("gpt2_sum_lora", "adapter_config.json", "lora_alpha", 8),
        ("gpt2_sum_lora", "adapter_config.json", "base_model_name_or_path", "gpt2"),
        ("gpt2_sum_lora", "adapter_config.json", "revision", "main"),
        (
            "gpt2_sum_lora",
            "adapter_config.json",
            "auto_mapping",
            {"base_model_class": "GPT2Model"},
        ),
        ("gpt2_sum_lora", "generation_config.json", "temperature", 0.5),
        ("gpt2_sum_lora", "tokenizer_config.json", "padding_side", "left"),
        ("gpt2_sum_lora", "tokenizer_config.json", "model_max_length", 64),
        ("gpt2_sum_lora", "tokenizer_config.json", "pad_token", "<sum>"),
        ("bert_sum_sft", "config.json", "dtype", "float16"),
        ("bert_sum_sft", "config.json", "attn_implementation", "eager"),
        ("bert_sum_sft", "config.json", "architectures", ["EncoderDecoderModel"]),
        ("bert_sum_sft", "config.json", "pad_token_id", 1),
        ("bert_sum_sft", "config.json", "tie_word_embeddings", False),
    ],
)
def test_a_setting_that_is_saved_otherwise_is_named(cell_id, name, field, value):
    change = edited(name, lambda fields: fields.update({field: value}))
    assert f"{name}: {field}" in saved_otherwise(cell_id, change)


@pytest.mark.parametrize(
    ("cell_id", "name", "field"),
    [
        ("gpt2_sum_lora", "generation_config.json", "num_beams"),
        ("bert_sum_sft", "tokenizer_config.json", "model_input_names"),
    ],
)
def test_a_setting_that_is_not_saved_is_named(cell_id, name, field):
    detail = saved_otherwise(cell_id, edited(name, lambda fields: fields.pop(field)))
    assert f"{name}: {field}" in detail


def test_a_setting_of_one_half_of_a_pair_is_named():
    def edit(config):
        del config["decoder"]["layer_norm_eps"]
        del config["decoder"]["hidden_dropout_prob"]

    detail = saved_otherwise("bert_sum_sft", edited("config.json", edit))
    assert "decoder.hidden_dropout_prob is not saved, and loaded as 0.1, but was 0.05" in detail


def test_a_tokenizer_that_splits_texts_otherwise_is_named_with_the_place():
    def edit(content):
        content["normalizer"]["lowercase"] = False

    detail = saved_otherwise("bert_sum_sft", edited("tokenizer.json", edit))
    assert "tokenizer.json: normalizer is saved as" in detail
    assert '"lowercase": false' in detail


def test_saving_that_changes_the_trained_model_is_caught():
    def save(serving, cell, model, tokenizer, folder):
        with torch.no_grad():
            next(model.parameters()).mul_(1 + 1e-6)
        Serving.save(serving, cell, model, tokenizer, folder)

    detail = assert_fails(saved_is_served, broken(quick_evidence("t5_sa_lora"), save=save))
    assert detail == "saving changes the tensors of the trained model"


def test_a_model_in_several_files_is_the_same():
    def save(serving, cell, model, tokenizer, folder):
        Serving.save(serving, cell, model, tokenizer, folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="200KB")
        hf.GenerationConfig(**saved_search(make_codec(cell, tokenizer))).save_pretrained(folder)
        assert len(list(folder.glob("*.safetensors"))) > 1

    assert_passes(saved_is_served, broken(shared("bert_sum_sft"), save=save))


# Loaded wrongly


def test_a_tensor_that_is_loaded_otherwise_is_named():
    def load(serving, cell, folder, device):
        model, tokenizer = Serving.load(serving, cell, folder, device)
        parameters = dict(model.named_parameters())
        parameters[LORA_A.replace("weight", "default.weight")].view(torch.int32)[1, 2] ^= 1
        return model, tokenizer

    detail = assert_fails(saved_is_served, broken(shared("gpt2_sum_lora"), load=load))
    assert "lora_A.default.weight was loaded with 1 of 1024 values changed" in detail


@pytest.mark.parametrize("key", ["input_ids", "attention_mask", "token_type_ids"])
def test_a_pair_of_texts_that_is_read_otherwise_is_named_by_its_key(key):
    evidence = shared("bert_sum_sft")
    tokenizer = evidence.codec.tokenizer

    def cut(text, pair):
        encoding = tokenizer(text, pair)
        encoding[key] = encoding[key][:-1]
        return encoding

    with torch.no_grad():
        [fault] = other_pair(evidence, evidence.model, cut, math.inf)
        assert list(other_pair(evidence, evidence.model, tokenizer, math.inf)) == []
    assert f"the saved tokenizer gives {key} [" in fault


def test_the_first_place_in_which_texts_differ_is_shown_with_its_surroundings():
    text = "a" * 50 + "b" + "c" * 50
    changed = "a" * 50 + "d" + "c" * 50
    parts = ("a" * 20 + "b" + "c" * 19, "a" * 20 + "d" + "c" * 19)
    assert differing_parts(text, changed) == parts
    assert first_difference([1, 2], [1, 2, 3]) == 2


# Merged


def merged_otherwise(cell_id, merge):
    """The fault that is found if `merge` merges."""
    return assert_fails(saved_is_served, broken(shared(cell_id), merge=merge))


@pytest.mark.parametrize("cell_id", ["gpt2_sa_lora", "bert_sum_lora"])
def test_an_adapter_merged_twice_is_caught(cell_id):
    def merge(serving, model):
        model.merge_adapter()
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.merged_adapters.clear()  # so that PEFT merges again
        return Serving.merge(serving, model)

    assert merged_otherwise(cell_id, merge).startswith(f"{EQUAL}; merged, by ")


def test_a_packed_base_that_merging_spoils_is_caught():
    def merge(serving, model):
        merged = Serving.merge(serving, model)
        for parameter in merged.parameters():
            if parameter.is_floating_point():
                parameter.mul_(-1)
        return merged

    assert merged_otherwise("gpt2_sum_qlora", merge).startswith(f"{EQUAL}; merged, by ")


def test_a_packed_layer_that_merging_leaves_out_is_named():
    def merge(serving, model):
        first = next(layer for layer in model.modules() if isinstance(layer, LoraLayer))
        first.scaling["default"] = 0.0
        return Serving.merge(serving, model)

    assert "; merged, 1 of " in merged_otherwise("gpt2_sum_qlora", merge)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_lora_that_cannot_be_merged_fails(method):
    def merge(serving, model):
        raise ValueError("Cannot merge")

    detail = merged_otherwise(f"gpt2_sa_{method}", merge)
    assert detail.endswith(f"not merged: PEFT cannot merge {method!r} (Cannot merge)")


def test_prompts_are_not_merged():
    evidence = quick_evidence("bert_sa_sft", Prompts(id="prompts", name="prompt tuning"))
    detail = assert_passes(saved_is_served, evidence)
    assert detail == f"{EQUAL}; not merged: prompts belong to no layer"
