"""The figures that the pages quote are those that the commands measured: reports/measured.json."""

import re

import pytest

from tunegrid import ROOT
from tunegrid.lab.grid_runs import read

COUNT = r"([\d,]+)"
# Page, the text around the figures, the section of the file, and each figure's name in it.
QUOTED = [
    ("gate", rf"one training but for rounding \| {COUNT} of 27 \| {COUNT} of 27 \|", "power",
     ("sees 2 points: same seeds, 1 run", "sees 2 points: same seeds, 3 runs")),
    ("gate", rf"\| anything else \| {COUNT} of 27 \| {COUNT} of 27 \|", "power",
     ("sees 2 points: other seeds, 1 run", "sees 2 points: other seeds, 3 runs")),
    ("gate", rf"Of {COUNT} simulated equal runs, at the same seeds {COUNT} are called worse", "power",
     ("runs", "worse: same seeds, 1 run")),
    ("gate", rf"At other seeds it is {COUNT}, and of three runs each {COUNT}", "power",
     ("worse: other seeds, 1 run", "worse: other seeds, 3 runs")),
    ("gate", rf"of {COUNT} healthy runs {COUNT} miss a bound", "power", ("runs", "miss a bound")),
    ("gate", rf"By `false_alarms`.*?, {COUNT} of {COUNT} healthy runs fails?:", "false_alarms", ("all", "runs")),
    ("controls", rf"of all controls, {COUNT} of {COUNT} miss", "controls zoo", ("missed", "controls")),
    ("controls", rf"would not show\. {COUNT} of {COUNT} miss", "controls quick", ("missed", "controls")),
    ("controls", rf"Of their controls, {COUNT} of {COUNT} miss that", "controls tasks", ("missed", "controls")),
]  # fmt: skip


def text_of(page):
    """A page of the evidence, in one line."""
    return " ".join((ROOT / "reports" / "evidence" / f"{page}.md").read_text().split())


def section(name):
    """A section of the file, or a part of one."""
    found = read()
    for part in name.split("."):
        found = found[part]
    return found


@pytest.mark.parametrize(("page", "pattern", "name", "keys"), QUOTED, ids=[pattern[:30] for _, pattern, *_ in QUOTED])
def test_a_page_quotes_what_was_measured(page, pattern, name, keys):
    text = text_of(page)
    quoted = re.findall(pattern, text)
    assert len(quoted) == 1, f"{page}.md has {len(quoted)} places like {pattern}"
    figures = quoted[0] if isinstance(quoted[0], tuple) else (quoted[0],)
    measured = [section(name)[key] for key in keys]
    messages = f"{page}.md quotes {', '.join(figures)} of {name}; measured is {measured}"
    assert [float(figure.replace(",", "")) for figure in figures] == measured, messages


def test_every_section_is_quoted_or_evidence_alone():
    quoted = {name.partition(".")[0] for _, _, name, _ in QUOTED}
    assert quoted <= set(read())
    alone = {"calibrate quick", "calibrate zoo", "calibrate tasks", "numerics"}
    assert {name for name in read() if name not in quoted} <= alone
