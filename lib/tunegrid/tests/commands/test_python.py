"""The commands as calls: they answer as the commands do, and refuse with the same sentence."""

import inspect
import json
import pydoc
import subprocess
import sys
from dataclasses import replace

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
SETTINGS = dict(setting.split("=") for setting in SMALL[1::2])

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def files(tmp_path):
    """A run, and one that lost ten points."""
    return [
        run_file(tmp_path / f"{name}.json", trained(CELL, points))
        for name, points in (("old", 90.0), ("new", 80.0))
    ]


def test_a_gate_answers_as_the_command_does_for_files_and_for_records(files, capsys):
    old, new = files
    code = gate_command.main([str(old), str(new)])
    printed = capsys.readouterr().out
    answer = tunegrid.gate(old, new)
    assert answer.exit_code == code
    assert answer.answer in printed
    assert str(answer) in printed
    assert list(answer.cells) == [CELL]
    of_records = tunegrid.gate(read_list(old), read_list(new))
    assert of_records.exit_code == code
    assert of_records.cells == answer.cells


def test_the_answer_on_an_unsealed_run_begins_with_that(files):
    old, new = files
    run = json.loads(old.read_bytes())
    del run[SEAL]
    for row in run["benchmarks"]:
        del row[SEAL]
    new.write_text(json.dumps(run))
    answer = tunegrid.gate(old, new)
    assert answer.exit_code == 6
    assert str(answer).startswith(answer.warning)
    assert answer.answer.startswith(f"{new} has no seal")


def test_what_counts_can_be_chosen(files):
    assert tunegrid.gate(*files, gate_on="memory").exit_code != 1
    with pytest.raises(InputError, match="qualty"):
        tunegrid.gate(*files, gate_on=["qualty"])


def test_a_comparison_is_the_table_of_the_command(files, capsys):
    frame = tunegrid.compare(files[0])
    assert frame.method.tolist() == ["lora"]
    assert frame.points.tolist() == [90.0]
    assert compare_command.main([str(files[0])]) == 0
    assert "90.0" in capsys.readouterr().out


def test_a_run_returns_the_records_of_the_file_that_it_writes(tmp_path):
    path = tmp_path / "deep" / "run.json"
    records = tunegrid.run(
        [CELL],
        seeds=(3,),
        set=SETTINGS | {"max_steps": 2},
        to=path,
        options=["-p", "no:cacheprovider"],
    )
    assert [(record.cell, record.seeds.seed, record.training.updates) for record in records] == [
        (CELL, 3, 2)
    ]
    assert read_list(path) == records


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cells": "bert_sa_lorra"}, "^unknown cell 'bert_sa_lorra'; did you mean bert_sa_lora?"),
        ({"set": {"learning_rat": 1}}, "^invalid --set 'learning_rat=1': unknown field"),
        ({"cells": CELL, "options": ["-k", "none"]}, "^no cell is selected by -m quick"),
        ({"cells": CELL, "options": "-k none"}, "^no cell is selected by -m quick .* -k none"),
        ({"set": "learning_rate=1e-3"}, "^`set` must be a mapping, such as set="),
    ],
)
def test_a_run_that_cannot_be_raises_its_own_sentence_and_no_earlier_file_is_read(
    arguments, words, tmp_path
):
    path = run_file(tmp_path / "run.json", trained(CELL, 90.0))
    with pytest.raises(InputError, match=words):
        tunegrid.run(**arguments, to=path)


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
    ("package", "first"), [(tunegrid.run, "run(cells"), (tunegrid.gate, "gate(old")]
)
def test_help_begins_with_the_signature(package, first):
    text = pydoc.render_doc(package, renderer=pydoc.plaintext)
    assert f" - {first}" in text
    assert next(iter(inspect.signature(package).parameters)) in first


def test_importing_tunegrid_imports_nothing_else_of_it():
    code = "import sys, tunegrid; print([name for name in sys.modules if name.startswith(('tunegrid.', 'pydantic', 'numpy'))])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_a_package_stays_a_package_when_it_is_called():
    from tunegrid.gate import gate

    assert callable(tunegrid.gate)
    assert tunegrid.gate.gate is gate
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        tunegrid.rum  # noqa: B018
