from dataclasses import replace
from random import Random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tunegrid.codecs.base import Feature, token_counts
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.recipes import FOOTPRINT_CPU_PROFILE
from tunegrid.record.record import Ledger
from tunegrid.run import footprint
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.footprint import (
    Footprint,
    TensorBytes,
    complete,
    matmul_peak,
    trace,
    uncounted,
    wrong_bytes,
    wrong_counts,
    wrong_savings,
)
from tunegrid.run.prepare import codec_of, synthetic_features
from tunegrid.tests.small import CPU, rows_of, silent, still, trainer_of

CELLS = {cell.id: cell for cell in STUDY.cells(FOOTPRINT_CPU_PROFILE)}
REVIEWS = rows_of("amazon_polarity/train")[:16]


def codec_for(cell_id):
    return codec_of(CELLS[cell_id], load_tokenizer(CELLS[cell_id]))


# Synthetic rows


@pytest.mark.parametrize("cell_id", STUDY_IDS)
def test_synthetic_rows_fill_the_recipes_lengths(cell_id):
    codec, recipe = codec_for(cell_id), CELLS[cell_id].recipe
    features = synthetic_features(CELLS[cell_id], codec)
    assert len(features) == recipe.max_steps
    batch = codec.collate(features[:2])
    separate = "decoder_input_ids" in batch
    assert token_counts(batch) == (2 * (recipe.max_length + (recipe.max_target_length if separate else 0)),) * 2
    assert int(batch["input_ids"].max()) < CELLS[cell_id].backbone.vocabulary + 1


def test_synthetic_answers_lie_in_the_window():
    codec = codec_for("bert_qa_sft")
    for feature in (codec.synthetic(Random(seed)) for seed in range(50)):
        window = feature.extra
        assert window.shift <= feature.target[0] == feature.target[1] < window.shift + len(window.offsets)
        assert feature.input_ids[0] == 101
        assert feature.input_ids[window.shift - 1] == feature.input_ids[-1] == 102


def test_synthetic_words_are_no_special_tokens():
    tokenizer = load_tokenizer(CELLS["gpt2_sum_lora"])
    assert tokenizer.convert_tokens_to_ids("<sum>") == 50_257
    assert len(tokenizer) == 50_258
    assert not {50_256, 50_257} & set(tokenizer.draw(Random(0), 200_000))


# FLOPs


def gpt2(cell_id, **changes):
    trainer = trainer_of(cell_id, REVIEWS, max_steps=4, per_device_train_batch_size=1, gradient_accumulation_steps=1, **changes)
    trainer.features = [Feature(example=i, input_ids=[5 + i] * 64, target=1) for i in range(4)]
    return trainer


def test_flops_of_an_update_worked_out_from_the_layers():
    # A layer of micro GPT-2, 64 tokens, 128 wide: c_attn 128 x 384, c_proj 128 x 128, mlp 128 x 512 twice; attention takes
    # 64 x 64 x 128 twice. Two FLOPs a product; three layers; score is 128 x 2; backward is twice forward.
    layer = 2 * 64 * (128 * 384 + 128 * 128 + 2 * 128 * 512) + 2 * 2 * 64 * 64 * 128
    assert trace(gpt2("gpt2_sa_sft"), 0).flops_per_step == 3 * (3 * layer + 2 * 64 * 128 * 2)


def test_lora_saves_the_frozen_weights_gradients_and_packed_weights_take_the_same_products():
    full, lora, qlora = (trace(gpt2(f"gpt2_sa_{method}"), 0).flops_per_step for method in ("sft", "lora", "qlora"))
    assert full / 2 < lora == qlora < full * 0.8


def test_fused_attention_counts_alike_on_every_device():
    # Two rows, 4 heads, 5 queries and 7 keys of 8 values: two products of 2 x 4 x 5 x 7 x 8, two FLOPs each.
    query, key = (2, 4, 5, 8), (2, 4, 7, 8)
    forward = 2 * (2 * 2 * 4 * 5 * 7 * 8)
    aten = torch.ops.aten
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu"):
        ahead, back = (getattr(aten, f"_scaled_dot_product_{kernel}{end}") for end in ("", "_backward"))
        assert uncounted()[ahead](query, key, key, None, 0.0) == forward
        assert uncounted()[back](query, query, key, key) == 2 * forward


def test_the_trace_leaves_attention_as_training_has_it(monkeypatch):
    trainer, kernels = gpt2("gpt2_sa_sft"), []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kernels.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    with Seen():
        trace(still(trainer), 0)
    assert torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in kernels
    assert not {torch.ops.aten._softmax, torch.ops.aten._safe_softmax}.intersection(kernels)


def test_timed_updates_go_on_behind_the_traced_ones():
    trainer = gpt2("gpt2_sa_sft", lr_scheduler_type="cosine", warmup_ratio=0.0)
    trainer.features *= 2
    trace(trainer, 0)
    training, rates = trainer.run(silent()), trainer.log.learning_rates
    assert (training.updates, len(training.losses), len(rates)) == (4, 4, 4)
    assert training.final_learning_rate == rates[-1] == min(rates)


