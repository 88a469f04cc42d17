"""What the page says of runs made up for it; snapshots of whole pages are in
`report/test_summary.py`.

No browser: `test_page_browser.py` opens pages in one.
"""

import re
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import pytest

from tunegrid import ROOT
from tunegrid.commands import page as command
from tunegrid.page import charts, render
from tunegrid.page.rows import rows_section
from tunegrid.page.view import make_page, page_run
from tunegrid.runs import examples
from tunegrid.runs.files import SavedRun, save
from tunegrid.tests import kinds, pages, records
from tunegrid.tests.kinds import page_text
from tunegrid.tests.outputs import refusal
from tunegrid.tests.pages import HOSTILE, get_record, make_run
from tunegrid.tests.records import FOOTPRINT, altered, complete, run_file, with_test_rows

pytestmark = pytest.mark.usefixtures("store")


def test_a_cell_that_broke_off_shows_its_traceback_and_its_last_lines():
    crash = {
        "traceback": ['  File "peft/layer.py", line 9', "ValueError: <no> rows"],
        "printed": ["loading gpt2-micro"],
    }
    record = get_record(
        status="error", scores={}, examples=None, missed=["ValueError"], crash=crash
    )
    page = render.html(make_page(make_run([record])))
    [traceback, printed] = re.findall(r"<pre[^>]*>(.*?)</pre>", page, flags=re.S)
    assert traceback.startswith("  File")  # as far to the right as it was
    assert "line 9&#10;ValueError: &lt;no&gt; rows" in traceback
    assert printed == "loading gpt2-micro&#10;"
    assert "<pre" not in render.html(pages.one_cell())


# Test rows


def scored_rows(*points, **changes):
    """A record of as many test rows, which scored these points."""
    return records.get_record("bert_sa_lora", {"accuracy": points}, **changes)


def test_flips_come_first_then_the_rows_with_fewest_points():
    old = scored_rows(100.0, 0.0, 100.0, 0.0, 100.0)
    new = scored_rows(100.0, 100.0, 0.0, 0.0, 100.0)
    section = rows_section(new, None, old, None, limit=4)
    assert list(section.frame["row"]) == [3, 2, 4, 1]
    assert list(section.frame["change"]) == ["lost", "gained", "same", "same"]
    assert section.heading == "Test rows: 1 lost, 1 gained of 5"


def test_of_equal_changes_a_loss_comes_first_though_its_row_has_more_points():
    old = scored_rows(0.0, 100.0)
    new = scored_rows(40.0, 60.0)
    section = rows_section(new, None, old, None, limit=1)
    assert list(section.frame["change"]) == ["lost"]


def test_predictions_on_other_rows_are_not_paired():
    section = rows_section(scored_rows(0.0), None, scored_rows(100.0, ids=["other"]), None, limit=1)
    assert {"change", "before"}.isdisjoint(section.frame)
    sentence = "The older run scored other test rows: its predictions are not paired."
    assert section.sentences[0] == sentence


def test_what_rows_say_is_kept_once_a_task_under_the_same_names_of_examples(tmp_path):
    record = scored_rows(100.0)
    assert examples.read(record, None, "rows") is None
    record = altered(record, "examples.texts", examples.write_texts(["x" * 700], ["good"]))
    texts = examples.read(record, None, "rows")
    assert len(texts.input[0]) == 600
    assert list(texts.reference) == ["good"]
    save({"benchmarks": []}, tmp_path / "kept" / "run.json", [record])
    names = {record.examples.file, record.examples.texts}
    assert set(ZipFile(tmp_path / "kept" / "examples" / "run.zip").namelist()) == names


def test_text_of_data_sets_is_escaped():
    content = render.html(pages.failing())
    assert HOSTILE not in content
    assert "&lt;script&gt;document.title" in content
    assert content.count("<script>") == 1


def test_long_texts_and_many_losses_are_cut():
    kept = examples.write(["r0"], {"accuracy": [0.0]}, ["x" * 10_000_000])
    scores = {"accuracy": 0.0}
    long_text = complete(examples=vars(kept), scores=scores, bounds={}, data=with_test_rows(1))
    many_losses = altered(complete(), "training.losses", [0.5] * 1_000_000)
    for record in (long_text, many_losses):
        assert len(render.html(make_page(make_run([record])))) < 100_000


