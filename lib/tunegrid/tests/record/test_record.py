"""Records are typed, plain as JSON and sound; older versions are refused; the schema follows from
the classes.
"""

import json
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from tunegrid.audits import AUDITS
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE, Recipe
from tunegrid.record import Record, crash_record, from_json, new_record, schema, to_json
from tunegrid.record.checks import EVERY_CELL, PART_AUDITS, score_faults
from tunegrid.record.io import FORMER_FIELDS
from tunegrid.record.record import CALLS, PRINTED_LINES, jsonable
from tunegrid.tests.records import CELLS, FOOTPRINT, MEASURED, PHASE, complete, complete_json

SCHEMA = Draft202012Validator(schema())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.float32("inf"), None),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ({8: np.int32(1)}, {"8": 1}),
        ([torch.tensor(0.5), torch.tensor(7), torch.tensor(float("nan"))], [0.5, 7, None]),
    ],
    ids=str,
)
def test_a_value_becomes_what_json_can_hold(value, expected):
    assert jsonable(value) == expected
    assert type(jsonable(value)) is type(expected)


@pytest.mark.parametrize("value", [..., {1, 2}, b"bytes", [Path("here")], Record], ids=str)
def test_a_value_that_json_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match="a record cannot hold"):
        jsonable(value)


@pytest.mark.parametrize("profile", [QUICK_PROFILE, FULL_PROFILE], ids=lambda profile: profile.id)
def test_a_new_record_is_the_cells_and_goes_to_json_and_back(profile):
    for cell in STUDY.cells(profile):
        record = new_record(cell)
        recipe = cell.recipe
        data = to_json(record)
        assert json.loads(json.dumps(data, allow_nan=False)) == data
        assert from_json(data) == record
        assert record.recipe.adapter == jsonable(cell.method.settings(recipe))
        assert record.recipe.quantization == cell.quantization
        for field in fields(Recipe):
            if field.name != "adapter":
                assert getattr(record.recipe, field.name) == getattr(recipe, field.name)


def test_a_new_record_says_what_the_cell_is():
    record = new_record(STUDY.cell("gpt2_sa_qlora", replace(QUICK_PROFILE, seed=3, train_rows=40)))
    assert record.status == "unfinished"
    assert record.main_score == "accuracy"
    assert record.bounded_scores == ["accuracy", "f1_macro"]
    assert record.labels == ["negative", "positive"]
    assert record.seeds.seed == 3
    assert record.limits.train_rows == 40
    assert record.recipe.adapter == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["c_attn"],
    }
    assert record.recipe.rows_per_update == 16  # batches of 8, two an update


def test_settings_of_a_method_must_be_plain_values():
    cell = CELLS["gpt2_sa_lora"]
    method = replace(cell.method, options={"init": object()})
    with pytest.raises(
        InputError, match="gpt2_sa_lora: the settings of method 'lora' must be plain values"
    ):
        new_record(replace(cell, method=method))


def test_a_peak_is_that_of_loading_training_and_evaluation_and_none_if_it_was_not_measured():
    phases = {
        "train": PHASE | {"rss_peak_gib": 1.25},
        "load": PHASE,
        "audit": PHASE | {"rss_peak_gib": 9.0},
    }
    memory = complete(memory=MEASURED["memory"] | {"phases": phases}).memory
    assert memory.peak("rss_peak_gib") == 1.25
    assert memory.peak("reserved_peak_gib") is None


STOPPED = MEASURED["training"] | {"losses": [0.7, None], "stopped": "loss is nan at update 2 of 80"}
SOUND = {
    "scores": complete_json(),
    "footprint": complete_json(**FOOTPRINT),
    "new": to_json(new_record(CELLS["t5_qa_sft"])),
    "stopped": complete_json(
        training=STOPPED, evaluation=None, scores={}, status="stopped", missed=["loss is nan"]
    ),
}


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND)
def test_a_sound_record_is_read_and_is_as_the_schema_says(data):
    assert to_json(from_json(data)) == data
    SCHEMA.validate(data)
    assert from_json(data | {name: [] for name in FORMER_FIELDS}) == from_json(data)


@pytest.mark.parametrize(
    ("name", "field"),
    [("data", "dropped"), ("evaluation", "precision"), ("evaluation", "generated_tokens")],
)
def test_a_field_that_an_older_file_lacks_is_not_known(name, field):
    older_fields = MEASURED[name].copy()
    del older_fields[field]
    data = complete_json(**{name: older_fields})
    SCHEMA.validate(data)
    assert to_json(from_json(data)) == data | {name: MEASURED[name] | {field: None}}


SEARCH = complete_json("t5_sum_qlora")["recipe"]


class Stray(NamedTuple):
    """Changes that make a record unsound, and what is said of it."""

    changes: dict
    words: str
    fits_schema: bool = False


