"""Figures of the first step: groups of parameters, what is probed before training, and what the first updates leave."""

import math

import pytest
import torch

from lib.run.first_updates import sampled
from lib.run.groups import digest, digest_of, figure, group_of, norms
from lib.run.metrics import Metrics
from lib.run.probe import fixed_answers, probed, spoiled
from lib.tests.small import cell_of, rows_of, silent, trainer_of

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
def test_a_parameter_belongs_to_the_group_of_its_layer(cell_id, name, group):
    assert group_of(name, cell_of(cell_id), ()) == group


def test_what_the_method_added_is_in_the_methods_groups():
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight"
    assert group_of(name, cell_of("gpt2_sa_lora"), {name}) == "lora_B"


def test_norms_are_over_all_tensors_of_a_group():
    tensors = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "c": torch.tensor([2.0])}
    assert norms({"one": ["a", "b"], "other": ["c"], "absent": ["d"]}, tensors.get) == {"one": 5.0, "other": 2.0}


@pytest.mark.parametrize(("value", "shown"), [(1 / 3, 0.333333333), (math.nan, None), (math.inf, None), (0, 0.0)])
def test_a_figure_has_nine_digits_or_is_none(value, shown):
    assert figure(value) == shown


def test_a_large_tensor_is_sampled_evenly():
    [some] = sampled({"a": torch.arange(3 * 4096.0)}).values()
    assert some.tolist() == [3.0 * place for place in range(4096)]


# Before training


@pytest.fixture
def trainer():
    return trainer_of("bert_sa_lora", REVIEWS, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=1)


def test_probing_disturbs_nothing(trainer):
    trainer.model.train()
    before = torch.get_rng_state()
    probed(trainer, Metrics(), REVIEWS)
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in trainer.parameters.values())


def test_probing_twice_gives_the_same(trainer):
    assert probed(trainer, Metrics(), REVIEWS) == probed(trainer, Metrics(), REVIEWS)


def test_the_loss_is_taken_without_dropout(trainer):
    with torch.no_grad():
        batch = trainer.codec.collate(trainer.features[:4])
        expected = float(trainer.codec.loss(trainer.model.eval(), batch)) / trainer.codec.targets(batch)
    assert probed(trainer, Metrics(), REVIEWS)["probe_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_base_in_nf4_says_so_and_its_norms_are_of_the_numbers_it_stands_for():
    packed, plain = (probed(trainer_of(f"bert_qa_{method}", QUESTIONS), Metrics(), QUESTIONS) for method in ("qlora", "lora"))
    assert packed["types"]["encoder 0 MLP"] == "bfloat16, nf4 in blocks of 64, scales packed"  # its biases are bf16
    assert plain["types"]["encoder 0 MLP"] == "float32"
    assert packed["weights"]["encoder 0 MLP"] == pytest.approx(plain["weights"]["encoder 0 MLP"], rel=0.02)


def test_a_generating_cell_says_what_its_untrained_model_generates():
    trainer = trainer_of("t5_sum_lora", NEWS)
    one = probed(trainer, Metrics(), NEWS)["generated"]
    with torch.no_grad():
        trainer.parameters[next(name for name in trainer.parameters if "shared" in name)].mul_(-1)
    assert one
    assert one != probed(trainer, Metrics(), NEWS)["generated"]


# Fixed answers


def test_a_spoiled_text_lacks_every_third_word():
    row = {"article": "", "highlights": "one two three four five six"}
    assert spoiled(cell_of("t5_sum_sft").task, row, 0) == "the two three five six"
    assert spoiled(cell_of("t5_sum_sft").task, row, 2) == "the one three four six"


def test_fixed_answers_are_scored():
    rows = [{"content": "x", "label": label} for label in (0, 1, 1, 1)]  # answers are 0, 1, 0, 1
    assert fixed_answers(cell_of("bert_sa_sft").task, Metrics(), rows)["accuracy"] == 75.0


# The first updates


def test_the_first_updates_leave_gradients_after_clipping_and_movement(trainer):
    start = sampled({name: p for name, p in trainer.parameters.items() if p.requires_grad})
    course = trainer.run(silent())
    assert math.hypot(*course.first_step["gradients"].values()) == pytest.approx(course.clipped_norm, rel=1e-5)
    now = sampled({name: trainer.parameters[name] for name in start})
    apart = float(torch.nn.utils.get_total_norm([now[name] - start[name] for name in start]))
    assert math.hypot(*course.first_step["moved"].values()) == pytest.approx(apart, rel=1e-5)


def test_movement_is_that_of_the_first_three_updates_of_more():
    """Later updates move weights on, and say nothing of the first."""
    trainer = trainer_of("bert_sa_lora", REVIEWS, max_steps=5, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    start = sampled({name: p for name, p in trainer.parameters.items() if p.requires_grad})
    after = []
    trainer.after_update = lambda trainer: after.append(sampled({name: trainer.parameters[name] for name in start}))
    moved = trainer.run(silent()).first_step["moved"]
    apart = [float(torch.nn.utils.get_total_norm([now[name] - start[name] for name in start])) for now in after]
    assert math.hypot(*moved.values()) == pytest.approx(apart[2], rel=1e-5)
    assert apart[4] > 1.1 * apart[2]


def test_a_run_taken_up_again_keeps_the_figures_of_its_first_updates(trainer):
    trainer.course.first_step |= probed(trainer, Metrics(), REVIEWS)
    trainer.run(silent())
    other = trainer_of("bert_sa_lora", REVIEWS, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    other.load_state_dict(trainer.state_dict())
    assert other.course.first_step == trainer.course.first_step


def test_a_digest_taken_value_by_value_is_that_of_the_list():
    for values in ([], [([1, 2], 0)], [([1, 2], (3, 4)), ([5], [6, 7])]):
        assert digest_of(iter(values)) == digest(values)
