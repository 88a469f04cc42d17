"""What the page says, of runs whose answers are known. No browser: `test_page_browser.py` opens pages in one."""

import re
from dataclasses import replace
from statistics import fmean

import pytest

from fixtures.record import in_words
from tunegrid import ROOT
from tunegrid.commands import page as command
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.instruments import tidy
from tunegrid.page import charts, render
from tunegrid.page.charts import Dot, Look, Looks
from tunegrid.page.runs import of_profile, read_page_run
from tunegrid.page.verdict import begun, minus
from tunegrid.page.view import AXES, page_of
from tunegrid.record import from_json, to_json
from tunegrid.record.parts import Figure, InstrumentRecord
from tunegrid.results import compare, examples
from tunegrid.results.compare import SECONDS, TENSORS, TRAINED
from tunegrid.results.examples import Examples, Texts
from tunegrid.results.files import read_list
from tunegrid.results.flips import sampled
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.results.noise import Noise
from tunegrid.results.study import compared
from tunegrid.tests import pages
from tunegrid.tests.outputs import refusal
from tunegrid.tests.pages import HOSTILE, footprint_json, record_of, run_of
from tunegrid.tests.records import MEASURED, PHASE, complete, run_file

pytestmark = pytest.mark.usefixtures("store")


def text_of(page):
    return re.sub(r"<[^>]*>", " ", re.sub(r"<(style|script)>.*?</\1>", "", render.html(page), flags=re.S))


# The answer


def test_the_answer_is_one_sentence():
    assert pages.passing().head.answer == "Passed: all 27 cells reached every bound and passed every audit."
    assert pages.one_cell().head.answer == "Passed: the one cell reached every bound and passed every audit."
    assert pages.empty().head.answer == "Nothing to show: this run holds no cell that was run."
    reported = read_page_run(ROOT / "reports" / "study.json")
    assert page_of(reported).head.answer == "Reported: 27 results as published; nothing was run here."
    words = ("not compared with b.json", "quick-cpu.json scored other test rows", "bert_sa_lora is alone")
    assert tuple(map(begun, words)) == ("Not compared with b.json", *words[1:])
    assert minus("f1 -3.1 points (-4.2 to +0.1), rouge-1, 2026-11-25") == "f1 −3.1 points (−4.2 to +0.1), rouge-1, 2026-11-25"


def test_a_failing_run_says_how_many_and_where_the_gravest_first():
    head = pages.failing().head
    assert head.answer == "Failed: 1 of 27 cells failed audit base_frozen, 2 missed a bound, 1 broke off."
    assert [sentence.partition(":")[0] for sentence in head.more_sentences[:2]] == ["Cause", "Next"]
    assert head.more_sentences[2] == (
        "Failed against before.json: 1 cell missing (t5_sa_lora), 2 cells worse (t5_qa_sft f1, gpt2_sa_lora accuracy)."
    )
    assert [(cause.verdict, cause.name, [cell for cell, _ in cause.cells]) for cause in head.causes] == [
        ("missed", "failed audit base_frozen", ["bert_sum_sft"]),
        ("missed", "missed a bound", ["t5_qa_sft", "gpt2_sa_lora"]),
        ("error", "broke off", ["t5_sa_lora"]),
        ("worse", "quality", ["t5_qa_sft", "gpt2_sa_lora"]),
        ("changed", "Numerics, first at the stage evaluation", ["bert_sum_sft", "t5_qa_sft", "gpt2_sa_lora"]),
    ]
    _, below, _, worse, _ = head.causes
    assert [note for _, note in below.cells] == ["−75.5", "−68.0"]  # 5 and 8 of 40 rows for a bound of 88
    assert worse.cells[0][1].startswith("f1 −85.0 points (−")  # 39 of 40 rows were right, now 5


def frozen(cell, changed):
    sentence = f"{changed} of 53 frozen tensors changed"
    missed = [f"audit base_frozen: {sentence} ({cell}, quick, seed 0)"]
    return record_of(cell, status="missed", missed=missed, audits=[("base_frozen", False, sentence)])


