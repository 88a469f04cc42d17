"""Audits that probe the trained model, or look at what an update was.

Faults in whole runs: `pytest -m faults`.
"""

import json
import math
import shutil
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import cache
from itertools import chain, repeat
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from tunegrid.audits import before, computation, dropout, labels, search, training
from tunegrid.audits.evidence import AbsentError, worst_gap
from tunegrid.codecs.base import Feature
from tunegrid.codecs.classify import ClassifyCodec
from tunegrid.data.splits import Splits
from tunegrid.grid.methods import LORA, Lora
from tunegrid.grid.recipes import ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.run import probe
from tunegrid.run.build import checksums
from tunegrid.run.probe import (
    attach,
    distance,
    get_logits,
    keep_state,
    logit_gradients,
    spread_features,
)
from tunegrid.run.ranks import Ranks
from tunegrid.tests.small import (
    assert_fails,
    assert_passes,
    cell_trainer,
    fine_tuner,
    get_evidence,
    quick_cell,
    train_rows,
)


def quick_evidence(cell_id, steps=4, **changes):
    """A quick cell after some updates on a few rows."""
    trainer = fine_tuner(cell_id, train_rows(cell_id)[:24], max_steps=steps, **changes)
    return get_evidence(trainer, run=steps > 0)


@cache
def shared(cell_id):
    """The same for tests that change nothing in it."""
    return quick_evidence(cell_id)


def with_log(evidence, **fields):
    """The same run as if its log had these fields."""
    trainer = copy(evidence.trainer)
    trainer.log = replace(trainer.log, **fields)
    return replace(evidence, trainer=trainer)


# Audits that do not apply


@pytest.mark.parametrize(
    ("audit", "cell_id"),
    [
        (computation.adapters_add_as_declared, "gpt2_sa_sft"),
        (computation.packed_layers_compute_as_declared, "gpt2_sum_lora"),
        (computation.output_follows_trained_tokens, "t5_sum_qlora"),
        (dropout.dropout_drops, "gpt2_sa_sft"),
    ],
)
def test_an_audit_that_does_not_apply_gives_no_answer(audit, cell_id):
    assert audit(shared(cell_id)) is None


def test_the_steps_of_a_method_that_moves_weights_besides_are_not_followed():
    cell = zoo().cell("bert_sa_adalora", ZOO_PROFILE)
    trainer = cell_trainer(cell, train_rows("bert_sa_lora")[:24])
    assert training.optimizer_steps_as_defined(get_evidence(trainer, run=True)) is None


# Probing


@pytest.mark.parametrize("cell_id", ["bert_sa_lora", "gpt2_sum_lora", "t5_sum_qlora"])
def test_probing_leaves_modes_random_numbers_and_gradients_as_they_were(cell_id):
    evidence = shared(cell_id)
    model = evidence.model
    model.train()
    model.get_base_model().eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for audit in (
        computation.rows_alone_as_in_batch,
        computation.adapters_add_as_declared,
        dropout.dropout_drops,
    ):
        assert_passes(audit, replace(evidence))
    with suppress(AbsentError):  # not all generate
        search.cache_changes_nothing(replace(evidence))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_probed_rows_spread_from_the_shortest_to_the_longest():
    rows = []
    for index, length in enumerate([5, 2, 9, 7, 2, 8]):
        rows.append(Feature(example=index, input_ids=[0] * length, target=0))
    # Indices 0, 2, 3 and 5 of 2 2 5 7 8 9
    assert [len(row.input_ids) for row in spread_features(rows, 4)] == [2, 5, 7, 9]
    assert [row.example for row in spread_features(rows[:1], 2)] == [0]


def test_a_distance_is_a_share_of_the_largest_value():
    assert distance(torch.tensor([4.0, 1.0]), torch.tensor([4.0, 3.0])) == 0.5
    assert distance(torch.zeros(2), torch.zeros(2)) == 0.0
    assert distance(torch.zeros(2), torch.zeros(3)) == math.inf


