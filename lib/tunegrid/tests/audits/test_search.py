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
from tunegrid.audits.search import allowed_scores, beam_search, get_openness
from tunegrid.codecs.base import Feature
from tunegrid.grid.recipes import Generation

A, B, END = range(3)
# Chances of A, B and the end behind each begun text.
CHANCES = {(): (0.5, 0.4, 0.1), (A,): (0.35, 0.25, 0.4), (B,): (0.05, 0.05, 0.9)}


def found(beams, cap=3, penalty=0.0, chances=CHANCES):
    rules = Generation(num_beams=beams, max_new_tokens=cap, length_penalty=penalty)
    asking = beam_search(rules, END)
    begun = next(asking)
    while True:
        scores = torch.tensor([chances.get(tuple(ids), (0.2, 0.2, 0.6)) for ids in begun]).log()
        try:
            begun = asking.send(scores)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize(
    ("rules", "texts"),
    [
        ({"beams": 1}, [(A, END)]),  # each token is the likeliest
        ({"beams": 1, "cap": 1}, [(A,)]),
        # 0.36 and 0.2; the end alone, 0.1, is the third behind no token, and so none of the two
        # beams
        ({"beams": 2}, [(B, END), (A, END)]),
        # By the square of the length: log(0.36) / 4 and log(0.2) / 4 are above log(0.1), of the end
        # alone.
        ({"beams": 3, "cap": 2, "penalty": 2.0}, [(B, END), (A, END), (A, A)]),
        # The longer the worse: log(0.1) x 1 is above log(0.36) x 4.
        ({"beams": 3, "cap": 2, "penalty": -2.0}, [(END,), (B, END), (A, END)]),
    ],
)
def test_the_texts_that_a_search_finds(rules, texts):
    assert [beam.ids for beam in found(**rules)] == texts


def test_a_score_is_divided_by_the_texts_length_to_the_power_of_the_penalty():
    assert found(beams=2, penalty=2.0)[0].score == pytest.approx(math.log(0.36) / 4)


def test_a_search_goes_on_while_a_running_text_may_become_better():
    """Behind two ended texts, 0.2 and 0.16, A A runs with 0.25: it ends as the best."""
    chances = {
        (): (0.5, 0.4, 0.1),
        (A,): (0.5, 0.1, 0.4),
        (B,): (0.3, 0.3, 0.4),
        (A, A): (0.01, 0.01, 0.98),
    }
    assert [beam.ids for beam in found(beams=2, chances=chances)] == [(A, A, END), (A, END)]


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
    rules = Generation(num_beams=1, max_new_tokens=1, no_repeat_ngram_size=size)
    codec = SimpleNamespace(start_id=None, end_id=END)
    scores = allowed_scores(
        codec, rules, SimpleNamespace(input_ids=tokens), torch.zeros(1, 5), [()]
    )
    assert set(scores[0].isinf().nonzero().flatten().tolist()) == banned


@pytest.mark.parametrize(
    ("begun", "start", "banned"), [((A,), None, True), ((A,), 7, False), ((A, B), None, False)]
)
def test_no_end_before_the_least_length_which_counts_a_decoders_first_token(begun, start, banned):
    rules = Generation(num_beams=1, max_new_tokens=4, min_length=2)
    codec = SimpleNamespace(start_id=start, end_id=END)
    scores = allowed_scores(
        codec, rules, SimpleNamespace(input_ids=[5]), torch.zeros(1, 3), [begun]
    )
    assert bool(scores[0, END].isinf()) == banned


def test_a_text_is_as_open_as_the_best_that_leaves_it_may_be():
    """A END has 0.2; what leaves it has at most 0.4, by B, or 0.175, behind A."""
    scores = torch.tensor([CHANCES[()], CHANCES[(A,)]]).log()
    rules = Generation(num_beams=2, max_new_tokens=4, length_penalty=0.0)
    assert get_openness(scores, [A, END], rules) == pytest.approx(math.log(0.4 / 0.2))
    longer = replace(rules, length_penalty=1.0)
    assert get_openness(scores, [A, END], longer) == pytest.approx(
        math.log(0.4) / 4 - math.log(0.2) / 2
    )


# Ties


def fake_beams(monkeypatch, chances, rounding):
    """Beams over a table of chances, of one row whose text was A END, with this rounding."""
    monkeypatch.setattr(search, "get_rounding", lambda beams, place: rounding)
    monkeypatch.setattr(search, "allowed_scores", lambda codec, rules, row, logits, begun: logits)
    beams = object.__new__(search.Beams)
    beams.codec = SimpleNamespace(end_id=END)
    beams.rows = [None]
    beams.known = [{ids: torch.tensor(values).log() for ids, values in chances.items()}]
    beams.ask = lambda requests: None
    return beams


@pytest.mark.parametrize(
    ("gap", "rounding", "noise"),
    [(1e-5, 1e-4, 1.0), (1e-3, 3e-4, 4.0), (1e-2, 1e-4, math.inf)],
    ids=["a tie", "a tie of four times the rounding", "no tie"],
)
def test_a_text_that_rounding_may_choose_is_told_from_one_that_it_cannot(
    monkeypatch, gap, rounding, noise
):
    """A search without beams prefers B by `gap` nats."""
    first = 0.5
    chances = {
        (): (first, first * math.exp(gap), 1e-9),
        (A,): (0.1, 0.1, 0.8),
        (B,): (0.1, 0.1, 0.8),
    }
    beams = fake_beams(monkeypatch, chances, rounding)
    rules = Generation(num_beams=1, max_new_tokens=3)
    assert search.find_noise(beams, rules, 0, [(A, END)]) <= noise
    assert math.isinf(search.find_noise(beams, rules, 0, [(A, END)])) == math.isinf(noise)


# A text's logits


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
    codec = SimpleNamespace(start_id=0, end_id=END)
    model = SimpleNamespace(get_encoder=lambda: encoder)
    evidence = SimpleNamespace(text_codec=codec, model=model, trainer=None)
    rows = [
        Feature(example=i, input_ids=[A] * length, target=[]) for i, length in enumerate((3, 1))
    ]
    beams = search.Beams(evidence, rows, [(A, END), (A, END)])
    beams.ask({1: [(B,)]})
    assert shapes == [(1, 2 + 1, 1)]