def test_cells_of_one_cause_are_one_line_with_all_their_names():
    adapted = [cell for cell in STUDY_IDS if not cell.endswith("sft")]
    [cause] = page_of(run_of(frozen(cell, 2) if cell in adapted else record_of(cell) for cell in STUDY_IDS)).head.causes
    assert [cell for cell, _ in cause.cells] == adapted
    assert (len(adapted), cause.sentence) == (18, "2 of 53 frozen tensors changed")
    [cause] = page_of(run_of([frozen("t5_sa_lora", 2), frozen("bert_qa_lora", 3)])).head.causes
    assert cause.sentence == "bert_qa_lora: 3 of 53 frozen tensors changed"


def test_changed_numerics_are_one_line_a_stage_with_the_module_of_each_cell():
    details = {"t5_sa_lora": "forward: a.b.c.d.query (Linear, torch) is the first", "t5_qa_lora": "forward: the loss moved"}
    judged = [
        Judgement(cell=cell, main_score="f1", quantity="numerics", verdict=Verdict.CHANGED, detail=detail)
        for cell, detail in details.items()
    ]
    page = page_of(run_of(map(record_of, details)), [run_of(map(record_of, details), "b.json", "2026-11-01")], verdicts=judged)
    [cause] = page.head.causes
    assert (cause.verdict, cause.name) == ("changed", "Numerics, first at the stage forward")
    assert cause.cells == [("t5_qa_lora", ""), ("t5_sa_lora", "…c.d.query")]
    assert [cell.place for cell in page.cells] == [("forward", ""), ("forward", "a.b.c.d.query")]
    field = render.html(page).partition('<span class="hidden">t5_sa_lora')[2].partition("</td>")[0]
    assert 'title="a.b.c.d.query">forward …c.d.query</small>' in field


# The grid and the cells


def test_a_field_has_its_change_and_changed_cells_are_listed_by_size():
    before = run_of([record_of(right=38)], "b.json", "2026-11-01")
    small = re.compile(r"<small>([^<]*)</small>\s*<span class=\"verdict")
    assert small.findall(render.html(page_of(run_of([record_of(right=36)])))) == ["+2.0"]  # 90 points for a bound of 88
    assert small.findall(render.html(page_of(run_of([record_of(right=36)]), [before]))) == ["−5.0"]  # 95 before
    both = page_of(run_of([record_of(right=36), record_of("t5_sa_lora", right=39)]), [before])
    assert small.findall(render.html(both)) == ["−5.0", "+9.5 to bound"]
    cells = ("bert_sa_lora", "gpt2_sa_lora", "t5_sa_lora", "t5_qa_lora")
    old = run_of([record_of(cell, 39) for cell in cells], "b.json", "2026-11-01")
    broken = record_of("t5_qa_lora", status="error", scores={}, examples=None, missed=["ValueError: no"])
    page = page_of(run_of([*(record_of(cell, right) for cell, right in zip(cells, (30, 39, 10), strict=False)), broken]), [old])
    assert [cell.id for cell in page.changed] == ["t5_qa_lora", "t5_sa_lora", "bert_sa_lora"]
    assert not page_of(old, [old]).changed
    assert "Changed since" not in text_of(page_of(old, [old]))


@pytest.mark.parametrize(
    ("right", "shade"), [(36, "a2"), (40, "a4"), (35, "b1"), (34, "b3"), (20, "b4")]
)  # 90, 100, 87.5, 85 and 50 points for a bound of 88
def test_a_field_is_shaded_by_its_distance_from_the_bound(right, shade):
    [cell] = page_of(run_of([record_of(right=right)])).cells
    assert cell.shade == shade


def test_seeds_are_one_cell_with_an_interval_which_says_how_to_run_just_it():
    [cell] = page_of(run_of(record_of(right=right, seed=seed) for seed, right in enumerate((36, 37, 38)))).cells
    # 90, 92.5, 95 have variance 6.25, a third of which is 2.083 with 2 degrees of freedom; the rows' means, 36 times 100,
    # 66.7, 33.3, 0 and 0, have variance 597.6, a 40th of which is 14.94 with 39. Together 17.02 with 36.7: t 2.027 x 4.126
    assert cell.score == 92.5
    assert (round(cell.interval.low, 1), cell.interval.high) == (84.1, 100.0)
    assert cell.command == "pytest -m quick --cells=bert_sa_lora --seeds=0,1,2"
    own = complete(limits={"train_rows": None, "validation_rows": None, "test_rows": None, "own_test": True}, profile="full")
    assert page_of(run_of([own])).cells[0].command == (
        "pytest -m full --cells=bert_sa_lora --seeds=0 --set own_test=true --device=cpu"
    )
    [cell] = page_of(run_of([pages.foreign("net1", "sa", "dora", 36)])).cells
    assert cell.command == "pytest -m quick --grid=FILE.py --cells=net1_sa_dora --seeds=0"


