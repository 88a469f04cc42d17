"""Methods beyond the study's three: each is a few lines, trains in the same trainer and is held to the same audits."""

import re
from dataclasses import replace
from itertools import islice, product

import pytest
import torch

from tunegrid.audits import Evidence, audited
from tunegrid.audits.training import schedule_counts_updates
from tunegrid.grid.backbones import within
from tunegrid.grid.methods import LORA, QLORA, SFT, Method
from tunegrid.grid.recipes import ZOO_PROFILE
from tunegrid.grid.zoo import METHODS, zoo
from tunegrid.record.checks import NEED_LENGTH
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.train import Trainer
from tunegrid.tests.sessions import answers_to
from tunegrid.tests.small import cell_of, evidence_from, rows_of, silent, train_rows, trainer_for

REVIEWS, QUESTIONS, NEWS = (rows_of(f"{name}/train")[:16] for name in ("amazon_polarity", "squad", "cnn_dailymail"))
FEW = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0}
ZOO = {method.id: method for method in METHODS}


def trainer_with(method: Method, like: str = "gpt2_sa_lora", rows=REVIEWS, **changes) -> Trainer:
    """A trainer of a quick cell with another method."""
    return trainer_for(replace(cell_of(like, **FEW | changes), method=method), rows)


def trained(method: Method, like: str = "gpt2_sa_lora", rows=REVIEWS, **changes):
    """A quick cell labelled with a method, after a few updates, and the groups of the method's own parameters that moved."""
    trainer = trainer_with(method, like, rows, **changes)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    trainer.run(silent())
    evidence = Evidence(cell=trainer.cell, codec=trainer.codec, trainer=trainer)
    moved = {name for name, p in trainer.parameters.items() if not torch.equal(p, before[name])}
    return evidence, {method.group_of(name) for name in moved & evidence.own}


def findings(evidence, passed=(True, False)) -> dict[str, str]:
    return {finding.name: finding.detail for finding in audited(evidence) if finding.passed in passed}


@pytest.mark.parametrize(
    ("method", "like", "rows", "changes", "moving", "details"),
    [
        ("dora", "gpt2_sa_lora", REVIEWS, {}, {"lora_A", "lora_B", "lora_magnitude_vector"},
         {"variant_applied": "use_dora; lora_A, lora_B, lora_magnitude_vector"}),
        ("rslora", "gpt2_sa_lora", REVIEWS, {}, {"lora_A", "lora_B"},
         {"adapters_where_declared": "3 adapters: rank 8, scale 5.65685"}),  # alpha 16: 16 / sqrt(8)
        ("lora", "gpt2_sa_lora", REVIEWS, {}, {"lora_A", "lora_B"}, {"variant_applied": None}),  # has nothing to show
        ("lora", "gpt2_sum_lora", NEWS, {}, {"lora_A", "lora_B", "trainable_tokens_delta"}, {}),  # the row of a new token
        ("ia3", "bert_qa_qlora", QUESTIONS[:8], {"optim": "adamw_torch"}, {"ia3_l"}, {}),
        ("prompt", "t5_sum_lora", NEWS, {"gradient_checkpointing": False}, {"prompt_encoder"}, {}),  # adapts no layer
        ("ln", "bert_qa_lora", QUESTIONS[:8], {}, {"ln_tuning_layers"}, {}),
    ],
)  # fmt: skip
def test_what_a_method_adds_is_what_moves_and_audits_say_what_it_is(method, like, rows, changes, moving, details):
    evidence, moved = trained(ZOO[method], like, rows, **changes)
    assert findings(evidence, [False]) == {}
    assert moved == moving
    assert {name: findings(evidence).get(name) for name in details} == details


def test_adalora_plans_its_cuts_and_resumes_with_the_importance_it_had_measured(tmp_path):
    config = trainer_with(ZOO["adalora"], max_steps=0, num_train_epochs=5).model.peft_config["default"]
    # 16 rows in batches of 4, two of which make an update: 2 updates per epoch; a tenth and four tenths of 10
    assert (config.tinit, config.tfinal, config.total_step) == (1, 4, 10)
    cut, resumed = (trainer_with(ZOO["adalora"], max_steps=5) for _ in range(2))
    for group in islice(cut.updates(0), 2):
        cut.update(group)
    file = Checkpoints(path=tmp_path / "state.pt", every_seconds=0.0, resume=True)
    file.save_if_due(cut)
    file.restore(resumed)
    measured, restored = (trainer.model.base_model.rankallocator.exp_avg_ipt for trainer in (cut, resumed))
    assert len(measured) == 3 * 3  # A, B and E of three layers
    assert all(torch.equal(restored[name], importance) for name, importance in measured.items())


# Optimizers, rates and schedules

RATES = {"learning_rate": 1e-2, "head_learning_rate": 1e-3, "max_steps": 2, "per_device_train_batch_size": 2}
T5 = cell_of("t5_sa_lora", **RATES)


