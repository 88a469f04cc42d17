"""The gate shows warnings of libraries that are new, and those that are gone."""

import pytest

from tunegrid.commands import gate
from tunegrid.results.alike import warnings_that_differ
from tunegrid.tests.records import complete, run_file

RENAMED = {"library": "peft", "category": "FutureWarning", "message": "`a` is deprecated in 0.21", "count": 3}


def cells(*warnings_by_cell):
    names = ("bert_sa_lora", "bert_sa_sft", "gpt2_sa_lora")
    return [complete(name, warnings=own) for name, own in zip(names, warnings_by_cell, strict=False)]


def test_a_new_warning_is_one_sentence_however_many_cells_have_it():
    assert warnings_that_differ(cells([], []), cells([RENAMED], [])) == [
        "new warning of peft: FutureWarning in bert_sa_lora: `a` is deprecated in 0.21"
    ]
    assert warnings_that_differ(cells([], []), cells([RENAMED], [RENAMED])) == [
        "new warning of peft: FutureWarning in 2 cells: `a` is deprecated in 0.21"
    ]


def test_a_warning_that_is_gone_is_said_where_all_cells_ran():
    assert warnings_that_differ(cells([RENAMED], []), cells([], [])) == [
        "gone warning of peft: FutureWarning in bert_sa_lora: `a` is deprecated in 0.21"
    ]
    assert warnings_that_differ(cells([], [RENAMED]), cells([])) == []


def test_the_same_warning_is_no_change_in_whichever_cell_and_with_whichever_numbers():
    later = RENAMED | {"message": "`a` is deprecated in 0.22", "count": 1}
    assert warnings_that_differ(cells([RENAMED], []), cells([], [later])) == []


def test_a_run_that_did_not_count_warnings_has_none_to_compare():
    assert warnings_that_differ(cells(None), cells([RENAMED])) == []
    assert warnings_that_differ(cells([RENAMED]), cells(None)) == []


@pytest.mark.parametrize(("format", "shown"), [("text", 1), ("markdown", 1), ("json", 0)])
def test_the_command_prints_it_and_fails_no_run_for_it(tmp_path, capsys, format, shown):
    old, new = (run_file(tmp_path / name, own) for name, own in (("old.json", cells([])), ("new.json", cells([RENAMED]))))
    without = gate.main([str(old), str(old), "--format", format])
    capsys.readouterr()
    assert gate.main([str(old), str(new), "--format", format]) == without
    assert capsys.readouterr().out.count("new warning of peft: FutureWarning in bert_sa_lora") == shown
