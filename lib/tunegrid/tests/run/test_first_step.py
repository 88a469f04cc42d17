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
from tunegrid.tests.small import fine_tuner, quick_cell, read_rows, silent, train_rows

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
def test_a_parameter_belongs_to_the_group_of_its_layer_or_of_the_method_that_added_it(
    cell_id, name, group
):
    cell = quick_cell(cell_id)
    assert names_by_group(cell, nn.Linear(1, 1), [name]) == {group: [name]}
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight"
    assert quick_cell("gpt2_sa_lora").method.group_name(name) == "lora_B"


# Before training


@pytest.fixture
def trainer():
    return fine_tuner(
        "bert_sa_lora",
        REVIEWS,
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
    )


@pytest.mark.parametrize(("bias", "count"), [(0.0, 1), (3e-8, 1), (9e-7, 1), (2e-6, 2)])
def test_a_gradient_that_is_zero_but_for_rounding_is_none(bias, count):
    """The bias of a span's head: whichever of its values is rounded to zero, the count is the
    same.
    """
    groups = {"head": ["weight", "bias"]}
    gradients = {"weight": torch.tensor([0.0, 1.0]), "bias": torch.tensor([bias])}
    _, reached, rounding = gradient_figures(groups | {"other": ["c"]}, gradients)
    assert reached == {"head": count, "other": 0}
    assert rounding == ({"bias"} if count == 1 else set())
    zeros = {"a": torch.zeros(2), "b": torch.zeros(2)}
    # All of a group
    assert gradient_figures({"lora_A": ["a", "b"]}, zeros) == (
        {"lora_A": 0.0},
        {"lora_A": 0},
        set(),
    )