def test_history_has_a_verdict_at_each_step_and_its_small_lines_are_over_time():
    runs = [run_of([record_of(right=right)], f"{right}.json", f"2026-11-{right}") for right in (10, 20, 30)]
    history = page_of(runs[2], [runs[1], runs[0]]).history
    assert [run.name for run in history.runs] == ["10.json", "20.json", "30.json"]
    assert [score for score, _ in history.steps["bert_sa_lora"]] == [25.0, 50.0, 75.0]
    assert [verdict for _, verdict in history.steps["bert_sa_lora"]] == [None, "better", "better"]
    runs = [run_of([record_of(right=right)], f"{day}.json", f"2026-11-{day}") for day, right in ((10, 10), (11, 20), (20, 30))]
    history = page_of(runs[2], [runs[1], runs[0]]).history
    assert [x for x, _, _ in history.spark("bert_sa_lora").dots] == [6.0, 16.8, 114.0]  # 108 px for ten days
    assert (history.axis.labels, history.axis.ticks) == (("2026-11-10", "2026-11-20"), [6.0, 16.8, 114.0])
    undated = page_of(runs[2], [run_of([record_of()], "b.json", "")]).history
    assert undated.axis is None
    assert [x for x, _, _ in undated.spark("bert_sa_lora").dots] == [6.0, 114.0]


def test_the_environment_stands_once_on_top_with_what_differs_from_before():
    old = run_of([record_of(versions={"peft": "0.20.0"})], "b.json", "2026-11-01")
    new = run_of([record_of(versions={"peft": "0.21.0"})], command="pytest -m quick")
    text = re.sub(r"\s+", " ", text_of(page_of(new, [old])))
    assert "command pytest -m quick device" in text
    assert "peft 0.21.0" not in text.partition("Recipe and data")[2]
    assert "peft 0.21.0 (0.20.0 before)" in text
    own = [record_of(versions={"peft": "0.21.0"}), record_of("t5_sa_lora", versions={"peft": "0.22.0"})]
    assert text_of(page_of(run_of(own))).count("peft 0.22.0") == 1  # in its own section, since cells differ


def test_a_cell_that_broke_off_shows_its_traceback_and_its_last_lines():
    crash = {"traceback": ['  File "peft/layer.py", line 9', "ValueError: <no> rows"], "printed": ["loading gpt2-micro"]}
    page = render.html(
        page_of(run_of([record_of(status="error", scores={}, examples=None, missed=["ValueError"], crash=crash)]))
    )
    [told, printed] = re.findall(r"<pre[^>]*>(.*?)</pre>", page, flags=re.S)
    assert told.startswith("  File")  # as far to the right as it was
    assert "line 9&#10;ValueError: &lt;no&gt; rows" in told
    assert printed == "loading gpt2-micro&#10;"
    assert "<pre" not in render.html(pages.one_cell())


def test_committed_runs_become_pages_without_empty_sections_and_a_full_run_stands_beside_the_study():
    page = render.html(page_of(read_page_run(ROOT / "reports" / "study.json")))
    assert re.findall(r'<section id="(\w+)"', page) == re.findall(r'<li><a href="#(\w+)">', page) == ["grid", "cells"]
    assert "<small>rougeL or rougeLsum</small>" in page  # BERT's cells have rougeL alone
    full = run_of([complete("bert_sum_lora", profile="full", scores={"rouge1": 30.0})])
    lines = compared(full.records).lines
    assert [(line.score, line.ours, line.theirs) for line in lines][:2] == [("rouge1", 30.0, 26.88), ("rouge2", None, 12.69)]
    assert "Beside the study" in text_of(page_of(full))
    assert compared([complete("bert_sum_lora")]) is None
    footprint = page_of(read_page_run(ROOT / "reports" / "cpu-amd-epyc" / "footprint.json"))
    assert "activations" in text_of(footprint)
    assert len(footprint.cells) == 27