def test_gradients_of_a_padded_batch_leave_out_the_padding():
    weight = torch.tensor(2.0, requires_grad=True)
    # The second value is padding; the first one's weight is cos(0) = 1
    logits = weight * torch.tensor([[1.0, 9.0]])
    assert logit_gradients([logits], [[torch.zeros(1, 1)]], [weight]) == [torch.tensor(1.0)]


# Alone and in a batch


def test_a_relu_that_rounding_turns_in_one_batch_is_no_gap(monkeypatch):
    evidence = quick_evidence("t5_sa_lora")
    wide = evidence.model.get_submodule(
        "base_model.model.encoder.block.2.layer.1.DenseReluDense.wi"
    )
    rows = evidence.probe.rows[:1]
    tokens = []
    with (
        keep_state(evidence.trainer),
        attach([wide], lambda _, inputs, output: tokens.append(inputs[0][0, -1])),
        torch.no_grad(),
    ):
        get_logits(evidence.trainer, rows)
        [token] = tokens
        # All units are at 0 there
        wide.weight -= torch.outer(wide.weight @ token, token) / token.square().sum()
    assert_passes(computation.rows_alone_as_in_batch, replace(evidence))
    monkeypatch.setattr(probe, "_other_gap", lambda *_: math.inf)
    assert_fails(computation.rows_alone_as_in_batch, replace(evidence))


def test_a_gap_that_is_no_number_fails_wherever_it_is(monkeypatch):
    assert worst_gap([0.0, 2.0, 1.0]) == 2.0
    assert math.isnan(worst_gap([0.0, math.nan, 3.0]))
    gaps = chain([0.0, math.nan], repeat(0.0))
    monkeypatch.setattr(computation, "distance", lambda *tensors: next(gaps))
    assert_fails(computation.rows_alone_as_in_batch, shared("bert_sa_lora"))


# Gradients


def test_a_parameter_of_a_module_that_is_not_called_may_be_without_a_gradient():
    evidence = quick_evidence("gpt2_sa_sft")
    count = len(evidence.trainer.parameters)
    evidence.trainer.model.spare = nn.Linear(2, 2)
    evidence.trainer.parameters = dict(evidence.model.named_parameters())
    assert training.gradients_reach(evidence) == (
        True,
        f"{count} tensors get a gradient in each update",
    )


@pytest.mark.parametrize(
    ("cell_id", "tensor", "idle_updates", "is_allowed"),
    [
        ("bert_qa_sft", "qa_outputs.bias", 43, True),  # the softmax over positions cancels it
        ("bert_qa_sft", "qa_outputs.weight", 1, False),
        ("bert_sa_sft", "classifier.bias", 4, True),  # two values, in a tenth of 43 updates
        ("bert_sa_sft", "classifier.bias", 5, False),
        ("bert_sa_sft", "classifier.weight", 1, False),
    ],
)
def test_only_the_bias_of_two_scores_may_be_without_a_gradient(
    cell_id, tensor, idle_updates, is_allowed
):
    evidence = with_log(shared(cell_id), moving_updates=43, idle={tensor: idle_updates})
    passed, detail = training.gradients_reach(evidence)
    assert passed == is_allowed
    fault = f"; 1 get none: {tensor} in {idle_updates} of 43 updates"
    assert detail.endswith(fault) != is_allowed


def test_gradients_that_are_kept_are_named_by_the_updates_that_began_with_them(monkeypatch):
    trainer = fine_tuner("bert_sa_sft", train_rows("bert_sa_sft")[:64], max_steps=4)
    clear = trainer.optimizer.zero_grad
    monkeypatch.setattr(trainer.optimizer, "zero_grad", lambda: trainer.log.updates == 1 or clear())
    detail = assert_fails(training.gradients_reach, get_evidence(trainer, run=True))
    assert detail.endswith("; 1 updates began with those of the update before: 3")


class Detached(ClassifyCodec):
    """A codec whose classifier's gradient is lost in the last two of four updates."""

    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        model.classifier.bias.requires_grad_(self.calls < 3)
        loss = super().loss(model, batch)
        model.classifier.bias.requires_grad_(True)
        return loss