def test_what_moves_by_rounding_alone_is_no_movement():
    """AdamW gives the bias, whose gradient is rounding, as long a step as the weight."""
    trainer = fine_tuner("bert_qa_sft", QUESTIONS)
    parameters = {
        name: p for name, p in trainer.parameters.items() if name.startswith("qa_outputs")
    }
    for name, parameter in parameters.items():
        parameter.grad = torch.full_like(parameter, 1e-9 if name.endswith("bias") else 1.0)
    first = FirstUpdates(trainer.cell, trainer.model, parameters)
    first.gradients(torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter += 7.0 if name.endswith("bias") else 0.5
    [weight] = [p for name, p in parameters.items() if name.endswith("weight")]
    assert first.movement()["moved"]["head"] == pytest.approx(0.5 * weight.numel() ** 0.5, rel=1e-5)


def test_a_probe_that_does_not_fit_leaves_no_figures(monkeypatch):
    trainer = fine_tuner("t5_sum_lora", NEWS)
    fits = before_training(trainer, Metrics(), NEWS)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = trainer.model.register_forward_pre_hook(full)
    figures = before_training(trainer, Metrics(), NEWS)
    handle.remove()
    absent = (
        "probe_loss",
        "probe_reached",
        "computed",
        "probe",
        "generated",
        "decoded",
        "tokens_read",
    )
    assert [figures[name] for name in absent] == [None] * 7
    assert figures["probe_gradients"] == {}
    assert figures["weights"] == fits["weights"], "the others are taken"
    assert before_training(trainer, Metrics(), NEWS) == fits


def test_weights_that_start_rounded_to_16_bits_are_told_by_their_values():
    trainer = fine_tuner("bert_sa_qlora", REVIEWS)
    before = before_training(trainer, Metrics(), REVIEWS)["digits"]
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            if "lora_A" in name:
                parameter.copy_(torch.rand_like(parameter).bfloat16().float() + 2**-20)
    drawn = before_training(trainer, Metrics(), REVIEWS)["digits"]
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            if "lora_A" in name:
                parameter.copy_(parameter.bfloat16())
    rounded = before_training(trainer, Metrics(), REVIEWS)["digits"]
    assert drawn["lora_A"] == "float32"
    assert rounded["lora_A"] == "bfloat16"
    assert before.keys() == rounded.keys()


def test_what_trains_in_bf16_over_a_base_in_fp32_is_probed_in_fp32():
    of_modules = []
    trainer = fine_tuner("gpt2_sa_lora", REVIEWS, precision="fp32")
    plain = before_training(trainer, Metrics(), REVIEWS, of_modules.append)
    trainer = fine_tuner("gpt2_sa_lora", REVIEWS, precision="bf16")
    bf16 = before_training(trainer, Metrics(), REVIEWS, of_modules.append)
    assert plain["probe"] != bf16["probe"]  # so that no probe under autocast is compared with it
    assert plain["probe_loss"] == bf16["probe_loss"]
    assert plain["probe_gradients"] == bf16["probe_gradients"]
    assert of_modules[0] == of_modules[1]


@pytest.mark.parametrize("cached", [True, False])
def test_the_tokens_that_a_search_reads_are_counted(cached, monkeypatch):
    """Of two rows with three beams each: prompts, then all that is not in the cache; and each text
    in one pass.
    """
    generate = hf.GenerationMixin.generate
    monkeypatch.setattr(
        hf.GenerationMixin, "generate", lambda *a, **o: generate(*a, **o | {"use_cache": cached})
    )
    trainer = fine_tuner("gpt2_sum_lora", NEWS)
    rows = spread_features(trainer.features, 4)
    lengths = [len(row.input_ids) for row in (rows[0], rows[-1])]
    cap = trainer.codec.generation.max_new_tokens
    steps = [
        max(lengths),
        *([1] * (cap - 1) if cached else [max(lengths) + step for step in range(1, cap)]),
    ]
    whole = [3 * (length + cap) for length in lengths]
    assert before_training(trainer, Metrics(), NEWS)["tokens_read"] == 6 * sum(steps) + sum(whole)


# A training run that pauses after its first updates is the beginning of the whole run, and
# continues to its end.

CELL = "bert_sa_lora"  # with dropout, and a schedule that warms up
EPOCHS = {"num_train_epochs": 2, "max_steps": 0}


def trained(*pauses, **changes):
    """A trainer that was asked for its first updates so many times, and the records of these."""
    trainer = fine_tuner(CELL, train_rows(CELL)[:48], **changes)
    return trainer, [trainer.run(silent(), score, first_updates=count) for count in pauses]


def score():
    return 50.0 + torch.rand(1).item(), []  # a validation may draw random numbers


@pytest.mark.parametrize(
    "count", [1, 3, 4], ids=["within the warm-up", "at an epoch's end", "in the second epoch"]
)
def test_first_updates_are_those_of_a_whole_run(count):
    whole, _ = trained(**EPOCHS)
    all_of_it = whole.run(silent(), score)
    assert all_of_it.updates == 6
    paused, [first] = trained(count, **EPOCHS)
    assert paused.paused
    assert first.losses == all_of_it.losses[:count]
    assert first.order == all_of_it.order  # of the rows of the whole run, as planned
    assert paused.log.learning_rates == whole.log.learning_rates[:count]


# AdamW by its definition: steps worked out by hand, and which optimizers are followed.


def followed(make, updates=3, size=(8, 4)):
    """What is said of an optimizer after some updates of two weights, of which one has no
    gradient.
    """
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


def gap(make, updates=3):
    return followed(make, updates).gap


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
    assert gap(make) < 1e-5
    assert followed(make, updates=24).late_gap < 1e-4  # the 19th


@pytest.mark.parametrize("kind", [torch.optim.AdamW, bnb.optim.AdamW8bit])
def test_a_late_step_shows_a_count_that_stopped_at_16(kind):
    def stopped(weights):
        optimizer = kind(weights, lr=0.01)
        step = optimizer.step

        def counted():
            for state in optimizer.state.values():
                state["step"] = min(state["step"], 0 * state["step"] + 15)  # a tensor, or a number
            step()

        optimizer.step = counted
        return optimizer

    sound = followed(lambda weights: kind(weights, lr=0.01), 24, (64, 128))
    broken = followed(stopped, 24, (64, 128))
    assert sound.gap == broken.gap
    assert sound.late_gap < 1e-4 < 1e-3 < broken.late_gap
    assert sound.packed is (kind is bnb.optim.AdamW8bit)


def test_fewer_steps_other_optimizers_and_a_start_in_the_middle_say_nothing():
    assert gap(lambda weights: torch.optim.AdamW(weights, lr=0.01), updates=2) is None
    assert gap(lambda weights: torch.optim.SGD(weights, lr=0.01)) is None
    assert gap(lambda weights: torch.optim.AdamW(weights, lr=0.01, amsgrad=True)) is None
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.ones(2)
    adamw = AdamW(torch.optim.AdamW([weight]), {"weight": weight})
    adamw.before_step(2, 4)
    adamw.after_step(2)
    assert adamw.gap is None
