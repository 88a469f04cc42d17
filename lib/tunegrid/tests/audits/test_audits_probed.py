"""Audits that probe the trained model, or look at what an update was.

Faults in whole runs: `pytest -m faults`.
"""

import json
import math
import shutil
from contextlib import suppress
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
    cell_trainer,
    fine_tuner,
    get_evidence,
    quick_cell,
    read_rows,
    train_rows,
)

QUESTIONS = Splits(train=read_rows("squad/train")[:24], validation=[], test=[], origins={})


def quick_evidence(cell_id, steps=4, **changes):
    """A quick cell after some updates on a few rows."""
    return get_evidence(
        fine_tuner(cell_id, train_rows(cell_id)[:24], max_steps=steps, **changes), run=steps > 0
    )


@cache
def shared(cell_id):
    """The same for tests that change nothing in it."""
    return quick_evidence(cell_id)


# What is sound, and what does not apply

NOT_APPLICABLE = {
    computation.adapters_add_as_declared: "gpt2_sa_sft",
    computation.packed_layers_compute_as_declared: "gpt2_sum_lora",
    computation.output_follows_trained_tokens: "t5_sum_qlora",
    dropout.dropout_drops: "gpt2_sa_sft",
}


@pytest.mark.parametrize(("audit", "cell_id"), NOT_APPLICABLE.items())
def test_an_audit_says_nothing_where_it_does_not_apply(audit, cell_id):
    assert audit(shared(cell_id)) is None


def test_the_steps_of_a_method_that_moves_weights_besides_are_not_followed():
    trainer = cell_trainer(
        zoo().cell("bert_sa_adalora", ZOO_PROFILE), train_rows("bert_sa_lora")[:24]
    )
    assert training.optimizer_steps_as_defined(get_evidence(trainer)) is None


# Asking


@pytest.mark.parametrize("cell_id", ["bert_sa_lora", "gpt2_sum_lora", "t5_sum_qlora"])
def test_asking_leaves_modes_random_numbers_and_gradients_as_they_were(cell_id):
    evidence = shared(cell_id)
    model = evidence.model
    model.train()
    model.get_base_model().eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    for audit in (
        computation.rows_alone_as_in_batch,
        computation.adapters_add_as_declared,
        dropout.dropout_drops,
    ):
        assert audit(replace(evidence))[0]
    with suppress(AbsentError):  # not all generate
        search.cache_changes_nothing(replace(evidence))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_rows_spread_from_the_shortest_to_the_longest_and_distances_are_shares_of_the_largest_value():
    rows = [
        Feature(example=i, input_ids=[0] * length, target=0)
        for i, length in enumerate([5, 2, 9, 7, 2, 8])
    ]
    # Indices 0, 2, 3 and 5 of 2 2 5 7 8 9
    assert [len(row.input_ids) for row in spread_features(rows, 4)] == [2, 5, 7, 9]
    assert [row.example for row in spread_features(rows[:1], 2)] == [0]
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
    token = []
    with (
        keep_state(evidence.trainer),
        attach([wide], lambda _, inputs, output: token.append(inputs[0][0, -1])),
        torch.no_grad(),
    ):
        get_logits(evidence.trainer, evidence.probe.rows[:1])
        # All units are at 0 there
        wide.weight -= torch.outer(wide.weight @ token[0], token[0]) / token[0].square().sum()
    passed, detail = computation.rows_alone_as_in_batch(replace(evidence))
    assert passed, detail
    monkeypatch.setattr(probe, "_other_gap", lambda *_: math.inf)
    assert not computation.rows_alone_as_in_batch(replace(evidence))[0]


def test_a_gap_that_is_no_number_fails_wherever_it_is(monkeypatch):
    assert worst_gap([0.0, 2.0, 1.0]) == 2.0
    assert math.isnan(worst_gap([0.0, math.nan, 3.0]))
    evidence = shared("bert_sa_lora")
    gaps = chain([0.0, math.nan], repeat(0.0))
    monkeypatch.setattr(computation, "distance", lambda *tensors: next(gaps))
    assert not computation.rows_alone_as_in_batch(evidence)[0]


