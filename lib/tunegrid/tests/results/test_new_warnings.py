"""The gate shows warnings of libraries that are new, and those that are gone."""

import pytest

from tunegrid.commands import gate
from tunegrid.results.alike import warnings_that_differ
from tunegrid.tests.records import complete, run_file

RENAMED = {"library": "peft", "category": "FutureWarning", "message": "`a` is deprecated in 0.21", "count": 3}


def cells(*warnings_by_cell):
    names = ("bert_sa_lora", "bert_sa_sft", "gpt2_sa_lora")
    return [complete(name, warnings=own) for name, own in zip(names, warnings_by_cell, strict=False)]


LATER = RENAMED | {"message": "`a` is deprecated in 0.22", "count": 1}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (([], []), ([RENAMED], []), "new warning of peft: FutureWarning in bert_sa_lora: "),
        (([], []), ([RENAMED], [RENAMED]), "new warning of peft: FutureWarning in 2 cells: "),
        (([RENAMED], []), ([], []), "gone warning of peft: FutureWarning in bert_sa_lora: "),
        (([], [RENAMED]), ([],), None),  # its cell did not run
        (([RENAMED], []), ([], [LATER]), None),  # the same in another cell, with other numbers
        ((None,), ([RENAMED],), None),  # an older run did not count them
        (([RENAMED],), (None,), None),
    ],
)
def test_warnings_that_differ_are_a_sentence_each(old, new, said):
    assert warnings_that_differ(cells(*old), cells(*new)) == ([said + RENAMED["message"]] if said else [])


@pytest.mark.parametrize(("format", "shown"), [("text", 1), ("markdown", 1), ("json", 0)])
def test_the_command_prints_it_and_fails_no_run_for_it(tmp_path, capsys, format, shown):
    old, new = (run_file(tmp_path / name, own) for name, own in (("old.json", cells([])), ("new.json", cells([RENAMED]))))
    without = gate.main([str(old), str(old), "--format", format])
    capsys.readouterr()
    assert gate.main([str(old), str(new), "--format", format]) == without
    assert capsys.readouterr().out.count("new warning of peft: FutureWarning in bert_sa_lora") == shown
