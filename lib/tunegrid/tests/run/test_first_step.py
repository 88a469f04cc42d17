"""Figures of the first step: groups of parameters, what is probed before training, and what the
first updates leave.
"""

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from torch import nn

from tunegrid.run.adamw import AdamW
from tunegrid.run.before_training import before_training
from tunegrid.run.first_updates import FirstUpdates, gradient_figures, names_by_group
from tunegrid.run.metrics import Metrics
from tunegrid.run.probe import spread_features
from tunegrid.tests.small import CPU, fine_tuner, quick_cell, read_rows, silent, train_rows

REVIEWS = read_rows("amazon_polarity/train")[:8]
QUESTIONS = read_rows("squad/train")[:4]
NEWS = read_rows("cnn_dailymail/train")[:4]

# Groups


@pytest.mark.parametrize(
    ("cell_id", "name", "group"),
    [
        ("bert_sa_sft", "bert.encoder.layer.1.attention.self.query.weight", "encoder 1 attention"),
        (
            "bert_sum_sft",
            "decoder.bert.encoder.layer.0.crossattention.self.key.weight",
            "decoder 0 cross-attention",
        ),
        ("gpt2_sa_sft", "transformer.h.3.ln_1.bias", "norms"),
        ("gpt2_sa_sft", "transformer.wpe.weight", "embeddings"),
        ("gpt2_sa_sft", "score.weight", "head"),
        (
            "t5_sum_sft",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "biases of position",
        ),
    ],
)
def test_a_parameter_belongs_to_the_group_of_its_layer(cell_id, name, group):
    assert names_by_group(quick_cell(cell_id), nn.Linear(1, 1), [name]) == {group: [name]}


def test_an_added_parameter_belongs_to_the_group_of_the_method_that_added_it():
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight"
    assert quick_cell("gpt2_sa_lora").method.group_name(name) == "lora_B"


# Gradients and movement


@pytest.mark.parametrize(("bias", "count"), [(0.0, 1), (3e-8, 1), (9e-7, 1), (2e-6, 2)])
def test_a_gradient_that_is_zero_but_for_rounding_is_none(bias, count):
    """The bias of a span's head: whichever of its values is rounded to zero, the count is the
    same.
    """
    groups = {"head": ["weight", "bias"], "other": ["c"]}
    gradients = {"weight": torch.tensor([0.0, 1.0]), "bias": torch.tensor([bias])}
    _, reached, rounding = gradient_figures(groups, gradients)
    assert reached == {"head": count, "other": 0}
    assert rounding == ({"bias"} if count == 1 else set())


def test_a_group_without_any_gradient_has_a_norm_of_zero():
    zeros = {"a": torch.zeros(2), "b": torch.zeros(2)}
    figures = gradient_figures({"lora_A": ["a", "b"]}, zeros)
    assert figures == ({"lora_A": 0.0}, {"lora_A": 0}, set())


def test_what_moves_by_rounding_alone_is_no_movement():
    """AdamW gives the bias, whose gradient is rounding, as long a step as the weight."""
    trainer = fine_tuner("bert_qa_sft", QUESTIONS)
    head = {name: trainer.parameters[name] for name in ("qa_outputs.weight", "qa_outputs.bias")}
    weight, bias = head.values()
    weight.grad = torch.ones_like(weight)
    bias.grad = torch.full_like(bias, 1e-9)
    first_updates = FirstUpdates(trainer.cell, trainer.model, head)
    first_updates.gradients(CPU)
    with torch.no_grad():
        weight += 0.5
        bias += 7.0
    moved = first_updates.movement()["moved"]
    assert moved == {"head": pytest.approx(0.5 * weight.numel() ** 0.5, rel=1e-5)}


# Before training


def test_a_probe_that_does_not_fit_leaves_no_figures():
    trainer = fine_tuner("t5_sum_lora", NEWS)
    complete_figures = before_training(trainer, Metrics(), NEWS)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = trainer.model.register_forward_pre_hook(full)
    figures = before_training(trainer, Metrics(), NEWS)
    handle.remove()
    probed = (
        "probe_loss",
        "probe_reached",
        "computed",
        "probe",
        "generated",
        "decoded",
        "tokens_read",
    )
    for name in probed:
        assert figures[name] is None
    assert figures["probe_gradients"] == {}
    assert figures["weights"] == complete_figures["weights"]
    assert before_training(trainer, Metrics(), NEWS) == complete_figures


def test_weights_that_start_rounded_to_16_bits_are_told_by_their_values():
    trainer = fine_tuner("bert_sa_qlora", REVIEWS)
    lora_as = [p.data for name, p in trainer.parameters.items() if "lora_A" in name]
    for values in lora_as:
        values.copy_(torch.rand_like(values).bfloat16().float() + 2**-20)
    assert before_training(trainer, Metrics(), REVIEWS)["digits"]["lora_A"] == "float32"
    for values in lora_as:
        values.copy_(values.bfloat16())
    assert before_training(trainer, Metrics(), REVIEWS)["digits"]["lora_A"] == "bfloat16"


