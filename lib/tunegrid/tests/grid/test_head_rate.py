"""A head's new modules may train at a rate of their own: `Recipe.head_learning_rate`."""

from dataclasses import replace

import pytest

from tunegrid.audits.training import schedule_counts_updates
from tunegrid.grid.backbones import within
from tunegrid.grid.cells import STUDY
from tunegrid.grid.methods import LORA
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.grid.zoo import LoraFA
from tunegrid.tests.small import cell_of, evidence_from, rows_of, trainer_for

RATES = {"learning_rate": 1e-2, "head_learning_rate": 1e-3, "max_steps": 2, "per_device_train_batch_size": 2}
REVIEWS = rows_of("amazon_polarity/train")[:4]


def peaks(trainer):
    """The peak rate of each parameter that trains, by whether it is the head's."""
    by_id = {id(p): group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    rates = {True: set(), False: set()}
    for name, parameter in trainer.stepped.items():
        if parameter.requires_grad:
            rates[within(name, trainer.cell.head.new_modules)].add(by_id[id(parameter)])
    return rates


T5, PLUS = cell_of("t5_sa_lora", **RATES), replace(LORA, rate_factors={"lora_B": 16.0})


@pytest.mark.parametrize(
    ("cell", "head", "rest"),
    [
        (T5, {1e-3}, {1e-2}),
        (cell_of("bert_sa_sft", **RATES), {1e-3}, {1e-2}),
        (replace(T5, recipe=replace(T5.recipe, head_learning_rate=None)), {1e-2}, {1e-2}),
        (replace(T5, method=PLUS), {1e-3}, {1e-2, 16e-2}),  # LoRA+ keeps its ratio
    ],
)
def test_the_head_has_its_own_rate_and_the_rest_the_recipes(cell, head, rest):
    assert peaks(trainer_for(cell, REVIEWS)) == {True: head, False: rest}


def test_lora_fa_keeps_its_own_lists_beside_each_parameter():
    trainer = trainer_for(replace(T5, method=LoraFA(id="lorafa", name="LoRA-FA")), REVIEWS)
    groups = trainer.optimizer.param_groups
    names = {id(p): name for name, p in trainer.stepped.items()}
    assert [[names[id(p)] for p in group["params"]] for group in groups] == [group["names"] for group in groups]
    assert all(len(group["scaling_factors"]) == len(group["names"]) for group in groups)
    assert peaks(trainer) == {True: {1e-3}, False: {1e-2}}


def test_a_method_that_ignores_it_is_caught():
    class OneRate(type(LORA)):
        def parameter_groups(self, model, cell):
            return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": 0.0}]

    for method, passes in ((LORA, True), (OneRate(id="lora", name="LoRA"), False)):
        evidence = evidence_from(trainer_for(replace(T5, method=method), REVIEWS), run=True)
        passed, detail = schedule_counts_updates(evidence)
        assert passed is passes
        assert passes or detail == "the head trains at a peak rate of 0.01, not 0.001"


def test_another_learning_rate_changes_the_heads_in_proportion():
    plain = STUDY.cell("t5_sa_lora", QUICK_PROFILE).recipe
    changed = STUDY.cell("t5_sa_lora", replace(QUICK_PROFILE, changes={"learning_rate": plain.learning_rate / 2})).recipe
    assert changed.head_learning_rate == pytest.approx(plain.head_learning_rate / 2)
    assert STUDY.cell("bert_sa_sft", replace(QUICK_PROFILE, changes={"learning_rate": 1.0})).recipe.head_learning_rate is None