# Gradients


def test_a_parameter_of_a_module_that_nobody_calls_may_be_without_a_gradient():
    evidence = quick_evidence("gpt2_sa_sft")
    evidence.trainer.model.spare = nn.Linear(2, 2)
    evidence.trainer.parameters = dict(evidence.model.named_parameters())
    count = len(evidence.trainer.parameters) - 2
    assert training.gradients_reach(evidence) == (
        True,
        f"{count} tensors get a gradient in each update",
    )


def test_the_bias_of_a_span_head_may_be_without_a_gradient_and_no_other_tensor():
    evidence = quick_evidence("bert_qa_sft", warmup_ratio=0.0)
    bias = "qa_outputs.bias"
    weight = "qa_outputs.weight"
    assert training.gradients_reach(altered(evidence, idle={bias: 2}))[0]
    passed, detail = training.gradients_reach(altered(evidence, idle={weight: 2}))
    assert not passed
    assert detail.endswith(f"; 1 get none: {weight} in 2 of 3 updates")


def test_the_gradient_of_a_bias_of_two_labels_may_cancel_in_a_tenth_of_the_updates():
    evidence = quick_evidence("bert_sa_sft", warmup_ratio=0.0)

    def answer(name, count):
        return training.gradients_reach(altered(evidence, moving_updates=43, idle={name: count}))[0]

    assert answer("classifier.bias", 4)
    assert not answer("classifier.bias", 5)
    assert not answer("classifier.weight", 1)


def test_gradients_that_are_kept_are_named_by_the_updates_that_began_with_them(monkeypatch):
    trainer = fine_tuner("bert_sa_sft", train_rows("bert_sa_sft")[:64], max_steps=4)
    clear = trainer.optimizer.zero_grad
    monkeypatch.setattr(trainer.optimizer, "zero_grad", lambda: trainer.log.updates == 1 or clear())
    passed, detail = training.gradients_reach(get_evidence(trainer, run=True))
    assert not passed
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
    assert training.weights_moved(evidence)[0]
    name = "transformer.ln_f.bias"
    trainer.before[name] = checksums(trainer.model.named_parameters())[name]
    passed, detail = training.weights_moved(replace(evidence))
    assert not passed
    assert detail.endswith(f"; 1 did not change: {name}")


# Adapters


@pytest.mark.parametrize("training", [torch.float32, torch.float16, torch.bfloat16])
def test_a_packed_base_computes_as_declared_or_is_named_whatever_autocast_training_is_under(
    training,
):
    evidence = quick_evidence("t5_sa_qlora", steps=0)
    packed = [m for m in evidence.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    with torch.autocast("cpu", training, enabled=training is not torch.float32):
        passed, detail = computation.packed_layers_compute_as_declared(evidence)
        assert passed, detail
        for layer in packed:
            layer.compute_dtype = torch.float32
        passed, detail = computation.packed_layers_compute_as_declared(replace(evidence))
    assert not passed
    assert detail.startswith(
        f"{len(packed)} layers, declared bfloat16; {len(packed)} compute in another type: "
    )


# Dropout


def set_rate(evidence, rate):
    """The same model as if its checkpoint had dropout."""
    for module in evidence.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
    return evidence


def test_attentions_dropout_is_seen_by_its_effect():
    # As the checkpoint's config says
    passed, detail = dropout.dropout_drops(set_rate(quick_evidence("bert_sa_sft"), 0.05))
    assert passed
    # the embeddings', two a layer and the classifier's are modules; attention's is handed on as a
    # number
    assert detail == "8 drop at their declared rate, 3 have an effect"
    passed, detail = dropout.dropout_drops(set_rate(quick_evidence("bert_sa_sft"), 0.1))
    assert not passed
    assert "dropout 0.1, not 0.05" in detail


# What an update was


def altered(evidence, **notes):
    """The same run as if other things had happened."""
    trainer = evidence.trainer
    copy = type(trainer).__new__(type(trainer))
    vars(copy).update(vars(trainer) | {"log": replace(trainer.log, **notes)})
    return replace(evidence, trainer=copy)


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [
        *(
            (3.0, 0.1, True),
            (3.0, 3.0, False),
            (0.05, 0.05, True),
            (0.05, 0.1, False),
            (3.0, 0.05, False),
            (None, None, False),
        ),
        (math.inf, math.nan, None),  # an update that fp16 lost has no norm to clip
    ],
)
def test_gradients_are_clipped_to_the_bound_and_no_further(before, after, passed):
    norms = {"gradient_norms": [], "clipped_norms": []}
    if before is not None:
        # The bound is 0.1
        norms = {"gradient_norms": [0.05, before], "clipped_norms": [0.05, after]}
    if before == math.inf:
        norms = {name: values[1:] for name, values in norms.items()}
    evidence = altered(shared("gpt2_sa_lora"), updates=len(norms["gradient_norms"]) or 2, **norms)
    answer = training.gradients_clipped(evidence)
    assert (answer and bool(answer[0])) is passed
    unbound = quick_evidence("bert_qa_sft", steps=1, max_grad_norm=None)
    assert unbound.trainer.log.gradient_norms == []
    assert training.gradients_clipped(unbound) is None


