"""Dropout's masks and moments by hand, and the definitions that other audits compare with."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tunegrid.audits import dropout
from tunegrid.audits.computation import changed_in_the_middle, cross_entropies
from tunegrid.audits.dropout import dropout_drops, is_scaled, moments, repetition
from tunegrid.codecs.base import Feature
from tunegrid.grid.methods import Measured
from tunegrid.run import module_figures
from tunegrid.run.probe import norm
from tunegrid.tests.small import assert_fails, assert_passes, fine_tuner, get_evidence, read_rows


@pytest.fixture(scope="module")
def evidence():
    """A cell that has not trained."""
    rows = read_rows("amazon_polarity/train")[:8]
    return get_evidence(fine_tuner("bert_sa_sft", rows, max_steps=1))


def draw(rate, count=24, seed=0):
    """Masks that keep a value with probability 1 - rate."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand((2, 500), generator=generator) >= rate).float() for _ in range(count)]


# Masks


@pytest.mark.parametrize(
    ("output", "is_right"),
    [([1.25, 0.0, 5.0], True), ([1.0, 0.0, 4.0], False), ([1.25, 0.0, 4.0], False)],
)
def test_kept_values_are_divided_by_the_share_that_is_kept(output, is_right):
    values = torch.tensor([1.0, -2.0, 4.0])
    assert is_scaled(values, torch.tensor(output), 0.2) == is_right


def test_masks_that_repeat_themselves_are_named():
    masks = draw(0.1)
    assert repetition(masks, range(2)) == ""
    assert repetition(masks[:1] * 5, range(2)) == "drops the same values each time"
    shared = [mask[:1].expand(2, -1) for mask in masks]
    assert repetition(shared, range(2)) == "drops the same values in all 2 rows of dimension 0"


# Moments


def moment_faults(rate, scale, high_rate):
    """Faults of masks times `scale`, held to be of rate 0.1, and of masks of a high rate."""
    outputs = [scale * mask for mask in draw(rate)]
    high_outputs = [mask / (1 - high_rate) for mask in draw(high_rate, count=16, seed=1)]
    answers = moments(torch.ones(2, 500), outputs, high_outputs, 0.1)
    return [sentence for luck, sentence in answers if not luck]


def test_dropout_by_its_definition_keeps_mean_and_variance():
    assert moment_faults(rate=0.1, scale=1 / 0.9, high_rate=0.8) == []


@pytest.mark.parametrize(
    ("rate", "scale", "high_rate", "start"),
    [
        (0.1, 1.0, 0.8, "gives 9"),  # the mean is 90 % without the scale
        # Half as much as is asked for, at both rates
        (0.05, 1 / 0.95, 0.4, "does not drop 10.00%"),
    ],
)
def test_mean_and_variance_show_scale_and_rate(rate, scale, high_rate, start):
    assert moment_faults(rate, scale, high_rate)[0].startswith(start)


def test_a_deviation_that_does_not_come_again_is_luck_and_one_that_does_is_a_fault(
    evidence, monkeypatch
):
    unlucky = (Measured(9.0, 7.0), "is off")
    calls = []

    def off_once(*arguments):
        calls.append(arguments)
        return [unlucky] if len(calls) == 1 else moments(*arguments)

    monkeypatch.setattr(dropout, "moments", off_once)
    assert_passes(dropout_drops, evidence)
    monkeypatch.setattr(dropout, "moments", lambda *arguments: [unlucky])
    assert "is off" in assert_fails(dropout_drops, evidence)


# The checkpoint's config


def test_a_dropout_that_the_config_declares_and_the_model_lacks_is_named(evidence):
    def declaring(dropouts):
        backbone = replace(evidence.cell.backbone, dropouts=dropouts)
        return replace(evidence, cell=replace(evidence.cell, backbone=backbone))

    assert dropout_drops(declaring({}))[0]  # a backbone of a user may declare nothing
    detail = assert_fails(dropout_drops, declaring({"no_such_module": "hidden_dropout_prob"}))
    assert "no dropout of hidden_dropout_prob 0.05" in detail


def test_attentions_dropout_is_seen_by_its_effect(evidence, monkeypatch):
    # Two embeddings', two a layer and the classifier's are modules; attention's is a number
    detail = assert_passes(dropout_drops, evidence)
    assert detail == "8 drop at their declared rate, 3 have an effect"
    for module in evidence.model.modules():
        if isinstance(module, nn.Dropout):
            monkeypatch.setattr(module, "p", 0.1)
    assert "dropout 0.1, not 0.05" in assert_fails(dropout_drops, evidence)


# Definitions


def test_cross_entropy_by_its_definition():
    scores = torch.tensor([[0.0, math.log(3.0)], [1000.0, 1000.0], [-math.inf, 5.0]])
    expected = [math.log(4 / 3), math.log(2), 0.0]
    assert cross_entropies(scores, torch.tensor([1, 0, 1])).tolist() == pytest.approx(expected)


def test_norms_and_projections_are_sums_of_products(monkeypatch):
    assert norm([torch.tensor([3.0, 4.0]), torch.tensor(12.0)]) == 13.0
    tensor = torch.arange(12.0).reshape(2, 3, 2)
    size, projections = module_figures.tensor_figures(tensor)
    assert size.item() == pytest.approx(math.sqrt(506))  # 0 + 1 + 4 + ... + 121
    rows = module_figures.random_vectors(6, tensor.device)
    columns = module_figures.random_vectors(2, tensor.device)
    expected = torch.einsum("ij,ik,jk->i", rows, columns, tensor.reshape(6, 2))
    assert projections.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    monkeypatch.setattr(module_figures, "MOST_PRODUCTS", 4)  # two rows at a time
    _, projections = module_figures.tensor_figures(tensor)
    assert projections.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_another_token_of_its_own_stands_in_the_middle_of_a_target_but_not_its_end():
    row = Feature(example=0, input_ids=[1], target=[5, 6, 5, 1])
    assert changed_in_the_middle(row).target == [5, 6, 6, 1]
    assert changed_in_the_middle(replace(row, target=[5, 1])).target == [5, 5]
