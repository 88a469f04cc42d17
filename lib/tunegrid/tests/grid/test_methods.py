"""Methods beyond the study's three: each is a few lines, trains in the same trainer and is held to the same audits."""

from dataclasses import dataclass, replace
from itertools import islice
from typing import get_args

import peft
import pytest
import torch

from tunegrid.audits import Evidence, audited
from tunegrid.errors import InputError
from tunegrid.grid.cells import study
from tunegrid.grid.methods import LORA, SFT, Adapting, Method
from tunegrid.grid.recipes import QUICK_PROFILE, Schedule
from tunegrid.grid.zoo import IA3, METHODS
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.train import Trainer, make_schedule
from tunegrid.tests.small import CPU, cell_of, rows_of, silent, trainer_for

REVIEWS = rows_of("amazon_polarity/train")[:16]
NEWS = rows_of("cnn_dailymail/train")[:8]
FEW = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0}


ZOO = {method.id: method for method in METHODS}


def trainer_with(method: Method, like: str = "gpt2_sa_lora", rows=REVIEWS, **changes) -> Trainer:
    """A trainer of a quick cell with another method."""
    return trainer_for(replace(cell_of(like, **FEW | changes), method=method), rows)


def trained(method: Method, like: str = "gpt2_sa_lora", rows=REVIEWS, built: Method | None = None, **changes):
    """A quick cell labelled with a method, after a few updates, and what moved; `built` is the method that really trained."""
    trainer = trainer_with(built or method, like, rows, **changes)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    trainer.run(silent())
    moved = {name for name, p in trainer.parameters.items() if not torch.equal(p, before[name])}
    return Evidence(cell=replace(trainer.cell, method=method), codec=trainer.codec, trainer=trainer), moved


def failed(evidence) -> dict[str, str]:
    return {finding.name: finding.detail for finding in audited(evidence) if not finding.passed}


def groups(method, names) -> set[str]:
    return {method.group_of(name) for name in names}


@pytest.mark.parametrize(
    ("method", "audit", "said"),
    [
        (ZOO["dora"], "variant_applied", "use_dora; lora_A, lora_B, lora_magnitude_vector"),
        (ZOO["rslora"], "adapters_where_declared", "3 adapters: rank 8, scale 5.65685"),  # alpha 16: 16 / sqrt(8)
        (LORA, "variant_applied", None),  # the study's methods have none to show
    ],
)
def test_a_method_says_what_it_is(method, audit, said):
    evidence, moved = trained(method)
    assert failed(evidence) == {}
    assert {finding.name: finding.detail for finding in audited(evidence)}.get(audit) == said
    magnitudes = {"lora_magnitude_vector"} if method.id == "dora" else set()
    assert groups(method, moved & evidence.own) == {"lora_A", "lora_B"} | magnitudes


def test_targets_that_do_not_carry_an_adapter_are_named():
    narrow = peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[], modules_to_save=["qa_outputs"])

    @dataclass(frozen=True, kw_only=True)
    class Narrow(IA3):
        def peft_config(self, cell, base):
            return narrow

    evidence, _ = trained(Narrow(**vars(ZOO["ia3"])), "bert_qa_lora", rows_of("squad/train")[:8])
    first = "base_model.model.bert.encoder.layer.0.attention.output.dense"
    # micro BERT has three layers: key, value, and two layers that end in output.dense each
    detail = f"6 adapters where 12 layers are targets, {first} among the differences"
    assert failed(evidence)["adapters_where_declared"] == detail


def test_lora_plus_has_two_rates_and_the_schedule_holds_for_the_first():
    evidence, _ = trained(ZOO["loraplus"], lr_scheduler_type="constant")
    assert [group["lr"] for group in evidence.trainer.optimizer.param_groups] == pytest.approx([0.01, 0.01, 0.16, 0.16])
    assert failed(evidence) == {}


def test_adalora_prunes_between_updates_and_is_held_orthogonal():
    method = ZOO["adalora"]
    evidence, _ = trained(method)
    assert failed(evidence) == {}
    singular = [p for name, p in evidence.trainer.parameters.items() if "lora_E" in name]
    assert sum(int(p.count_nonzero()) for p in singular) == 8 * len(singular)  # the target rank, on average


def test_adalora_plans_its_cuts_over_an_epochs_updates():
    config = trainer_with(ZOO["adalora"], max_steps=0, num_train_epochs=5).model.peft_config["default"]
    # 16 rows in batches of 4, two of which make an update: 2 updates per epoch; a tenth and four tenths of 10
    assert (config.tinit, config.tfinal, config.total_step) == (1, 4, 10)


