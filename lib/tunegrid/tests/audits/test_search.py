"""The search that audits hold scored texts against, by hand: three tokens, of which the last one ends a text."""

import math
from types import SimpleNamespace

import pytest
import torch

from tunegrid.audits.scores import allowed_scores, shortfall
from tunegrid.grid.recipes import Generation

A, B, END = range(3)
# Chances of A, B and the end behind each begun text.
CHANCES = {(): (0.5, 0.4, 0.1), (A,): (0.3, 0.3, 0.4), (B,): (0.05, 0.05, 0.9)}


def scores(begun):
    return torch.tensor([CHANCES.get(tuple(ids), (0.2, 0.2, 0.6)) for ids in begun]).log()


def missed(text, beams, cap=3, penalty=0.0):
    search = Generation(num_beams=beams, max_new_tokens=cap, length_penalty=penalty)
    asking = shortfall(text, search, END)
    begun = next(asking)
    while True:
        try:
            begun = asking.send(scores(begun))
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize(
    ("text", "search", "short"),
    [
        ([A, END], {"beams": 1}, 0.0),  # without beams each token is the likeliest
        ([B, END], {"beams": 1}, math.log(0.5 / 0.4)),
        ([A, B, END], {"beams": 1}, math.log(0.4 / 0.3)),
        ([B, END], {"beams": 2}, 0.0),  # 0.36, and the greedy text 0.2
        ([A, END], {"beams": 2}, math.log(0.36 / 0.2)),
        ([A], {"beams": 1}, math.inf),  # neither ends nor fills the room
        ([A], {"beams": 2}, math.inf),
        ([A], {"beams": 1, "cap": 1}, 0.0),
        ([B, END], {"beams": 3, "cap": 2, "penalty": 4.0}, 0.0),  # log(0.36) / 2**4 is above log(0.1), of the end alone
    ],
)
def test_how_far_a_text_is_below_the_one_that_the_search_finds(text, search, short):
    assert missed(text, **search) == pytest.approx(short, abs=1e-6)


def test_a_text_that_no_beam_leads_to_is_off_where_it_left_the_beams():
    # Behind one token 0.36 and 0.2 end, and 0.15 is the best that goes on, twice: B A has 0.02.
    assert missed([B, A, END], beams=2) >= math.log(0.15 / 0.02) - 1e-6


@pytest.mark.parametrize(
    ("tokens", "size", "banned"),
    [([1, 2, 3, 1, 2], 3, {3}), ([1, 2, 1, 3, 1], 2, {2, 3}), ([1, 2], 3, set()), ([1, 1], 0, set())],
)
def test_tokens_that_would_repeat_an_n_gram(tokens, size, banned):
    search = Generation(num_beams=1, max_new_tokens=1, no_repeat_ngram_size=size)
    codec = SimpleNamespace(start_id=None, generation=search, end_id=END)
    scores = allowed_scores(codec, SimpleNamespace(input_ids=tokens), torch.zeros(1, 5), [()])
    assert set(scores[0].isinf().nonzero().flatten().tolist()) == banned