def test_every_tensor_has_its_own_rate_by_the_schedule():
    evidence = shared("gpt2_sa_sft")
    assert training.schedule_counts_updates(evidence)[0]
    log = evidence.trainer.log
    assert len(log.group_rates) == 4
    rates = [list(row) for row in log.group_rates]
    rates[2][1] *= 2
    passed, detail = training.schedule_counts_updates(altered(evidence, group_rates=rates))
    assert not passed
    assert detail.startswith("update 3 of 4: transformer.h.0.ln_1.weight had rate ")
    passed, detail = training.schedule_counts_updates(
        altered(evidence, learning_rates=[*log.learning_rates[:3], 1.0])
    )
    assert not passed
    assert detail.startswith("update 4 of 4 had rate 1, not the cosine schedule's ")


def test_a_heads_rate_and_a_methods_rates_are_the_declared_ones():
    cell = quick_cell("bert_qa_lora", learning_rate=1e-3, head_learning_rate=5e-3)
    cell = replace(cell, method=Lora(id="p", name="p", rate_factors={"lora_B": 16.0}))
    names = (
        "qa_outputs.modules_to_save.default.weight",
        "query.lora_B.default.weight",
        "query.lora_A.default.weight",
    )
    assert [training.declared_peak(cell, name) for name in names] == pytest.approx(
        [5e-3, 16e-3, 1e-3]
    )


@pytest.mark.parametrize(
    ("name", "shares"),  # of 10 updates, 2 of them a warm-up, in updates 0, 1, 2, 6 and 9
    [
        ("linear", (0, 0.5, 1, 1 / 2, 1 / 8)),
        # The cosine of 7/8 pi
        ("cosine", (0, 0.5, 1, 1 / 2, (1 - math.sqrt(2 + math.sqrt(2)) / 2) / 2)),
        ("cosine_with_restarts", (0, 0.5, 1, 1 / 2, (1 - math.sqrt(2 + math.sqrt(2)) / 2) / 2)),
        ("polynomial", (0, 0.5, 1, 0.55, 0.2125)),  # down to 1e-7, a tenth of the peak
        ("constant", (1, 1, 1, 1, 1)),
        ("constant_with_warmup", (0, 0.5, 1, 1, 1)),
        ("inverse_sqrt", (0, 0.5, 1, math.sqrt(2 / 6), math.sqrt(2 / 9))),
    ],
)
def test_schedules_by_hand(name, shares):
    recipe = quick_cell(
        "bert_sa_sft", learning_rate=1e-6, lr_scheduler_type=name, warmup_ratio=0.2
    ).recipe
    assert [training.planned_share(recipe, step, 10) for step in (0, 1, 2, 6, 9)] == pytest.approx(
        shares
    )


# What ran as labelled