# Test rows


def rows_with(points, predictions=None, ids=None):
    """A record and its examples."""
    kept = Examples(
        ids=ids or [f"id{index}" for index in range(len(points))],
        points={"accuracy": points},
        predictions=predictions or ["1"] * len(points),
    )
    data = MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": len(points)}}
    of_rows = {"examples": vars(examples.write(kept)), "data": data, "scores": {"accuracy": fmean(points)}, "bounds": {}}
    return complete(labels=["bad", "good"], **of_rows)


def test_flips_come_first_then_the_rows_with_fewest_points():
    old, new = rows_with([100.0, 0.0, 100.0, 0.0, 100.0]), rows_with([100.0, 100.0, 0.0, 0.0, 100.0])
    sample = sampled(new, None, old, None, limit=4)
    assert [(row.number, row.change) for row in sample.rows] == [(3, "lost"), (2, "gained"), (4, "same"), (1, "same")]
    assert (sample.total, sample.lost, sample.gained, sample.paired) == (5, 1, 1, True)
    old, new = rows_with([100.0] * 9 + [0.0] * 9), rows_with([0.0] * 9 + [100.0] * 9)
    assert [row.change for row in sampled(new, None, old, None, limit=6).rows] == ["lost"] * 3 + ["gained"] * 3
    [right, wrong] = sampled(rows_with([100.0, 0.0], ["1", "1"]), None, None, None, limit=2).rows[::-1]
    assert (right.new, right.reference, wrong.new, wrong.reference) == ("good", "good", "good", "bad")
    old, new = rows_with([100.0], ids=["other"]), rows_with([0.0])
    sample = sampled(new, None, old, None, limit=1)
    assert (sample.paired, sample.rows[0].old) == (False, None)
    assert sample.missing[0] == "the older run scored other test rows: its predictions are not paired"


def test_what_rows_say_is_kept_once_a_task_under_the_same_names_of_examples(tmp_path):
    record = rows_with([100.0])
    assert record.examples.file == "aa99e1b22573f893.parquet"  # as before there were texts
    assert examples.read_texts(record, None) is None
    examples.write_texts(record.examples.rows_hash, Texts(inputs=["x" * 700], references=["good"]))
    texts = examples.read_texts(record, None)
    assert (len(texts.inputs[0]), texts.references) == (600, ["good"])
    examples.keep_beside([record], tmp_path / "kept" / "run.json")
    assert {path.name for path in (tmp_path / "kept" / "examples").iterdir()} == {
        record.examples.file,
        f"rows-{record.examples.rows_hash}.parquet",
    }


def test_text_of_data_sets_is_escaped_and_cut(tmp_path):
    content = render.html(pages.failing())
    assert HOSTILE not in content
    assert "&lt;script&gt;document.title" in content
    assert content.count("<script>") == 1
    huge = rows_with([0.0], ["x" * 10_000_000])
    assert len(render.html(page_of(run_of([huge])))) < 100_000
    losses = complete(training=to_json(huge)["training"] | {"losses": [0.5] * 1_000_000})
    assert len(render.html(page_of(run_of([losses])))) < 100_000


def test_what_should_have_been_answered_in_words():
    spans = {"text": ["in May", "May", "in May"], "answer_start": [3, 6, 3]}
    said = [in_words(1, ("negative", "positive")), in_words(spans, ()), in_words("a summary", ())]
    assert said == ["positive", "in May | May", "a summary"]


# Charts


def dot(name, cost, score, front=""):
    return Dot(name=name, front=front, look=Look("o", 0), cost=cost, score=score, low=score, high=score)


def test_each_front_is_drawn_as_stairs():
    dots = [dot("good", 9, 90, "bert"), dot("cheap", 1, 50, "bert"), dot("bad", 8, 40), dot("fair", 3, 70, "bert")]
    chart = charts.scatter([*dots, dot("other", 2, 99, "t5")])
    assert [mark.dot.name for mark in chart.marks] == ["bad", "cheap", "other", "fair", "good"]
    cheap, other, fair, good = ((mark.x, mark.y) for mark in chart.marks[1:])
    stairs = [cheap, (fair[0], cheap[1]), fair, (good[0], fair[1]), good]
    assert chart.fronts == [" ".join(f"{x},{y}" for x, y in stairs), f"{other[0]},{other[1]}"]


