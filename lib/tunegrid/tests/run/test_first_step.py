"""Figures of the first step: groups of parameters, what is probed before training, and what the first updates leave."""

import math
from contextlib import contextmanager

import pytest
import torch
import transformers as hf
from torch import nn

from tunegrid.run.first_updates import FirstUpdates, digest, figure, gradient_figures, groups_of, norms, sample
from tunegrid.run.metrics import Metrics
from tunegrid.run.probe import before_training, fixed_answers, hooked, short_to_long
from tunegrid.tests.small import cell_of, rows_of, silent, trainer_of

REVIEWS = rows_of("amazon_polarity/train")[:8]
QUESTIONS = rows_of("squad/train")[:4]
NEWS = rows_of("cnn_dailymail/train")[:4]

# Groups


@pytest.mark.parametrize(
    ("cell_id", "name", "group"),
    [
        ("bert_sa_sft", "bert.encoder.layer.1.attention.self.query.weight", "encoder 1 attention"),
        ("bert_sa_sft", "bert.encoder.layer.1.intermediate.dense.bias", "encoder 1 MLP"),
        ("bert_sa_sft", "bert.encoder.layer.1.attention.output.LayerNorm.weight", "norms"),
        ("bert_sa_sft", "bert.embeddings.word_embeddings.weight", "embeddings"),
        ("bert_sum_sft", "decoder.bert.encoder.layer.0.crossattention.self.key.weight", "decoder 0 cross-attention"),
        ("gpt2_sa_sft", "transformer.h.3.attn.c_attn.weight", "layer 3 attention"),
        ("gpt2_sa_sft", "transformer.h.3.mlp.c_fc.weight", "layer 3 MLP"),
        ("gpt2_sa_sft", "transformer.h.3.ln_1.bias", "norms"),
        ("gpt2_sa_sft", "transformer.ln_f.weight", "norms"),
        ("gpt2_sa_sft", "transformer.wpe.weight", "embeddings"),
        ("gpt2_sa_sft", "score.weight", "head"),
        ("t5_sum_sft", "decoder.block.1.layer.1.EncDecAttention.k.weight", "decoder 1 cross-attention"),
        ("t5_sum_sft", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "biases of position"),
        ("t5_sum_sft", "encoder.block.0.layer.1.DenseReluDense.wo.weight", "encoder 0 MLP"),
        ("t5_sum_sft", "encoder.block.0.layer.1.layer_norm.weight", "norms"),
        ("t5_sum_sft", "shared.weight", "embeddings"),
    ],
)
def test_a_parameter_belongs_to_the_group_of_its_layer_or_of_the_method_that_added_it(cell_id, name, group):
    cell = cell_of(cell_id)
    assert groups_of(cell, nn.Linear(1, 1), [name]) == {group: [name]}
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight"
    assert cell_of("gpt2_sa_lora").method.group_of(name) == "lora_B"


def test_norms_are_over_all_tensors_of_a_group():
    assert norms({"one": ["a", "b"], "other": ["c"], "absent": ["d"]}, {"a": 3.0, "b": 4.0, "c": 2.0}) == {
        "one": 5.0,
        "other": 2.0,
    }
    [some] = sample({"a": torch.arange(3 * 4096.0)}).values()  # a large one is sampled evenly
    assert some.tolist() == [3.0 * index for index in range(4096)]
    assert [figure(value) for value in (1 / 3, math.nan, math.inf, 0)] == [0.333333333, None, None, 0.0]


# Before training


@pytest.fixture
def trainer():
    return trainer_of("bert_sa_lora", REVIEWS, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=1)


