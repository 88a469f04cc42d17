"""Records are typed, plain as JSON and sound; older versions are refused; the schema follows from the classes."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE, Recipe
from tunegrid.record import Record, from_json, new_record, schema, to_json
from tunegrid.record.checks import contradictions, impossible
from tunegrid.record.io import FORMER_FIELDS, checked
from tunegrid.record.record import jsonable
from tunegrid.tests.records import CELLS, FOOTPRINT, MEASURED, PHASE, complete, complete_json


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (float("nan"), None),
        (np.float32("inf"), None),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ({8: np.int32(1)}, {"8": 1}),
        (True, True),
        ("text", "text"),
        ([torch.tensor(0.5), torch.tensor(7), torch.tensor(float("nan"))], [0.5, 7, None]),
        *((value, TypeError) for value in (..., {1, 2}, b"bytes", [Path("here")], Record)),
    ],
    ids=str,
)
def test_a_value_becomes_what_json_can_hold_or_is_refused(value, expected):
    if expected is TypeError:
        with pytest.raises(TypeError, match="a record cannot hold"):
            jsonable(value)
    else:
        assert (jsonable(value), type(jsonable(value))) == (expected, type(expected))


@pytest.mark.parametrize(
    "cell", [*STUDY.cells(QUICK_PROFILE), *STUDY.cells(FULL_PROFILE)], ids=lambda cell: f"{cell.profile.id}-{cell.id}"
)
def test_a_new_record_is_the_cells_and_goes_to_json_and_back(cell):
    record, recipe = new_record(cell), cell.recipe
    data = to_json(record)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert from_json(data) == record
    assert record.recipe.adapter == jsonable(cell.method.settings(recipe))
    assert record.recipe.quantization == cell.quantization
    others = [field.name for field in fields(Recipe) if field.name != "adapter"]
    assert {name: getattr(record.recipe, name) for name in others} == {name: getattr(recipe, name) for name in others}


def test_a_new_record_says_what_the_cell_is():
    record = new_record(STUDY.cell("gpt2_sa_qlora", replace(QUICK_PROFILE, seed=3, train_rows=40)))
    assert (record.status, record.main_score, record.bounded_scores) == ("unfinished", "accuracy", ["accuracy", "f1_macro"])
    assert (record.labels, record.seeds.seed, record.limits.train_rows) == (["negative", "positive"], 3, 40)
    assert record.recipe.adapter == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["c_attn"]}
    assert record.recipe.quantization.bnb_4bit_quant_type == "nf4"
    assert record.recipe.rows_per_update == 16  # batches of 8, two an update
    assert new_record(STUDY.cell("gpt2_sa_sft", QUICK_PROFILE)).recipe.adapter is None
    cell = CELLS["gpt2_sa_lora"]
    odd = replace(cell, method=replace(cell.method, options={"init": object()}))
    with pytest.raises(InputError, match="gpt2_sa_lora: the settings of method 'lora' must be plain values"):
        new_record(odd)
    phases = {"train": PHASE | {"rss_peak_gib": 1.25}, "load": PHASE, "audit": PHASE | {"rss_peak_gib": 9.0}}
    memory = complete(memory=MEASURED["memory"] | {"phases": phases}).memory
    assert (memory.peak("rss_peak_gib"), memory.peak("reserved_peak_gib")) == (1.25, None)


def without(name, *late):
    """A part as an older file has it."""
    return {name: {field: value for field, value in MEASURED[name].items() if field not in late}}


SOUND = {
    "scores": complete_json(),
    "footprint": complete_json(**FOOTPRINT),
    "new": to_json(new_record(CELLS["t5_qa_sft"])),
    "older data": complete_json(**without("data", "dropped")),
    "older evaluation": complete_json(**without("evaluation", "precision", "generated_tokens")),
}


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND)
def test_a_sound_record_is_read_is_as_the_schema_says_and_what_an_older_file_lacks_is_not_known(data):
    record, faults = checked(data)
    assert faults == []
    written = to_json(record)
    unknown = {name: dict.fromkeys(written[name].keys() - data[name]) for name in ("data", "evaluation") if data[name]}
    assert written == data | {name: data[name] | late for name, late in unknown.items()}
    Draft202012Validator(schema()).validate(data)


def test_a_stopped_record_is_sound_and_several_faults_are_counted_and_listed():
    stopped = MEASURED["training"] | {"losses": [0.7, None], "stopped": "loss is nan at update 2 of 80"}
    outcome = {"status": "stopped", "missed": ["loss is nan at update 2 of 80"]}
    assert from_json(complete_json(training=stopped, evaluation=None, scores={}, **outcome)).training.losses == [0.7, None]
    data = complete_json(seeds={})
    with pytest.raises(InputError, match=r"seeds.seed is missing \(and 2 more\)"):
        from_json(data)
    assert checked(data)[1] == ["seeds.seed is missing", "seeds.split_seed is missing", "seeds.perturbation is missing"]
    assert list(contradictions(complete(status="unfinished", training=None, missed=["why"]))) == []
    assert list(contradictions(complete(evaluation=None, data=None, profile="full"))) == [
        "data is null, but the status is 'passed'",
        "evaluation is null, but the status is 'passed'",
    ]


OLDER = "read it with tunegrid 0.12, or run its cells again"
READS = "this tunegrid reads schema version 4, not"
BEAMS = complete_json("t5_sum_qlora")["recipe"]
STRAYS = [
    ({"accuracy": 91.0}, "accuracy is not a field of a record"),
    ({"scores": {"accuracy": 100.5}}, "scores.accuracy is 100.5, but it should be less than or equal to 100.000001"),
    ({"scores": {"accuracy": "91"}}, 'scores.accuracy is "91", but it should be a valid number'),
    ({"status": "bad"}, "status is \"bad\", but it should be 'unfinished', 'passed', "),
    (
        {"data": MEASURED["data"] | {"rows": {"train": 70}}},
        'data.rows is {"train": 70}, but Dictionary should have at least 3 ',
    ),
    ({"device": MEASURED["device"] | {"threads": 0}}, "device.threads is 0, but it should be greater than or equal to 1"),
    ({"device": MEASURED["device"] | {"threads": True}}, "device.threads is true, but it should be a valid integer"),
    ({"memory": MEASURED["memory"] | {"phases": {"train": {"seconds": 1.0}}}}, "memory.phases.train.rss_peak_gib is missing"),
    ({"recipe": {"learning_rate": 0.1}}, "recipe.adapter is missing"),
    ({"recipe": BEAMS | {"generation": BEAMS["generation"] | {"num_beams": 0}}}, "recipe.generation.num_beams is 0, but it "),
    ({"recipe": BEAMS | {"generation": BEAMS["generation"] | {"top_k": 5}}}, "recipe.generation.top_k is not a field of a"),
    ({"recipe": BEAMS | {"text": "article"}}, 'recipe.text is "article", but it should be a valid '),
    ({"recipe": BEAMS | {"warmup_steps": 2.5}}, "recipe.warmup_steps is 2.5, but it should be a valid integer"),
    ({"seeds": {"split_seed": 42, "perturbation": None}}, "seeds.seed is missing"),
    ({"schema_version": 1}, f"{READS} 1; {OLDER}"),
    ({"schema_version": 3, "outcome": "passed"}, f"{READS} 3; {OLDER}"),
    ({"schema_version": 5}, f"{READS} 5; update tunegrid"),
    ({"schema_version": "3"}, f"{READS} '3'; run its cells again"),
]
# What no schema of the fields says.
BESIDE = [
    ({"profile": "stock"}, "-m stock leaves no record any more: leave this row out"),
    ({"scores": {"accuracy": float("nan")}}, "scores.accuracy is NaN, but it should be a finite number"),
    ({"cell": "\ud800"}, "the record cannot be read: "),
    ({"status": "missed"}, "missed is empty, but the status is 'missed'"),
    ({"missed": ["f1 1.0 is below 2.0"]}, "missed holds sentences, but the status is 'passed'"),
    ({"training": None}, "training is null, but the status is 'passed'"),
    ({"profile": "footprint"}, "flops is null, but the status is 'passed'"),
]


@pytest.mark.parametrize(("changes", "sentence"), STRAYS + BESIDE, ids=[sentence[:24] for _, sentence in STRAYS + BESIDE])
def test_a_record_that_strays_is_refused_in_a_sentence(changes, sentence):
    cell = "" if "cell" in changes else "bert_sa_lora: "
    with pytest.raises(InputError, match=re.escape(f"{cell}{sentence}")) as refused:
        from_json(complete_json(**changes), "run.json")
    assert str(refused.value).startswith("run.json, ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("changes", [changes for changes, _ in STRAYS], ids=str)
def test_what_is_wrong_with_a_field_the_schema_refuses(changes):
    assert not Draft202012Validator(schema()).is_valid(complete_json(**changes))


def test_the_schema_describes_every_field_and_asks_for_those_that_are_known_before_a_run():
    Draft202012Validator.check_schema(schema())
    assert set(schema()["properties"]) == {field.name for field in fields(Record)}
    assert {"cell", "recipe", "limits", "seeds", "versions"} <= set(schema()["required"])
    assert schema()["properties"]["scores"]["description"] == "points; null: not a number"


@pytest.mark.parametrize(
    ("scores", "empty_answers", "sentence"),
    [
        ({"exact_match": 62.6, "f1": 62.1}, 0.0, "exact_match 62.6 is above f1 62.1"),
        ({"rouge1": 20.0, "rougeL": 21.0}, 0.0, "rougeL 21.0 is above rouge1 20.0"),
        ({"rouge1": 20.0, "rouge2": 21.0}, 0.0, "rouge2 21.0 is above rouge1 20.0"),
        ({"accuracy": 101.0}, 0.0, "accuracy is 101.0"),
        ({"accuracy": None}, 0.0, "accuracy is not a number"),
        (
            {"bertscore_precision": 55.14, "bertscore_recall": 55.68, "bertscore_f1": 56.23},
            0.0,
            "bertscore_f1 56.23 is above the mean of precision 55.14 and recall 55.68",
        ),
        ({"exact_match": 62.1, "f1": 62.1, "rouge1": 30.0, "rouge2": 10.0, "rougeL": 30.0}, 0.0, None),
        ({"bertscore_precision": 50.0, "bertscore_f1": 54.5, "bertscore_recall": 60.0}, 0.0, None),
        ({"exact_match": 90.0, "f1": 89.9}, 0.1, None),  # answers without a word match exactly and share nothing
        ({"exact_match": 90.0, "f1": 89.8}, 0.1, "exact_match 90.0 is above f1 89.8"),
    ],
)
def test_scores_that_cannot_be_are_told(scores, empty_answers, sentence):
    assert impossible(scores, empty_answers=empty_answers) == ([sentence] if sentence else [])


def test_a_record_of_an_older_version_is_read_without_what_this_version_does_not_do():
    then = complete_json() | {name: [] for name in FORMER_FIELDS}
    assert checked(then) == checked(complete_json())
    assert checked(then | {"extra": 1})[1] == ["extra is not a field of a record"]
