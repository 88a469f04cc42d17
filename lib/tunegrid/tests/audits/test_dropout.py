"""Dropout's masks and moments by hand, and the definitions that other audits compare with."""

import math
from dataclasses import replace

import pytest
import torch

from tunegrid.audits import dropout
from tunegrid.audits.computation import changed_in_the_middle, cross_entropies
from tunegrid.audits.dropout import dropout_drops, is_scaled, moments, repetition
from tunegrid.codecs.base import Feature
from tunegrid.grid.methods import Measured
from tunegrid.run import module_figures
from tunegrid.run.probe import norm
from tunegrid.tests.small import fine_tuner, get_evidence, read_rows


def draw(rate, shape=(2, 500), count=24, seed=0):
    """Masks that keep a value with probability 1 - rate."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(shape, generator=generator) >= rate).float() for _ in range(count)]


# Masks


def test_what_is_kept_is_divided_by_the_share_that_is_kept():
    values = torch.tensor([1.0, -2.0, 4.0])
    assert is_scaled(values, torch.tensor([1.25, 0.0, 5.0]), 0.2)
    assert not is_scaled(values, torch.tensor([1.0, 0.0, 4.0]), 0.2)
    assert not is_scaled(values, torch.tensor([1.25, 0.0, 4.0]), 0.2)


def test_masks_that_repeat_themselves_are_named():
    masks = draw(0.1)
    assert repetition(masks, range(2)) == ""
    assert repetition(masks[:1] * 5, range(2)) == "drops the same values each time"
    shared = [mask[:1].expand(2, -1) for mask in masks]
    assert repetition(shared, range(2)) == "drops the same values in all 2 rows of dimension 0"


# Moments


@pytest.mark.parametrize(
    ("rate", "scale", "high_rate", "words"),
    [
        (0.1, 1 / 0.9, 0.8, ""),
        (0.1, 1.0, 0.8, "gives 9"),  # the mean is 90 % without the scale
        # Half as much as is asked for, at both rates
        (0.05, 1 / 0.95, 0.4, "does not drop 10.00%"),
    ],
)
def test_mean_and_variance_show_scale_and_rate(rate, scale, high_rate, words):
    outputs = [scale * mask for mask in draw(rate)]
    high_outputs = [mask / (1 - high_rate) for mask in draw(high_rate, count=16, seed=1)]
    faults = [
        sentence
        for luck, sentence in moments(torch.ones(2, 500), outputs, high_outputs, 0.1)
        if not luck
    ]
    assert [fault[: len(words)] for fault in faults[:1]] == [words] * bool(words), faults


def test_a_deviation_that_does_not_come_again_is_luck_and_one_that_does_is_a_fault(monkeypatch):
    evidence = get_evidence(
        fine_tuner("bert_sa_sft", read_rows("amazon_polarity/train")[:8], max_steps=1)
    )
    unlucky = (Measured(9.0, 7.0), "is off")
    answers = []

    def off_once(*arguments):
        answers.append(arguments)
        yield from [unlucky] if len(answers) == 1 else moments(*arguments)

    monkeypatch.setattr(dropout, "moments", off_once)
    assert dropout_drops(evidence)[0]
    monkeypatch.setattr(dropout, "moments", lambda *arguments: [unlucky])
    assert "is off" in dropout_drops(evidence)[1]


# The checkpoint's config


def test_a_dropout_that_the_config_declares_and_the_model_lacks_is_named():
    trainer = fine_tuner("bert_sa_sft", read_rows("amazon_polarity/train")[:8], max_steps=1)
    evidence = get_evidence(trainer)
    assert dropout_drops(evidence)[0]

    def declaring(dropouts):
        backbone = replace(evidence.cell.backbone, dropouts=dropouts)
        return dropout_drops(replace(evidence, cell=replace(evidence.cell, backbone=backbone)))

    assert declaring({})[0]  # a backbone of a user may declare nothing
    passed, detail = declaring({"no_such_module": "hidden_dropout_prob"})
    assert not passed, detail
    assert "no dropout of hidden_dropout_prob 0.05" in detail


# Definitions


def test_cross_entropy_by_its_definition():
    scores = torch.tensor([[0.0, math.log(3.0)], [1000.0, 1000.0], [-math.inf, 5.0]])
    expected = [math.log(4 / 3), math.log(2), 0.0]
    assert cross_entropies(scores, torch.tensor([1, 0, 1])).tolist() == pytest.approx(expected)


def test_norms_and_projections_are_sums_of_products(monkeypatch):
    assert norm([torch.tensor([3.0, 4.0]), torch.tensor(12.0)]) == 13.0
    tensor = torch.arange(12.0).reshape(2, 3, 2)
    size, projections = module_figures.tensor_figures(tensor)
    rows = module_figures.random_vectors(6, tensor.device)
    columns = module_figures.random_vectors(2, tensor.device)
    assert size.item() == pytest.approx(math.sqrt(506))  # 0 + 1 + 4 + ... + 121
    for i in range(3):
        expected = sum(rows[i, j] * columns[i, k] * (2 * j + k) for j in range(6) for k in range(2))
        assert projections[i].item() == pytest.approx(float(expected), abs=1e-4)
    monkeypatch.setattr(module_figures, "MOST_PRODUCTS", 4)  # two rows at a time
    assert module_figures.tensor_figures(tensor)[1].tolist() == pytest.approx(
        projections.tolist(), abs=1e-4
    )


def test_another_token_of_its_own_stands_in_the_middle_of_a_target_but_not_its_end():
    row = Feature(example=0, input_ids=[1], target=[5, 6, 5, 1])
    assert changed_in_the_middle(row).target == [5, 6, 6, 1]
    assert changed_in_the_middle(replace(row, target=[5, 1])).target == [5, 5]