def test_control_and_bidi_characters_and_secrets_are_not_on_the_page():
    record = get_record(
        status="missed", missed=["a \x1b[31mred\x00 \u202eword"], versions={"peft": "1\x1b\u202e"}
    )
    command = "pytest --benchmark-storage=elasticsearch+http://me:hush@host:9200/x"
    page = render.html(make_page(make_run([record], command=command)))
    assert not set("\x1b\x00\u202e") & set(page)
    assert "\\x1b[31mred\\x00 \\u202eword" in page
    assert "hush" not in page
    assert "http://host:9200/x" in page


# Charts


def test_charts_have_no_colour_but_those_of_the_page_and_no_id_twice():
    page = kinds.kind_page("changed_module")
    with charts.style():
        drawings = {chart.name: chart.svg() for chart in chain(*page.charts.values())}
    assert len(drawings) == 3 * 3 + 9 + 3  # tasks and costs, backbones and tasks, tasks
    page_colours = {f"var(--{name})" for name in ("ink", "soft", "rule", "ground")}
    page_colours |= {f"var(--c{number})" for number in range(4)}
    ids = []
    for svg in drawings.values():
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= page_colours | {"none"}
        ids += set(re.findall(r' id="([^"]+)"', svg))
    assert len(ids) == len(set(ids))
    for name in ("lora", "qlora", "sft", "bert", "gpt2", "t5"):
        assert f">{name}</text>" in drawings["sa-seconds"]


def test_charts_of_equal_runs_are_equal_files(tmp_path):
    for folder in ("a", "b"):
        assert render.write_charts(pages.one_cell(), tmp_path / folder) == 4
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files[:2] == ["bert-sa-losses.pdf", "bert-sa-losses.svg"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# Missing or unlike runs, and bad input


def test_test_rows_whose_points_are_missing_are_said_on_the_page():
    gone = complete(examples={"file": "0" * 16 + ".parquet", "rows_hash": "0" * 16})
    assert "points are missing from the run" in page_text(make_page(make_run([gone])), cells=True)


def compared(older_record):
    """The page of a run of bert_sa_lora, compared with a run of this record."""
    return make_page(make_run([get_record()]), [make_run([older_record], "old.json")])


def test_a_run_that_scored_other_rows_is_shown_but_not_compared():
    page = compared(get_record(id_prefix="other"))
    remark = (
        "old.json scored other test rows in bert_sa_lora: its figures are shown, but not paired"
    )
    assert remark in page_text(page)
    answer = "The one cell is not comparable with old.json: other test rows (bert_sa_lora)."
    assert page.answer.answer == answer


def test_a_run_without_a_common_cell_is_not_compared():
    answer = "old.json and run.json have no finished cell in common, so nothing is compared."
    assert compared(get_record("t5_qa_sft")).answer.answer == answer


def test_a_page_shows_one_profile_and_names_the_others():
    cells = [get_record(), get_record("t5_sa_lora"), complete(**FOOTPRINT)]
    saved = SavedRun(path=Path("run.json"), records=cells, when="", commit="")
    page = make_page(page_run(saved))
    assert len(page.cells) == 2
    assert page.remarks == [
        "run.json also holds records of another profile (1 of footprint): `--profile` shows those"
    ]
    assert not make_page(page_run(saved, "footprint")).grids


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("good.json -o page.html --profile full", "good.json holds no cells of full, but of quick"),
        ("good.json -o file/page.html", "cannot be written"),
        ("good.json -o folder", "cannot be written"),
        ("study.json -o page.html", "published results"),
        ("good.json", "give -o PAGE.html for the page, or --charts DIR for its charts"),
        ("good.json --charts file/x", "give another folder for charts"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    run_file(tmp_path / "good.json", [get_record()])
    Path("study.json").write_bytes((ROOT / "reports" / "study.json").read_bytes())
    Path("file").touch()
    Path("folder").mkdir()
    assert sentence in refusal(capsys, command.main, *words.split())
