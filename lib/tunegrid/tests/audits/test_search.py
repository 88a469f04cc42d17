"""The search that audits compare texts with, by hand: three tokens, of which the last one ends a
text.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tunegrid.audits import search
from tunegrid.codecs.base import Feature
from tunegrid.grid.recipes import Generation

A, B, END = range(3)
# Chances of A, B and the end after each unfinished text
CHANCES = {(): (0.5, 0.4, 0.1), (A,): (0.35, 0.25, 0.4), (B,): (0.05, 0.05, 0.9)}


def search_beams(beams, cap=3, penalty=0.0, chances=CHANCES):
    rules = Generation(num_beams=beams, max_new_tokens=cap, length_penalty=penalty)
    steps = search.beam_search(rules, END)
    texts = next(steps)
    while True:
        scores = torch.tensor([chances.get(text, (0.2, 0.2, 0.6)) for text in texts]).log()
        try:
            texts = steps.send(scores)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize(
    ("beams", "cap", "penalty", "texts"),
    [
        (1, 3, 0.0, [(A, END)]),  # each token is the likeliest
        (1, 1, 0.0, [(A,)]),
        # 0.36 and 0.2; the end alone, 0.1, is the third after no token, and so none of the two
        # beams
        (2, 3, 0.0, [(B, END), (A, END)]),
        # By the square of the length: log(0.36) / 4 and log(0.2) / 4 are above log(0.1), of the end
        # alone.
        (3, 2, 2.0, [(B, END), (A, END), (A, A)]),
        # The longer the worse: log(0.1) x 1 is above log(0.36) x 4.
        (3, 2, -2.0, [(END,), (B, END), (A, END)]),
    ],
)
def test_the_texts_that_a_search_finds(beams, cap, penalty, texts):
    assert [beam.ids for beam in search_beams(beams, cap, penalty)] == texts


def test_a_score_is_divided_by_the_texts_length_to_the_power_of_the_penalty():
    assert search_beams(2, penalty=2.0)[0].score == pytest.approx(math.log(0.36) / 4)


def test_a_search_goes_on_while_an_unfinished_text_may_become_better():
    """After two finished texts, 0.2 and 0.16, A A goes on with 0.25: it ends as the best."""
    chances = {
        (): (0.5, 0.4, 0.1),
        (A,): (0.5, 0.1, 0.4),
        (B,): (0.3, 0.3, 0.4),
        (A, A): (0.01, 0.01, 0.98),
    }
    assert [beam.ids for beam in search_beams(2, chances=chances)] == [(A, A, END), (A, END)]


def forbidden_tokens(prompt, text, start=None, **rules):
    rules = Generation(num_beams=1, max_new_tokens=4, **rules)
    codec = SimpleNamespace(start_id=start, end_id=END)
    row = SimpleNamespace(input_ids=prompt)
    [scores] = search.allowed_scores(codec, rules, row, torch.zeros(1, 5), [text])
    return set(scores.isinf().nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("prompt", "size", "forbidden"),
    [
        ([1, 2, 3, 1, 2], 3, {3}),
        ([1, 2, 1, 3, 1], 2, {2, 3}),
        ([1, 2], 3, set()),
        ([1, 1], 0, set()),
    ],
)
def test_tokens_that_would_repeat_an_n_gram_are_forbidden(prompt, size, forbidden):
    assert forbidden_tokens(prompt, (), no_repeat_ngram_size=size) == forbidden


@pytest.mark.parametrize(
    ("text", "start", "forbidden"),
    [((A,), None, {END}), ((A,), 7, set()), ((A, B), None, set())],
)
def test_no_end_before_the_least_length_which_counts_a_decoders_first_token(text, start, forbidden):
    assert forbidden_tokens([5], text, start, min_length=2) == forbidden


def test_a_text_is_as_open_as_the_best_that_leaves_it_may_be():
    """A END has 0.2; what leaves it has at most 0.4, by B, or 0.175, after A."""
    scores = torch.tensor([CHANCES[()], CHANCES[(A,)]]).log()
    rules = Generation(num_beams=2, max_new_tokens=4, length_penalty=0.0)
    assert search.get_openness(scores, [A, END], rules) == pytest.approx(math.log(0.4 / 0.2))
    longer = replace(rules, length_penalty=1.0)
    assert search.get_openness(scores, [A, END], longer) == pytest.approx(
        math.log(0.4) / 4 - math.log(0.2) / 2
    )


@pytest.mark.parametrize(
    ("gap", "rounding", "most_noise"),
    [(1e-5, 1e-4, 1.0), (1e-3, 3e-4, 4.0), (1e-2, 1e-4, math.inf)],
    ids=["a tie", "a tie of four times the rounding", "no tie"],
)
def test_a_text_that_rounding_may_choose_is_told_from_one_that_it_cannot(
    monkeypatch, gap, rounding, most_noise
):
    """A search without beams prefers B by `gap` nats, where the text was A END."""
    monkeypatch.setattr(search, "get_rounding", lambda beams, place: rounding)
    monkeypatch.setattr(search, "allowed_scores", lambda codec, rules, row, logits, texts: logits)
    monkeypatch.setattr(search.Beams, "__init__", lambda beams: None)
    monkeypatch.setattr(search.Beams, "ask", lambda beams, requests: None)
    beams = search.Beams()
    beams.codec = SimpleNamespace(end_id=END)
    beams.rows = [None]
    ends = torch.tensor([0.1, 0.1, 0.8]).log()
    first = torch.tensor([0.5, 0.5 * math.exp(gap), 1e-9]).log()
    beams.known = [{(): first, (A,): ends, (B,): ends}]
    rules = Generation(num_beams=1, max_new_tokens=3)
    noise = search.find_noise(beams, rules, 0, [(A, END)])
    assert noise <= most_noise
    assert math.isinf(noise) == math.isinf(most_noise)


def test_several_ties_in_one_text_are_asked_for_again(monkeypatch):
    """Eight ties must all fall as they did: one search of 256 has them so, 16 mostly have not."""
    monkeypatch.setattr(search, "get_rounding", lambda beams, place: 1.0)
    seen = []

    def find(beams, rules, places, noise, draw):
        seen.append((noise, draw))
        return [[SimpleNamespace(ids=(A, END) if draw == 150 else (B, END))]]

    monkeypatch.setattr(search.Beams, "__init__", lambda beams: None)
    monkeypatch.setattr(search.Beams, "search", find)
    assert search.find_noise(search.Beams(), None, 0, [(A, END)]) == 4.0
    assert seen == [(search.NOISES[min(draw // 16, 4)], draw + 1) for draw in range(150)]
    seen.clear()
    large = search.Beams()
    large.is_micro = False
    assert math.isinf(search.find_noise(large, None, 0, [(A, END)]))
    assert len(seen) == 4 * (5 + 8)


def test_tuned_tokens_stay_before_what_the_encoder_made_of_a_shorter_source(monkeypatch):
    """Two tuned tokens and sources of 3 and 1 are five places; of the shorter one alone, three
    count.
    """
    encoder = nn.Identity()
    shapes = []

    def target_logits(trainer, rows, encoded=None):
        if encoded is None:
            encoder((torch.zeros(2, 2 + 3, 1),))
        else:
            shapes.append(tuple(encoded.shape))
        return [torch.zeros(len(row.target), 3) for row in rows]

    monkeypatch.setattr(search, "target_logits", target_logits)
    evidence = SimpleNamespace(
        text_codec=SimpleNamespace(start_id=0, end_id=END),
        cell=SimpleNamespace(profile=SimpleNamespace(micro=True)),
        model=SimpleNamespace(get_encoder=lambda: encoder),
        trainer=None,
    )
    long_row = Feature(example=0, input_ids=[A] * 3, target=[])
    short_row = Feature(example=1, input_ids=[A], target=[])
    beams = search.Beams(evidence, [long_row, short_row], [(A, END), (A, END)])
    beams.ask({1: [(B,)]})
    assert shapes == [(1, 2 + 1, 1)]