def test_probing_disturbs_nothing_and_takes_the_loss_without_dropout(trainer):
    trainer.model.train()
    before = torch.get_rng_state()
    figures = before_training(trainer, Metrics(), REVIEWS)
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in trainer.parameters.values())
    with torch.no_grad():
        batch = trainer.codec.collate(short_to_long(trainer.features, 4))
        expected = float(trainer.codec.loss(trainer.model.eval(), batch)) / trainer.codec.targets(batch)
    assert figures["probe_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_base_in_nf4_says_so_and_its_norms_are_of_the_numbers_it_stands_for():
    packed, plain = (
        before_training(trainer_of(f"bert_qa_{method}", QUESTIONS), Metrics(), QUESTIONS) for method in ("qlora", "lora")
    )
    assert packed["types"]["encoder 0 MLP"] == "bfloat16, nf4 in blocks of 64, scales packed"  # its biases are bf16
    assert plain["types"]["encoder 0 MLP"] == "float32"
    assert packed["weights"]["encoder 0 MLP"] == pytest.approx(plain["weights"]["encoder 0 MLP"], rel=0.02)


@pytest.mark.parametrize(("bias", "count"), [(0.0, 1), (3e-8, 1), (9e-7, 1), (2e-6, 2)])
def test_a_gradient_that_is_zero_but_for_rounding_is_none(bias, count):
    """The bias of a span's head: whichever of its values is rounded to zero, the count is the same."""
    groups, gradients = {"head": ["weight", "bias"]}, {"weight": torch.tensor([0.0, 1.0]), "bias": torch.tensor([bias])}
    _, reached, rounding = gradient_figures(groups | {"other": ["c"]}, gradients)
    assert (reached, rounding) == ({"head": count, "other": 0}, {"bias"} if count == 1 else set())
    zeros = {"a": torch.zeros(2), "b": torch.zeros(2)}
    assert gradient_figures({"lora_A": ["a", "b"]}, zeros) == ({"lora_A": 0.0}, {"lora_A": 0}, set())  # all of a group


def test_what_moves_by_rounding_alone_is_no_movement():
    """AdamW gives the bias, whose gradient is rounding, as long a step as the weight."""
    trainer = trainer_of("bert_qa_sft", QUESTIONS)
    parameters = {name: p for name, p in trainer.parameters.items() if name.startswith("qa_outputs")}
    for name, parameter in parameters.items():
        parameter.grad = torch.full_like(parameter, 1e-9 if name.endswith("bias") else 1.0)
    first = FirstUpdates(trainer.cell, trainer.model, parameters)
    first.gradients(torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter += 7.0 if name.endswith("bias") else 0.5
    [weight] = [p for name, p in parameters.items() if name.endswith("weight")]
    assert first.movement()["moved"]["head"] == pytest.approx(0.5 * weight.numel() ** 0.5, rel=1e-5)


@contextmanager
def passes_of(trainer):
    """Meanwhile the numbers of rows of the model's passes."""
    rows = []
    with hooked([trainer.model], lambda module, inputs, output: rows.append(len(output.logits))):
        yield rows


def test_the_probe_takes_no_more_rows_at_once_than_training():
    at_once, one_by_one = (
        trainer_of("bert_sa_lora", REVIEWS, max_steps=3, per_device_train_batch_size=size) for size in (4, 1)
    )
    whole = before_training(at_once, Metrics(), REVIEWS)
    with passes_of(one_by_one) as rows:
        pieces = before_training(one_by_one, Metrics(), REVIEWS)
    assert rows == [1] * 9  # the fifth with dropout, the last four to predict them
    assert pieces["probe_loss"] == pytest.approx(whole["probe_loss"], rel=1e-6)
    assert pieces["probe_gradients"] == pytest.approx(whole["probe_gradients"], rel=1e-4, abs=1e-9)
    assert pieces["probe_reached"] == whole["probe_reached"]


def test_a_probe_that_does_not_fit_leaves_no_figures(monkeypatch):
    trainer = trainer_of("t5_sum_lora", NEWS)
    fits = before_training(trainer, Metrics(), NEWS)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = trainer.model.register_forward_pre_hook(full)
    figures = before_training(trainer, Metrics(), NEWS)
    handle.remove()
    absent = ("probe_loss", "probe_reached", "computed", "probe", "generated", "decoded", "tokens_read")
    assert [figures[name] for name in absent] == [None] * 7
    assert figures["probe_gradients"] == {}
    assert figures["weights"] == fits["weights"], "the others are taken"
    assert before_training(trainer, Metrics(), NEWS) == fits


def test_what_trains_in_bf16_over_a_base_in_fp32_is_probed_in_fp32():
    of_modules = []
    plain, bf16 = (
        before_training(trainer_of("gpt2_sa_lora", REVIEWS, precision=precision), Metrics(), REVIEWS, of_modules.append)
        for precision in ("fp32", "bf16")
    )
    assert plain["probe"] != bf16["probe"]  # so that no probe under autocast is compared with it
    assert (plain["probe_loss"], plain["probe_gradients"]) == (bf16["probe_loss"], bf16["probe_gradients"])
    assert of_modules[0] == of_modules[1]


@pytest.mark.parametrize("cached", [True, False])
def test_the_tokens_that_a_search_reads_are_counted(cached, monkeypatch):
    """Of two rows with three beams each: prompts, then all that is not in the cache; and each text in one pass."""
    generate = hf.GenerationMixin.generate
    monkeypatch.setattr(hf.GenerationMixin, "generate", lambda *a, **o: generate(*a, **o | {"use_cache": cached}))
    trainer = trainer_of("gpt2_sum_lora", NEWS)
    rows = short_to_long(trainer.features, 4)
    lengths, cap = [len(row.input_ids) for row in (rows[0], rows[-1])], trainer.codec.generation.max_new_tokens
    steps = [max(lengths), *([1] * (cap - 1) if cached else [max(lengths) + step for step in range(1, cap)])]
    whole = [3 * (length + cap) for length in lengths]
    assert before_training(trainer, Metrics(), NEWS)["tokens_read"] == 6 * sum(steps) + sum(whole)


# What the probes cover


def test_fixed_answers_are_scored_and_a_spoiled_text_lacks_every_third_word():
    rows = [{"content": "x", "label": label} for label in (0, 1, 1, 1)]  # answers are 0, 1, 0, 1
    assert fixed_answers(cell_of("bert_sa_sft").task, Metrics(), rows)["accuracy"] == 75.0
    row = {"article": "", "highlights": "one two three four five six"}  # spoiled: the two three five six
    assert fixed_answers(cell_of("t5_sum_sft").task, Metrics(), [row])["rouge1"] == pytest.approx(100 * 8 / 11)
    for values in ([], [([1, 2], 0)], [([1, 2], (3, 4)), ([5], [6, 7])]):
        assert digest(iter(values)) == digest(values)


# The first updates


def trained_of(trainer):
    return sample({name: p for name, p in trainer.parameters.items() if p.requires_grad})


def test_movement_is_that_of_the_first_three_updates_of_more():
    """Later updates move weights on, and say nothing of the first."""
    after, cut = [], {"max_steps": 5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    trainer = trainer_of("bert_sa_lora", REVIEWS, after_update=lambda trainer: after.append(trained_of(trainer)), **cut)
    start = trained_of(trainer)
    trainer.run(silent())
    moved = trainer.log.first_step["moved"]
    apart = [float(torch.nn.utils.get_total_norm([now[name] - start[name] for name in start])) for now in after]
    assert math.hypot(*moved.values()) == pytest.approx(apart[2], rel=1e-5)
    assert apart[4] > 1.1 * apart[2]


def test_a_run_taken_up_again_keeps_the_figures_of_its_first_updates(trainer):
    trainer.start_from(before_training(trainer, Metrics(), REVIEWS))
    whole = trainer.run(silent()).first_step
    other = trainer_of("bert_sa_lora", REVIEWS, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    other.load_state_dict(trainer.state_dict())
    assert other.part().first_step == whole is not None
