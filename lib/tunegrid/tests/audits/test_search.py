"""The search that audits hold scored texts against, by hand: three tokens, of which the last one ends a text."""

import math

import pytest
import torch

from tunegrid.grid.recipes import Generation
from tunegrid.run.audits.search import repeating, shortfall

A, B, END = range(3)
# Chances of A, B and the end behind each begun text.
CHANCES = {
    (): (0.5, 0.4, 0.1),
    (A,): (0.3, 0.3, 0.4),
    (B,): (0.05, 0.05, 0.9),
}


def scores(begun):
    return torch.tensor([CHANCES.get(tuple(ids), (0.2, 0.2, 0.6)) for ids in begun]).log()


def missed(text, beams, cap=3, penalty=0.0):
    search = Generation(num_beams=beams, max_new_tokens=cap, length_penalty=penalty)
    return shortfall(text, scores, search, END)


def test_without_beams_each_token_is_the_likeliest():
    assert missed([A, END], beams=1) == 0.0
    assert missed([B, END], beams=1) == pytest.approx(math.log(0.5 / 0.4))
    assert missed([A, B, END], beams=1) == pytest.approx(math.log(0.4 / 0.3))


def test_two_beams_find_the_likelier_text_behind_the_less_likely_token():
    assert missed([B, END], beams=2) == 0.0  # 0.36, and the greedy text 0.2
    assert missed([A, END], beams=2) == pytest.approx(math.log(0.36 / 0.2))


def test_a_text_that_no_beam_leads_to_is_off_where_it_left_the_beams():
    # Behind one token 0.36 and 0.2 end, and 0.15 is the best that goes on, twice: B A has 0.02.
    assert missed([B, A, END], beams=2) >= math.log(0.15 / 0.02) - 1e-6


def test_a_text_that_neither_ends_nor_fills_the_room_is_never_found():
    assert missed([A], beams=1) == math.inf
    assert missed([A], beams=2) == math.inf


def test_the_cap_ends_a_text():
    assert missed([A], beams=1, cap=1) == 0.0


def test_a_penalty_of_length_prefers_longer_texts():
    sums = {"end": math.log(0.1), "b end": math.log(0.36) / 2**4}
    assert sums["end"] < sums["b end"]
    assert missed([B, END], beams=3, cap=2, penalty=4.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "size", "banned"),
    [
        ([1, 2, 3, 1, 2], 3, {3}),
        ([1, 2, 1, 3, 1], 2, {2, 3}),
        ([1, 2], 3, set()),
        ([1, 1], 0, set()),
    ],
)
def test_tokens_that_would_repeat_an_n_gram(tokens, size, banned):
    assert repeating(tokens, size) == banned
