"""`tunegrid plot`: the charts of a page and the tables of a comparison, for papers."""

import sys

import pytest

from tunegrid.commands import plot
from tunegrid.page import figures
from tunegrid.page.runs import together
from tunegrid.page.view import page_of
from tunegrid.results import compare, examples
from tunegrid.results.files import read_saved
from tunegrid.results.table import Column, latex, latex_table
from tunegrid.tests.pages import record_of, saved


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Examples of these runs stay out of the machine's own store."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")


@pytest.fixture
def runs(tmp_path):
    """Two files: 36 and 30 of 40 rows right, by two methods."""
    files = {"bert_sa_lora": 36, "bert_sa_sft": 30}
    records = [record_of(cell, right, bounds={"accuracy": 70.0}) for cell, right in files.items()]
    return [saved(tmp_path / f"{record.cell}.json", [record]) for record in records]


def test_each_chart_is_an_svg_and_a_png_and_the_tables_are_those_of_compare(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert plot.main([*map(str, runs), "-o", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    charts = {f"{name}-sa.{suffix}" for name in ("quality", "losses", "costs") for suffix in ("svg", "png")}
    assert names == charts | {"methods.tex", "methods.md"}
    assert (tmp_path / "out" / "quality-sa.png").read_bytes().startswith(b"\x89PNG")
    assert "trainable bytes" in (tmp_path / "out" / "quality-sa.svg").read_text()
    assert "3 charts as SVG and PNG, 2 tables" in capsys.readouterr().out
    tables = page_of(together([read_saved(path) for path in runs])).comparisons
    assert (tmp_path / "out" / "methods.md").read_text() == compare.as_markdown(tables) + "\n"


def test_a_chart_draws_the_figures_of_the_page(runs):
    pytest.importorskip("matplotlib")
    page = page_of(together([read_saved(path) for path in runs]))
    drawn = dict(figures.figures(page))
    lines = [line for line in drawn["quality-sa"].axes[0].lines if line.get_marker() != "None"]
    dots = {(line.get_xdata()[0], line.get_ydata()[0]) for line in lines}
    assert dots == {(mark.dot.cost, mark.dot.score) for mark in page.groups[0].panels[0].charts[0][1].marks}
    assert {score for _, score in dots} == {90.0, 75.0}


def test_without_matplotlib_one_sentence_names_the_extra(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        plot.main([str(runs[0]), "-o", str(tmp_path / "out")])
    assert capsys.readouterr().err.endswith("error: tunegrid plot needs matplotlib: pip install -e '.[plot]'\n")


def test_runs_that_hold_the_same_seed_and_a_folder_that_is_a_file_are_one_sentence(runs, capsys):
    pytest.importorskip("matplotlib")
    for given, sentence in (([runs[0], runs[0]], "holds twice bert_sa_lora of seed 0"), ([runs[0]], "cannot be written")):
        with pytest.raises(SystemExit):
            plot.main([*map(str, given), "-o", str(runs[1])])
        assert sentence in capsys.readouterr().err


def test_latex_shows_text_as_it_is():
    assert latex(r"a_b & 5 % of $x\y$ {~^} <#>") == (
        r"a\_b \& 5 \% of \$x\textbackslash{}y\$ \{\textasciitilde{}\textasciicircum{}\} \textless{}\#\textgreater{}"
    )
    table = latex_table([Column(title="method"), Column(title="95 %", right=True)], [("q_lora", "1.0* ")])
    assert table == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & 95 \% \\",
        r"\midrule",
        r"q\_lora & 1.0* \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
