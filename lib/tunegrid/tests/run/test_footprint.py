import pytest

from tunegrid.codecs.base import Feature, token_counts
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FOOTPRINT_CPU_PROFILE
from tunegrid.record.record import Ledger
from tunegrid.run.build import load_tokenizer
from tunegrid.run.footprint import Footprint, complete, trace, wrong_bytes, wrong_savings
from tunegrid.run.prepare import codec_of, synthetic_features
from tunegrid.tests.small import CPU, rows_of, trainer_of

CELLS = {cell.id: cell for cell in STUDY.cells(FOOTPRINT_CPU_PROFILE)}
REVIEWS = rows_of("amazon_polarity/train")[:16]


def codec_for(cell_id):
    return codec_of(CELLS[cell_id], load_tokenizer(CELLS[cell_id]))


# Synthetic rows


@pytest.mark.parametrize("cell_id", ["bert_sa_lora", "bert_sum_sft", "gpt2_sum_qlora", "t5_qa_lora"])
def test_synthetic_rows_fill_the_recipes_lengths(cell_id):
    codec, recipe = codec_for(cell_id), CELLS[cell_id].recipe
    features = synthetic_features(CELLS[cell_id], codec)
    assert len(features) == recipe.max_steps
    batch = codec.collate(features[:2])
    separate = "decoder_input_ids" in batch
    assert token_counts(batch) == (2 * (recipe.max_length + (recipe.max_target_length if separate else 0)),) * 2
    assert int(batch["input_ids"].max()) < CELLS[cell_id].backbone.vocabulary + 1


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


# Bytes


@pytest.mark.parametrize("cell_id", ["gpt2_sa_sft", "gpt2_sa_lora", "gpt2_sa_qlora"])
def test_the_tensors_held_after_a_step_are_the_ledgers_to_the_byte(cell_id):
    trainer = gpt2(cell_id)
    traced = trace(trainer, 0)
    ledger = complete(trainer.log.ledger, traced)
    rest = ledger.weights_bytes + ledger.gradients_bytes + ledger.optimizer_bytes
    assert traced.live_bytes == rest
    assert ledger.activations_bytes == traced.peak_bytes - rest >= 0


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
