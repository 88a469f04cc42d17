"""Figures of the first step: groups of parameters, what is probed before training, and what the first updates leave."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.run.first_updates import FirstUpdates, digest, figure, gradient_figures, groups_of, norms, sample
from tunegrid.run.metrics import Metrics
from tunegrid.run.probe import FIRST_ROWS, PROBED, before_training, fixed_answers, hooked, short_to_long
from tunegrid.tests.small import cell_of, codec_for, rows_of, scaled_late, silent, trainer_of

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


def test_a_generating_cell_says_what_its_untrained_model_generates():
    trainer = trainer_of("t5_sum_lora", NEWS)
    one = before_training(trainer, Metrics(), NEWS)["generated"]
    with torch.no_grad():
        trainer.parameters[next(name for name in trainer.parameters if "shared" in name)].mul_(-1)
    assert one
    assert one != before_training(trainer, Metrics(), NEWS)["generated"]


def test_a_search_that_goes_wrong_from_the_eleventh_token_on_is_seen_before_training():
    trainer = trainer_of("gpt2_sum_sft", NEWS)
    sound = before_training(trainer, Metrics(), NEWS)
    assert sound["decoded"] < 1e-5
    with scaled_late(trainer.model, first=11):
        assert before_training(trainer, Metrics(), NEWS)["decoded"] > 5e-3
    assert before_training(trainer_of("bert_sa_lora", REVIEWS), Metrics(), REVIEWS)["decoded"] is None


def test_an_encoder_block_without_gradients_is_counted():
    trainer = trainer_of("t5_sum_qlora", NEWS)
    [block] = [m for name, m in trainer.model.named_modules() if name.endswith("encoder.block.0")]
    sound = before_training(trainer, Metrics(), NEWS)["probe_reached"]
    block.register_forward_hook(lambda module, inputs, output: (output[0].detach(), *output[1:]))
    broken = before_training(trainer, Metrics(), NEWS)["probe_reached"]
    assert sound["lora_B"] - broken["lora_B"] == sum("lora_B" in name for name, _ in block.named_parameters())
    assert sound["lora_A"] == broken["lora_A"] == 0  # B starts at zero


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


def test_the_type_that_a_packed_base_computes_in_is_a_figure():
    trainer = trainer_of("t5_sa_qlora", REVIEWS)
    assert set(before_training(trainer, Metrics(), REVIEWS)["computed"].values()) == {"bfloat16"}
    for layer in trainer.model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.compute_dtype = torch.float32
    assert set(before_training(trainer, Metrics(), REVIEWS)["computed"].values()) == {"float32"}

    with torch.autocast("cpu", torch.bfloat16):  # a matter of the layers, not of the precision of training
        assert set(before_training(trainer, Metrics(), REVIEWS)["computed"].values()) == {"float32"}


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
    absent = ("probe_loss", "probe_reached", "computed", "probe", "generated", "decoded")
    assert [figures[name] for name in absent] == [None] * 6
    assert figures["probe_gradients"] == {}
    assert figures["weights"] == fits["weights"], "the others are taken"
    assert before_training(trainer, Metrics(), NEWS) == fits


def test_the_probes_search_is_no_longer_than_a_target():
    search = replace(cell_of("bert_sum_lora").recipe.generation, max_new_tokens=300)  # the decoder has 256 positions
    trainer = trainer_of("bert_sum_lora", NEWS, generation=search)
    assert before_training(trainer, Metrics(), NEWS) == before_training(trainer_of("bert_sum_lora", NEWS), Metrics(), NEWS)


# What the probes cover


@cache
def training_features(backbone, task, lengths):
    """The training features of the cells that share a backbone, a task and lengths."""
    rows = rows_of({"sa": "amazon_polarity/train", "qa": "squad/train", "sum": "cnn_dailymail/train"}[task])
    return codec_for(f"{backbone}_{task}_sft").encode(rows, training=True)


@pytest.mark.parametrize("cell_id", STUDY_IDS)
def test_probes_have_short_and_long_and_padded_rows_and_reach_the_cap(cell_id):
    """Of all 27 cells: what a padding mask, truncation, a window and a late step of decoding need to be seen."""
    cell = cell_of(cell_id)
    features = training_features(cell.backbone.id, cell.task.id, (cell.recipe.max_length, cell.recipe.doc_stride))
    lengths = sorted(len(feature.input_ids) for feature in features)
    probe = [len(row.input_ids) for row in short_to_long(features, PROBED)]
    assert (probe[0], probe[-1]) == (lengths[0], lengths[-1])
    assert probe[0] <= 0.7 * probe[-1], "the short row has padding beside the long one"
    lengths = [len(row.input_ids) for row in short_to_long(features[:FIRST_ROWS], 2)]
    assert lengths[0] < lengths[1], "and so it has in the audits that ask the trained model again"
    if cell.recipe.generation:
        cap, start = cell.recipe.generation.max_new_tokens, probe if cell.backbone.id == "gpt2" else [1]
        assert cap > 16, "wherever a prompt ends, its text crosses a multiple of 16"
        assert all(any((length + step) % 16 == 0 for step in range(cap)) for length in start)


def test_fixed_answers_are_scored_and_a_spoiled_text_lacks_every_third_word():
    rows = [{"content": "x", "label": label} for label in (0, 1, 1, 1)]  # answers are 0, 1, 0, 1
    assert fixed_answers(cell_of("bert_sa_sft").task, Metrics(), rows)["accuracy"] == 75.0
    row = {"article": "", "highlights": "one two three four five six"}  # spoiled: the two three five six
    assert fixed_answers(cell_of("t5_sum_sft").task, Metrics(), [row])["rouge1"] == pytest.approx(100 * 8 / 11)
    for values in ([], [([1, 2], 0)], [([1, 2], (3, 4)), ([5], [6, 7])]):
        assert digest(iter(values)) == digest(values)


# The first updates


def test_the_first_updates_leave_gradients_after_clipping_and_movement(trainer):
    start = trained_of(trainer)
    training, figures = trainer.run(silent()), trainer.log.first_step
    assert math.hypot(*figures["gradients"].values()) == pytest.approx(training.clipped_norm, rel=1e-5)
    now = trained_of(trainer)
    apart = float(torch.nn.utils.get_total_norm([now[name] - start[name] for name in start]))
    assert math.hypot(*figures["moved"].values()) == pytest.approx(apart, rel=1e-5)


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