def test_page_and_comparison_star_the_same_cells():
    path = ROOT / "reports" / "baselines" / "quick-cpu.json"
    page = page_of(read_page_run(path))
    tables = compare.compared({path: read_list(path)}, Noise())
    costs = [TRAINED, TENSORS, SECONDS]  # the run's cells shared processes, so that their peaks are no cost
    by_tables = {
        (f"{table.backbone}_{table.task}_{method}", AXES[cost])
        for table in tables
        for cost in costs
        for method in table.on_front(cost)
    }
    drawn = {
        ("{0}_{task}_{1}".format(*mark.dot.name.split(), task=group.task), name)
        for group in page.groups
        for panel in group.panels
        for name, chart in panel.charts
        for mark in chart.marks
        if mark.dot.front
    }
    assert by_tables == drawn
    assert len(tables) * len(costs) <= len(drawn) < 27 * len(costs)


def test_a_peak_is_drawn_where_it_is_the_cells_own_and_else_the_page_says_what_stands_in_its_place():
    shared = pages.passing()
    alone = page_of(run_of(replace(record, memory=replace(record.memory, cells_before=0)) for record in shared.run.records))
    drawn = [[name for name, _ in page.groups[0].panels[0].charts] for page in (shared, alone)]
    assert drawn == [["trainable bytes", "bytes of tensors", "train seconds"], ["trainable bytes", "peak GiB", "train seconds"]]
    assert "No front is over memory peaks: processes may have run several cells" in text_of(shared)
    assert "No front is over" not in text_of(alone)


def test_many_methods_have_one_mark_each_and_a_few_are_shapes_whose_backbones_are_colours():
    methods = [f"m{index:02}" for index in range(18)]
    [group] = page_of(run_of(pages.foreign(net, "sa", method, 36) for net in ("net1", "net2") for method in methods)).groups
    assert (group.columns, [name for name, _ in group.lines]) == (["net1", "net2"], methods)
    assert [panel.backbone for panel in group.panels] == ["net1", "net2"]
    assert [name for name, _ in group.looks.legend] == methods
    assert len({look for _, look in group.looks.legend}) == 18
    assert {group.looks.of("net2", name) for name in methods} == {look for _, look in group.looks.legend}
    looks = Looks(["lora", "sft"], ["bert", "t5"])
    assert looks.legend == [("lora", Look("o", None)), ("sft", Look("s", None)), ("bert", Look("s", 0)), ("t5", Look("s", 1))]
    assert looks.of("t5", "lora") == Look("o", 1)


def test_curves_share_a_scale_ticks_are_round_and_bars_follow_each_other():
    assert charts.extent([[4.0, 1.0], [2.0, None, 3.0]]) == charts.Extent(3, 0.0, 4.0)
    axes = charts.Extent(3, 0.0, 4.0)
    [short, long] = (charts.curve(losses, [], 100, 50, axes=axes) for losses in ([4.0, 2.0], [4.0, 3.0, 2.0]))
    assert (short.x, short.y) == (long.x, long.y)
    flat, steep = charts.spark([50.0, 51.0], [0.0, 100.0]), charts.spark([0.0, 100.0], [0.0, 100.0])
    assert flat.dots[0][1] - flat.dots[1][1] < 1 < steep.dots[0][1] - steep.dots[1][1]
    assert charts.linear_ticks(61.3, 97.2, 5) == [70, 80, 90]
    assert [charts.log_ticks(40, 30_000, 4), charts.log_ticks(9, 110, 5)] == [[100, 1000, 10_000], [10, 20, 50, 100]]
    parts = charts.stacked([10, None, 30], longest=80)  # in percent of the longest
    assert [(part.start, part.width, part.kind) for part in parts] == [(0, 12.5, 0), (12.5, 37.5, 2)]
    assert charts.thinned([1.0, 3.0, None, 5.0], most=2) == [(1.5, 2.0), (3.5, 5.0)]
    assert len(charts.thinned([0.5] * 100_000)) <= 120


