"""What is saved, loaded again and merged computes what was trained. Faults in whole runs: `pytest -m faults`."""

import re
from dataclasses import dataclass, replace
from functools import cache

import peft
import pytest
from peft.tuners.lora import LoraLayer

from tunegrid.audits.saved import saved_is_served
from tunegrid.grid.methods import Adapting, Lora
from tunegrid.run.serving import Serving
from tunegrid.tests.small import cell_trainer, get_evidence, quick_cell, train_rows

EQUAL = "4 rows: loaded again, logits differ by 0.0e+00 of the largest"


@dataclass(frozen=True, kw_only=True)
class Prompts(Adapting):
    """Prompt tuning (Lester et al. 2021)."""

    def peft_config(self, cell, base):
        return peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4, modules_to_save=base.modules_to_save)


def quick_evidence(cell_id, method=None, perturbation=None):
    """A quick cell after four updates at a high rate."""
    settings = {"max_steps": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0, "per_device_train_batch_size": 4}
    cell = quick_cell(cell_id, **settings)
    profile = replace(cell.profile, perturbation=perturbation)
    cell = replace(cell, method=method or cell.method, profile=profile)
    return get_evidence(cell_trainer(cell, train_rows(cell_id)[:24]), run=True)


@cache
def shared(cell_id):
    """The same for tests that change nothing in it."""
    return quick_evidence(cell_id)


# Saved and loaded again

MERGED = {
    "bert_sum_sft": "",
    "gpt2_sum_lora": "; merged, by .*e-..",
    "t5_sum_qlora": "; merged, by .* apart from [0-9]+ packed layers",
}


@pytest.mark.parametrize(("cell_id", "merged"), MERGED.items())
def test_what_was_trained_comes_back_bit_for_bit_and_merges(cell_id, merged):
    passed, detail = saved_is_served(shared(cell_id))
    assert passed, detail
    assert re.fullmatch(re.escape(EQUAL) + merged, detail)


@pytest.mark.parametrize("cell_id", ["gpt2_sa_lora", "t5_sa_qlora"])
def test_a_base_that_was_moved_is_saved_with_the_adapter(cell_id):
    _, detail = saved_is_served(quick_evidence(cell_id, perturbation=1))
    assert detail.startswith(EQUAL)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_rewrites_the_base_is_served_over_the_base_as_rewritten(start):
    evidence = quick_evidence("t5_sa_lora", Lora(id=start, name=start, options={"init_lora_weights": start}))
    passed, detail = saved_is_served(evidence)
    assert passed, detail
    assert detail.startswith(EQUAL)
    assert evidence.model.peft_config["default"].init_lora_weights == start


# What is lost


def broken(cell_id, **methods):
    """What is said of a cell whose serving has other methods."""
    return saved_is_served(replace(shared(cell_id), serving=type("Broken", (Serving,), methods)()))


@pytest.mark.parametrize("cell_id", ["gpt2_sa_lora", "bert_sum_lora"])
def test_an_adapter_merged_twice_is_caught(cell_id):
    def merge(serving, model):
        model.merge_adapter()
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.merged_adapters.clear()  # nobody remembers
        return Serving.merge(serving, model)

    passed, detail = broken(cell_id, merge=merge)
    assert not passed
    assert detail.startswith(f"{EQUAL}; merged, by ")


# Merging


def test_prompts_are_not_merged():
    evidence = quick_evidence("bert_sa_sft", Prompts(id="prompts", name="prompt tuning"))
    assert saved_is_served(evidence) == (True, f"{EQUAL}; not merged: prompts belong to no layer")


@pytest.mark.parametrize("cell_id", ["gpt2_sa_lora", "gpt2_sa_qlora"])
def test_lora_that_cannot_be_merged_fails(cell_id):
    def merge(serving, model):
        raise ValueError("Cannot merge")

    passed, detail = broken(cell_id, merge=merge)
    assert not passed
    assert detail.endswith(f"not merged: PEFT cannot merge {cell_id.split('_')[2]!r} (Cannot merge)")


def test_a_packed_base_that_merging_spoils_is_caught():
    def merge(serving, model):
        merged = Serving.merge(serving, model)
        for parameter in merged.parameters():
            if parameter.is_floating_point():
                parameter.mul_(-1)
        return merged

    passed, detail = broken("gpt2_sum_qlora", merge=merge)
    assert not passed
    assert detail.startswith(f"{EQUAL}; merged, by ")


def test_a_packed_layer_that_merging_leaves_out_is_named():
    def merge(serving, model):
        [first, *_] = (layer for layer in model.modules() if isinstance(layer, LoraLayer))
        first.scaling["default"] = 0.0
        return Serving.merge(serving, model)

    passed, detail = broken("gpt2_sum_qlora", merge=merge)
    assert not passed
    assert "; merged, 1 of " in detail