def test_adalora_resumes_with_the_importance_it_had_measured(tmp_path):
    method = ZOO["adalora"]
    cut, resumed = (trainer_with(method, max_steps=5) for _ in range(2))
    for group in islice(cut.updates(0), 2):
        cut.update(group)
    file = Checkpoints(path=tmp_path / "state.pt", every_seconds=0.0, resume=True)
    file.save_if_due(cut)
    file.restore(resumed)
    allocators = [trainer.model.base_model.rankallocator for trainer in (cut, resumed)]
    measured = allocators[0].exp_avg_ipt
    assert len(measured) == 3 * 3  # A, B and E of three layers
    assert all(torch.equal(allocators[1].exp_avg_ipt[name], importance) for name, importance in measured.items())


def test_a_penalty_pulls_on_weights_and_leaves_the_loss_as_it_is():
    @dataclass(frozen=True, kw_only=True)
    class Pulled(Method):
        def penalty(self, model):
            return 1e6 * model.score.weight.sum()

    pulled, _ = trained(Pulled(id="pulled", name="pulled"), "gpt2_sa_sft", max_steps=1)
    plain, _ = trained(SFT, "gpt2_sa_sft", max_steps=1)
    assert pulled.trainer.log.losses == plain.trainer.log.losses
    gained = [e.trainer.parameters["score.weight"] for e in (pulled, plain)]
    assert not torch.equal(*gained)


QUESTIONS = rows_of("squad/train")[:8]


@pytest.mark.parametrize(
    ("method", "like", "rows", "changes", "moving"),
    [
        ("ia3", "bert_qa_qlora", QUESTIONS, {"optim": "adamw_torch"}, "ia3_l"),
        ("lorafa", "gpt2_sa_lora", REVIEWS, {}, "lora_B"),  # A stays where it started
        ("prompt", "t5_sum_lora", NEWS, {"gradient_checkpointing": False}, "prompt_encoder"),  # adapts no layer
        ("ln", "bert_qa_lora", QUESTIONS, {}, "ln_tuning_layers"),
    ],
)
def test_what_a_method_adds_is_all_of_its_own_that_moves(method, like, rows, changes, moving):
    evidence, moved = trained(ZOO[method], like, rows, **changes)
    assert failed(evidence) == {}
    assert groups(ZOO[method], moved & evidence.own) == {moving}


def test_pissa_may_rewrite_its_targets_and_nothing_else():
    method = ZOO["pissa"]
    evidence, _ = trained(method)
    assert failed(evidence) == {}
    plain = replace(evidence, cell=replace(evidence.cell, method=LORA))
    assert failed(plain)["checkpoint_loaded"].startswith("3 of ")  # c_attn of three layers


def test_a_new_tokens_row_is_the_methods_own():
    evidence, moved = trained(LORA, "gpt2_sum_lora", NEWS)
    assert "trainable_tokens_delta" in groups(LORA, moved & evidence.own)
    assert failed(evidence) == {}


def test_what_a_method_adds_is_found_by_structure_not_by_name():
    model = peft.get_peft_model(
        torch.nn.ModuleDict({"lora_lookalike": torch.nn.Linear(2, 2), "target": torch.nn.Linear(2, 2)}),
        peft.LoraConfig(r=1, target_modules=["target"]),
    )
    assert {name.split(".")[-3] for name in LORA.own_parameters(model)} == {"lora_A", "lora_B"}


def test_a_method_without_a_config_says_what_is_missing():
    with pytest.raises(InputError, match="'mine' does not say what its adapter is: give it a `peft_config`"):
        trained(Adapting(id="mine", name="mine"))


# Optimizers


def test_an_optimizer_of_ones_own_gets_the_methods_groups_and_the_recipes_rate():
    grid = study()
    grid.add_optimizer("sgd", lambda groups, rate: torch.optim.SGD(groups, lr=rate))
    cell = grid.cell("gpt2_sa_lora", replace(QUICK_PROFILE, changes={"optim": "sgd", "learning_rate": 0.5}))
    optimizer = cell.method.make_optimizer(build(cell, load_tokenizer(cell), CPU), cell)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [
        (0.5, 0.01, 2 * 3 + 1),  # A and B of three layers, and the head's weight; nothing has one dimension
        (0.5, 0.0, 0),
    ]


@pytest.mark.parametrize("name", get_args(Schedule))
def test_every_schedule_needs_no_more_than_the_number_of_updates(name):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = make_schedule(optimizer, cell_of("bert_sa_sft", lr_scheduler_type=name, warmup_steps=1), 4)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert 0 <= schedule.get_last_lr()[0] <= 1
