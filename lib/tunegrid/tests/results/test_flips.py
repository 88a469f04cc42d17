"""`--show-flips`: which rows are listed, in which order, and what is said where rows are not there."""

import pytest

from tunegrid.commands import gate as command
from tunegrid.results import examples
from tunegrid.results.examples import Examples, Texts
from tunegrid.results.flips import LONGEST, flips, sampled
from tunegrid.results.gate import Run, gate, paired
from tunegrid.results.report import text
from tunegrid.tests.outputs import obeyed, refusal
from tunegrid.tests.records import MEASURED, complete, run_file

HOSTILE = "\x1b[2J\n::error::x"


pytestmark = pytest.mark.usefixtures("store")


def record_of(cell, points, predictions, texts=None):
    """A record with these points and predictions of its rows, and what the rows say."""
    main = {"sa": "accuracy", "qa": "f1", "sum": "rougeLsum"}[cell.split("_")[1]]
    ids = [f"{cell} {index}" for index in range(len(points))]
    kept = examples.write(Examples(ids=ids, points={main: points}, predictions=predictions))
    if texts:
        examples.write_texts(kept.rows_hash, texts)
    return complete(
        cell,
        scores={main: sum(points) / len(points)},
        bounds={},
        bounded_scores=[main],
        examples=vars(kept),
        data=MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": len(points)}},
    )


def listed(old, new, limit=9):
    runs = [Run.of(records) for records in (old, new)]
    return flips(paired(*runs), gate(*runs), limit)


ANSWERS = Texts(inputs=["who ?", "where ?", HOSTILE], references=["Ann", "Rome", "two"])


def pair():
    return [
        record_of("t5_qa_sft", points, predictions, ANSWERS)
        for points, predictions in (
            ([100.0, 0.0, 50.0], ["Ann", "Oslo", "two"]),
            ([0.0, 100.0, 50.0], ["Bob", "Rome", "two of"]),
        )
    ]


def test_a_lost_row_comes_before_a_gained_one_and_one_of_equal_points_is_no_flip():
    old, new = pair()
    assert text(listed([old], [new])).splitlines() == [
        "test rows that changed, at most 9 per cell, lost ones first:",
        "",
        "t5_qa_sft f1 (cannot tell): 1 row lost, 1 gained of 3",
        "row  points               text",
        "1    100 -> 0  input      who ?",
        "1    100 -> 0  reference  Ann",
        "1    100 -> 0  before     Ann",
        "1    100 -> 0  after      Bob",
        "2    0 -> 100  input      where ?",
        "2    0 -> 100  reference  Rome",
        "2    0 -> 100  before     Oslo",
        "2    0 -> 100  after      Rome",
    ]
    assert text(listed([old], [old])) == "test rows that changed, at most 9 per cell, lost ones first: none"


def test_at_most_so_many_rows_of_each_cell_are_listed_and_the_worse_cell_comes_first():
    right, wrong = [100.0] * 400, [100.0] * 300 + [0.0] * 100
    labels = ["1"] * 400
    same = [record_of("bert_sa_lora", right, labels), record_of("bert_sa_lora", [*right[1:], 0.0], labels)]
    worse = [record_of("t5_sa_lora", right, labels), record_of("t5_sa_lora", wrong, labels)]
    _, *cells = listed([same[0], worse[0]], [same[1], worse[1]], limit=3)
    assert [(one.heading.split()[0], one.heading.split(": ")[1].split()[0], len(one.frame) / 4) for one in cells] == [
        ("t5_sa_lora", "100", 3),
        ("bert_sa_lora", "1", 1),
    ]


def test_rows_that_are_not_there_are_one_sentence(store):
    cells = [record_of(cell, [100.0, 0.0], ["a", "b"]) for cell in ("t5_qa_sft", "t5_qa_lora", "bert_qa_sft")]
    for path in store.iterdir():
        path.unlink()
    [section] = listed(cells, cells)
    assert section.heading.endswith("lost ones first: none")
    assert section.sentences == [
        f"t5_qa_sft: the test rows' points are not here: examples/{cells[0].examples.file} is missing beside the run "
        "(and 2 cells more)"
    ]


def test_long_texts_are_cut_and_predictions_begin_shortly_before_they_part():
    start = "x" * 500
    old, new = (record_of("t5_sum_sft", [points], [start + end]) for points, end in ((100.0, "old"), (0.0, "new" + "y" * 500)))
    [row] = sampled(new, None, old, None, limit=1).frame.to_dict("records")
    assert row["before"] == "…" + 40 * "x" + "old"
    assert (row["after"][:44], len(row["after"]), row["after"][-1]) == ("…" + 40 * "x" + "new", LONGEST, "…")


def test_no_text_of_a_row_has_an_effect_on_a_terminal_a_ci_or_markdown(tmp_path, capsys):
    texts = Texts(inputs=[f"{HOSTILE} |<b>", "", ""], references=[HOSTILE, "", ""])
    old, new = (
        record_of("t5_qa_sft", [points, 0.0, 100.0], [HOSTILE + word, "", ""], texts)
        for points, word in ((100.0, "a"), (0.0, "b"))
    )
    files = [run_file(tmp_path / name, [record]) for name, record in (("old.json", old), ("new.json", new))]
    command.main([*map(str, files), "--show-flips", "1"])
    shown = capsys.readouterr().out
    assert "input      \\x1b[2J\\n::error::x |<b>" in shown
    assert not obeyed(shown)
    command.main([*map(str, files), "--show-flips", "1", "--format", "markdown"])
    page = capsys.readouterr().out
    [row] = [line for line in page.splitlines() if line.startswith("| 1 |") and "input" in line]
    assert (row.count("|") - row.count("\\|"), "\\<b\\>" in row, not obeyed(page)) == (5, True, True)


def test_json_has_no_rows_and_no_number_is_refused(tmp_path, capsys):
    run = run_file(tmp_path / "run.json", pair()[:1])
    said = refusal(capsys, command.main, run, run, "--show-flips", "3", "--format", "json")
    assert "--show-flips prints text or Markdown: give another --format" in said