def test_what_instruments_measured_has_a_table_each_and_a_reason_where_nothing_was():
    frame = tidy("loss", [1.0, 2.0], part="a", row=["x", "y"]).assign(instrument="own")
    refused = tidy("", float("nan"), note="no such base").assign(instrument="own")
    part = {"question": "why?", "figures": {"loss": Figure(shown=".2f")}}
    records = [
        replace(record_of(cell), instruments={"own": InstrumentRecord(**part, file=examples.write_figures(own))})
        for cell, own in (("bert_sa_lora", frame), ("t5_sum_sft", refused))
    ]
    page = page_of(run_of(records))
    [table] = page.figures
    assert (table.heading, table.sentences) == ("own: why?", ["no figure, t5_sum_sft: no such base"])
    assert re.search(r"bert_sa_lora\s+a\s+1.50 \(1.00 2.00\)", text_of(page))
    assert "Instruments" not in text_of(page_of(run_of([record_of("t5_sum_sft")])))


# Size and bad input


def test_what_is_missing_or_of_another_profile_is_said_on_the_page(tmp_path):
    gone = complete(examples={"file": "0" * 16 + ".parquet", "rows_hash": "0" * 16})
    assert "examples/0000000000000000.parquet is missing beside the run" in text_of(page_of(run_of([gone])))
    unlike = page_of(run_of([record_of()]), [run_of([record_of(rows="other")], "old.json", "2026-11-01")])
    assert "old.json scored other test rows in bert_sa_lora: its figures are shown, but not paired" in text_of(unlike)
    assert unlike.head.state == "passed"
    disjoint = page_of(run_of([record_of()]), [run_of([record_of("t5_qa_sft")], "old.json", "2026-11-01")])
    assert disjoint.head.more_sentences == ["old.json and run.json have no finished cell in common, so nothing is compared."]
    records = [record_of(), record_of("t5_sa_lora"), from_json(footprint_json())]
    page = page_of(of_profile(run_of(records)))
    assert len(page.cells) == 2
    assert page.remarks == ["run.json also holds records of another profile (1 of footprint): --profile shows those"]
    assert page_of(of_profile(run_of(records), "footprint")).footprint


def test_what_cannot_be_shown_is_one_sentence(tmp_path, capsys, monkeypatch):
    good, bad, page = run_file(tmp_path / "good.json", [record_of()]), tmp_path / "bad.json", tmp_path / "p.html"
    bad.write_text(good.read_text().replace('"accuracy": 90.0', '"accuracy": NaN'))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(render, "which", lambda name: None)
    for arguments, sentence in (
        ((bad, "-o", page), "scores.accuracy is NaN, but it should be a finite number"),
        ((good, "-o", page, "--profile", "full"), "good.json holds no cells of full, but of quick"),
        ((good, "-o", tmp_path / "file" / "page.html"), "cannot be written"),
        ((good, "-o", tmp_path), "cannot be written"),
        ((good, "-o", page, "--screenshot", tmp_path / "p.png"), "--screenshot needs Chromium: none of chromium, "),
    ):
        assert sentence in refusal(capsys, command.main, *arguments)


# Energy


def with_joules(seed, gpu, cpu):
    phase = PHASE | {"gpu_energy_joules": gpu, "cpu_energy_joules": cpu}
    memory = MEASURED["memory"] | {"phases": {"load": phase, "train": phase, "audit": phase}}
    device = MEASURED["device"] | {"energy": "GPU: NVML; CPU: RAPL, 1 package"}
    return record_of("bert_sa_lora", 39, seed, memory=memory, device=device)


def test_joules_stand_on_the_page_where_counters_told_them():
    shown = text_of(page_of(run_of([with_joules(0, 40.0, None), with_joules(1, 60.0, None)])))
    # each of the two phases of the cell's own took 40 and 60 J, 50 over both seeds; the audit is the suite's
    [row] = re.findall(r"GPU J, training\s+bert_sa_lora\s+(\S+)\s+(\S+)", shown)
    assert row == ("100", "50")
    assert "GPU: NVML; CPU: RAPL, 1 package" in shown
    assert "CPU J" not in shown
    assert 'href="#energy"' not in render.html(pages.one_cell())
