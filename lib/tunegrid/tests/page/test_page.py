"""What the page says of runs made up for it; snapshots of whole pages are in
`results/test_summary.py`.

No browser: `test_page_browser.py` opens pages in one.
"""

import re
from itertools import chain
from pathlib import Path
from statistics import fmean
from zipfile import ZipFile

import pytest

from tunegrid import ROOT
from tunegrid.commands import page as command
from tunegrid.page import charts, render
from tunegrid.page.rows import rows_section
from tunegrid.page.view import make_page, page_run
from tunegrid.record import from_json, to_json
from tunegrid.runs import examples
from tunegrid.runs.files import SavedRun, save
from tunegrid.tests import kinds, pages
from tunegrid.tests.kinds import page_text
from tunegrid.tests.outputs import refusal
from tunegrid.tests.pages import HOSTILE, footprint_json, get_record, make_run
from tunegrid.tests.records import MEASURED, altered, complete, run_file

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


def make_rows(points, predictions=None, ids=None):
    """A record and its examples."""
    ids = ids or [f"id{index}" for index in range(len(points))]
    kept = examples.write(ids, {"accuracy": points}, predictions or ["1"] * len(points))
    data = MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": len(points)}}
    return complete(
        labels=["bad", "good"],
        examples=vars(kept),
        data=data,
        scores={"accuracy": fmean(points)},
        bounds={},
    )


def test_flips_come_first_then_the_rows_with_fewest_points():
    old = make_rows([100.0, 0.0, 100.0, 0.0, 100.0])
    new = make_rows([100.0, 100.0, 0.0, 0.0, 100.0])
    section = rows_section(new, None, old, None, limit=4)
    changes = list(zip(section.frame["row"], section.frame["change"], strict=True))
    assert changes == [(3, "lost"), (2, "gained"), (4, "same"), (1, "same")]
    assert section.heading == "Test rows: 1 lost, 1 gained of 5"
    old = make_rows([100.0] * 9 + [0.0] * 9)
    new = make_rows([0.0] * 9 + [100.0] * 9)
    assert list(rows_section(new, None, old, None, limit=6).frame["change"]) == ["lost"] * 6
    old = make_rows([100.0], ids=["other"])
    new = make_rows([0.0])
    section = rows_section(new, None, old, None, limit=1)
    assert {"change", "before"}.isdisjoint(section.frame)
    assert (
        section.sentences[0]
        == "The older run scored other test rows: its predictions are not paired."
    )


def test_what_rows_say_is_kept_once_a_task_under_the_same_names_of_examples(tmp_path):
    record = make_rows([100.0])
    assert examples.read(record, None, "rows") is None
    record = altered(record, "examples.texts", examples.write_texts(["x" * 700], ["good"]))
    texts = examples.read(record, None, "rows")
    assert len(texts.input[0]) == 600
    assert list(texts.reference) == ["good"]
    save({"benchmarks": []}, tmp_path / "kept" / "run.json", [record])
    names = {record.examples.file, record.examples.texts}
    assert set(ZipFile(tmp_path / "kept" / "examples" / "run.zip").namelist()) == names


def test_text_of_data_sets_is_escaped_and_cut(tmp_path):
    content = render.html(pages.failing())
    assert HOSTILE not in content
    assert "&lt;script&gt;document.title" in content
    assert content.count("<script>") == 1
    huge = make_rows([0.0], ["x" * 10_000_000])
    assert len(render.html(make_page(make_run([huge])))) < 100_000
    losses = complete(training=to_json(huge)["training"] | {"losses": [0.5] * 1_000_000})
    assert len(render.html(make_page(make_run([losses])))) < 100_000


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


def test_charts_have_no_date_and_no_colour_but_those_of_the_page(tmp_path):
    page = kinds.kind_page("changed_module")
    with charts.style():
        drawn = {chart.name: chart.svg() for chart in chain(*page.charts.values())}
    assert len(drawn) == 3 * 3 + 9 + 3  # tasks and costs, backbones and tasks, tasks
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", "".join(drawn.values()))) <= {
        "none",
        "var(--ink)",
        "var(--soft)",
        "var(--rule)",
        "var(--ground)",
        *(f"var(--c{index})" for index in range(4)),
    }
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in drawn.values()]
    assert sum(map(len, names)) == len(set.union(*names))
    for name in ("lora", "qlora", "sft", "bert", "gpt2", "t5"):
        assert f">{name}</text>" in drawn["sa-seconds"]
    assert render.write_charts(pages.one_cell(), tmp_path / "a") == 4
    assert render.write_charts(pages.one_cell(), tmp_path / "b") == 4
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files[:2] == ["bert-sa-losses.pdf", "bert-sa-losses.svg"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# Size and bad input


def test_what_is_missing_or_of_another_profile_is_said_on_the_page(tmp_path):
    gone = complete(examples={"file": "0" * 16 + ".parquet", "rows_hash": "0" * 16})
    assert "points are missing from the run" in page_text(make_page(make_run([gone])), cells=True)
    unlike = make_page(
        make_run([get_record()]), [make_run([get_record(rows="other")], "old.json", "2026-11-01")]
    )
    assert (
        "old.json scored other test rows in bert_sa_lora: its figures are shown, but not paired"
        in page_text(unlike)
    )
    assert (
        unlike.answer.answer
        == "The one cell is not comparable with old.json: other test rows (bert_sa_lora)."
    )
    disjoint = make_page(
        make_run([get_record()]), [make_run([get_record("t5_qa_sft")], "old.json", "2026-11-01")]
    )
    assert (
        disjoint.answer.answer
        == "old.json and run.json have no finished cell in common, so nothing is compared."
    )
    records = [get_record(), get_record("t5_sa_lora"), from_json(footprint_json())]
    saved = SavedRun(path=Path("run.json"), records=records, when="", commit="")
    page = make_page(page_run(saved))
    assert len(page.cells) == 2
    assert page.remarks == [
        "run.json also holds records of another profile (1 of footprint): `--profile` shows those"
    ]
    assert not make_page(page_run(saved, "footprint")).grids


def test_what_cannot_be_shown_is_one_sentence(tmp_path, capsys):
    good = run_file(tmp_path / "good.json", [get_record()])
    bad = tmp_path / "bad.json"
    page = tmp_path / "p.html"
    bad.write_text(good.read_text().replace('"accuracy": 90.0', '"accuracy": NaN'))
    (tmp_path / "file").write_text("")
    for arguments, sentence in (
        ((bad, "-o", page), "scores.accuracy: Input should be a finite number"),
        ((good, "-o", page, "--profile", "full"), "good.json holds no cells of full, but of quick"),
        ((good, "-o", tmp_path / "file" / "page.html"), "cannot be written"),
        ((good, "-o", tmp_path), "cannot be written"),
        ((ROOT / "reports" / "study.json", "-o", page), "published results"),
        ((good,), "give -o PAGE.html for the page, or --charts DIR for its charts"),
        ((good, "--charts", tmp_path / "file" / "x"), "give another folder for charts"),
    ):
        assert sentence in refusal(capsys, command.main, *arguments)
