"""Estimates of hours, memory and downloads, with numbers worked out by hand."""

import json
from dataclasses import replace

import pytest

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.lab.costs import cost_rows
from tunegrid.report.costs import (
    CARDS,
    COMMITTED,
    Range,
    card_seconds,
    estimate,
    estimate_costs,
    get_work,
    hub_rows,
)
from tunegrid.tests.records import FOOTPRINT, altered, complete, saved

ROWS = {"train": 1600, "validation": 100, "test": 200}
H100 = CARDS[0]


def full(cell_id, **changes):
    return STUDY.cell(cell_id, replace(FULL_PROFILE, **changes))


def footprint(cell_id="bert_sa_lora"):
    """An update of one row with 1e9 FLOPs, at 2e10 FLOP/s; 409 MiB held, 103 MiB of activations."""
    record = complete(cell_id, **FOOTPRINT)
    recipe = full(cell_id).recipe
    for name in ("max_length", "max_target_length"):
        record = altered(record, f"recipe.{name}", getattr(recipe, name))
    return altered(record, "recipe.per_device_train_batch_size", 1)


def test_hours_are_those_of_arithmetic_or_of_launches():
    work = get_work(full("bert_sa_lora").recipe, ROWS, footprint())
    # Three epochs of 100 updates with 16 rows; three times 100 rows and 200 rows scored, at half.
    assert work.updates == work.micro_batches == 300
    assert work.train_flops == 300 * 16 * 1e9
    assert work.scoring_flops == 500 * 1e9 / 2
    assert card_seconds(work, H100) == pytest.approx((300 * 0.015, 5.05e12 / 98.9e12 + 300 * 0.06))
    heavy = replace(work, train_flops=1e18, scoring_flops=0.0)
    assert card_seconds(heavy, H100) == pytest.approx((0.3e18 / 494.5e12, 1e18 / 98.9e12 + 18))
    # fp32 does not use the tensor cores
    single = replace(heavy, precision="fp32")
    assert card_seconds(single, H100).low == pytest.approx(0.3e18 / 33.5e12)


def test_generating_cells_take_a_step_for_each_token_of_a_batch():
    work = get_work(full("t5_sum_lora").recipe, ROWS, footprint("t5_sum_lora"))
    # A single epoch scores the test rows alone: four batches, each of 128 tokens.
    assert work.generated_steps == 4 * 128
    generating = card_seconds(work, H100)
    silent = card_seconds(replace(work, generated_steps=0), H100)
    assert generating.low - silent.low == pytest.approx(512 * 0.015)
    assert generating.high - silent.high == pytest.approx(512 * 0.06)


def test_a_device_that_was_measured_takes_the_place_of_cards():
    recipe = full("bert_sa_lora").recipe
    result = estimate(recipe, ROWS, footprint(), measured=True)
    # 4.8e12 FLOPs at 2e10 FLOP/s are 240 s; short texts and whole batches can save 85 %.
    assert result.hours == {"a CPU": pytest.approx((240 * 0.3 / 2 / 3600, 240 / 3600))}
    assert result.gib == pytest.approx((409 + 16 * 103) / 1024)


def test_shorter_texts_take_less():
    recipe = full("bert_sa_lora", changes={"max_length": 64}).recipe
    result = estimate(recipe, ROWS, footprint(), measured=True)
    # a quarter of 256 tokens, of which the footprint's row has all
    assert result.hours["a CPU"].high == pytest.approx(240 / 4 / 3600)
    assert result.gib == pytest.approx((409 + 16 * 103 / 4) / 1024)


def test_rows_of_the_hub_are_those_published_less_what_is_set_aside():
    assert hub_rows(full("bert_sa_lora")) == {
        "train": 100_000,
        "validation": 5000,
        "test": 20_000,
    }
    # A tenth of SQuAD's 87,599 rows is set aside, of which 2,000 validate.
    assert hub_rows(full("bert_qa_lora")) == {
        "train": 78_839,
        "validation": 2000,
        "test": 10_570,
    }
    own_test = full("bert_sa_lora", own_test=True, train_rows=0, eval_rows=0)
    assert hub_rows(own_test) == {
        "train": 3_060_000,
        "validation": 540_000,
        "test": 400_000,
    }


def test_the_committed_footprints_have_every_cell_of_the_study():
    cells = STUDY.cells(FULL_PROFILE)
    table = estimate_costs(cells, {})
    assert set(table.cells) == {cell.id for cell in cells}
    assert all(cell.gib and len(cell.hours) == len(CARDS) for cell in table.cells.values())
    # The weights of BERT, GPT-2 and T5 in fp32 are 1.2 GB; texts come in addition.
    assert 1.2e9 < table.downloads.low < table.downloads.high < 1e10
    assert len(table.header) == len(table.columns("bert_sa_lora")) == len(table.columns("unknown"))


@pytest.mark.parametrize(
    ("config", "difference"),
    [
        ({"hidden_size": 384, "num_hidden_layers": 6}, "hidden_size 384, not 768"),
        ({"num_attention_heads": "x"}, "num_attention_heads x, not 12"),
        ({"hidden_size": 768, "vocab_size": 30_600, "pad_token_id": 5}, None),
    ],
)
def test_a_checkpoint_of_another_size_was_not_measured(tmp_path, config, difference):
    folder = tmp_path / "bert-base-uncased"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    cells = [full(cell_id, checkpoint_root=tmp_path) for cell_id in ("bert_sa_lora", "t5_sa_lora")]
    costs = estimate_costs(cells, {})
    assert costs.other_sizes == ({"BERT": difference} if difference else {})
    assert ("bert_sa_lora" in costs.cells) is (difference is None)
    assert "t5_sa_lora" in costs.cells
    first = next(costs.notes())
    assert first.startswith(f"not estimated: this BERT has {difference}") is bool(difference)
    # footprints that a user gives are of this checkpoint
    assert estimate_costs(cells, {}, COMMITTED).other_sizes == {}


def test_a_run_without_footprints_gives_no_estimate(tmp_path):
    saved(tmp_path / "run.json", complete())
    with pytest.raises(InputError, match="has no footprint"):
        estimate_costs(STUDY.cells(FULL_PROFILE), {}, tmp_path / "run.json")


def test_what_was_predicted_is_printed_beside_what_was_measured():
    record = altered(complete(), "training.seconds", 6.0)
    record = altered(record, "recipe.max_length", 256)
    # One update of the recipe's 16 rows: 0.8 s at most.
    [row] = cost_rows([record], {"bert_sa_lora": footprint()})
    assert row[2:] == ("2 of 1", "0.00-0.00", "0.00", "750 %", "2.01", "1.25")
    elsewhere = altered(record, "device.name", "another CPU")
    with pytest.raises(InputError, match="trained on another CPU, not on a CPU"):
        next(cost_rows([elsewhere], {"bert_sa_lora": footprint()}))


def test_small_hours_are_not_shown_as_none():
    assert Range(0.01, 0.26).text() == "0.1-0.3"
    assert Range(3.14, 27.2).text() == "3.1-27"