STRAYS = [
    Stray({"accuracy": 91.0}, "accuracy: Unexpected keyword argument"),
    Stray(
        {"scores": {"accuracy": 100.5}},
        "scores.accuracy: Input should be less than or equal to 100",
    ),
    Stray(
        {"data": MEASURED["data"] | {"rows": {"train": 70}}},
        "data.rows: Dictionary should have at least 3",
    ),
    Stray(
        {"device": MEASURED["device"] | {"threads": True}},
        "device.threads: Input should be a valid integer",
    ),
    Stray(
        {"recipe": SEARCH | {"generation": SEARCH["generation"] | {"num_beams": 0}}},
        "recipe.generation.num_beams: ",
    ),
    Stray({"seeds": {}}, "seeds.seed: Field required (and 2 more)"),
    Stray({"schema_version": 3}, "reads schema version 4, not 3; run its cells again"),
    Stray({"schema_version": 5}, "reads schema version 4, not 5; update tunegrid"),
    Stray({"cell": "\ud800"}, "the record cannot be read: "),
    Stray(
        {"scores": {"accuracy": float("nan")}},
        "scores.accuracy: Input should be a finite number",
        fits_schema=True,
    ),
    Stray(
        {"audits": []},
        "audits lacks adapter_survives_its_switches, which every whole run of bert_sa_lora has",
        fits_schema=True,
    ),
]


@pytest.mark.parametrize("stray", STRAYS, ids=[stray.words[:24] for stray in STRAYS])
def test_a_record_that_strays_is_refused_in_a_sentence_and_by_the_schema(stray):
    data = complete_json(**stray.changes)
    with pytest.raises(InputError) as refused:
        from_json(data, "run.json")
    assert str(refused.value).startswith("run.json, ")
    assert stray.words in str(refused.value)
    assert SCHEMA.is_valid(data) is stray.fits_schema


def test_the_schema_describes_every_field_and_asks_for_those_that_are_known_before_a_run():
    Draft202012Validator.check_schema(schema())
    assert set(schema()["properties"]) == {field.name for field in fields(Record)}
    assert {"cell", "recipe", "limits", "seeds", "versions"} <= set(schema()["required"])


def test_every_audit_that_a_cell_must_have_is_one_that_the_suite_runs():
    known = {audit.__name__ for audit in chain.from_iterable(AUDITS.values())}
    assert known.issuperset(chain(EVERY_CELL, *PART_AUDITS.values()))


@pytest.mark.parametrize(
    ("scores", "empty_answers", "sentences"),
    [
        ({"exact_match": 62.6, "f1": 62.1}, 0.0, ["exact_match 62.6 is above f1 62.1"]),
        ({"rouge1": 20.0, "rougeL": 21.0}, 0.0, ["rougeL 21.0 is above rouge1 20.0"]),
        ({"accuracy": 101.0}, 0.0, ["accuracy is 101.0"]),
        ({"accuracy": None}, 0.0, ["accuracy is not a number"]),
        (
            {"bertscore_precision": 55.14, "bertscore_recall": 55.68, "bertscore_f1": 56.23},
            0.0,
            ["bertscore_f1 56.23 is above the mean of precision 55.14 and recall 55.68"],
        ),
        (
            {"exact_match": 62.1, "f1": 62.1, "rouge1": 30.0, "rouge2": 10.0, "rougeL": 30.0},
            0.0,
            [],
        ),
        # Answers without a word match exactly and share nothing
        ({"exact_match": 90.0, "f1": 89.9}, 0.1, []),
        ({"exact_match": 90.0, "f1": 89.8}, 0.1, ["exact_match 90.0 is above f1 89.8"]),
    ],
)
def test_scores_that_cannot_be_are_told(scores, empty_answers, sentences):
    assert score_faults(scores, empty_answers) == sentences


# What is kept of a cell that broke off.


def deep(calls):
    if calls == 0:
        raise ValueError("no rows")
    deep(calls - 1)


def test_the_innermost_calls_are_kept():
    with pytest.raises(ValueError, match="no rows") as caught:
        deep(100)
    lines = crash_record(caught.value, []).traceback
    assert lines[-1] == "ValueError: no rows"
    assert sum("in deep" in line or "repeated" in line for line in lines) <= CALLS


def test_the_last_printed_lines_are_kept_without_colours():
    hundred_lines = "\n".join(map(str, range(100)))
    crash = crash_record(None, [hundred_lines, "10 %\r90 %\n\x1b[31mred\x1b[0m\x07\n\n"])
    assert len(crash.printed) == PRINTED_LINES
    assert crash.printed[-3:] == ["99", "90 %", r"red\x07"]
    assert crash_record(None, ["", " \n"]) is None