@pytest.mark.parametrize(
    ("cell", "head", "rest"),
    [
        (T5, {1e-3}, {1e-2}),
        (cell_of("bert_sa_sft", **RATES), {1e-3}, {1e-2}),
        (replace(T5, recipe=replace(T5.recipe, head_learning_rate=None)), {1e-2}, {1e-2}),
        (replace(T5, method=ZOO["loraplus"]), {1e-3}, {1e-2, 16e-2}),  # LoRA+ keeps its ratio
    ],
)
def test_the_head_has_its_own_rate_and_the_rest_the_recipes(cell, head, rest):
    trainer = trainer_for(cell, REVIEWS[:4])
    by_id = {id(p): group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    rates = {True: set(), False: set()}
    for name, parameter in trainer.stepped.items():
        if parameter.requires_grad:
            rates[within(name, trainer.cell.head.new_modules)].add(by_id[id(parameter)])
    assert rates == {True: head, False: rest}


def test_a_method_that_ignores_the_heads_rate_is_caught():
    class OneRate(type(LORA)):
        def parameter_groups(self, model, cell):
            return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": 0.0}]

    for method, expected in ((LORA, True), (OneRate(id="lora", name="LoRA"), False)):
        passed, _ = schedule_counts_updates(evidence_from(trainer_for(replace(T5, method=method), REVIEWS[:4]), run=True))
        assert passed is expected


# The zoo: every method is in every place or refused with a reason that still holds, and none is taken for plain LoRA.

GRID = zoo()
OPEN = zoo()
OPEN.refused.clear()


def trained_cell(cell_id: str, built=None, updates: int = 3, rows: int = 8) -> Evidence:
    """A cell of the zoo after a few updates; `built` is the method that really trained."""
    profile = replace(ZOO_PROFILE, max_steps=updates, changes={"per_device_train_batch_size": 4})
    cell = OPEN.cell(cell_id, profile)
    trainer = trainer_for(replace(cell, method=built or cell.method), train_rows(cell_id)[:rows])
    return replace(evidence_from(trainer, run=True), cell=cell)


def failed(evidence: Evidence) -> dict[str, str]:
    return {f.name: f.detail for f in audited(evidence) if not f.passed and f.name not in NEED_LENGTH}


def test_every_combination_is_a_cell_or_refused_and_cells_of_a_backbone_and_task_have_one_budget():
    everything = {f"{b}_{t}_{m.id}" for b, t, m in product(GRID.backbones, GRID.tasks, METHODS)}
    cells, refused = GRID.cells(ZOO_PROFILE), set(GRID.unsupported(ZOO_PROFILE))
    assert {cell.id for cell in cells} | refused == everything
    assert len(cells) + len(refused) == len(everything)
    budgets = {}
    for cell in cells:
        r = cell.recipe
        size = (r.max_steps, r.per_device_train_batch_size, r.gradient_accumulation_steps, r.max_length)
        budgets.setdefault((cell.backbone.id, cell.task.id), set()).add(size)
    assert {len(sizes) for sizes in budgets.values()} == {1}


# A cell that stands for all of a method's: what a method is does not depend on the task.
GROUPS = ("gpt2_sa", "bert_sa", "t5_sum")
OTHERS = [method.id for method in METHODS if method not in (LORA, QLORA, SFT)]
PLACES = {method: next(f"{g}_{method}" for g in GROUPS if f"{g}_{method}" not in GRID.refused) for method in OTHERS}


@pytest.mark.parametrize("method", PLACES)
def test_a_method_passes_the_audits_and_plain_lora_is_not_taken_for_it(method):
    evidence = trained_cell(PLACES[method], updates=6)
    assert failed(evidence) == {}
    assert "variant_applied" in {finding.name for finding in audited(evidence)}
    plain = QLORA if GRID.methods[method].quantization else LORA
    assert "variant_applied" in failed(trained_cell(PLACES[method], built=plain))


def test_cells_are_listed_or_refused_with_the_reason():
    expected = {
        ("-m", "zoo"): (0, r"(?s)^zoo:\n.*^gpt2_sa_vera +16 x 1 .*^not supported: t5_sum_bitfit, t5_qa_bitfit, t5_sa_bitfit: "),
        ("-m", "zoo", "--cells=gpt2_sa_oft"): (4, "gpt2_sa_oft: PEFT rotates layers of torch only"),
        ("-m", "full and zoo"): (4, "the zoo has micro cells only"),
        ("-m", "quick", "--cells=bert_sa_dora"): (4, "unknown cell 'bert_sa_dora'"),
    }
    answers = answers_to(["--list-cells", *options] for options in expected)
    for answer, (code, words) in zip(answers, expected.values(), strict=True):
        assert answer.code == code
        assert re.search(words, answer.err if code else answer.out, re.MULTILINE)
