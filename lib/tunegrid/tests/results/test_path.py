"""Paths and means as figures: rows whose points are known give a place, a gain and a barrier worked out by hand."""

import json

import pytest

from tunegrid.results.path import SHARES, barrier, chosen, path_result, soup_result


def rows(hits, count=200):
    """So many hits of `count`, the first ones."""
    return [100.0 if n < hits else 0.0 for n in range(count)]


def path_of(**hits):
    """Points by share, as in a0=, a5=, a10=; 180 elsewhere."""
    return {share: rows(hits.get(f"a{round(10 * share)}", 180)) for share in SHARES}


def test_the_place_and_the_better_end_are_the_best_and_of_equal_ones_the_first():
    assert chosen(path_of(a0=170, a10=176, a3=185, a6=185)) == (1.0, 0.3)
    assert chosen(path_of()) == (0.0, 0.1)


def test_a_barrier_is_the_deepest_fall_below_the_straight_line():
    # ends 160 and 180 of 200: at 0.5 the line is at 170, which is 85 points; 100 hits are 50 points
    fall = barrier(path_of(a0=160, a5=100))
    assert (fall.share, fall.points) == (0.5, pytest.approx(35.0))
    assert fall.seen
    assert 20 < fall.low < 35 < fall.high < 50


def test_rows_that_a_path_loses_by_chance_are_no_barrier():
    fall = barrier(path_of(a4=178))
    assert fall.points == pytest.approx(1.0)
    assert not fall.seen
    assert not barrier(path_of()).seen


def result(middle):
    validation = path_of(a7=190)
    test = {0.0: rows(170), 0.7: rows(middle), 1.0: rows(150)}
    return path_result(("lora", "sft"), "accuracy", validation, test, {0.0: rows(100), 1.0: rows(180)})


def test_the_gain_is_of_the_chosen_place_over_the_better_end_on_test_rows():
    best = result(190)
    assert (best.chosen, best.better_end) == (0.7, 0.0)
    assert best.gain.points == pytest.approx(10.0)
    assert best.gain.low > 0
    assert (
        "0.7 of the way from lora to sft beats lora, the better end on validation rows: +10.00 points of accuracy"
        in best.as_text()
    )
    assert "cannot be told from lora, the better end on validation rows:" in result(171).as_text()
    assert "is worse than lora, the better end" in result(140).as_text()


def test_where_test_rows_have_another_better_end_it_is_said():
    validation = path_of(a7=190)
    turned = path_result(("lora", "sft"), "accuracy", validation, {0.0: rows(140), 0.7: rows(160), 1.0: rows(190)}, {})
    words = "0.7 of the way from lora to sft beats lora, the better end on validation rows, but not on test rows: +10.00 points"
    assert turned.sentences[0].startswith(words)


def test_a_path_is_a_table_of_places_and_scales_and_plain_json():
    best = result(190)
    table = best.as_text().splitlines()
    assert table[0].split() == ["what", "at", "validation", "test"]
    assert table[8].split() == ["path", "0.7", "95.00", "95.00"]
    assert table[9].split() == ["path", "0.8", "90.00", "-"]
    assert table[12].split() == ["scale", "0", "50.00", "-"]
    assert json.loads(json.dumps(best.as_json()))["gain"]["points"] == pytest.approx(10.0)


def test_a_mean_is_held_to_the_best_model_of_validation_rows():
    validation = {"a": rows(180), "b": rows(185)}
    soup = soup_result("accuracy", validation, {"a": rows(190), "b": rows(170)}, rows(186))
    assert (soup.best, soup.soup) == ("b", 93.0)
    assert soup.gain.points == pytest.approx(8.0)
    assert "gains +8.00 points of accuracy over b" in soup.as_text()
