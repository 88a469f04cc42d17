"""Merges of adapters over packed bases: what is told of them, and what is objected to."""

from dataclasses import asdict

import pytest
from tunegrid.record.instruments import MergedRecord, MergesRecord
from tunegrid.results.merges import merge_lines, merge_table, objections

from tunegrid.page import render
from tunegrid.page.view import page_of
from tunegrid.results import examples
from tunegrid.tests.pages import run_of
from tunegrid.tests.records import complete, seeds_as


def merged(base, **changes):
    figures = {"score": 90.0, "flips": 3, "largest_difference": 0.5, "mean_difference": 0.02, "layers": 4, "unlike": []}
    return MergedRecord(**{"base": base, "refused": None} | figures | changes)


def part(**changes):
    parts = {base: merged(base) for base in ("packed", "unpacked", "original")}
    return MergesRecord(**{"rows": 60, "sampled": 16, "served": 92.0, "largest_logit": 4.0} | parts | changes)


def refused(reason):
    nothing = dict.fromkeys(("score", "flips", "largest_difference", "mean_difference"))
    return merged(None, **nothing, layers=0, refused=reason)


def record(merges, seed=0):
    return complete("bert_sa_qlora", merges=asdict(merges), seeds=seeds_as(seed))


def test_over_seeds_figures_are_means_and_the_table_has_a_line_for_each_base():
    # Changes of -2 and -4 points; 3 of 60 rows and 9 of 60 flip.
    other = merged("packed", score=88.0, flips=9, largest_difference=0.7, mean_difference=0.04)
    line = merge_lines([record(part()), record(part(packed=other), seed=1)])[0]
    assert (line.cell, line.base, line.served, line.score) == ("bert_sa_qlora", "packed", 92.0, 89.0)
    assert (line.change, line.worst, line.flips) == (-3.0, -4.0, 10.0)
    assert (line.mean, line.largest, line.logit) == (pytest.approx(0.03), 0.7, 4.0)
    assert merge_table([record(part(original=refused("PEFT takes no Conv1D")))]) == [
        "cell            merged onto points change  worst  flips logits: mean largest     of",
        "bert_sa_qlora   (served)      92.0                                              4.0",
        "                packed        90.0   -2.0   -2.0   5.0%       0.0200   0.500",
        "                unpacked      90.0   -2.0   -2.0   5.0%       0.0200   0.500",
        "                original         -      -      -     -             -       -",
        "not merged, bert_sa_qlora original: PEFT takes no Conv1D",
    ]
    assert merge_table([complete("bert_sa_qlora")]) == []


def test_a_merge_onto_another_base_and_a_layer_without_the_adapter_are_objected_to():
    assert list(objections(part())) == []
    assert list(objections(part(packed=refused("PEFT merges no vectors into packed layers")))) == []
    wrong = part(unpacked=merged("original"), original=merged(None), packed=merged("packed", unlike=["layer.0.query"]))
    assert list(objections(wrong)) == [
        "merged into the packed base, whose layers PEFT packs again, 1 of 4 layers do not compute what the adapter computes "
        "over it, layer.0.query among them",
        "what is to be merged onto the packed base's numbers, unpacked, lies on the original base",
        "what is to be merged onto the checkpoint, which was never packed, lies on none of the three bases",
    ]


def test_the_page_shows_merges_where_a_run_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    html = render.html(page_of(run_of([record(part(original=refused("PEFT takes no Conv1D")))])))
    table = html.partition('aria-label="Merges by cell and base"')[2].partition("</table>")[0]
    assert table.count("<tr>") == 4
    assert '<td class="n">−2.0</td>' in table
    assert "<li>bert_sa_qlora, original, was not merged: PEFT takes no Conv1D</li>" in html
    assert 'id="merges"' not in render.html(page_of(run_of([complete("bert_sa_qlora")])))
