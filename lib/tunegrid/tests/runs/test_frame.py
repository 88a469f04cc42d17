"""Figures of records by name: values by hand, and tables select only figures that there are."""

import math

from tunegrid.page import view
from tunegrid.report import compare, summary
from tunegrid.runs.frame import figure_frame, figures
from tunegrid.tests.records import FOOTPRINT, MEASURED, PHASE, complete


def test_figures_are_fields_of_the_record_and_what_follows_from_them():
    values = figures(complete("bert_sa_lora"))
    assert values["training.seconds"] == 12.25
    assert values["memory.ledger.weights_bytes"] == 4000
    assert values["memory.ledger.weights_mib"] == 4000 / 2**20
    assert values["tensor_mib"] == (4000 + 100 + 200) / 2**20
    assert values["score"] == 91.04
    assert values["bound"] == 88.0
    assert values["losses"] == 2
    assert values["first_loss"] == 0.7
    assert values["last_loss"] == 0.5
    assert values["trainable_share"] == 0.025
    assert values["memory.phases.train.peak_gib"] == values["peak_gib"] == 1.25
    assert values["own_peak_gib"] is None  # the process may have run other cells


def test_a_gpus_peak_is_the_phases_and_a_contended_cell_has_no_seconds_of_its_own():
    phases = {"train": PHASE | {"reserved_peak_gib": 3.0}}
    device = MEASURED["device"] | {"contended": True}
    values = figures(complete(device=device, memory=MEASURED["memory"] | {"phases": phases}))
    assert values["memory.phases.train.peak_gib"] == values["own_peak_gib"] == 3.0
    assert "own_seconds" not in values


def test_without_a_ledger_an_adapters_bytes_are_4_a_trained_parameter():
    values = figures(complete(memory=None))
    assert values["trained_mib"] == 4 * 25 / 2**20


def test_a_frame_has_a_row_for_each_record_and_nan_for_what_was_not_measured():
    frame = figure_frame([complete(), complete(training=None)], {"s": "training.seconds"})
    assert list(frame.index) == ["bert_sa_lora", "bert_sa_lora"]
    assert frame.s.iloc[0] == 12.25
    assert math.isnan(frame.s.iloc[1])


def test_tables_select_only_figures_that_there_are():
    names = figures(complete()) | figures(complete(**FOOTPRINT))
    tables = (
        summary.SCORE_COLUMNS,
        summary.FOOTPRINT_COLUMNS,
        compare.ENTRY_COLUMNS,
        view.TENSOR_SIZES,
        view.COURSE,
        view.RATES,
        view.JOULES,
    )
    optional = {"throughput.generated_tokens_per_second"}  # of texts
    for columns in tables:
        assert set(columns.values()) - names.keys() <= optional