def test_the_products_peak_is_of_random_numbers(monkeypatch):
    matrices, multiply = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda one, other: (matrices.append(one), multiply(one, other))[1])
    monkeypatch.setitem(footprint.MATRIX, "cpu", 64)
    states = torch.get_rng_state()
    matmul_peak.__wrapped__(CPU, "fp32")
    assert matrices[0].std() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(torch.get_rng_state(), states)


# Bytes


@pytest.mark.parametrize("cell_id", ["gpt2_sa_sft", "gpt2_sa_lora", "gpt2_sa_qlora"])
def test_the_tensors_held_after_a_step_are_the_ledgers_to_the_byte(cell_id):
    trainer = gpt2(cell_id)
    traced = trace(trainer, 0)
    ledger = complete(trainer.log.ledger, traced)
    rest = ledger.weights_bytes + ledger.gradients_bytes + ledger.optimizer_bytes
    assert traced.live_bytes == rest
    assert ledger.activations_bytes == traced.peak_bytes - rest >= 0


def test_a_tensor_that_is_kept_is_counted_and_one_that_is_dropped_is_not():
    weight = torch.zeros(100)
    with TensorBytes([weight]) as counter:
        assert counter.live == 400
        kept = weight + 1
        dropped = kept * 2
        assert (counter.live, counter.peak) == (1200, 1200)
        del dropped
        assert counter.live == 800
        view = kept[:50]
        ids = torch.arange(1000)
        assert counter.live == 800
    assert counter.peak == 1200
    assert (len(view), len(ids)) == (50, 1000)


def test_a_model_that_hoards_tensors_breaks_the_sum():
    trainer = gpt2("gpt2_sa_sft")
    hoard = []
    trainer.model.score.register_forward_hook(lambda module, args, output: hoard.append(output * 2))
    traced = trace(trainer, 0)
    [sentence] = wrong_bytes(trainer.log.ledger, traced, CPU)
    assert sentence.startswith("the ledger holds ")
    assert traced.live_bytes - trainer.log.ledger.tensor_bytes == 512


# Expectations


def ledger_of(weights, gradients, moments):
    rest = dict.fromkeys(("checkpoint_bytes", "activations_bytes", "peak_bytes"))
    return Ledger(weights_bytes=weights, gradients_bytes=gradients, optimizer_bytes=moments, **rest)


TOTAL = 124_441_344 + 294_912  # GPT-2 with its score, and LoRA's parameters
PLAIN, FULL = 4 * TOTAL, 3 * 4 * TOTAL


@pytest.mark.parametrize(
    ("cell_id", "sizes", "more", "said"),
    [
        ("gpt2_sa_qlora", (10**8, 10**6, 2 * 10**6), 0, []),
        ("gpt2_sa_sft", (5 * 10**8, 5 * 10**8, 10**9), 0, []),
        ("gpt2_sa_sft", (100, 10, 20), 1, ["the ledger holds 130 bytes, the device 131"]),
        ("gpt2_sa_qlora", (PLAIN, 0, 0), 0, [f"quantized weights take {PLAIN:,} bytes, unquantized ones {PLAIN:,}"]),
        (
            "gpt2_sa_lora",
            (5 * 10**8, FULL // 20 + 1, 0),
            0,
            [f"gradients and optimizer take {FULL // 20 + 1:,} bytes, those of full fine-tuning {FULL:,}"],
        ),
    ],
)
def test_bytes_that_are_not_as_expected_are_mentioned(cell_id, sizes, more, said):
    ledger = ledger_of(*sizes)
    traced = Footprint(flops_per_step=1, matmul_flops_per_second=1.0, live_bytes=sum(sizes) + more, peak_bytes=0)
    assert wrong_bytes(ledger, traced, CPU) + wrong_savings(CELLS[cell_id], ledger, TOTAL) == said


def test_over_a_base_in_bf16_unquantized_weights_take_two_bytes():
    cell = CELLS["gpt2_sa_qlora"]
    cell = replace(cell, backbone=replace(cell.backbone, dtype="bfloat16"), recipe=replace(cell.recipe, precision="bf16"))
    said = f"quantized weights take {2 * TOTAL:,} bytes, unquantized ones {2 * TOTAL:,}"
    assert wrong_savings(cell, ledger_of(2 * TOTAL, 0, 0), TOTAL) == [said]


def test_other_counts_than_the_recipes_are_mentioned():
    cell = CELLS["bert_sa_sft"]
    model = build(cell, load_tokenizer(cell), torch.device("meta"))
    assert wrong_counts(cell, model) == []
    other = replace(cell, recipe=replace(cell.recipe, trainable_params=109_483_779))
    assert wrong_counts(other, model) == ["109,483,778 parameters train, the recipe says 109,483,779"]