@pytest.mark.parametrize("is_on", [True, False])
def test_a_layer_is_computed_again_only_with_gradient_checkpointing(is_on):
    evidence = quick_evidence("gpt2_sa_lora", gradient_checkpointing=is_on)
    passed, detail = labels.updates_run_as_labelled(evidence)
    assert passed
    assert f", {3 * is_on} layers computed again, attention by SDPA 3 times" in detail
    recipe = replace(evidence.cell.recipe, gradient_checkpointing=not is_on)
    passed, detail = labels.updates_run_as_labelled(
        replace(evidence, cell=replace(evidence.cell, recipe=recipe))
    )
    assert not passed
    assert f"update 4: {3 * is_on} layers computed again in the backward pass, not " in detail


def test_attention_by_hand_is_told_from_torchs():
    evidence = quick_evidence("bert_sa_sft")
    evidence.model.set_attn_implementation("eager")
    passed, detail = labels.updates_run_as_labelled(evidence)
    assert not passed
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
    recipe = quick_cell(
        "bert_sa_sft", per_device_train_batch_size=4, gradient_accumulation_steps=2
    ).recipe
    trainer = SimpleNamespace(cell=SimpleNamespace(recipe=recipe), ranks=ranks, features=range(11))
    assert labels.planned_passes(trainer, update, 3) == plans


# Packed weights


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
    passed, detail = before.checkpoint_loaded(
        get_evidence(cell_trainer(cell, train_rows(cell_id)[:2]))
    )
    assert not passed
    assert detail.startswith(f"the checkpoint has {missing}, which the model lacks")


# Characters of tokens


def test_offsets_show_their_tokens():
    evidence = replace(shared("bert_qa_sft"), splits=QUESTIONS)
    passed, detail = before.offsets_show_their_tokens(evidence)
    assert passed, detail
    moved = replace(evidence, splits=replace(evidence.splits, train=evidence.splits.train[::-1]))
    assert not before.offsets_show_their_tokens(moved)[0]


def test_a_row_with_letters_beyond_ascii_is_no_fault():
    row = {
        "question": "Who?",
        "context": "Éva saw 東京 🎉 and Łódź with O'Neill.",
        "answers": {"text": ["Éva"], "answer_start": [0]},
    }
    for cell_id in ("bert_qa_sft", "gpt2_qa_sft", "t5_qa_sft"):
        splits = Splits(train=[row], validation=[], test=[], origins={})
        passed, detail = before.offsets_show_their_tokens(
            get_evidence(fine_tuner(cell_id, [row], max_steps=1), splits=splits)
        )
        assert passed, (cell_id, detail)


# Bugs of libraries that no baseline is needed to see


def test_ranks_and_scales_of_patterns_are_declared_by_layer():
    patterns = {"rank_pattern": {"value": 4}, "alpha_pattern": {"self.value": 64, "key": 1}}
    # Rank 8, alpha 32
    cell = replace(quick_cell("bert_qa_lora"), method=Lora(id="p", name="p", options=patterns))
    names = [
        "encoder.layer.0.self.value",
        "encoder.layer.0.value",
        "encoder.layer.0.my_value",
        "encoder.layer.0.key",
    ]
    facts = [cell.method.declared_facts(cell, name) for name in names]
    pairs = [
        ("rank 4", "scale 16"),
        ("rank 4", "scale 8"),
        ("rank 8", "scale 4"),
        ("rank 8", "scale 0.125"),
    ]
    assert facts == [(*pair, "dropout 0.1") for pair in pairs]
    assert LORA.declared_facts(cell, names[0]) == ("rank 8", "scale 4", "dropout 0.1")


def test_two_layers_that_traded_places_are_named():
    evidence = quick_evidence("t5_sum_qlora")
    layers = {
        name: m
        for name, m in evidence.model.named_modules()
        if name.endswith(("SelfAttention.q.base_layer",))
    }
    first, second = list(layers.values())[:2]
    first.weight, second.weight = second.weight, first.weight
    passed, detail = before.packed_from_checkpoint(evidence)
    assert not passed
    assert "; 2 differ from the checkpoint's weights of the same name: " in detail
    assert "SelfAttention.q (" in detail
