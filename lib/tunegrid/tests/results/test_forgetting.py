"""What is told of forgetting, and what is objected to: figures worked out by hand."""

from dataclasses import asdict

import pytest
from tunegrid.record.instruments import ForgettingRecord
from tunegrid.results.forgetting import forgetting_lines, forgetting_record, forgetting_table, forgot_more, objections
from tunegrid.run.forgetting import TextLosses

from tunegrid.grid.backbones import Objective
from tunegrid.page import render
from tunegrid.page.view import page_of
from tunegrid.record.parts import Estimate
from tunegrid.results import examples
from tunegrid.results.statistics import ratio
from tunegrid.tests.pages import run_of
from tunegrid.tests.records import complete, seeds_as

TOKENS = [10, 10, 20]


STILL = Estimate(value=0.0, low=0.0, high=0.0)


def losses(sums):
    texts = {"qa": 2, "sum": 1}
    return TextLosses(objective=Objective.MASKED, texts=texts, tokens=TOKENS, sums=sums, frozen=False)


def part(nats=0.5, **changes):
    estimates = {
        "before": Estimate(value=1.0, low=0.9, high=1.1),
        "after": Estimate(value=1.0 + nats, low=0.9 + nats, high=1.1 + nats),
        "change": Estimate(value=nats, low=nats - 0.1, high=nats + 0.1),
    }
    known = {"objective": "masked", "texts": {"qa": 2}, "tokens": 40, "frozen": False, "refused": None}
    return ForgettingRecord(**known | estimates | changes)


def record(cell, forgetting, seed=0):
    return complete(cell, forgetting=asdict(forgetting), seeds=seeds_as(seed))


def test_a_loss_is_of_all_tokens_not_a_mean_over_texts():
    # 20 nats over 40 tokens are 0.5; a mean over texts would be 0.6. After: 40 over 40.
    told = forgetting_record(losses([10.0, 6.0, 4.0]), losses([10.0, 10.0, 20.0]))
    assert (told.tokens, told.before.value, told.after.value, told.change.value) == (40, 0.5, 1.0, 0.5)
    assert told.change.low < 0.5 < told.change.high
    assert (told.objective, told.texts) == ("masked", {"qa": 2, "sum": 1})
    # 0.1 nats a token more on every text.
    told = forgetting_record(losses([10.0, 6.0, 4.0]), losses([11.0, 7.0, 6.0]))
    assert (told.change.value, told.change.low, told.change.high) == pytest.approx((0.1, 0.1, 0.1))
    # Two groups of one item each, 0 and 2: means of resamples are 0, 1 and 2.
    assert ratio([0.0, 2.0], [1, 1]) == (1.0, 0.0, 2.0)


def test_a_loss_that_is_no_number_is_null_and_objected_to():
    told = forgetting_record(losses([1.0, 1.0, 1.0]), losses([1.0, float("nan"), 1.0]))
    assert told.after is told.change is None
    assert list(objections(told)) == ["the backbone's own loss is no finite number after training"]


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({"frozen": True}, "nothing of the backbone trains, and its own loss went +0.5 nats"),
        ({"frozen": True, "change": STILL}, None),
        ({}, None),
        (
            {"change": STILL},
            "the backbone trains, and its own loss is the same to the last digit on every text: ",
        ),
    ],
)
def test_a_frozen_backbone_does_not_forget_and_another_stays_not_the_same(changes, objection):
    found = list(objections(part(**changes)))
    assert found == [] if objection is None else found[0].startswith(objection)


def test_over_seeds_changes_are_means_and_a_share_is_of_sfts():
    """LoRA: 0.2 and 0.4, a mean of 0.3; SFT: 0.6."""
    records = [record("bert_sa_lora", part(0.2)), record("bert_sa_lora", part(0.4), seed=1), record("bert_sa_sft", part(0.6))]
    lora, sft = forgetting_lines(records)
    assert (lora.change, lora.share, sft.share) == (pytest.approx(0.3), pytest.approx(0.5), None)


@pytest.mark.parametrize(
    ("lora", "sft", "share", "more"),
    [
        ((0.8, 0.9), (0.15, 0.25), 17 / 4, ["bert_sa_lora"]),
        ((0.8, 0.9), (0.0, 0.1), None, ["bert_sa_lora"]),  # its interval holds 0, so that a share of it says nothing
        ((0.15, 0.25), (0.8, 0.9), 4 / 17, []),
        ((0.8, 0.9), (-0.2, -0.1), None, ["bert_sa_lora"]),  # SFT forgot nothing, so that there is no share of it
        ((-0.3, -0.2), (-0.2, -0.1), None, []),  # LoRA got better by more
        ((0.61, 0.62), (0.6, 0.61), 123 / 121, []),  # within the noise of texts
        ((0.9,), (0.2,), 4.5, []),  # one seed does not tell
    ],
)
def test_an_adapter_forgot_more_than_sft_where_seeds_and_texts_tell(lora, sft, share, more):
    cells = {"bert_sa_lora": lora, "bert_sa_sft": sft}
    records = [record(cell, part(own), seed) for cell, changes in cells.items() for seed, own in enumerate(changes)]
    assert forgetting_lines(records)[0].share == (share and pytest.approx(share))
    assert forgot_more(records) == more


def test_the_table_says_where_an_adapter_forgot_more_than_sft_and_what_was_not_asked():
    nothing = dict.fromkeys(("before", "after", "change", "frozen", "objective"))
    lost = part(refused="the tokenizer has no mask token", **nothing)
    two = [record(cell, part(nats), seed) for cell, nats in [("bert_sa_lora", 0.9), ("bert_sa_sft", 0.6)] for seed in (0, 1)]
    records = [*two, record("gpt2_sa_lora", lost)]
    assert forgetting_table(records) == [
        "cell            points before  after change  95 % interval of SFT's",
        "bert_sa_lora      91.0  1.000  1.900 +0.900  +0.800 +1.000     150%",
        "bert_sa_sft       91.0  1.000  1.600 +0.600  +0.500 +0.700",
        "gpt2_sa_lora      91.0      -      -      -              -",
        "not asked, gpt2_sa_lora: the tokenizer has no mask token",
        "more than SFT of the same backbone and task forgot: bert_sa_lora",
    ]
    assert forgetting_table([complete("bert_sa_lora")]) == []


def test_the_page_shows_scores_against_what_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    html = render.html(page_of(run_of([record("bert_sa_lora", part(-0.2)), record("bert_sa_sft", part(0.6))])))
    section = html.partition('id="forgetting"')[2].partition("</section>")[0]
    assert section.count('<path class="dot c0"') == 2  # LoRA's, below 0, and SFT's
    assert '<td class="n">−0.200</td><td>−0.300 to −0.100</td><td class="n">–33</td>'.replace("–33", "-33") in section
    assert 'id="forgetting"' not in render.html(page_of(run_of([complete("bert_sa_lora")])))