def test_what_trains_in_bf16_over_a_base_in_fp32_is_probed_in_fp32():
    figures = []
    modules = []
    for precision in ("fp32", "bf16"):
        trainer = fine_tuner("gpt2_sa_lora", REVIEWS, precision=precision)
        figures.append(before_training(trainer, Metrics(), REVIEWS, modules.append))
    fp32, bf16 = figures
    assert fp32["probe"] != bf16["probe"]  # so that no probe under autocast is compared with it
    assert fp32["probe_loss"] == bf16["probe_loss"]
    assert fp32["probe_gradients"] == bf16["probe_gradients"]
    assert modules[0] == modules[1]


@pytest.mark.parametrize("cached", [True, False])
def test_the_tokens_that_a_search_reads_are_counted(cached, monkeypatch):
    """Of two rows with three beams each: prompts, then all that is not in the cache; and each text
    in one pass.
    """
    generate = hf.GenerationMixin.generate

    def generate_as_set(*inputs, **options):
        return generate(*inputs, **options | {"use_cache": cached})

    monkeypatch.setattr(hf.GenerationMixin, "generate", generate_as_set)
    trainer = fine_tuner("gpt2_sum_lora", NEWS)
    features = spread_features(trainer.features, 4)
    lengths = [len(features[0].input_ids), len(features[-1].input_ids)]
    cap = trainer.codec.generation.max_new_tokens
    padded_length = max(lengths)
    later_steps = [1] * (cap - 1)
    if not cached:
        later_steps = [padded_length + step for step in range(1, cap)]
    searched = 6 * (padded_length + sum(later_steps))
    whole_texts = 3 * (sum(lengths) + 2 * cap)
    assert before_training(trainer, Metrics(), NEWS)["tokens_read"] == searched + whole_texts


# A training run that pauses after its first updates is the beginning of the whole run.


def make_trainer():
    """A trainer of six updates with dropout, and a schedule that warms up."""
    rows = train_rows("bert_sa_lora")[:48]
    return fine_tuner("bert_sa_lora", rows, num_train_epochs=2, max_steps=0)


def score():
    return 50.0 + torch.rand(1).item(), []  # a validation may draw random numbers


@pytest.mark.parametrize(
    "count", [1, 3, 4], ids=["within the warm-up", "at an epoch's end", "in the second epoch"]
)
def test_first_updates_are_those_of_a_whole_run(count):
    whole = make_trainer()
    training = whole.run(silent(), score)
    assert training.updates == 6
    paused = make_trainer()
    first = paused.run(silent(), score, first_updates=count)
    assert paused.paused
    assert first.losses == training.losses[:count]
    assert first.order == training.order  # of the rows of the whole run, as planned
    assert paused.log.learning_rates == whole.log.learning_rates[:count]


# AdamW by its definition: steps worked out by hand, and which optimizers are followed.


def followed(make, updates=24, size=(8, 4)):
    """A reference that followed an optimizer of two weights, of which one has no gradient."""
    torch.manual_seed(0)
    weight = torch.randn(size, requires_grad=True)
    unused = torch.zeros(2, requires_grad=True)
    optimizer = make([weight, unused])
    adamw = AdamW(optimizer, {"weight": weight, "unused": unused})
    for update in range(updates):
        weight.grad = torch.randn(size)
        adamw.before_step(update, updates)
        optimizer.step()
        adamw.after_step(update)
    return adamw


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
        lambda weights: torch.optim.AdamW(weights, lr=0.01, betas=(0.8, 0.9), eps=1e-3, fused=True),
        # Of so few values it packs none
        lambda weights: bnb.optim.AdamW8bit(weights, lr=0.01, weight_decay=0.1),
    ],
    ids=["torch", "fused", "bitsandbytes"],
)
def test_an_adamw_steps_as_defined(make):
    adamw = followed(make)
    assert adamw.gap < 1e-5  # in the first three steps
    assert adamw.late_gap < 1e-4  # in the 19th


@pytest.mark.parametrize("kind", [torch.optim.AdamW, bnb.optim.AdamW8bit])
def test_a_late_step_shows_a_count_that_stopped_at_16(kind):
    def stopped(weights):
        optimizer = kind(weights, lr=0.01)
        step = optimizer.step

        def step_of_16_at_most():
            for state in optimizer.state.values():
                state["step"] = min(state["step"], 0 * state["step"] + 15)  # a tensor, or a number
            step()

        optimizer.step = step_of_16_at_most
        return optimizer

    sound = followed(lambda weights: kind(weights, lr=0.01), size=(64, 128))
    broken = followed(stopped, size=(64, 128))
    assert sound.gap == broken.gap
    assert sound.late_gap < 1e-4 < 1e-3 < broken.late_gap
    assert sound.packed is (kind is bnb.optim.AdamW8bit)


@pytest.mark.parametrize(
    ("make", "updates"),
    [
        (lambda weights: torch.optim.AdamW(weights, lr=0.01), 2),
        (lambda weights: torch.optim.SGD(weights, lr=0.01), 3),
        (lambda weights: torch.optim.AdamW(weights, lr=0.01, amsgrad=True), 3),
    ],
    ids=["fewer steps", "SGD", "amsgrad"],
)
def test_fewer_steps_and_other_optimizers_have_no_gap(make, updates):
    assert followed(make, updates).gap is None


def test_an_optimizer_that_is_followed_from_its_third_step_has_no_gap():
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.ones(2)
    adamw = AdamW(torch.optim.AdamW([weight]), {"weight": weight})
    adamw.before_step(2, 4)
    adamw.after_step(2)
    assert adamw.gap is None