def test_a_gradient_that_is_lost_late_is_counted_once_an_update_has_moved_weights():
    trainer = fine_tuner(
        "bert_sa_sft", train_rows("bert_sa_sft")[:64], Detached, max_steps=4, warmup_ratio=0.5
    )
    log = get_evidence(trainer, run=True).trainer.log
    # Of a warm-up of two updates the first one has a rate of 0; the second moves weights.
    assert log.moving_updates == 2
    assert log.idle == {"classifier.bias": 2}


def test_each_tensor_must_have_moved():
    evidence = quick_evidence("gpt2_sa_sft")
    trainer = evidence.trainer
    assert_passes(training.weights_moved, evidence)
    name = "transformer.ln_f.bias"
    trainer.before[name] = checksums(trainer.model.named_parameters())[name]
    detail = assert_fails(training.weights_moved, replace(evidence))
    assert detail.endswith(f"; 1 did not change: {name}")


# Packed layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_packed_layers_that_compute_in_another_type_are_named_whatever_autocast_casts_to(dtype):
    evidence = quick_evidence("t5_sa_qlora", steps=0)
    packed = [m for m in evidence.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        assert_passes(computation.packed_layers_compute_as_declared, evidence)
        for layer in packed:
            layer.compute_dtype = torch.float32
        detail = assert_fails(computation.packed_layers_compute_as_declared, replace(evidence))
    assert detail.startswith(
        f"{len(packed)} layers, declared bfloat16; {len(packed)} compute in another type: "
    )


# What an update was


@pytest.mark.parametrize(
    ("norms", "clipped_norms", "passed"),
    [
        # The bound is 0.1
        ([0.05, 3.0], [0.05, 0.1], True),
        ([0.05, 3.0], [0.05, 3.0], False),
        ([0.05, 0.05], [0.05, 0.05], True),
        ([0.05, 0.05], [0.05, 0.1], False),
        ([0.05, 3.0], [0.05, 0.05], False),
        ([], [], False),
    ],
)
def test_gradients_are_clipped_to_the_bound_and_no_further(norms, clipped_norms, passed):
    evidence = with_log(
        shared("gpt2_sa_lora"), updates=2, gradient_norms=norms, clipped_norms=clipped_norms
    )
    assert bool(training.gradients_clipped(evidence)[0]) == passed


def test_clipping_is_not_judged_if_fp16_lost_every_update_or_there_is_no_bound():
    lost = {"updates": 1, "gradient_norms": [math.inf], "clipped_norms": [math.nan]}
    assert training.gradients_clipped(with_log(shared("gpt2_sa_lora"), **lost)) is None
    unbound = quick_evidence("bert_qa_sft", steps=1, max_grad_norm=None)
    assert unbound.trainer.log.gradient_norms == []
    assert training.gradients_clipped(unbound) is None


def test_every_tensor_has_its_own_rate_by_the_schedule():
    evidence = shared("gpt2_sa_sft")
    assert_passes(training.schedule_counts_updates, evidence)
    log = evidence.trainer.log
    assert len(log.group_rates) == 4
    group_rates = [list(rates) for rates in log.group_rates]
    group_rates[2][1] *= 2
    detail = assert_fails(
        training.schedule_counts_updates, with_log(evidence, group_rates=group_rates)
    )
    assert detail.startswith("update 3 of 4: transformer.h.0.ln_1.weight had rate ")
    last_off = [*log.learning_rates[:3], 1.0]
    detail = assert_fails(
        training.schedule_counts_updates, with_log(evidence, learning_rates=last_off)
    )
    assert detail.startswith("update 4 of 4 had rate 1, not the cosine schedule's ")


def test_a_heads_rate_and_a_methods_rates_are_the_declared_ones():
    cell = quick_cell("bert_qa_lora", learning_rate=1e-3, head_learning_rate=5e-3)
    cell = replace(cell, method=Lora(id="p", name="p", rate_factors={"lora_B": 16.0}))
    rates = {
        "qa_outputs.modules_to_save.default.weight": 5e-3,
        "query.lora_B.default.weight": 16e-3,
        "query.lora_A.default.weight": 1e-3,
    }
    assert {name: training.declared_peak(cell, name) for name in rates} == pytest.approx(rates)


END_OF_COSINE = (1 - math.sqrt(2 + math.sqrt(2)) / 2) / 2  # by the cosine of 7/8 pi


@pytest.mark.parametrize(
    ("name", "shares"),  # of 10 updates, 2 of them a warm-up, in updates 0, 1, 2, 6 and 9
    [
        ("linear", (0, 0.5, 1, 1 / 2, 1 / 8)),
        ("cosine", (0, 0.5, 1, 1 / 2, END_OF_COSINE)),
        ("cosine_with_restarts", (0, 0.5, 1, 1 / 2, END_OF_COSINE)),
        ("polynomial", (0, 0.5, 1, 0.55, 0.2125)),  # down to 1e-7, a tenth of the peak
        ("constant", (1, 1, 1, 1, 1)),
        ("constant_with_warmup", (0, 0.5, 1, 1, 1)),
        ("inverse_sqrt", (0, 0.5, 1, math.sqrt(2 / 6), math.sqrt(2 / 9))),
    ],
)
def test_schedules_by_hand(name, shares):
    cell = quick_cell("bert_sa_sft", learning_rate=1e-6, lr_scheduler_type=name, warmup_ratio=0.2)
    planned = [training.planned_share(cell.recipe, step, 10) for step in (0, 1, 2, 6, 9)]
    assert planned == pytest.approx(shares)


# What ran as labelled


@pytest.mark.parametrize(("is_on", "layers"), [(True, 3), (False, 0)])
def test_a_layer_is_computed_again_only_with_gradient_checkpointing(is_on, layers):
    evidence = quick_evidence("gpt2_sa_lora", gradient_checkpointing=is_on)
    detail = assert_passes(labels.updates_run_as_labelled, evidence)
    assert f", {layers} layers computed again, attention by SDPA 3 times" in detail
    cell = quick_cell("gpt2_sa_lora", max_steps=4, gradient_checkpointing=not is_on)
    detail = assert_fails(labels.updates_run_as_labelled, replace(evidence, cell=cell))
    assert f"update 4: {layers} layers computed again in the backward pass, not " in detail


def test_attention_by_hand_is_told_from_torchs():
    evidence = quick_evidence("bert_sa_sft")
    evidence.model.set_attn_implementation("eager")
    detail = assert_fails(labels.updates_run_as_labelled, evidence)
    assert "attention is computed by a softmax 3 times, not by SDPA" in detail


@pytest.mark.parametrize(
    ("update", "ranks", "plans"),
    [
        # 11 rows in batches of 4, two to an update: 8 rows, and then 3; or 7, and then 4. Passes
        # have 3 rows at most.
        (0, Ranks(), [[[3, 1, 3, 1]], [[3, 3, 1]], [[3, 1, 3]]]),
        (1, Ranks(), [[[3, 1]], [[3]]]),
        (2, Ranks(), [[[3, 1, 3, 1]], [[3, 3, 1]], [[3, 1, 3]]]),  # of the second epoch
        (0, Ranks(0, 2), [[[3, 1], [3, 1]], [[3, 1], [3]], [[3, 1], [3]]]),
        (1, Ranks(0, 5), [[[1], [1], [1], [1], [1]]] * 2),  # the last one or two only take part
    ],
)
def test_the_rows_of_each_pass_follow_from_recipe_and_ranks(update, ranks, plans):
    cell = quick_cell("bert_sa_sft", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer = SimpleNamespace(cell=cell, ranks=ranks, features=range(11))
    assert labels.planned_passes(trainer, update, 3) == plans


# The checkpoint


def test_nf4_by_hand():
    weight = torch.zeros(2, 64)
    # 1.0 / 2 lies below 0.5017, the middle of 0.4407 and 0.5626
    weight[0, :3] = torch.tensor([2.0, 1.0, -1.2])
    weight[1, 0] = -1.0
    rounded = before.nf4(weight)
    # -0.6: nearer to -0.525
    assert rounded[0, :3].tolist() == pytest.approx([2.0, 2 * 0.44070983, -2 * 0.52507305])
    assert rounded[1, 0] == -1.0
    assert not rounded[0, 3:].any()
    assert not rounded[1, 1:].any()


@pytest.mark.parametrize(
    ("cell_id", "field", "missing"),
    [
        ("bert_sa_lora", "num_hidden_layers", "bert.encoder.layer.1, bert.encoder.layer.2"),
        ("gpt2_sa_qlora", "n_layer", "transformer.h.1, transformer.h.2"),
        ("t5_qa_sft", "num_layers", "encoder.block.1, encoder.block.2"),
    ],
)
def test_layers_of_the_checkpoint_that_its_config_leaves_out_are_named(
    tmp_path, cell_id, field, missing
):
    cell = quick_cell(cell_id)
    shutil.copytree(cell.profile.checkpoint_root, tmp_path, dirs_exist_ok=True)
    config = tmp_path / cell.backbone.micro / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: 1}))
    cell = replace(cell, profile=replace(cell.profile, checkpoint_root=tmp_path))
    evidence = get_evidence(cell_trainer(cell, train_rows(cell_id)[:2]))
    detail = assert_fails(before.checkpoint_loaded, evidence)
    assert detail.startswith(f"the checkpoint has {missing}, which the model lacks")


