"""The commands as calls: they answer as the commands do, and refuse with the same sentence."""

import inspect
import json
import pydoc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tunegrid
from tunegrid.commands import compare as compare_command
from tunegrid.commands import gate as gate_command
from tunegrid.errors import InputError
from tunegrid.runs.files import read_list
from tunegrid.runs.seal import SEAL
from tunegrid.tests.records import run_file, trained
from tunegrid.tests.sessions import SMALL

CELL = "bert_sa_lora"
OLD = Path("old.json")
NEW = Path("new.json")

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def files(store):
    """A run, and one that lost ten points."""
    run_file(OLD, trained(CELL, 90.0))
    run_file(NEW, trained(CELL, 80.0))


@pytest.mark.usefixtures("files")
def test_a_gate_answers_as_the_command_does_for_files_and_for_records(capsys):
    code = gate_command.main([str(OLD), str(NEW)])
    printed = capsys.readouterr().out
    answer = tunegrid.gate(OLD, NEW)
    assert answer.exit_code == code
    assert answer.answer in printed
    assert str(answer) in printed
    assert list(answer.cells) == [CELL]
    of_records = tunegrid.gate(read_list(OLD), read_list(NEW))
    assert of_records.exit_code == code
    assert of_records.cells == answer.cells


@pytest.mark.usefixtures("files")
def test_the_answer_on_an_unsealed_run_begins_with_that():
    run = json.loads(OLD.read_bytes())
    del run[SEAL]
    for row in run["benchmarks"]:
        del row[SEAL]
    NEW.write_text(json.dumps(run))
    answer = tunegrid.gate(OLD, NEW)
    assert answer.exit_code == 6
    assert str(answer).startswith(answer.warning)
    assert answer.answer.startswith("new.json has no seal")


@pytest.mark.usefixtures("files")
def test_what_counts_can_be_chosen():
    assert tunegrid.gate(OLD, NEW, gate_on="memory").exit_code != 1
    with pytest.raises(InputError, match="qualty"):
        tunegrid.gate(OLD, NEW, gate_on=["qualty"])


@pytest.mark.usefixtures("files")
def test_a_comparison_is_the_table_of_the_command(capsys):
    frame = tunegrid.compare(OLD)
    assert frame.method.tolist() == ["lora"]
    assert frame.points.tolist() == [90.0]
    assert compare_command.main([str(OLD)]) == 0
    assert "90.0" in capsys.readouterr().out


def test_a_run_returns_the_records_of_the_file_that_it_writes():
    path = Path("deep/run.json")
    settings = dict(setting.split("=") for setting in SMALL[1::2])
    records = tunegrid.run(
        [CELL],
        seeds=(3,),
        set=settings | {"max_steps": 2},
        to=path,
        options=["-p", "no:cacheprovider"],
    )
    [record] = records
    assert record.cell == CELL
    assert record.seeds.seed == 3
    assert record.training.updates == 2
    assert read_list(path) == records


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cells": "bert_sa_lorra"}, "^unknown cell 'bert_sa_lorra'; did you mean bert_sa_lora?"),
        ({"set": {"learning_rat": 1}}, "^invalid --set 'learning_rat=1': unknown field"),
        ({"cells": CELL, "options": "-k none"}, "^no cell is selected by -m quick .* -k none"),
        ({"set": "learning_rate=1e-3"}, "^`set` must be a mapping, such as set="),
    ],
)
def test_a_run_that_cannot_be_raises_its_own_sentence_and_no_earlier_file_is_read(arguments, words):
    with pytest.raises(InputError, match=words):
        tunegrid.run(**arguments, to=OLD)


def test_what_is_no_run_is_rejected_and_one_record_is_a_run():
    [record] = trained(CELL, 90.0)
    assert tunegrid.compare(record).points.tolist() == [90.0]
    with pytest.raises(InputError, match="the old run must be a file"):
        tunegrid.gate(1, record)
    with pytest.raises(InputError, match="the run must be a file"):
        tunegrid.compare([1])


def test_a_gate_names_the_fields_in_which_recipes_differ():
    [record] = trained(CELL, 90.0)
    recipe = replace(record.recipe, learning_rate=0.5, max_steps=7)
    answer = tunegrid.gate(record, replace(record, recipe=recipe))
    assert answer.exit_code == 6
    assert "the recipes differ in learning_rate and max_steps (bert_sa_lora)" in answer.answer


@pytest.mark.parametrize(
    ("package", "signature", "parameter"),
    [(tunegrid.run, " - run(cells", "cells"), (tunegrid.gate, " - gate(old", "old")],
)
def test_help_begins_with_the_signature(package, signature, parameter):
    assert signature in pydoc.render_doc(package, renderer=pydoc.plaintext)
    assert next(iter(inspect.signature(package).parameters)) == parameter


def test_importing_tunegrid_imports_nothing_else_of_it():
    code = """
import sys, tunegrid
for name in sys.modules:
    if name.startswith(("tunegrid.", "pydantic", "numpy")):
        print(name)
"""
    assert subprocess.check_output([sys.executable, "-c", code]) == b""


def test_a_package_stays_a_package_when_it_is_called():
    from tunegrid.gate import gate

    assert callable(tunegrid.gate)
    assert tunegrid.gate.gate is gate
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        tunegrid.rum  # noqa: B018