def test_two_layers_that_traded_places_are_named():
    evidence = quick_evidence("t5_sum_qlora")
    queries = []
    for name, module in evidence.model.named_modules():
        if name.endswith("SelfAttention.q.base_layer"):
            queries.append(module)
    first, second, *_ = queries
    first.weight, second.weight = second.weight, first.weight
    detail = assert_fails(before.packed_from_checkpoint, evidence)
    assert "; 2 differ from the checkpoint's weights of the same name: " in detail
    assert "SelfAttention.q (" in detail


# Characters of tokens


def test_offsets_show_their_tokens():
    rows = train_rows("bert_qa_sft")[:24]
    splits = Splits(train=rows, validation=[], test=[], origins={})
    evidence = replace(shared("bert_qa_sft"), splits=splits)
    assert_passes(before.offsets_show_their_tokens, evidence)
    reversed_splits = replace(splits, train=rows[::-1])
    assert_fails(before.offsets_show_their_tokens, replace(evidence, splits=reversed_splits))


@pytest.mark.parametrize("cell_id", ["bert_qa_sft", "gpt2_qa_sft", "t5_qa_sft"])
def test_a_row_with_letters_beyond_ascii_is_no_fault(cell_id):
    row = {
        "question": "Who?",
        "context": "Éva saw 東京 🎉 and Łódź with O'Neill.",
        "answers": {"text": ["Éva"], "answer_start": [0]},
    }
    splits = Splits(train=[row], validation=[], test=[], origins={})
    evidence = get_evidence(fine_tuner(cell_id, [row], max_steps=1), splits=splits)
    assert_passes(before.offsets_show_their_tokens, evidence)


# Patterns


@pytest.mark.parametrize(
    ("name", "rank", "scale"),
    [
        ("self.value", "rank 4", "scale 16"),
        ("value", "rank 4", "scale 8"),
        ("my_value", "rank 8", "scale 4"),
        ("key", "rank 8", "scale 0.125"),
    ],
)
def test_ranks_and_scales_of_patterns_are_declared_by_layer(name, rank, scale):
    cell = quick_cell("bert_qa_lora")
    layer = f"encoder.layer.0.{name}"
    # Rank 8, alpha 32
    assert LORA.declared_facts(cell, layer) == ("rank 8", "scale 4", "dropout 0.1")
    patterns = {"rank_pattern": {"value": 4}, "alpha_pattern": {"self.value": 64, "key": 1}}
    method = Lora(id="p", name="p", options=patterns)
    cell = replace(cell, method=method)
    assert method.declared_facts(cell, layer) == (rank, scale, "dropout 0.1")
